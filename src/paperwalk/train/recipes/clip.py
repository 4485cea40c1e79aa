"""CLIP on pictures with captions: the emoji, or a file of one's own."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, distributed, nn

from paperwalk.checkpoints import load_exactly
from paperwalk.clip import CLIP, CLIPConfig, unit
from paperwalk.data import load
from paperwalk.data.captions import (
    Captioned,
    Phrases,
    captioned_emoji,
    full_caption,
    may_mirror,
    read_captioned,
    sample_caption,
)
from paperwalk.data.emoji import SIDE
from paperwalk.data.pictures import N_DRAWS, augment, on_white, read_pictures
from paperwalk.data.table import RECIPES as DATASETS
from paperwalk.mae import MAE
from paperwalk.metrics import bootstrap_interval
from paperwalk.tokenizers import ClipTokenizer
from paperwalk.train.task import (
    Batch,
    Metrics,
    Recipe,
    Task,
    cut,
    figure,
    file_sha256,
    generator,
    spaced,
    weights_sha256,
)
from paperwalk.zero_shot import classify, encode_images, encode_texts, found_among, nearest

# Of a picture, and orders of a caption's phrases, averaged in evaluation.
VIEWS = 8
AMONG = 5


@dataclass(frozen=True)
class Sampling:
    """What to look up.

    Args:
        captions: texts; of each, the nearest held-out pictures are named.
        n: how many.
        picture: a picture file instead: how probable each caption is for it.
    """

    captions: tuple[str, ...] = ("animal", "red fruit", "angry face")
    n: int = 5
    picture: Path | None = None


# 4 layers of 128 on pictures of 32 pixels, 2 of 128 on captions of up to 32 tokens.
_SMALL = CLIPConfig(
    image_size=32,
    patch_size=4,
    d_image=128,
    n_image_layers=4,
    n_image_heads=4,
    d_image_mlp=512,
    vocab_size=1_500,
    block_size=32,
    d_text=128,
    n_text_layers=2,
    n_text_heads=4,
    d_text_mlp=512,
    d_embed=128,
)


@dataclass(frozen=True)
class CLIPRecipe(Recipe):
    """Train a CLIP.

    Args:
        data: "emoji", or a file of pictures and captions, .tsv or .jsonl.
        artist: of the emoji, whose pictures are trained on.
        vocabulary: byte pairs learned from the training captions, `model.vocab_size` of them, or the published ones.
        keywords: probability of each keyword in a training caption; a file has none.
        start: folder of a masked autoencoder, with whose encoder the image tower begins.
        model: sizes; the vocabulary is that of the tokenizer.
    """

    paper: ClassVar[str] = "clip"
    Sampling: ClassVar[type] = Sampling
    PRESETS: ClassVar = {
        "small": _SMALL,
        # An image tower of the sizes of `checkpoints/mae-cifar10`.
        "on-mae": replace(_SMALL, d_image=192, n_image_layers=6, n_image_heads=3, d_image_mlp=768),
        "vit-b-32": CLIPConfig.vit_b_32(),
        "vit-b-16": CLIPConfig.vit_b_16(),
        "vit-l-14": CLIPConfig.vit_l_14(),
    }

    warmup: float = 0.05
    weight_decay: float = 0.2
    beta2: float = 0.98
    steps: int | None = 3_000
    data: str = "emoji"
    artist: Literal["all", "google", "twitter"] = "all"
    vocabulary: Literal["learned", "published"] = "learned"
    keywords: float = 0.5
    start: str | None = None
    model: CLIPConfig = field(default_factory=lambda: CLIPRecipe.PRESETS["small"])

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.keywords <= 1:
            raise ValueError(f"keywords is {self.keywords}, expected 0 to 1")

    @classmethod
    def named(cls) -> dict[str, "CLIPRecipe"]:
        """The recipes by name."""
        # For `--start checkpoints/mae-cifar10`.
        emoji = cls(model=cls.PRESETS["on-mae"], steps=2_000, lr=5e-4)
        return {
            "emoji-cpu": emoji,
            "emoji-google-cpu": replace(emoji, artist="google", steps=1_000),
            # Tables 18 and 20, ViT-B/32: as many pairs as 32 passes over 400 million, 2,000 steps of warm-up.
            "paper": cls(
                data="pairs.tsv",
                vocabulary="published",
                model=cls.PRESETS["vit-b-32"],
                epochs=32.0,
                steps=None,
                batch_size=32_768,
                lr=5e-4,
                warmup=2_000 / (32 * 400e6 / 32_768),
            ),
        }

    def examples(self) -> tuple[Captioned, ClipTokenizer]:
        """The pictures with their captions, and the tokenizer.

        Raises:
            ValueError: no such data, a damaged file, or data that do not fit the recipe.
        """
        data, tokenizer = _read(self.data, self.vocabulary, self.model.vocab_size)
        if self.data == "emoji" and self.model.image_size != SIDE:
            raise ValueError(f"model.image_size is {self.model.image_size}, expected {SIDE}: that of the emoji")
        if self.artist != "all" and self.artist not in data.artists:
            raise ValueError(f"artist is {self.artist!r}, expected 'all': {self.data} names no artists")
        return data, tokenizer

    def data_sha256(self) -> dict[str, str]:
        """Name of the data → SHA-256 of its content; of a file, not of the pictures that it names."""
        return {self.data: DATASETS[self.data].sha256 if self.data == "emoji" else file_sha256(self.data)}

    def start_sha256(self) -> dict[str, str]:
        """Of the masked autoencoder begun with."""
        return weights_sha256(self.start)

    def build(self) -> CLIP:
        """The untrained model, by the sizes of the recipe alone."""
        return CLIP(self.model)

    def begun(self, vocab_size: int) -> CLIP:
        """The untrained model for so many tokens, its image tower with the encoder that `start` holds.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: it holds no masked autoencoder, or one of other sizes.
        """
        model = CLIP(replace(self.model, vocab_size=vocab_size, eot=None))
        if self.start is not None:
            load_encoder(model, MAE.from_pretrained(self.start))
        return model

    def forward_flops(self) -> int:
        """FLOPs of a picture and a text of `block_size` tokens."""
        return sum(self.model.forward_flops())

    def example_size(self) -> str:
        """A pair, in words."""
        side = self.model.image_size
        return f"an image of {side} x {side} pixels and a text of {self.model.block_size} tokens"

    def adamw(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW with the paper's ε for Vision Transformers (Table 18)."""
        optimiser = super().adamw(model)
        for group in optimiser.param_groups:
            group["eps"] = 1e-6
        return optimiser

    def batch(
        self, data: Captioned, tokenizer: ClipTokenizer, step: int, part: int = 0, parts: int = 1
    ) -> tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, "b t"], list[int]]:
        """The pictures, captions and subjects of a part of a step's batch.

        No two of the batch are of one group: a wrong caption in it is nearly always really wrong.

        Raises:
            ValueError: the parts would not be of one size.
        """
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected a multiple of {parts}, the number of processes"
            )
        groups = random.Random(f"{self.seed} {step}").sample(data.groups, self.batch_size)
        draws = torch.rand(self.batch_size, N_DRAWS, generator=generator(self.seed, step))
        chosen, pictures, captions = [], [], []
        for i in cut(torch.arange(self.batch_size), part, parts).tolist():
            rng = random.Random(f"{self.seed} {step} {i}")
            subject = rng.choice(groups[i])
            chosen.append(subject)
            pictures.append(rng.choice(data.pictures[subject]))
            captions.append(sample_caption(data.phrases[subject], rng, self.keywords))
        mirror = may_mirror([data.phrases[i] for i in chosen])
        views = augment(read_pictures(pictures, self.model.image_size), mirror, cut(draws, part, parts))
        tokens = tokenizer(captions, self.model.block_size)
        # Columns that are padding in every row cost time and change nothing.
        longest = int((tokens == tokenizer.eot_id).int().argmax(dim=1).max()) + 1
        return views, tokens[:, :longest], chosen

    def task(self) -> Task:
        """Find the caption of each picture of a batch, and the picture of each caption."""
        data, tokenizer = self.examples()
        if self.artist != "all":
            data = data.only(self.artist)
        steps = self.steps_of(len(data.groups))
        model = self.begun(tokenizer.vocab_size)

        def batch(step: int, part: int, parts: int) -> Batch:
            return self.batch(data, tokenizer, step, part, parts)[:2]

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            return model.loss(*batch, gather=gathered), self.batch_size

        return Task(model, self.adamw(model), self.cosine(steps), steps, batch, loss, whole_batch=True)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The weights, in half precision, and the tokenizer."""
        model.save_pretrained(folder, bits=16)
        self.examples()[1].save(folder)

    def load(self, folder: Path) -> CLIP:
        """The model that `save` wrote."""
        return CLIP.from_pretrained(folder)

    def check_tokens(self, folder: Path) -> None:
        """Raise a ValueError when the captions have other tokens than the model in the folder knows."""
        if self.examples()[1].merges != ClipTokenizer.load(folder).merges:
            raise ValueError(f"the tokens of {self.data} are not those that the model in {folder} was trained on")

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Metrics:
        """Recall at 5 among all held-out subjects, in both directions, for each artist, trained on or not."""
        data, tokenizer = self.examples()
        pictures, captions = held_out_features(model, data, tokenizer)
        asked = torch.arange(len(captions))[spaced(len(captions), limit)]
        metrics = {}
        for artist, features in zip(data.artists, pictures, strict=True):
            cosines = (features @ captions.T).cpu()
            for direction, scores in (("image to text", cosines), ("text to image", cosines.T)):
                found = found_among(AMONG, scores[asked], asked).float().tolist()
                value = figure(sum(found) / len(found), bootstrap_interval(found), len(found))
                metrics[f"recall at {AMONG}, {artist}, {direction}"] = value
        return metrics

    def sample(self, model: nn.Module, folder: Path, how: Sampling) -> str:
        """Each caption with the held-out pictures nearest to it; or how probable it is for a picture."""
        tokenizer = ClipTokenizer.load(folder)
        if how.picture is not None:
            pixels = on_white(read_pictures([how.picture], self.model.image_size))
            (shares,) = classify(model, tokenizer, pixels, how.captions, ["{}"]).tolist()
            ranked = sorted(zip(shares, how.captions, strict=True), reverse=True)
            return "\n".join(f"{share:.3f}\t{caption}" for share, caption in ranked)
        data, _ = self.examples()
        pictures = [picture_features(model, data, k, data.held_out) for k in range(len(data.artists))]
        names = [f"{data.phrases[i][0]} ({artist})" for artist in data.artists for i in data.held_out]
        order, cosines = nearest(encode_texts(model, tokenizer, how.captions), torch.cat(pictures), how.n)
        lines = []
        for caption, best, near in zip(how.captions, order.tolist(), cosines.tolist(), strict=True):
            found = [f"{names[i]} {cosine:.2f}" for i, cosine in zip(best, near, strict=True)]
            lines.append(f"{caption}\t{', '.join(found)}")
        return "\n".join(lines)


def load_encoder(clip: CLIP, mae: MAE) -> None:
    """Copy the encoder of a masked autoencoder into the image tower; its first norm and its projection stay.

    Raises:
        ValueError: their sizes differ.
    """
    names = {"image_size": "image_size", "patch_size": "patch_size", "d_model": "d_image", "n_layers": "n_image_layers"}
    names |= {"n_heads": "n_image_heads", "d_mlp": "d_image_mlp"}
    for theirs, ours in names.items():
        found, expected = getattr(clip.config, ours), getattr(mae.config, theirs)
        if found != expected:
            raise ValueError(f"model.{ours} is {found}, expected {expected}: that of the encoder")
    weights = mae.encoder_weights()
    # The tower embeds patches without a bias; added to each place it is the same.
    weights["positions.weight"][1:] += weights.pop("patch_embedding.proj.bias")
    load_exactly(clip.image, clip.image.state_dict() | weights)


def gathered(features: Float[Tensor, "b e"]) -> Float[Tensor, "b_all e"]:
    """The features of the whole batch, where several processes hold a part each; gradients go back to each."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(features))


def picture_features(model: CLIP, data: Captioned, artist: int, subjects: Sequence[int]) -> Float[Tensor, "b e"]:
    """The mean of the unit vectors of each picture, as it is (twice) and in eight random views; a unit vector again."""
    pictures = read_pictures([data.pictures[i][artist] for i in subjects], model.config.image_size)
    mirror = may_mirror([data.phrases[i] for i in subjects])
    draws = torch.rand(VIEWS, len(pictures), N_DRAWS, generator=generator(0, 0))
    views = [encode_images(model, augment(pictures, mirror, each)) for each in draws]
    return unit(2 * encode_images(model, on_white(pictures)) + sum(views))


def caption_features(model: CLIP, tokenizer: ClipTokenizer, subjects: Sequence[Phrases]) -> Float[Tensor, "b e"]:
    """The mean of each caption's unit vectors, in its own order and in eight random ones; a unit vector again.

    It is the paper's ensemble of prompts (Section 3.1.4): the order of a list of words says nothing.
    """
    rng = random.Random(0)
    orders = [subjects, *([rng.sample(phrases, len(phrases)) for phrases in subjects] for _ in range(VIEWS))]
    return unit(sum(encode_texts(model, tokenizer, [full_caption(each) for each in order]) for order in orders))


def held_out_features(
    model: CLIP, data: Captioned, tokenizer: ClipTokenizer
) -> tuple[list[Float[Tensor, "b e"]], Float[Tensor, "b e"]]:
    """The unit vectors of the held-out pictures of each artist, and of their captions."""
    pictures = [picture_features(model, data, k, data.held_out) for k in range(len(data.artists))]
    return pictures, caption_features(model, tokenizer, [data.phrases[i] for i in data.held_out])


@cache
def _read(data: str, vocabulary: str, vocab_size: int) -> tuple[Captioned, ClipTokenizer]:
    if data == "emoji":
        captioned = captioned_emoji()
    elif Path(data).is_file():
        captioned = read_captioned(data)
    else:
        raise ValueError(f"unknown data {data!r}, expected emoji, or a file of pictures and captions, .tsv or .jsonl")
    if vocabulary == "published":
        return captioned, ClipTokenizer.parse(load("clip-vocabulary").text)
    return captioned, ClipTokenizer.train(captioned.training_captions(), vocab_size)
