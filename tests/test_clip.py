import json
import math
import random
from dataclasses import replace
from functools import partial
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paperwalk.checkpoints import load_exactly
from paperwalk.clip import CLIP, CLIPConfig, ImageTower, TextTower, contrastive_loss, unit
from paperwalk.nn import PatchEmbedding, quick_gelu
from paperwalk.published.clip import OPENAI, TRANSFORMERS, from_openai, from_transformers, our_names
from paperwalk.testing import prove, refuses

SMALL = CLIPConfig(
    image_size=12,
    patch_size=4,
    d_image=16,
    n_image_layers=2,
    n_image_heads=4,
    d_image_mlp=40,
    vocab_size=50,
    block_size=9,
    d_text=12,
    n_text_layers=3,
    n_text_heads=3,
    d_text_mlp=28,
    d_embed=10,
)


def texts(config: CLIPConfig = SMALL, b: int = 4, generator: torch.Generator | None = None) -> Tensor:
    """Texts of different lengths, each ended, with anything after the end."""
    tokens = torch.randint(1, config.vocab_size, (b, config.block_size), generator=generator)
    tokens[tokens == config.eot_id] = 0
    ends = [config.block_size - 1, *torch.randint(1, config.block_size, (b - 1,)).tolist()]
    tokens[torch.arange(b), ends] = config.eot_id
    return tokens


def images(config: CLIPConfig = SMALL, b: int = 4) -> Tensor:
    return torch.randn(b, 3, config.image_size, config.image_size)


def random_config(seed: int) -> CLIPConfig:
    rng = random.Random(seed)
    image_heads, text_heads, patch = rng.randint(1, 4), rng.randint(1, 4), rng.randint(2, 5)
    return CLIPConfig(
        image_size=patch * rng.randint(1, 4),
        patch_size=patch,
        d_image=image_heads * rng.randint(2, 7),
        n_image_layers=rng.randint(1, 3),
        n_image_heads=image_heads,
        d_image_mlp=rng.randint(5, 50),
        vocab_size=rng.randint(5, 60),
        block_size=rng.randint(3, 12),
        d_text=text_heads * rng.randint(2, 7),
        n_text_layers=rng.randint(1, 3),
        n_text_heads=text_heads,
        d_text_mlp=rng.randint(5, 50),
        d_embed=rng.randint(2, 20),
        activation=rng.choice(["quick_gelu", "gelu"]),
        norm_eps=rng.choice([1e-5, 0.1]),
    )


def transformers_clip(config: CLIPConfig, **text_changes) -> nn.Module:
    import transformers

    common = {"hidden_act": config.activation, "layer_norm_eps": config.norm_eps}
    text = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "hidden_size": config.d_text,
        "num_hidden_layers": config.n_text_layers,
        "num_attention_heads": config.n_text_heads,
        "intermediate_size": config.d_text_mlp,
        "eos_token_id": config.eot_id,
        "bos_token_id": 0,
        "pad_token_id": 0,
    }
    image = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.d_image,
        "num_hidden_layers": config.n_image_layers,
        "num_attention_heads": config.n_image_heads,
        "intermediate_size": config.d_image_mlp,
    }
    made = transformers.CLIPConfig(
        text_config=common | text | text_changes, vision_config=common | image, projection_dim=config.d_embed
    )
    return transformers.CLIPModel(made).eval()


def called(theirs: nn.Module) -> nn.Module:
    """transformers' model, called as ours is, with its own loss."""

    def forward(self, pixels, ids):
        return type(self).forward(self, input_ids=ids, pixel_values=pixels, return_loss=len(pixels) == len(ids))

    theirs.forward = MethodType(forward, theirs)
    return theirs


def open_clip_model(config: CLIPConfig) -> nn.Module:
    """open_clip's model; it has one ratio of MLP to width, and the heads as their width."""
    from open_clip.model import CLIP as OpenCLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    image = CLIPVisionCfg(
        layers=config.n_image_layers,
        width=config.d_image,
        head_width=config.d_image // config.n_image_heads,
        mlp_ratio=config.d_image_mlp / config.d_image,
        patch_size=config.patch_size,
        image_size=config.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.block_size,
        vocab_size=config.vocab_size,
        width=config.d_text,
        heads=config.n_text_heads,
        layers=config.n_text_layers,
        mlp_ratio=config.d_text_mlp / config.d_text,
    )
    return OpenCLIP(config.d_embed, image, text, quick_gelu=config.activation == "quick_gelu").eval()


class WithLoss(CLIP):
    """The loss as the output, for `prove`."""

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        return contrastive_loss(super().forward(images, tokens))


# The ladder


def naive_loss(t, image_features, text_features):
    """Figure 3, by hand, number by number."""
    n = len(image_features)
    I_e = [row / row.square().sum().sqrt() for row in image_features]
    T_e = [row / row.square().sum().sqrt() for row in text_features]
    logits = [[(i * j).sum() * t.exp() for j in T_e] for i in I_e]
    loss_i = sum(-logits[i][i] + torch.stack(logits[i]).exp().sum().log() for i in range(n)) / n
    loss_t = sum(-logits[i][i] + torch.stack([row[i] for row in logits]).exp().sum().log() for i in range(n)) / n
    return (loss_i + loss_t) / 2


@pytest.mark.parametrize("b", [2, 5])
def test_the_loss_is_figure_3(b):
    t, image_features, text_features = torch.tensor(1.3), torch.randn(b, 6), torch.randn(b, 6)

    def ours(t, i, x):
        return contrastive_loss(t.exp() * unit(i) @ unit(x).T)

    rung = prove("loss", "naive", ours, naive_loss, t, image_features, text_features)
    assert rung.n_gradients == 3


def test_a_loss_over_one_direction_is_refused():
    def one_direction(logits):
        return F.cross_entropy(logits, torch.arange(len(logits)))

    assert refuses(contrastive_loss, one_direction, 5 * torch.randn(6, 6))


def naive_tower(blocks, x, causal, activation):
    t, d = x.shape
    for block in blocks:
        e = d // block.attention.n_heads
        rows = [naive_norm(block.norm1, row) for row in x]
        attended = []
        for i in range(t):
            heads = []
            for n in range(block.attention.n_heads):
                parts = [block.attention.in_proj.weight[p * d + n * e : p * d + (n + 1) * e] for p in range(3)]
                shift = [block.attention.in_proj.bias[p * d + n * e : p * d + (n + 1) * e] for p in range(3)]
                seen = rows[: i + 1] if causal else rows
                q = parts[0] @ rows[i] + shift[0]
                k, v = (torch.stack([parts[p] @ row + shift[p] for row in seen]) for p in (1, 2))
                heads.append((k @ q / e**0.5).softmax(0) @ v)
            attended.append(block.attention.out_proj.weight @ torch.cat(heads) + block.attention.out_proj.bias)
        x = x + torch.stack(attended)
        rows = [naive_norm(block.norm2, row) for row in x]
        mlp = [block.mlp.fc2(activation(block.mlp.fc1.weight @ row + block.mlp.fc1.bias)) for row in rows]
        x = x + torch.stack(mlp)
    return x


def naive_norm(layer, x):
    centred = x - x.mean()
    return centred / ((centred**2).mean() + layer.eps).sqrt() * layer.weight + layer.bias


def naive_quick_gelu(x):
    return x / (1 + torch.exp(-1.702 * x))


def naive_image(tower, config, batch):
    rows = []
    p, side = config.patch_size, config.image_size // config.patch_size
    for image in batch:
        z = [tower.class_token]
        for i in range(side * side):
            top, left = i // side * p, i % side * p
            square = image[:, top : top + p, left : left + p].permute(1, 2, 0).flatten()
            z.append(tower.patch_embedding.proj.weight @ square)
        z = [naive_norm(tower.norm_pre, row + tower.positions.weight[i]) for i, row in enumerate(z)]
        x = naive_tower(tower.blocks, torch.stack(z), False, naive_quick_gelu)
        rows.append(tower.projection.weight @ naive_norm(tower.norm, x[0]))
    return torch.stack(rows)


def naive_text(tower, config, batch):
    rows = []
    for ids in batch.tolist():
        ids = ids[: ids.index(config.eot_id) + 1]
        x = torch.stack([tower.token_embedding.weight[i] + tower.positions.weight[k] for k, i in enumerate(ids)])
        x = naive_tower(tower.blocks, x, True, naive_quick_gelu)
        rows.append(tower.projection.weight @ naive_norm(tower.norm, x[-1]))
    return torch.stack(rows)


def test_image_tower_equals_loops(randomise):
    tower = randomise(ImageTower(SMALL))
    prove("image tower", "loops", tower, partial(naive_image, tower, SMALL), images(b=2), shared=tower)


def test_text_tower_equals_loops_on_the_text_alone(randomise):
    tower = randomise(TextTower(SMALL))
    prove("text tower", "loops", tower, partial(naive_text, tower, SMALL), texts(b=3), shared=tower)


def test_quick_gelu():
    x = torch.linspace(-8, 8, 2001)
    prove("quick GELU", "by hand", quick_gelu, naive_quick_gelu, x)
    largest = (quick_gelu(x) - F.gelu(x)).abs().max().item()
    assert 0.0202 < largest < 0.0204


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_transformers(seed, randomise):
    config = random_config(seed)
    theirs = called(randomise(transformers_clip(config)))
    names = partial(our_names, table=TRANSFORMERS)
    inputs = images(config), texts(config)
    rung = prove(
        "CLIP", "transformers", CLIP(config), theirs, *inputs, convert=names, read=lambda o: o.logits_per_image
    )
    assert rung.n_gradients == len(CLIP(config).state_dict()) + 1
    prove("loss", "transformers", WithLoss(config), theirs, *inputs, convert=names, read=lambda o: o.loss)
    with torch.no_grad():
        ours = CLIP(config).eval()
        load_exactly(ours, names(dict(theirs.state_dict())))
        out = theirs(*inputs)
        assert_close(ours.encode_image(inputs[0]), out.image_embeds, atol=1e-5, rtol=0)
        assert_close(ours.encode_text(inputs[1]), out.text_embeds, atol=1e-5, rtol=0)
        assert_close(ours(*inputs), out.logits_per_text.T, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_equal_to_open_clip(activation, randomise):
    config = replace(SMALL, activation=activation)
    theirs = randomise(open_clip_model(config))
    prove(
        "CLIP",
        "open_clip",
        CLIP(config),
        theirs,
        images(),
        texts(),
        convert=partial(our_names, table=OPENAI),
        read=lambda out: out[2] * out[0] @ out[1].T,
    )


def test_loss_equal_to_open_clip():
    from open_clip.loss import ClipLoss

    theirs = ClipLoss()

    def ours(i, x, scale):
        return contrastive_loss(scale * i @ x.T)

    prove("loss", "open_clip", ours, theirs, torch.randn(5, 7), torch.randn(5, 7), torch.tensor(3.0))


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_equal_at_the_published_size(library):
    config = CLIPConfig.vit_b_32()
    pixels, ids = images(config, b=2), texts(config, b=2)
    if library == "transformers":
        theirs = called(transformers_clip(config))
        options = {"convert": partial(our_names, table=TRANSFORMERS), "read": lambda out: out.logits_per_image}
    else:
        theirs = open_clip_model(config)
        options = {"convert": partial(our_names, table=OPENAI), "read": lambda out: out[2] * out[0] @ out[1].T}
    rung = prove("ViT-B/32", library, CLIP(config), theirs, pixels, ids, **options)
    assert rung.n_gradients == 303


# Counts


@pytest.mark.parametrize(
    ("preset", "count", "image", "text"),
    [
        ("vit_b_32", 151_277_313, 87_849_216, 63_428_096),
        ("vit_b_16", 149_620_737, 86_192_640, 63_428_096),
        ("vit_l_14", 427_616_513, 303_966_208, 123_650_304),
    ],
)
def test_parameters_of_the_presets(preset, count, image, text):
    with torch.device("meta"):
        model = CLIP(getattr(CLIPConfig, preset)())

    def size(module):
        return sum(p.numel() for p in module.parameters())

    assert (size(model), size(model.image), size(model.text)) == (count, image, text)


def test_a_preset_takes_changes():
    config = CLIPConfig.vit_l_14(image_size=336, d_embed=5)
    assert (config.n_image_tokens, config.d_embed, config.d_image) == (577, 5, 1024)


def test_flops_are_those_counted():
    model = CLIP(SMALL).eval()
    image, text = SMALL.forward_flops()
    with FlopCounterMode(display=False) as counter:
        model.image(images(b=1))
    assert counter.get_total_flops() == image
    with FlopCounterMode(display=False) as counter:
        model.text(texts(b=1))
    assert counter.get_total_flops() == text


# The temperature and the loss


def test_the_temperature_starts_at_007_and_its_scale_stops_at_100():
    model = CLIP(SMALL)
    assert model.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model.scale().item() == pytest.approx(1 / 0.07)
    nn.init.constant_(model.log_scale, 7.0)
    model.loss(images(), texts())
    assert model.scale().item() == pytest.approx(100.0)
    nn.init.constant_(model.log_scale, 4.0)
    model.loss(images(), texts())
    assert model.log_scale == 4.0


def test_a_scale_at_the_ceiling_can_come_back():
    model = CLIP(SMALL)
    nn.init.constant_(model.log_scale, 9.0)
    optimiser = torch.optim.SGD([model.log_scale], lr=1e-3)
    # Pairs that do not belong together: a smaller scale is better.
    loss = model.loss(images(), texts())
    loss.backward()
    assert model.log_scale.grad > 0
    optimiser.step()
    assert model.scale() < 100


def test_loss_at_chance_is_ln_b():
    model = CLIP(SMALL)
    nn.init.constant_(model.log_scale, -30.0)
    assert model.loss(images(b=8), texts(b=8)).item() == pytest.approx(math.log(8), abs=1e-4)


def test_a_batch_of_one_teaches_nothing():
    model = CLIP(SMALL)
    loss = model.loss(images(b=1), texts(b=1))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_logits_are_scaled_cosines_and_the_loss_is_symmetric():
    model = CLIP(SMALL)
    logits = model(images(), texts(b=2))
    assert logits.shape == (4, 2)
    assert logits.abs().max() <= model.scale() * (1 + 1e-6)
    square = torch.randn(5, 5)
    assert_close(contrastive_loss(square), contrastive_loss(square.T))
    order = torch.randperm(5)
    assert_close(contrastive_loss(square), contrastive_loss(square[order][:, order]))


def test_a_step_on_pairs_lowers_their_loss():
    model = CLIP(SMALL)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pairs = images(b=8), texts(b=8)
    first = model.loss(*pairs).item()
    for _ in range(30):
        optimiser.zero_grad()
        model.loss(*pairs).backward()
        optimiser.step()
    assert model.loss(*pairs).item() < 0.5 * first


def test_parts_of_a_batch_have_the_loss_of_the_whole():
    model, pairs = CLIP(SMALL), (images(b=6), texts(b=6))
    whole = model.loss(*pairs)
    features = iter([model.encode_image(pairs[0])[:3], model.encode_text(pairs[1])[:3]])
    loss = model.loss(*(each[3:] for each in pairs), gather=lambda mine: torch.cat([next(features), mine]))
    assert_close(loss, whole)


# The towers


def test_nothing_after_the_end_of_a_text_matters():
    model = CLIP(SMALL).eval()
    ids = texts()
    ends = (ids == SMALL.eot_id).int().argmax(1)
    other = torch.where(torch.arange(SMALL.block_size) > ends[:, None], 3, ids)
    other[:, -1] = torch.where(ends < SMALL.block_size - 1, SMALL.eot_id, other[:, -1])
    assert not torch.equal(ids, other)
    assert_close(model.encode_text(ids), model.encode_text(other))
    short = ids[:, : int(ends.max()) + 1]
    assert_close(model.encode_text(ids), model.encode_text(short))


def test_what_stands_before_the_end_matters():
    model, ids = CLIP(SMALL).eval(), torch.tensor([[1, 2, 3, SMALL.eot_id]])
    other = torch.tensor([[1, 3, 2, SMALL.eot_id]])
    assert (model.encode_text(ids) - model.encode_text(other)).abs().max() > 1e-4


def test_a_text_token_sees_none_after_it():
    tower, ids = TextTower(SMALL).eval(), texts()
    changed = ids.clone()
    changed[:, -1] = SMALL.eot_id
    changed[:, 5] = 1
    assert_close(tower.encode(ids)[:, :5], tower.encode(changed)[:, :5])


def test_the_image_tower_tells_shuffled_patches():
    tower, pixels = ImageTower(SMALL).eval(), images()
    assert (tower(pixels) - tower(pixels.flip(-1))).abs().max() > 1e-3


def test_an_added_token_above_the_end_does_not_move_the_pooling():
    config = replace(SMALL, eot=SMALL.vocab_size - 2)
    model = CLIP(config).eval()
    ids = torch.tensor([[1, config.vocab_size - 1, 3, config.eot_id, 0]])
    alone = model.text.projection(model.text.encode(ids)[:, 3])
    assert_close(model.text(ids), alone)


def test_initialisation_is_the_official_one():
    torch.manual_seed(0)
    model = CLIP(replace(SMALL, d_image=128, n_image_heads=2, d_text=192, n_text_heads=3, d_text_mlp=768))
    d, layers = 192, SMALL.n_text_layers
    block = model.text.blocks[0]
    expected = [
        (model.text.token_embedding.weight, 0.02),
        (model.text.positions.weight, 0.01),
        (model.text.projection.weight, d**-0.5),
        (block.attention.in_proj.weight, d**-0.5),
        (block.attention.out_proj.weight, d**-0.5 * (2 * layers) ** -0.5),
        (block.mlp.fc1.weight, (2 * d) ** -0.5),
        (block.mlp.fc2.weight, d**-0.5 * (2 * layers) ** -0.5),
        (model.image.positions.weight, 128**-0.5),
        (model.image.class_token, 128**-0.5),
        (model.image.projection.weight, 128**-0.5),
    ]
    for tensor, std in expected:
        assert tensor.std().item() == pytest.approx(std, rel=0.15)
    assert not block.attention.in_proj.bias.any()
    assert PatchEmbedding(4, 3, 8, bias=False).proj.bias is None
    assert model.image.patch_embedding.proj.bias is None
    assert model.image.projection.bias is None
    assert model.text.projection.bias is None


def test_dropout_is_off_in_eval_mode_only():
    model = CLIP(replace(SMALL, dropout=0.5))
    pair = images(), texts()
    assert not torch.equal(model(*pair), model(*pair))
    assert torch.equal(model.eval()(*pair), model(*pair))


# Published weights


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, norm_eps=0.1, activation="gelu", d_embed=7)])
def test_reads_transformers(tmp_path, config, randomise):
    theirs = randomise(transformers_clip(config))
    theirs.save_pretrained(tmp_path)
    ours, pair = CLIP.from_pretrained(tmp_path), (images(), texts())
    assert ours.config == config
    assert not ours.training
    with torch.no_grad():
        out = theirs(pixel_values=pair[0], input_ids=pair[1])
        assert_close(ours(*pair), out.logits_per_image, atol=1e-4, rtol=1e-5)


def test_reads_the_old_end_of_text_of_transformers(tmp_path, randomise):
    theirs = randomise(transformers_clip(SMALL, eos_token_id=2))
    theirs.save_pretrained(tmp_path)
    ours, ids = CLIP.from_pretrained(tmp_path), texts()
    assert ours.config.eot_id == SMALL.vocab_size - 1
    with torch.no_grad():
        out = theirs(pixel_values=images(), input_ids=ids)
        assert_close(ours.encode_text(ids), out.text_embeds, atol=1e-5, rtol=0)


def test_a_stated_end_of_text_counts(tmp_path, randomise):
    config = replace(SMALL, eot=40)
    theirs = randomise(transformers_clip(config))
    theirs.save_pretrained(tmp_path)
    ours, ids = CLIP.from_pretrained(tmp_path), texts(config)
    assert ours.config.eot_id == 40
    with torch.no_grad():
        out = theirs(pixel_values=images(), input_ids=ids)
        assert_close(ours.encode_text(ids), out.text_embeds, atol=1e-5, rtol=0)


WIDE = replace(
    SMALL, d_image=64, n_image_heads=1, d_image_mlp=256, d_text=128, n_text_heads=2, d_text_mlp=512, norm_eps=1e-5
)


@pytest.mark.parametrize("buffers", [False, True])
def test_reads_openai_and_open_clip(tmp_path, buffers, randomise):
    theirs = randomise(open_clip_model(WIDE))
    state = dict(theirs.state_dict())
    if buffers:
        # OpenAI's own files carry these beside the weights.
        state |= {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(state, tmp_path / "ViT.pt")
    ours, pair = CLIP.from_pretrained(tmp_path / "ViT.pt"), (images(), texts())
    assert ours.config == WIDE
    with torch.no_grad():
        out = theirs(*pair)
        assert_close(ours(*pair), out[2] * out[0] @ out[1].T, atol=1e-4, rtol=1e-5)


def test_a_config_says_what_a_state_dict_does_not(tmp_path, randomise):
    config = replace(SMALL, activation="gelu")
    theirs = randomise(open_clip_model(config))
    torch.save(theirs.state_dict(), tmp_path / "x.pt")
    ours, pair = CLIP.from_pretrained(tmp_path / "x.pt", config=config), (images(), texts())
    with torch.no_grad():
        out = theirs(*pair)
        assert_close(ours(*pair), out[2] * out[0] @ out[1].T, atol=1e-4, rtol=1e-5)


def test_half_precision_files_become_single(tmp_path, randomise):
    theirs = randomise(open_clip_model(WIDE)).half()
    torch.save(theirs.state_dict(), tmp_path / "half.pt")
    assert {p.dtype for p in CLIP.from_pretrained(tmp_path / "half.pt").parameters()} == {torch.float32}


def test_saves_and_reads_its_own(tmp_path, randomise):
    model, pair = randomise(CLIP(SMALL)).eval(), (images(), texts())
    model.save_pretrained(tmp_path)
    assert torch.equal(CLIP.from_pretrained(tmp_path)(*pair), model(*pair))
    model.save_pretrained(tmp_path, bits=16)
    assert_close(CLIP.from_pretrained(tmp_path)(*pair), model(*pair), atol=0.1, rtol=0.01)
    assert not torch.equal(CLIP.from_pretrained(tmp_path)(*pair), model(*pair))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "model_type='siglip', expected 'clip'"),
        ({"vision_config": {"num_channels": 1}}, "num_channels=1, expected 3"),
        ({"text_config": {"hidden_act": "gelu"}}, "the towers have hidden_act"),
        ({"text_config": {"layer_norm_eps": 1e-6}}, "the towers have layer_norm_eps"),
    ],
)
def test_another_architecture_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        from_transformers({"model_type": "clip", **change}, {})


def test_a_file_without_sizes_has_those_of_vit_b_32():
    sizes, _ = from_transformers({"model_type": "clip", "text_config": None}, {})
    assert CLIPConfig(**sizes) == CLIPConfig.vit_b_32()


def test_a_state_dict_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"not a CLIP with a Vision Transformer: expected visual\.conv1\.weight of 4"):
        from_openai({"visual.layer1.0.conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("visual.proj", None, "missing image.projection.weight"),
        ("visual.extra", torch.zeros(2), r"left over visual\.extra"),
        ("ln_final.weight", torch.zeros(3), r"text\.norm\.weight has shape \(3,\)"),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, name, tensor, message):
    state = dict(open_clip_model(WIDE).state_dict())
    state.pop(name, None)
    state |= {} if tensor is None else {name: tensor}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        CLIP.from_pretrained(tmp_path / "x.pt")


def test_a_folder_states_its_own_sizes(tmp_path):
    CLIP(SMALL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="states its own sizes"):
        CLIP.from_pretrained(tmp_path, config=SMALL)
    stored = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {"paperwalk": "ViT"}))
    with pytest.raises(ValueError, match="holds a 'ViT', expected 'CLIP'"):
        CLIP.from_pretrained(tmp_path)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 5}, "image_size=12 is not a multiple of patch_size=5"),
        ({"n_image_heads": 3}, "d_image=16 is not a multiple of n_image_heads=3"),
        ({"n_text_heads": 5}, "d_text=12 is not a multiple of n_text_heads=5"),
        ({"d_embed": 0}, "d_embed=0, expected an int of at least 1"),
        ({"n_image_layers": 0}, "n_image_layers=0"),
        ({"block_size": 1.5}, "block_size=1.5"),
        ({"activation": "relu"}, "activation='relu', expected one of"),
        ({"dropout": 1.0}, "dropout=1.0, expected"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0, expected"),
        ({"eot": 50}, "eot=50, expected a token, 0 to 49"),
        ({"eot": "end"}, "eot='end'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(unchecked, change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 3, 12, 8), r"shape \(2, 3, 12, 8\), expected \(b, 3, 12, 12\)"),
        (torch.zeros(2, 1, 12, 12), r"shape \(2, 1, 12, 12\)"),
        (torch.zeros(3, 12, 12), r"shape \(3, 12, 12\)"),
        (torch.zeros(0, 3, 12, 12), "with b >= 1"),
        (torch.zeros(2, 3, 12, 12, dtype=torch.uint8), "dtype torch.uint8, expected floating point"),
    ],
)
def test_wrong_images_are_refused(unchecked, pixels, message):
    with pytest.raises(ValueError, match=message):
        CLIP(SMALL).encode_image(pixels)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([1, 2, 49]), "expected token ids"),
        (torch.zeros(0, 4, dtype=torch.int64), "expected token ids"),
        (torch.tensor([[1.0, 49.0]]), "torch.float32"),
        (torch.full((1, 10), 49), "10 positions, expected at most 9"),
        (torch.tensor([[1, 50]]), "expected 0 to 49"),
        (torch.tensor([[-1, 49]]), "expected 0 to 49"),
        (torch.tensor([[1, 49], [1, 2]]), "text 1 has no end-of-text token, expected 49 in each row"),
    ],
)
def test_wrong_texts_are_refused(unchecked, ids, message):
    with pytest.raises(ValueError, match=message):
        CLIP(SMALL).encode_text(ids)


def test_batches_that_are_no_pairs_are_refused():
    model = CLIP(SMALL)
    with pytest.raises(ValueError, match="4 images with 3 texts, expected pairs"):
        model.loss(images(), texts(b=3))
    with pytest.raises(ValueError, match="2 images with 5 texts, expected pairs"):
        contrastive_loss(torch.zeros(2, 5))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_features_without_a_direction_are_refused(value):
    features = torch.randn(3, 4)
    features[1] = value
    with pytest.raises(ValueError, match=r"feature 1 has length (0\.0|nan|inf), expected a finite one above 0"):
        unit(features)


def test_an_image_that_is_not_finite_is_refused():
    pixels = images()
    pixels[2, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="feature 2 has length nan"):
        CLIP(SMALL).encode_image(pixels)


def test_pixels_of_a_patch_reach_the_feature():
    model, pixels = CLIP(SMALL), images(b=1).requires_grad_()
    model.image(pixels).sum().backward()
    assert (pixels.grad != 0).all()


# What the mutants of `make mutants` showed to be without a judge here.


def test_the_loss_is_that_of_the_logits(randomise):
    model, pairs = randomise(CLIP(SMALL)), (images(), texts())
    assert_close(model.loss(*pairs), contrastive_loss(model(*pairs)))


def test_pairs_are_counted_before_anything_is_gathered():
    def gather(features):
        raise AssertionError("gathered")

    with pytest.raises(ValueError, match="4 images with 3 texts, expected pairs"):
        CLIP(SMALL).loss(images(), texts(b=3), gather=gather)


def test_the_end_of_a_text_may_be_token_0():
    assert replace(SMALL, eot=0).eot_id == 0


def test_the_default_preset_takes_changes_too():
    assert CLIPConfig.vit_b_32(d_embed=5).d_embed == 5


def test_tokens_are_named():
    with pytest.raises(ValueError, match=r"^tokens has token ids"):
        CLIP(SMALL).encode_text(torch.tensor([[50, 49]]))


def test_a_short_feature_has_a_direction():
    assert_close(unit(torch.tensor([[0.03, 0.04]])), torch.tensor([[0.6, 0.8]]))


def test_sizes_are_read_off_the_shapes():
    def sizes(d_image: int, d_text: int, side: int) -> dict:
        shapes = {
            "visual.conv1.weight": (d_image, 3, 4, 4),
            "visual.positional_embedding": (side**2 + 1, d_image),
            "visual.transformer.resblocks.0.mlp.c_fc.weight": (5, d_image),
            "token_embedding.weight": (50, d_text),
            "positional_embedding": (9, d_text),
            "transformer.resblocks.0.mlp.c_fc.weight": (7, d_text),
            "text_projection": (d_text, 6),
        }
        return from_openai({name: torch.zeros(shape) for name, shape in shapes.items()})[0]

    found = sizes(192, 128, 3)
    assert (found["n_image_heads"], found["n_text_heads"], found["image_size"]) == (3, 2, 12)
    found = sizes(126, 32, 2)
    assert (found["n_image_heads"], found["n_text_heads"], found["image_size"]) == (1, 1, 8)
    assert type(found["n_image_heads"]) is type(found["n_text_heads"]) is int
    assert sizes(32, 126, 2)["n_image_heads"] == sizes(32, 126, 2)["n_text_heads"] == 1


def test_positions_that_are_no_weights_are_left_out():
    old = {f"{tower}.embeddings.position_ids": torch.arange(3)[None] for tower in ("vision_model", "text_model")}
    assert our_names(old | {"logit_scale": torch.tensor(1.0)}, TRANSFORMERS) == {"log_scale": torch.tensor(1.0)}
