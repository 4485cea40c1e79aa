"""The map of what to read first, made from what the chapters say."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

import reading
from chapters import ROOT

FRONTS = {
    "a": "No other chapter comes first.",
    "b": "Read the [a](a.md); the [notation](../notation.md) is the book's. [d](d.md) is like it.",
    "c": "Read [b](b.md) and [a](a.md).\nYou should know more.",
    "d": "Read the [a](a.md): version 1.5 of it\nand all. See [c](c.md).",
}


@pytest.fixture
def fronts(tmp_path, monkeypatch):
    for stem, text in FRONTS.items():
        (tmp_path / f"{stem}.md").write_text(f"# {stem}\n\n{text}\n")
    monkeypatch.setattr(reading, "chapters", lambda: sorted(tmp_path.glob("*.md")))


def test_what_comes_first_is_what_the_front_says_and_no_more(fronts):
    assert reading.needs() == {"a": set(), "b": {"a"}, "c": {"b"}, "d": {"a"}}


def test_the_map_links_each_chapter_and_draws_each_step(fronts):
    drawn = ElementTree.fromstring(reading.svg())
    assert [link.get("href") for link in drawn.findall("a")] == [f"chapters/{stem}.html" for stem in "abdc"]
    assert len(drawn.findall("line")) == 3
    assert drawn.get("aria-label") == "What to read first: b after a; c after b; d after a."
    lower = [(float(line.get("y1")), float(line.get("y2"))) for line in drawn.findall("line")]
    assert all(top < bottom for top, bottom in lower)


def test_nothing_of_the_map_overlaps():
    drawn = ElementTree.fromstring(reading.svg())
    boxes = [(float(box.get("x")), float(box.get("y"))) for box in drawn.iter("rect")]
    assert len(boxes) == len(set(boxes)) == len(reading.chapters())
    *_, width, height = map(float, drawn.get("viewBox").split())
    assert all(0 <= x <= width - reading.WIDTH and 0 <= y <= height - reading.HEIGHT for x, y in boxes)


def test_every_chapter_but_the_primer_says_what_comes_first():
    assert [stem for stem, first in reading.needs().items() if not first] == ["einops"]
    assert not re.search(r"[^\x20-\x7e]", reading.svg())


def test_the_table_of_contents_puts_what_comes_first_first():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    places = [Path(chapter["file"]) for part in contents["parts"] for chapter in part["chapters"]]
    listed = [place.name for place in places if place.parent.name == "chapters"]
    assert sorted(listed) == sorted(reading.needs())
    for stem, first in reading.needs().items():
        assert all(listed.index(other) < listed.index(stem) for other in first), stem
