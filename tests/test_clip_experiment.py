"""The bag of words, and the models of the experiment."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from paperwalk.experiments import clip as experiment

SMALL, BLOCK = experiment.RECIPE.model, experiment.RECIPE.model.block_size


@pytest.fixture(scope="module")
def examples():
    return experiment.RECIPE.examples()


def test_bags_are_shares_without_the_frame(examples):
    model, tokenizer = experiment.BagOfWords(SMALL, contrastive=True), examples[1]
    rows = tokenizer(["red red heart", "heart"], BLOCK)
    bags = model.bags(rows)
    (red,), (heart,) = tokenizer.encode("red"), tokenizer.encode("heart")
    assert_close(bags[0, [red, heart]], torch.tensor([2 / 3, 1 / 3]))
    assert_close(bags[1, heart], torch.tensor(1.0))
    assert_close(bags.sum(dim=1), torch.ones(2))
    assert not bags[:, [0, tokenizer.sot_id, tokenizer.eot_id]].any()


def test_predicting_words_is_a_cross_entropy(examples):
    model, tokenizer = experiment.BagOfWords(SMALL, contrastive=False), examples[1]
    images, rows = torch.randn(3, 3, 32, 32), tokenizer(["red", "heart", "red heart"], BLOCK)
    log_p = model.log_p(images)
    (red,), (heart,) = tokenizer.encode("red"), tokenizer.encode("heart")
    by_hand = -(log_p[0, red] + log_p[1, heart] + (log_p[2, red] + log_p[2, heart]) / 2) / 3
    assert_close(model.loss(images, rows), by_hand)
    prior = torch.randn(SMALL.vocab_size)
    assert_close(model.scores(images, rows, prior)[1, 0], log_p[1, red] - prior[red])


def test_a_contrastive_bag_is_the_direction_of_its_words(examples):
    model, tokenizer = experiment.BagOfWords(SMALL, contrastive=True), examples[1]
    images, rows = torch.randn(2, 3, 32, 32), tokenizer(["red", "red heart"], BLOCK)
    (red,), (heart,) = tokenizer.encode("red"), tokenizer.encode("heart")
    words = model.words.weight
    expected = torch.cosine_similarity(model.image(images), (words[red] + words[heart])[None])
    assert_close(model.scores(images, rows, torch.zeros(SMALL.vocab_size))[:, 1], expected)


@pytest.mark.parametrize("name", [*experiment.OBJECTIVES, *experiment.TEMPERATURES])
def test_every_model_of_the_experiment_trains(name, examples, monkeypatch):
    tiny = replace(SMALL, d_image=16, n_image_layers=1, n_image_heads=2, d_image_mlp=16, n_text_layers=1)
    monkeypatch.setattr(experiment, "RECIPE", replace(experiment.RECIPE, model=tiny))
    monkeypatch.setattr(experiment, "EVALUATED", (1,))
    model = experiment.make(name)
    losses, found = experiment.train_small(model, *examples, 0, range(2))
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert found.keys() == {"1", str(experiment.STEPS)}
    assert all(0 <= value <= 0.2 for value in found.values())
    if name in experiment.TEMPERATURES:
        assert model.scale().item() == pytest.approx(1 / experiment.TEMPERATURES[name])


def test_the_stored_numbers_are_of_the_present_experiment():
    stored = json.loads(experiment.RESULTS.read_text())
    names = {
        f"{name} {seed}" for seed in experiment.SEEDS for name in (*experiment.OBJECTIVES, *experiment.TEMPERATURES)
    }
    assert set(stored) == {"recipe", "from random weights", *names}
    assert stored["recipe"] == experiment.about()
    for name in names:
        assert list(stored[name]["recall"]) == [str(step) for step in experiment.EVALUATED]
