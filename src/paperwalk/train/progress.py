"""What a training says while it runs: a bar on a terminal, a line now and then elsewhere; and signals that stop it."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Loss, rate and time left.

    Args:
        steps: of the whole training.
        first: done before this start.
        every: steps between two lines.
        shown: False on all processes but the main one.
    """

    def __init__(self, steps: int, first: int, every: int, *, shown: bool):
        self.steps, self.first, self.every, self.shown = steps, first, every, shown
        self.start = time.perf_counter()
        self.bar = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True)

    def update(self, losses: list[float]) -> None:
        """A step more is done; `losses` are those of all steps so far."""
        done, recent = len(losses), losses[-self.every :]
        mean = sum(recent) / len(recent)
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        elif self.shown and (done % self.every == 0 or done == self.steps):
            seconds = time.perf_counter() - self.start
            rate = (done - self.first) / seconds
            left = (self.steps - done) / rate
            print(
                f"step {done}/{self.steps}  loss {mean:.4f}  {rate:.2f} steps/s  {left / 60:.1f} min left", flush=True
            )

    def close(self) -> None:
        """Leave the terminal in order."""
        if self.bar is not None:
            self.bar.close()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While inside, Ctrl-C and SIGTERM do not kill but are put on the list; a second one, a second later, kills."""
    received: list[int] = []
    first = 0.0
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame) -> None:
        nonlocal first
        if not received:
            first = time.monotonic()
        # A launcher passes on what the terminal has sent already: twice at once is once.
        elif time.monotonic() - first > 1:
            signal.signal(number, before[number])
            signal.raise_signal(number)
        received.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
