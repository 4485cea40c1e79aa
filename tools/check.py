"""`make test`: pairs, style, unit tests, chapters run and compared, the site in a browser; each step with its time.

`make determinism`: the chapters alone, with the threads of the environment.
"""

import argparse
import subprocess
import sys
import time

from build import fetch_data
from chapters import NOTEBOOKS, ROOT, ChapterError, chapters

PYTHON = sys.executable
PYTEST = [PYTHON, "-m", "pytest", "-q", "-n", "2"]
# Each step: its command, and what to do when it fails.
STEPS = {
    "pairs": ([PYTHON, "tools/sync.py", "--check"], "each line above says what to run"),
    "lint": ([PYTHON, "-m", "ruff", "check", "--quiet", "."], "run `make lint`"),
    "format": ([PYTHON, "-m", "ruff", "format", "--check", "--quiet", "."], "run `make lint`"),
    "format of cells": ([PYTHON, "tools/cells.py", "--check"], "run `make lint`"),
    "unit tests": ([*PYTEST, "--ignore=tests/test_site.py", "tests"], "see the failures above"),
    # A notebook's cells share one kernel, so a file stays with one worker.
    "chapters": (
        [
            *PYTEST, "--dist", "loadfile", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "300",
            "-o", "addopts=", "-W", "default", str(NOTEBOOKS),
        ],
        "mend the cell; where the new output is the right one, run `make refs`",
    ),
    # Skipped, with the reason, where there is no browser or no site of this state of the sources.
    "site": ([*PYTEST, "-rs", "tests/test_site.py"], "mend the page, its style or its script, then `make book`"),
}  # fmt: skip


def main() -> int:
    """Run the steps in order; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help="; ".join(STEPS) + "; all by default")
    chosen = parser.parse_args().steps
    if unknown := set(chosen) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}, expected some of: {', '.join(STEPS)}")
    for name, (command, advice) in STEPS.items():
        if chosen and name not in chosen:
            continue
        if name == "unit tests":
            fetch_data(chapters())
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        status = subprocess.run(command, cwd=ROOT).returncode
        print(f"   {time.perf_counter() - start:.1f} s", flush=True)
        if status:
            print(f"{name} failed: {advice}")
            return status
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChapterError as error:
        sys.exit(str(error))
