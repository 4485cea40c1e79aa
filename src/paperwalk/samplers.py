"""Images out of noise: the reverse process a step at a time, by Algorithm 2 or in few steps.

Ho, Jain and Abbeel 2020, Algorithm 2 ("ancestral": each step is a draw from p_θ); Song, Meng and Ermon, "Denoising
Diffusion Implicit Models", ICLR 2021, arXiv:2010.02502 (DDIM). Official implementation of the second: ermongroup/ddim,
`functions/denoising.py`. Symbols are those of `paperwalk.ddpm`; what DDIM calls α_t is ᾱ_t here.

Differs from the papers:
- Algorithm 2 in fewer steps than T is not in Ho et al.; with the large variance it is what DDIM calls σ̂.
- The times of few steps are spread so that the first is T; the official code of DDIM begins a little before T.
- The x̂_0 that follows from predicted noise is cut off at −1 and 1 unless `clip` is False; DDIM's official code does not
  cut it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paperwalk.ddpm import GaussianDiffusion, Model, Prediction, at_time, noise_like


class Frame(NamedTuple):
    """A picture of the film: a time, the noisy images then, and the clean images predicted on the way there."""

    t: int
    x_t: Float[Tensor, "b c h w"]
    x_0: Float[Tensor, "b c h w"]


class Samples(NamedTuple):
    """Images, and the film of how they came about (empty if none was asked for)."""

    images: Float[Tensor, "b c h w"]
    film: list[Frame]


def even_times(n_steps: int, steps: int) -> list[int]:
    """The times τ_1 < … < τ_S = T, evenly spread, at which a sampler of S = `steps` steps calls the network.

    Raises:
        ValueError: fewer than 1 step, or more than T.

    Source: DDIM, Section 4.2 (τ a sub-sequence of 1 … T).
    """
    if not 1 <= steps <= n_steps:
        raise ValueError(f"steps is {steps}, expected 1 to {n_steps}: the process has no more")
    return [i * n_steps // steps for i in range(1, steps + 1)]


def ddpm_step(diffusion: GaussianDiffusion, x_t: Tensor, predicted: Prediction, t: int, s: int, z: Tensor) -> Tensor:
    """A draw from p_θ(x_s | x_t): μ_θ + σ_t z; the mean alone where s = 0.

    Source: Ho et al., Eq. 11 and Algorithm 2, line 4, where s = t − 1.
    """
    of_x_0, of_x_t, _ = (weight.item() for weight in diffusion.posterior_weights(t, s))
    sigma = diffusion.reverse_variance(t, s).sqrt().item() if s else 0.0
    return of_x_0 * predicted.x_0 + of_x_t * x_t + sigma * z


def ddim_step(
    diffusion: GaussianDiffusion, x_t: Tensor, predicted: Prediction, t: int, s: int, z: Tensor, *, eta: float
) -> Tensor:
    """√ᾱ_s x̂_0 + √(1 − ᾱ_s − σ²) ε̂ + σ z, with σ = η √β̃_t.

    η = 0 adds no noise; η = 1 is a draw from p_θ with the small variance, as long as x̂_0 is not cut off.

    Source: DDIM, Eq. 12 and 16.
    """
    bar = diffusion.alpha_bar[s].item()
    variance = eta**2 * diffusion.posterior_weights(t, s)[2].item()
    return bar**0.5 * predicted.x_0 + max(0.0, 1 - bar - variance) ** 0.5 * predicted.epsilon + variance**0.5 * z


def ancestral(diffusion: GaussianDiffusion, model: Model, x: Tensor, *, steps: int | None = None, **options) -> Samples:
    """Images by Algorithm 2; in fewer steps than T, each goes over several of the process.

    Args:
        diffusion: the process that the model was trained on.
        model: set to eval mode if it is a module.
        x: (b c h w), standard normal noise; or, with `start`, images at that time.
        steps: calls of the network; T by default.
        options: `start`, `clip`, `every`, `generator`, as in `walk`.

    Raises:
        ValueError, FloatingPointError: as `walk`.

    Source: Ho et al., Algorithm 2; in fewer steps DDIM, Section 5 (σ̂) and Appendix D.
    """
    return walk(diffusion, model, x, partial(ddpm_step, diffusion), steps, **options)


def ddim(
    diffusion: GaussianDiffusion, model: Model, x: Tensor, *, steps: int = 50, eta: float = 0.0, **options
) -> Samples:
    """Images by DDIM. The arguments are `ancestral`'s, and `eta`, from 0 (no noise) to 1 (as much as DDPM).

    Raises:
        ValueError, FloatingPointError: as `walk`, and an `eta` outside 0 … 1.

    Source: DDIM, Section 4.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}, expected 0 to 1")
    return walk(diffusion, model, x, partial(ddim_step, diffusion, eta=eta), steps, **options)


@torch.no_grad()
def walk(
    diffusion: GaussianDiffusion,
    model: Model,
    x: Tensor,
    move: Callable[[Tensor, Prediction, int, int, Tensor], Tensor],
    steps: int | None = None,
    *,
    start: int | None = None,
    clip: bool = True,
    every: int = 0,
    generator: torch.Generator | None = None,
) -> Samples:
    """From x at time `start` to the clean images, a `move` at a time.

    Args:
        move: from x_t, what the network says of it, t, s and noise, to x_s.
        start: T by default.
        clip: as in `GaussianDiffusion.read`.
        every: with n, each n-th step and the last are kept for the film; 0 for no film.
        generator: of the noise that the moves add; with one of the same seed the images are the same on a machine.

    Raises:
        ValueError: more steps than there are times, or a `start` that is not in 1 … T.
        FloatingPointError: the network's output is not finite; it says at which step.
    """
    start = diffusion.n_steps if start is None else start
    if not 1 <= start <= diffusion.n_steps:
        raise ValueError(f"start is {start}, expected a time in 1 to {diffusion.n_steps}")
    times = even_times(start, start if steps is None else steps)
    if isinstance(model, nn.Module):
        model.eval()
    film = []
    for i, (t, s) in enumerate(zip(times[::-1], [0, *times[:-1]][::-1], strict=True), start=1):
        output = diffusion.call(model, x, at_time(x, t))
        if not output.isfinite().all():
            raise FloatingPointError(f"step {i} of {len(times)}, t = {t}: the network's output is not finite")
        predicted = diffusion.read(output, x, at_time(x, t), clip=clip)
        x = move(x, predicted, t, s, noise_like(x, generator))
        if every and (i % every == 0 or s == 0):
            film.append(Frame(s, x, predicted.x_0))
    return Samples(x, film)
