"""Masked autoencoders on CIFAR-10: how much to hide, and what the shipped encoder is worth.

The first claim is that of He et al. 2021, Figure 5, scaled down: encoders pre-trained at several mask ratios, then
probed and fine-tuned. The second is that of Section 4 ("Baseline"): a pre-trained encoder is a better start than a
random one; here fine-tuned on a tenth of the labels and, which the paper does not do for a random one, under a linear
probe. Three seeds each. Run: `python -m paperwalk.experiments.mae` (about an hour on one thread); it writes mae.json
beside this file.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from paperwalk.experiments import run_missing, train_task
from paperwalk.mae import MAE
from paperwalk.notebook import checkpoint
from paperwalk.probe import linear_probe
from paperwalk.train.precision import fast_autocast
from paperwalk.train.recipes.mae import MAERecipe
from paperwalk.train.recipes.vit import ViTRecipe, load_encoder
from paperwalk.train.runs import as_json
from paperwalk.vit import ViTConfig

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
RATIOS = (0.25, 0.5, 0.75, 0.9)
# A pass over the training images; a probe on 20,000 labels; fine-tuning on 2,000.
SMALL = MAERecipe.named()["cifar10-mini"]
PROBED = 20_000
SMALL_TUNED = replace(
    ViTRecipe.named()["cifar10-finetune"],
    model=ViTConfig(**SMALL.model.encoder_sizes(), n_classes=10),
    labels=2_000,
    epochs=10.0,
    lr=3e-3,
)
# The shipped encoder: all labels for the probe, a tenth of them for fine-tuning.
RECIPE = MAERecipe.named()["cifar10-cpu"]
TUNED = ViTRecipe.named()["cifar10-finetune"]


def pretrain(recipe: MAERecipe, steps: Iterable[int] | None = None) -> tuple[MAE, list[float]]:
    """A masked autoencoder trained by the recipe, and the loss of each step; `steps` may be a `progress`."""
    torch.manual_seed(recipe.seed)
    task = recipe.task()
    losses = train_task(task, steps)
    return task.model.eval(), losses


def probe(recipe: MAERecipe, model: MAE, n_train: int | None = None, n_test: int | None = None) -> float:
    """Test accuracy of a linear classifier on the frozen encoder, in [0, 1]."""
    with fast_autocast():
        found = recipe.features(model, n_train, n_test)
    return linear_probe(*found, seed=recipe.seed).float().mean().item()


def finetune(recipe: ViTRecipe, model: MAE, n_test: int | None = None) -> float:
    """Test accuracy of a ViT trained by the recipe, beginning with the encoder of a model."""
    torch.manual_seed(recipe.seed)
    task = recipe.task()
    load_encoder(task.model, model)
    train_task(task)
    with fast_autocast():
        return recipe.evaluate(task.model, n_test)["accuracy"]["value"]


def at_ratio(ratio: float | None, seed: int) -> dict[str, float]:
    """Probe and fine-tuning accuracy of a small encoder pre-trained at one mask ratio, or (None) not at all."""
    recipe = replace(SMALL, seed=seed)
    if ratio is None:
        model = random_start(recipe)
    else:
        model, _ = pretrain(replace(recipe, model=replace(recipe.model, mask_ratio=ratio)))
    tuned = finetune(replace(SMALL_TUNED, seed=seed), model)
    return {"probe": probe(recipe, model, PROBED), "finetune": tuned}


def random_start(recipe: MAERecipe) -> MAE:
    """The model as the training begins with it."""
    torch.manual_seed(recipe.seed)
    return recipe.build().eval()


def shipped() -> MAE:
    """The checkpoint."""
    return MAE.from_pretrained(checkpoint("mae-cifar10"))


def shipped_probe(seed: int) -> dict[str, float]:
    """Probe accuracy of the shipped encoder, and of one with random weights."""
    recipe = replace(RECIPE, seed=seed)
    return {"pre-trained": probe(recipe, shipped()), "random": probe(recipe, random_start(recipe))}


def shipped_finetune(seed: int) -> dict[str, float]:
    """Accuracy after fine-tuning from the shipped encoder, and from one with random weights."""
    tuned, start = replace(TUNED, seed=seed), random_start(replace(RECIPE, seed=seed))
    return {"pre-trained": finetune(tuned, shipped()), "random": finetune(tuned, start)}


def about() -> dict[str, Any]:
    """What the stored numbers were made with; stored beside them, so that a change here shows."""
    recipes = {"small": SMALL, "small, tuned": SMALL_TUNED, "shipped": RECIPE, "shipped, tuned": TUNED}
    return {name: as_json(recipe) for name, recipe in recipes.items()} | {"probed": PROBED}


def experiment() -> None:
    """Run what mae.json does not hold yet."""
    runs = {f"shipped probe {seed}": partial(shipped_probe, seed) for seed in SEEDS}
    runs |= {f"shipped finetune {seed}": partial(shipped_finetune, seed) for seed in SEEDS}
    runs |= {f"{ratio} {seed}": partial(at_ratio, ratio, seed) for seed in SEEDS for ratio in (*RATIOS, None)}
    run_missing(RESULTS, runs, recipe=about())


if __name__ == "__main__":
    experiment()
