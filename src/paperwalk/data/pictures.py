"""Pictures with an opacity, as the emoji have it: read, put on a ground, and changed at random, caption kept."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from paperwalk.data import to_float
from paperwalk.data.folder import read_images

# Random numbers that `augment` takes for one picture.
N_DRAWS = 23

# Red, green, blue and opacity, uint8 (4 h w); or the file to read.
Picture = Tensor | Path


def read_pictures(pictures: Sequence[Picture], size: int) -> UInt8[Tensor, "b 4 h w"]:
    """The pictures with their opacity; files cut to squares of `size` pixels, opaque.

    Raises:
        ValueError: a file that is no image.
    """
    if isinstance(pictures[0], Tensor):
        return torch.stack(list(pictures))
    pixels = read_images(pictures, size)
    return torch.cat([pixels, torch.full_like(pixels[:, :1], 255)], dim=1)


def on_white(pictures: UInt8[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures with an opacity, on a white ground; from −1 to 1."""
    pixels = to_float(pictures)
    return 2 * (pixels[:, :3] * pixels[:, 3:] + 1 - pixels[:, 3:]) - 1


def augment(
    pictures: UInt8[Tensor, "b 4 h w"], mirror: Bool[Tensor, " b"], draws: Float[Tensor, "b n"]
) -> Float[Tensor, "b 3 h w"]:
    """Pictures turned, on any ground, in other colours, with a patch covered; from −1 to 1.

    Args:
        pictures: red, green, blue and opacity.
        mirror: whether the picture may be mirrored.
        draws: `N_DRAWS` numbers of [0, 1) for each picture, on which alone the change depends.
    """
    h, w = pictures.shape[-2:]
    numbers = iter(draws.T[..., None, None, None])

    def uniform() -> Tensor:
        return torch.cat([next(numbers) for _ in range(3)], dim=1)

    def jitter(size: float) -> Tensor:
        return (size * (2 * next(numbers) - 1)).exp()

    pixels = to_float(pictures)
    # Colours times opacity can be interpolated; a transparent pixel has no colour to mix in.
    pixels = turned(torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], dim=1), mirror, numbers)
    ground = torch.where(next(numbers) < 0.5, uniform(), torch.ones(1))
    x = (pixels[:, :3] + (1 - pixels[:, 3:]) * ground) * jitter(0.3)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * jitter(0.3)
    grey = x.mean(dim=1, keepdim=True)
    tint = torch.cat([jitter(0.1) for _ in range(3)], dim=1)
    x = ((grey + (x - grey) * jitter(0.4)) * tint).clamp(0, 1)
    rows, columns = torch.arange(h).view(1, 1, h, 1), torch.arange(w).view(1, 1, 1, w)
    covered = ((rows - h * next(numbers)).abs() < h / 7) & ((columns - w * next(numbers)).abs() < w / 7)
    return 2 * torch.where(covered & (next(numbers) < 0.5), uniform(), x) - 1


def turned(
    pictures: Float[Tensor, "b c h w"], mirror: Bool[Tensor, " b"], numbers: Iterator[Tensor]
) -> Float[Tensor, "b c h w"]:
    """Each picture turned by up to 20°, scaled, sheared, moved, and mirrored every other time where `mirror` allows."""
    angle, scale, aspect, shear, x, y, side = (2 * next(numbers).flatten() - 1 for _ in range(7))
    scale, aspect = (0.25 * scale).exp(), (0.12 * aspect).exp()
    cos, sin = scale * (0.35 * angle).cos(), scale * (0.35 * angle).sin()
    side = torch.where((side < 0) & mirror, -1.0, 1.0)
    first = torch.stack([side * aspect * cos, 0.15 * shear - aspect * sin, 0.2 * x], dim=1)
    second = torch.stack([side * sin / aspect, cos / aspect, 0.2 * y], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)
