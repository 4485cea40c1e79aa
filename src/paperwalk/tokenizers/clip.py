r"""Byte pairs as CLIP has them: cleaned, lower-cased, each word's last byte marked, a text framed and cut to a length.

Radford et al. 2021, Section 2.4. Official implementation: openai/CLIP, `clip/simple_tokenizer.py` and `clip/clip.py`.

The algorithm is that of `bpe`; what differs from GPT-2's is before and around it:

| | GPT-2 | CLIP |
|---|---|---|
| text | as it is | broken Unicode and HTML entities mended, white space single, lower case |
| word | with the space before it | without spaces; its last byte is another letter, written `…</w>` |
| digits | a run is a word | each is a word |
| decode | gives the text back | gives words with a space after each |

Differs from the official code:
- A text that is too long is cut, and its last token becomes the end of the text, as open_clip does (and the official
  code with `truncate=True`); the official code raises an error otherwise.
- Two special tokens, `<|startoftext|>` and `<|endoftext|>`, when they are written in a text, are text; the official
  code makes the special token of it.
- A lone surrogate, which UTF-8 does not have, becomes U+FFFD; the official code raises an error.
"""

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import regex
import torch
from jaxtyping import Int64
from torch import Tensor

from paperwalk.files import write_whole
from paperwalk.tokenizers.bpe import (
    CACHED_WORDS,
    END_OF_TEXT,
    Pair,
    apply_merges,
    byte_characters,
    learn_merges,
)
from paperwalk.tokenizers.ids import checked_ids

START_OF_TEXT = "<|startoftext|>"
WORD_END = b"</w>"
FILE = "merges.txt"
CONTEXT = 77
# The published file has 262,144 merges; the vocabulary of 49,152 + 256 takes the first of them.
PUBLISHED_MERGES = 48_894
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
N_BYTES = 256


def clean(text: str) -> str:
    """The text with broken Unicode mended, HTML entities (also doubled ones) resolved, single spaces, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def letters(word: bytes) -> list[bytes]:
    """The letters of a word before any merge: its bytes, the last with the mark of a word's end."""
    spelled = [bytes([byte]) for byte in word]
    return [*spelled[:-1], spelled[-1] + WORD_END]


class ClipTokenizer:
    """CLIP's byte-pair encoding: texts to one (b t) tensor, framed by start and end and filled up with zeros.

    The vocabulary is 256 bytes, the same 256 at a word's end, a token a merge, start of text, end of text.

    Args:
        merges: the pairs to join, the one learned first first.

    Raises:
        ValueError: a merge of what is no token, or a token made twice.
    """

    def __init__(self, merges: Sequence[Pair]):
        first = [bytes([byte]) for byte in byte_characters()]
        tokens = [*first, *(byte + WORD_END for byte in first)]
        known = set(tokens)
        for number, (left, right) in enumerate(merges, start=1):
            if left not in known or right not in known:
                raise ValueError(f"merge {number}: {left!r} + {right!r}, expected two tokens that are there before it")
            if left + right in known:
                raise ValueError(f"merge {number}: {left!r} + {right!r} makes a token that is there already")
            known.add(left + right)
            tokens.append(left + right)
        self.merges = list(merges)
        self.sot_id, self.eot_id = len(tokens), len(tokens) + 1
        self._tokens = [*tokens, START_OF_TEXT.encode(), END_OF_TEXT.encode()]
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of tokens v."""
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, as integers, without start and end; an empty text has none."""
        ids: list[int] = []
        for word in WORDS.findall(clean(text)):
            known = self._cache.get(word)
            if known is None:
                known = [self._ids[token] for token in apply_merges(letters(word.encode("utf-8")), self._ranks)]
                if len(self._cache) < CACHED_WORDS:
                    self._cache[word] = known
            ids += known
        return ids

    def decode(self, ids: Iterable[int] | Int64[Tensor, " t"]) -> str:
        """The words of these integers, a space after each; start, end and what follows it are left out.

        Raises:
            ValueError: an integer that is no token's.
        """
        spelled = []
        for i in checked_ids(map(int, ids), self.vocab_size):
            if i == self.eot_id:
                break
            if i != self.sot_id:
                spelled.append(self._tokens[i].replace(WORD_END, b" "))
        return b"".join(spelled).decode("utf-8", "replace")

    def __call__(self, texts: str | Sequence[str], block_size: int = CONTEXT) -> Int64[Tensor, "b t"]:
        """Each text as a row of `block_size` integers: start, its tokens, end, zeros.

        A text that is too long loses its last tokens; the end stays. An empty text is start and end alone.

        Raises:
            ValueError: no text, something that is not a string, or `block_size` below 2.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("no texts, expected at least one")
        if block_size < 2:
            raise ValueError(f"block_size={block_size}, expected at least 2: start and end")
        rows = torch.zeros(len(texts), block_size, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"a text is a {type(text).__name__}, expected a string")
            ids = [self.sot_id, *self.encode(text)[: block_size - 2], self.eot_id]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "ClipTokenizer":
        """Learn a vocabulary from texts; it is smaller than asked for when they give no more pairs.

        Raises:
            ValueError: `vocab_size` is below 514: the bytes, twice, start and end.
        """
        n_merges = vocab_size - 2 * N_BYTES - 2
        if n_merges < 0:
            raise ValueError(f"vocab_size={vocab_size}, expected at least {2 * N_BYTES + 2}")
        first = [bytes([byte]) for byte in byte_characters()]
        order = {token: i for i, token in enumerate([*first, *(byte + WORD_END for byte in first)])}
        words = Counter(word.encode("utf-8") for text in texts for word in WORDS.findall(clean(text)))
        return cls(learn_merges(words, n_merges, order, letters))

    @classmethod
    def parse(cls, merges: str, n_merges: int = PUBLISHED_MERGES) -> "ClipTokenizer":
        """The tokenizer of a published merges file: a version line, then a pair a line.

        Raises:
            ValueError: a content that is not such a file; it names the line.
        """
        bytes_of = {character: byte for byte, character in byte_characters().items()}

        def unwritten(token: str, number: int) -> bytes:
            body, mark = (token[:-4], WORD_END) if token.endswith("</w>") else (token, b"")
            if not body or any(character not in bytes_of for character in body):
                raise ValueError(f"line {number}: token {token!r}, expected bytes in GPT-2's writing")
            return bytes(bytes_of[character] for character in body) + mark

        pairs = []
        for number, line in enumerate(merges.split("\n")[1 : n_merges + 1], start=2):
            parts = line.split(" ")
            if len(parts) != 2:
                raise ValueError(f"line {number}: {line[:40]!r}, expected two tokens and a space between them")
            pairs.append((unwritten(parts[0], number), unwritten(parts[1], number)))
        if len(pairs) < n_merges:
            raise ValueError(f"{len(pairs)} merges, expected at least {n_merges}")
        return cls(pairs)

    def save(self, folder: str | Path) -> None:
        """Write merges.txt to a folder, in the published format, for `load`."""
        characters = byte_characters()

        def written(token: bytes) -> str:
            body, mark = (token[:-4], "</w>") if token.endswith(WORD_END) else (token, "")
            return "".join(characters[byte] for byte in body) + mark

        lines = ["#version: 0.2", *(f"{written(left)} {written(right)}" for left, right in self.merges)]
        write_whole(folder, {FILE: "\n".join(lines) + "\n"})

    @classmethod
    def load(cls, folder: str | Path) -> "ClipTokenizer":
        """The tokenizer that `save` wrote: all merges of merges.txt.

        Raises:
            FileNotFoundError: no merges.txt there.
            ValueError: as `parse`.
        """
        text = (Path(folder) / FILE).read_text(encoding="utf-8").removesuffix("\n")
        return cls.parse(text, text.count("\n"))
