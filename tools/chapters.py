"""The chapters: where they are, their cells, and the modules each of them stands on."""

import ast
import hashlib
from pathlib import Path

import nbformat
from myst_nb.core.read import MdParserConfig, read_myst_markdown_notebook

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "book" / "chapters"
NOTEBOOKS = ROOT / "notebooks"
SOURCE = ROOT / "src"
CHECKED = "nbval-check-output"


def chapters() -> list[Path]:
    """The MyST sources, by name."""
    return sorted(CHAPTERS.glob("*.md"))


def read(path: Path) -> nbformat.NotebookNode:
    """The chapter as a notebook, cell for cell as the book's build reads it."""
    return read_myst_markdown_notebook(path.read_text(encoding="utf-8"), MdParserConfig(), path=path)


def code(notebook: nbformat.NotebookNode) -> str:
    """The source of all code cells."""
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def _imported(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "paperwalk"}


def _files(module: str) -> list[Path]:
    # A module needs the __init__ of each package above it as well.
    parts = module.split(".")
    candidates = [SOURCE.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts) + 1)]
    candidates.append(SOURCE.joinpath(*parts).with_suffix(".py"))
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
    """The names in calls of `load("…")`, in this code and in the modules that it imports."""
    names = set()
    for text in [source, *(path.read_text(encoding="utf-8") for path in modules(source))]:
        calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and node.args)
        named = (call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) == "load")
        names |= {call.args[0].value for call in named if isinstance(call.args[0], ast.Constant)}
    return names


def key(notebook: nbformat.NotebookNode) -> str:
    """What the outputs depend on: the code cells, the modules they import, stored results they read, and the lock."""
    source = code(notebook)
    files = modules(source)
    # An experiment's numbers stand in the .json beside its module.
    stored = [path.with_suffix(".json") for path in files if path.with_suffix(".json").is_file()]
    digest = hashlib.sha256(source.encode())
    for path in [*files, *stored, ROOT / "requirements.txt"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
