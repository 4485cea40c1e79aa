"""How far predicted sequences are from the right ones: edit distance, phoneme and word error rate.

Levenshtein, "Binary codes capable of correcting deletions, insertions, and reversals", 1966 (edit distance).
"""

from collections.abc import Hashable, Sequence

Symbols = Sequence[Hashable]


def edit_distance(hypothesis: Symbols, reference: Symbols) -> int:
    """Fewest insertions, deletions and substitutions of one symbol that make the reference of the hypothesis.

    Cost: the product of the lengths.
    """
    # row[j]: distance between the hypothesis so far and the first j symbols of the reference.
    row = list(range(len(reference) + 1))
    for i, symbol in enumerate(hypothesis, start=1):
        diagonal, row[0] = row[0], i
        for j, expected in enumerate(reference, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != expected))
    return row[-1]


def phoneme_error_rate(hypotheses: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> float:
    """Σ edit distance / Σ length of the reference, over all words; 0 is best, and it may exceed 1.

    Where a word has several right pronunciations, the one counts to which distance / length is least (of equal ones
    the longest).

    Args:
        hypotheses: the predicted symbols of each word.
        references: for each word the right pronunciations, at least one.

    Raises:
        ValueError: no words, not as many hypotheses as references, or a word without a reference or with an empty one.
    """
    _check(hypotheses, references)
    errors = symbols = 0
    for hypothesis, right in zip(hypotheses, references, strict=True):
        distances = [(edit_distance(hypothesis, reference), len(reference)) for reference in right]
        distance, length = min(distances, key=lambda pair: (pair[0] / pair[1], -pair[1]))
        errors, symbols = errors + distance, symbols + length
    return errors / symbols


def word_error_rate(hypotheses: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> float:
    """Share of the words whose hypothesis equals none of the references, in [0, 1].

    Raises:
        ValueError: as `phoneme_error_rate`.
    """
    _check(hypotheses, references)
    wrong = sum(
        list(hypothesis) not in [list(reference) for reference in right]
        for hypothesis, right in zip(hypotheses, references, strict=True)
    )
    return wrong / len(hypotheses)


def _check(hypotheses: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> None:
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} references, expected as many, at least 1")
    for i, right in enumerate(references):
        if not right or not all(len(reference) for reference in right):
            raise ValueError(f"word {i} has no reference or an empty one, expected at least one symbol in each")
