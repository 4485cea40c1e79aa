"""Labelled images to train on and held out: a data set by name, or a folder of one's own."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from paperwalk.data import load, to_float
from paperwalk.data.folder import FolderSplit, folder_sha256, read_folder, read_images
from paperwalk.data.table import RECIPES as DATASETS

NAMES = ("mnist", "mnist-5k", "cifar10")


class Images(NamedTuple):
    """A split: pixels in 0..255 in memory, or the files that they are in; and labels."""

    images: Tensor | FolderSplit
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, rows: Int64[Tensor, " b"], size: int) -> UInt8[Tensor, "b c h w"]:
        """The images of these rows, 0..255."""
        if isinstance(self.images, FolderSplit):
            return read_images([self.images.files[i] for i in rows.tolist()], size)
        return self.images[rows]


def read_splits(data: str, model: Any) -> tuple[Images, Images]:
    """What is trained on, and what is held out.

    Args:
        data: one of `NAMES`, or a folder with train/CLASS/ and val/CLASS/ in it.
        model: a configuration whose `in_channels`, `image_size` and, if it has them, `n_classes` must be the data's.

    Raises:
        ValueError: no such data, or the model's sizes are not the data's.
    """
    train, test = _read(data)
    first = train.pixels(torch.tensor([0]), model.image_size)[0]
    expected = {"in_channels": first.shape[0], "image_size": first.shape[1], "n_classes": len(train.classes)}
    for name, value in expected.items():
        if getattr(model, name, value) != value:
            raise ValueError(f"model.{name} is {getattr(model, name)}, expected {value}: that of {data}")
    return train, test


def data_sha256(data: str) -> dict[str, str]:
    """Name of the data → SHA-256 of its content; of a folder, of the names and sizes of its files."""
    return {data: DATASETS[data].sha256 if data in NAMES else folder_sha256(data)}


def normalise(pixels: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """0..255 → −1..1, as the official code of ViT does."""
    return 2 * to_float(pixels) - 1


@cache
def _read(data: str) -> tuple[Images, Images]:
    if data in NAMES:
        dataset = load(data)
        return tuple(Images(split.images, split.labels, dataset.classes) for split in (dataset.train, dataset.test))
    if not Path(data).is_dir():
        raise ValueError(f"unknown data {data!r}, expected one of {', '.join(NAMES)}, or a folder with train/ and val/")
    found = [read_folder(data, split) for split in ("train", "val")]
    if found[0].classes != found[1].classes:
        differ = sorted(set(found[0].classes) ^ set(found[1].classes))
        raise ValueError(
            f"{data}: train/ and val/ differ in the classes {', '.join(differ)}, expected the same folders"
        )
    return tuple(Images(split, split.labels, split.classes) for split in found)
