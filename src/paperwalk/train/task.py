"""What a paper gives to the training loop, and what every recipe holds."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
Metrics = dict[str, Any]


@dataclass
class Task:
    """One training: everything but where and how it runs.

    Args:
        model: trained in place.
        optimiser: over the model's parameters.
        lr_at: learning rate of a step, counted from 0.
        steps: number of optimiser steps.
        batch: `batch(step, part, parts)` is one of `parts` nearly equal parts of the batch of a step. It depends on the
            recipe and these three numbers alone, so that a resumed run, or one on several machines, sees the same.
        loss: `loss(model, batch)` is the mean over some number of items (images, tokens), and that number.
        whole_batch: the loss compares the examples of a batch with each other, so that a process cannot take its part
            in several smaller ones.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    lr_at: Callable[[int], float]
    steps: int
    batch: Callable[[int, int, int], Batch]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, int]]
    whole_batch: bool = False


@dataclass(frozen=True)
class Recipe:
    """What every recipe holds; each paper adds its data, its model and its task.

    Args:
        epochs: passes over the training data.
        steps: optimiser steps, instead of `epochs`.
        batch_size: examples a step, over all processes.
        lr: largest learning rate.
        warmup: share of the steps over which the rate rises to it, in a line.
        final_lr: the share of it at which the cosine after the warm-up ends.
        weight_decay: of matrices; biases and norms do not decay.
        beta2: of AdamW.
        clip: largest norm of all gradients together.
        ema: decay a step of the moving average of the weights, which is what is evaluated and saved; 0 for none.
        seed: of the weights, the batches and all other draws.
    """

    paper: ClassVar[str]
    PRESETS: ClassVar[dict[str, Any]]
    Sampling: ClassVar[type | None] = None
    # Examples of the quick evaluation, which the tests repeat.
    quick: ClassVar[int] = 100

    epochs: float = 10.0
    steps: int | None = None
    batch_size: int = 128
    lr: float = 1e-3
    warmup: float = 0.1
    final_lr: float = 0.0
    weight_decay: float = 0.05
    beta2: float = 0.999
    clip: float = 1.0
    ema: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "steps", "batch_size", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, expected more than 0")
        for name in ("warmup", "final_lr", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 0 and below 1")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay}, expected at least 0")

    def build(self) -> nn.Module:
        """The untrained model, by the sizes of the recipe alone."""
        raise NotImplementedError

    def forward_flops(self) -> int:
        """FLOPs of one example of the largest size through the model."""
        raise NotImplementedError

    def example_size(self) -> str:
        """What that example is, in words."""
        raise NotImplementedError

    def examples_a_step(self) -> int | float:
        """How many such examples a batch holds."""
        return self.batch_size

    def step_flops(self) -> int | float:
        """FLOPs of a training step: the backward pass costs about two forward passes."""
        return 3 * self.forward_flops() * self.examples_a_step()

    def task(self) -> Task:
        """The training itself, the data loaded."""
        raise NotImplementedError

    def load(self, folder: Path) -> nn.Module:
        """The model that `save` wrote."""
        raise NotImplementedError

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model, and what goes with it, to a folder that `load` reads."""
        raise NotImplementedError

    def check_tokens(self, folder: Path) -> None:
        """Raise a ValueError when the data are written in other tokens than the model in the folder knows."""

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Metrics:
        """The figures on data not trained on: name → {"value", "interval", "n"}.

        Args:
            limit: about so many examples, evenly spaced, instead of all.
        """
        raise NotImplementedError

    def sample(self, model: nn.Module, folder: Path, how: Any) -> str:
        """What the model makes, as text (pictures go to a file that it names); `how` is this class's `Sampling`."""
        raise NotImplementedError

    @classmethod
    def named(cls) -> dict[str, "Recipe"]:
        """The recipes by name."""
        raise NotImplementedError

    def data_sha256(self) -> dict[str, str]:
        """Name of each dataset → SHA-256 of its content."""
        raise NotImplementedError

    def start_sha256(self) -> dict[str, str]:
        """Folder of the weights that the training begins with → SHA-256 of them; nothing where it begins with none."""
        return {}

    def steps_of(self, n_examples: int) -> int:
        """Optimiser steps in all.

        Raises:
            ValueError: the batch is larger than the data.
        """
        if self.batch_size > n_examples:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected at most {n_examples}: so many examples there are"
            )
        return self.steps or max(1, round(self.epochs * (n_examples // self.batch_size)))

    def adamw(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW on the model: matrices decay, biases and norms do not, since those shift and scale features."""
        matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, self.beta2), fused=True)

    def cosine(self, steps: int) -> Callable[[int], float]:
        """The learning rate of a step: up in a line over the warm-up, then down a cosine to `final_lr` of the peak."""
        warmup = self.warmup * steps

        def lr_at(step: int) -> float:
            if step < warmup:
                return self.lr * min(1.0, (step + 1) / warmup)
            cosine = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (steps - warmup))
            return self.lr * (self.final_lr + (1 - self.final_lr) * cosine)

        return lr_at


def shuffled(n_examples: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The indices of a step's batch. Each pass has an order of its own; what fills no batch is left out of it."""
    a_pass = n_examples // batch_size
    first = (step % a_pass) * batch_size
    return _order(n_examples, seed, step // a_pass)[first : first + batch_size]


# Drawn anew for each step, the order of a whole pass was most of what a batch took.
@lru_cache(maxsize=2)
def _order(n_examples: int, seed: int, a_pass: int) -> Tensor:
    return torch.randperm(n_examples, generator=generator(seed, a_pass))


def generator(seed: int, number: int) -> torch.Generator:
    """A source of random draws of its own for each step, or pass, of each seed."""
    return torch.Generator().manual_seed(seed * 10**9 + number)


def cut(rows: Tensor, part: int, parts: int) -> Tensor:
    """The part of the rows that is number `part` of `parts` nearly equal ones."""
    return rows[part * len(rows) // parts : (part + 1) * len(rows) // parts]


def spaced(n: int, limit: int | None) -> slice:
    """Every so manieth of n things, so that at least `limit` of them are left (all, if there are no more).

    Raises:
        ValueError: `limit` below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1 example")
    return slice(None, None, 1 if limit is None else max(1, n // limit))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def weights_sha256(folder: str | None) -> dict[str, str]:
    """Folder of a model → SHA-256 of its weights; nothing for None."""
    return {} if folder is None else {folder: file_sha256(Path(folder) / "model.safetensors")}


def figure(value: float, interval: tuple[float, float], n: int) -> dict[str, Any]:
    """One line of an evaluation: the value, its 95 % interval, and the number of examples it is over."""
    return {"value": round(value, 5), "interval": [round(end, 5) for end in interval], "n": n}
