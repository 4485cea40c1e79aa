"""How far predicted sequences are from the right ones: edit distance, phoneme and word error rate; and how sure we are.

Levenshtein, "Binary codes capable of correcting deletions, insertions, and reversals", 1966 (edit distance);
Efron, "Bootstrap methods: another look at the jackknife", 1979 (intervals).
"""

from collections.abc import Hashable, Sequence

import torch

Symbols = Sequence[Hashable]
Numbers = Sequence[int | float]


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


def phoneme_errors(
    hypotheses: Sequence[Symbols], references: Sequence[Sequence[Symbols]]
) -> tuple[list[int], list[int]]:
    """Of each word, the edit distance and the length of the reference that counts: see `phoneme_error_rate`.

    Raises:
        ValueError: as `phoneme_error_rate`.
    """
    _check(hypotheses, references)
    counted = []
    for hypothesis, right in zip(hypotheses, references, strict=True):
        distances = [(edit_distance(hypothesis, reference), len(reference)) for reference in right]
        counted.append(min(distances, key=lambda pair: (pair[0] / pair[1], -pair[1])))
    return [distance for distance, _ in counted], [length for _, length in counted]


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
    distances, lengths = phoneme_errors(hypotheses, references)
    return sum(distances) / sum(lengths)


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


def bootstrap_interval(values: Numbers, weights: Numbers | None = None) -> tuple[float, float]:
    """The 95 % interval of Σ values / Σ weights over test examples: what resampling the examples gives, 2,000 times.

    It says how much the figure would move with other examples of the same kind; nothing of another training seed.

    Args:
        values: of each example: right or wrong (1 or 0), errors, or a loss summed over its tokens.
        weights: of each example, how much its value counts for: symbols or tokens; one each by default.

    Raises:
        ValueError: no values, not as many weights, or weights that are not all positive.
    """
    value = torch.as_tensor(values, dtype=torch.float64)
    weight = torch.ones_like(value) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
    if not len(value) or value.shape != weight.shape or not (weight > 0).all():
        raise ValueError(f"{len(value)} values and {len(weight)} weights, expected as many, at least 1, weights > 0")
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(2_000):
        drawn = torch.randint(len(value), (len(value),), generator=generator)
        ratios.append(value[drawn].sum() / weight[drawn].sum())
    low, high = torch.stack(ratios).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _check(hypotheses: Sequence[Symbols], references: Sequence[Sequence[Symbols]]) -> None:
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses and {len(references)} references, expected as many, at least 1")
    for i, right in enumerate(references):
        if not right or not all(len(reference) for reference in right):
            raise ValueError(f"word {i} has no reference or an empty one, expected at least one symbol in each")
