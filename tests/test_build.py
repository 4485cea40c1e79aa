"""The build: what it executes, what it refuses, and what the pages link to."""

import json
import shutil
import sys
from pathlib import Path

import pytest

import bookext
import build
import cells
import chapters

ROOT = Path(__file__).parent.parent
CONFIG = """\
title: Small
only_build_toc_files: true
exclude_patterns: [".*", _build]
execute: {execute_notebooks: cache, cache: _build/executed}
parse: {myst_enable_extensions: [colon_fence, dollarmath]}
bibtex_bibfiles: [book/references.bib]
"""
CHAPTER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# Title

```{code-cell} ipython3
print("seen")
```
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of one chapter, with the real tools working on it."""
    for module in (chapters, build, cells):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(chapters, "CHAPTERS", tmp_path / "book" / "chapters")
    monkeypatch.setattr(chapters, "SOURCE", tmp_path / "src")
    paths = {"BUILD": "_build", "EXECUTED": "_build/executed"}
    paths |= {"KEYS": "_build/executed/keys.json", "PEAKS": "_build/executed/peaks.json"}
    paths |= {"HTML": "_build/html", "BUILT": "_build/built", "NOTEBOOKS": "notebooks"}
    for name, path in paths.items():
        monkeypatch.setattr(build, name, tmp_path / path)
    monkeypatch.setattr(build, "fetch_npm", lambda package: tmp_path)
    monkeypatch.setattr(build, "MATHJAX_PARTS", ())
    monkeypatch.setattr(build, "n_cores", lambda: 1)
    (tmp_path / "book" / "chapters").mkdir(parents=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/chapters/one\n")
    (tmp_path / "book" / "references.bib").write_text("@misc{known2020, author={A. B}, title={T}, year={2020}}\n")
    (tmp_path / "book" / "chapters" / "one.md").write_text(CHAPTER)
    return tmp_path


def write(book, *, cell='print("seen")', prose=""):
    (book / "book" / "chapters" / "one.md").write_text(CHAPTER.replace('print("seen")', cell) + prose)


def run_build(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build.py"])
    build.main()
    return capsys.readouterr().out


def test_a_build_executes_once_and_then_only_what_changed(book, monkeypatch, capsys):
    assert "1 of 1 chapters to execute: one" in run_build(monkeypatch, capsys)
    page = (book / "_build/html/book/chapters/one.html").read_text()
    assert "seen" in page
    assert run_build(monkeypatch, capsys).startswith("nothing changed")
    write(book, prose="\nMore prose.\n")
    assert "0 of 1 chapters to execute: none" in run_build(monkeypatch, capsys)
    assert "More prose" in (book / "_build/html/book/chapters/one.html").read_text()


def test_sphinx_finds_what_the_build_executed(book, monkeypatch, capsys):
    # If it did not, it would execute the chapter again, and the file would have two lines.
    log = book / "log"
    write(book, cell=f"with open({str(log)!r}, 'a') as file:\n    n = file.write('run\\n')")
    run_build(monkeypatch, capsys)
    assert log.read_text() == "run\n"


def test_new_metadata_of_a_cell_change_the_key(book):
    path = book / "book" / "chapters" / "one.md"
    before = chapters.key(chapters.read(path))
    write(book, cell=":tags: [hide-input]\n\nprint('seen')")
    assert chapters.key(chapters.read(path)) != before


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1 / 0", r"one\.md: a cell failed[\s\S]*ZeroDivisionError"),
        ("import sys\nprint('loud', file=sys.stderr)", r"one\.md: a cell wrote to standard error; silence[\s\S]*loud"),
        ("import os\nos._exit(1)", r"one\.md: a cell failed[\s\S]*[Kk]ernel"),
        ("!ls", r"one\.md: not plain Python: !ls"),
    ],
    ids=["error", "stderr", "dead kernel", "magic"],
)
def test_a_chapter_that_does_not_run_is_named(cell, message, book):
    write(book, cell=cell)
    with pytest.raises(chapters.ChapterError, match=message) as error:
        build.execute_changed()
    assert "\x1b" not in str(error.value)
    assert not build.KEYS.exists()


def test_references_to_nothing_fail_the_build_and_are_named(book):
    broken = [
        "{ref}`a-label`",
        "{doc}`a-page`",
        "{cite:t}`a2020`",
        "{term}`a-term`",
        "{glue:text}`a-key`",
        "[x](#an-id)",
    ]
    write(book, prose="\n" + "\n\n".join(broken) + "\n")
    build.execute_changed()
    with pytest.raises(chapters.ChapterError, match="mend each WARNING above") as error:
        build.build_html()
    for name in ("a-label", "a-page", "a2020", "a-term", "a-key", "an-id"):
        assert any("one.md" in line and name in line for line in str(error.value).splitlines()), name


def test_keys_are_written_whole(tmp_path):
    build.replace(tmp_path / "keys.json", json.dumps({"a": 1}))
    assert json.loads((tmp_path / "keys.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


class Warnings(list):
    def warning(self, message, *values, location):
        self.append(message % values)


@pytest.fixture
def warned(monkeypatch):
    warnings = Warnings()
    monkeypatch.setattr(bookext, "LOGGER", warnings)
    return warnings


def test_equations_are_linked_from_comments(warned):
    body = '<p id="eq-a"></p><span id="eq-b"></span><span class="c1"># (eq-a) and (eq-b)</span> (eq-a)'
    linked = bookext._link_equations(body, "page")
    assert linked.count('<a class="equation-link" href="#eq-a">(eq-a)</a>') == 1
    assert linked.count('href="#eq-b"') == 1
    assert warned == []


def test_a_comment_that_names_no_equation_is_a_warning(warned):
    bookext._link_equations('<span id="eq-a"></span><span class="c1"># (eq-a), (eq-missing)</span>', "page")
    assert warned == ["code comment names equation eq-missing, which the page does not have"]


@pytest.mark.parametrize("image", ['<img src="a.png">', '<img alt=" ">', '<img alt="../_images/a.png" src="x">'])
def test_a_figure_without_alt_text_is_a_warning(image, warned):
    bookext._check_images(f'<img alt="A curve." src="b.png">{image}', "page")
    assert len(warned) == 1


def test_what_the_theme_gets_wrong_is_mended(monkeypatch):
    class Script:
        def __init__(self, text):
            self.text = text

        def __str__(self):
            return self.text

    kept, dropped = Script("_static/doctools.js"), [Script("sphinx-thebe.js"), Script("body='const THEBE_JS; thebe'")]
    context = {"script_files": [kept, *dropped], "css_files": [], "body": "".join(bookext.MENDED)}
    monkeypatch.setattr(bookext, "_repository", lambda app: ("a/b", "main"))
    bookext._finish_page(None, "page", "page.html", context, doctree=object())
    assert context["script_files"] == [kept]
    assert context["body"] == "".join(bookext.MENDED.values())


PAGE = "book/chapters/one"


class App:
    """As much of Sphinx as the placeholders need: one chapter of 12.3 seconds."""

    def __init__(self, folder):
        class Title:
            astext = staticmethod(lambda: "Chapter one")

        class env:
            nb_metadata = {PAGE: {"exec_data": {"runtime": 12.3}}, "book/other": {}}  # noqa: RUF012
            titles = {PAGE: Title}  # noqa: RUF012

        self.srcdir, self.env = folder, env


def store_peak(folder):
    (folder / "_build" / "executed").mkdir(parents=True)
    (folder / "_build" / "executed" / "peaks.json").write_text(json.dumps({"one": 1_234_000_000}))


def test_a_page_says_what_it_took(tmp_path, warned):
    assert bookext._run_time(App(tmp_path), None, PAGE) == "12 s"
    store_peak(tmp_path)
    assert bookext._run_time(App(tmp_path), None, PAGE) == "12 s and 1.2 GB of memory"
    assert bookext._run_time(App(tmp_path), "one", "book/index") == "12 s"
    assert warned == []
    assert bookext._run_time(App(tmp_path), "none", "book/index") == "not measured"
    assert warned == ["no measured run time of none"]


def test_the_page_of_run_times_has_a_row_for_what_was_executed(tmp_path):
    store_peak(tmp_path)
    table = bookext._run_times(App(tmp_path))
    assert table.count("<tr><td>") == 1
    assert '<a href="chapters/one.html">Chapter one</a></td><td>12 s</td><td>1.2 GB</td>' in table
    assert "12 s in all" in table


def test_the_memory_of_a_chapter_is_measured_and_leaves_no_cell(book):
    write(book, cell="kept = bytearray(300_000_000)")
    notebook, seconds, peak = build.execute(book / "book" / "chapters" / "one.md")
    assert 300_000_000 < peak < 1_000_000_000
    assert seconds > 0
    assert [cell.source for cell in notebook.cells if cell.cell_type == "code"] == ["kept = bytearray(300_000_000)"]


@pytest.mark.parametrize(("ref", "branch"), [("refs/heads/next", "next"), ("refs/pull/12/merge", "main"), ("", "main")])
def test_colab_opens_the_notebook_of_the_repository_that_built_the_page(ref, branch, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "fork/book")
    monkeypatch.setenv("GITHUB_REF", ref)

    class App:
        class config:
            html_theme_options = {  # noqa: RUF012
                "repository_url": "https://github.com/a/b",
                "repository_branch": "main",
            }

    button = {"url": "https://colab.research.google.com/github/a/b/blob/main/book/chapters/vit.md"}
    context = {"header_buttons": [{"buttons": [button]}]}
    bookext._colab(context, "book/chapters/vit", bookext._repository(App))
    assert button["url"] == f"https://colab.research.google.com/github/fork/book/blob/{branch}/notebooks/vit.ipynb"


def test_cells_are_formatted_and_checked(book, monkeypatch, capsys):
    write(book, cell="x = {'a':1}")
    monkeypatch.setattr(sys, "argv", ["cells.py", "--check"])
    assert cells.main() == 1
    assert "run `make lint`" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["cells.py"])
    assert cells.main() == 0
    assert 'x = {"a": 1}' in (book / "book/chapters/one.md").read_text()


def test_nothing_of_the_package_imports_against_the_rules():
    package = ROOT / "src" / "paperwalk"
    papers = {path.stem for path in (ROOT / "book" / "chapters").glob("*.md")}
    free = {"data", "nn", "plot", "notebook", "testing", "checkpoints", "published"}
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        imported = {name.split(".")[1] for name in chapters._imported(path.read_text()) if "." in name}
        if part in free:
            assert not imported & (papers | {"experiments", "train"}), path
        if part == "nn":
            assert imported <= {"nn"}, path
        if part in papers:
            assert not imported & (papers - {part}), path
        if part == "train":
            assert "experiments" not in imported, path


def test_the_package_is_cheap_to_import():
    import subprocess

    heavy = ("torchvision", "matplotlib", "transformers", "timm", "accelerate")
    code = f"import sys, paperwalk.vit, paperwalk.data; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_uv_and_make_are_all_that_the_makefile_needs():
    assert shutil.which("make")
    makefile = (ROOT / "Makefile").read_text()
    assert "--require-hashes requirements.txt" in makefile
