"""Where a number comes from: the command, the seed, the data, the versions, the commit, the machine."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "torchvision", "accelerate", "einops", "safetensors")


def provenance(command: str, *, seed: int, data: Mapping[str, str]) -> dict[str, Any]:
    """What someone needs to get the number again.

    Args:
        command: the line to type.
        seed: of every random draw.
        data: name of a dataset → SHA-256 of its content.
    """
    return {
        "command": command,
        "seed": seed,
        "data": dict(data),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "hardware": f"{processor()}, {os.cpu_count()} cores, threads used: {torch.get_num_threads()}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def commit() -> str | None:
    """The commit of the clone that this package is in, with a + when files differ from it; None without a clone."""
    folder = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "--short=12", "HEAD").strip() + "+" * bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """The name of the processor or of the graphics card in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def thinned(losses: Sequence[float], points: int = 200) -> list[list[int | float]]:
    """A curve of at most about `points` points: the last step of each stretch of equal length, and the mean over it."""
    stretch = max(1, -(-len(losses) // points))
    parts = [losses[i : i + stretch] for i in range(0, len(losses), stretch)]
    return [[min((i + 1) * stretch, len(losses)), round(sum(part) / len(part), 5)] for i, part in enumerate(parts)]
