"""What a chapter needs of its page: a progress bar that leaves one clean line, timings, numbers for the prose."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def progress(items: Sequence[Any], label: str) -> Iterator[Any]:
    """Iterate over `items` with a bar on standard output, which ends as one line: label, count, time, rate.

    Standard output, because a cell of the book that writes to standard error fails its build.
    """
    from tqdm import tqdm

    bar = "{desc}: {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
    yield from tqdm(items, desc=label, file=sys.stdout, mininterval=1.0, bar_format=bar, ascii=" ▏▎▍▌▋▊▉█")


def milliseconds(function: Callable[[], Any], *, repeats: int = 5) -> float:
    """Median wall time of `function()` in milliseconds, after one call that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def glue(**numbers: float | int | str) -> None:
    """Print each number on a line of its own, and give it to the prose of the page under its name.

    In the book the prose then quotes the run itself; in Colab, which has no glue, the line is what there is to read.
    """
    for name, number in numbers.items():
        print(f"{name} = {number:.4g}" if isinstance(number, float) else f"{name} = {number}")
    try:
        from myst_nb import glue as glue_one
    except ImportError:
        return
    for name, number in numbers.items():
        glue_one(name, number, display=False)


def checkpoint(name: str) -> Path:
    """The folder of a trained model that comes with the book, `checkpoints/NAME` of the clone.

    Raises:
        FileNotFoundError: there is none of that name, or the package was installed without the book around it.
    """
    folder = Path(__file__).parents[2] / "checkpoints" / name
    if not (folder / "config.json").is_file():
        known = sorted(path.parent.name for path in folder.parent.glob("*/config.json"))
        raise FileNotFoundError(
            f"no checkpoint {name!r} in {folder.parent}, which holds {', '.join(known) or 'nothing'}; the checkpoints "
            "come with a clone of the book, installed with `pip install -e .`"
        )
    return folder
