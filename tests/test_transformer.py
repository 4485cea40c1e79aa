import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from paperwalk.experiments.transformer import make_variant, unscaled
from paperwalk.nn import DecoderBlock, MultiHeadAttention, TransformerBlock, sinusoidal_1d
from paperwalk.nn.attention import causal_mask
from paperwalk.nn.search import beam_search, greedy_search, length_penalty
from paperwalk.published.transformer import (
    TORCH_DECODER_LAYER,
    TORCH_ENCODER_LAYER,
    from_marian,
    from_torch,
    marian_names,
    rename,
    to_marian,
)
from paperwalk.testing import prove
from paperwalk.transformer import (
    Transformer,
    TransformerConfig,
    label_smoothing_loss,
    learning_rate,
    padding_mask,
)

SMALL = TransformerConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=3, d_mlp=20, block_size=16, dropout=0.0)


def small(**changes) -> TransformerConfig:
    return dataclasses.replace(SMALL, **changes)


def tokens(lengths: list[int], config: TransformerConfig = SMALL, *, target: bool = False) -> Tensor:
    """Random sentences of these lengths, none of the special tokens in them, filled up with padding."""
    special = {config.pad_id, config.bos_id, config.eos_id}
    words = torch.tensor([i for i in range(config.vocab_size) if i not in special])
    rows = torch.full((len(lengths), max(lengths)), config.pad_id)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = words[torch.randint(len(words), (length,))]
        if target:
            row[0] = config.bos_id
    return rows


def batch(config: TransformerConfig = SMALL) -> tuple[Tensor, Tensor]:
    return tokens([5, 2, 4], config), tokens([3, 6, 1], config, target=True)


# --- the equations, in loops


def naive_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def naive_attention(mha: MultiHeadAttention, x: Tensor, y: Tensor, allowed: Callable[[int, int], bool]) -> Tensor:
    d, e = x.shape[-1], x.shape[-1] // mha.n_heads
    w, bias = mha.in_proj.weight, mha.in_proj.bias
    q, k, v = (z @ w[i * d : (i + 1) * d].T + bias[i * d : (i + 1) * d] for i, z in enumerate((x, y, y)))
    rows = []
    for i in range(len(x)):
        keys = [j for j in range(len(y)) if allowed(i, j)]
        heads = []
        for n in range(mha.n_heads):
            part = slice(n * e, (n + 1) * e)
            scores = torch.stack([q[i, part] @ k[j, part] for j in keys]) / math.sqrt(e)
            heads.append(sum(a * v[j, part] for a, j in zip(scores.exp() / scores.exp().sum(), keys, strict=True)))
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ mha.out_proj.weight.T + mha.out_proj.bias


def naive_stack(model: Transformer, blocks, x: Tensor, allowed, context: Tensor | None = None) -> Tensor:
    for block in blocks:
        steps = [(block.norm1, lambda z, b=block: naive_attention(b.attention, z, z, allowed))]
        if context is not None:
            cross = lambda z, b=block: naive_attention(b.cross_attention, z, context, lambda i, j: True)  # noqa: E731
            steps.append((block.norm_cross, cross))
        mlp = block.mlp
        steps.append(
            (block.norm2, lambda z, m=mlp: (z @ m.fc1.weight.T + m.fc1.bias).clamp(min=0) @ m.fc2.weight.T + m.fc2.bias)
        )
        for norm, step in steps:
            x = naive_norm(norm, x + step(x)) if model.config.norm == "post" else x + step(naive_norm(norm, x))
    return x


def naive_embed(model: Transformer, row: Tensor, learned: str) -> Tensor:
    config, vectors = model.config, []
    for pos, token in enumerate(row.tolist()):
        x = math.sqrt(config.d_model) * model.embedding.weight[token]
        if config.positions == "learned":
            x = x + getattr(model, learned).weight[pos]
        elif config.positions == "sinusoidal":
            angles = [pos / 10_000 ** (2 * (i // 2) / config.d_model) for i in range(config.d_model)]
            x = x + torch.tensor([math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angles)])
        vectors.append(x)
    return torch.stack(vectors)


def naive_transformer(model: Transformer, source: Tensor, target: Tensor) -> list[Tensor]:
    """The logits of each pair alone, without its padding."""
    logits, pad = [], model.config.pad_id
    for s, t in zip(source, target, strict=True):
        x, y = s[s != pad], t[t != pad]
        states = naive_stack(model, model.encoder, naive_embed(model, x, "source_positions"), lambda i, j: True)
        if model.config.norm == "pre":
            states = naive_norm(model.encoder_norm, states)
        y = naive_stack(model, model.decoder, naive_embed(model, y, "target_positions"), lambda i, j: j <= i, states)
        if model.config.norm == "pre":
            y = naive_norm(model.decoder_norm, y)
        logits.append(y @ model.embedding.weight.T)
    return logits


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "none"])
def test_equals_the_equations_without_padding(norm, positions, randomise):
    model = randomise(Transformer(small(norm=norm, positions=positions)))
    source, target = batch()
    real = target != 0
    ours = lambda *x: model(*x)[real]  # noqa: E731
    naive = lambda *x: torch.cat(naive_transformer(model, *x))  # noqa: E731
    rung = prove("Transformer", "equations", ours, naive, source, target, shared=model)
    assert rung.n_gradients == len(list(model.parameters()))


# --- torch


class TorchTransformer(nn.Module):
    """torch.nn.Transformer between our embedding and our output, masks as its documentation says."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.stacks = nn.Transformer(
            config.d_model,
            config.n_heads,
            config.n_layers,
            config.n_layers,
            config.d_mlp,
            dropout=0.0,
            batch_first=True,
            norm_first=config.norm == "pre",
            layer_norm_eps=config.norm_eps,
        )
        if config.norm == "post":
            self.stacks.encoder.norm = self.stacks.decoder.norm = None

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        d, pad = self.config.d_model, self.config.pad_id
        embed = lambda x: self.embedding(x) * d**0.5 + sinusoidal_1d(x.shape[1], d)  # noqa: E731
        out = self.stacks(
            embed(source),
            embed(target),
            tgt_mask=~causal_mask(target.shape[1], target.shape[1]),
            src_key_padding_mask=source == pad,
            memory_key_padding_mask=source == pad,
            tgt_key_padding_mask=target == pad,
        )
        return out @ self.embedding.weight.T


def torch_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return from_torch({name.removeprefix("stacks."): tensor for name, tensor in tensors.items()})


def random_config(seed: int, **changes) -> TransformerConfig:
    rng = random.Random(seed)
    n_heads = rng.randint(1, 4)
    sizes = {
        "vocab_size": rng.randint(6, 20),
        "d_model": 2 * n_heads * rng.randint(3, 5),
        "n_layers": rng.randint(1, 3),
        "n_heads": n_heads,
        "d_mlp": rng.randint(3, 30),
        "norm_eps": rng.choice([1e-6, 1e-2]),
    }
    return small(**sizes | changes)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_torch_transformer(norm, seed, randomise):
    config = random_config(seed, norm=norm)
    theirs, ours = randomise(TorchTransformer(config)), Transformer(config)
    rung = prove("Transformer", "torch.nn.Transformer", ours, theirs, *batch(config), convert=torch_names)
    assert rung.n_gradients == len(list(ours.parameters()))


def test_torch_adds_a_norm_after_post_norm_stacks():
    theirs = nn.Transformer(12, 2, 2, 2, 20, batch_first=True).state_dict() | {"embedding.weight": torch.zeros(11, 12)}
    names = set(from_torch(theirs)) - set(Transformer(SMALL).state_dict())
    assert names == {f"{part}_norm.{kind}" for part in ("encoder", "decoder") for kind in ("weight", "bias")}


def some_mask(*shape: int) -> Tensor:
    mask = torch.rand(shape) < 0.6
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_layers_equal_torch(kind, norm, masked, randomise):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm == "pre", "layer_norm_eps": 0.1}
    x, y = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    mask, context_mask = (some_mask(4, 4), some_mask(4, 5)) if masked else (None, None)
    inverted = [None if m is None else ~m for m in (mask, context_mask)]
    if kind == "encoder":
        theirs = nn.TransformerEncoderLayer(12, 3, 20, **options)
        ours, table, inputs = (
            TransformerBlock(12, 3, 20, norm=norm, norm_eps=0.1, activation=F.relu),
            TORCH_ENCODER_LAYER,
            (x,),
        )
        extra_ours, extra_theirs = {"mask": mask}, {"src_mask": inverted[0]}
    else:
        theirs = nn.TransformerDecoderLayer(12, 3, 20, **options)
        ours, table, inputs = (
            DecoderBlock(12, 3, 20, norm=norm, norm_eps=0.1, activation=F.relu),
            TORCH_DECODER_LAYER,
            (x, y),
        )
        extra_ours = {"mask": mask, "context_mask": context_mask}
        extra_theirs = {"tgt_mask": inverted[0], "memory_mask": inverted[1]}
    ours.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | extra_ours), with_kwargs=True)
    theirs.register_forward_pre_hook(lambda _, args, kwargs: (args, extra_theirs), with_kwargs=True)
    rung = prove("block", "torch.nn", ours, randomise(theirs), *inputs, convert=partial(rename, table=table))
    assert rung.n_gradients == len(inputs) + (12 if kind == "encoder" else 18)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_cross_weights_see_no_later_target(norm, randomise):
    block, x, y = randomise(DecoderBlock(12, 3, 20, norm=norm)), torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    whole = block.cross_weights(x, y, causal_mask(4, 4))
    assert_close(whole[:, :, :2], block.cross_weights(x[:, :2], y, causal_mask(2, 2)))
    assert not torch.allclose(whole[:, :, :2], block.cross_weights(x, y)[:, :, :2], atol=1e-4)
    assert_close(whole.sum(-1), torch.ones(2, 3, 4))


def test_decoder_block_is_causal_by_flag_or_mask(randomise):
    block, x, y = randomise(DecoderBlock(12, 3, 20)), torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    assert_close(block(x, y, causal=True), block(x, y, causal_mask(4, 4)))
    assert not torch.allclose(block(x, y, causal=True), block(x, y))


@pytest.mark.usefixtures("unchecked")
def test_flops_on_paper_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = TransformerConfig(vocab_size=11, d_model=12, n_layers=2, n_heads=3, d_mlp=20, block_size=16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Transformer(config).eval()(torch.randint(3, 11, (1, 5)), torch.randint(3, 11, (1, 7)))
    assert config.forward_flops(5, 7) == counter.get_total_flops()


# --- transformers


def marian(config: TransformerConfig, **changes) -> nn.Module:
    import transformers

    sizes = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("layers", config.n_layers), ("attention_heads", config.n_heads), ("ffn_dim", config.d_mlp))
    }
    theirs = transformers.MarianMTModel(
        transformers.MarianConfig(
            **sizes
            | {
                "vocab_size": config.vocab_size,
                "d_model": config.d_model,
                "activation_function": config.activation,
                "scale_embedding": True,
                "static_position_embeddings": True,
                "max_position_embeddings": config.block_size,
                "dropout": config.dropout,
                "pad_token_id": config.pad_id,
                "decoder_start_token_id": config.bos_id,
                "eos_token_id": config.eos_id,
                "forced_eos_token_id": None,
            }
            | changes
        )
    )
    # With a padding_idx the padding token's row gets no gradient from the input side; ours is a token like others.
    theirs.model.encoder.embed_tokens.padding_idx = theirs.model.decoder.embed_tokens.padding_idx = None
    return theirs.eval()


def randomised_marian(config: TransformerConfig, std: float = 0.3, **changes) -> nn.Module:
    theirs = marian(config, **changes)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter) * std)
    return theirs


class Logits(nn.Module):
    def __init__(self, theirs: nn.Module):
        super().__init__()
        self.theirs = theirs

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        pad = self.theirs.config.pad_token_id
        # The first target token is the start, even where it has the id of padding.
        seen = F.pad(target[:, 1:] != pad, (1, 0), value=True)
        return self.theirs(
            input_ids=source,
            attention_mask=(source != pad).long(),
            decoder_input_ids=target,
            decoder_attention_mask=seen.long(),
        ).logits


def inner_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return marian_names({name.removeprefix("theirs."): tensor for name, tensor in tensors.items()})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("start", ["own start token", "starts with padding"])
def test_equals_marian(seed, start, randomise):
    config = random_config(seed, norm_eps=1e-5, activation=("relu", "silu", "gelu")[seed])
    if start == "starts with padding":
        config = dataclasses.replace(config, bos_id=config.pad_id)
    ours, theirs = Transformer(config), randomised_marian(config)
    rung = prove("Transformer", "Marian", ours, Logits(theirs), *batch(config), convert=inner_names)
    assert rung.n_gradients == len(list(ours.parameters()))


def test_equals_marian_at_the_base_size():
    config = TransformerConfig.base(vocab_size=1000, norm_eps=1e-5, dropout=0.0)
    theirs = randomised_marian(config, std=0.02)
    source, target = tokens([7, 4], config), tokens([3, 6], config, target=True)
    prove("base", "Marian", Transformer(config), Logits(theirs), source, target, convert=inner_names)


def test_loads_what_transformers_publishes(tmp_path, randomise):
    config = small(activation="silu", norm_eps=1e-5, bos_id=0)
    theirs = randomised_marian(config, activation_function="swish")
    theirs.final_logits_bias.copy_(torch.randn(1, config.vocab_size))
    theirs.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(tmp_path).eval()
    assert ours.config == dataclasses.replace(config, output_bias=True)
    source, target = batch(config)
    assert_close(ours(source, target), Logits(theirs)(source, target), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_embedding": False}, "scale_embedding=False, expected True"),
        ({"model_type": "bart"}, "model_type='bart', expected 'marian'"),
        ({"static_position_embeddings": False}, "static_position_embeddings=False"),
        ({"normalize_before": True}, "normalize_before=True, expected False"),
        ({"decoder_layers": 3}, "encoder_layers=2 and decoder_layers=3, expected equal"),
        ({"activation_function": "tanh"}, "activation='tanh', expected one of 'relu'"),
        ({"d_model": None}, "lacks d_model"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_other_marians_are_refused(tmp_path, changes, message):
    theirs = marian(SMALL)
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(tmp_path)


def test_two_embeddings_or_a_damaged_tensor_are_named(tmp_path):
    tensors = {name: tensor.clone() for name, tensor in marian(SMALL).state_dict().items()}
    values = marian(SMALL).config.to_dict()
    sizes, _ = from_marian(values, tensors)
    assert sizes["n_layers"] == 2
    tensors["lm_head.weight"] += 1
    assert "lm_head.weight" in marian_names(tensors)
    tensors["model.shared.weight"] = torch.zeros(3)
    assert marian_names(tensors)["embedding.weight"].shape == (3,)


def test_weights_go_to_marian_and_back(randomise):
    config = small(norm_eps=1e-5)
    ours, theirs = randomise(Transformer(config)).eval(), marian(config)
    missing, unexpected = theirs.load_state_dict(
        to_marian(ours.state_dict(), dict(theirs.named_parameters())), strict=False
    )
    assert not unexpected
    assert not [name for name in missing if "embed" not in name and name not in ("final_logits_bias", "lm_head.weight")]
    source, target = batch(config)
    assert_close(Logits(theirs)(source, target), ours(source, target), rtol=1e-4, atol=1e-5)
    back = marian_names(theirs.state_dict())
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())


def test_own_checkpoint_comes_back(tmp_path, randomise):
    model = randomise(Transformer(small(norm="pre", positions="learned"))).eval()
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path).eval()
    assert loaded.config == model.config
    source, target = batch()
    assert torch.equal(loaded(source, target), model(source, target))


# --- search


def generate(theirs: nn.Module, source: Tensor, **options) -> list[list[int]]:
    config = theirs.config
    with torch.no_grad():
        out = theirs.generate(
            input_ids=source,
            attention_mask=(source != config.pad_token_id).long(),
            do_sample=False,
            max_length=40,
            suppress_tokens=sorted({config.pad_token_id, config.decoder_start_token_id}),
            **options,
        )
    rows = [row[1:] for row in out.tolist()]
    assert all(config.eos_token_id in row for row in rows)
    return [row[: row.index(config.eos_token_id)] for row in rows]


LEARNS = small(vocab_size=12, d_model=32, n_heads=4, d_mlp=32, block_size=40, norm_eps=1e-5)


@pytest.fixture(scope="module")
def half_trained() -> tuple[Transformer, nn.Module]:
    """Ours and Marian with the same weights, taught for a moment to turn sentences round.

    An untrained model hardly ever ends a sentence; a well-trained one leaves a search nothing to decide.
    """
    torch.manual_seed(0)
    rng, theirs = random.Random(0), marian(LEARNS)
    wrapped, optimiser = Logits(theirs), torch.optim.Adam(theirs.parameters(), lr=5e-3)
    for _ in range(40):
        source = tokens([rng.randint(1, 8) for _ in range(32)], LEARNS)
        target = torch.zeros(len(source), source.shape[1] + 2, dtype=torch.long)
        for row, turned in zip(source, target, strict=True):
            words = row[row != 0].flip(0)
            turned[: len(words) + 2] = torch.cat([torch.tensor([1]), words, torch.tensor([2])])
        loss = label_smoothing_loss(wrapped(source, target[:, :-1]), target[:, 1:], 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ours = Transformer(LEARNS).eval()
    ours.load_state_dict(marian_names(theirs.state_dict()))
    return ours, theirs


def test_searches_equal_transformers_token_for_token(half_trained):
    ours, theirs = half_trained
    lengths, different = set(), 0
    for seed in range(6):
        torch.manual_seed(seed)
        source = tokens([7, 3, 8, 1, 5], LEARNS)
        greedy = generate(theirs, source, num_beams=1)
        assert ours.greedy(source, max_length=39) == greedy
        for beam in (1, 2, 3, 5):
            options = {"num_beams": beam} | ({"length_penalty": 0.0, "early_stopping": "never"} if beam > 1 else {})
            found = ours.beam_search(source, beam=beam, alpha=0.0, max_length=39)
            assert found == generate(theirs, source, **options)
            different += found != greedy
        lengths |= {len(row) for row in greedy}
    assert len(lengths) > 3
    assert different > 3


V, EOS = 4, 0


def table(seed: int) -> Callable[[Tensor], Tensor]:
    """A language: the log-probabilities of the next token, fixed at random for each beginning."""

    def next_log_p(rows: Tensor) -> Tensor:
        generators = [random.Random(f"{seed} {row}") for row in rows.tolist()]
        return torch.tensor([[g.gauss(0, 1.5) for _ in range(V)] for g in generators]).log_softmax(-1)

    return next_log_p


def exhaustive(next_log_p: Callable[[Tensor], Tensor], limit: int, alpha: float) -> list[int]:
    """The best of all sequences that end within the limit."""
    best, best_score = [], -math.inf
    for length in range(limit):
        for sequence in itertools.product(range(1, V), repeat=length):
            row = torch.tensor([[9, *sequence, EOS]])
            log_p = sum(next_log_p(row[:, : i + 1])[0, row[0, i + 1]].item() for i in range(length + 1))
            score = log_p / ((5 + length + 1) / (5 + 1)) ** alpha
            if score > best_score:
                best, best_score = list(sequence), score
    return best


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_a_wide_beam_is_the_exhaustive_search(alpha):
    start, limits = torch.full((1,), 9), torch.tensor([5])
    search = partial(beam_search, start=start, limits=limits, alpha=alpha, eos_id=EOS, forbidden=())
    narrow_misses = 0
    for seed in range(12):
        best = exhaustive(table(seed), 5, alpha)
        assert search(table(seed), beam=81) == [best]
        narrow_misses += search(table(seed), beam=1) != [best]
    assert narrow_misses > 0


def naive_beam(next_log_p: Callable[[Tensor], Tensor], limit: int, beam: int, alpha: float) -> list[int]:
    """Beam search over lists, without stopping early."""
    alive, ended = [((9,), 0.0)], []
    for length in range(1, limit + 1):
        grown = []
        for row, score in alive:
            log_p = next_log_p(torch.tensor([row]))[0].tolist()
            grown += [((*row, k), score + log_p[k]) for k in range(V) if k == EOS or length < limit]
        grown.sort(key=lambda hypothesis: -hypothesis[1])
        lp = ((5 + length) / (5 + 1)) ** alpha
        ended += [(score / lp, row) for row, score in grown[:beam] if row[-1] == EOS]
        alive = [(row, score) for row, score in grown if row[-1] != EOS][:beam]
    return list(max(ended)[1][1:-1])


@pytest.mark.parametrize("beam", [1, 2, 3, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 5.0])
def test_a_narrow_beam_equals_lists(beam, alpha):
    options = {"beam": beam, "alpha": alpha, "eos_id": EOS, "forbidden": ()}
    found = set()
    for seed in range(40):
        # Ends that are likely take several of the best candidates at once.
        eager = lambda rows, seed=seed: (table(seed)(rows) + torch.tensor([2.0, 0, 0, 0])).log_softmax(-1)  # noqa: E731
        ours = beam_search(eager, torch.full((1,), 9), torch.tensor([5]), **options)
        assert ours == [naive_beam(eager, 5, beam, alpha)]
        found.add(len(ours[0]))
    assert len(found) > 1


def test_length_penalty_prefers_longer():
    options = {"start": torch.full((1,), 9), "limits": torch.tensor([5]), "beam": 81, "eos_id": EOS, "forbidden": ()}
    lengths = [
        [len(beam_search(table(seed), alpha=alpha, **options)[0]) for alpha in (0.0, 0.6, 3.0)] for seed in range(12)
    ]
    assert all(row == sorted(row) for row in lengths)
    assert any(row[0] < row[1] for row in lengths)
    assert length_penalty(torch.tensor(1), 0.6) == 1.0
    assert length_penalty(torch.tensor(7), 1.0) == 2.0
    assert length_penalty(torch.tensor(19), 0.5) == 2.0


def test_search_obeys_limits_and_forbidden_tokens():
    endless = lambda rows: torch.tensor([-9.0, -1.0, -0.5, -0.6]).expand(len(rows), V).clone()  # noqa: E731
    start, limits = torch.full((3,), 9), torch.tensor([1, 3, 5])
    options = {"start": start, "limits": limits, "eos_id": EOS}
    assert greedy_search(endless, forbidden=(), **options) == [[], [2, 2], [2, 2, 2, 2]]
    assert greedy_search(endless, forbidden=(2,), **options) == [[], [3, 3], [3, 3, 3, 3]]
    # Without penalty the first end wins, if it is among the best; a large one makes it go on to the limit.
    assert beam_search(endless, beam=4, alpha=0.0, forbidden=(), **options) == [[], [], []]
    assert beam_search(endless, beam=2, alpha=0.0, forbidden=(), **options) == [[], [2, 2], [2, 2, 2, 2]]
    assert beam_search(endless, beam=2, alpha=5.0, forbidden=(2,), **options) == [[], [3, 3], [3, 3, 3, 3]]


def test_search_stops_when_nothing_can_win():
    calls = []

    def next_log_p(rows: Tensor) -> Tensor:
        calls.append(rows.shape)
        return torch.tensor([math.log(0.97), -9.0, -9.0, -9.0]).expand(len(rows), V).clone()

    options = {"start": torch.full((2,), 9), "limits": torch.tensor([50, 50]), "eos_id": EOS, "forbidden": ()}
    assert beam_search(next_log_p, beam=2, alpha=0.6, **options) == [[], []]
    assert greedy_search(next_log_p, **options) == [[], []]
    assert calls == [(4, 1), (2, 1)]


def test_a_tie_is_won_by_what_ended_first_and_ends_the_search():
    calls = []

    def next_log_p(rows: Tensor) -> Tensor:
        # After a 9 the end is as likely as a 2, and after the 2 it is certain; what begins with an 8 seldom ends.
        calls.append(len(rows))
        tied = [math.log(0.5), -torch.inf, math.log(0.5), -torch.inf] if rows.shape[1] == 1 else [0.0, -9.0, -9.0, -9.0]
        return torch.tensor([tied if row[0] == 9 else [-9.0, -1.0, -8.0, -8.0] for row in rows])

    options = {"beam": 2, "alpha": 0.0, "eos_id": EOS, "forbidden": ()}
    assert beam_search(next_log_p, torch.tensor([9]), torch.tensor([4]), **options) == [[]]
    assert calls == [2]
    assert beam_search(next_log_p, torch.tensor([9, 8]), torch.tensor([4, 4]), **options) == [[], [1, 1, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam": 0}, "beam=0, expected at least 1"),
        ({"alpha": math.inf}, "alpha=inf, expected a number of at least 0"),
        ({"limits": torch.tensor([0, 3])}, "max_length=0, expected at least 1: the end token"),
    ],
)
def test_a_search_names_bad_arguments(changes, message):
    options = {"start": torch.full((2,), 9), "limits": torch.tensor([3, 3]), "eos_id": EOS, "forbidden": ()}
    with pytest.raises(ValueError, match=message):
        beam_search(table(0), **options | {"beam": 2, "alpha": 0.0} | changes)


def test_search_alone_equals_search_in_a_batch(half_trained):
    model, _ = half_trained
    source = tokens([6, 1, 3], LEARNS)
    alone = [row[row != 0][None] for row in source]
    for search in (model.greedy, model.beam_search, partial(model.beam_search, beam=3, alpha=2.0)):
        assert search(source) == [search(row)[0] for row in alone]
    assert len({len(row) for row in model.greedy(source)}) > 1


def test_a_target_may_be_fifty_longer_than_its_source():
    model = Transformer(small(output_bias=True, block_size=54)).eval()
    model.output_bias[2] = -1e4  # it never ends by itself
    model.output_bias[:2] = 1e4  # and would like to write padding and starts
    lengths = lambda rows: [len(row) for row in rows]  # noqa: E731
    for search in (model.greedy, partial(model.beam_search, beam=2)):
        # The end token is one of them; and no target is longer than a block.
        assert lengths(search(tokens([3, 1, 7]))) == [52, 50, 53]
        assert lengths(search(tokens([3, 1]), max_length=4)) == [3, 3]
        assert min(search(tokens([3]))[0]) > 2


# --- masks


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_padded_batch_equals_each_pair_alone(norm, randomise):
    model = randomise(Transformer(small(norm=norm)))
    source, target = batch()
    logits = model(source, target)
    more = model(F.pad(source, (0, 4)), F.pad(target, (0, 3)))
    for i, (s, t) in enumerate(zip(source, target, strict=True)):
        n = int((t != 0).sum())
        alone = model(s[s != 0][None], t[t != 0][None])[0]
        assert_close(logits[i, :n], alone)
        assert_close(more[i, :n], alone)


def test_mask_is_the_union_of_padding_and_future():
    target = torch.tensor([[1, 5, 6, 0, 0], [1, 0, 0, 0, 0]])
    mask = Transformer(SMALL)._target_mask(target)
    allowed = [[[target[b, j].item() != 0 and j <= i for j in range(5)] for i in range(5)] for b in range(2)]
    assert mask.tolist() == [[rows] for rows in allowed]
    assert torch.equal(mask, padding_mask(target, 0) & causal_mask(5, 5))
    # The start is never padding, even where it has the same id.
    assert Transformer(small(bos_id=0))._target_mask(torch.tensor([[0, 5]])).tolist() == [
        [[[True, False], [True, True]]]
    ]


def test_source_of_padding_alone_is_no_source(randomise):
    model = randomise(Transformer(SMALL))
    source, target = batch()
    source[1] = 0
    logits = model(source, target)
    assert logits.isfinite().all()
    assert_close(logits[[0, 2]], model(source[[0, 2]], target[[0, 2]]))
    # What a fully masked row leaves of an attention is the bias of its output.
    assert_close(logits[1], model(torch.zeros(1, 1, dtype=torch.long), target[1:2])[0])
    for block in model.decoder:
        bias = block.cross_attention.out_proj.bias
        block.cross_attention.forward = lambda x, *_, bias=bias: bias.expand_as(x)
    assert_close(logits[1], model(tokens([3]), target[1:2])[0])
    logits[1].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_no_token_sees_a_later_one(randomise):
    model = randomise(Transformer(SMALL))
    source, target = tokens([5]), tokens([6], target=True)
    logits = model(source, target)
    for i in range(1, 6):
        changed = target.clone()
        changed[0, i:] = torch.randint(3, 11, (6 - i,))
        changed[0, i] = 3 + (target[0, i] - 2) % 8
        again = model(source, changed)
        assert_close(again[0, :i], logits[0, :i])
        assert not torch.allclose(again[0, i], logits[0, i])
    changed = source.clone()
    changed[0, -1] = 3 + (source[0, -1] - 2) % 8
    assert not torch.allclose(model(changed, target)[0, 0], logits[0, 0])


def test_only_positions_tell_the_order_of_the_source(randomise):
    for positions in ("sinusoidal", "learned", "none"):
        model = randomise(Transformer(small(positions=positions)))
        source, target = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[1, 7]])
        same = torch.allclose(model(source.flip(1), target), model(source, target), atol=1e-5)
        assert same == (positions == "none")


# --- loss, schedule, positions


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.6])
def test_label_smoothing_equals_torch_and_its_definition(epsilon):
    targets = torch.tensor([[3, 4, 0], [5, 0, 0]])
    logits = torch.randn(2, 3, 7)
    ours = partial(label_smoothing_loss, targets=targets, pad_id=0, epsilon=epsilon)

    def definition(logits):
        terms = []
        for b, t in ((0, 0), (0, 1), (1, 0)):
            wanted = torch.full((7,), epsilon / 7)
            wanted[targets[b, t]] += 1 - epsilon
            terms.append(-(wanted * logits[b, t].log_softmax(-1)).sum())
        return sum(terms) / 3

    def torchs(logits):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0, label_smoothing=epsilon)

    prove("loss", "definition", ours, definition, logits)
    prove("loss", "torch", ours, torchs, logits)


def test_smoothed_loss_is_least_at_the_smoothed_target():
    wanted = torch.full((7,), 0.1 / 7)
    wanted[3] += 0.9
    logits = wanted.log()[None, None].requires_grad_()
    loss = label_smoothing_loss(logits, torch.tensor([[3]]), 0, 0.1)
    loss.backward()
    assert logits.grad.abs().max() < 1e-6
    assert loss.item() == pytest.approx(-(wanted * wanted.log()).sum().item())


def test_learning_rate_rises_in_a_line_and_falls_with_the_root():
    assert learning_rate(4000, 512) == pytest.approx((512 * 4000) ** -0.5)
    assert learning_rate(1000, 512) == pytest.approx(learning_rate(4000, 512) / 4)
    assert learning_rate(16_000, 512) == pytest.approx(learning_rate(4000, 512) / 2)
    assert learning_rate(7, 64, 7) == pytest.approx((64 * 7) ** -0.5)
    assert max(range(1, 50), key=lambda step: learning_rate(step, 8, 17)) == 17


def test_a_shift_of_positions_is_a_rotation():
    d, pe = 10, sinusoidal_1d(40, 10).double()
    for k in (1, 7):
        for i in range(d // 2):
            omega = 10_000 ** (-2 * i / d)
            c, s = math.cos(k * omega), math.sin(k * omega)
            rotation = torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
            pair = slice(2 * i, 2 * i + 2)
            assert_close(pe[k:, pair], pe[: 40 - k, pair] @ rotation.T, rtol=0, atol=1e-6)


# --- the model


def test_embedding_is_shared_and_scaled(randomise):
    model = randomise(Transformer(small(positions="none")))
    row = torch.tensor([[3, 5]])
    assert_close(model.embed(row), math.sqrt(12) * model.embedding.weight[[3, 5]][None])
    assert_close(model.embed(row, target=True), model.embed(row))
    assert sum(tensor.numel() == 11 * 12 for tensor in model.state_dict().values()) == 1


@pytest.mark.parametrize(("preset", "parameters"), [("base", 63_082_496), ("big", 214_245_376)])
def test_presets_have_the_counted_parameters(preset, parameters):
    config = getattr(TransformerConfig, preset)()
    with torch.device("meta"):
        model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    d, f, n = config.d_model, config.d_mlp, config.n_layers
    attention, mlp, norm = 4 * d * d + 4 * d, 2 * d * f + d + f, 2 * d
    assert parameters == 37_000 * d + n * (attention + mlp + 2 * norm) + n * (2 * attention + mlp + 3 * norm)
    published = {"base": (512, 2048, 8, 0.1), "big": (1024, 4096, 16, 0.3)}[preset]
    assert (d, f, config.n_heads, config.dropout, n) == (*published, 6)
    assert getattr(TransformerConfig, preset)(n_layers=1, d_mlp=8).d_mlp == 8


def test_dropout_acts_where_section_5_4_says(randomise):
    model = randomise(Transformer(small(dropout=0.5)))
    source, target = batch()
    assert (model.embed(source) == 0).float().mean().item() == pytest.approx(0.5, abs=0.2)
    hidden = []
    for block in (*model.encoder, *model.decoder):
        assert block.mlp.hidden_dropout.p == 0
        assert block.attention.dropout == 0
        block.mlp.fc2.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    assert not torch.equal(model(source, target), model(source, target))
    assert len(hidden) == 8
    model.eval()
    assert torch.equal(model(source, target), model(source, target))
    without = Transformer(SMALL)
    without.load_state_dict(model.state_dict())
    assert_close(without(source, target), model(source, target))


def test_dropout_of_almost_one_leaves_the_residual():
    block, x, y = DecoderBlock(12, 3, 20, norm="pre", dropout=1.0), torch.randn(2, 5, 12), torch.randn(2, 3, 12)
    assert torch.equal(block(x, y), x)
    post = DecoderBlock(12, 3, 20, norm="post", dropout=1.0)
    assert torch.equal(post(x, y), post.norm2(post.norm_cross(post.norm1(x))))


def test_initial_weights_have_the_documented_statistics():
    model = Transformer(small(d_model=192, d_mlp=576, vocab_size=500, n_layers=1))
    assert model.embedding.weight.std().item() == pytest.approx(192**-0.5, rel=0.02)
    for block in (model.encoder[0], model.decoder[0]):
        attentions = [block.attention] + ([block.cross_attention] if isinstance(block, DecoderBlock) else [])
        weights = [w for a in attentions for w in (*a.in_proj.weight.chunk(3), a.out_proj.weight)]
        for weight in (*weights, block.mlp.fc1.weight, block.mlp.fc2.weight):
            assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / sum(weight.shape)), rel=0.01)
        assert all((m.bias == 0).all() for m in block.modules() if isinstance(m, nn.Linear | nn.LayerNorm))


def test_gradients_equal_finite_differences(randomise):
    model = randomise(Transformer(small(vocab_size=5, d_model=4, n_layers=1, n_heads=2, d_mlp=3))).double()
    names, parameters = zip(*model.named_parameters(), strict=True)
    source, target = torch.tensor([[3, 4]]), torch.tensor([[1, 3]])

    def loss(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (source, target))

    # Finite differences over a kink of ReLU would be wrong; smooth here.
    for block in (*model.encoder, *model.decoder):
        block.mlp.activation = F.gelu
    assert torch.autograd.gradcheck(loss, parameters, fast_mode=True)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_cross_attention_maps_equal_transformers(norm, randomise):
    config = small(norm_eps=1e-5, norm=norm)
    source, target = tokens([5, 5]), tokens([4, 4], target=True)
    if norm == "pre":
        maps = randomise(Transformer(config)).cross_attention_maps(source, target)
    else:
        theirs = randomised_marian(config, attn_implementation="eager")
        ours = Transformer(config).eval()
        ours.load_state_dict(marian_names(theirs.state_dict()))
        maps = ours.cross_attention_maps(source, target)
        out = theirs(input_ids=source, decoder_input_ids=target, output_attentions=True)
        assert_close(maps, torch.stack(out.cross_attentions).detach(), rtol=1e-4, atol=1e-5)
    assert maps.shape == (2, 2, 3, 4, 5)
    assert_close(maps.sum(-1), torch.ones(2, 2, 3, 4))


def test_unscaled_variant_is_eq_1_without_the_root(randomise):
    x = torch.randn(1, 4, 64)
    model = make_variant("1 head, unscaled")
    attention = model.encoder[0].attention
    plain = MultiHeadAttention(64, 1)
    plain.load_state_dict(attention.state_dict())
    q, k, v = plain.project(x)
    assert_close(attention(x), plain.out_proj(((q @ k.mT).softmax(-1) @ v)[:, 0]))
    y = torch.randn(1, 3, 64)
    cross = unscaled(make_variant("4 heads")).decoder[0].cross_attention
    with torch.no_grad():
        cross.in_proj.weight[:64] /= 4
    plain = MultiHeadAttention(64, 4)
    plain.load_state_dict(cross.state_dict())
    with torch.no_grad():
        plain.in_proj.weight[:64] *= 4
    assert_close(cross(x, y), plain(x, y))


# --- bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 14}, "d_model=14 is not a multiple of n_heads=3"),
        ({"d_model": 9}, "d_model=9, expected an even number"),
        ({"norm": "sandwich"}, "norm='sandwich', expected one of 'post', 'pre'"),
        ({"positions": "rotary"}, "'rotary', expected one of 'sinusoidal'"),
        ({"activation": "tanh"}, "'tanh', expected one of 'relu'"),
        ({"dropout": 1.0}, "dropout=1.0, expected a number of at least 0 and below 1"),
        ({"dropout": math.nan}, "dropout=nan"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0"),
        ({"pad_id": 11}, "pad_id=11, expected an int from 0 to 10"),
        ({"bos_id": -1}, "bos_id=-1"),
        ({"eos_id": 0}, "eos_id=0 is also pad_id or bos_id"),
        ({"d_model": "12"}, "d_model='12', expected an int"),
    ]
    + [({name: 0}, f"{name}=0, expected") for name in ("vocab_size", "n_layers", "n_heads", "d_mlp", "block_size")],
)
def test_bad_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


GOOD = torch.tensor([[3, 4]])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.tensor([3, 4]), GOOD, r"source is torch\.int64 of shape \(2,\), expected token ids"),
        (torch.zeros(1, 0, dtype=torch.long), GOOD, r"source .* \(1, 0\), expected token ids"),
        (torch.zeros(0, 2, dtype=torch.long), GOOD, r"source .* \(0, 2\)"),
        (GOOD.float(), GOOD, r"source is torch\.float32"),
        (GOOD > 3, GOOD, r"source is torch\.bool"),
        (torch.tensor([[3, 11]]), GOOD, "source has token ids 3 to 11, expected 0 to 10"),
        (torch.tensor([[-1, 4]]), GOOD, "source has token ids -1 to 4"),
        (torch.ones(1, 17, dtype=torch.long), GOOD, "source has 17 positions, expected at most 16"),
        (GOOD, torch.ones(1, 17, dtype=torch.long), "target has 17 positions"),
        (GOOD, torch.tensor([[11]]), "target has token ids 11 to 11"),
        (GOOD, GOOD.expand(2, -1), "1 sources and 2 targets, expected as many"),
    ],
)
def test_bad_tokens_are_named(source, target, message):
    with pytest.raises(ValueError, match=message):
        Transformer(SMALL)(source, target)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.beam_search(GOOD, beam=0), "beam=0, expected at least 1"),
        (lambda m: m.beam_search(GOOD, beam=-2), "beam=-2"),
        (lambda m: m.beam_search(GOOD, alpha=-0.1), "alpha=-0.1, expected a number of at least 0"),
        (lambda m: m.beam_search(GOOD, alpha=math.nan), "alpha=nan"),
        (lambda m: m.beam_search(GOOD, max_length=0), "max_length=0, expected at least 1"),
        (lambda m: m.greedy(GOOD, max_length=-1), "max_length=-1"),
        (lambda m: m.greedy(GOOD.float()), r"source is torch\.float32"),
        (lambda m: m.beam_search(torch.ones(1, 17, dtype=torch.long)), "source has 17 positions"),
        (lambda m: m.cross_attention_maps(torch.tensor([[3, 0]]), GOOD), "source has padding"),
        (lambda m: m.cross_attention_maps(GOOD, GOOD.expand(2, -1)), "1 sources and 2 targets"),
        (lambda m: m.cross_attention_maps(GOOD, GOOD.float()), r"target is torch\.float32"),
        (lambda m: label_smoothing_loss(torch.zeros(1, 2, 5), torch.zeros(1, 2).long(), 0), "every target is padding"),
        (lambda m: label_smoothing_loss(torch.zeros(1, 2, 5), GOOD, 0, 1.0), "epsilon=1.0, expected at least 0"),
        (lambda m: label_smoothing_loss(torch.zeros(1, 2, 5), GOOD, 0, -0.1), "epsilon=-0.1"),
        (lambda m: learning_rate(0, 512), "step=0"),
        (lambda m: learning_rate(1, 512, 0), "warmup=0"),
    ],
)
def test_bad_searches_and_losses_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(Transformer(SMALL))


# What the mutants of `make mutants` showed to be without a judge here.


def test_defaults_are_those_of_the_paper():
    assert TransformerConfig() == TransformerConfig(
        37_000, 512, 6, 8, 2048, 512, 0.1, "post", "sinusoidal", "relu", 1e-6
    )
    model, (source, target) = Transformer(SMALL).eval(), batch()
    assert model.beam_search(source) == model.beam_search(source, beam=4, alpha=0.6)
    logits = torch.randn(3, 1, 11)
    smoothed = F.cross_entropy(logits[:, 0], target[:, 0], label_smoothing=0.1)
    assert_close(label_smoothing_loss(logits, target[:, :1], SMALL.pad_id), smoothed)


def test_the_default_beam_is_that_of_section_6_1(monkeypatch):
    asked, model = [], Transformer(SMALL).eval()

    def search(search, source, beam, max_length):
        asked.append((search.keywords, beam))
        return []

    monkeypatch.setattr(model, "_search", search)
    model.beam_search(tokens([5]))
    assert asked == [({"beam": 4, "alpha": 0.6}, 4)]


def test_the_output_bias_starts_at_zero():
    assert not Transformer(small(output_bias=True)).output_bias.any()


def test_both_sides_are_named():
    model, (source, target) = Transformer(SMALL), batch()
    with pytest.raises(ValueError, match=r"^source has token ids"):
        model(source + 11, target)
    with pytest.raises(ValueError, match=r"^target has token ids"):
        model(source, target + 11)


def test_the_mask_is_made_where_the_target_is(monkeypatch):
    made = []
    spy = lambda t, s, device="elsewhere": made.append(device) or causal_mask(t, s)  # noqa: E731
    monkeypatch.setattr("paperwalk.transformer.causal_mask", spy)
    source, target = batch()
    Transformer(SMALL)(source, target)
    assert made == [target.device]


def test_half_precision_weights_come_back(comes_back_in_half):
    comes_back_in_half(Transformer(SMALL))


PUBLISHED = {
    **{"model_type": "marian", "scale_embedding": True, "vocab_size": 11, "d_model": 12, "encoder_layers": 2},
    **{"decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 3, "encoder_ffn_dim": 20},
    **{"decoder_ffn_dim": 20, "max_position_embeddings": 16, "dropout": 0.1, "activation_function": "swish"},
    **{"pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 2},
}


def test_what_marian_leaves_out_is_as_in_the_paper():
    assert from_marian(PUBLISHED, {})[0]["d_model"] == 12
    for name in ("share_encoder_decoder_embeddings", "tie_word_embeddings"):
        with pytest.raises(ValueError, match=f"{name}=False, expected True"):
            from_marian(PUBLISHED | {name: False}, {})
    for name in ("normalize_embedding", "add_final_layer_norm"):
        with pytest.raises(ValueError, match=f"{name}=True, expected False"):
            from_marian(PUBLISHED | {name: True}, {})
    for name in ("model_type", "scale_embedding"):
        with pytest.raises(ValueError, match=f"{name}=None, expected"):
            from_marian({key: value for key, value in PUBLISHED.items() if key != name}, {})
    with pytest.raises(ValueError, match="of a marian lacks d_model"):
        from_marian({key: value for key, value in PUBLISHED.items() if key != "d_model"}, {})


def test_marians_tensors_of_strange_shapes_stay_as_they_are():
    bias = torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.equal(marian_names({"final_logits_bias": bias})["output_bias"], bias[0])
    shared = torch.randn(3, 5)
    assert marian_names({"model.shared.weight": shared})["embedding.weight"] is shared
    flat = torch.randn(4)
    tensors = {"model.shared.weight": torch.randn(3, 4), "model.encoder.layers.0.fc1.weight": flat}
    assert marian_names(tensors)["encoder.0.mlp.fc1.weight"] is flat


def test_marian_gets_our_precision():
    ours = Transformer(small(norm_eps=1e-5)).double().state_dict()
    found = to_marian(ours, dict(marian(SMALL).named_parameters()))
    assert {tensor.dtype for tensor in found.values()} == {torch.float64}
