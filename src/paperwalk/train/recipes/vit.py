"""ViT on labelled images: a data set by name, or a folder of one's own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperwalk.checkpoints import load_exactly
from paperwalk.data.augment import draw_shifts_and_flips, shift_and_flip
from paperwalk.mae import MAE
from paperwalk.metrics import bootstrap_interval
from paperwalk.train.recipes.images import Images, data_sha256, normalise, read_splits
from paperwalk.train.task import (
    Batch,
    Metrics,
    Recipe,
    Task,
    cut,
    figure,
    generator,
    shuffled,
    spaced,
    weights_sha256,
)
from paperwalk.vit import ViT, ViTConfig


@dataclass(frozen=True)
class ViTRecipe(Recipe):
    """Train a ViT.

    Args:
        data: "mnist", "mnist-5k", "cifar10", or a folder with train/CLASS/ and val/CLASS/ in it.
        model: sizes; `image_size`, `in_channels` and `n_classes` must be those of the data.
        smoothing: label smoothing ε.
        shift: training images are moved by up to so many pixels.
        flip: and mirrored, every other one.
        start: folder of a masked autoencoder, with whose encoder the training begins (fine-tuning).
        labels: train on so many of the images only, which the seed chooses.
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
    start: str | None = None
    labels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}, expected at least 0 and below 1")
        if self.shift < 0:
            raise ValueError(f"shift is {self.shift}, expected at least 0 pixels")
        if self.labels is not None and self.labels < 1:
            raise ValueError(f"labels is {self.labels}, expected at least 1 image")

    @classmethod
    def named(cls) -> dict[str, "ViTRecipe"]:
        """The recipes by name."""
        return {
            "cifar10-cpu": cls(epochs=24.0, batch_size=128, lr=1e-3),
            # A tenth of the labels; with `start` it is fine-tuning, without it the comparison from scratch.
            "cifar10-finetune": cls(labels=5_000, epochs=5.0, smoothing=0.0),
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
            ValueError: as `read_splits`.
        """
        return read_splits(self.data, self.model)

    def data_sha256(self) -> dict[str, str]:
        """As `images.data_sha256`."""
        return data_sha256(self.data)

    def start_sha256(self) -> dict[str, str]:
        """Of the masked autoencoder begun with."""
        return weights_sha256(self.start)

    def build(self) -> ViT:
        """The untrained model."""
        return ViT(self.model)

    def begun(self) -> ViT:
        """The untrained model, with the encoder that `start` holds.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: it holds no masked autoencoder, or one of other sizes.
        """
        vit = self.build()
        if self.start is not None:
            load_encoder(vit, MAE.from_pretrained(self.start))
        return vit

    def forward_flops(self) -> int:
        """FLOPs of one image."""
        return self.model.forward_flops()

    def example_size(self) -> str:
        """An image, in words."""
        return f"an image of {self.model.image_size} x {self.model.image_size} pixels"

    def task(self) -> Task:
        """Classify each image."""
        train, _ = self.splits()
        model = self.begun()
        chosen = torch.randperm(len(train), generator=generator(self.seed + 2, 0))[: self.labels]
        steps = self.steps_of(len(chosen))

        def batch(step: int, part: int, parts: int) -> Batch:
            rows = chosen[shuffled(len(chosen), self.batch_size, self.seed, step)]
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


def load_encoder(vit: ViT, mae: MAE) -> None:
    """Copy the encoder of a masked autoencoder into a ViT, whose head is set to zero.

    Raises:
        ValueError: their sizes differ.
    """
    for name, value in mae.config.encoder_sizes().items():
        if getattr(vit.config, name) != value:
            raise ValueError(f"model.{name} is {getattr(vit.config, name)}, expected {value}: that of the encoder")
    load_exactly(vit, mae.encoder_weights(vit.config.n_classes))
