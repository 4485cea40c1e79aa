r"""Text as integers and back by byte pairs, which spell any Unicode string without an unknown token.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, arXiv:1508.07909
(the algorithm, on characters); Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, Section 2.2
(on bytes, within words). Official implementation: openai/gpt-2, `src/encoder.py`.

A byte-pair token is a string of bytes. Text is cut into words by a pattern, each word is spelled in the bytes of its
UTF-8, and then the pair of neighbours that was learned first is joined, again and again, until none is left to join.

Differs from the official code:
- A lone surrogate (half of a UTF-16 pair, which Python strings may hold and UTF-8 may not) is spelled as three bytes
  like any other code point (`surrogatepass`) and comes back; the official code raises an error.
- `<|endoftext|>` written in a text is text (transformers makes the special token of it); the token of that name is
  `special["<|endoftext|>"]`.
"""

import heapq
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import regex

from paperwalk.files import parse_json, write_whole
from paperwalk.tokenizers.ids import checked_ids

# A word with the space before it; a contraction's ending; a run of digits or of other signs; white space.
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
END_OF_TEXT = "<|endoftext|>"
CACHED_WORDS = 1 << 16

Pair = tuple[bytes, bytes]


def byte_characters() -> dict[int, str]:
    """How GPT-2's files write each byte, in the order of its first tokens: itself where it prints, else from U+0100."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


def join(parts: Sequence[bytes], pair: Pair) -> list[bytes]:
    """The parts, with the two of `pair` made one wherever they are neighbours, from left to right."""
    joined: list[bytes] = []
    i = 0
    while i < len(parts):
        both = i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair
        joined.append(parts[i] + parts[i + 1] if both else parts[i])
        i += 2 if both else 1
    return joined


def apply_merges(parts: list[bytes], ranks: Mapping[Pair, int]) -> list[bytes]:
    """The parts of one word after all merges: the pair of the lowest rank is joined until no neighbours are a pair.

    Cost: at most m rounds over a word of m parts.
    """
    while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, math.inf))
        if best not in ranks:
            break
        parts = join(parts, best)
    return parts


def single_bytes(word: bytes) -> list[bytes]:
    """A word as GPT-2 spells it before any merge: its bytes."""
    return [bytes([byte]) for byte in word]


def learn_merges(
    words: Mapping[bytes, int],
    n_merges: int,
    order: Mapping[bytes, int],
    letters: Callable[[bytes], list[bytes]] = single_bytes,
) -> list[Pair]:
    """Byte-pair encoding: join the most frequent pair of neighbours in all words, `n_merges` times.

    Of pairs equally frequent that of the lower integers goes first, so that the result is determined.

    Args:
        words: how often each word occurs; pairs are counted within words only.
        n_merges: number of pairs to learn; fewer come back when the words are all joined up.
        order: the integer of each letter; new tokens get the next ones.
        letters: how a word is spelled before any merge.

    Cost: each merge visits the words that hold its pair, not all.
    Source: Sennrich et al. 2016, Algorithm 1.
    """
    spelled = [letters(word) for word in words]
    counts, ids = list(words.values()), dict(order)
    n_pairs: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, parts in enumerate(spelled):
        for pair in itertools.pairwise(parts):
            n_pairs[pair] += counts[i]
            holders[pair].add(i)

    def entry(pair: Pair) -> tuple[int, int, int, Pair]:
        return -n_pairs[pair], ids[pair[0]], ids[pair[1]], pair

    heap = [entry(pair) for pair in n_pairs]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < n_merges:
        negative, _, _, best = heapq.heappop(heap)
        # A count that changed since it was pushed has a newer entry.
        if -negative != n_pairs[best] or not negative:
            continue
        merges.append(best)
        ids.setdefault(best[0] + best[1], len(ids))
        changed = set()
        for i in holders.pop(best):
            old, new = spelled[i], join(spelled[i], best)
            for pair in itertools.pairwise(old):
                n_pairs[pair] -= counts[i]
                changed.add(pair)
            for pair in itertools.pairwise(new):
                n_pairs[pair] += counts[i]
                holders[pair].add(i)
                changed.add(pair)
            spelled[i] = new
        for pair in changed:
            heapq.heappush(heap, entry(pair))
    return merges


class BytePairTokenizer:
    """Byte-pair encoding on the bytes of words; `decode(encode(text))` is `text`, for every string.

    Args:
        vocabulary: the integer of each token, 0 to v − 1; all 256 single bytes are tokens.
        merges: the pairs to join, the one learned first first.

    Tokens that no merge makes are `special`: they stand for themselves in `decode`, and `encode` never returns them.

    Raises:
        ValueError: integers with gaps or repetitions, a byte without token, a merge of or to what is no token.

    Cost: words seen before are remembered; a new one costs `apply_merges`.
    """

    def __init__(self, vocabulary: Mapping[bytes, int], merges: Sequence[Pair]):
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError(
                f"the integers of {len(vocabulary)} tokens, expected each of 0 to {len(vocabulary) - 1} once"
            )
        absent = [byte for byte in range(256) if bytes([byte]) not in vocabulary]
        if absent:
            raise ValueError(f"{len(absent)} bytes have no token, the first 0x{absent[0]:02X}, expected all 256")
        for left, right in merges:
            for token in (left, right, left + right):
                if token not in vocabulary:
                    raise ValueError(
                        f"merge {left!r} + {right!r}: {token!r} is not in the vocabulary, expected a token"
                    )
        self.vocabulary = dict(vocabulary)
        self.merges = list(merges)
        made = {left + right for left, right in merges}
        self.special = {
            token.decode("utf-8", "replace"): i
            for token, i in vocabulary.items()
            if len(token) > 1 and token not in made
        }
        self._tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self._cache: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """Number of tokens v."""
        return len(self.vocabulary)

    def spell(self, word: bytes) -> list[bytes]:
        """The tokens of one word."""
        return apply_merges(single_bytes(word), self._ranks)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, as integers."""
        ids: list[int] = []
        for word in WORDS.findall(text):
            known = self._cache.get(word)
            if known is None:
                known = [self.vocabulary[token] for token in self.spell(word.encode("utf-8", "surrogatepass"))]
                if len(self._cache) < CACHED_WORDS:
                    self._cache[word] = known
            ids += known
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these integers; bytes that are no UTF-8 (half a character) become U+FFFD.

        Raises:
            ValueError: an integer that is no token's.
        """
        spelled = b"".join(self._tokens[i] for i in checked_ids(ids, self.vocab_size))
        try:
            return spelled.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return spelled.decode("utf-8", "replace")

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "BytePairTokenizer":
        """Learn a vocabulary from a text: the 256 bytes, then the merges, then `<|endoftext|>`, as in GPT-2.

        Raises:
            ValueError: `vocab_size` is below 257, or above what the text can give.
        """
        if vocab_size < 257:
            raise ValueError(f"vocab_size={vocab_size}, expected at least 257: the bytes and {END_OF_TEXT}")
        vocabulary = {bytes([byte]): i for i, byte in enumerate(byte_characters())}
        counts = Counter(WORDS.findall(text))
        words = {word.encode("utf-8", "surrogatepass"): n for word, n in counts.items()}
        merges = learn_merges(words, vocab_size - 257, vocabulary)
        for left, right in merges:
            vocabulary.setdefault(left + right, len(vocabulary))
        vocabulary[END_OF_TEXT.encode()] = len(vocabulary)
        if len(vocabulary) < vocab_size:
            raise ValueError(
                f"vocab_size={vocab_size}, expected at most {len(vocabulary)}: the text gives no more tokens"
            )
        return cls(vocabulary, merges)

    @classmethod
    def parse(cls, encoder: str, merges: str) -> "BytePairTokenizer":
        """The tokenizer of a published vocabulary, given the contents of its two files.

        Args:
            encoder: `encoder.json` (`vocab.json`): a JSON object from token to integer, bytes as `byte_characters`.
            merges: `vocab.bpe` (`merges.txt`): a version line, then a pair a line.

        Raises:
            ValueError: a content that is not such a file; it names the line or the token.
        """
        ids = parse_json(encoder, "encoder.json")
        if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
            raise ValueError(f"encoder.json holds a {type(ids).__name__}, expected an object from tokens to integers")
        bytes_of = {character: byte for byte, character in byte_characters().items()}

        def unwritten(token: str, where: str) -> bytes:
            strange = [character for character in token if character not in bytes_of]
            if strange or not token:
                raise ValueError(
                    f"{where}: token {token!r} is empty or has {strange}, expected bytes in GPT-2's writing"
                )
            return bytes(bytes_of[character] for character in token)

        pairs = []
        for number, line in enumerate(merges.split("\n"), start=1):
            if (number == 1 and line.startswith("#version")) or not line.strip():
                continue
            parts = line.split(" ")
            if len(parts) != 2:
                raise ValueError(
                    f"vocab.bpe, line {number}: {line[:40]!r}, expected two tokens and a space between them"
                )
            pairs.append(tuple(unwritten(part, f"vocab.bpe, line {number}") for part in parts))
        return cls({unwritten(token, "encoder.json"): i for token, i in ids.items()}, pairs)

    @classmethod
    def load(cls, folder: str | Path) -> "BytePairTokenizer":
        """The tokenizer in a folder: encoder.json and vocab.bpe, or vocab.json and merges.txt (transformers' names).

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: as `parse`.
        """
        folder = Path(folder)
        names = ("encoder.json", "vocab.bpe") if (folder / "encoder.json").is_file() else ("vocab.json", "merges.txt")
        return cls.parse(*((folder / name).read_text(encoding="utf-8") for name in names))

    def save(self, folder: str | Path) -> None:
        """Write encoder.json and vocab.bpe to a folder, in GPT-2's format."""
        characters = byte_characters()
        written = {token: "".join(characters[byte] for byte in token) for token in self.vocabulary}
        encoder = json.dumps({written[token]: i for token, i in self.vocabulary.items()})
        lines = ["#version: 0.2", *(f"{written[left]} {written[right]}" for left, right in self.merges)]
        write_whole(folder, {"encoder.json": encoder, "vocab.bpe": "\n".join(lines) + "\n"})
