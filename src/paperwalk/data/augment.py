"""Random changes of images that leave their class alone."""

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F


def shift_and_flip(
    images: Shaped[Tensor, "b c h w"], shifts: Shaped[Tensor, "b 2"], flips: Shaped[Tensor, " b"]
) -> Shaped[Tensor, "b c h w"]:
    """Each image moved by some pixels, black where nothing comes in, and mirrored left to right or not.

    Args:
        images: of any dtype.
        shifts: rows down and columns to the right, integers.
        flips: True to mirror.
    """
    h, w = images.shape[-2:]
    most = int(shifts.abs().max()) if len(shifts) else 0
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
