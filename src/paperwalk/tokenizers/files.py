"""What both tokenizers need: integers that are tokens, JSON with a name, files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path


def checked_ids(ids: Iterable[int], vocab_size: int) -> Iterable[int]:
    """Each integer, once it is known to be a token's.

    Raises:
        ValueError: one is not.
    """
    for i in map(int, ids):
        if not 0 <= i < vocab_size:
            raise ValueError(f"token {i}, expected 0 to {vocab_size - 1}")
        yield i


def parse_json(text: str, name: str) -> object:
    """What the JSON in `text` says; `name` is for the message.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def write_texts(folder: str | Path, contents: Mapping[str, str]) -> None:
    """Write text files into a folder, which is made if it does not exist."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (Path(folder) / name).write_text(content, encoding="utf-8", newline="\n")
