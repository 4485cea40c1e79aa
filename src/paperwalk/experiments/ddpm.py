"""Diffusion on handwritten digits: what the network should predict, how many steps a sampler needs, which times matter.

The first claim is that of Ho et al. 2020, Table 2, scaled down: networks that predict the noise or the mean, trained on
the simple loss or on the bound; and, which is not theirs, the velocity. The second is that of Song et al. 2021 (DDIM),
Section 5.1: with few steps it is better to add no noise; here with the shipped model. Three seeds each. The third part,
one run, asks at which times digits go wrong, of a model trained on all times alike and of one trained mostly on times
in the middle; and sets the cards of these two, of a third, and of the shipped model side by side. The fourth, three
seeds, sets the velocity beside the noise on clothes, and looks at their brightness. The models of the third part,
which are not shipped:

    paperwalk train ddpm --recipe mnist-cpu --focus 0 --lr 1e-3 --output FOLDER/alike
    paperwalk train ddpm --recipe mnist-cpu --focus 1 --lr 1e-3 --epochs 10 --output FOLDER/hill
    paperwalk train ddpm --recipe mnist-cpu --predict velocity --epochs 14 --output FOLDER/velocity

Run: `python -m paperwalk.experiments.ddpm --others FOLDER` (about an hour on one thread, without those trainings); it
writes ddpm.json beside this file.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperwalk.ddpm import at_time, to_signed
from paperwalk.experiments import run_missing, train_task
from paperwalk.nn.average import follow
from paperwalk.notebook import checkpoint
from paperwalk.quality import Judge, class_score, confident, frechet_distance
from paperwalk.samplers import ddim
from paperwalk.train.precision import fast_autocast
from paperwalk.train.recipes.ddpm import DDPMRecipe, estimated_bits
from paperwalk.train.runs import as_json
from paperwalk.train.task import generator, spaced
from paperwalk.unet import UNet, UNetConfig

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
# What is predicted, and on which loss.
TRAINED = (("mean", "bound"), ("mean", "simple"), ("epsilon", "bound"), ("epsilon", "simple"), ("velocity", "simple"))
STEPS, ETAS = (2, 5, 10, 20, 50), (0.0, 1.0)
# Times up to which test digits get noise, and how many digits.
STARTS, CLEANED = (100, 200, 300, 400, 500, 600, 800, 1_000), 250
# Images drawn from each small network and from the shipped one, and test images on which the bound is estimated.
DRAWN, DRAWN_SHIPPED, BOUND_IMAGES = 250, 150, 100
RECIPE = DDPMRecipe.named()["mnist-cpu"]
# Models that are not shipped: trained on all times alike, by the hill, and to predict the velocity. The first two are
# asked at which times digits go wrong.
OTHERS = ("alike", "hill", "velocity")
ASKED = OTHERS[:2]


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


def cleaned(folder: Path, start: int) -> dict[str, float]:
    """Test digits with noise up to a time, cleaned by a model: the share of which the judge is sure, and the share that
    it takes for the digit that they were."""
    model, diffusion, draws = UNet.from_pretrained(folder), RECIPE.diffusion(), generator(0, 2)
    images = RECIPE.images().test
    x_0 = to_signed(images[spaced(len(images), CLEANED)])
    x_t = diffusion.q_sample(x_0, at_time(x_0, start), torch.randn(x_0.shape, generator=draws))
    with fast_autocast():
        found = ddim(diffusion, model, x_t, steps=start // 10, eta=1.0, start=start, generator=draws).images
    before, after = (judge().judge(each) for each in (x_0, found))
    same = before.probabilities.argmax(dim=1) == after.probabilities.argmax(dim=1)
    return {"sure": confident(after).double().mean().item(), "same": same.double().mean().item()}


@torch.no_grad()
def loss_by_time(folder: Path) -> list[float]:
    """The simple loss of test digits, in each tenth of the times."""
    model, diffusion, draws = UNet.from_pretrained(folder), RECIPE.diffusion(), generator(0, 3)
    images = RECIPE.images().test
    x_0, tenth = to_signed(images[spaced(len(images), CLEANED)]), RECIPE.n_steps // 10
    losses = []
    for i in range(10):
        t = 1 + tenth * i + torch.arange(len(x_0)) % tenth
        losses.append(diffusion.loss(model, x_0, t, torch.randn(x_0.shape, generator=draws)).mean().item())
    return losses


def on_card(folder: Path) -> dict[str, float]:
    """What the card of a model says of it: passes over the data, and its figures."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return {"epochs": card["recipe"]["epochs"]} | {name: each["value"] for name, each in card["metrics"].items()}


def clothed(predict: str, seed: int) -> dict[str, float]:
    """Of clothes that a small network of each kind draws, without added noise: mean pixel, distance to test images."""
    recipe = replace(SMALL, data="fashion-mnist", predict=predict, seed=seed)
    _, average, _ = pretrain(recipe)
    drawn = recipe.draw(average, DRAWN, recipe.sample_steps, eta=0.0, seed=seed).clamp(-1, 1)
    tailor = Judge.from_pretrained("fashion-mnist")
    features = [tailor.judge(each).features for each in (drawn, to_signed(recipe.images().test))]
    return {"brightness": drawn.mean().item(), "distance": frechet_distance(*features)}


def about() -> dict[str, Any]:
    """What the stored numbers were made with; stored beside them, so that a change here shows."""
    sizes = {"drawn": DRAWN, "drawn from the shipped": DRAWN_SHIPPED, "bound images": BOUND_IMAGES}
    times = {"steps": list(STEPS), "starts": list(STARTS), "cleaned": CLEANED}
    return {"small": as_json(SMALL), "shipped": as_json(RECIPE)} | times | sizes


def experiment(others: Path | None = None) -> None:
    """Run what ddpm.json does not hold yet.

    Args:
        others: folder of the models that are not shipped; without it, what concerns them is left out.
    """
    runs = {f"real {n} {seed}": partial(real, n, seed) for n in (DRAWN, DRAWN_SHIPPED) for seed in SEEDS}
    for seed in SEEDS:
        runs |= {f"{p} {o} {seed}": partial(predicting, p, o, seed) for p, o in TRAINED}
        runs |= {f"clothes {p} {seed}": partial(clothed, p, seed) for p in ("epsilon", "velocity")}
    runs |= {f"steps {eta} {seed}": partial(in_steps, eta, seed) for seed in SEEDS for eta in ETAS}
    runs["card shipped"] = partial(on_card, checkpoint("ddpm-mnist"))
    if others is not None:
        runs |= {f"card {name}": partial(on_card, others / name) for name in OTHERS}
        runs |= {f"from {start} {name}": partial(cleaned, others / name, start) for name in ASKED for start in STARTS}
        runs["loss alike"] = partial(loss_by_time, others / "alike")
    run_missing(RESULTS, runs, recipe=about())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m paperwalk.experiments.ddpm", description=__doc__.splitlines()[0])
    parser.add_argument("--others", type=Path, metavar="FOLDER", help="of the models that are not shipped")
    experiment(parser.parse_args().others)


if __name__ == "__main__":
    main()
