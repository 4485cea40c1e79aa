"""The checkpoints that come with the book: each is measured again, and is what its card says."""

import json
from pathlib import Path

import pytest

from paperwalk.train import runs

FOLDER = Path(__file__).parents[1] / "checkpoints"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
# Of images drawn in a hundred steps: the least difference in rounding, and other images come of the same noise.
DRAWN = {"Fréchet distance", "class score", "sure", "rarest class", "commonest class"}
# Of few images these are something else than of many.
BY_NUMBER = {f"{kind}{name}" for kind in ("", "real: ") for name in DRAWN - {"sure"}}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_what_its_card_says(name):
    card = json.loads((FOLDER / name / "card.json").read_text(encoding="utf-8"))
    recipe = runs.from_json(card["recipe"])
    measured = runs.evaluate(recipe, FOLDER / name, card["quick"]["limit"])
    assert measured.keys() == card["metrics"].keys()
    for metric, said in card["quick"]["metrics"].items():
        value, (low, high), n = measured[metric]["value"], said["interval"], said["n"]
        # All of a few examples may be alike.
        wide = max(high - low, 3 / n)
        if metric in DRAWN:
            assert abs(value - said["value"]) <= wide, metric
        else:
            # Another processor adds in another order: a search may take another of two nearly equal ways now and then.
            assert value == pytest.approx(said["value"], rel=0.02, abs=1.5 / n), metric
        assert measured[metric]["n"] == n
        # What a few examples say must fit with what all of them say.
        if metric not in BY_NUMBER:
            assert low - wide <= card["metrics"][metric]["value"] <= high + wide, metric
    assert recipe.data_sha256() | recipe.start_sha256() == card["data"]
    assert card["command"].startswith(f"paperwalk train {recipe.paper} ")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_has_a_card_that_says_where_it_comes_from(name):
    card = json.loads((FOLDER / name / "card.json").read_text(encoding="utf-8"))
    assert {
        "command",
        "seed",
        "versions",
        "hardware",
        "seconds",
        "cpu_seconds",
        "curve",
        "precision",
        "date",
    } <= card.keys()
    assert card["curve"][-1][1] < card["curve"][0][1]


def test_the_checkpoints_are_small():
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert max(sizes.values(), default=0) <= 12_000_000
    assert sum(sizes.values()) <= 60_000_000
    assert {path.suffix for path in sizes} <= {".safetensors", ".json", ".png", ".bpe", ".txt"}
