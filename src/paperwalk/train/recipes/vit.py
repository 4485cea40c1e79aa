"""ViT on labelled images: a data set by name, or a folder of one's own."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperwalk.data import load, to_float
from paperwalk.data.augment import draw_shifts_and_flips, shift_and_flip
from paperwalk.data.folder import FolderSplit, read_folder, read_images
from paperwalk.data.table import RECIPES as DATASETS
from paperwalk.metrics import bootstrap_interval
from paperwalk.train.task import Batch, Metrics, Recipe, Task, cut, figure, generator, shuffled, spaced
from paperwalk.vit import ViT, ViTConfig

NAMES = ("mnist", "mnist-5k", "cifar10")


class Images(NamedTuple):
    """A split: pixels in 0..255 in memory, or the files that they are in; and labels."""

    images: Tensor | FolderSplit
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, rows: Tensor, size: int) -> Tensor:
        """The images of these rows, uint8 (b c h w)."""
        if isinstance(self.images, FolderSplit):
            return read_images([self.images.files[i] for i in rows.tolist()], size)
        return self.images[rows]


@dataclass(frozen=True)
class ViTRecipe(Recipe):
    """Train a ViT.

    Args:
        data: "mnist", "mnist-5k", "cifar10", or a folder with train/CLASS/ and val/CLASS/ in it.
        model: sizes; `image_size`, `in_channels` and `n_classes` must be those of the data.
        smoothing: label smoothing ε.
        shift: training images are moved by up to so many pixels.
        flip: and mirrored, every other one.
    """

    paper: ClassVar[str] = "vit"
    PRESETS: ClassVar = {
        "tiny-32": ViTConfig(image_size=32, patch_size=4, n_classes=10, d_model=192, n_layers=6, n_heads=3, d_mlp=768),
        "tiny-28": ViTConfig(28, 7, in_channels=1, n_classes=10, d_model=64, n_layers=4, n_heads=4, d_mlp=128),
        "tiny-16": ViTConfig.tiny_16(),
        "small-16": ViTConfig.small_16(),
        "base-16": ViTConfig.base_16(),
        "base-32": ViTConfig.base_32(),
        "large-16": ViTConfig.large_16(),
        "huge-14": ViTConfig.huge_14(),
    }

    data: str = "cifar10"
    model: ViTConfig = field(default_factory=lambda: ViTRecipe.PRESETS["tiny-32"])
    smoothing: float = 0.1
    shift: int = 4
    flip: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}, expected at least 0 and below 1")
        if self.shift < 0:
            raise ValueError(f"shift is {self.shift}, expected at least 0 pixels")

    @classmethod
    def named(cls) -> dict[str, "ViTRecipe"]:
        """The recipes by name."""
        return {
            "cifar10-cpu": cls(epochs=30.0, batch_size=128, lr=1e-3),
            "mnist-cpu": cls(
                data="mnist",
                model=cls.PRESETS["tiny-28"],
                epochs=3.0,
                lr=4e-3,
                beta2=0.99,
                smoothing=0.0,
                shift=0,
                flip=False,
            ),
            # Table 3, ImageNet from scratch for ViT-B/16; the paper's Adam decays all weights by 0.3.
            "paper": cls(
                data="imagenet",
                model=ViTConfig.base_16(dropout=0.1),
                epochs=300.0,
                batch_size=4096,
                lr=3e-3,
                weight_decay=0.3,
                warmup=0.107,
                smoothing=0.0,
                shift=16,
            ),
        }

    def splits(self) -> tuple[Images, Images]:
        """What is trained on, and what is held out.

        Raises:
            ValueError: no such data, or the model's sizes are not the data's.
        """
        train, test = _read(self.data)
        first = train.pixels(torch.tensor([0]), self.model.image_size)[0]
        expected = {"in_channels": first.shape[0], "image_size": first.shape[1], "n_classes": len(train.classes)}
        for name, value in expected.items():
            if getattr(self.model, name) != value:
                raise ValueError(f"model.{name} is {getattr(self.model, name)}, expected {value}: that of {self.data}")
        return train, test

    def data_sha256(self) -> dict[str, str]:
        """Name of the data → SHA-256 of its content; a folder has none."""
        return {self.data: DATASETS[self.data].sha256} if self.data in NAMES else {}

    def build(self) -> ViT:
        """The untrained model."""
        return ViT(self.model)

    def forward_flops(self) -> int:
        """FLOPs of one image."""
        return self.model.forward_flops()

    def example_size(self) -> str:
        """An image, in words."""
        return f"an image of {self.model.image_size} x {self.model.image_size} pixels"

    def task(self) -> Task:
        """Classify each image."""
        train, _ = self.splits()
        steps, model = self.steps_of(len(train)), self.build()

        def batch(step: int, part: int, parts: int) -> Batch:
            rows = shuffled(len(train), self.batch_size, self.seed, step)
            draws = draw_shifts_and_flips(len(rows), self.shift, generator(self.seed + 1, step), flip=self.flip)
            rows, shifts, flips = (cut(each, part, parts) for each in (rows, *draws))
            pixels = shift_and_flip(train.pixels(rows, self.model.image_size), shifts, flips)
            return normalise(pixels), train.labels[rows]

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            images, labels = batch
            return F.cross_entropy(model(images), labels, label_smoothing=self.smoothing), len(labels)

        return Task(model, self.adamw(model), self.cosine(steps), steps, batch, loss)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The weights, in half precision."""
        model.save_pretrained(folder, bits=16)

    def load(self, folder: Path) -> ViT:
        """The model that `save` wrote."""
        return ViT.from_pretrained(folder)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, limit: int | None = None) -> Metrics:
        """Share of held-out images whose largest logit is their class."""
        _, test = self.splits()
        model.eval()
        device, right = next(model.parameters()).device, []
        for rows in torch.arange(len(test))[spaced(len(test), limit)].split(500):
            logits = model(normalise(test.pixels(rows, self.model.image_size)).to(device))
            right += (logits.argmax(1).cpu() == test.labels[rows]).int().tolist()
        return {"accuracy": figure(sum(right) / len(right), bootstrap_interval(right), len(right))}


def normalise(pixels: Tensor) -> Tensor:
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
