"""`make test`: the pairs, style, unit tests, and every chapter run and compared; each step with its time."""

import subprocess
import sys
import time

from build import fetch_data
from chapters import NOTEBOOKS, ROOT, chapters

PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-q", "-n", "2"]
STEPS = {
    "pairs": [PYTHON, "tools/sync.py", "--check"],
    "lint": [PYTHON, "-m", "ruff", "check", "--quiet", "."],
    "format": [PYTHON, "-m", "ruff", "format", "--check", "--quiet", "."],
    "format of cells": [PYTHON, "tools/cells.py", "--check"],
    "unit tests": [*PYTEST, "tests"],
    # A notebook's cells share one kernel, so a file stays with one worker.
    "chapters": [
        *PYTEST, "--dist", "loadfile", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300",
        "-p", "no:jaxtyping", "-o", "addopts=", "-W", "default", str(NOTEBOOKS),
    ],
}  # fmt: skip


def main() -> int:
    """Run the steps in order; stop at the first that fails."""
    fetch_data(chapters())
    for name, command in STEPS.items():
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        status = subprocess.run(command, cwd=ROOT).returncode
        print(f"   {time.perf_counter() - start:.1f} s", flush=True)
        if status:
            print(f"{name}: failed")
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
