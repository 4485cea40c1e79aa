"""The diffusion model on images: handwritten digits, clothes, photographs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from paperwalk.data import load
from paperwalk.data.augment import draw_shifts_and_flips, shift_and_flip
from paperwalk.data.table import RECIPES as DATASETS
from paperwalk.ddpm import GaussianDiffusion, linear_schedule, to_pixels, to_signed
from paperwalk.quality import JUDGES, Judge
from paperwalk.samplers import ancestral, ddim
from paperwalk.train.judge import hold_out, mean_figure, quality_figures
from paperwalk.train.precision import fast_autocast
from paperwalk.train.task import Batch, Metrics, Recipe, Task, cut, generator, shuffled, spaced
from paperwalk.unet import UNet, UNetConfig

# A data set, and the judge of its images that comes with the package.
NAMES = {"mnist": "mnist", "mnist-5k": "mnist", "fashion-mnist": "fashion-mnist", "cifar10": "cifar10"}
# Parts of 2 … T, in each of which a time is drawn to estimate the bound; and images on which it is estimated.
BOUND_PARTS, BOUND_IMAGES = 16, 1_000


class Images(NamedTuple):
    """Pixels in 0 … 255: those trained on, those held out from the training split, the test split."""

    train: Tensor
    held_out: Tensor
    test: Tensor


@dataclass(frozen=True)
class Sampling:
    """What to draw, and how.

    Args:
        n: images.
        columns: images in a row of the picture.
        steps: calls of the network for an image.
        eta: noise in DDIM's steps, from 0 to 1; without it Algorithm 2, which wants many steps.
        seed: of the noise.
        output: file of the picture.
    """

    n: int = 64
    columns: int = 8
    steps: int = 50
    eta: float | None = 0.0
    seed: int = 0
    output: Path = Path("samples.png")

    def __post_init__(self):
        if self.n < 1 or self.columns < 1:
            raise ValueError(f"n is {self.n} and columns {self.columns}, expected at least 1 of each")


@dataclass(frozen=True)
class DDPMRecipe(Recipe):
    """Train a diffusion model.

    Args:
        data: "mnist", "mnist-5k", "fashion-mnist" or "cifar10".
        model: sizes of the U-Net; `image_size` and `in_channels` must be those of the data.
        n_steps: steps T of the process, more than 20; the fewer, the more noise each adds.
        predict: what the network's output is: the noise, the mean, or the velocity.
        objective: "simple" is Eq. 14, "bound" is Eq. 5.
        variance: of the reverse process.
        focus: how the times t of a batch are drawn. None is Algorithm 1: each by itself, every t as likely. A number
            draws t in proportion to (√ᾱ_t (1 − ᾱ_t))^focus: at 1 mostly in the middle, where it is decided what the
            image will show, at 0 every t as likely. And with a number the times of a batch lie evenly over the
            distribution, the first drawn at random, so that its loss scatters less (Kingma et al. 2021, "Variational
            Diffusion Models", Section 5.3 and Appendix I.1, there for continuous times). To draw more in the middle
            follows Hang et al. 2024, "Improved Noise Schedule for Diffusion Training", with another distribution.
        constant: keep the learning rate after the warm-up, as the paper does; a cosine otherwise.
        flip: mirror each training image with probability ½.
        samples: images drawn for the evaluation.
        sample_steps: calls of the network for each of them.
        sample_eta: noise in DDIM's steps, from 0 to 1; without it Algorithm 2.
        judge: the classifier of the evaluation, a name or a folder; by default that of the data, if it comes with one.
    """

    paper: ClassVar[str] = "ddpm"
    Sampling: ClassVar[type] = Sampling
    PRESETS: ClassVar = {
        "mnist": UNetConfig.mnist(),
        "cifar10": UNetConfig.cifar10(),
        "pixels-256": UNetConfig.pixels_256(),
    }

    # Each takes a hundred calls of the network.
    quick: ClassVar[int] = 12

    batch_size: int = 64
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.0
    ema: float = 0.999
    data: str = "mnist"
    model: UNetConfig = field(default_factory=lambda: DDPMRecipe.PRESETS["mnist"])
    n_steps: int = 1_000
    predict: Literal["epsilon", "mean", "velocity"] = "epsilon"
    objective: Literal["simple", "bound"] = "simple"
    variance: Literal["large", "small"] = "large"
    focus: float | None = None
    constant: bool = False
    flip: bool = False
    samples: int = 5_000
    sample_steps: int = 50
    sample_eta: float | None = 0.0
    judge: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.data not in NAMES:
            raise ValueError(f"unknown data {self.data!r}, expected one of {', '.join(NAMES)}")
        if self.n_steps <= 20:
            raise ValueError(f"n_steps is {self.n_steps}, expected more than 20: fewer would need β over 1")
        if not 1 <= self.sample_steps <= self.n_steps:
            raise ValueError(f"sample_steps is {self.sample_steps}, expected 1 to n_steps, {self.n_steps}")
        if self.focus is not None and not 0 <= self.focus < math.inf:
            raise ValueError(f"focus is {self.focus}, expected a number of at least 0, or none")
        if self.samples < 2:
            raise ValueError(f"samples is {self.samples}, expected at least 2")

    @classmethod
    def named(cls) -> dict[str, "DDPMRecipe"]:
        """The recipes by name."""
        small = cls(focus=0.5, epochs=16.0, lr=2e-3, ema=0.9995, sample_steps=100, sample_eta=1.0)
        return {
            "mnist-cpu": small,
            "fashion-mnist-cpu": replace(small, data="fashion-mnist", predict="velocity", epochs=8.0),
            # Section 4 and Appendix B, CIFAR-10; the warm-up of 5,000 steps stands in the official code.
            "paper": cls(
                data="cifar10",
                model=UNetConfig.cifar10(),
                steps=800_000,
                batch_size=128,
                lr=2e-4,
                warmup=5_000 / 800_000,
                constant=True,
                ema=0.9999,
                flip=True,
                samples=50_000,
                sample_steps=1_000,
                sample_eta=None,
            ),
        }

    def diffusion(self) -> GaussianDiffusion:
        """The process: with T = 1000 the paper's β; with fewer steps each adds more, to end in the same noise."""
        beta = linear_schedule(self.n_steps, 0.1 / self.n_steps, 20 / self.n_steps)
        return GaussianDiffusion(beta, predict=self.predict, variance=self.variance)

    def images(self) -> Images:
        """The data.

        Raises:
            ValueError: the model's sizes are not the data's.
        """
        images = _read(self.data)
        expected = {"in_channels": images.train.shape[1], "image_size": images.train.shape[2]}
        for name, value in expected.items():
            if getattr(self.model, name) != value:
                raise ValueError(f"model.{name} is {getattr(self.model, name)}, expected {value}: that of {self.data}")
        return images

    def data_sha256(self) -> dict[str, str]:
        """Name of the data → SHA-256 of its content."""
        return {self.data: DATASETS[self.data].sha256}

    def build(self) -> UNet:
        """The untrained model."""
        return UNet(self.model)

    def forward_flops(self) -> int:
        """FLOPs of one image."""
        return self.model.forward_flops()

    def example_size(self) -> str:
        """An image, in words."""
        return f"an image of {self.model.image_size} x {self.model.image_size} pixels"

    def schedule(self, steps: int) -> Callable[[int], float]:
        """The learning rate of a step."""
        if not self.constant:
            return self.cosine(steps)
        return lambda step: self.lr * min(1.0, (step + 1) / max(1.0, self.warmup * steps))

    def times(self, n: int, draws: torch.Generator) -> Tensor:
        """The times t (n) of a batch, as `focus` says."""
        if self.focus is None:
            return torch.randint(1, self.n_steps + 1, (n,), generator=draws)
        bar = self.diffusion().alpha_bar[1:]
        height = bar.sqrt() * (1 - bar)
        shares = (height / height.max()).pow(self.focus).cumsum(0)
        start = torch.rand(1, generator=draws, dtype=torch.float64)
        places = (start + torch.arange(n, dtype=torch.float64) / n) % 1
        return 1 + torch.searchsorted(shares[:-1], places * shares[-1], right=True)

    def task(self) -> Task:
        """Algorithm 1: predict the noise (or the mean, or the velocity) in images that have more or less of it."""
        images, diffusion, model = self.images().train, self.diffusion(), self.build()
        steps = self.steps_of(len(images))

        def batch(step: int, part: int, parts: int) -> Batch:
            rows = shuffled(len(images), self.batch_size, self.seed, step)
            draws = generator(self.seed + 1, step)
            shifts, flips = draw_shifts_and_flips(len(rows), 0, draws, flip=self.flip)
            t = self.times(len(rows), draws)
            epsilon = torch.randn(len(rows), *images.shape[1:], generator=draws)
            rows, shifts, flips, t, epsilon = (cut(each, part, parts) for each in (rows, shifts, flips, t, epsilon))
            return to_signed(shift_and_flip(images[rows], shifts, flips)), t, epsilon

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            measure = diffusion.loss if self.objective == "simple" else diffusion.bound_term
            return measure(model, *batch).mean(), len(batch[0])

        return Task(model, self.adamw(model), self.schedule(steps), steps, batch, loss)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The weights, in half precision."""
        model.save_pretrained(folder, bits=16)

    def load(self, folder: Path) -> UNet:
        """The model that `save` wrote."""
        return UNet.from_pretrained(folder)

    def draw(self, model: nn.Module, n: int, steps: int, *, eta: float | None = 0.0, seed: int = 0) -> Tensor:
        """Images (n c h w), out of noise; by DDIM, or without `eta` by Algorithm 2.

        Raises:
            ValueError, FloatingPointError: as the samplers.
        """
        device = next(model.parameters()).device
        side, parts = self.model.image_size, []
        for number, part in enumerate(torch.arange(n).split(250)):
            draws = generator(seed, number)
            noise = torch.randn(len(part), self.model.in_channels, side, side, generator=draws).to(device)
            sampler = ancestral if eta is None else partial(ddim, eta=eta)
            parts.append(sampler(self.diffusion(), model, noise, steps=steps, generator=draws).images.cpu())
        return torch.cat(parts)

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Metrics:
        """Loss and variational bound on the test images; and, with a judge, the quality of images drawn.

        The figures are those of `quality_figures`, beside the test images; "real: " are those of as many of the
        training images that `hold_out` keeps from model and judge. On a processor images are drawn in the number format
        that is fastest.
        """
        model.eval()
        images, diffusion = self.images(), self.diffusion()
        chosen = to_signed(images.test[spaced(len(images.test), limit)])
        found = {"loss": mean_figure(_losses(diffusion, model, chosen))}
        few = chosen[spaced(len(chosen), min(limit or BOUND_IMAGES, BOUND_IMAGES))]
        found["bits per dimension"] = mean_figure(estimated_bits(diffusion, model, few))
        judge = self.judge or NAMES[self.data]
        if self.judge is None and not (JUDGES / judge / "config.json").is_file():
            return found
        classifier = Judge.from_pretrained(judge)
        reference = classifier.judge(to_signed(images.test)).features
        n = min(limit or self.samples, self.samples)
        with fast_autocast():
            drawn = self.draw(model, n, self.sample_steps, eta=self.sample_eta)
        found |= quality_figures("", classifier.judge(drawn), reference)
        real = images.held_out[spaced(len(images.held_out), n)][:n]
        return found | quality_figures("real: ", classifier.judge(to_signed(real)), reference)

    def sample(self, model: nn.Module, folder: Path, how: Sampling) -> str:
        """A picture of images drawn; returns where it is."""
        from PIL import Image

        drawn = to_pixels(self.draw(model, how.n, how.steps, eta=how.eta, seed=how.seed))
        columns = min(how.columns, how.n)
        missing = -how.n % columns
        drawn = torch.cat([drawn, drawn.new_zeros(missing, *drawn.shape[1:])])
        tiled = rearrange(drawn, "(rows k) c h w -> (rows h) (k w) c", k=columns).squeeze(-1)
        picture = Image.fromarray(tiled.numpy())
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(how.output)
        return f"{how.n} images in {how.output}"


def estimated_bits(diffusion: GaussianDiffusion, model: nn.Module, x_0: Tensor) -> Tensor:
    """The variational bound of each image (b), in bits a dimension, estimated without bias by a few of its terms.

    L_0 and L_T stand as they are; of 2 … T each of some parts, short ones first, gives one term for all of its terms.
    """
    device, draws = next(model.parameters()).device, generator(1, 0)
    parts = min(BOUND_PARTS, diffusion.n_steps - 1)
    edges = [2 + round((diffusion.n_steps - 1) * (i / parts) ** 2) for i in range(parts + 1)] if parts else []
    strata = [(low, high) for low, high in pairwise(edges) if low < high]
    totals = []
    for images in x_0.split(250):
        total = diffusion.prior_term(images)
        for low, high in [(1, 2), *strata]:
            t = torch.randint(low, high, (len(images),), generator=draws)
            noise = torch.randn(images.shape, generator=draws)
            with torch.no_grad():
                term = diffusion.bound_term(model, images.to(device), t.to(device), noise.to(device), clip=True)
            total = total + (high - low) * term.cpu()
        totals.append(total)
    return torch.cat(totals)


@torch.no_grad()
def _losses(diffusion: GaussianDiffusion, model: nn.Module, x_0: Tensor) -> Tensor:
    device, draws, losses = next(model.parameters()).device, generator(2, 0), []
    for images in x_0.split(250):
        t = torch.randint(1, diffusion.n_steps + 1, (len(images),), generator=draws)
        noise = torch.randn(images.shape, generator=draws)
        losses.append(diffusion.loss(model, *(each.to(device) for each in (images, t, noise))).cpu())
    return torch.cat(losses)


@cache
def _read(data: str) -> Images:
    dataset = load(data)
    train, held_out = hold_out(dataset.train)
    return Images(train.images, held_out.images, dataset.test.images)
