r"""Pictures out of noise: learn to undo a process that adds a little noise a thousand times.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239. Official
implementation: hojonathanho/diffusion, `diffusion_tf/diffusion_utils_2.py` (CIFAR-10). How to sample is in
`paperwalk.samplers`, the network in `paperwalk.unet`.

| axis, symbol | paper | meaning |
|---|---|---|
| b, c, h, w | | images, channels, pixel rows and columns |
| t | t | how often noise was added: 1 … T; 0 is the clean image |
| s | t − 1 | the time that a step of the reverse process goes to; earlier where a sampler skips |
| alpha_bar | ᾱ_t | share of the image's variance that is left, ∏ (1 − β); ᾱ_0 = 1 |
| epsilon | ε | standard normal noise |
| x_0, x_t | x_0, x_t | the image, and the image after t steps |

Differs from the paper:
- The network is given t − 1, which counts from 0 as in the official code.
- In the bound σ_1² is β̃_2 for both choices of variance, as in the official code: β̃_1 is 0, and no density has that
  variance. Sampling needs none at t = 1.
- The x̂_0 that follows from the network's output is cut off at −1 and 1 in sampling and in the bound, as in the official
  code (the paper does not say so); only a predicted mean stays as it is.
- The network may also predict the velocity √ᾱ_t ε − √(1 − ᾱ_t) x_0: Salimans and Ho, "Progressive Distillation for
  Fast Sampling of Diffusion Models", ICLR 2022, arXiv:2202.00512, Section 4.
- β may not fall with t; the integral in Eq. 13 is exact, and its probabilities at least 10⁻¹².
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]


class Prediction(NamedTuple):
    """What the network's output says of the image and of the noise in x_t."""

    x_0: Float[Tensor, "b c h w"]
    epsilon: Float[Tensor, "b c h w"]


def linear_schedule(n_steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Float64[Tensor, " steps"]:
    """β_1 … β_T, evenly spaced from `first` to `last`.

    Raises:
        ValueError: no steps.

    Source: Section 4.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}, expected at least 1")
    return torch.linspace(first, last, n_steps, dtype=torch.float64)


def to_signed(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """0 … 255 → −1 … 1.

    Raises:
        ValueError: pixels of another dtype, which may well be scaled already.

    Source: Section 3.3.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels are {pixels.dtype}, expected torch.uint8 in 0 … 255")
    return pixels.float() / 127.5 - 1


def to_pixels(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """−1 … 1 → 0 … 255, cut off outside."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class GaussianDiffusion:
    """The process that adds noise, q, and the one that takes it away, p_θ.

    Args:
        beta: β_1 … β_T, the variance of the noise added in each step.
        predict: what the network's output is: the noise ε (Eq. 11), the mean μ (Eq. 8), or the velocity (above).
        variance: σ_t² of the reverse process: "large" is β_t, "small" is β̃_t (Section 3.2).

    Raises:
        ValueError: β outside (0, 1), or not in order, or an unknown choice.
    """

    def __init__(
        self,
        beta: Float[Tensor, " steps"],
        *,
        predict: Literal["epsilon", "mean", "velocity"] = "epsilon",
        variance: Literal["large", "small"] = "large",
    ):
        if beta.ndim != 1 or len(beta) == 0:
            raise ValueError(f"beta has shape {tuple(beta.shape)}, expected a vector of at least one number")
        if not ((beta > 0) & (beta < 1)).all():
            raise ValueError(f"beta lies in [{beta.min():.3g}, {beta.max():.3g}], expected numbers between 0 and 1")
        if (beta.diff() < 0).any():
            raise ValueError("beta falls from one step to a later one, expected β_1 ≤ … ≤ β_T")
        if predict not in ("epsilon", "mean", "velocity"):
            raise ValueError(f"predict={predict!r}, expected 'epsilon', 'mean' or 'velocity'")
        if variance not in ("large", "small"):
            raise ValueError(f"variance={variance!r}, expected 'large' or 'small'")
        self.predict, self.variance, self.n_steps = predict, variance, len(beta)
        # In double precision, and entry t of each table belongs to time t: entry 0 is the clean image.
        self.beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta.double().cpu()])
        self.alpha_bar = (1 - self.beta).cumprod(0)

    # The forward process

    def q_step(self, x: Tensor, t: Int[Tensor, " b"], epsilon: Tensor) -> Tensor:
        """A draw from q(x_t | x_{t−1}): √(1 − β_t) x_{t−1} + √β_t ε.

        Raises:
            ValueError: times that are not in 1 … T, one an image.

        Source: Eq. 2.
        """
        beta = self.beta[self._times(t, x)]
        return per_image((1 - beta).sqrt(), x) * x + per_image(beta.sqrt(), x) * epsilon

    def q_sample(self, x_0: Tensor, t: Int[Tensor, " b"], epsilon: Tensor) -> Tensor:
        """A draw from q(x_t | x_0): √ᾱ_t x_0 + √(1 − ᾱ_t) ε.

        Raises:
            ValueError: as `q_step`.

        Source: Eq. 4.
        """
        alpha_bar = self.alpha_bar[self._times(t, x_0)]
        return per_image(alpha_bar.sqrt(), x_0) * x_0 + per_image((1 - alpha_bar).sqrt(), x_0) * epsilon

    def posterior_weights(self, t: Tensor | int, s: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
        """Of q(x_s | x_t, x_0), 0 ≤ s < t ≤ T: the weights of x_0 and of x_t in the mean μ̃, and the variance β̃.

        Source: Eq. 7, which has s = t − 1; for an earlier s, β_t is the variance that all steps after s add.
        """
        bar_t, bar_s = self.alpha_bar[t], self.alpha_bar[s]
        alpha = bar_t / bar_s
        of_x_0, of_x_t = bar_s.sqrt() * (1 - alpha) / (1 - bar_t), alpha.sqrt() * (1 - bar_s) / (1 - bar_t)
        return of_x_0, of_x_t, (1 - bar_s) / (1 - bar_t) * (1 - alpha)

    def posterior(self, x_t: Tensor, x_0: Tensor, t: Int[Tensor, " b"]) -> tuple[Tensor, Float64[Tensor, " b"]]:
        """The mean μ̃_t and the variance β̃_t of q(x_{t−1} | x_t, x_0).

        Raises:
            ValueError: as `q_step`.

        Source: Eq. 6 and 7.
        """
        t = self._times(t, x_t)
        of_x_0, of_x_t, variance = self.posterior_weights(t, t - 1)
        return per_image(of_x_0, x_t) * x_0 + per_image(of_x_t, x_t) * x_t, variance

    # The reverse process

    def reverse_variance(self, t: Tensor | int, s: Tensor | int) -> Tensor:
        """σ_t² of p_θ(x_s | x_t), for times 0 ≤ s < t ≤ T; for s = 0 the bound has another, see `bound_term`.

        Source: Section 3.2.
        """
        return (
            self.posterior_weights(t, s)[2] if self.variance == "small" else 1 - self.alpha_bar[t] / self.alpha_bar[s]
        )

    def read(self, output: Tensor, x_t: Tensor, t: Int[Tensor, " b"], *, clip: bool = False) -> Prediction:
        """What the network's output for x_t says: x̂_0 and ε̂.

        Args:
            clip: whether x̂_0 is cut off at −1 and 1, unless the network predicts the mean, which is kept, as in the
                official code; the x̂_0 and ε̂ that follow from it are rough at large t, where the mean has next to
                nothing of x_0 in it.

        Source: Eq. 15; for a network that predicts the mean, Eq. 7 solved for x_0; for the velocity, Salimans
        and Ho 2022, Section 4.
        """
        t = self._times(t, x_t)
        bar = self.alpha_bar[t]
        signal, noise = per_image(bar.sqrt(), x_t), per_image((1 - bar).sqrt(), x_t)
        if self.predict == "epsilon":
            x_0 = (x_t - noise * output) / signal
            return Prediction(x_0.clamp(-1, 1) if clip else x_0, output)
        if self.predict == "velocity":
            x_0 = signal * x_t - noise * output
            return Prediction(x_0.clamp(-1, 1) if clip else x_0, noise * x_t + signal * output)
        of_x_0, of_x_t, _ = self.posterior_weights(t, t - 1)
        x_0 = (output - per_image(of_x_t, x_t) * x_t) / per_image(of_x_0, x_t)
        return Prediction(x_0, (x_t - signal * x_0) / noise)

    def call(self, model: Model, x_t: Tensor, t: Int[Tensor, " b"]) -> Tensor:
        """The network's output: it counts time from 0, and may compute in half precision."""
        return model(x_t, t - 1).to(x_t.dtype)

    # What is trained, and what is measured

    def loss(self, model: Model, x_0: Tensor, t: Int[Tensor, " b"], epsilon: Tensor) -> Float[Tensor, " b"]:
        """L_simple of each image: the mean over its pixels of (ε − ε_θ)², or of the squared error of the mean or of the
        velocity where that is predicted.

        Raises:
            ValueError: times as in `q_step`, or pixels outside −1 … 1.

        Source: Eq. 14 and Algorithm 1; for the mean, Table 2.
        Differs: the mean over pixels instead of their sum, as in the official code.
        """
        _check_scaled(x_0)
        x_t = self.q_sample(x_0, t, epsilon)
        return (self.target(x_0, x_t, t, epsilon) - self.call(model, x_t, t)).square().mean(dim=(1, 2, 3))

    def target(self, x_0: Tensor, x_t: Tensor, t: Int[Tensor, " b"], epsilon: Tensor) -> Tensor:
        """What the network's output is compared with: ε, μ̃ or the velocity.

        Source: Eq. 14; Table 2; Salimans and Ho 2022, Section 4.
        """
        if self.predict == "epsilon":
            return epsilon
        if self.predict == "mean":
            return self.posterior(x_t, x_0, t)[0]
        bar = self.alpha_bar[self._times(t, x_0)]
        return per_image(bar.sqrt(), x_0) * epsilon - per_image((1 - bar).sqrt(), x_0) * x_0

    def bound_term(
        self, model: Model, x_0: Tensor, t: Int[Tensor, " b"], epsilon: Tensor, *, clip: bool = False
    ) -> Float[Tensor, " b"]:
        """L_{t−1} of each image, in bits a dimension: for t > 1 a divergence, for t = 1 a code length.

        Raises:
            ValueError: as `loss`.

        Source: Eq. 5, 8 and 13.
        """
        _check_scaled(x_0)
        x_t = self.q_sample(x_0, t, epsilon)
        true_mean, true_variance = self.posterior(x_t, x_0, t)
        predicted = self.read(self.call(model, x_t, t), x_t, t, clip=clip)
        mean, _ = self.posterior(x_t, predicted.x_0, t)
        times = self._times(t, x_0)
        # At t = 1 the posterior's variance is 0, and both are taken from t = 2.
        later = times.clamp(min=min(2, self.n_steps))
        first = self.posterior_weights(later, later - 1)[2] if self.n_steps > 1 else self.beta[times]
        variance = torch.where(times > 1, self.reverse_variance(times, times - 1), first)
        sigma = per_image(variance.sqrt(), x_0)
        ratio = per_image(torch.where(times > 1, true_variance, first) / variance, x_0)
        divergence = 0.5 * (ratio - 1 - ratio.log() + ((true_mean - mean) / sigma).square())
        nats = torch.where(per_image(times.double(), x_0) > 1, divergence, -log_bin_probability(x_0, mean, sigma))
        return nats.mean(dim=(1, 2, 3)) / math.log(2)

    def prior_term(self, x_0: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """L_T of each image, in bits a dimension: how far q(x_T | x_0) is from N(0, I).

        Source: Eq. 5.
        """
        bar = self.alpha_bar[-1].item()
        nats = 0.5 * (bar * x_0.double().square() - bar - math.log1p(-bar))
        return (nats.mean(dim=(1, 2, 3)) / math.log(2)).to(x_0.dtype)

    @torch.no_grad()
    def bits_per_dim(
        self,
        model: Model,
        x_0: Float[Tensor, "b c h w"],
        generator: torch.Generator | None = None,
        *,
        clip: bool = True,
    ) -> Float[Tensor, "b terms"]:
        """The variational bound: L_0, L_1, …, L_T of each image, in bits a dimension; their sum is the bound.

        Raises:
            ValueError: pixels outside −1 … 1.

        Cost: T forward passes.
        Source: Eq. 5.
        """
        times = range(1, self.n_steps + 1)
        terms = [self.bound_term(model, x_0, at_time(x_0, t), noise_like(x_0, generator), clip=clip) for t in times]
        return torch.stack([*terms, self.prior_term(x_0)], dim=1)

    # Checks

    def _times(self, t: Tensor, x: Tensor) -> Int[Tensor, " b"]:
        if t.shape != x.shape[:1] or t.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"t is {t.dtype} of shape {tuple(t.shape)}, expected integers of shape {tuple(x.shape[:1])}"
            )
        t = t.cpu().long()
        if t.min() < 1 or t.max() > self.n_steps:
            raise ValueError(f"t lies in {t.min()} … {t.max()}, expected 1 … {self.n_steps}")
        return t


def log_bin_probability(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log of the probability that N(mean, σ²) gives to each pixel's bin, x ± 1/255, open to the outside at −1 and 1.

    Source: Eq. 13.
    """
    upper = torch.special.ndtr((x - mean + 1 / 255) / sigma)
    lower = torch.special.ndtr((x - mean - 1 / 255) / sigma)
    upper = torch.where(x > 0.999, 1.0, upper)
    lower = torch.where(x < -0.999, 0.0, lower)
    return (upper - lower).clamp(min=1e-12).log()


def per_image(values: Float64[Tensor, " b"], x: Tensor) -> Tensor:
    """One number an image, in a shape that multiplies the images x."""
    return values.to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))


def at_time(x: Tensor, t: int) -> Int[Tensor, " b"]:
    """The same time for each image."""
    return torch.full((len(x),), t, device=x.device)


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers, as many as x has, drawn on the generator's device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def _check_scaled(x: Tensor) -> None:
    low, high = x.aminmax()
    if not (low >= -1 and high <= 1):
        raise ValueError(f"pixels lie in {low:.3g} … {high:.3g}, expected −1 … 1: scale them by to_signed")
