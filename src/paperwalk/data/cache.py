"""The local cache: decoded arrays, one safetensors file a dataset, never trusted without its SHA-256.

The folder is ``$PAPERWALK_DATA`` where that is set, else ``paperwalk`` in the user's cache directory.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from paperwalk.data.sources import Arrays, Recipe, check, read_first


def cache_folder() -> Path:
    """The folder of the cache; it need not exist yet."""
    if chosen := os.environ.get("PAPERWALK_DATA"):
        folder = Path(chosen).expanduser()
        if not folder.is_absolute():
            # Chapters run in folders of their own, and each would have its own copy.
            raise ValueError(f"PAPERWALK_DATA is {chosen!r}, expected an absolute path")
        return folder
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "paperwalk"


def cache_file(name: str) -> Path:
    """The file that holds, or would hold, the arrays of dataset ``name``."""
    return cache_folder() / f"{name}.safetensors"


def read_cache(name: str, recipe: Recipe) -> Arrays:
    """Arrays of dataset ``name`` from the cache, mapped copy-on-write: changing them leaves the file alone.

    Raises:
        FileNotFoundError: the dataset is not in the cache.
        ValueError: the file is damaged.
    """
    path = cache_file(name)
    try:
        return check(load_file(path), recipe.sha256, recipe.keys)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        # A type that numpy does not have is a TypeError, one that torch does not have a KeyError.
        raise ValueError(f"cache file {path} is damaged: {error}") from error


def write_cache(name: str, arrays: Arrays) -> None:
    """Puts ``arrays`` into the cache in one step, so that no reader ever sees half a file.

    Raises:
        OSError: the disk is full or gone.
    """
    path = cache_file(name)
    # A fixed name, safe under the lock: what a killed process left behind is overwritten, not collected.
    part = path.with_name(path.name + ".part")
    try:
        save_file(arrays, part)
        # safetensors makes the file private, but a cache may be shared between users.
        part.chmod(0o644)
        os.replace(part, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire()
    except OSError as error:
        raise PermissionError(
            f"cannot write in the data folder {folder} ({error}); set PAPERWALK_DATA to a folder that can be written"
        ) from error
    try:
        yield
    finally:
        lock.release()


def obtain(name: str, recipe: Recipe) -> tuple[Arrays, str]:
    """Arrays of dataset ``name`` and where they came from: ``cache``, or the title of the source.

    Of several processes that ask at once one fetches and the others wait. A filled cache may be read-only.

    Raises:
        FetchError: no source had the dataset.
        PermissionError: it is not in the cache, and the cache's folder cannot be written.
    """
    with suppress(FileNotFoundError, ValueError):
        return read_cache(name, recipe), "cache"
    with _locked(name):
        try:
            return read_cache(name, recipe), "cache"
        except FileNotFoundError:
            pass
        except ValueError as error:
            warnings.warn(f"{error}; fetching it again", stacklevel=2)
        arrays, title = read_first(name, recipe, cache_folder() / name / "manual")
        write_cache(name, arrays)
        return arrays, title
