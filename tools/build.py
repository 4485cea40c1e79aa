"""`make book`: fetch the data, execute what changed in parallel, build the HTML, say where to open it."""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from chapters import ROOT, chapters, code, datasets, key, read

EXECUTED = ROOT / "_build" / "executed"
KEYS = EXECUTED / "keys.json"
MATHJAX = "mathjax@3.2.2"
MATHJAX_SHA256 = "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09"
MATHJAX_PARTS = ("output", "input", "ui", "a11y", "sre", "tex-chtml.js")


def fetch_data(paths: list[Path]) -> None:
    """Fetch and verify the data that these chapters load."""
    names = sorted(set().union(*(datasets(code(read(path))) for path in paths)))
    if names:
        subprocess.run([sys.executable, "-m", "paperwalk.data", *names], check=True)


def execute(path: Path) -> tuple[nbformat.NotebookNode, float]:
    """Run the chapter in a fresh kernel and an empty folder.

    Raises:
        RuntimeError: a cell failed or wrote to standard error; the message shows the cell.
    """
    notebook, start = read(path), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # Timings would go into the cells' metadata, which the cache hashes: Sphinx would not find the notebook again.
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute()
        except CellExecutionError as error:
            # Without the terminal colours that a traceback comes with.
            raise RuntimeError(
                f"{path.name}: a cell failed\n{re.sub(chr(27) + r'[[][0-9;]*m', '', str(error))}"
            ) from None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{path.name}: a cell wrote to standard error\n{cell.source}\n---\n{output.text}")
    return notebook, time.perf_counter() - start


def execute_changed() -> None:
    """Execute the chapters whose code, modules, results or lock changed, in parallel, and put them into the cache."""
    cache = get_cache(str(EXECUTED))
    done = json.loads(KEYS.read_text()) if KEYS.exists() else {}
    keys = {path.stem: key(read(path)) for path in chapters()}
    changed = [path for path in chapters() if done.get(path.stem) != keys[path.stem]]
    fetch_data(changed)
    print(
        f"{len(changed)} of {len(keys)} chapters to execute: {', '.join(p.stem for p in changed) or 'none'}", flush=True
    )
    failures = []
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        running = {pool.submit(execute, path): path for path in changed}
        for future in as_completed(running):
            path = running[future]
            try:
                notebook, seconds = future.result()
            except RuntimeError as error:
                failures.append(str(error))
                continue
            print(f"  {path.stem}: {seconds:.0f} s", flush=True)
            bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            done[path.stem] = keys[path.stem]
            # Written after the cache, so that an interrupted build executes the chapter again.
            KEYS.write_text(json.dumps(done, indent=2))
    if failures:
        sys.exit("\n\n".join(failures))


def fetch_mathjax() -> Path:
    """The folder of MathJax's files that the pages need, fetched once and verified.

    Raises:
        SystemExit: the package came with another hash.
    """
    folder = ROOT / "_build" / "mathjax"
    if folder.is_dir():
        return folder
    # Here, because it takes torch along, and a build with nothing to do should cost nothing.
    from paperwalk.data.sources import npm_pack

    (ROOT / "_build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "_build") as temporary:
        npm_pack(MATHJAX, Path(temporary))
        (tarball,) = Path(temporary).glob("*.tgz")
        if hashlib.sha256(tarball.read_bytes()).hexdigest() != MATHJAX_SHA256:
            sys.exit(f"{MATHJAX} is not the package that was expected")
        with tarfile.open(tarball) as archive:
            archive.extractall(temporary, filter="data")
        # The whole appears at once, so that an interrupted build leaves no half of it.
        (Path(temporary) / "package" / "es5").rename(folder)
    return folder


def build_html() -> None:
    """Build the site from the executed chapters; any warning fails it."""
    for folder in ("html", ".doctrees"):
        shutil.rmtree(ROOT / "_build" / folder, ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [str(jupyter_book), "build", str(ROOT), "-W", "--keep-going", "-n", "-q"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{result.stdout}\n{result.stderr}\nthe HTML was not built: each WARNING above must be mended")
    static = ROOT / "_build" / "html" / "_static" / "mathjax"
    for name in MATHJAX_PARTS:
        source = fetch_mathjax() / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, static / name)


def main() -> None:
    """Execute and build, or only fetch the data; each step with its time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="store_true", help="only fetch the data")
    if parser.parse_args().data:
        return fetch_data(chapters())
    for step in (execute_changed, build_html):
        start = time.perf_counter()
        print(f"== {step.__name__.replace('_', ' ')}", flush=True)
        step()
        print(f"   {time.perf_counter() - start:.1f} s", flush=True)
    print(f"open {(ROOT / '_build' / 'html' / 'index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
