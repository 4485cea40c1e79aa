"""Whether torch.compile pays here: measured on a training's own first steps."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

# FLOPs of a training from which on it is tried: they take a processor minutes, and compiling half a minute.
LONG = 1e14
# Steps of each kind: those that do not count, in which code is compiled, and those that are timed.
WARM, TIMED = 2, 5
# It pays if a step takes at most this share of the time, so that chance does not decide between equals.
SHARE = 0.95


class Trial:
    """Takes a training's steps by turns compiled and as written; then all others in the way that was faster.

    Without a C++ compiler torch says so, and runs the module as it is written.

    Args:
        module: its `forward` is compiled.
        agree: makes of each process's verdict that of all.
        clock: seconds.
    """

    def __init__(
        self,
        module: nn.Module,
        agree: Callable[[bool], bool] = bool,
        clock: Callable[[], float] = time.perf_counter,
    ):
        torch._dynamo.config.suppress_errors = True
        module.compile()
        self.agree, self.clock = agree, clock
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        # The verdict; None before it.
        self.pays: bool | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """What runs inside is one step."""
        if self.pays is not None:
            with _stance(self.pays):
                yield
            return
        compiled = len(self.seconds[True]) == len(self.seconds[False])
        with _stance(compiled):
            start = self.clock()
            yield
            self.seconds[compiled].append(self.clock() - start)
        if len(self.seconds[False]) == WARM + TIMED:
            medians = {each: statistics.median(seconds[WARM:]) for each, seconds in self.seconds.items()}
            self.pays = self.agree(medians[True] <= SHARE * medians[False])


def _stance(compiled: bool):
    return torch.compiler.set_stance("default" if compiled else "force_eager")
