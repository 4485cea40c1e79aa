"""Images out of noise: our samplers against diffusers', a step of each."""

from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn

from bench.ddpm import DIFFUSION, PAPER, TIMES
from bench.measure import Contender, few, interleaved, summary
from bench.training import OURS, Loss, give_weights, inside, stir
from paperwalk.samplers import ancestral, ddim
from paperwalk.unet import UNet, UNetConfig

BATCH, STEPS, LAST = 16, 50, 10
# DDIM's steps by which both are shown to do the same: through random weights each step enlarges the rounding of those
# before it, tenfold in ten steps, a millionfold in fifty.
FEW = 5
BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
TOLERANCE = 1e-3


def ours(sampler: str, model: UNet, noise: Tensor, steps: int = STEPS) -> Tensor:
    """DDIM in so many steps, or the `LAST` steps of Algorithm 2."""
    if sampler == "DDIM":
        return ddim(DIFFUSION, model, noise, steps=steps).images
    draws = torch.Generator().manual_seed(1)
    return ancestral(DIFFUSION, model, noise, start=LAST, generator=draws).images


@torch.no_grad()
def theirs(sampler: str, model: nn.Module, x: Tensor, steps: int = STEPS) -> Tensor:
    """The same with diffusers' network and scheduler, as its pipelines use them."""
    draws = torch.Generator().manual_seed(1)
    if sampler == "DDIM":
        scheduler = DDIMScheduler(TIMES, **BETAS, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps
    else:
        scheduler = DDPMScheduler(TIMES, **BETAS, variance_type="fixed_large")
        scheduler.set_timesteps(TIMES)
        times = scheduler.timesteps[-LAST:]
    for t in times:
        x = scheduler.step(model(x, t).sample, t, x, generator=draws).prev_sample
    return x


def pair(config: UNetConfig) -> tuple[UNet, nn.Module, Tensor]:
    """Ours and theirs with the same weights, and noise to begin with.

    Raises:
        AssertionError: they draw something else.
    """
    torch.manual_seed(0)
    reference = PAPER.references["diffusers"]
    model, other = UNet(config).eval(), reference.model(config).eval()
    stir(model)
    give_weights(Loss(other, reference.loss), Loss(model, PAPER.loss), inside(reference.convert))
    noise = torch.randn(BATCH, config.in_channels, config.image_size, config.image_size)
    for sampler in ("DDIM", "Algorithm 2"):
        error = (ours(sampler, model, noise, FEW) - theirs(sampler, other, noise, FEW)).abs().max().item()
        assert error <= TOLERANCE, f"{sampler}: the same weights and noise give images that differ by {error:.1e}"
    return model, other, noise


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of a whole run of each sampler, and its steps."""
    model, other, noise = pair(PAPER.sizes["middle"].config)
    found, rounds = {}, few(rounds)
    for sampler, steps in (("DDIM", STEPS), ("Algorithm 2", LAST)):
        drawers = [
            Contender(OURS, partial(ours, sampler, model, noise)),
            Contender("diffusers", partial(theirs, sampler, other, noise)),
        ]
        found[sampler] = summary(interleaved(drawers, rounds), (OURS,)) | {"steps": steps}
    return {"rounds": rounds, "batch": BATCH, "samplers": found}


if __name__ == "__main__":
    from bench.run import main

    main("sampling")
