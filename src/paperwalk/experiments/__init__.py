"""Experiments too long for a chapter: each file runs one and stores its numbers in the .json beside it."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperwalk.files import write_whole
from paperwalk.train.precision import fast_autocast
from paperwalk.train.task import Task


def train_steps(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    lr_at: Callable[[int], float],
    batch_loss: Callable[[int], Tensor],
    steps: Iterable[int],
) -> list[float]:
    """The loop of a short training: the loss of each step, gradients clipped at norm 1.

    Args:
        lr_at, batch_loss: learning rate and loss of a step, by its number.
        steps: the numbers, in a `progress` for a bar.
    """
    model.train()
    losses = []
    for step in steps:
        for group in optimiser.param_groups:
            group["lr"] = lr_at(step)
        loss = batch_loss(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def train_task(task: Task, steps: Iterable[int] | None = None) -> list[float]:
    """`train_steps` of a recipe's task, all of it or the steps given, in the fastest precision; returns the losses."""
    # Made once: it measures the processor.
    autocast = fast_autocast()

    def loss(step: int) -> Tensor:
        with autocast:
            return task.loss(task.model, task.batch(step, 0, 1))[0]

    steps = range(task.steps) if steps is None else steps
    return train_steps(task.model, task.optimiser, task.lr_at, loss, steps)


def run_missing(path: Path, runs: Mapping[str, Callable[[], Any]], **about: Any) -> None:
    """Run what the file does not hold yet, on one thread; an interrupted experiment goes on where it stopped.

    Args:
        path: a .json, written after each run.
        runs: name of a run → what it computes.
        about: stored in a new file before the runs.
    """
    torch.set_num_threads(1)
    results = json.loads(path.read_text()) if path.exists() else dict(about)
    start = time.perf_counter()
    for name, run in runs.items():
        if name not in results:
            results[name] = run()
            write_whole(path.parent, {path.name: json.dumps(results, indent=2) + "\n"})
            print(f"{name}: {results[name]} ({time.perf_counter() - start:.0f} s)", flush=True)
