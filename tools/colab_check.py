"""`make colab-check`: run the notebooks as Colab would, in an environment that has no more than Colab has.

A fresh environment gets torch, numpy and what else Colab brings, in the lock's versions, and a `google.colab` that is
loaded before the first cell, as there. The notebook's own first cell then clones this repository (its last commit, from
this disk) and installs the package. All cells run; torch and numpy must be the same files afterwards.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import yaml

from chapters import NOTEBOOKS, ROOT, TIMEOUT, ChapterError

# What Colab has before the first cell. Of its other packages none is one that a chapter could miss.
COLAB = ("torch", "torchvision", "numpy", "matplotlib", "pillow", "scipy", "tqdm", "requests", "ipykernel", "ipython")
KEPT = ("torch", "torchvision", "numpy")
UV = ROOT / ".uv" / "bin" / "uv"


def make_environment(folder: Path) -> Path:
    """A new environment with Colab's packages; its Python."""
    python = folder / "bin" / "python"
    subprocess.run([UV, "venv", "--quiet", "--seed", "--python", sys.executable, folder], check=True)
    locked = ["--constraints", ROOT / "requirements.txt"]
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, *locked, *COLAB], check=True)
    return python


def imitate(folder: Path, python: Path, repository: dict[str, str]) -> dict[str, str]:
    """The variables under which a kernel of this Python believes that it is Colab's.

    Args:
        folder: an empty one for the imitation.
        python: of the environment that the kernel runs in.
        repository: address and branch that the notebooks clone; the clone comes from this disk.
    """
    stub = folder / "stub" / "google" / "colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("")
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-colab.py").write_text("import google.colab\n")
    kernel = folder / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "colab", "language": "python"}))
    clone = folder / "book.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", ROOT, clone], check=True)
    subprocess.run(
        ["git", "-C", clone, "branch", "--force", repository["branch"], "HEAD"], check=True, capture_output=True
    )
    return {
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_PATH": str(folder / "jupyter"),
        "PYTHONPATH": str(folder / "stub"),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{clone.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository["url"],
    }


def fingerprints(python: Path) -> dict[str, str]:
    """Version and a digest of the installed files' list, for each package that must stay as it is."""
    code = (
        "import sys, json, importlib.metadata as m\n"
        "print(json.dumps({n: [m.version(n), m.distribution(n).read_text('RECORD')] for n in sys.argv[1:]}))"
    )
    said = subprocess.run([python, "-c", code, *KEPT], check=True, capture_output=True, text=True).stdout
    found = json.loads(said)
    return {
        name: f"{version} {hashlib.sha256((record or '').encode()).hexdigest()}"
        for name, (version, record) in found.items()
    }


def run(path: Path, folder: Path, variables: dict[str, str]) -> float:
    """Run all cells of the notebook in an empty folder, under these variables; seconds it took.

    Raises:
        ChapterError: a cell failed.
    """
    from nbclient import NotebookClient

    notebook, start = nbformat.read(path, as_version=4), time.perf_counter()
    folder.mkdir()
    client = NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="colab", resources={"metadata": {"path": str(folder)}}
    )
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        client.execute()
    except Exception as error:
        raise ChapterError(f"{path.name} does not run as in Colab: {error}") from None
    finally:
        os.environ.clear()
        os.environ.update(before)
    return time.perf_counter() - start


def main() -> None:
    """Check these notebooks, or all of them, in one fresh environment after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="stems of notebooks; all without")
    parser.add_argument("--python", help="take this one as it is, as in Colab's own image, and install nothing before")
    arguments = parser.parse_args()
    repository = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    if subprocess.run(["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True).stdout:
        print("what is not committed does not take part: Colab clones the last commit")
    paths = [NOTEBOOKS / f"{name}.ipynb" for name in arguments.names] or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in paths:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            given = arguments.python and shutil.which(arguments.python)
            if arguments.python and not given:
                raise ChapterError(f"no program {arguments.python!r}, which --python names")
            python = Path(given) if given else make_environment(folder / "environment")
            before = fingerprints(python)
            seconds = run(path, folder / "content", imitate(folder, python, repository))
            changed = sorted(name for name, print_ in fingerprints(python).items() if print_ != before[name])
            if changed:
                raise ChapterError(f"{path.name} reinstalls {', '.join(changed)}, which Colab brings")
            print(f"{path.stem}: {seconds:.0f} s; {', '.join(KEPT)} unchanged", flush=True)


if __name__ == "__main__":
    try:
        main()
    except ChapterError as error:
        sys.exit(str(error))
