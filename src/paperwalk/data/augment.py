"""Random changes of images that leave their class alone."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F


def shift_and_flip(
    images: Shaped[Tensor, "b c h w"], shifts: Shaped[Tensor, "b 2"], flips: Shaped[Tensor, " b"]
) -> Shaped[Tensor, "b c h w"]:
    """Each image moved by some pixels, black where nothing comes in, and mirrored left to right or not.

    Where nothing changes at all, these very images.

    Args:
        images: of any dtype.
        shifts: rows down and columns to the right, integers.
        flips: True to mirror.
    """
    h, w = images.shape[-2:]
    most = int(shifts.abs().max()) if len(shifts) else 0
    if not most and not flips.any():
        return images
    padded = F.pad(images, (most, most, most, most))
    rows = torch.arange(h) + most - shifts[:, :1]
    columns = torch.arange(w) + most - shifts[:, 1:]
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    image = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None]]


def draw_shifts_and_flips(n: int, most: int, generator: torch.Generator, *, flip: bool) -> tuple[Tensor, Tensor]:
    """For `n` images: shifts of −most … most pixels, and flips with probability ½ (or none)."""
    shifts = torch.randint(-most, most + 1, (n, 2), generator=generator)
    flips = torch.rand(n, generator=generator) < 0.5
    return shifts, flips & flip


def crop(images: Float[Tensor, "b c h w"], crops: Float[Tensor, "b 2 3"]) -> Float[Tensor, "b c h w"]:
    """Each image cut to a part of it, which is stretched to the size of the whole; bilinear.

    Args:
        images: floating point.
        crops: as `draw_crops` gives them.
    """
    grid = F.affine_grid(crops, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def draw_crops(n: int, generator: torch.Generator, smallest: float = 0.2) -> Float[Tensor, "n 2 3"]:
    """For `n` images: the maps from places of the crop to places of the image, which reaches from −1 to 1.

    A crop has `smallest` to all of the area and sides from 3 : 4 to 4 : 3; every other one is mirrored.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    area, stretch = uniform(smallest, 1.0), uniform(-math.log(4 / 3), math.log(4 / 3)).exp()
    width, height = ((area * s).sqrt().clamp(max=1) for s in (stretch, 1 / stretch))
    # The middle of the crop.
    x, y = (uniform(-1.0, 1.0) * (1 - side) for side in (width, height))
    flip = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    zero = torch.zeros(n)
    return torch.stack([torch.stack([flip * width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
