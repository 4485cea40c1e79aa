"""Experiments too long for a chapter: each file runs one and stores its numbers in the .json beside it."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def run_missing(path: Path, runs: Mapping[str, Callable[[], Any]], **about: Any) -> None:
    """Run what the file does not hold yet, on one thread; an interrupted experiment goes on where it stopped.

    Args:
        path: a .json, written after each run.
        runs: name of a run → what it computes.
        about: stored in a new file before the runs.
    """
    import torch

    torch.set_num_threads(1)
    results = json.loads(path.read_text()) if path.exists() else dict(about)
    start = time.perf_counter()
    for name, run in runs.items():
        if name not in results:
            results[name] = run()
            path.write_text(json.dumps(results, indent=2) + "\n")
            print(f"{name}: {results[name]} ({time.perf_counter() - start:.0f} s)", flush=True)
