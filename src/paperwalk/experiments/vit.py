"""Does a ViT need more data than a convolutional network of the same cost? Accuracy on MNIST by training-set size.

The claim is that of Dosovitskiy et al. 2020, Section 4.3 and Figure 4, scaled down: both models, the same number of
steps, random subsets of the training set, three seeds. Run: `python -m paperwalk.experiments.vit` (about half an hour
on one thread); it writes vit.json beside this file.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from paperwalk.experiments import run_missing
from paperwalk.vit import ViT, ViTConfig

RESULTS = Path(__file__).with_suffix(".json")
SIZES = (100, 300, 1_000, 3_000, 10_000, 60_000)
SEEDS = (0, 1, 2)
STEPS = 1_300
BATCH = 128
PEAK_LR = 4e-3
# Mean and standard deviation of the MNIST training pixels.
MEAN, STD = 0.1307, 0.3081

VIT_MNIST = ViTConfig(
    image_size=28, patch_size=7, in_channels=1, n_classes=10, d_model=64, n_layers=4, n_heads=4, d_mlp=128
)


def conv_net() -> nn.Module:
    """Three 3 x 3 convolutions of 16, 36 and 76 channels, each halving the image: as many FLOPs as `VIT_MNIST`."""
    widths = (1, 16, 36, 76)
    stages = [
        stage
        for c_in, c_out in itertools.pairwise(widths)
        for stage in (nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2))
    ]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def recipe() -> dict[str, Any]:
    """What the stored numbers were made with; stored beside them, so that a change here shows."""
    return {"vit": asdict(VIT_MNIST), "steps": STEPS, "batch": BATCH, "peak_lr": PEAK_LR}


def mnist() -> dict[str, tuple[Float[Tensor, "b 1 28 28"], Int[Tensor, " b"]]]:
    """MNIST's splits "train" and "test", normalised to mean 0 and standard deviation 1."""
    from paperwalk.data import load, to_float

    data = load("mnist")
    return {s: ((to_float(getattr(data, s).images) - MEAN) / STD, getattr(data, s).labels) for s in ("train", "test")}


def batches(n_examples: int, seed: int) -> Iterator[Int[Tensor, " b"]]:
    """Indices of batch after batch, without end: each pass over the examples is shuffled anew."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(n_examples, generator=generator)
        yield from (chunk for chunk in order.split(BATCH) if len(chunk) == min(BATCH, n_examples))


def optimiser(model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, and its learning rate over `STEPS` steps: warm-up over the first 15 %, then cosine decay."""
    adamw = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=0.05, fused=True)
    # By default OneCycleLR moves the first beta as well, whatever AdamW was given.
    options = {"total_steps": STEPS, "pct_start": 0.15, "cycle_momentum": False}
    return adamw, torch.optim.lr_scheduler.OneCycleLR(adamw, PEAK_LR, **options)


def train(model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> None:
    """Train for `STEPS` batches, gradients clipped at norm 1."""
    adamw, schedule = optimiser(model)
    model.train()
    for _, batch in zip(range(STEPS), batches(len(images), seed), strict=False):
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is their class, in [0, 1]."""
    model.eval()
    hits = [(model(x).argmax(dim=1) == y).sum() for x, y in zip(images.split(1000), labels.split(1000), strict=True)]
    return sum(hits).item() / len(images)


def run_one(name: str, size: int, seed: int, splits: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Test accuracy of one model trained on a random subset of `size` images."""
    torch.manual_seed(seed)
    model = ViT(VIT_MNIST) if name == "vit" else conv_net()
    images, labels = splits["train"]
    subset = torch.randperm(len(images))[:size]
    train(model, images[subset], labels[subset], seed=seed)
    return accuracy(model, *splits["test"])


def main() -> None:
    """Run what vit.json does not hold yet."""
    splits = mnist()
    runs = {
        f"{name} {size} {seed}": partial(run_one, name, size, seed, splits)
        for size in SIZES
        for name in ("vit", "conv")
        for seed in SEEDS
    }
    run_missing(RESULTS, runs, recipe=recipe())


if __name__ == "__main__":
    main()
