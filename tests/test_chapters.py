"""The form of a chapter, as book/contributing.md lays it down."""

import re
import statistics

import pytest

from cells import WIDTH
from chapters import CHECKED, chapters, read

pytestmark = pytest.mark.parametrize("path", chapters(), ids=lambda path: path.stem)
NO_ASSERTION_NEEDED = ("Exercises", "Recap", "Where this differs", "Further reading")


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def beats(path):
    """The code of each `##` section by its title."""
    title, code = "", {}
    for cell in read(path).cells:
        if cell.cell_type == "code":
            code[title] = code.get(title, "") + cell.source + "\n"
        else:
            titles = re.findall(r"^## (.+)$", cell.source, re.MULTILINE)
            title = titles[-1] if titles else title
            code |= {t: code.get(t, "") for t in titles}
    return code


def test_cells_are_short(path):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert statistics.median(lengths) <= 10
    assert max(lengths) <= 30


def test_code_fits_the_page(path):
    lines = [line for cell in code_cells(path) for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > WIDTH] == []


def test_every_beat_asserts_something(path):
    proving = {t: c for t, c in beats(path).items() if t and not t.startswith(NO_ASSERTION_NEEDED)}
    assert [title for title, code in proving.items() if not re.search(r"^\s*assert ", code, re.MULTILINE)] == []


def test_a_chapter_has_its_parts(path):
    text = path.read_text(encoding="utf-8")
    assert len(beats(path)) >= 5
    assert "{run-time}" in text
    assert "\n## Recap" in text
    assert "\n## Where this differs" in text
    assert re.search(r"\{exercise\} Spot the bug", text)


def test_four_exercises_have_solutions_that_run(path):
    text = path.read_text(encoding="utf-8")
    labels = re.findall(r"\{exercise\}[^\n]*\n:label: ([\w-]+)", text)
    assert len(labels) >= 4
    for label in labels:
        solution = re.search(rf"solution-start\}} {label}\n(.*?)\{{solution-end\}}", text, re.DOTALL)
        assert solution, f"{label} has no solution"
        assert "{code-cell}" in solution[1], f"the solution of {label} runs nothing"
        assert "assert " in solution[1], f"the solution of {label} asserts nothing"


def test_cells_that_draw_have_alt_text(path):
    drawing = [c for c in code_cells(path) if re.search(r"plt\.subplots|plt\.figure|show_images", c.source)]
    silent = [c.source for c in drawing if not c.metadata.get("mystnb", {}).get("image", {}).get("alt")]
    assert silent == []


def test_checked_cells_print_no_times_and_no_bars(path):
    checked = [c.source for c in code_cells(path) if CHECKED in c.metadata.get("tags", [])]
    assert len(checked) >= 5
    assert [source for source in checked if re.search(r"milliseconds|progress\(|tqdm", source)] == []


def test_equations_named_in_code_exist(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"\((eq-[\w-]+)\)", " ".join(cell.source for cell in code_cells(path))))
    assert named <= set(re.findall(r"^\((eq-[\w-]+)\)=$", text, re.MULTILINE))


def test_tagged_equations_are_one_line(path):
    # Sphinx wraps what holds a \\ in a split environment, in which MathJax allows no \tag: \cr breaks lines there.
    blocks = re.findall(r"^\$\$$(.*?)^\$\$$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [block for block in blocks if "\\\\" in block and "\\tag" in block] == []
