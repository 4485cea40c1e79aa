"""The classifier that judges generated images: `python -m paperwalk.train.judge --data mnist`.

It is trained as every model here is, and its folder holds model, card and states; `paperwalk/judges/` has those that
come with the package.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from paperwalk.data import Split, load
from paperwalk.data.augment import draw_shifts_and_flips, shift_and_flip
from paperwalk.data.table import RECIPES as DATASETS
from paperwalk.ddpm import to_signed
from paperwalk.metrics import bootstrap_interval
from paperwalk.quality import Judge, JudgeConfig, Verdict, class_score, class_shares, confident, frechet_distance
from paperwalk.train import runs
from paperwalk.train.cli import show, take
from paperwalk.train.engine import Interrupted, Options
from paperwalk.train.task import Batch, Metrics, Recipe, Task, cut, figure, generator, shuffled, spaced


def hold_out(split: Split) -> tuple[Split, Split]:
    """Training images less their last twelfth, and that twelfth: real images that neither model nor judge has seen."""
    first = len(split.images) * 11 // 12
    return Split(split.images[:first], split.labels[:first]), Split(split.images[first:], split.labels[first:])


@dataclass(frozen=True)
class JudgeRecipe(Recipe):
    """Train a judge.

    Args:
        data: a data set of images by name.
        model: sizes, those of the data.
        shift: training images are moved by up to so many pixels.
    """

    paper: ClassVar[str] = "judge"

    epochs: float = 5.0
    lr: float = 2e-3
    weight_decay: float = 0.01
    data: str = "mnist"
    model: JudgeConfig = field(default_factory=JudgeConfig)
    shift: int = 2

    def data_sha256(self) -> dict[str, str]:
        """Name of the data → SHA-256 of its content."""
        return {self.data: DATASETS[self.data].sha256}

    def forward_flops(self) -> int:
        """FLOPs of one image, as torch counts them."""
        config = self.model
        with torch.device("meta"):
            model, image = Judge(config), torch.zeros(1, config.in_channels, config.image_size, config.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(image)
        return counter.get_total_flops()

    def task(self) -> Task:
        """Classify each image."""
        train, _ = hold_out(load(self.data).train)
        steps, model = self.steps_of(len(train.labels)), Judge(self.model)

        def batch(step: int, part: int, parts: int) -> Batch:
            rows = shuffled(len(train.labels), self.batch_size, self.seed, step)
            draws = draw_shifts_and_flips(len(rows), self.shift, generator(self.seed + 1, step), flip=False)
            rows, shifts, flips = (cut(each, part, parts) for each in (rows, *draws))
            return to_signed(shift_and_flip(train.images[rows], shifts, flips)), train.labels[rows]

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            images, labels = batch
            return F.cross_entropy(model(images), labels), len(labels)

        return Task(model, self.adamw(model), self.cosine(steps), steps, batch, loss, whole_batch=True)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The weights, in half precision."""
        model.save_pretrained(folder, bits=16)

    def load(self, folder: Path) -> Judge:
        """The model that `save` wrote."""
        return Judge.from_pretrained(folder)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, limit: int | None = None) -> Metrics:
        """Share of test images whose most probable class is theirs."""
        test = load(self.data).test
        rows = spaced(len(test.labels), limit)
        found = model.judge(to_signed(test.images[rows])).probabilities.argmax(dim=1)
        return {"accuracy": mean_figure((found == test.labels[rows]).double())}


def mean_figure(values: Tensor) -> dict[str, Any]:
    """The mean of a number for each image, with its interval."""
    return figure(values.mean().item(), bootstrap_interval(values.tolist()), len(values))


def quality_figures(prefix: str, verdict: Verdict, reference: Tensor) -> Metrics:
    """The quality of images, by what a judge says of them.

    "class score": see there. "sure": the share of which it is more than 90 % sure. "rarest" and "commonest class":
    shares of what it takes the images for. The Fréchet distance is that of their features to those of the `reference`;
    its interval is of these images as a sample, the reference being fixed.

    Args:
        prefix: of the figures' names.
        reference: (n d) features of real images.
    """
    classes, n = verdict.probabilities.argmax(dim=1), len(verdict.features)
    n_classes = verdict.probabilities.shape[1]
    distance, shares = frechet_distance(verdict.features, reference), class_shares(classes, n_classes)
    draws, again = generator(3, 0), []
    for _ in range(200):
        rows = torch.randint(n, (n,), generator=draws)
        resampled = class_shares(classes[rows], n_classes)
        score = class_score(verdict.probabilities[rows])
        again.append([frechet_distance(verdict.features[rows], reference), resampled.min(), resampled.max(), score])
    low, high = torch.tensor(again).quantile(torch.tensor([0.025, 0.975]), dim=0).tolist()
    # The distance grows as rows repeat, as it does with fewer rows: turned over, the interval takes that off.
    turned = (max(0.0, 2 * distance - high[0]), max(0.0, 2 * distance - low[0]))
    return {
        f"{prefix}Fréchet distance": figure(distance, turned, n),
        f"{prefix}class score": figure(class_score(verdict.probabilities), (low[3], high[3]), n),
        f"{prefix}sure": mean_figure(confident(verdict).double()),
        f"{prefix}rarest class": figure(shares.min().item(), (low[1], high[1]), n),
        f"{prefix}commonest class": figure(shares.max().item(), (low[2], high[2]), n),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a judge and write it to a folder."""
    parser = argparse.ArgumentParser("python -m paperwalk.train.judge", description=__doc__)
    parser.add_argument("--data", default="mnist", help="a data set of images by name")
    parser.add_argument("--output", type=Path, help="folder; runs/judge-DATA by default")
    parser.add_argument("--epochs", type=float, default=JudgeRecipe.epochs, help="passes over the training images")
    parser.add_argument("--resume", action="store_true", help="go on where it was stopped")
    typed = list(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(typed)
    images = load(given.data).train.images
    sizes = JudgeConfig(image_size=images.shape[-1], in_channels=images.shape[1])
    recipe = JudgeRecipe(data=given.data, epochs=given.epochs, model=sizes)
    options = Options(output=given.output or Path("runs") / f"judge-{given.data}", resume=given.resume)
    _, rest = take(typed, "output")
    command = shlex.join(["python", "-m", "paperwalk.train.judge", *(each for each in rest if each != "--resume")])
    try:
        folder = runs.train(recipe, options, command)
    except Interrupted as error:
        raise SystemExit(f"{error}; the same command with --resume goes on") from None
    show(runs.read_json(folder / "card.json", "metrics")["metrics"])


if __name__ == "__main__":
    main()
