"""Files that appear whole or not at all, and JSON from anywhere."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Seconds after which a temporary file is what a killed process left: nothing here takes so long to write.
LEFT = 3600


def parse_json(content: str | bytes, name: str) -> Any:
    """What the JSON in `content` says; `name` is for the message.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply, expected a few levels") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def write_whole(folder: str | Path, contents: Mapping[str, str | bytes]) -> None:
    """Write files into a folder, which is made if need be; each appears whole, and none before all could be written.

    A full disk or an interruption leaves the files before as they were. What a killed process left half-written has a
    name of its own and is removed by a later call.

    Args:
        folder: where the files go.
        contents: of each file by its name; texts are written as UTF-8 with their line ends as they are.

    Raises:
        OSError: the disk is full or gone, or the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = {name: folder / f".{name}.{os.getpid()}" for name in contents}
    try:
        for name, content in contents.items():
            _remove_left(folder, name)
            temporary[name].write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        for name, path in temporary.items():
            os.replace(path, folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _remove_left(folder: Path, name: str) -> None:
    for path in folder.glob(f".{name}.*"):
        # Another process may be writing the same file now, or removing the same rest.
        with contextlib.suppress(FileNotFoundError):
            if path.name.rpartition(".")[2].isdigit() and time.time() - path.stat().st_mtime > LEFT:
                path.unlink()
