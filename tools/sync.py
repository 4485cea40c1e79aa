"""Write each chapter's pair: book/chapters/NAME.py and notebooks/NAME.ipynb, both from book/chapters/NAME.md.

And the pages that are tables: the results, from the cards of the checkpoints, and the cost at full size.

One direction only: the .md is the source. Reference outputs, of the cells tagged nbval-check-output alone, live in the
.ipynb; they are kept while the code of the chapter stays the same and made anew by --refs.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import jupytext
import nbformat
import yaml

from chapters import CHAPTERS, CHECKED, NOTEBOOKS, ROOT, TIMEOUT, ChapterError, chapters, code, read
from pages import PAGES
from paperwalk.files import write_whole
from plain import plain

BOOTSTRAP = """\
# In Colab: fetch the book and install its package; torch and numpy stay as they are. Elsewhere: nothing.
# Where the text shows a `name` in place of a number, the cell above it printed that number.
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    if not Path("paperwalk-book").exists():
        clone = ["git", "clone", "-q", "--depth", "1", "--branch", "{branch}", "{url}", "paperwalk-book"]
        subprocess.check_call(clone)
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "-e", "./paperwalk-book[chapters]"])
    sys.path.insert(0, str(Path("paperwalk-book/src").resolve()))"""


def as_python(path: Path) -> str:
    """The chapter as a py:percent script."""
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="md:myst")
    notebook.metadata.pop("jupytext", None)
    return jupytext.writes(notebook, fmt="py:percent")


def as_notebook(path: Path, previous: nbformat.NotebookNode | None) -> nbformat.NotebookNode:
    """The chapter as Colab and nbval take it: plain Markdown, a bootstrap cell, the reference outputs of `previous`.

    Raises:
        ChapterError: it uses MyST that Colab would show raw.
    """
    repository = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    chapter, pages = read(path), "{url}/blob/{branch}/book".format(**repository)
    cells = [nbformat.v4.new_code_cell(BOOTSTRAP.format(**repository))]
    for cell in chapter.cells:
        if cell.cell_type == "code":
            tags = cell.metadata.get("tags", [])
            cells.append(nbformat.v4.new_code_cell(cell.source, metadata={"tags": tags} if tags else {}))
        else:
            try:
                text = plain(cell.source, pages)
            except ValueError as error:
                raise ChapterError(f"{path.name}: {error}") from None
            if text:
                cells.append(nbformat.v4.new_markdown_cell(text))
    # The title comes first, the bootstrap cell right below it.
    if cells[1].cell_type == "markdown":
        cells[0], cells[1] = cells[1], cells[0]
    for i, cell in enumerate(cells):
        cell.id = hashlib.sha256(f"{i} {cell.source}".encode()).hexdigest()[:8]
    notebook = nbformat.v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
    )
    if previous is not None and code(previous) == code(notebook):
        old = (cell for cell in previous.cells if cell.cell_type == "code")
        for cell, before in zip((c for c in cells if c.cell_type == "code"), old, strict=True):
            keep_reference(cell, before)
    return notebook


def keep_reference(cell: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> None:
    """Copy outputs and execution count of a checked cell; others are stored without."""
    if CHECKED in cell.metadata.get("tags", []):
        cell.outputs, cell.execution_count = executed.outputs, executed.execution_count


def targets(path: Path) -> dict[Path, str]:
    """What the pair of this chapter must hold."""
    notebook_path = NOTEBOOKS / f"{path.stem}.ipynb"
    previous = nbformat.read(notebook_path, as_version=4) if notebook_path.exists() else None
    return {
        path.with_suffix(".py"): as_python(path),
        notebook_path: nbformat.writes(as_notebook(path, previous), version=4) + "\n",
    }


def problems() -> list[str]:
    """What is stale, missing, left over or unchecked, one line each with what to do."""
    found = []
    for path in chapters():
        contents = targets(path)
        for target, content in contents.items():
            if not target.exists() or target.read_text(encoding="utf-8") != content:
                found.append(f"{target.relative_to(ROOT)} is not what {path.name} says: run `make sync`")
        notebook = nbformat.reads(contents[NOTEBOOKS / f"{path.stem}.ipynb"], as_version=4)
        checked = [c for c in notebook.cells if CHECKED in c.metadata.get("tags", [])]
        if not checked:
            found.append(f"{path.relative_to(ROOT)} has no cell tagged {CHECKED}: nothing of it would be compared")
        if any(c.execution_count is None or not c.outputs for c in checked):
            found.append(f"notebooks/{path.stem}.ipynb lacks reference outputs: run `make refs`")
        if any("text/html" in output.get("data", {}) for c in checked for output in c.outputs):
            found.append(f"{path.name} shows a table in a cell tagged {CHECKED}: errors differ by machine, print text")
    for page, content in PAGES.items():
        if not (ROOT / page).exists() or (ROOT / page).read_text(encoding="utf-8") != content():
            found.append(f"{page} is not what the checkpoints and recipes say: run `make sync`")
    stems = {path.stem for path in chapters()}
    for target in [*CHAPTERS.glob("*.py"), *NOTEBOOKS.glob("*.ipynb")]:
        if target.stem not in stems:
            found.append(f"{target.relative_to(ROOT)} belongs to no chapter: remove it")
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    listed = {Path(page["file"]).name for part in parts for page in part["chapters"]}
    found += [f"{stem} is a chapter that _toc.yml does not list: add it" for stem in sorted(stems - listed)]
    return found


def store_references(stems: list[str]) -> None:
    """Execute these notebooks, or all, and store the outputs of their checked cells."""
    from nbclient import NotebookClient

    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if stems and path.stem not in stems:
            continue
        print(f"executing {path.stem}", flush=True)
        notebook = nbformat.read(path, as_version=4)
        # Coalesced, so that a reference does not depend on how its lines were sent.
        options = {"timeout": TIMEOUT, "kernel_name": "python3", "coalesce_streams": True}
        executed = NotebookClient(nbformat.from_dict(notebook), **options).execute()
        for cell, after in zip(notebook.cells, executed.cells, strict=True):
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
                keep_reference(cell, after)
        write(path, nbformat.writes(notebook, version=4) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all, and only if that changes it."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path.parent, {path.name: text})


def update(references: list[str] | None = None) -> None:
    """Write all pairs and pages; then execute these notebooks, or all for an empty list, and store their references."""
    for path in chapters():
        for target, content in targets(path).items():
            write(target, content)
    for page, content in PAGES.items():
        write(ROOT / page, content())
    if references is not None:
        store_references(references)


def main() -> int:
    """Write, check or execute; the exit status is 1 when a check found something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; say what is stale")
    parser.add_argument("--refs", nargs="*", metavar="NAME", help="execute these notebooks, or all; store references")
    arguments = parser.parse_args()
    if arguments.check:
        found = problems()
        print("\n".join(found))
        return bool(found)
    update(arguments.refs)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ChapterError, ValueError) as error:
        sys.exit(str(error))
