"""A small CLIP on emoji: contrastive against bag-of-words prediction, the temperature; and the long recipe.

The claims are those of Radford et al. 2021, Figure 2 (predicting a caption's words learns more slowly than telling
captions apart) and Section 2.5 (the learned temperature), scaled down: the same steps and images, three seeds. Run:
`python -m paperwalk.experiments.clip` (about 10 minutes on one thread); it writes clip.json beside this file.

`--recipe FOLDER` trains the shipped checkpoint instead, `--artist google` on one artist's pictures only. Run again, it
goes on where it stopped.
"""

import argparse
import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from paperwalk.clip import CLIP, CLIPConfig, ImageTower, contrastive_loss, unit
from paperwalk.data import Concept, load, to_float
from paperwalk.data.emoji import held_out_families
from paperwalk.experiments import run_missing, train_steps
from paperwalk.tokenizers import ClipTokenizer
from paperwalk.train import fast_dtype, fit
from paperwalk.zero_shot import encode_images, encode_texts, recall_at

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
BATCH = 128
BLOCK = 32
VOCABULARY = 1_500
# Of a picture, and orders of a caption's words, averaged at test time.
VIEWS = 8
# Words that a mirror image would make wrong; letters and digits too.
NO_MIRROR = ("left", "right", "button", "keycap", "clock", "input", "mark", "clef", "letter")

FLAGS = ("country flags", "subdivision flags")

SMALL = CLIPConfig(
    image_size=32,
    patch_size=8,
    d_image=128,
    n_image_layers=3,
    n_image_heads=4,
    d_image_mlp=512,
    vocab_size=VOCABULARY,
    block_size=BLOCK,
    d_text=128,
    n_text_layers=2,
    n_text_heads=4,
    d_text_mlp=512,
    d_embed=128,
)
STEPS = 160
EVALUATED = (40, 80, 120, 160)
LR = 1e-3
OBJECTIVES = ("CLIP", "bag of words, contrastive", "bag of words, predicted")
TEMPERATURES = {"fixed at 1": 1.0, "fixed at 0.07": 0.07, "fixed at 0.01": 0.01}

RECIPE = replace(SMALL, d_image=192, n_image_layers=4, n_image_heads=6, d_image_mlp=768)
RECIPE_STEPS = 4_500
WARMUP = 0.05
DECAY = 0.2


class Emoji(NamedTuple):
    """Concepts to learn from, in families, and those held out, one of each family; with every concept's pictures."""

    images: UInt8[Tensor, "artists concepts 4 h w"]
    concepts: tuple[Concept, ...]
    artists: tuple[str, ...]
    families: list[list[int]]
    held_out: list[int]
    mirrors: Tensor
    tokenizer: ClipTokenizer


def emoji() -> Emoji:
    """The emoji, 200 families of them held out by hash, and a vocabulary learned from the captions of the others.

    Flags of countries and of their parts are left out: a country's name does not say what its flag looks like.
    """
    data = load("emoji")
    members: dict[str, list[int]] = {}
    for i, concept in enumerate(data.concepts):
        if concept.kind not in FLAGS:
            members.setdefault(concept.family, []).append(i)
    secret = set(held_out_families(list(members)))
    families = [found for family, found in members.items() if family not in secret]
    held_out = [found[0] for family, found in members.items() if family in secret]
    captions = [full_caption(data.concepts[i]) for family in families for i in family]
    mirrors = [not any(word in full_caption(concept).lower() for word in NO_MIRROR) for concept in data.concepts]
    tokenizer = ClipTokenizer.train(captions, VOCABULARY)
    return Emoji(data.images, data.concepts, data.artists, families, held_out, torch.tensor(mirrors), tokenizer)


def full_caption(concept: Concept, *, kind: bool = True) -> str:
    """The name, the kind and all keywords: what a concept is looked up by."""
    return ", ".join((concept.name, *[concept.kind] * kind, *concept.keywords))


def sample_caption(concept: Concept, rng: random.Random) -> str:
    """A caption as it is trained on: each keyword, and the kind, every other time, in any order, mostly with the name.

    No two passes see the same caption, so that words are learned rather than captions.
    """
    words = [word for word in (*concept.keywords, concept.kind) if rng.random() < 0.5]
    rng.shuffle(words)
    if words and rng.random() < 0.2:
        return ", ".join(words)
    return ", ".join([concept.name, *words] if rng.random() < 0.5 else [*words, concept.name])


def on_white(pictures: UInt8[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures on a white ground, from −1 to 1: what the model is evaluated on."""
    pixels = to_float(pictures)
    return 2 * (pixels[:, :3] * pixels[:, 3:] + 1 - pixels[:, 3:]) - 1


def turned(pictures: Float[Tensor, "b 4 h w"], mirror: Tensor, generator: torch.Generator) -> Float[Tensor, "b 4 h w"]:
    """Each picture turned by up to 20°, scaled, sheared, moved, and mirrored every other time where `mirror` allows."""

    def draw(size: float) -> Tensor:
        return size * (2 * torch.rand(b, generator=generator) - 1)

    b = len(pictures)
    angle, scale, aspect, shear = draw(0.35), draw(0.25).exp(), draw(0.12).exp(), draw(0.15)
    x, y = draw(0.2), draw(0.2)
    side = torch.where((torch.rand(b, generator=generator) < 0.5) & mirror, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    first = torch.stack([side * aspect * cos, shear - aspect * sin, x], dim=1)
    second = torch.stack([side * sin / aspect, cos / aspect, y], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def augment(pictures: UInt8[Tensor, "b 4 h w"], mirror: Tensor, generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Pictures as they are trained on: turned, on any ground, in other colours, with a patch covered; from −1 to 1."""
    b, _, h, w = pictures.shape

    def uniform(channels: int) -> Tensor:
        return torch.rand(b, channels, 1, 1, generator=generator)

    def jitter(size: float, channels: int = 1) -> Tensor:
        return (size * (2 * uniform(channels) - 1)).exp()

    pixels = to_float(pictures)
    # Colours times opacity can be interpolated; a transparent pixel has no colour to mix in.
    pixels = turned(torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], dim=1), mirror, generator)
    ground = torch.where(uniform(1) < 0.5, uniform(3), torch.ones(1))
    x = (pixels[:, :3] + (1 - pixels[:, 3:]) * ground) * jitter(0.3)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * jitter(0.3)
    grey = x.mean(dim=1, keepdim=True)
    x = ((grey + (x - grey) * jitter(0.4)) * jitter(0.1, 3)).clamp(0, 1)
    rows, columns = torch.arange(h).view(1, 1, h, 1), torch.arange(w).view(1, 1, 1, w)
    covered = ((rows - h * uniform(1)).abs() < h / 7) & ((columns - w * uniform(1)).abs() < w / 7)
    return 2 * torch.where(covered & (uniform(1) < 0.5), uniform(3), x) - 1


def batch(
    data: Emoji, step: int, seed: int = 0, artists: Sequence[int] = (0, 1), size: int = BATCH
) -> tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, "b t"], list[int]]:
    """The pictures, captions and concepts of a step: drawn from the seed and the step's number alone.

    No two are of one family: a wrong caption in the batch is really wrong.
    """
    rng = random.Random(seed * 10**9 + step)
    chosen = [rng.choice(family) for family in rng.sample(data.families, size)]
    drawn = torch.tensor([rng.choice(artists) for _ in chosen])
    generator = torch.Generator().manual_seed(seed * 10**9 + step)
    rows = torch.tensor(chosen)
    pictures = augment(data.images[drawn, rows], data.mirrors[rows], generator)
    tokens = data.tokenizer([sample_caption(data.concepts[i], rng) for i in chosen], BLOCK)
    # Columns that are padding in every row cost time and change nothing.
    longest = int((tokens == data.tokenizer.eot_id).int().argmax(dim=1).max()) + 1
    return pictures, tokens[:, :longest], chosen


def lr_at(step: int, steps: int, peak: float = LR) -> float:
    """Up in a line over the first steps, then a cosine down to zero."""
    warmup = WARMUP * steps
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup)))


def adamw(groups: Any) -> torch.optim.Optimizer:
    """AdamW as the paper has it for its Vision Transformers (Table 20); `groups` are `CLIP.parameter_groups`."""
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), eps=1e-6, fused=True)


def recalls(images: Float[Tensor, "b e"], texts: Float[Tensor, "b e"], n: int = 5) -> dict[str, float]:
    """Recall at n in both directions."""
    return {"image to text": recall_at(n, images, texts), "text to image": recall_at(n, texts, images)}


def picture_features(model: CLIP, pictures: UInt8[Tensor, "b 4 h w"], mirror: Tensor) -> Float[Tensor, "b e"]:
    """The mean of the unit vectors of each picture, as it is (twice) and in eight random views; a unit vector again."""
    generator = torch.Generator().manual_seed(0)
    views = [augment(pictures, mirror, generator) for _ in range(VIEWS)]
    plain = encode_images(model, on_white(pictures))
    return unit(2 * plain + sum(encode_images(model, view) for view in views))


def caption_features(
    model: CLIP, tokenizer: ClipTokenizer, concepts: Sequence[Concept], *, kind: bool = True
) -> Float[Tensor, "b e"]:
    """The mean of each caption's unit vectors, in its own order and in eight random ones, a unit vector again.

    It is the paper's ensemble of prompts (Section 3.1.4): the order of a list of words says nothing.
    """
    rng = random.Random(0)
    orders = [[full_caption(concept, kind=kind) for concept in concepts]]
    for _ in range(VIEWS):
        orders.append([", ".join(rng.sample(parts, len(parts))) for parts in (x.split(", ") for x in orders[0])])
    return unit(sum(encode_texts(model, tokenizer, captions) for captions in orders))


def held_out_features(model: CLIP, data: Emoji) -> tuple[list[Tensor], Tensor]:
    """The unit vectors of the held-out pictures of each artist, and of their captions."""
    mirror = data.mirrors[data.held_out]
    pictures = [picture_features(model, artist[data.held_out], mirror) for artist in data.images]
    return pictures, caption_features(model, data.tokenizer, [data.concepts[i] for i in data.held_out])


def evaluate(model: CLIP, data: Emoji) -> dict[str, dict[str, float]]:
    """Recall at 5 among the held-out concepts, of each artist's pictures and their captions, in both directions."""
    pictures, captions = held_out_features(model, data)
    return {artist: recalls(found, captions) for artist, found in zip(data.artists, pictures, strict=True)}


class BagOfWords(nn.Module):
    """The image tower with captions as bags of words: told apart (as CLIP) or predicted word by word.

    Predicting, each word of the caption is a class of a softmax over the vocabulary, as in Joulin et al. 2016. A
    caption's score for an image is then the mean over its words of log p(word | image) − log p(word).
    """

    def __init__(self, config: CLIPConfig, *, contrastive: bool):
        super().__init__()
        self.contrastive = contrastive
        self.image = ImageTower(config)
        self.words = nn.Embedding(config.vocab_size, config.d_embed)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.words.weight, std=config.d_embed**-0.5)

    def bags(self, tokens: Int64[Tensor, "b t"]) -> Float[Tensor, "b v"]:
        """The share of each token in a text, without the frame."""
        v = self.words.num_embeddings
        counts = F.one_hot(tokens, v)[..., : v - 2].sum(dim=1).float()
        # 0 is the padding.
        counts[:, 0] = 0
        return F.pad(counts, (0, 2)) / counts.sum(dim=1, keepdim=True)

    def loss(self, images: Tensor, tokens: Tensor) -> Float[Tensor, ""]:
        """In nats: of telling captions apart, or of a word."""
        bags = self.bags(tokens)
        if self.contrastive:
            return contrastive_loss(self.log_scale.exp() * unit(self.image(images)) @ unit(bags @ self.words.weight).T)
        return -(bags * self.log_p(images)).sum(dim=1).mean()

    def log_p(self, images: Tensor) -> Float[Tensor, "b v"]:
        """Log-probability of each word."""
        return F.linear(self.image(images), self.words.weight, self.bias).log_softmax(dim=1)

    @torch.no_grad()
    def scores(self, images: Tensor, tokens: Tensor, log_prior: Tensor) -> Float[Tensor, "b_images b_texts"]:
        """How well each text fits each image."""
        if self.contrastive:
            return unit(self.image(images)) @ unit(self.bags(tokens) @ self.words.weight).T
        return (self.log_p(images) - log_prior) @ self.bags(tokens).T


def recall_of_scores(scores: Float[Tensor, "b b2"], n: int = 5) -> float:
    """As `zero_shot.recall_at`, from the scores themselves: rows are queries."""
    return ((scores >= scores.diagonal()[:, None]).sum(dim=1) <= n).float().mean().item()


def held_out_recall(model: nn.Module, data: Emoji) -> float:
    """Recall at 5, the mean over artists and directions; of a CLIP or of a bag of words."""
    captions = data.tokenizer([full_caption(data.concepts[i]) for i in data.held_out], BLOCK)
    model.eval()
    values = []
    for artist in data.images:
        pictures = on_white(artist[data.held_out])
        with torch.no_grad():
            if isinstance(model, CLIP):
                scores = model(pictures, captions)
            else:
                trained_on = data.tokenizer([full_caption(data.concepts[f[0]]) for f in data.families], BLOCK)
                scores = model.scores(pictures, captions, (model.bags(trained_on).mean(dim=0) + 1e-5).log())
        values += [recall_of_scores(scores), recall_of_scores(scores.T)]
    model.train()
    return sum(values) / len(values)


def train_small(
    model: nn.Module, data: Emoji, seed: int, steps: Iterable[int] = range(STEPS)
) -> tuple[list[float], dict[str, float]]:
    """A short training; the loss of each step, and the held-out recall after the steps of `EVALUATED`."""
    found: dict[str, float] = {}
    dtype = fast_dtype()
    matrices = [p for p in model.parameters() if p.ndim >= 2 and p.requires_grad]
    others = [p for p in model.parameters() if p.ndim < 2 and p.requires_grad]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]

    def loss(step: int) -> Tensor:
        if step in EVALUATED:
            found[str(step)] = held_out_recall(model, data)
        pictures, tokens, _ = batch(data, step, seed)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model.loss(pictures, tokens)

    losses = train_steps(model, adamw(groups), partial(lr_at, steps=STEPS), loss, steps)
    found[str(STEPS)] = held_out_recall(model, data)
    return losses, found


def make(name: str) -> nn.Module:
    """An untrained model of the experiment."""
    if name.startswith("bag"):
        return BagOfWords(SMALL, contrastive=name.endswith("contrastive"))
    model = CLIP(SMALL)
    if name in TEMPERATURES:
        nn.init.constant_(model.log_scale, -math.log(TEMPERATURES[name]))
        model.log_scale.requires_grad_(False)
    return model


def run_one(name: str, seed: int, data: Emoji) -> dict[str, Any]:
    """Train one model of the experiment; its held-out recall by steps, and its last scale."""
    torch.manual_seed(seed)
    model = make(name)
    _, found = train_small(model, data, seed)
    return {"recall": {step: round(value, 4) for step, value in found.items()}, "scale": model.log_scale.exp().item()}


def experiment() -> None:
    """Run what clip.json does not hold yet."""
    data = emoji()
    names = (*OBJECTIVES, *TEMPERATURES)
    runs = {f"{name} {seed}": partial(run_one, name, seed, data) for seed in SEEDS for name in names}
    run_missing(RESULTS, runs, steps=STEPS, batch=BATCH)


def recipe(folder: Path, artist: str | None = None, steps: int = RECIPE_STEPS) -> dict[str, Any]:
    """Train the shipped checkpoint into `folder`, on one artist's pictures or on all; returns its figures."""
    data = emoji()
    artists = range(len(data.artists)) if artist is None else [data.artists.index(artist)]
    torch.manual_seed(0)
    model = CLIP(replace(RECIPE, vocab_size=data.tokenizer.vocab_size))
    losses = fit(
        model,
        adamw(model.parameter_groups(DECAY)),
        partial(lr_at, steps=steps),
        lambda step: model.loss(*batch(data, step, artists=artists)[:2]),
        steps=steps,
        folder=folder,
        dtype=fast_dtype(),
    )
    model.save_pretrained(folder, bits=16)
    data.tokenizer.save(folder)
    figures = {
        "trained on": [data.artists[i] for i in artists],
        "recall at 5": evaluate(CLIP.from_pretrained(folder), data),
        "steps": steps,
        "images": steps * BATCH,
        "loss": sum(losses[-100:]) / len(losses[-100:]),
        "scale": model.scale().item(),
    }
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def main() -> None:
    """Run what clip.json does not hold yet, or the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, metavar="FOLDER", help="train the shipped checkpoint into FOLDER")
    parser.add_argument("--artist", choices=("google", "twitter"), help="train on the pictures of one artist only")
    parser.add_argument("--steps", type=int, default=RECIPE_STEPS)
    options = parser.parse_args()
    if options.recipe is None:
        experiment()
    else:
        print(json.dumps(recipe(options.recipe, options.artist, options.steps), indent=2))


if __name__ == "__main__":
    main()
