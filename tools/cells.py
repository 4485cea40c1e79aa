"""Format the code cells of the chapters with ruff, 84 columns wide: what a page shows without scrolling."""

import re
import subprocess
import sys
from pathlib import Path

from chapters import ROOT, ChapterError, chapters
from paperwalk.files import write_whole

WIDTH = 84
CELL = re.compile(
    r"^(?P<open>```\{code-cell\}[^\n]*\n(?:---\n.*?\n---\n|(?::[^\n]*\n)*)\n?)(?P<code>.*?)(?P<close>^```$)",
    re.MULTILINE | re.DOTALL,
)


def formatted(code: str) -> str:
    """The code as ruff writes it.

    Raises:
        ChapterError: ruff cannot read it.
    """
    command = [str(Path(sys.executable).with_name("ruff")), "format", "--line-length", str(WIDTH), "-"]
    result = subprocess.run(command, input=code, capture_output=True, text=True)
    if result.returncode:
        raise ChapterError(f"a cell is not Python that ruff can read: {result.stderr.strip()}\n{code}")
    return result.stdout


def main() -> int:
    """Format in place, or with --check only say which chapters would change."""
    check, stale = "--check" in sys.argv[1:], []
    for path in chapters():
        text = path.read_text(encoding="utf-8")
        new = CELL.sub(lambda m: m["open"] + formatted(m["code"]) + m["close"], text)
        if new != text:
            stale.append(path)
            if not check:
                write_whole(path.parent, {path.name: new})
    for path in stale if check else []:
        print(f"{path.relative_to(ROOT)} has cells that are not formatted: run `make lint`")
    return bool(check and stale)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ChapterError as error:
        sys.exit(str(error))
