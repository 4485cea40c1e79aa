"""Stored experiments go on where they stopped, and hold what they say."""

import json

import pytest

from paperwalk.experiments import run_missing, vit


def test_an_interrupted_experiment_goes_on_where_it_stopped(tmp_path, capsys):
    path, calls = tmp_path / "x.json", []

    def run(name):
        calls.append(name)
        if calls == ["a", "b"]:
            raise KeyboardInterrupt
        return name.upper()

    runs = {name: lambda name=name: run(name) for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        run_missing(path, runs, recipe={"steps": 1})
    assert json.loads(path.read_text()) == {"recipe": {"steps": 1}, "a": "A"}
    run_missing(path, runs, recipe={"steps": 1})
    assert json.loads(path.read_text()) == {"recipe": {"steps": 1}, "a": "A", "b": "B", "c": "C"}
    assert calls == ["a", "b", "b", "c"]
    assert "c: C" in capsys.readouterr().out


def test_the_stored_numbers_of_vit_are_of_the_present_recipe():
    stored = json.loads(vit.RESULTS.read_text())
    assert stored["recipe"] == vit.recipe()
    assert len(stored) == 1 + 2 * len(vit.SIZES) * len(vit.SEEDS)


def test_both_contenders_see_the_same_subset(monkeypatch):
    seen = []
    monkeypatch.setattr(vit, "train", lambda model, images, labels, seed: seen.append(labels))
    splits = {name: vit.mnist()[name] for name in ("train", "test")}
    accuracies = [vit.run_one(name, 100, 0, splits) for name in ("vit", "conv")]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert [len(labels) for labels in seen] == [100, 100]
