"""What all tokenizers need: integers that are tokens."""

from collections.abc import Iterable


def checked_ids(ids: Iterable[int], vocab_size: int) -> Iterable[int]:
    """Each integer, once it is known to be a token's.

    Raises:
        ValueError: one is not.
    """
    for i in map(int, ids):
        if not 0 <= i < vocab_size:
            raise ValueError(f"token {i}, expected 0 to {vocab_size - 1}")
        yield i
