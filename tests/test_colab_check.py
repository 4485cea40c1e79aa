"""The imitation of Colab, in its parts: the whole needs a fresh environment and is `make colab-check`."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import colab_check
from chapters import ChapterError

REPOSITORY = {"url": "https://github.com/nobody/no-such-book", "branch": "published"}


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A repository of one file, on a branch that is not the one the notebooks name."""
    root = tmp_path / "book"
    root.mkdir()
    (root / "file.txt").write_text("committed")
    for command in (
        ["init", "-q", "-b", "work"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"],
    ):
        subprocess.run(["git", "-C", root, *command], check=True)
    monkeypatch.setattr(colab_check, "ROOT", root)
    return root


def notebook(path, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


def imitate(tmp_path):
    folder = tmp_path / "imitation"
    folder.mkdir()
    return colab_check.imitate(folder, Path(sys.executable), REPOSITORY)


def test_a_kernel_believes_that_it_is_colabs_and_clones_from_this_disk(book, tmp_path):
    (book / "file.txt").write_text("changed since")
    cells = [
        "import sys\nassert 'google.colab' in sys.modules",
        "import subprocess\n"
        "clone = ['git', 'clone', '-q', '--depth', '1', '--branch', 'published']\n"
        f"subprocess.check_call([*clone, {REPOSITORY['url']!r}, 'book'])",
        "from pathlib import Path\nassert Path('book/file.txt').read_text() == 'committed'",
        "import google.protobuf",
    ]
    before = dict(os.environ)
    assert colab_check.run(notebook(tmp_path / "a.ipynb", *cells), tmp_path / "content", imitate(tmp_path)) > 0
    assert dict(os.environ) == before


def test_a_cell_that_fails_is_named(book, tmp_path):
    with pytest.raises(ChapterError, match=r"a\.ipynb does not run as in Colab[\s\S]*ZeroDivisionError"):
        colab_check.run(notebook(tmp_path / "a.ipynb", "1 / 0"), tmp_path / "content", imitate(tmp_path))


def test_another_torch_has_another_fingerprint(tmp_path, monkeypatch):
    def install(record):
        info = tmp_path / "torch-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
        (info / "RECORD").write_text(record)
        return colab_check.fingerprints(Path(sys.executable))

    monkeypatch.setattr(colab_check, "KEPT", ("torch",))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = install("torch/a.py,sha256=1,1\n")
    assert first["torch"].startswith("1.0 ")
    assert install("torch/a.py,sha256=1,1\n") == first
    assert install("torch/a.py,sha256=2,1\n") != first
