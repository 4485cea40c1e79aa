"""The papers around the book: how to cite it, what changed, and the environment for conda users."""

import re
import tomllib
from datetime import date
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# https://citation-file-format.github.io, version 1.2.0: the fields that are required, and those used here.
REQUIRED = {"cff-version", "message", "title", "authors"}
KNOWN = REQUIRED | {"abstract", "type", "version", "date-released", "repository-code", "license", "keywords"}


def test_the_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert set(citation) >= REQUIRED
    assert set(citation) <= KNOWN
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in ("software", "dataset")
    for author in citation["authors"]:
        assert set(author) <= {"name", "family-names", "given-names", "website"}
    assert citation["version"] == VERSION
    assert isinstance(citation["date-released"], date)
    assert citation["license"] == ["MIT", "CC-BY-4.0"]
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert citation["repository-code"] == config["repository"]["url"]
    assert citation["title"].startswith(config["title"])


def test_the_readme_cites_the_same():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (entry,) = re.findall(r"```bibtex\n(.*?)```", readme, re.DOTALL)
    assert citation["title"] in entry
    assert f"version = {{{VERSION}}}" in entry
    assert f"year = {{{citation['date-released'].year}}}" in entry
    assert citation["repository-code"] in entry


def test_the_changelog_knows_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] in (VERSION, "Unreleased")
    assert re.search(rf"^## {re.escape(VERSION)} \(\d{{4}}-\d{{2}}-\d{{2}}\)$", changelog, re.MULTILINE)


def test_what_the_readme_points_to_exists():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert [link for link in linked if not (ROOT / link).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.MULTILINE)) <= targets
    picture = next(link for link in linked if link.endswith(".png"))
    assert (ROOT / picture).stat().st_size < 200_000


def test_the_conda_environment_is_true_to_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, rest = environment["dependencies"]
    # The lock was resolved for this Python; with a newer one conda would ask for wheels that it does not name.
    made_for = re.search(r"--python-version (\S+)", (ROOT / "Makefile").read_text())[1]
    assert python == f"python={made_for}"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={made_for}"
    assert pip == "pip"
    # Nothing beside the lock, whose hashes pip then demands of everything.
    assert rest == {"pip": ["-r requirements.txt"]}
    lock = (ROOT / "requirements.txt").read_text()
    pinned = re.findall(r"^([\w.-]+)==\S+", lock, re.MULTILINE)
    assert len(re.findall(r"^[\w.-]+==[^\n]*\\\n +--hash=sha256:", lock, re.MULTILINE)) == len(pinned) > 100


def test_the_licences_are_there():
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    assert "CC BY 4.0" in (ROOT / "README.md").read_text()
