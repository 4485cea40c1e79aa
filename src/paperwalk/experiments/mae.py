"""Masked autoencoders on CIFAR-10: the mask ratio varied, the long recipe, linear probing and fine-tuning.

The claim is that of He et al. 2021, Figure 5, scaled down: encoders pre-trained at several mask ratios, then probed and
fine-tuned, three seeds. Run: `python -m paperwalk.experiments.mae` (about 25 minutes on one thread); it writes mae.json
beside this file.

`--recipe FOLDER` pre-trains the shipped checkpoint (about an hour and a half on one thread) and measures it. `--probe
CHECKPOINT` and `--finetune CHECKPOINT` measure any checkpoint: a linear classifier on the frozen encoder, or the whole
encoder trained on a tenth of the labels; with `--from-scratch` its encoder starts at random weights instead.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from paperwalk.checkpoints import load_exactly
from paperwalk.experiments import run_missing, train_steps
from paperwalk.mae import MAE, MAEConfig
from paperwalk.train import fast_dtype, fit
from paperwalk.vit import ViT, ViTConfig

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
Split = tuple[Float[Tensor, "b 3 32 32"], Int[Tensor, " b"]]
# Mean and standard deviation of the CIFAR-10 training pixels, by channel.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# The chapter and the experiment: a pass over the training images, a probe on 20,000 labels, fine-tuning on 2,000.
SMALL = MAEConfig(
    image_size=32,
    patch_size=4,
    d_model=96,
    n_layers=4,
    n_heads=3,
    d_mlp=384,
    decoder_d_model=48,
    decoder_n_layers=2,
    decoder_n_heads=3,
    decoder_d_mlp=192,
    norm_target=True,
)
RATIOS = (0.25, 0.5, 0.75, 0.9)
SMALL_BATCH, SMALL_LR = 128, 2e-3
PROBED, TUNED, TUNED_EPOCHS, TUNED_LR = 20_000, 2_000, 10, 3e-3

# The shipped checkpoint.
RECIPE = MAEConfig(
    image_size=32,
    patch_size=4,
    d_model=192,
    n_layers=6,
    n_heads=3,
    d_mlp=768,
    decoder_d_model=96,
    decoder_n_layers=2,
    decoder_n_heads=3,
    decoder_d_mlp=384,
    norm_target=True,
)
BATCH = 256
PASSES = 40
PEAK_LR = 1.5e-3
LABELLED = 5_000
EPOCHS = 10
FINETUNE_LR = 1e-3


def cifar10() -> dict[str, Split]:
    """CIFAR-10's splits "train" and "test", normalised to mean 0 and standard deviation 1."""
    from paperwalk.data import load, to_float

    data = load("cifar10")
    return {s: (normalise(to_float(getattr(data, s).images)), getattr(data, s).labels) for s in ("train", "test")}


def normalise(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pixels in [0, 1] to mean 0 and standard deviation 1 a channel."""
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def pixels(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The inverse of `normalise`, cut to [0, 1]."""
    return (images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).clamp(0, 1)


def random_views(images: Float[Tensor, "b c h w"], generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Random resized crops, flipped half the time: a fifth to all of the area, sides 3 : 4 to 4 : 3, bilinear."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    area, stretch = uniform(0.2, 1.0), uniform(-math.log(4 / 3), math.log(4 / 3)).exp()
    width, height = ((area * s).sqrt().clamp(max=1) for s in (stretch, 1 / stretch))
    # In the coordinates of affine_grid the image reaches from -1 to 1.
    left, top = (uniform(-1, 1) * (1 - side) for side in (width, height))
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(area)
    theta = torch.stack([torch.stack([flip * width, zero, left], 1), torch.stack([zero, height, top], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def schedule(step: int, *, steps: int, peak: float, warmup: float = 0.1) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def adamw(model: nn.Module, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW with weight decay 0.05 on matrices; biases, norms and tokens have none."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def pretraining_loss(model: MAE, images: Tensor, step: int, *, batch: int, seed: int) -> Tensor:
    """The loss of a step, whose images, crops and masks depend on seed and step only."""
    per_pass = len(images) // batch
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + step // per_pass))
    chosen = order[step % per_pass * batch :][:batch]
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + step)
    views = random_views(images[chosen], generator)
    return model(views, torch.rand(batch, model.config.n_patches, generator=generator)).loss


def pretrain(
    images: Tensor, config: MAEConfig, folder: Path, *, passes: float, seed: int = 0
) -> tuple[MAE, list[float]]:
    """A masked autoencoder trained on the images, and the loss of each step; an interrupted run in `folder` goes on."""
    torch.manual_seed(seed)
    model, steps = MAE(config), round(passes * (len(images) // BATCH))
    losses = fit(
        model,
        adamw(model, (0.9, 0.95)),
        partial(schedule, steps=steps, peak=PEAK_LR),
        lambda step: pretraining_loss(model, images, step, batch=BATCH, seed=seed),
        steps=steps,
        folder=folder,
        dtype=fast_dtype(),
    )
    return model.eval(), losses


def classifier(model: MAE, n_classes: int = 0) -> ViT:
    """The encoder as a ViT that reads the image off the class token, with a new head of zeros; a copy."""
    vit = ViT(ViTConfig(**model.config.encoder_sizes(), n_classes=n_classes))
    load_exactly(vit, model.encoder_weights(n_classes))
    return vit


@torch.no_grad()
def features(vit: ViT, images: Tensor, *, dtype: torch.dtype) -> Float[Tensor, "b d"]:
    """The mean of the patches' tokens after the last layer."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return torch.cat([vit.encode(x)[:, 1:].mean(dim=1).float() for x in images.split(500)])


def linear_probe(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, seed: int, epochs: int = 20) -> float:
    """Test accuracy of a linear classifier on features, in [0, 1]; they are first normalised, as in Appendix A.1."""
    torch.manual_seed(seed)
    (x, y), (x_test, y_test) = train, test
    std, mean = torch.std_mean(x, dim=0)
    x, x_test = (x - mean) / (std + 1e-6), (x_test - mean) / (std + 1e-6)
    head = nn.Linear(x.shape[1], 10)
    sgd = torch.optim.SGD(head.parameters(), momentum=0.9)
    steps = epochs * (len(x) // BATCH)
    for step, chosen in zip(range(steps), batches(len(x)), strict=False):
        sgd.param_groups[0]["lr"] = schedule(step, steps=steps, peak=0.1)
        loss = F.cross_entropy(head(x[chosen]), y[chosen])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return (head(x_test).argmax(dim=1) == y_test).float().mean().item()


def batches(n_examples: int, batch: int = BATCH) -> Iterator[Int[Tensor, " b"]]:
    """Indices of batch after batch, without end; each pass is shuffled anew by torch's global generator."""
    while True:
        yield from torch.randperm(n_examples)[: n_examples // batch * batch].split(batch)


def probe(model: MAE, splits: dict[str, Split], *, seed: int, n_train: int = 50_000) -> float:
    """Test accuracy of a linear classifier on the frozen encoder."""
    vit, dtype = classifier(model).eval(), fast_dtype()
    x = {name: features(vit, images[:n_train], dtype=dtype) for name, (images, _) in splits.items()}
    return linear_probe(*((x[name], splits[name][1][:n_train]) for name in ("train", "test")), seed=seed)


def finetune(
    model: MAE, train: Split, *, seed: int, epochs: int = EPOCHS, peak: float = FINETUNE_LR, batch: int = 128
) -> ViT:
    """The whole encoder, with a new head, trained on labelled images."""
    torch.manual_seed(seed)
    vit, dtype, (images, labels) = classifier(model, n_classes=10).train(), fast_dtype(), train
    optimiser, steps = adamw(vit, (0.9, 0.999)), epochs * (len(images) // batch)
    generator = torch.Generator().manual_seed(seed)
    for step, chosen in zip(range(steps), batches(len(images), batch), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, steps=steps, peak=peak)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(vit(random_views(images[chosen], generator)), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return vit.eval()


@torch.no_grad()
def accuracy(vit: ViT, split: Split) -> float:
    """Share of images whose largest logit is their class, in [0, 1]."""
    with torch.autocast("cpu", dtype := fast_dtype(), enabled=dtype != torch.float32):
        hits = [(vit(x).argmax(dim=1) == y).sum() for x, y in zip(*(t.split(500) for t in split), strict=True)]
    return sum(hits).item() / len(split[1])


def measure_probe(model: MAE, splits: dict[str, Split]) -> list[float]:
    """Test accuracy of linear classifiers on the frozen encoder, one a seed."""
    return [probe(model, splits, seed=seed) for seed in SEEDS]


def measure_finetuning(model: MAE, splits: dict[str, Split]) -> list[float]:
    """Test accuracy of the encoder fine-tuned on `LABELLED` images, which the seed chooses."""
    return [
        accuracy(finetune(model, labelled(splits["train"], LABELLED, seed), seed=seed), splits["test"])
        for seed in SEEDS
    ]


def untrained(config: MAEConfig) -> MAE:
    """An encoder with random weights, the baseline."""
    torch.manual_seed(100)
    return MAE(config).eval()


def measure(model: MAE, splits: dict[str, Split]) -> dict[str, list[float]]:
    """Both measurements, of this encoder and of one with random weights."""
    numbers = {}
    for name, measured in (("probe", measure_probe), ("finetune", measure_finetuning)):
        for start, of in (("", model), ("_random", untrained(model.config))):
            numbers[name + start] = measured(of, splits)
            print(f"{name}{start}:", [f"{value:.2%}" for value in numbers[name + start]], flush=True)
    return numbers


def labelled(split: Split, n: int, seed: int) -> Split:
    """n random images and their labels."""
    chosen = torch.randperm(len(split[1]), generator=torch.Generator().manual_seed(seed))[:n]
    return split[0][chosen], split[1][chosen]


def recipe(folder: Path, passes: float) -> None:
    """Pre-train, save the checkpoint, and measure it."""
    splits, start = cifar10(), time.perf_counter()
    model, losses = pretrain(splits["train"][0], RECIPE, folder, passes=passes)
    seconds = time.perf_counter() - start
    model.save_pretrained(folder, bits=16)
    curve = [statistics.mean(losses[i : i + 50]) for i in range(0, len(losses), 50)]
    numbers: dict[str, Any] = {"train_seconds": round(seconds), "steps": len(losses), "loss_every_50_steps": curve}
    numbers |= measure(model, splits) | {"labelled": LABELLED, "finetune_epochs": EPOCHS}
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def pretrain_small(
    images: Tensor, mask_ratio: float, seed: int, steps: Iterable[int] | None = None
) -> tuple[MAE, list[float]]:
    """A small masked autoencoder after one pass over the images, and the loss of each step."""
    torch.manual_seed(seed)
    model, n_steps, dtype = MAE(replace(SMALL, mask_ratio=mask_ratio)), len(images) // SMALL_BATCH, fast_dtype()

    def loss(step: int) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return pretraining_loss(model, images, step, batch=SMALL_BATCH, seed=seed)

    rate = partial(schedule, steps=n_steps, peak=SMALL_LR)
    losses = train_steps(model, adamw(model, (0.9, 0.95)), rate, loss, range(n_steps) if steps is None else steps)
    return model.eval(), losses


def run_one(mask_ratio: float | None, seed: int, splits: dict[str, Split]) -> dict[str, float]:
    """Probe and fine-tuning accuracy of an encoder pre-trained at one mask ratio, or not at all."""
    torch.manual_seed(seed)
    model = MAE(SMALL) if mask_ratio is None else pretrain_small(splits["train"][0], mask_ratio, seed)[0]
    few = labelled(splits["train"], TUNED, seed)
    tuned = finetune(model, few, seed=seed, epochs=TUNED_EPOCHS, peak=TUNED_LR)
    return {"probe": probe(model, splits, seed=seed, n_train=PROBED), "finetune": accuracy(tuned, splits["test"])}


def about() -> dict[str, Any]:
    """What the stored numbers were made with; stored beside them, so that a change here shows."""
    names = ("SMALL_BATCH", "SMALL_LR", "PROBED", "TUNED", "TUNED_EPOCHS", "TUNED_LR")
    return {"mae": asdict(SMALL)} | {name.lower(): globals()[name] for name in names}


def experiment() -> None:
    """Run what mae.json does not hold yet."""
    splits = cifar10()
    runs = {f"{ratio} {seed}": partial(run_one, ratio, seed, splits) for seed in SEEDS for ratio in (*RATIOS, None)}
    run_missing(RESULTS, runs, recipe=about())


def main() -> None:
    """Run what mae.json does not hold yet, or the recipe, or measure a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, metavar="FOLDER", help="train the shipped checkpoint into FOLDER")
    parser.add_argument("--passes", type=float, default=PASSES, help=f"over the training images ({PASSES})")
    parser.add_argument("--probe", metavar="CHECKPOINT", help="accuracy of a linear classifier on the frozen encoder")
    parser.add_argument("--finetune", metavar="CHECKPOINT", help=f"accuracy of all of it, on {LABELLED} labels")
    parser.add_argument("--from-scratch", action="store_true", help="of an encoder of that size with random weights")
    arguments = parser.parse_args()
    if arguments.recipe is not None:
        recipe(arguments.recipe, arguments.passes)
    for source, measured in ((arguments.probe, measure_probe), (arguments.finetune, measure_finetuning)):
        if source is not None:
            model = MAE.from_pretrained(source)
            values = measured(untrained(model.config) if arguments.from_scratch else model, cifar10())
            print(f"accuracy {statistics.mean(values):.2%} ± {statistics.stdev(values):.2%}, seeds {SEEDS}")
    if arguments.recipe is arguments.probe is arguments.finetune is None:
        experiment()


if __name__ == "__main__":
    main()
