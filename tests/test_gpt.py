import json
import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paperwalk.data import consecutive_windows, random_windows
from paperwalk.experiments import gpt as experiment
from paperwalk.generate import generate, next_token_probabilities, pad_left
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.nn import KeyValueCache, MultiHeadAttention, TransformerBlock, attention, attention_weights, causal_mask
from paperwalk.published.gpt import from_transformers, our_names
from paperwalk.testing import prove
from paperwalk.train import runs
from paperwalk.train.engine import Options
from paperwalk.train.recipes.gpt import GPTRecipe, Sampling

SMALL = GPTConfig(vocab_size=17, block_size=8, d_model=12, n_layers=2, n_heads=3, d_mlp=20)


def small(**changes) -> GPTConfig:
    return GPTConfig(**vars(SMALL) | changes)


def tokens(config: GPTConfig = SMALL, b: int = 3, t: int = 7) -> Tensor:
    return torch.randint(config.vocab_size, (b, t))


def random_config(seed: int) -> GPTConfig:
    rng = random.Random(seed)
    n_heads = rng.randint(1, 4)
    return GPTConfig(
        vocab_size=rng.randint(5, 60),
        block_size=rng.randint(9, 20),
        d_model=n_heads * rng.randint(2, 8),
        n_layers=rng.randint(1, 4),
        n_heads=n_heads,
        d_mlp=rng.randint(5, 60),
        norm_eps=rng.choice([1e-5, 0.1]),
    )


def transformers_gpt(config: GPTConfig, kind: str = "GPT2LMHeadModel", **changes) -> nn.Module:
    import transformers

    sizes = {
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "layer_norm_epsilon": config.norm_eps,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return getattr(transformers, kind)(transformers.GPT2Config(**sizes | changes)).eval()


def some_padding(b: int, t: int, side: str) -> Tensor:
    lengths = torch.tensor([t, *(random.Random(0).randint(1, t) for _ in range(b - 1))])[:, None]
    return torch.arange(t) >= t - lengths if side == "left" else torch.arange(t) < lengths


# The ladder


def naive_gpt(model: GPT, ids: Tensor) -> Tensor:
    def norm(layer, x):
        centred = x - x.mean()
        return centred / ((centred**2).mean() + layer.eps).sqrt() * layer.weight + layer.bias

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attend(layer, xs):
        d, e = model.config.d_model, model.config.d_model // model.config.n_heads
        q, k, v = ([layer.in_proj.weight[i * d : (i + 1) * d] @ x + layer.in_proj.bias[i * d : (i + 1) * d] for x in xs]
                   for i in range(3))  # fmt: skip
        out = []
        for i in range(len(xs)):
            heads = []
            for part in (slice(j, j + e) for j in range(0, d, e)):
                scores = torch.stack([torch.exp(q[i][part] @ k[j][part] / math.sqrt(e)) for j in range(i + 1)])
                heads.append(sum(s / scores.sum() * v[j][part] for j, s in enumerate(scores)))
            out.append(layer.out_proj.weight @ torch.cat(heads) + layer.out_proj.bias)
        return out

    logits = []
    for row in ids:
        xs = [model.token_embedding.weight[u] + model.positions.weight[i] for i, u in enumerate(row)]
        for block in model.blocks:
            attended = attend(block.attention, [norm(block.norm1, x) for x in xs])
            xs = [x + a for x, a in zip(xs, attended, strict=True)]
            hidden = [gelu(block.mlp.fc1.weight @ norm(block.norm2, x) + block.mlp.fc1.bias) for x in xs]
            xs = [x + block.mlp.fc2.weight @ h + block.mlp.fc2.bias for x, h in zip(xs, hidden, strict=True)]
        logits.append(torch.stack([model.token_embedding.weight @ norm(model.norm, x) for x in xs]))
    return torch.stack(logits)


def test_equals_the_equations(randomise):
    model = randomise(GPT(SMALL))
    rung = prove("GPT", "equations", model, lambda ids: naive_gpt(model, ids), tokens(b=2, t=5), shared=model)
    assert rung.n_gradients == len(list(model.parameters())) == 2 + 2 * 12 + 2


@pytest.mark.parametrize("seed", range(4))
def test_equals_transformers_at_random_sizes(seed, randomise):
    config = random_config(seed)
    ours, theirs = GPT(config), randomise(transformers_gpt(config))
    rung = prove("GPT", "HF", ours, theirs, tokens(config), convert=our_names, read=lambda out: out.logits)
    assert rung.n_gradients == len(list(ours.parameters()))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(2))
def test_equals_transformers_with_padding(seed, side, randomise):
    config = random_config(seed)
    ours, theirs = GPT(config), randomise(transformers_gpt(config))
    real = some_padding(4, 7, side)
    options = {"attention_mask": real.long(), "position_ids": (real.cumsum(1) - 1).clamp(min=0)}
    # What stands at padding means nothing, so it is left out of outputs and gradients.
    ours.register_forward_pre_hook(lambda _, args: (*args, real))
    ours.register_forward_hook(lambda _, args, out: out[real])
    theirs.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | options), with_kwargs=True)
    ids = tokens(config, b=4)
    prove("GPT", "HF", ours, theirs, ids, convert=our_names, read=lambda out: out.logits[real])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side, randomise):
    model, ids, real = randomise(GPT(SMALL)), tokens(b=4), some_padding(4, 7, side)
    logits = model(ids, real)
    for i in range(4):
        assert_close(logits[i, real[i]], model(ids[i : i + 1, real[i]])[0])
    assert_close(model(torch.where(real, ids, 5), real)[real], logits[real])
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_parameters(preset, parameters):
    with torch.device("meta"):
        model = GPT(getattr(GPTConfig, preset)())
    assert sum(p.numel() for p in model.parameters()) == parameters
    changes = {"vocab_size": 7, "n_layers": 1, "d_model": 5, "n_heads": 1, "d_mlp": 3}
    assert getattr(GPTConfig, preset)(**changes) == GPTConfig(**changes)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A GPT-2 of the published size with random weights, in a file as transformers publishes it."""
    torch.manual_seed(0)
    theirs = transformers_gpt(GPTConfig.gpt2(), n_inner=None)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) * ("ln" in name or "bias" in name))
    folder = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    return folder, theirs


def test_published_size_equals_transformers(published):
    folder, theirs = published
    assert json.loads((folder / "config.json").read_text())["n_inner"] is None
    ours = GPT.from_pretrained(folder).eval()
    assert ours.config == GPTConfig.gpt2()
    ids = tokens(ours.config, b=2, t=6)
    rung = prove("GPT-2", "HF", ours, theirs, ids, convert=our_names, read=lambda out: out.logits)
    assert rung.n_gradients == 148


def test_published_size_equals_transformers_with_padding(published):
    folder, theirs = published
    ours, ids = GPT.from_pretrained(folder).eval(), tokens(GPTConfig.gpt2(), b=2, t=9)
    real = torch.tensor([[1] * 9, [0] * 4 + [1] * 5]).bool()
    with torch.no_grad():
        options = {"attention_mask": real.long(), "position_ids": (real.cumsum(1) - 1).clamp(min=0)}
        assert_close(ours(ids, real)[real], theirs(ids, **options).logits[real], rtol=1e-4, atol=1e-4)


# What each choice does


@pytest.mark.parametrize("t", [1, 2, 7, 8])
def test_no_logit_sees_a_later_token(t, randomise):
    model, ids = randomise(GPT(SMALL)), tokens(t=t)
    logits = model(ids)
    for i in range(t):
        changed = ids.clone()
        changed[:, i:] = (changed[:, i:] + 1 + torch.randint(16, (3, t - i))) % 17
        different = model(changed)
        assert torch.equal(different[:, :i], logits[:, :i])
        assert not torch.allclose(different[:, i], logits[:, i])


def test_every_logit_sees_all_earlier_tokens(randomise):
    model, ids = randomise(GPT(SMALL)), tokens(b=1)
    embedded = model.token_embedding(ids).detach().requires_grad_()
    model.token_embedding.register_forward_hook(lambda *_: embedded)
    logits = model(ids)
    for i in range(7):
        (gradient,) = torch.autograd.grad(logits[0, i].pow(2).sum(), embedded, retain_graph=True)
        assert (gradient[0, : i + 1].abs().amax(-1) > 0).all()
        assert (gradient[0, i + 1 :] == 0).all()


@pytest.mark.parametrize(("v", "d"), [(50, 32), (1000, 64), (5000, 128)])
def test_loss_at_initialisation_is_that_of_guessing(v, d):
    model = GPT(GPTConfig(vocab_size=v, block_size=32, d_model=d, n_layers=4, n_heads=4, d_mlp=4 * d))
    # Logits of variance σ² = d · 0.02² cost σ²/2 more than equal ones.
    expected = math.log(v) + d * 0.02**2 / 2
    assert model.loss(torch.randint(v, (32, 33))).item() == pytest.approx(expected, abs=0.05)


def test_initial_weights_have_the_documented_statistics():
    model = GPT(GPTConfig(vocab_size=500, block_size=200, d_model=96, n_layers=8, n_heads=4, d_mlp=384))
    residual = 0.02 / math.sqrt(16)
    for name, parameter in model.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            assert parameter.std().item() == pytest.approx(residual, rel=0.03), name
        elif "norm" in name and name.endswith("weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name
        assert abs(parameter.mean().item()) < 0.002 or "norm" in name


def test_the_head_is_the_token_embedding(randomise):
    model, ids = randomise(GPT(SMALL)), tokens()
    assert not [name for name in model.state_dict() if "head" in name]
    h = model.encode(ids)
    assert_close(model(ids), h @ model.token_embedding.weight.T)
    with torch.no_grad():
        model.token_embedding.weight[11] += 1.0
    assert not torch.allclose(model(torch.zeros(1, 1, dtype=torch.long))[..., 11], model.logits(h)[:1, :1, 11])


def test_loss_is_the_mean_over_predicted_tokens(randomise):
    model, ids = randomise(GPT(SMALL)), tokens()
    log_p = model(ids[:, :-1]).log_softmax(-1)
    each = [-log_p[i, j, ids[i, j + 1]] for i in range(3) for j in range(6)]
    assert_close(model.loss(ids), torch.stack(each).mean())


def test_gradients_equal_finite_differences(randomise):
    config = GPTConfig(vocab_size=3, block_size=3, d_model=4, n_layers=1, n_heads=2, d_mlp=4)
    model = randomise(GPT(config)).double()
    ids, names = torch.tensor([[0, 2, 1], [1, 1, 0]]), [name for name, _ in model.named_parameters()]
    weights = [p.detach().requires_grad_() for p in model.parameters()]

    def logits(*weights):
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (ids,))

    assert torch.autograd.gradcheck(logits, weights)


def test_only_matrices_decay():
    model = GPT(SMALL)
    decayed, others = model.parameter_groups(0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {id(p) for group in (decayed, others) for p in group["params"]} == set(names)
    assert not [names[id(p)] for p in decayed["params"] if "norm" in names[id(p)] or "bias" in names[id(p)]]
    assert [names[id(p)] for p in others["params"] if "norm" not in names[id(p)] and "bias" not in names[id(p)]] == []


def test_dropout_acts_in_training_only(randomise):
    model, ids = randomise(GPT(small(dropout=0.5))), tokens()
    dropped = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert sorted(dropped) == [0.0, 0.0] + [0.5] * 5
    assert all(block.attention.dropout == 0.5 for block in model.blocks)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    without = GPT(SMALL)
    without.load_state_dict(model.state_dict())
    assert_close(model(ids), without(ids))


def test_attention_maps_equal_transformers(randomise):
    theirs = randomise(transformers_gpt(SMALL, attn_implementation="eager")).eval()
    ours, ids = GPT(SMALL), tokens()
    ours.load_state_dict(our_names(dict(theirs.state_dict())))
    maps = ours.attention_maps(ids)
    assert_close(maps, torch.stack(theirs(ids, output_attentions=True).attentions).detach())
    assert (maps.triu(1) == 0).all()
    assert not maps.requires_grad


@pytest.mark.parametrize("config", [SMALL, *(random_config(seed) for seed in range(3))], ids=str)
def test_counted_flops_are_the_measured_ones(config):
    model = GPT(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens(config, b=1, t=6))
    assert config.forward_flops(6) == counter.get_total_flops()


# Published files


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin"])
def test_published_files_load(kind, form, tmp_path, randomise):
    theirs = randomise(transformers_gpt(SMALL, kind))
    theirs.save_pretrained(tmp_path)
    if form != "safetensors":
        (tmp_path / "model.safetensors").unlink()
        tensors = dict(theirs.state_dict())
        if form == "old bin":
            prefix = "transformer." if kind == "GPT2LMHeadModel" else ""
            for i in range(2):
                tensors[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8).tril()
                tensors[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    ours, ids = GPT.from_pretrained(tmp_path), tokens()
    expected = theirs(ids).logits if kind == "GPT2LMHeadModel" else F.linear(theirs(ids)[0], theirs.wte.weight)
    assert ours.config == SMALL
    assert_close(ours(ids), expected)


def test_own_files_come_back(tmp_path, randomise):
    model, ids = randomise(GPT(small(dropout=0.1))).eval(), tokens()
    model.save_pretrained(tmp_path / "new")
    loaded = GPT.from_pretrained(tmp_path / "new").eval()
    assert loaded.config == model.config
    assert torch.equal(loaded(ids), model(ids))


def test_a_weights_file_needs_sizes(tmp_path, randomise):
    theirs = randomise(transformers_gpt(SMALL))
    torch.save(dict(theirs.state_dict()), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="states no sizes, expected a folder with "):
        GPT.from_pretrained(tmp_path / "pytorch_model.bin")
    ours, ids = GPT.from_pretrained(tmp_path / "pytorch_model.bin", config=SMALL), tokens()
    assert_close(ours(ids), theirs(ids).logits)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type='gpt_neo', expected 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function='relu', expected 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True, expected False"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False, expected True"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"n_head": None, "n_embd": None}, "config.json of a gpt2 lacks n_embd, n_head"),
        ({"n_layer": 3}, r"missing blocks\.2\.norm1\.weight"),
        ({"n_layer": 1}, r"left over blocks\.1\.norm1\.weight"),
        ({"n_positions": 9}, r"positions\.weight has shape \(8, 12\), expected \(9, 12\)"),
    ],
)
def test_other_configurations_are_refused(values, message, tmp_path):
    transformers_gpt(SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head.weight": torch.ones(17, 12)}, r"lm_head\.weight is not the token embedding, expected a tied head"),
        ({"h.0.attn.bias": torch.ones(1, 1, 8, 8)}, r"h\.0\.attn\.bias \(1, 1, 8, 8\) is not ones below the diagonal"),
        (
            {"h.0.attn.c_attn.weight": torch.ones(36, 12)},
            r"two tensors of the checkpoint are blocks\.0\.attention\.in_proj",
        ),
        ({"score.weight": torch.ones(2, 12)}, r"left over score\.weight \(2, 12\)"),
        (
            {"transformer.h.0.mlp.c_fc.weight": torch.ones(20, 12)},
            r"fc1\.weight has shape \(12, 20\), expected \(20, 12\)",
        ),
        ({"transformer.h.0.mlp.c_fc.bias": torch.ones(())}, r"fc1\.bias has shape \(\), expected \(20,\)"),
    ],
)
def test_other_tensors_are_named(change, message):
    from paperwalk.checkpoints import load_exactly

    tensors = dict(transformers_gpt(SMALL).state_dict()) | change
    with pytest.raises(ValueError, match=message):
        load_exactly(GPT(SMALL), our_names(tensors))


# The cache


def test_causal_mask_ends_in_the_lower_right_corner():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]
    assert torch.equal(causal_mask(5, 5), torch.ones(5, 5).tril().bool())
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    assert_close(attention(q, k, v, causal_mask(5, 5)), attention(q, k, v, causal=True))
    assert_close(attention(q[:, :, 3:], k, v, causal_mask(2, 5)), attention(q, k, v, causal=True)[:, :, 3:])
    assert_close(attention_weights(q, k, causal_mask(5, 5)) @ v, attention(q, k, v, causal=True))
    none = torch.zeros(5, 5, dtype=torch.bool)
    assert (attention_weights(q, k, none) == 0).all()


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("steps", [[1] * 6, [3, 1, 2], [6], [2, 4]])
def test_cached_steps_equal_the_whole(norm, steps, randomise):
    block, x = randomise(TransformerBlock(12, 3, 20, norm=norm)), torch.randn(2, 6, 12)
    cache = KeyValueCache(6)
    with torch.no_grad():
        parts = [block(part, causal=True, cache=cache) for part in x.split(steps, dim=1)]
        assert_close(torch.cat(parts, dim=1), block(x, causal=True))
    assert cache.length == 6


@pytest.mark.parametrize("steps", [[1] * 8, [3, 1, 4], [8]])
@pytest.mark.parametrize("padded", [False, True])
def test_cached_logits_equal_the_whole(steps, padded, randomise):
    model, ids = randomise(GPT(SMALL)), tokens(t=8)
    real = torch.arange(8) >= torch.tensor([[0], [2], [5]]) if padded else None
    cache, parts, seen = model.new_cache(), [], 0
    with torch.no_grad():
        for part in ids.split(steps, dim=1):
            seen += part.shape[1]
            parts.append(model(part, None if real is None else real[:, :seen], cache))
        whole = model(ids, real)
    keep = torch.ones(3, 8, dtype=torch.bool) if real is None else real
    assert_close(torch.cat(parts, dim=1)[keep], whole[keep])


def test_a_cache_takes_no_gradient_silently():
    module, cache = MultiHeadAttention(4, 2), KeyValueCache(3)
    out = [module(torch.randn(1, 1, 4), causal=True, cache=cache) for _ in range(3)]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.stack(out).sum().backward()


# Writing


def greedy(model: GPT, prompt: list[int], n: int) -> list[int]:
    row = list(prompt)
    for _ in range(n):
        row.append(model(torch.tensor([row[-model.config.block_size :]]))[0, -1].argmax().item())
    return row


PROMPTS = ([3, 1, 4], [1, 5, 9, 2, 6], [8], [2, 7, 1, 8, 2, 8, 1, 8])


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("n", [0, 1, 3, 7, 30])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[:3], PROMPTS, PROMPTS[3:]])
def test_greedy_writing_is_the_uncached_loop(use_cache, n, prompts, randomise):
    model = randomise(GPT(SMALL))
    written = generate(model, prompts, n, top_k=1, use_cache=use_cache)
    assert written == [greedy(model, prompt, n) for prompt in prompts]
    if n == 30:
        assert all(len(set(row)) > 3 for row in written)


@pytest.mark.parametrize("n", [5, 30])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}])
def test_drawn_tokens_do_not_depend_on_the_cache(n, options, randomise):
    model = randomise(GPT(SMALL))
    cached, uncached = (
        generate(model, PROMPTS, n, generator=torch.Generator().manual_seed(1), use_cache=use_cache, **options)
        for use_cache in (True, False)
    )
    assert cached == uncached
    assert cached != generate(model, PROMPTS, n, generator=torch.Generator().manual_seed(2), **options)


@pytest.mark.parametrize("use_cache", [False, True])
def test_greedy_writing_equals_transformers(use_cache, randomise):
    config = small(block_size=40, vocab_size=60)
    theirs = randomise(transformers_gpt(config))
    ours = GPT(config)
    ours.load_state_dict(our_names(dict(theirs.state_dict())))
    ids, real = pad_left(PROMPTS)
    rows = theirs.generate(
        ids, attention_mask=real.long(), max_new_tokens=30, do_sample=False, pad_token_id=0, use_cache=use_cache
    )
    expected = [row[8 - len(prompt) :].tolist() for row, prompt in zip(rows, PROMPTS, strict=True)]
    assert generate(ours, PROMPTS, 30, top_k=1, use_cache=use_cache) == expected
    assert len({token for row in expected for token in row}) > 10


def test_greedy_writing_equals_transformers_at_the_published_size(published):
    folder, theirs = published
    ours, prompts = GPT.from_pretrained(folder), [[464, 9813], [7454, 2402, 257, 640]]
    ids, real = pad_left(prompts)
    rows = theirs.generate(ids, attention_mask=real.long(), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert generate(ours, prompts, 6, top_k=1) == [rows[0, 2:].tolist(), rows[1].tolist()]


def test_a_stop_token_ends_its_row_only(randomise):
    model = randomise(GPT(SMALL))
    free = generate(model, PROMPTS, 20, top_k=1)
    stop = free[0][len(PROMPTS[0]) + 4]
    expected = []
    for prompt, row in zip(PROMPTS, free, strict=True):
        new = row[len(prompt) :]
        expected.append(prompt + (new[: new.index(stop)] if stop in new else new))
    assert generate(model, PROMPTS, 20, top_k=1, stop=stop) == expected
    assert len(expected[0]) <= len(PROMPTS[0]) + 4
    assert generate(model, [[stop, 3]], 0, stop=stop) == [[stop, 3]]


def test_writing_leaves_the_model_as_it_was(randomise):
    model = randomise(GPT(small(dropout=0.5)))
    assert generate(model, PROMPTS, 9, top_k=1) == generate(model, PROMPTS, 9, top_k=1)
    assert model.training
    model.eval()
    generate(model, PROMPTS, 1)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def naive_probabilities(row: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    p = [math.exp(x / temperature) for x in row]
    order = sorted(range(len(p)), key=lambda i: -p[i])[:top_k]
    total, kept, mass = sum(p[i] for i in order), [], 0.0
    for i in order:
        kept.append(i)
        mass += p[i] / total
        if mass >= top_p:
            break
    return [p[i] / sum(p[j] for j in kept) if i in kept else 0.0 for i in range(len(p))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [1, 3, 9, 50])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1.0])
def test_next_token_probabilities_equal_their_definition(temperature, top_k, top_p):
    logits = 2 * torch.randn(4, 9)
    ours = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    naive = [naive_probabilities(row, temperature, top_k, top_p) for row in logits.tolist()]
    assert_close(ours, torch.tensor(naive))


@pytest.mark.parametrize("options", [{"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 20, "top_p": 0.5}])
def test_next_token_probabilities_equal_transformers(options):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 2 * torch.randn(5, 40)
    scores = logits
    for name, warper in {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
    }.items():
        if name in options:
            scores = warper(options[name])(None, scores)
    assert_close(next_token_probabilities(logits, **options), scores.softmax(-1))


def test_extreme_temperatures():
    logits = torch.tensor([[0.0, 90.0, 100.0]])
    assert torch.equal(next_token_probabilities(logits, temperature=1e-30), torch.tensor([[0.0, 0.0, 1.0]]))
    assert_close(next_token_probabilities(logits, temperature=1e30), torch.full((1, 3), 1 / 3))


def test_draws_follow_the_probabilities(randomise):
    model = randomise(GPT(SMALL))
    options = {"temperature": 1.5, "top_k": 6}
    first = [
        row[-1] for row in generate(model, [[3, 1]] * 4000, 1, generator=torch.Generator().manual_seed(0), **options)
    ]
    expected = next_token_probabilities(model(torch.tensor([[3, 1]]))[:, -1], **options)[0]
    counted = torch.tensor(first).bincount(minlength=17) / 4000
    assert_close(counted, expected.detach(), atol=0.03, rtol=0)
    assert (counted[expected == 0] == 0).all()


# Windows


def test_random_windows_are_stretches_of_the_text():
    text = torch.arange(20)
    windows = random_windows(text, 5, 1000, torch.Generator().manual_seed(0))
    assert windows.shape == (1000, 5)
    assert (windows.diff() == 1).all()
    assert windows[:, 0].unique().tolist() == list(range(16))
    assert torch.equal(windows, random_windows(text, 5, 1000, torch.Generator().manual_seed(0)))
    assert random_windows(text[:5], 5, 2, torch.Generator()).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_consecutive_windows_predict_every_token_once():
    batches = list(consecutive_windows(torch.arange(22), 5, batch=3))
    assert [len(batch) for batch in batches] == [3, 2]
    assert torch.cat(batches)[:, 1:].flatten().tolist() == list(range(1, 21))
    assert torch.cat(batches)[:, 0].tolist() == [0, 4, 8, 12, 16]


# The experiment and the recipe


def test_learning_rate_rises_and_falls():
    rates = [experiment.lr_at(step, 2.0, 100) for step in range(100)]
    assert rates[9] == max(rates) == 2.0
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.2, rel=0.01)


def test_batches_depend_on_seed_and_step_alone():
    text = torch.arange(1000)
    torch.manual_seed(3)
    first = experiment.batch(text, 7, 1)
    assert first.shape == (experiment.BATCH, experiment.BLOCK + 1)
    assert torch.equal(first, experiment.batch(text, 7, 1))
    assert not torch.equal(first, experiment.batch(text, 8, 1))
    assert not torch.equal(first, experiment.batch(text, 7, 2))


def test_mean_loss_counts_every_prediction_once(randomise):
    model, text = randomise(GPT(SMALL)), torch.randint(17, (30,))
    each = [model.loss(window[None]) for window in text[:29].unfold(0, 8, 7)]
    assert experiment.mean_loss(model, text, 8) == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_stored_runs_are_complete():
    stored = json.loads(experiment.RESULTS.read_text())
    assert set(stored) == {f"{size} {seed}" for size in experiment.SIZES for seed in experiment.SEEDS}
    for key, run in stored.items():
        config = experiment.config(key.split()[0], 83)
        assert run["parameters"] == sum(p.numel() for p in GPT(config).parameters())


TINY = {"block_size": 12, "d_model": 12, "n_layers": 2, "n_heads": 2, "d_mlp": 48, "dropout": 0.1}


@pytest.mark.parametrize("unit", ["characters", "byte-pairs"])
def test_recipe_trains_any_text(unit, tmp_path):
    (tmp_path / "text.txt").write_text("the white whale and the old captain, " * 20)
    sizes = replace(SMALL, **TINY)
    recipe = GPTRecipe(data=str(tmp_path / "text.txt"), unit=unit, vocab_size=270, steps=30, model=sizes)
    folder = runs.train(recipe, Options(output=tmp_path / "run"), "paperwalk train gpt")
    card = json.loads((folder / "card.json").read_text())
    assert card["metrics"]["loss"]["value"] < math.log(20 if unit == "characters" else 270)
    model = recipe.load(folder)
    tokenizer = recipe.load_tokenizer(folder)
    assert model.config == replace(sizes, vocab_size=tokenizer.vocab_size)
    how = Sampling(prompt="the ", tokens=9, file=tmp_path / "written.txt")
    text = recipe.sample(model, folder, how)
    assert text.startswith("the ")
    assert (tmp_path / "written.txt").read_text() == text


def test_recipe_names_a_text_that_is_not_there():
    with pytest.raises(ValueError, match=r"unknown data 'no\.txt', expected moby-dick, or a text file"):
        GPTRecipe(data="no.txt").tokens()


def test_stand_in_is_nanogpt():
    from paperwalk.experiments import nanogpt

    model = nanogpt.NanoGPT(replace(GPTRecipe.PRESETS["nano"], vocab_size=65, dropout=0.0))
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # nanoGPT without biases: embeddings, 12 d² a block, gains of the norms.
    assert learned == 65 * 384 + 256 * 384 + 6 * (12 * 384**2 + 2 * 384) + 384
    assert model.loss(torch.randint(65, (4, 33))).item() == pytest.approx(math.log(65), abs=0.15)
    groups = GPTRecipe().adamw(model).param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == learned
    assert model.model.config.activation_function == "gelu"


def test_losses_are_compared_window_by_window():
    from paperwalk.experiments import nanogpt

    class Certain(nn.Module):
        """The same probability for each character, but for one."""

        def __init__(self, bias):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(bias))

        def forward(self, tokens):
            return F.one_hot(torch.ones_like(tokens), 83) * self.bias

    found = nanogpt.above(Certain(0.0), Certain(1.0))
    _, _, held_out = nanogpt.recipe(False).tokens()
    windows = torch.cat(list(consecutive_windows(held_out, 257)))
    # ln(82 + e) − ln 83, less 1 where it is the likelier character.
    expected = math.log(82 + math.e) - math.log(83) - (windows[:, 1:] == 1).double().mean().item()
    low, high = found["interval"]
    assert found["n"] == len(windows)
    assert found["value"] == pytest.approx(expected, abs=1e-5)
    assert low <= found["value"] <= high


def test_nanogpt_sees_as_many_tokens():
    from paperwalk.experiments import nanogpt

    recipes = [GPTRecipe.named()["moby-dick-cpu"], nanogpt.recipe(False), nanogpt.recipe(True)]
    assert len({recipe.steps * recipe.batch_size for recipe in recipes}) == 1


# Bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda name=name: small(**{name: 0}), f"{name}=0, expected an int of at least 1")
     for name in ("vocab_size", "block_size", "d_model", "n_layers", "n_heads", "d_mlp")]
    + [
        (lambda: small(d_model="12"), "d_model='12', expected an int"),
        (lambda: small(d_model=13), "d_model=13 is not a multiple of n_heads=3"),
        (lambda: small(dropout=-0.1), "dropout=-0.1, expected a number in 0..1"),
        (lambda: small(dropout=1.5), "dropout=1.5, expected"),
        (lambda: small(norm_eps=None), "norm_eps=None, expected"),
        (lambda: GPT(SMALL)(torch.zeros(1, 9, dtype=torch.long)), "tokens has 9 positions, expected at most 8"),
        (lambda: GPT(SMALL)(torch.full((1, 2), 17)), "tokens has token ids 17 to 17, expected 0 to 16"),
        (lambda: GPT(SMALL)(torch.full((1, 2), -1)), "tokens has token ids -1 to -1, expected 0 to 16"),
        (lambda: GPT(SMALL)(torch.zeros(1, 2)), r"tokens is torch\.float32 of shape \(1, 2\), expected token ids"),
        (lambda: GPT(SMALL)(torch.zeros(2, dtype=torch.long)), r"\(2,\), expected token ids \(b, t\)"),
        (lambda: GPT(SMALL)(torch.zeros(2, 0, dtype=torch.long)), r"\(2, 0\), expected token ids \(b, t\) with b"),
        (lambda: GPT(SMALL)(tokens(), torch.ones(3, 6) > 0), r"real has shape \(3, 6\), expected \(3, 7\)"),
        (lambda: GPT(SMALL).loss(tokens(t=10)), "9 positions, expected at most"),
        (lambda: GPT(SMALL).loss(tokens(t=1)), r"\(3, 0\), expected token ids \(b, t\) with b, t >= 1"),
        (lambda: GPT(SMALL).attention_maps(tokens(t=9)), "9 positions"),
        (lambda: generate(GPT(SMALL), [], 1), "no prompt, expected at least one"),
        (lambda: generate(GPT(SMALL), [[1], []], 1), "prompt 1 has 0 tokens, expected 1 to block_size=8"),
        (lambda: generate(GPT(SMALL), [[1] * 9], 1), "prompt 0 has 9 tokens, expected 1 to block_size=8"),
        (lambda: generate(GPT(SMALL), [[1, 17]], 1), "prompt 0 has token 17, expected 0 to 16"),
        (lambda: generate(GPT(SMALL), [[-1]], 1), "prompt 0 has token -1, expected 0"),
        (lambda: generate(GPT(SMALL), [[1]], -1), "n_tokens=-1, expected at least 0"),
        (lambda: generate(GPT(SMALL), [[1]], 1, stop=17), "stop=17, expected None or a token 0 to 16"),
        (lambda: generate(GPT(SMALL), [[1]], 1, temperature=0.0), "temperature=0.0, expected a number above 0"),
        (lambda: generate(GPT(SMALL), [[1]], 1, temperature=-1.0), "temperature=-1.0"),
        (lambda: generate(GPT(SMALL), [[1]], 1, temperature=math.nan), "temperature=nan"),
        (lambda: generate(GPT(SMALL), [[1]], 1, temperature=math.inf), "temperature=inf"),
        (lambda: generate(GPT(SMALL), [[1]], 1, top_k=0), "top_k=0, expected at least 1"),
        (lambda: generate(GPT(SMALL), [[1]], 1, top_p=0.0), r"top_p=0.0, expected a number in \(0, 1\]"),
        (lambda: generate(GPT(SMALL), [[1]], 1, top_p=1.1), "top_p=1.1"),
        (lambda: generate(GPT(SMALL), [[1]], 1, top_p=math.nan), "top_p=nan"),
        (lambda: random_windows(torch.arange(4), 5, 1, torch.Generator()), "text of 4 tokens, expected at least one"),
        (lambda: random_windows(torch.arange(4), 0, 1, torch.Generator()), "windows of 0 tokens, expected at least 1"),
        (lambda: consecutive_windows(torch.arange(4), 5), "text of 4 tokens, expected at least one window of 5"),
        (lambda: consecutive_windows(torch.arange(4), 1), "windows of 1 tokens, expected at least 2"),
        (lambda: KeyValueCache(2).extend(*torch.zeros(2, 1, 1, 3, 1)), "3 positions, expected at most 2"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_cache_serves_one_batch():
    cache = KeyValueCache(4)
    cache.extend(*torch.zeros(2, 3, 1, 2, 1))
    with pytest.raises(ValueError, match="a batch of 2, expected 3: a cache serves one batch"):
        cache.extend(*torch.zeros(2, 2, 1, 1, 1))


def test_nothing_there():
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        GPT.from_pretrained("nowhere/at/all")


# What the mutants of `make mutants` showed to be without a judge here.


class Devices(TorchFunctionMode):
    """Notes where the tensors lie that are made within it."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.seen |= {out.device.type} if isinstance(out, Tensor) else set()
        return out


def test_positions_and_masks_are_made_where_the_tokens_are(monkeypatch):
    model, ids = GPT(SMALL).to("meta"), torch.zeros(2, 4, dtype=torch.long, device="meta")
    for real in (None, torch.ones(2, 4, dtype=torch.bool, device="meta")):
        with Devices() as devices:
            model.encode(ids, real)
        assert devices.seen == {"meta"}
    made = []
    spy = lambda t, s, device="elsewhere": made.append(device) or causal_mask(t, s)  # noqa: E731
    monkeypatch.setattr("paperwalk.gpt.causal_mask", spy)
    GPT(SMALL).attention_maps(found := tokens(t=SMALL.block_size))
    assert made == [found.device]


def test_one_block_has_one_cache(randomise):
    model, ids = randomise(GPT(small(n_layers=1))).eval(), tokens()
    cache = model.new_cache()
    model(ids[:, :5], cache=cache)
    assert_close(model(ids[:, 5:], cache=cache), model(ids)[:, 5:])
    with pytest.raises(ValueError, match=r"^tokens.* 2 positions, expected at most 1"):
        model(ids[:, :2], cache=cache)


def test_dropout_may_take_everything():
    assert small(dropout=1.0).dropout == 1


def test_half_precision_weights_come_back(comes_back_in_half):
    comes_back_in_half(GPT(SMALL))


def test_what_goes_through_the_model(monkeypatch):
    """How many tokens each step encodes, whether some are padding, and whether a cache holds the others."""
    model, steps = GPT(SMALL), []
    encode = model.encode

    def spy(new, real, cache=None):
        steps.append((new.shape[1], real is not None, cache is not None))
        return encode(new, real, cache)

    monkeypatch.setattr(model, "encode", spy)
    generate(model, [[1] * 6], 4)
    assert steps == [(6, False, True), (1, False, True), (1, False, True), (8, False, False)]
    steps.clear()
    generate(model, [[1, 2], [3]], 2, use_cache=False)
    assert steps == [(2, True, False), (3, True, False)]
    steps.clear()
    # Both rows write token 0 first, and end.
    monkeypatch.setattr(model, "logits", lambda h: torch.eye(17)[:1].expand(len(h), -1) * 100)
    assert generate(model, [[1, 2], [3]], 5, stop=0) == [[1, 2], [3]]
    assert len(steps) == 1


def test_one_block_writes_with_a_cache(randomise):
    model = randomise(GPT(small(n_layers=1)))
    assert generate(model, [[1, 2]], 3, top_k=1) == generate(model, [[1, 2]], 3, top_k=1, use_cache=False)


def test_writing_is_at_temperature_1_unless_asked(randomise):
    model = randomise(GPT(SMALL))
    written = [
        generate(model, [[1, 2]] * 20, 6, generator=torch.Generator().manual_seed(0), **options)
        for options in ({}, {"temperature": 1.0}, {"temperature": 2.0})
    ]
    assert written[0] == written[1] != written[2]


def test_probabilities_at_the_edges():
    far = torch.tensor([[1e30, 0.0], [0.0, 1.0]])
    assert_close(next_token_probabilities(far, temperature=1e-20), torch.eye(2))
    assert next_token_probabilities(torch.tensor([[0.0, -25.0]]), top_p=1.0)[0, 1] > 0
    assert_close(next_token_probabilities(torch.zeros(1, 2), top_p=0.5).max(), torch.tensor(1.0))


def test_padding_stands_in_front_and_is_zero():
    ids, real = pad_left([[5], [7, 8]])
    assert ids.tolist() == [[0, 5], [7, 8]]
    assert real.tolist() == [[False, True], [True, True]]


# The least that a published configuration says.
PUBLISHED = {
    **{"vocab_size": 17, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3, "layer_norm_epsilon": 1e-5},
}


def test_sizes_left_out_are_transformers_defaults():
    assert from_transformers(PUBLISHED, {})[0]["d_mlp"] == 48
    assert from_transformers(PUBLISHED | {"n_inner": 20}, {})[0]["d_mlp"] == 20
    assert from_transformers(PUBLISHED | {"activation_function": "gelu_pytorch_tanh"}, {})


def test_only_ones_below_the_diagonal_are_a_causal_mask():
    name = "h.0.attn.bias"
    assert our_names({name: torch.ones(1, 1, 4, 4).tril()}) == our_names({name: torch.ones(1, 1, 1, 1)}) == {}
    for mask in (torch.zeros(1, 1, 1, 1), torch.ones(2, 2, 4, 4).tril(), torch.ones(2, 4, 4)):
        with pytest.raises(ValueError, match="is not ones below the diagonal, expected a causal mask"):
            our_names({name: mask})
