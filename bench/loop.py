"""`paperwalk train` against the bare loop of the ViT chapter; and how long each paper's training waits for its data."""

import contextlib
import dataclasses
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bench.measure import spread
from paperwalk.experiments import vit as experiment
from paperwalk.metrics import bootstrap_interval
from paperwalk.train.engine import Options, Run
from paperwalk.train.precision import fast_precision
from paperwalk.train.recipes import PAPERS, recipe_class
from paperwalk.train.task import Batch, Recipe
from paperwalk.vit import ViT

# Steps of one loop before it is the other's turn.
STEPS = 20
# Of each recipe, to see what its data cost; the first ones load and cache.
FIRST, SEEN = 3, 10
RECIPES = {
    "vit": "cifar10-cpu",
    "gpt": "moby-dick-cpu",
    "transformer": "cmudict-cpu",
    "mae": "cifar10-cpu",
    "clip": "emoji-cpu",
    "ddpm": "mnist-cpu",
}
assert set(RECIPES) == set(PAPERS)
BARE, TRAIN = "bare loop", "paperwalk train"


def bare_loop(steps: int) -> Callable[[], None]:
    """The chapter's training, `steps` steps a call: images that lie in memory normalised, AdamW, norm, schedule."""
    torch.manual_seed(0)
    model = ViT(experiment.VIT_MNIST).train()
    images, labels = experiment.mnist()["train"]
    batches = experiment.batches(len(images), seed=0)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05, fused=True)
    # The chapter's, so long that it does not end while we measure.
    options = {"total_steps": 10**6, "pct_start": 0.15, "cycle_momentum": False}
    schedule = torch.optim.lr_scheduler.OneCycleLR(adamw, experiment.PEAK_LR, **options)
    losses = []

    def run() -> None:
        for _ in range(steps):
            batch = next(batches)
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            adamw.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            schedule.step()
            losses.append(loss.item())

    return run


class Training:
    """`paperwalk train` of a recipe, to be run a stretch at a time, in a folder that is removed in the end."""

    def __init__(self, recipe: Recipe, options: Options, folder: Path):
        torch.manual_seed(recipe.seed)
        self.run = Run(recipe.task(), recipe, dataclasses.replace(options, output=folder), folder)
        self.run.accelerator.init_trackers("paperwalk")

    def go(self, steps: int) -> None:
        """Train so many steps more: batches, loss, log, state."""
        self.run.task.steps = len(self.run.losses) + steps
        # Its progress is not ours.
        with contextlib.redirect_stdout(io.StringIO()):
            self.run.train()

    def waited(self, steps: int) -> dict[str, float]:
        """Seconds of so many steps, and those of them in which the training waited for batches."""
        before = self.run.seconds, self.run.waited
        self.go(steps)
        return {"seconds": self.run.seconds - before[0], "waited": self.run.waited - before[1]}


def same_settings(steps: int) -> Recipe:
    """The recipe with the chapter's model, data, batch and optimiser; it never ends while we measure."""
    recipe = recipe_class("vit").named()["mnist-cpu"]
    assert (recipe.model, recipe.batch_size, recipe.lr) == (experiment.VIT_MNIST, experiment.BATCH, experiment.PEAK_LR)
    return dataclasses.replace(recipe, steps=steps)


def waiting(paper: str, folder: Path) -> dict[str, Any]:
    """What the data of a paper's recipe cost the training."""
    recipe = dataclasses.replace(recipe_class(paper).named()[RECIPES[paper]], steps=10**4)
    training = Training(recipe, Options(precision=fast_precision()), folder)
    training.go(FIRST)
    found = training.waited(SEEN)
    training.run.accelerator.end_training()
    return {"recipe": f"{paper} {RECIPES[paper]}", "steps": SEEN} | found


def in_turn(training: Training, bare: Callable[[], None], turns: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each loop in each turn; and the share of `paperwalk train`'s in which it waited for batches.

    It is one run of `paperwalk train`, states and all, that lets the bare loop run whenever it asks for the batch of
    every `STEPS`th step: turns of a second or two, so that a machine that changes its speed changes it for both.
    """
    task, seconds = training.run.task, {TRAIN: [], BARE: []}
    draw, since = task.batch, 0.0

    def batch(step: int, part: int, parts: int) -> Batch:
        nonlocal since
        if step % STEPS == 0:
            now = time.perf_counter()
            if step:
                seconds[TRAIN].append(now - since)
            bare()
            since = time.perf_counter()
            seconds[BARE].append(since - now)
        return draw(step, part, parts)

    task.batch = batch
    training.go(turns * STEPS)
    seconds[TRAIN].append(time.perf_counter() - since)
    return seconds, (training.run.waited - sum(seconds[BARE])) / sum(seconds[TRAIN])


def measure(rounds: int) -> dict[str, Any]:
    """Both loops in turn, single precision; then the waiting of each paper's recipe, in the precision that it takes."""
    turns = 10 * rounds
    with tempfile.TemporaryDirectory() as folder:
        training = Training(same_settings(10**6), Options(precision="fp32"), Path(folder, "vit"))
        seconds, share = in_turn(training, bare_loop(STEPS), turns)
        training.run.accelerator.end_training()
        recipes = [waiting(paper, Path(folder, f"of {paper}")) for paper in PAPERS]
    # All turns together, since one in ten writes a state; the first takes memory and chooses kernels.
    ours, theirs = seconds[TRAIN][1:], seconds[BARE][1:]
    return {
        "turns": turns,
        "images": STEPS * experiment.BATCH,
        "seconds": {name: spread(each) for name, each in seconds.items()},
        "times as fast": [sum(theirs) / sum(ours), *bootstrap_interval(theirs, ours)],
        "waited": share,
        "recipes": recipes,
    }


if __name__ == "__main__":
    from bench.run import main

    main("loop")
