"""`make new`: what it makes runs and passes every test of form."""

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import build
import chapters
import new
import pages
import sync
import test_chapters

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tree with a new chapter, made by the command itself."""
    root = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("src", "tools", "book"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    # The other chapters stay behind: to sync them takes a minute, and the tests of the tools do it.
    for path in (root / "book" / "chapters").iterdir():
        path.unlink()
    (root / "tests").mkdir()
    for name in ("_config.yml", "_toc.yml", "README.md", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root / "tests" / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root / "src"))
        result = subprocess.run([sys.executable, "tools/new.py", "made_up"], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return root


@pytest.fixture
def here(tree, monkeypatch):
    """The tools working on that tree."""
    for module in (chapters, sync, build, new, pages):
        monkeypatch.setattr(module, "ROOT", tree)
    for module, name, folder in (
        (chapters, "CHAPTERS", "book/chapters"),
        (sync, "CHAPTERS", "book/chapters"),
        (new, "CHAPTERS", "book/chapters"),
        (sync, "NOTEBOOKS", "notebooks"),
        (chapters, "SOURCE", "src"),
        (new, "SOURCE", "src"),
    ):
        monkeypatch.setattr(module, name, tree / folder)
    monkeypatch.setenv("PYTHONPATH", str(tree / "src"))
    return tree


def test_it_is_listed_synced_and_has_its_references(here):
    assert [problem for problem in sync.problems() if "made_up" in problem] == []
    assert "file: book/chapters/made_up" in (here / "_toc.yml").read_text()
    assert "{run-time:made_up}" in (here / "book" / "index.md").read_text()
    assert "| made_up | `paperwalk.made_up` |" in (here / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in vars(test_chapters) if name.startswith("test_")])
def test_it_has_the_form_of_a_chapter(name, here):
    check = getattr(test_chapters, name)
    assert list(inspect.signature(check).parameters) == ["path"]
    check(here / "book" / "chapters" / "made_up.md")


def test_it_runs_without_a_word_on_standard_error(here):
    build.execute(here / "book" / "chapters" / "made_up.md")


def test_its_tests_pass_and_its_style_is_ours(here):
    variables = os.environ | {"PYTHONPATH": str(here / "src")}
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider", "tests/test_made_up.py"],
        [
            "ruff",
            "check",
            "--no-cache",
            "src/paperwalk/made_up.py",
            "tests/test_made_up.py",
            "book/chapters/made_up.py",
        ],
        ["ruff", "format", "--no-cache", "--check", "src/paperwalk/made_up.py", "tests/test_made_up.py"],
    ):
        result = subprocess.run(
            [sys.executable, "-m", *command], cwd=here, env=variables, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
    import cells

    text = (here / "book" / "chapters" / "made_up.md").read_text()
    assert [cell["code"] for cell in cells.CELL.finditer(text) if cells.formatted(cell["code"]) != cell["code"]] == []


@pytest.mark.parametrize("name", ["Made", "1made", "made-up", "class", ""])
def test_a_name_that_is_no_module_is_refused(name, here):
    with pytest.raises(chapters.ChapterError, match="cannot be a module"):
        new.check_name(name)


@pytest.mark.parametrize("name", ["made_up", "vit", "nn"])
def test_a_name_that_is_taken_is_refused(name, here):
    with pytest.raises(chapters.ChapterError, match="exists: choose another name"):
        new.check_name(name)


def test_a_list_without_its_mark_is_named(here):
    (here / "list.md").write_text("nothing\n")
    with pytest.raises(chapters.ChapterError, match=r"list\.md has no line"):
        new.insert(here / "list.md", "run-time", "row")
