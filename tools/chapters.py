"""The chapters: where they are, their cells, and the modules and data each of them stands on."""

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "book" / "chapters"
NOTEBOOKS = ROOT / "notebooks"
SOURCE = ROOT / "src"
CHECKED = "nbval-check-output"
TIMEOUT = 600  # seconds a cell may run


class ChapterError(Exception):
    """What is wrong with a chapter and what to do, in one line that names it."""


def chapters() -> list[Path]:
    """The MyST sources, by name."""
    return sorted(CHAPTERS.glob("*.md"))


def read(path: Path) -> nbformat.NotebookNode:
    """The chapter as a notebook, cell for cell as the book's build reads it.

    Raises:
        ChapterError: a code cell is not Python.
    """
    from myst_nb.core.read import MdParserConfig, read_myst_markdown_notebook

    notebook = read_myst_markdown_notebook(path.read_text(encoding="utf-8"), MdParserConfig(), path=path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            try:
                ast.parse(cell.source)
            except SyntaxError as error:
                raise ChapterError(f"{path.name}: not plain Python: {error.text or ''} ({error.msg})") from None
    return notebook


def code(notebook: nbformat.NotebookNode) -> str:
    """The source of all code cells."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def _imports(source: str) -> Iterator[tuple[str, str]]:
    # What the code binds: the full name, and the name it goes by.
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", alias.asname or alias.name) for alias in node.names)


def _imported(source: str) -> set[str]:
    return {name for name, _ in _imports(source) if name.split(".")[0] == "paperwalk"}


def _files(name: str) -> list[Path]:
    # `paperwalk.vit.ViT` may be a module or something in one, and needs the __init__ of each package above it as well.
    parts = name.split(".")
    candidates = [SOURCE.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    candidates += [SOURCE.joinpath(*parts[:i]).with_suffix(".py") for i in (len(parts) - 1, len(parts))]
    return [path for path in candidates if path.is_file()]


def modules(source: str) -> list[Path]:
    """The files of the package that this code imports, directly or through one another."""
    found: set[Path] = set()
    waiting = _imported(source)
    while waiting:
        for path in _files(waiting.pop()):
            if path not in found:
                found.add(path)
                waiting |= _imported(path.read_text(encoding="utf-8"))
    return sorted(found)


def datasets(source: str) -> set[str]:
    """The names in calls of `paperwalk.data.load("…")`, in this code and in the modules that it imports."""
    names = set()
    for text in [source, *(path.read_text(encoding="utf-8") for path in modules(source))]:
        bound = {"paperwalk.data.load": "", "paperwalk.data": ".load"}
        loads = {alias + bound[name] for name, alias in _imports(text) if name in bound}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in loads:
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                names |= {value.value for value in values if isinstance(value, ast.Constant)}
    return names


def checkpoints(source: str) -> list[Path]:
    """The files of the trained models that this code names in calls of `checkpoint("…")`."""
    names = set(re.findall(r"\bcheckpoint\(\s*[\"']([^\"']+)[\"']\s*\)", source))
    return sorted(path for name in names for path in (ROOT / "checkpoints" / name).glob("*") if path.is_file())


def key(notebook: nbformat.NotebookNode) -> str:
    """What the outputs depend on: code cells, the modules they import, stored results, checkpoints, and the lock.

    The cells' metadata count as well: the cache that Sphinx reads keeps a notebook under both.
    """
    cells = [[cell.source, cell.metadata] for cell in notebook.cells if cell.cell_type == "code"]
    files = modules(code(notebook))
    # An experiment's numbers stand in the .json beside its module.
    stored = [path.with_suffix(".json") for path in files if path.with_suffix(".json").is_file()]
    digest = hashlib.sha256(json.dumps(cells, sort_keys=True).encode())
    for path in [*files, *stored, *checkpoints(code(notebook)), ROOT / "requirements.txt"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
