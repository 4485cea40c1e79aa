"""Timing that a noisy machine does not bend: contenders in turn, medians; and what this machine can do at best."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from paperwalk.train.precision import fast_precision

# Of the matrix product that stands for the machine's peak.
SIDE = 2048


class Contender(NamedTuple):
    """Something to time: a name, and what is called once a round."""

    name: str
    step: Callable[[], Any]


def interleaved(
    contenders: Sequence[Contender], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """The seconds of each contender in each round; in a round each runs once, and each round begins with another one.

    A machine that is slow for a while is so for all of them. A run before the first round, which takes memory and
    chooses kernels, does not count.
    """
    for contender in contenders:
        contender.step()
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        first = number % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            start = clock()
            contender.step()
            seconds[contender.name].append(clock() - start)
    return seconds


def few(rounds: int) -> int:
    """Rounds for what takes seconds each: half of them."""
    return rounds // 2 + 1


def spread(values: Sequence[float]) -> list[float]:
    """Median, lower and upper quartile."""
    if len(values) == 1:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


def times_as_fast(seconds: dict[str, list[float]], ours: str, theirs: str) -> list[float]:
    """`spread` of their seconds over ours, round by round."""
    return spread([b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)])


def summary(seconds: dict[str, list[float]], ours: Sequence[str]) -> dict[str, Any]:
    """What results.json keeps of the rounds: `spread` of each contender's seconds, and of its ratio to each of ours."""
    return {
        "seconds": {name: spread(each) for name, each in seconds.items()},
        "times as fast": {
            name: {other: times_as_fast(seconds, name, other) for other in seconds if other not in ours}
            for name in ours
        },
    }


def best(call: Callable[[], Any], repeats: int = 9) -> float:
    """The fewest seconds that the call took."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def peak_flops(dtype: torch.dtype) -> float:
    """FLOPs a second of a product of two matrices of 2048 x 2048."""
    a = torch.ones(SIDE, SIDE, dtype=dtype)
    return 2 * SIDE**3 / best(lambda: a @ a)


def bandwidth(n_bytes: int) -> float:
    """Bytes a second at which matrices of this many bytes in all are read, each once, to be multiplied by a vector.

    Several, as a model has: one large matrix alone is read faster than a model can be, since nothing comes between.
    """
    parts = max(1, n_bytes // 2**24)
    rows = n_bytes // parts // 4 // 1024
    matrices, vector = [torch.ones(rows, 1024) for _ in range(parts)], torch.ones(1024)
    return parts * rows * 4096 / best(lambda: [matrix @ vector for matrix in matrices])


def machine() -> dict[str, Any]:
    """What the processor reaches on the threads in use, and the precision that `paperwalk train` chooses here."""
    peaks = {"fp32": peak_flops(torch.float32), "bf16": peak_flops(torch.bfloat16)}
    return {"peak": peaks, "precision": fast_precision()}
