"""Labelled images in folders of one's own: `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, read when they are needed."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from paperwalk.data.decode import opened

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class FolderSplit(NamedTuple):
    """Files, and their labels, which index `classes`."""

    files: list[Path]
    labels: Int64[Tensor, " b"]
    classes: tuple[str, ...]


def read_folder(folder: str | Path, split: str) -> FolderSplit:
    """The images of `folder/split`, a folder a class, classes and files in alphabetical order.

    Raises:
        ValueError: no such folder, or no class or no image in it.
        PermissionError: it may not be read.
    """
    place = Path(folder) / split
    if not place.is_dir():
        raise ValueError(f"no folder {place}, expected train/CLASS/ and val/CLASS/ with images in them")
    if not os.access(place, os.R_OK | os.X_OK):
        raise PermissionError(f"{place} may not be read")
    classes = sorted(each.name for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(each for each in (place / name).iterdir() if each.suffix.lower() in SUFFIXES)
        files += found
        labels += [label] * len(found)
    if not files:
        raise ValueError(f"{place} holds no images, expected CLASS/*.jpg, .png, .webp or .bmp")
    return FolderSplit(files, torch.tensor(labels), tuple(classes))


def folder_sha256(folder: str | Path) -> str:
    """SHA-256 of the names and sizes of all files: what is in them is not read."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_image(path: Path, size: int) -> UInt8[Tensor, "3 h w"]:
    """One image: the shorter side scaled to `size` pixels, the middle cut out.

    Raises:
        ValueError: not an image.
    """
    from PIL import Image, ImageOps

    with opened(path, FORMATS, f"{path} is not an image") as image:
        fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def read_images(paths: Iterable[Path], size: int) -> UInt8[Tensor, "b 3 h w"]:
    """The images, eight at a time."""
    with ThreadPoolExecutor(8) as pool:
        return torch.stack(list(pool.map(lambda path: read_image(path, size), paths)))
