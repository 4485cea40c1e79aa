"""The most memory that a training step takes beyond the model, each contender in a fresh process of its own."""

import ctypes
import gc
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

import torch

from bench.training import build, step_of
from paperwalk.train.recipes import PAPERS

PROC = Path("/proc/self")
# The first step makes the optimiser's moments, which all others have beside them.
STEPS = 2
# glibc's malloc takes blocks of at least so many bytes from the system one by one and returns each when it is freed.
# By itself it raises the threshold as it goes, keeps what was freed, and fragments: the same tensors then take up to
# a tenth more in one run than in the next.
M_MMAP_THRESHOLD, MAPPED = -3, 1 << 17


def peaks(paper: str, size: str, names: Sequence[str]) -> dict[str, int]:
    """Bytes that a step of each contender takes beyond its weights; nothing where the system does not tell."""
    if not (PROC / "clear_refs").exists():
        return {}
    # The children of a server that has imported the libraries once, and done nothing else.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"bench.{each}" for each in PAPERS])
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        threads = torch.get_num_threads()
        return {name: processes.submit(_peak, paper, size, name, threads).result() for name in names}


def _peak(paper: str, size: str, name: str, threads: int) -> int:
    torch.set_num_threads(threads)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED)
    tested = import_module(f"bench.{paper}").PAPER
    # What a first step leaves behind for good (pages of the libraries, kernels) is no memory of the model's.
    small = tested.sizes["small"]
    step_of(tested, name, small, build(tested, name, small.config))()
    chosen = tested.sizes[size]
    step = step_of(tested, name, chosen, build(tested, name, chosen.config))
    before = _reset()
    for _ in range(STEPS):
        step()
    return _kilobytes("VmHWM") * 1024 - before


def _reset() -> int:
    """Forget the peak so far; the bytes held now."""
    gc.collect()
    # What was freed goes back to the system: a step that takes it again would look as if it took nothing.
    ctypes.CDLL(None).malloc_trim(0)
    (PROC / "clear_refs").write_text("5")
    return _kilobytes("VmRSS") * 1024


def _kilobytes(field: str) -> int:
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
