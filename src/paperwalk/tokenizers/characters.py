"""Text as integers and back, one a character."""

import json
from collections.abc import Iterable
from pathlib import Path

from paperwalk.files import parse_json, write_whole
from paperwalk.tokenizers.ids import checked_ids


class CharTokenizer:
    """One integer a character, in the order of the code points.

    Args:
        characters: the vocabulary; order and repetitions do not matter, so a whole text may be given.

    Raises:
        ValueError: no character at all.
    """

    def __init__(self, characters: str):
        self.characters = "".join(sorted(set(characters)))
        if not self.characters:
            raise ValueError("an empty text, expected at least one character for the vocabulary")
        self._ids = {character: i for i, character in enumerate(self.characters)}

    @property
    def vocab_size(self) -> int:
        """Number of characters v."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """The integer of each character.

        Raises:
            ValueError: a character that the vocabulary does not have.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError:
            i = next(i for i, character in enumerate(text) if character not in self._ids)
            raise ValueError(
                f"character {text[i]!r} (U+{ord(text[i]):04X}) at position {i}, "
                f"expected one of the vocabulary's {self.vocab_size}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these integers.

        Raises:
            ValueError: an integer that is no character's.
        """
        return "".join(self.characters[i] for i in checked_ids(ids, self.vocab_size))

    def save(self, folder: str | Path) -> None:
        """Write characters.json to a folder, for `load`."""
        write_whole(folder, {"characters.json": json.dumps(self.characters) + "\n"})

    @classmethod
    def load(cls, folder: str | Path) -> "CharTokenizer":
        """The tokenizer that `save` wrote.

        Raises:
            FileNotFoundError: no characters.json there.
            ValueError: it is not a JSON string of characters.
        """
        characters = parse_json((Path(folder) / "characters.json").read_text(encoding="utf-8"), "characters.json")
        if not isinstance(characters, str):
            raise ValueError(f"characters.json holds a {type(characters).__name__}, expected a string of characters")
        return cls(characters)
