"""The diffusion model against diffusers."""

from functools import partial

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from bench.training import Paper, Reference, Size, measure_training
from paperwalk.ddpm import GaussianDiffusion, linear_schedule
from paperwalk.published.ddpm import our_names
from paperwalk.unet import UNet, UNetConfig

SIZES = {
    "small": Size(UNetConfig(16, 1, d_model=32, multipliers=(1, 2), n_blocks=1, attention_sizes=(8,)), 32),
    "middle": Size(UNetConfig(32, 1, d_model=32, multipliers=(1, 2, 2), n_blocks=2, attention_sizes=(8,)), 32),
    "large": Size(UNetConfig(32, 1, d_model=64, multipliers=(1, 2, 2), n_blocks=2, attention_sizes=(8,)), 16),
}
# Of the process.
TIMES = 1_000
DIFFUSION, SCHEDULER = GaussianDiffusion(linear_schedule(TIMES)), DDPMScheduler(TIMES, beta_start=1e-4, beta_end=0.02)


def inputs(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Images in −1 … 1, times from 1, noise."""
    config = size.config
    draws = torch.Generator().manual_seed(0)
    shape = (size.batch, config.in_channels, config.image_size, config.image_size)
    images, noise = 2 * torch.rand(shape, generator=draws) - 1, torch.randn(shape, generator=draws)
    return images, torch.randint(1, TIMES + 1, (size.batch,), generator=draws), noise


def diffusers_unet(config: UNetConfig) -> nn.Module:
    """diffusers', set up as the paper's."""
    attend = [side in config.attention_sizes for side in config.sides]
    return UNet2DModel(
        sample_size=config.image_size,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=tuple("AttnDownBlock2D" if each else "DownBlock2D" for each in attend),
        up_block_types=tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in attend[::-1]),
        block_out_channels=config.widths,
        layers_per_block=config.n_blocks,
        downsample_padding=0,
        attention_head_dim=config.d_head,
        norm_num_groups=config.n_groups,
        norm_eps=config.norm_eps,
    )


def loss(model: nn.Module, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Eq. 14 by our process."""
    return DIFFUSION.loss(model, images, t, noise).mean()


def diffusers_loss(model: nn.Module, images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The same by theirs, whose times begin at 0."""
    return F.mse_loss(model(SCHEDULER.add_noise(images, noise, t - 1), t - 1).sample, noise)


PAPER = Paper(
    name="ddpm",
    unit="images",
    items=lambda size: size.batch,
    sizes=SIZES,
    model=UNet,
    loss=loss,
    inputs=inputs,
    flops=UNetConfig.forward_flops,
    references={"diffusers": Reference(diffusers_unet, diffusers_loss, our_names)},
)
measure = partial(measure_training, PAPER)

if __name__ == "__main__":
    from bench.run import main

    main(PAPER.name)
