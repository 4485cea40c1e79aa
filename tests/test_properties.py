"""What each paper implies for any input: hypothesis chooses sizes, orders, places and values."""

import copy
import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from paperwalk.clip import CLIP, CLIPConfig, contrastive_loss
from paperwalk.ddpm import GaussianDiffusion, linear_schedule, to_pixels, to_signed
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.mae import MAE, MAEConfig, random_masking, take
from paperwalk.metrics import edit_distance
from paperwalk.nn import (
    DecoderBlock,
    MultiHeadAttention,
    PatchEmbedding,
    TransformerBlock,
    attention,
    attention_weights,
    causal_mask,
    patchify,
    unpatchify,
)
from paperwalk.nn.average import follow
from paperwalk.samplers import ancestral, ddim
from paperwalk.testing import relative_error
from paperwalk.tokenizers import BytePairTokenizer, CharTokenizer, ClipTokenizer
from paperwalk.tokenizers.clip import clean
from paperwalk.transformer import Transformer, TransformerConfig
from paperwalk.unet import UNet, UNetConfig
from paperwalk.vit import ViT, ViTConfig

# The same examples in each run, and quick.
examples = settings(max_examples=12, derandomize=True, deadline=None, database=None)
seeds = st.integers(0, 2**16)
sizes = st.integers(1, 6)

VOCABULARY, LENGTH, SIDE = 13, 7, 8


def draw(seed: int, *shape: int, **options) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def draw_tokens(seed: int, b: int, t: int, low: int = 3) -> Tensor:
    return torch.randint(low, VOCABULARY, (b, t), generator=torch.Generator().manual_seed(seed))


def ready(module: nn.Module) -> nn.Module:
    """In eval mode, the same parameters in each run, none zero: zero heads and biases would hide what they multiply."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            centre = 1.0 if (parameter == 1).all() else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


def vit(**changes) -> ViT:
    sizes = {"image_size": SIDE, "patch_size": 2, "in_channels": 1, "n_classes": 5}
    blocks = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_mlp": 16}
    return ready(ViT(ViTConfig(**sizes | blocks | changes)))


TEXT = {"vocab_size": VOCABULARY, "block_size": LENGTH}
GPT_ = ready(GPT(GPTConfig(**TEXT, d_model=8, n_layers=2, n_heads=2, d_mlp=16)))
TRANSFORMERS = {
    norm: ready(Transformer(TransformerConfig(**TEXT, d_model=8, n_layers=2, n_heads=2, d_mlp=16, norm=norm)))
    for norm in ("pre", "post")
}
CLIP_ = ready(
    CLIP(
        CLIPConfig(
            **TEXT,
            image_size=SIDE,
            patch_size=4,
            d_image=8,
            n_image_layers=2,
            n_image_heads=2,
            d_image_mlp=16,
            d_text=8,
            n_text_layers=2,
            n_text_heads=2,
            d_text_mlp=16,
            d_embed=4,
        )
    )
)
MAE_ = ready(
    MAE(
        MAEConfig(
            image_size=SIDE,
            patch_size=2,
            in_channels=1,
            d_model=8,
            n_layers=2,
            n_heads=2,
            d_mlp=16,
            decoder_d_model=8,
            decoder_n_layers=1,
            decoder_n_heads=2,
            decoder_d_mlp=16,
        )
    )
)
UNET = ready(
    UNet(
        UNetConfig(
            image_size=SIDE,
            in_channels=1,
            d_model=4,
            multipliers=(1, 2),
            n_blocks=1,
            attention_sizes=(4,),
            d_head=4,
            n_groups=2,
        )
    )
)
VITS = {positions: vit(positions=positions) for positions in ("learned", "learned_2d", "sincos_2d", "none")}


class Case(NamedTuple):
    """A model, the inputs for a batch of b, and what it makes of them: a tensor with a row for each of the batch."""

    model: nn.Module
    inputs: Callable[[int, int], tuple[Tensor, ...]]
    call: Callable[..., Tensor]


def texts_with_end(seed: int, b: int) -> Tensor:
    texts = draw_tokens(seed, b, LENGTH)
    ends = torch.randint(1, LENGTH, (b,), generator=torch.Generator().manual_seed(seed + 1))
    texts[torch.arange(b), ends] = VOCABULARY - 1
    return texts


def padded(seed: int, b: int) -> Tensor:
    """Token ids of different lengths, filled up with 0."""
    texts = draw_tokens(seed, b, LENGTH)
    lengths = torch.randint(1, LENGTH + 1, (b,), generator=torch.Generator().manual_seed(seed + 1))
    lengths[0] = LENGTH
    return texts.masked_fill(torch.arange(LENGTH) >= lengths[:, None], 0)


def call_mae(model: MAE, images: Tensor, noise: Tensor) -> Tensor:
    z, masking = model.encode(images, noise=noise)
    return model.decode(z, masking.ids_restore)


def pictures(channels: int) -> Callable[[int, int], tuple[Tensor, ...]]:
    return lambda seed, b: (draw(seed, b, channels, SIDE, SIDE),)


CASES = {
    **{f"ViT, positions {name}": Case(model, pictures(1), ViT.forward) for name, model in VITS.items()},
    "GPT": Case(GPT_, lambda seed, b: (draw_tokens(seed, b, LENGTH),), GPT.forward),
    **{
        f"Transformer, {norm}-norm": Case(
            model, lambda seed, b: (padded(seed, b), draw_tokens(seed + 2, b, LENGTH)), Transformer.forward
        )
        for norm, model in TRANSFORMERS.items()
    },
    "CLIP, images": Case(CLIP_, pictures(3), CLIP.encode_image),
    "CLIP, texts": Case(CLIP_, lambda seed, b: (texts_with_end(seed, b),), CLIP.encode_text),
    "MAE": Case(MAE_, lambda seed, b: (draw(seed, b, 1, SIDE, SIDE), draw(seed + 1, b, 16)), call_mae),
    "U-Net": Case(
        UNET,
        lambda seed, b: (
            draw(seed, b, 1, SIDE, SIDE),
            torch.randint(0, 1000, (b,), generator=torch.Generator().manual_seed(seed)),
        ),
        UNet.forward,
    ),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


# Without positions, order means nothing


@st.composite
def orders(draw_: Callable, longest: int = 9) -> Tensor:
    return torch.tensor(draw_(st.permutations(range(draw_(st.integers(1, longest))))))


@examples
@given(orders(), orders(), st.sampled_from(["pre", "post"]), seeds)
def test_blocks_commute_with_permutations(order, of_context, norm, seed):
    x, context = draw(seed, 2, len(order), 8), draw(seed + 1, 2, len(of_context), 8)
    block = ready(TransformerBlock(8, 2, 16, norm=norm))
    assert_close(block(x[:, order]), block(x)[:, order])
    mha = block.attention
    assert_close(mha(x[:, order]), mha(x)[:, order])
    # Keys and values are a set, queries a list.
    assert_close(mha(x[:, order], context[:, of_context]), mha(x, context)[:, order])
    decoder = ready(DecoderBlock(8, 2, 16, norm=norm))
    assert_close(decoder(x[:, order], context[:, of_context]), decoder(x, context)[:, order])
    attend = torch.rand(len(order), len(of_context), generator=torch.Generator().manual_seed(seed)) < 0.7
    attend[:, 0] = True
    assert_close(
        mha(x[:, order], context[:, of_context], attend[order][:, of_context]), mha(x, context, attend)[:, order]
    )


def shuffled_patches(images: Tensor, order: Tensor, p: int) -> Tensor:
    return unpatchify(patchify(images, p)[:, order], p, *images.shape[-2:])


@examples
@given(st.permutations(range(16)), st.sampled_from(["cls", "mean"]), seeds)
def test_a_vit_without_positions_sees_a_bag_of_patches(order, pool, seed):
    model, images, order = vit(positions="none", pool=pool), draw(seed, 2, 1, SIDE, SIDE), torch.tensor(order)
    assert_close(model(shuffled_patches(images, order, 2)), model(images))
    tokens, first = model.encode(images), int(pool == "cls")
    moved = torch.cat([torch.arange(first), order + first])
    assert_close(model.encode(shuffled_patches(images, order, 2)), tokens[:, moved])


@pytest.mark.parametrize("positions", ["learned", "learned_2d", "sincos_2d"])
def test_a_vit_with_positions_does_not(positions):
    model, images = VITS[positions], draw(0, 2, 1, SIDE, SIDE)
    assert not torch.allclose(model(shuffled_patches(images, torch.arange(16).flip(0), 2)), model(images), atol=1e-2)


@examples
@given(st.permutations(range(16)), seeds)
def test_an_mae_sees_its_visible_patches_in_any_order(order, seed):
    # The order in which patches are kept is the order of their noise: the class token must not depend on it.
    images, noise = draw(seed, 1, 1, SIDE, SIDE), torch.tensor(order, dtype=torch.float32)[None]
    again = noise.clone()
    kept = noise.argsort(dim=1)[0, :4]
    again[0, kept] = noise[0, kept].flip(0)
    z, masking = MAE_.encode(images, noise=noise)
    other, swapped = MAE_.encode(images, noise=again)
    assert torch.equal(masking.mask, swapped.mask)
    assert_close(z[:, 0], other[:, 0])
    assert_close(MAE_.decode(z, masking.ids_restore), MAE_.decode(other, swapped.ids_restore))


@examples
@given(st.permutations(range(4)), seeds)
def test_the_contrastive_loss_is_of_pairs_in_any_order(order, seed):
    logits = draw(seed, 4, 4)
    assert_close(contrastive_loss(logits[order][:, order]), contrastive_loss(logits))
    assert_close(contrastive_loss(logits.T), contrastive_loss(logits))


# A later token never changes an earlier output


@examples
@given(st.integers(1, LENGTH - 1), seeds)
def test_no_text_model_looks_ahead(place, seed):
    tokens = draw_tokens(seed, 2, LENGTH, low=0)
    changed = tokens.clone()
    changed[:, place:] = (changed[:, place:] + 1 + seed % (VOCABULARY - 1)) % VOCABULARY
    source = padded(seed, 2)
    for model in (
        GPT_,
        CLIP_.text.encode,
        *(lambda target, model=model: model(source, target) for model in TRANSFORMERS.values()),
    ):
        before, after = model(tokens), model(changed)
        assert_close(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place:], before[:, place:], atol=1e-3)
        # What comes is not needed either.
        assert_close(model(tokens[:, :place]), before[:, :place])


@examples
@given(st.integers(1, LENGTH - 1), seeds)
def test_what_follows_the_end_of_a_text_changes_nothing(end, seed):
    texts = draw_tokens(seed, 2, LENGTH) % (VOCABULARY - 1)
    texts[:, end] = VOCABULARY - 1
    assert_close(CLIP_.encode_text(texts), CLIP_.encode_text(texts[:, : end + 1]))


@examples
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), seeds)
def test_a_cache_changes_nothing_however_a_text_is_cut(parts, seed):
    tokens, cache = draw_tokens(seed, 2, min(sum(parts), LENGTH)), GPT_.new_cache()
    found = [GPT_(part, cache=cache) for part in tokens.split(2, dim=1)]
    assert_close(torch.cat(found, dim=1), GPT_(tokens))


# Attention


@examples
@given(sizes, sizes, st.floats(-30, 30), seeds)
def test_the_same_added_to_all_scores_of_a_query_changes_nothing(t, s, by, seed):
    q, k, v = draw(seed, 2, 2, t, 3), draw(seed + 1, 2, 2, s, 3), draw(seed + 2, 2, 2, s, 3)
    # One vector added to each key adds to the scores of a query a number that is the same for every key.
    moved = k + by * draw(seed + 3, 1, 2, 1, 3)
    assert_close(attention(q, moved, v), attention(q, k, v), atol=1e-4, rtol=1e-4)
    assert_close(attention_weights(q, moved), attention_weights(q, k), atol=1e-4, rtol=1e-4)


@examples
@given(sizes, sizes, st.floats(0.01, 100), seeds)
def test_queries_times_a_and_keys_over_a_change_nothing(t, s, a, seed):
    q, k, v = draw(seed, 2, 2, t, 3), draw(seed + 1, 2, 2, s, 3), draw(seed + 2, 2, 2, s, 3)
    assert_close(attention(q * a, k / a, v), attention(q, k, v), atol=1e-5, rtol=1e-4)
    # And it is linear in the values.
    assert_close(attention(q, k, a * v), a * attention(q, k, v), atol=1e-5 * max(1, a), rtol=1e-4)


@examples
@given(sizes, sizes, seeds)
def test_weights_are_shares(t, s, seed):
    q, k = draw(seed, 2, 2, t, 3), draw(seed + 1, 2, 2, s, 3)
    mask = torch.rand(2, 1, t, s, generator=torch.Generator().manual_seed(seed)) < 0.6
    weights = attention_weights(q, k, mask)
    assert (weights >= 0).all()
    assert_close(weights.sum(dim=-1), mask.any(dim=-1).float().expand(2, 2, t))
    v = draw(seed + 2, 2, 2, s, 3)
    out = attention(q, k, v, mask)
    # A mean of the values lies between them, and what is masked may be anything.
    assert (out <= v.amax(dim=2, keepdim=True).clamp(min=0) + 1e-5).all()
    changed = torch.where(mask.any(dim=2)[:, :, :, None], v, 1e3)
    assert_close(attention(q, k, changed, mask), out)


@examples
@given(sizes, seeds)
def test_a_causal_mask_is_the_flag(t, seed):
    q, k, v = (draw(seed + i, 2, 2, t, 3) for i in range(3))
    assert_close(attention(q, k, v, causal_mask(t, t)), attention(q, k, v, causal=True))


# Each row of a batch gives what it gives alone


@cases
@examples
@given(st.integers(2, 4), seeds)
def test_rows_of_a_batch_do_not_meet(case, b, seed):
    inputs = case.inputs(seed, b)
    whole = case.call(case.model, *inputs)
    for i in range(b):
        assert_close(case.call(case.model, *(x[i : i + 1] for x in inputs)), whole[i : i + 1], atol=1e-4, rtol=1e-4)


@examples
@given(st.integers(1, LENGTH - 1), st.booleans(), seeds)
def test_padding_changes_nothing(length, left, seed):
    tokens, filling = draw_tokens(seed, 2, length), draw_tokens(seed + 1, 2, LENGTH - length)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    if left:
        rows, kept = torch.cat([filling, tokens], dim=1), slice(LENGTH - length, None)
        real[:, : LENGTH - length] = False
    else:
        rows, kept = torch.cat([tokens, filling], dim=1), slice(length)
        real[:, length:] = False
    assert_close(GPT_(rows, real)[:, kept], GPT_(tokens))
    for model in TRANSFORMERS.values():
        filled = torch.cat([tokens, torch.zeros_like(filling)], dim=1)
        target = draw_tokens(seed + 2, 2, 3)
        assert_close(model(filled, target), model(tokens, target))
        assert_close(model(target, filled)[:, :length], model(target, tokens))


@examples
@given(st.integers(1, 4), seeds)
def test_a_search_gives_each_row_what_it_gets_alone(b, seed):
    model, source = TRANSFORMERS["post"], padded(seed, b)
    for search in (model.greedy, lambda rows, **options: model.beam_search(rows, beam=2, **options)):
        whole = search(source, max_length=4)
        assert whole == [search(source[i : i + 1], max_length=4)[0] for i in range(b)]


# Precision, memory layout, device


@cases
@examples
@given(seeds)
def test_every_precision_gives_the_same_to_its_own(case, seed):
    inputs = case.inputs(seed, 2)
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = copy.deepcopy(case.model).to(dtype)
        out = case.call(model, *(x.to(dtype) if x.is_floating_point() and i == 0 else x for i, x in enumerate(inputs)))
        assert out.dtype == dtype
        found[dtype] = out
    assert relative_error(found[torch.float32], found[torch.float64]) < 1e-4
    # Eight bits, and a few roundings one after the other.
    assert relative_error(found[torch.bfloat16], found[torch.float64]) < 0.1


def strided(x: Tensor, how: str) -> Tensor:
    """The same numbers, laid out otherwise."""
    if how == "transposed":
        return x.mT.contiguous().mT if x.ndim > 1 else x
    if how == "every other":
        return torch.stack([x, x], dim=-1).flatten(-2)[..., ::2]
    if how == "backwards":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    return torch.cat([x, x])[len(x) :]


@cases
@examples
@given(st.sampled_from(["transposed", "every other", "backwards", "a part"]), st.integers(2, 3), seeds)
def test_memory_layout_means_nothing(case, how, b, seed):
    inputs = case.inputs(seed, b)
    others = tuple(strided(x, how) for x in inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, others, strict=True))
    assert how == "a part" or any(not x.is_contiguous() for x in others)
    assert_close(case.call(case.model, *others), case.call(case.model, *inputs))


@examples
@given(st.sampled_from(["transposed", "every other", "backwards"]), sizes, sizes, st.booleans(), seeds)
def test_attention_takes_any_layout(how, t, s, masked, seed):
    q, k, v = draw(seed, 2, 2, t, 4), draw(seed + 1, 2, 2, s, 4), draw(seed + 2, 2, 2, s, 4)
    mask = (draw(seed, 2, 2, t, s) > -1) if masked else None
    others = [strided(x, how) for x in (q, k, v)]
    assert_close(attention(*others, None if mask is None else strided(mask, how)), attention(q, k, v, mask))


@cases
def test_no_tensor_is_made_on_the_default_device(case):
    # Inputs and weights are on the processor: what is made without saying where would be elsewhere.
    inputs, model = case.inputs(0, 2), copy.deepcopy(case.model).requires_grad_()
    expected = case.call(model, *inputs)
    with torch.device("meta"):
        out = case.call(model, *inputs)
        out.square().mean().backward()
    assert_close(out, expected)


def test_losses_searches_and_samplers_make_none_either():
    tokens, images, noise = draw_tokens(0, 2, LENGTH), draw(0, 2, 1, SIDE, SIDE).clamp(-1, 1), draw(1, 2, 16)
    texts, colour = texts_with_end(0, 2), draw(0, 2, 3, SIDE, SIDE)
    process, t, epsilon = GaussianDiffusion(linear_schedule(5)), torch.tensor([1, 5]), draw(2, 2, 1, SIDE, SIDE)
    source, model = padded(0, 2), TRANSFORMERS["pre"]
    real = tokens > 3
    made = {
        "GPT's loss": lambda: GPT_.loss(tokens),
        "GPT's cache": lambda: GPT_(tokens, cache=GPT_.new_cache()),
        "GPT's padding": lambda: GPT_(tokens, real),
        "GPT's maps": lambda: GPT_.attention_maps(tokens),
        "CLIP's loss": lambda: copy.deepcopy(CLIP_).loss(colour, texts),
        "MAE's loss": lambda: MAE_(images, noise).loss,
        "greedy": lambda: torch.tensor(len(model.greedy(source, max_length=3)), device="cpu"),
        "beam": lambda: torch.tensor(len(model.beam_search(source, beam=2, max_length=3)), device="cpu"),
        "cross-attention": lambda: model.cross_attention_maps(source[:1], tokens[:1]),
        "maps of a ViT": lambda: VITS["learned"].attention_maps(images),
        "DDPM's loss": lambda: process.loss(UNET, images, t, epsilon),
        "a term of the bound": lambda: process.bound_term(UNET, images, t, epsilon),
        "the last term": lambda: process.prior_term(images),
        "DDPM": lambda: ancestral(process, UNET, images, steps=2).images,
        "DDIM": lambda: ddim(process, UNET, images, steps=2).images,
    }
    for name, make in made.items():
        with torch.device("meta"):
            found = make()
        assert found.device.type == "cpu", name
        assert found.isfinite().all(), name


@pytest.mark.parametrize(
    "config", [model.config for model in {id(c.model): c.model for c in CASES.values()}.values()], ids=repr
)
def test_every_model_is_built_on_any_device(config):
    kinds = {ViTConfig: ViT, GPTConfig: GPT, TransformerConfig: Transformer, CLIPConfig: CLIP, MAEConfig: MAE}
    build = (kinds | {UNetConfig: UNet})[type(config)]
    with torch.device("meta"):
        model = build(config)
    assert {t.device.type for t in itertools.chain(model.parameters(), model.buffers())} == {"meta"}
    on_cpu = build(config)
    assert {n: t.shape for n, t in model.named_parameters()} == {n: t.shape for n, t in on_cpu.named_parameters()}


# Patches and masks


@examples
@given(sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), seeds)
def test_embedding_patches_is_one_matrix_for_each(p, rows, columns, c, seed):
    images, embedding = draw(seed, 2, c, rows * p, columns * p), ready(PatchEmbedding(p, c, 5))
    assert_close(embedding(images), embedding.proj(patchify(images, p)))


@examples
@given(st.integers(1, 3), st.integers(2, 20), st.floats(0, 0.95), seeds)
def test_what_is_shuffled_and_kept_comes_back_to_its_place(b, t, ratio, seed):
    visible = int(t * (1 - ratio))
    tokens, noise = draw(seed, b, t, 3), draw(seed + 1, b, t)
    if visible < 1:
        with pytest.raises(ValueError, match="leaves none"):
            random_masking(noise, ratio)
        return
    masking = random_masking(noise, ratio)
    assert masking.mask.sum(dim=1).tolist() == [t - visible] * b
    assert torch.equal(masking.ids_restore.sort(dim=1).values, torch.arange(t).expand(b, t))
    kept = take(tokens, masking.ids_keep)
    hidden = torch.full((b, t - visible, 3), torch.inf)
    restored = take(torch.cat([kept, hidden], dim=1), masking.ids_restore)
    assert torch.equal(restored, tokens.masked_fill(masking.mask[..., None], torch.inf))


@examples
@given(st.floats(0.1, 0.9), seeds)
def test_hidden_pixels_reach_nobody(ratio, seed):
    images, noise = draw(seed, 2, 1, SIDE, SIDE), draw(seed + 1, 2, 16)
    z, masking = MAE_.encode(images, mask_ratio=ratio, noise=noise)
    covered = patchify(images, 2).masked_fill(masking.mask[..., None], 7.0)
    again, _ = MAE_.encode(unpatchify(covered, 2, SIDE, SIDE), mask_ratio=ratio, noise=noise)
    assert torch.equal(z, again)


# Texts

TALE = "the whale and the sea, the sea and the whale; he sails and sails, and the whale is there. "
BYTE_PAIRS = BytePairTokenizer.train(TALE, 280)
CLIP_WORDS = ClipTokenizer.train([TALE], 560)
# Any code points at all, and texts that have something to join.
any_text = st.one_of(st.text(st.characters(), max_size=40), st.text("the whalsnd ,;'\n", max_size=60))


@examples
@given(any_text, any_text)
def test_byte_pairs_learned_from_any_text_give_any_text_back(learned, text):
    try:
        tokenizer = BytePairTokenizer.train(learned, 262)
    except ValueError:
        tokenizer = BYTE_PAIRS
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@examples
@given(any_text)
def test_characters_give_a_text_of_their_own_back(text):
    tokenizer = CharTokenizer(text + "a")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(set(text) | {"a"})


@examples
@given(any_text)
def test_clip_gives_the_cleaned_words_back(text):
    words = CLIP_WORDS.decode(CLIP_WORDS.encode(text))
    assert "".join(words.split()) == "".join(clean(text).split())


@examples
@given(any_text)
def test_tokenizers_saved_and_loaded_are_the_same(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("tokenizer")
    for tokenizer in (BYTE_PAIRS, CLIP_WORDS, CharTokenizer(text + "a")):
        tokenizer.save(folder)
        known = text if not isinstance(tokenizer, CharTokenizer) else text + "a"
        assert type(tokenizer).load(folder).encode(known) == tokenizer.encode(known)


# Diffusion


@examples
@given(st.integers(1, 50), st.sampled_from(["epsilon", "mean", "velocity"]), seeds)
def test_noise_that_is_known_is_taken_off_exactly(t, predict, seed):
    process = GaussianDiffusion(linear_schedule(50), predict=predict)
    x_0, epsilon = draw(seed, 2, 1, 4, 4, dtype=torch.float64).tanh(), draw(seed + 1, 2, 1, 4, 4, dtype=torch.float64)
    times = torch.tensor([t, 1])
    x_t = process.q_sample(x_0, times, epsilon)
    found = process.read(process.target(x_0, x_t, times, epsilon), x_t, times)
    assert_close(found.x_0, x_0)
    assert_close(found.epsilon, epsilon)
    assert_close(process.q_sample(found.x_0, times, found.epsilon), x_t)


@examples
@given(st.integers(1, 20), st.floats(1e-4, 0.3), st.floats(0, 0.5), seeds)
def test_steps_of_noise_add_up(n, first, more, seed):
    process = GaussianDiffusion(linear_schedule(n, first, first + more))
    x, t = draw(seed, 1, 1, 2, 2, dtype=torch.float64), torch.tensor([n])
    share, variance = 1.0, 0.0
    for beta in process.beta[1:].tolist():
        share, variance = share * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    zero = torch.zeros_like(x)
    assert_close(process.q_sample(x, t, zero), share * x)
    assert_close(process.q_sample(zero, t, torch.ones_like(x)), torch.full_like(x, variance**0.5))


@examples
@given(st.integers(1, 10), st.integers(0, 2**20), seeds)
def test_ddim_without_noise_depends_on_its_start_alone(steps, other, seed):
    process, x = GaussianDiffusion(linear_schedule(10)), draw(seed, 2, 1, SIDE, SIDE)

    def sample(number: int) -> Tensor:
        torch.manual_seed(number)
        return ddim(process, UNET, x, steps=steps, generator=torch.Generator().manual_seed(number)).images

    assert torch.equal(sample(0), sample(other))


@examples
@given(st.integers(1, 10), seeds)
def test_ddim_with_a_perfect_network_is_back_at_the_image(steps, seed):
    process = GaussianDiffusion(linear_schedule(10))
    x_0, epsilon = draw(seed, 2, 1, 4, 4, dtype=torch.float64).tanh(), draw(seed + 1, 2, 1, 4, 4, dtype=torch.float64)
    x_t = process.q_sample(x_0, torch.tensor([10, 10]), epsilon)
    assert_close(ddim(process, lambda x, t: epsilon, x_t, steps=steps).images, x_0)


@examples
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 2), seeds)
def test_a_unet_takes_any_size_that_its_levels_divide(rows, columns, b, seed):
    for levels in range(1, 4):
        config = UNetConfig(
            image_size=8,
            in_channels=1,
            d_model=4,
            multipliers=(1,) * levels,
            n_blocks=1,
            attention_sizes=(),
            n_groups=2,
        )
        model, factor = ready(UNet(config)), 2 ** (levels - 1)
        x, t = draw(seed, b, 1, rows * factor, columns * factor), torch.zeros(b, dtype=torch.int64)
        assert model(x, t).shape == x.shape
        if factor > 1:
            with pytest.raises(ValueError, match=f"multiples of {factor}"):
                model(draw(seed, b, 1, rows * factor + 1, columns * factor), t)


@examples
@given(st.lists(st.integers(0, 255), min_size=1, max_size=20))
def test_pixels_come_back(values):
    pixels = torch.tensor(values, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_signed(pixels)), pixels)


# Averages and measures


@examples
@given(st.floats(0, 1), seeds)
def test_a_moving_average_lies_between_and_keeps_what_is_equal(decay, seed):
    model, average = nn.Linear(3, 2), nn.Linear(3, 2)
    nn.init.constant_(model.bias, 0.5)
    nn.init.constant_(average.bias, 0.5)
    model.weight.data, average.weight.data = draw(seed, 2, 3), draw(seed + 1, 2, 3)
    before = average.weight.detach().clone()
    follow(average, model, decay)
    low, high = torch.minimum(before, model.weight), torch.maximum(before, model.weight)
    assert ((average.weight >= low - 1e-6) & (average.weight <= high + 1e-6)).all()
    assert_close(average.bias, model.bias)
    assert_close(average.weight - model.weight, decay * (before - model.weight))


words = st.lists(st.sampled_from("abc"), max_size=8)


@settings(examples, max_examples=60)
@given(words, words, words)
def test_edit_distance_is_a_metric(a, b, c):
    assert edit_distance(a, a) == 0
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))
    # What both begin and end with costs nothing.
    assert edit_distance(c + a + c, c + b + c) == edit_distance(a, b)


@examples
@given(st.integers(1, 4), st.integers(1, 3), seeds)
def test_heads_do_not_meet(t, b, seed):
    mha = ready(MultiHeadAttention(8, 2))
    x = draw(seed, b, t, 8)
    before = attention(*mha.project(x))
    with torch.no_grad():
        # The queries of the second head.
        mha.in_proj.weight[4:8] += 1
    after = attention(*mha.project(x))
    assert torch.equal(after[:, 0], before[:, 0])
