import itertools
import random
from functools import cache

import pytest
import torch

from paperwalk.metrics import bootstrap_interval, edit_distance, phoneme_error_rate, word_error_rate


def naive_distance(a: str, b: str) -> int:
    @cache
    def d(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return d(len(a), len(b))


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("sunday", "saturday", 3),
        ("ab", "ba", 2),
        ("abc", "abc", 0),
    ],
)
def test_known_distances(a, b, distance):
    assert edit_distance(a, b) == distance
    assert edit_distance(b, a) == distance


def test_distance_equals_its_recursion():
    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("abc", k=rng.randint(0, 8))) for _ in range(2))
        assert edit_distance(a, b) == naive_distance(a, b)


def test_distance_is_a_metric():
    words = ["".join(w) for k in range(4) for w in itertools.product("ab", repeat=k)]
    for a, b, c in itertools.product(words[:10], repeat=3):
        assert (edit_distance(a, b) == 0) == (a == b)
        assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_symbols_are_compared_whole():
    assert edit_distance(["AH0", "B"], ["AH1", "B"]) == 1
    assert edit_distance("AH0", "AH1") == 1
    assert edit_distance(["EY1", "T"], ["T"]) == 1


def test_phoneme_error_rate_divides_by_the_references():
    # 1 error in 4 symbols, 0 in 2, then 3 insertions over 1 symbol: 4 / 7, not the mean of the words' rates.
    hypotheses = [list("abcx"), list("ab"), list("abcd")]
    references = [[list("abcd")], [list("ab")], [list("a")]]
    assert phoneme_error_rate(hypotheses, references) == pytest.approx(4 / 7)
    assert phoneme_error_rate([list("abc")], [[list("a")]]) == 2.0


def test_the_best_reference_counts():
    # 1 / 2 to the first, 1 / 4 to the second.
    assert phoneme_error_rate([list("abc")], [[list("ab"), list("abcd")]]) == pytest.approx(1 / 4)
    assert phoneme_error_rate([list("ab")], [[list("xyz"), list("ab")]]) == 0.0
    assert phoneme_error_rate([list("ab")], [[list("ab"), list("xyz")]]) == 0.0
    # Relative to their length: 3 / 5 is nearer than 1 / 1. Of equals, 1 / 2 and 2 / 4, the longest counts.
    assert phoneme_error_rate([list("ab")], [[list("a"), list("abcde")]]) == pytest.approx(3 / 5)
    assert phoneme_error_rate([list("ab"), list("q")], [[list("ax"), list("abcd")], [list("q")]]) == pytest.approx(
        2 / 5
    )
    # Of two right ones it cannot be both: the denominator is that of the one that counts.
    assert phoneme_error_rate([list("ab"), list("q")], [[list("ab"), list("abcd")], [list("z")]]) == pytest.approx(
        1 / 3
    )


def test_word_error_rate_takes_any_reference():
    references = [[["a"], ["b"]], [["a", "b"]], [["a"]]]
    assert word_error_rate([["b"], ["a", "b"], ["a"]], references) == 0.0
    assert word_error_rate([["c"], ["a", "b"], ["a"]], references) == pytest.approx(1 / 3)
    assert word_error_rate([["a"], ["a"], ("a",)], references) == pytest.approx(1 / 3)


@pytest.mark.parametrize("rate", [phoneme_error_rate, word_error_rate])
@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "0 hypotheses and 0 references"),
        ([["a"]], [], "1 hypotheses and 0 references"),
        ([["a"], ["b"]], [[["a"]], []], "word 1 has no reference"),
        ([["a"]], [[["a"], []]], "word 0 has no reference or an empty one"),
    ],
)
def test_bad_input_is_named(rate, hypotheses, references, message):
    with pytest.raises(ValueError, match=message):
        rate(hypotheses, references)


def test_the_interval_of_a_share_is_that_of_the_binomial():
    low, high = bootstrap_interval([1] * 700 + [0] * 300)
    half = 1.96 * (0.7 * 0.3 / 1000) ** 0.5
    assert low == pytest.approx(0.7 - half, abs=0.1 * half)
    assert high == pytest.approx(0.7 + half, abs=0.1 * half)


def test_the_interval_of_a_ratio_counts_the_weights():
    # Every word has half its symbols wrong: nothing to be unsure about, though the words differ in length.
    assert bootstrap_interval([1, 2, 5], [2, 4, 10]) == (0.5, 0.5)
    low, high = bootstrap_interval([0.0, 9.0] * 50, [1.0, 3.0] * 50)
    assert low < 9 / 4 < high


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        ([], None, "0 values and 0 weights"),
        ([1.0], [1.0, 2.0], "1 values and 2 weights"),
        ([1.0, 1.0], [1.0, 0.0], "weights > 0"),
    ],
)
def test_a_bad_interval_is_named(values, weights, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, weights)


# What the mutants of `make mutants` showed to be without a judge here.


def test_the_bootstrap_draws_the_same_examples_whatever_else_is_random():
    values, weights = torch.rand(7, dtype=torch.float64), torch.rand(7, dtype=torch.float64) + 0.1
    drawn = torch.randint(7, (2_000, 7), generator=torch.Generator().manual_seed(0))
    ratios = values[drawn].sum(dim=1) / weights[drawn].sum(dim=1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    torch.manual_seed(1)
    assert bootstrap_interval(values.tolist(), weights.tolist()) == pytest.approx((low, high), rel=1e-12)


def test_weights_are_taken_in_double_precision():
    assert bootstrap_interval([0.1, 0.1], [0.1, 0.1]) == (1.0, 1.0)
