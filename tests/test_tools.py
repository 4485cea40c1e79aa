"""The tools that make, check and build the pages."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

import chapters
import mutants
import pages
import paperwalk
import plain
import sync

ROOT = Path(__file__).parent.parent

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
:tags: [nbval-check-output]

print(1 + 1)
```

```{code-cell} ipython3
from paperwalk import nn
```
"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of one chapter, synced, its checked cell with a reference output."""
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    for module in (chapters, sync):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "CHAPTERS", tmp_path / "book" / "chapters")
        monkeypatch.setattr(module, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "book" / "chapters").mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", tmp_path)
    write_toc(tmp_path, "one")
    (tmp_path / "book" / "chapters" / "one.md").write_text(CHAPTER)
    run_sync(monkeypatch)
    path = tmp_path / "notebooks" / "one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = checked(notebook)
    cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="2\n")], 1
    nbformat.write(notebook, path)
    return tmp_path


def write_toc(book, stem):
    (book / "_toc.yml").write_text(f"parts: [{{chapters: [{{file: book/chapters/{stem}}}]}}]\n")


def run_sync(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sync.py", *arguments])
    return sync.main()


def checked(notebook):
    return next(c for c in notebook.cells if "nbval-check-output" in c.metadata.get("tags", []))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_synced_book_has_no_problems(book):
    assert sync.problems() == []


@pytest.mark.parametrize("name", ["book/chapters/one.py", "notebooks/one.ipynb"])
def test_an_edited_or_missing_pair_is_stale(book, name):
    edit(book / name, "print(1 + 1)", "print(1 + 2)")
    assert any(name in problem and "make sync" in problem for problem in sync.problems())
    (book / name).unlink()
    assert any(name in problem for problem in sync.problems())


def test_an_edited_source_makes_both_stale_and_sync_mends_it(book, monkeypatch, capsys):
    edit(book / "book/chapters/one.md", "# Title", "# Another title")
    assert run_sync(monkeypatch, "--check") == 1
    assert capsys.readouterr().out.count("make sync") == 2
    run_sync(monkeypatch)
    assert sync.problems() == []


def test_references_survive_new_prose_but_not_new_code(book, monkeypatch):
    edit(book / "book/chapters/one.md", "# Title", "# Another title")
    run_sync(monkeypatch)
    assert checked(nbformat.read(book / "notebooks/one.ipynb", as_version=4)).outputs
    edit(book / "book/chapters/one.md", "1 + 1", "1 + 2")
    run_sync(monkeypatch)
    assert sync.problems() == ["notebooks/one.ipynb lacks reference outputs: run `make refs`"]


def test_a_chapter_without_checked_cells_is_refused(book, monkeypatch):
    edit(book / "book/chapters/one.md", ":tags: [nbval-check-output]\n", "")
    run_sync(monkeypatch)
    assert any("has no cell tagged" in problem for problem in sync.problems())


def test_a_table_in_a_checked_cell_is_refused(book):
    path = book / "notebooks/one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    checked(notebook).outputs = [nbformat.v4.new_output("display_data", {"text/html": "<table>1e-7</table>"})]
    nbformat.write(notebook, path)
    assert sync.problems() == [
        "one.md shows a table in a cell tagged nbval-check-output: errors differ by machine, print text"
    ]


def test_an_unlisted_chapter_and_an_orphan_are_refused(book):
    write_toc(book, "two")
    (book / "notebooks" / "old.ipynb").write_text("{}")
    found = sync.problems()
    assert any("_toc.yml does not list" in problem for problem in found)
    assert any("old.ipynb belongs to no chapter" in problem for problem in found)


def test_syncing_twice_changes_nothing(book, monkeypatch):
    before = {p: p.read_text() for p in book.rglob("one.*")}
    run_sync(monkeypatch)
    assert {p: p.read_text() for p in book.rglob("one.*")} == before


def test_modules_follow_imports_through_each_other():
    names = {path.relative_to(ROOT / "src/paperwalk").as_posix() for path in chapters.modules("import paperwalk.vit")}
    assert {"__init__.py", "vit.py", "nn/attention.py", "published/vit.py", "checkpoints.py"} <= names
    assert not names & {"plot.py", "notebook.py", "data/__init__.py", "testing.py"}


def test_the_key_of_a_chapter_changes_with_its_modules_only(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    monkeypatch.setattr(chapters, "SOURCE", tmp_path / "src")
    (tmp_path / "one.md").write_text(CHAPTER)
    key = lambda: chapters.key(chapters.read(tmp_path / "one.md"))  # noqa: E731
    before = key()
    (tmp_path / "src/paperwalk/vit.py").write_text("")
    edit(tmp_path / "one.md", "# Title", "# Another title")
    assert key() == before
    edit(tmp_path / "src/paperwalk/nn/mlp.py", "import", "import ")
    assert key() != before


def test_datasets_are_found_in_the_chapter_and_in_what_it_imports():
    assert chapters.datasets('from paperwalk import data\ndata.load("mnist-5k")') == {"mnist-5k"}
    assert chapters.datasets('from paperwalk.data import load\nload(name="mnist-5k")') == {"mnist-5k"}
    assert chapters.datasets('import json\njson.load("state.json")') == set()
    assert chapters.datasets("from paperwalk.experiments import vit") == {"mnist"}


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("see {doc}`einops` and {term}`patches <patch>`", "see *einops* and *patches*"),
        ("{glue:text}`accuracy:.2f` %", "`accuracy` %"),
        ("{cite:t}`ba2016`", "[Ba et al. (2016)](https://arxiv.org/abs/1607.06450)"),
        ("(eq-vit-1)=\n$$\nx\n$$", '<a id="eq-vit-1"></a>\n\n$$\nx\n$$'),
        (":::{note}\nmind {term}`this`\n:::", "\n> **Note**\n>\n> mind *this*\n".strip("\n")),
        (":::{exercise} Hard\n:label: ex\n\nDo it.\n:::", "> **Exercise: Hard**\n>\n> Do it."),
        (":::{solution-start} ex\n:class: dropdown\n:::\n\ntext", "**Solution**\n\ntext"),
        (":::{solution-end}\n:::", ""),
        ("% a comment\ntext", "text"),
        ("{source:vit}", "The finished module: [src/paperwalk/vit.py](P/src/paperwalk/vit.py)."),
        ("[a](einops.md) [b](../notation.md#axes)", "[a](einops.ipynb) [b](P/notation.md#axes)"),
    ],
)
def test_myst_becomes_plain_markdown(myst, markdown):
    assert plain.plain(myst, "P") == markdown


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{unknown}`x`", "role {unknown} is not known"),
        (":::{unknown}\nx\n:::", "directive {unknown} is not known"),
        ("{cite:t}`nobody2020`", "nobody2020 is cited but not in book/references.bib"),
        (":::{note}\nx", ":::{note} is not closed"),
        ("  :::{note}\n  x\n  :::", "put it at the left margin"),
        ("$$\nx\n$$ (label)", "without a label"),
    ],
)
def test_myst_that_colab_would_show_raw_is_refused_by_name(raw, message, book):
    with pytest.raises(ValueError, match=re.escape(message)):
        plain.plain(raw)
    path = book / "book" / "chapters" / "one.md"
    path.write_text(CHAPTER + "\n" + raw + "\n")
    with pytest.raises(chapters.ChapterError, match=re.escape(f"one.md: {message}"[:8])):
        sync.problems()


# What Jupyter and Colab know: CommonMark, tables, strikethrough, formulas.
JUPYTER = MarkdownIt().enable(["table", "strikethrough"]).use(dollarmath_plugin, allow_labels=False, double_inline=True)
RAW = re.compile(
    r"\{[\w:-]+\}`|:::|\]\(|\$|\*\*|^%|\)=$|\|\s*--|\\[a-zA-Z]{2,}|\{(?:run-time|source)|(?<![\w`])[*_](?=\w)"
)


def shown(tokens):
    """The text of rendered Markdown; what stands in code and formulas is left out."""
    lines = [token for token in tokens if token.type == "inline"]
    return [
        "".join("`" if part.type == "code_inline" else part.content * (part.type == "text") for part in line.children)
        for line in lines
    ]


def raw(source):
    """What a reader of this cell would see as markup instead of its meaning."""
    return [found[0] for line in shown(JUPYTER.parse(source)) if (found := RAW.search(line))]


@pytest.mark.parametrize(
    "source",
    [
        "see {term}`patch`",
        ":::{note}\nx",
        "(eq-vit-1)=\n",
        "% a comment",
        "a **bold\n\ntext**",
        "[link](a b)",
        "an open $x",
        "a \\frac outside",
        "a|b\n--|--|--",
        "{run-time}",
        "_open",
    ],
)
def test_what_jupyter_would_show_raw_is_seen(source):
    assert raw(source)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_jupyter_shows_nothing_raw_and_links_lead_somewhere(path):
    prose = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"]
    assert [found for source in prose if (found := raw(source))] == []
    text = "\n".join(prose)
    anchors = set(re.findall(r'<a id="([\w-]+)"></a>', text))
    headings = {"-".join(title.split()) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", text)
    assert {anchor[1:] for place, anchor in links if anchor and not place} <= anchors | headings
    assert all((path.parent / place).is_file() for place, _ in links if place and ":" not in place)


def test_the_lock_covers_every_requirement():
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*package["dependencies"], *package["optional-dependencies"]["chapters"]]
    wanted += [line for line in (ROOT / "requirements.in").read_text().splitlines() if line and line[0] != "#"]
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert {re.split(r"[<>=;\[ ]", line)[0] for line in wanted} <= locked


def test_the_versions_are_one():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == paperwalk.__version__


# The page of results


CARD = {
    "metrics": {"loss": {"value": 1.23456, "interval": [1.2, 1.3], "n": 10}},
    "cpu_seconds": 1800,
    "hardware": "a processor, 2 cores",
    "command": "paperwalk train gpt --recipe x",
}


def add_checkpoint(book, name, card):
    (book / "checkpoints" / name).mkdir(parents=True)
    (book / "checkpoints" / name / "config.json").write_text("{}")
    if card is not None:
        (book / "checkpoints" / name / "card.json").write_text(json.dumps(card))


def test_the_page_of_results_says_what_the_cards_say(book, monkeypatch):
    add_checkpoint(book, "gpt-moby-dick", CARD)
    assert any("book/results.md is not what" in line for line in sync.problems())
    run_sync(monkeypatch)
    page = (book / "book" / "results.md").read_text()
    assert "| loss (nats a character): 1.235 (1.200 to 1.300) |" in page
    assert "| ours: loss (nats a character) | 1.235 (1.200 to 1.300) |" in page
    assert "30 minutes of one core (a processor, 2 cores)" in page
    assert "`paperwalk train gpt --recipe x`" in page
    assert not any("results.md" in line for line in sync.problems())


@pytest.mark.parametrize(("name", "card"), [("gpt-moby-dick", None), ("no-such-claim", CARD)])
def test_a_checkpoint_without_card_or_claim_is_named(name, card, book):
    add_checkpoint(book, name, card)
    with pytest.raises(ValueError, match=f"checkpoints/{name} lacks its card.json or its claim"):
        pages.results()


@pytest.mark.parametrize("card", [{}, CARD | {"metrics": {}}, CARD | {"metrics": {"another": {}}}])
def test_a_card_without_the_figure_of_its_claim_is_named(card, book):
    add_checkpoint(book, "gpt-moby-dick", card)
    with pytest.raises(ValueError, match=r"checkpoints/gpt-moby-dick/card\.json has no metric 'loss'"):
        pages.results()


# Mutants


MUTATED = '''
"""Prose, which is not changed: 1 + 1."""
from contextlib import contextmanager

LIMIT = 3


def clip(x: "1 + 1", most=LIMIT, *, least=0):
    """The nearest number from least to most."""
    if x > most:
        raise ValueError(f"{x} is more than {most + 0}")
    return max(x, least)


@contextmanager
def opened():
    yield 1


def unjudged(x):
    return x + 1
'''
JUDGES = """
import pytest
from paperwalk.small import clip, opened


def test_clip():
    assert [clip(x) for x in (-1, 0, 1, 3)] == [0, 0, 1, 3]
    with pytest.raises(ValueError):
        clip(4)


def test_opened():
    with opened() as x:
        assert x == 1
"""


def test_mutants_change_what_is_computed_and_no_prose():
    made = {m.key: m for m in mutants.mutants("small", MUTATED)}
    assert all(compile(m.text, "", "exec") for m in made.values())
    assert ("clip", "if x > most:", "if x >= most:") in made
    assert ("clip", "return max(x, least)", "return min(x, least)") in made
    assert ("clip", "return max(x, least)", "return None") in made
    assert ("", "LIMIT = 3", "LIMIT = 4") in made
    assert ("opened", "yield 1", "yield 2") in made
    assert [m.default for m in made.values() if "least=1" in m.after] == [True]
    assert not [m for m in made.values() if "Prose" in m.before or "nearest" in m.before or "is more" in m.after]


def test_mutants_are_killed_in_functions_decorated_or_not_in_defaults_and_outside(tmp_path):
    for path, text in {
        "src/paperwalk/__init__.py": "",
        "src/paperwalk/small.py": MUTATED,
        "tests/test_small.py": JUDGES,
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["src"]\n',
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tools")!r})
import mutants
root = Path({str(tmp_path)!r})
mutants.ROOT, mutants.PACKAGE, mutants.RESULTS = root, root / "src" / "paperwalk", root / "mutants.json"
mutants.EQUIVALENTS, mutants.sources = root / "equivalents.toml", lambda: ["small"]
sys.exit(mutants.main([]))
"""
    run = [sys.executable, "-c", program]
    first = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 1, first.stdout + first.stderr
    result = json.loads((tmp_path / "mutants.json").read_text())["small"]
    assert {function for function, _, _ in result["survivors"]} == {"unjudged"}
    assert "+ return x - 1" in first.stdout
    # What has been killed is not tried again; a new test meets the survivors alone.
    judges = "from paperwalk.small import unjudged\n\ndef test_unjudged():\n    assert unjudged(2) == 3\n"
    (tmp_path / "tests" / "test_small.py").write_text(JUDGES + judges)
    second = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"1 files, {len(result['survivors'])} mutants to try" in second.stdout


def test_a_survivor_has_to_be_listed_and_the_list_to_be_of_now(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "EQUIVALENTS", tmp_path / "equivalents.toml")
    made = {"small": mutants.mutants("small", MUTATED)}
    key = ("clip", "if x > most:", "if x >= most:")
    results = {"small": {"mutants": len(made["small"]), "survivors": [list(key)]}}
    assert mutants.show(["small"], results, made) == 1
    assert "+ if x >= most:" in capsys.readouterr().out
    entry = '[[small]]\nin = "clip"\nbefore = "{}"\nafter = ["if x >= most:"]\nwhy = "…"\n'
    mutants.EQUIVALENTS.write_text(entry.format("if x > most:"))
    assert mutants.show(["small"], results, made) == 0
    mutants.EQUIVALENTS.write_text(entry.format("if x > most:") + entry.format("if x > 3:"))
    assert mutants.show(["small"], results, made) == 1
    assert "no such mutant any more" in capsys.readouterr().out


def test_every_survivor_on_record_is_listed_with_its_reason():
    results, listed = json.loads(mutants.RESULTS.read_text()), mutants.equivalents()
    assert set(results) <= set(mutants.sources())
    for source, result in results.items():
        killed, same, live = mutants.verdict(source, result, listed.get(source, {}))
        assert not live, source
        assert killed >= mutants.SHARE * (result["mutants"] - same), source
    assert all(why.strip() for entries in listed.values() for why in entries.values())
