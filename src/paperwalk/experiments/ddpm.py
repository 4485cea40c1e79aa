"""Diffusion on handwritten digits: what the network should predict, and how many steps a sampler needs.

The first claim is that of Ho et al. 2020, Table 2, scaled down: networks that predict the noise or the mean, trained on
the simple loss or on the bound. The second is that of Song et al. 2021 (DDIM), Section 5.1: with few steps it is better
to add no noise; here with the shipped model. Three seeds each. Run: `python -m paperwalk.experiments.ddpm` (about half
an hour on one thread); it writes ddpm.json beside this file.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperwalk.ddpm import to_signed
from paperwalk.experiments import run_missing, train_task
from paperwalk.nn.average import follow
from paperwalk.notebook import checkpoint
from paperwalk.quality import Judge, class_score, confident, frechet_distance
from paperwalk.train.recipes.ddpm import DDPMRecipe, estimated_bits
from paperwalk.train.runs import as_json
from paperwalk.train.task import generator, spaced
from paperwalk.unet import UNet, UNetConfig

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
PREDICT, OBJECTIVES = ("epsilon", "mean"), ("simple", "bound")
STEPS, ETAS = (2, 5, 10, 20, 50), (0.0, 1.0)
# Images drawn from each network of the first part and of the second, and test images on which its bound is estimated.
DRAWN, DRAWN_SHIPPED, BOUND_IMAGES = 250, 150, 100
RECIPE = DDPMRecipe.named()["mnist-cpu"]


# Half the shipped network's width, a quarter of its computing; a process of 100 steps; 0.3 passes.
SMALL = DDPMRecipe(
    model=UNetConfig.mnist(d_model=16),
    n_steps=100,
    steps=500,
    batch_size=32,
    lr=2e-3,
    ema=0.99,
    sample_steps=100,
    sample_eta=None,
)


def pretrain(recipe: DDPMRecipe, steps: Iterable[int] | None = None) -> tuple[UNet, UNet, list[float]]:
    """A network trained by the recipe, the moving average of its weights, and the loss of each step.

    Args:
        steps: their numbers, all of the recipe's by default; may be a `progress`.
    """
    torch.manual_seed(recipe.seed)
    task = recipe.task()
    average = deepcopy(task.model).requires_grad_(False)

    def followed() -> Iterator[int]:
        for step in range(task.steps) if steps is None else steps:
            yield step
            follow(average, task.model, recipe.ema)

    losses = train_task(task, followed())
    return task.model.eval(), average.eval(), losses


@cache
def judge() -> Judge:
    """The classifier of digits that comes with the package."""
    return Judge.from_pretrained("mnist")


@cache
def reference(n: int | None = None) -> Tensor:
    """Its features (n d) of test images, n of them or all."""
    images = RECIPE.images().test
    return judge().judge(to_signed(images[spaced(len(images), n)])).features


def quality(images: Tensor, n_reference: int | None = None) -> dict[str, float]:
    """Of images (b c h w): Fréchet distance to test images, class score, share of which the judge is over 90 % sure."""
    verdict = judge().judge(images.clamp(-1, 1))
    return {
        "distance": frechet_distance(verdict.features, reference(n_reference)),
        "score": class_score(verdict.probabilities),
        "sure": confident(verdict).double().mean().item(),
    }


def predicting(predict: str, objective: str, seed: int) -> dict[str, float]:
    """Quality and bits a dimension of a small network that predicts one thing, trained on one objective."""
    recipe = replace(SMALL, predict=predict, objective=objective, seed=seed)
    _, average, _ = pretrain(recipe)
    test = recipe.images().test
    few = to_signed(test[spaced(len(test), BOUND_IMAGES)])
    bits = estimated_bits(recipe.diffusion(), average, few).mean().item()
    drawn = recipe.draw(average, DRAWN, recipe.sample_steps, eta=recipe.sample_eta, seed=seed)
    return quality(drawn) | {"bits": bits}


def real(n: int, seed: int) -> dict[str, float]:
    """The same figures of as many real images that neither model nor judge has seen."""
    images = RECIPE.images().held_out
    return quality(to_signed(images[torch.randperm(len(images), generator=generator(seed, 1))[:n]]))


def in_steps(eta: float, seed: int) -> dict[str, dict[str, float]]:
    """Quality of the shipped model's images by number of DDIM steps."""
    model = UNet.from_pretrained(checkpoint("ddpm-mnist"))
    images = {str(n): RECIPE.draw(model, DRAWN_SHIPPED, n, eta=eta, seed=seed) for n in STEPS}
    return {n: quality(each) for n, each in images.items()}


def about() -> dict[str, Any]:
    """What the stored numbers were made with; stored beside them, so that a change here shows."""
    sizes = {"drawn": DRAWN, "drawn from the shipped": DRAWN_SHIPPED, "bound images": BOUND_IMAGES}
    return {"small": as_json(SMALL), "shipped": as_json(RECIPE), "steps": list(STEPS)} | sizes


def experiment() -> None:
    """Run what ddpm.json does not hold yet."""
    runs = {f"real {n} {seed}": partial(real, n, seed) for n in (DRAWN, DRAWN_SHIPPED) for seed in SEEDS}
    for seed in SEEDS:
        runs |= {f"{p} {o} {seed}": partial(predicting, p, o, seed) for p in PREDICT for o in OBJECTIVES}
    runs |= {f"steps {eta} {seed}": partial(in_steps, eta, seed) for seed in SEEDS for eta in ETAS}
    run_missing(RESULTS, runs, recipe=about())


if __name__ == "__main__":
    experiment()
