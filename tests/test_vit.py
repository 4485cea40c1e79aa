import itertools
import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paperwalk.nn import sinusoidal_2d
from paperwalk.published.vit import TIMM, TORCHVISION, TRANSFORMERS, our_names
from paperwalk.testing import prove
from paperwalk.vit import ViT, ViTConfig

SMALL = ViTConfig(image_size=12, patch_size=4, in_channels=2, n_classes=5, d_model=12, n_layers=2, n_heads=3, d_mlp=20)
VARIANTS = list(itertools.product(("cls", "mean"), ("learned", "learned_2d", "sincos_2d", "none")))


def small(**changes) -> ViTConfig:
    return ViTConfig(**vars(SMALL) | changes)


def images(config: ViTConfig = SMALL, b: int = 2, **options) -> Tensor:
    return torch.randn(b, config.in_channels, config.image_size, config.image_size, **options)


def random_config(seed: int, **changes) -> ViTConfig:
    rng = random.Random(seed)
    patch, n_heads = rng.randint(2, 6), rng.randint(2, 4)
    sizes = {
        "image_size": patch * rng.randint(2, 4),
        "patch_size": patch,
        "in_channels": rng.randint(1, 4),
        "n_classes": rng.randint(2, 9),
        "d_model": n_heads * rng.randint(2, 7),
        "n_layers": rng.randint(1, 4),
        "n_heads": n_heads,
        "d_mlp": rng.randint(5, 40),
    }
    return ViTConfig(**sizes | changes)


def torchvision_vit(config: ViTConfig) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        config.image_size,
        config.patch_size,
        config.n_layers,
        config.n_heads,
        config.d_model,
        config.d_mlp,
        num_classes=config.n_classes,
    )


def timm_vit(config: ViTConfig) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        config.image_size,
        config.patch_size,
        config.in_channels,
        config.n_classes,
        embed_dim=config.d_model,
        depth=config.n_layers,
        num_heads=config.n_heads,
        mlp_ratio=config.d_mlp / config.d_model,
    )


def transformers_vit(config: ViTConfig, **changes) -> nn.Module:
    import transformers

    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=config.in_channels,
            num_labels=config.n_classes,
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.d_mlp,
            layer_norm_eps=config.norm_eps,
            **changes,
        )
    )


ORACLES: dict[str, tuple[Callable[[ViTConfig], nn.Module], dict[str, str], Callable]] = {
    "torchvision": (torchvision_vit, TORCHVISION, lambda out: out),
    "timm": (timm_vit, TIMM, lambda out: out),
    "transformers": (transformers_vit, TRANSFORMERS, lambda out: out.logits),
}


def climb(oracle: str, config: ViTConfig, randomise: Callable, b: int = 2, std: float = 0.2) -> None:
    make, table, read = ORACLES[oracle]
    ours, theirs = ViT(config), randomise(make(config), std)
    rung = prove("ViT", oracle, ours, theirs, images(config, b), convert=partial(our_names, table=table), read=read)
    assert rung.n_gradients == 1 + len(list(ours.parameters()))


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_oracles_at_random_sizes(oracle, seed, randomise):
    changes = {"in_channels": 3} if oracle == "torchvision" else {"norm_eps": 0.05} if oracle == "transformers" else {}
    climb(oracle, random_config(seed, **changes), randomise)


@pytest.mark.parametrize("oracle", ORACLES)
def test_equals_the_oracles_at_tiny_16(oracle, randomise):
    climb(oracle, ViTConfig.tiny_16(), randomise, b=1, std=0.02)


def naive_attention(attention: nn.Module, x: Tensor) -> Tensor:
    d, e = x.shape[-1], x.shape[-1] // attention.n_heads
    q, k, v = (x @ attention.in_proj.weight.T + attention.in_proj.bias).split(d, dim=-1)
    heads = []
    for i in range(attention.n_heads):
        part = slice(i * e, (i + 1) * e)
        scores = torch.exp(q[..., part] @ k[..., part].mT / math.sqrt(e))
        heads.append(scores / scores.sum(dim=-1, keepdim=True) @ v[..., part])
    return torch.cat(heads, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias


def naive_position(model: ViT, y: int, x: int) -> Tensor | float:
    config, place = model.config, y * model.config.grid[1] + x
    if config.positions == "learned":
        return model.positions.weight[place + (config.pool == "cls")]
    if config.positions == "learned_2d":
        return torch.cat([model.positions.rows[y], model.positions.columns[x]])
    return sinusoidal_2d(*config.grid, config.d_model)[place] if config.positions == "sincos_2d" else 0.0


def naive_vit(model: ViT, x: Tensor) -> Tensor:
    p, logits = model.config.patch_size, []
    for image in x:
        tokens = []
        if model.config.pool == "cls":
            first = model.positions.weight[0] if model.config.positions == "learned" else 0.0
            tokens.append(model.class_token + first)
        for row, column in itertools.product(*map(range, model.config.grid)):
            patch = image[:, row * p : (row + 1) * p, column * p : (column + 1) * p].permute(1, 2, 0).flatten()
            tokens.append(model.patch_embedding.proj(patch) + naive_position(model, row, column))
        z = torch.stack(tokens)
        for block in model.blocks:
            z = z + naive_attention(block.attention, block.norm1(z))
            z = z + block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(z))))
        z = model.norm(z)
        y = z[0] if model.config.pool == "cls" else z.sum(dim=0) / len(z)
        if model.config.d_pre_logits:
            y = torch.tanh(model.pre_logits[0](y))
        logits.append(model.head(y))
    return torch.stack(logits)


@pytest.mark.parametrize(("pool", "positions"), VARIANTS)
def test_equals_the_equations(pool, positions, randomise):
    model = randomise(ViT(small(pool=pool, positions=positions, d_pre_logits=7 if pool == "cls" else None)))
    rung = prove("ViT", "equations", model, lambda x: naive_vit(model, x), images(), shared=model)
    assert rung.n_gradients == 1 + len(list(model.parameters()))


def shuffled_patches(x: Tensor, p: int) -> Tensor:
    side = x.shape[-1] // p
    cut = x.unfold(2, p, p).unfold(3, p, p).flatten(2, 3)[:, :, torch.randperm(side**2)]
    return cut.unflatten(2, (side, side)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize(("pool", "positions"), VARIANTS)
def test_only_positions_tell_the_order_of_patches(pool, positions, randomise):
    model, x = randomise(ViT(small(pool=pool, positions=positions))), images()
    same = torch.allclose(model(shuffled_patches(x, 4)), model(x), rtol=1e-4, atol=1e-5)
    assert same == (positions == "none")


def test_images_of_a_batch_do_not_meet(randomise):
    model, x = randomise(ViT(SMALL)), images(b=3)
    assert_close(model(x), torch.cat([model(one[None]) for one in x]))
    x.requires_grad_()
    model(x)[1].sum().backward()
    assert (x.grad[[0, 2]] == 0).all()
    assert (x.grad[1] != 0).any()


@pytest.mark.parametrize(("pool", "positions"), VARIANTS)
def test_gradients_equal_finite_differences(pool, positions, randomise):
    config = ViTConfig(4, 2, 1, 2, d_model=4, n_layers=1, n_heads=2, d_mlp=4, pool=pool, positions=positions)
    model = randomise(ViT(config)).double()
    assert torch.autograd.gradcheck(model, images(config, b=1, dtype=torch.float64, requires_grad=True))


def test_class_token_has_a_position(randomise):
    model = randomise(ViT(SMALL))
    z = model.embed(images())
    assert_close(z[:, 0], (model.class_token + model.positions.weight[0]).expand(2, -1))
    z[:, 0].sum().backward()
    assert (model.positions.weight.grad[0] == len(z)).all()
    assert (model.positions.weight.grad[1:] == 0).all()


def test_head_reads_what_encode_returns(randomise):
    x = images()
    for pool, y in {"cls": lambda z: z[:, 0], "mean": lambda z: z.mean(dim=1)}.items():
        model = randomise(ViT(small(pool=pool, n_classes=0)))
        assert_close(model(x), y(model.encode(x)))
        assert model(x).shape == (2, 12)


def test_sinusoids_are_neither_learned_nor_stored():
    model = ViT(small(positions="sincos_2d"))
    assert torch.equal(model.sincos, sinusoidal_2d(3, 3, 12))
    assert not [name for name in model.state_dict() if "pos" in name or "sincos" in name]


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("tiny_16", 5_717_416),
        ("small_16", 22_050_664),
        ("base_16", 86_567_656),
        ("base_32", 88_224_232),
        ("large_16", 304_326_632),
        ("huge_14", 632_045_800),
    ],
)
def test_presets_have_the_published_parameters(preset, parameters):
    with torch.device("meta"):
        model = ViT(getattr(ViTConfig, preset)())
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert getattr(ViTConfig, preset)(n_classes=7, patch_size=8, n_heads=1, d_mlp=5) == ViTConfig(
        **vars(getattr(ViTConfig, preset)()) | {"n_classes": 7, "patch_size": 8, "n_heads": 1, "d_mlp": 5}
    )


@pytest.mark.parametrize(
    "config",
    [SMALL, small(pool="mean"), small(d_pre_logits=7), small(n_classes=0), small(n_classes=0, d_pre_logits=7)]
    + [random_config(seed, positions="none") for seed in range(3)],
    ids=str,
)
def test_counted_flops_are_the_measured_ones(config):
    model = ViT(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(config, b=1))
    assert config.forward_flops() == counter.get_total_flops()


def test_initial_weights_have_the_documented_statistics():
    model = ViT(small(d_model=192, d_mlp=768, image_size=32, n_layers=1))
    proj, block = model.patch_embedding.proj, model.blocks[0]
    assert proj.weight.std().item() == pytest.approx(proj.in_features**-0.5, rel=0.05)
    assert proj.weight.abs().max() > 2.5 * proj.in_features**-0.5
    attention, mlp = block.attention, block.mlp
    for weight in (*attention.in_proj.weight.chunk(3), attention.out_proj.weight, mlp.fc1.weight, mlp.fc2.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for bias in (mlp.fc1.bias, mlp.fc2.bias):
        assert bias.std().item() == pytest.approx(1e-6, rel=0.2)
    assert model.positions.weight.std().item() == pytest.approx(0.02, rel=0.05)
    zeros = (proj.bias, attention.in_proj.bias, attention.out_proj.bias, model.class_token, *model.head.parameters())
    assert all((tensor == 0).all() for tensor in zeros)
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in (block.norm1, block.norm2, model.norm))


def test_dropout_acts_in_training_only(randomise):
    model, x = randomise(ViT(small(dropout=0.5))), images()
    assert (model.embed(x) == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert not torch.equal(model.blocks[0](x[0].reshape(1, -1, 12)), model.blocks[0](x[0].reshape(1, -1, 12)))
    model.eval()
    assert torch.equal(model(x), model(x))
    without = ViT(SMALL)
    without.load_state_dict(model.state_dict())
    assert_close(without(x), model(x))


def test_attention_maps_equal_transformers(randomise):
    theirs = randomise(transformers_vit(SMALL, attn_implementation="eager")).eval()
    ours, x = ViT(SMALL), images()
    ours.load_state_dict(our_names(dict(theirs.state_dict()), TRANSFORMERS))
    maps = ours.attention_maps(x)
    assert_close(maps, torch.stack(theirs(x, output_attentions=True).attentions).detach())
    assert maps.shape == (2, 2, 3, 10, 10)
    assert not maps.requires_grad


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 13}, "image_size=13 is not a multiple of patch_size=4"),
        ({"d_model": 14}, "d_model=14 is not a multiple of n_heads=3"),
        ({"pool": "max"}, "'max', expected 'cls' or 'mean'"),
        ({"positions": "rotary"}, "'rotary', expected 'learned'"),
        ({"n_classes": -1}, "n_classes=-1, expected an int of at least 0"),
        ({"d_pre_logits": 0}, "d_pre_logits=0, expected None"),
        ({"d_model": "12"}, "d_model='12', expected an int"),
        ({"image_size": [12, 12]}, r"image_size=\[12, 12\], expected an int"),
        ({"dropout": None}, "dropout=None, expected a number"),
        ({"norm_eps": -1e-6}, "norm_eps=-1e-06, expected a number"),
    ]
    + [
        ({name: 0}, f"{name}=0, expected")
        for name in ("image_size", "patch_size", "in_channels", "d_model", "n_layers", "n_heads", "d_mlp")
    ],
)
def test_bad_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", ["forward", "embed", "encode", "attention_maps"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 2, 13, 13), r"\(2, 2, 13, 13\), expected \(b, 2, 12, 12\)"),
        (torch.zeros(2, 2, 16, 16), r"\(2, 2, 16, 16\), expected \(b, 2, 12, 12\)"),
        (torch.zeros(2, 2, 12, 8), r"\(2, 2, 12, 8\)"),
        (torch.zeros(2, 3, 12, 12), r"\(2, 3, 12, 12\)"),
        (torch.zeros(2, 12, 12), r"\(2, 12, 12\)"),
        (torch.zeros(0, 2, 12, 12), r"\(0, 2, 12, 12\).*b >= 1"),
        (torch.zeros(2, 2, 12, 12, dtype=torch.uint8), r"torch\.uint8, expected floating point"),
    ],
    ids=["side", "size", "not square", "channels", "no batch", "empty", "integers"],
)
def test_bad_images_are_named(method, x, message):
    with pytest.raises(ValueError, match=message):
        getattr(ViT(SMALL), method)(x)


# What the mutants of `make mutants` showed to be without a judge here.


@pytest.mark.parametrize(
    ("preset", "n_heads"),
    [("tiny_16", 3), ("small_16", 6), ("base_16", 12), ("base_32", 12), ("large_16", 16), ("huge_14", 16)],
)
def test_presets_have_the_published_heads(preset, n_heads):
    # The number of parameters does not show it.
    assert getattr(ViTConfig, preset)().n_heads == n_heads


def test_a_head_for_pre_training_may_be_one_unit_wide():
    assert ViT(small(d_pre_logits=1))(images()).shape == (2, 5)
