"""What every configuration checks about its sizes and choices, and every model about its images or tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_sizes(config: Any, *names: str) -> None:
    """Raise a ValueError unless each of these fields is an int of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}, expected an int of at least 1")


def check_multiple(config: Any, whole: str, part: str) -> None:
    """Raise a ValueError unless the field `whole` is a multiple of the field `part`."""
    large, small = getattr(config, whole), getattr(config, part)
    if large % small:
        raise ValueError(f"{whole}={large} is not a multiple of {part}={small}, expected one that is")


def check_choice(config: Any, name: str, allowed: Sequence[str]) -> None:
    """Raise a ValueError unless the field is one of the values allowed."""
    if getattr(config, name) not in allowed:
        raise ValueError(f"{name}={getattr(config, name)!r}, expected one of {', '.join(map(repr, allowed))}")


def check_images(images: Tensor, channels: int, side: int) -> None:
    """Raise a ValueError unless `images` are a batch (b, channels, side, side) of floating-point numbers, b >= 1."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (channels, side, side) or len(images) == 0:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, expected (b, {channels}, {side}, {side}) with b >= 1"
        )
    if not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}, expected floating point: scale and normalise them")


def check_tokens(name: str, tokens: Tensor, vocab_size: int, most: int) -> None:
    """Raise a ValueError unless `tokens` are (b, t) integers of the vocabulary, 1 to `most` positions t."""
    if tokens.ndim != 2 or 0 in tokens.shape or tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"{name} is {tokens.dtype} of shape {tuple(tokens.shape)}, expected token ids (b, t) with b, t >= 1"
        )
    if tokens.shape[1] > most:
        raise ValueError(f"{name} has {tokens.shape[1]} positions, expected at most {most}")
    low, high = tokens.min().item(), tokens.max().item()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name} has token ids {low} to {high}, expected 0 to {vocab_size - 1}")
