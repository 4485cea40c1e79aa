"""The emoji as pairs: what is held out, captions, views, batches; the bag of words; a run that stops and goes on."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from paperwalk.clip import CLIP
from paperwalk.experiments import clip as experiment
from paperwalk.zero_shot import recall_at


@pytest.fixture(scope="module")
def emoji():
    return experiment.emoji()


def test_no_family_is_on_both_sides(emoji):
    secret = {emoji.concepts[i].family for i in emoji.held_out}
    trained = [i for family in emoji.families for i in family]
    assert len(emoji.held_out) == len(secret) == 200
    assert secret.isdisjoint(emoji.concepts[i].family for i in trained)
    assert len(set(trained)) == len(trained)
    assert not {emoji.concepts[i].kind for i in trained + emoji.held_out} & set(experiment.FLAGS)
    for family in emoji.families:
        assert len({emoji.concepts[i].family for i in family}) == 1


def test_no_held_out_picture_is_trained_on(emoji):
    trained = [i for family in emoji.families for i in family]
    for artist in emoji.images:
        seen = {artist[i].numpy().tobytes() for i in trained}
        assert [i for i in emoji.held_out if artist[i].numpy().tobytes() in seen] == []


def test_captions(emoji):
    concept = emoji.concepts[emoji.held_out[0]]
    whole = experiment.full_caption(concept).split(", ")
    assert whole == [concept.name, concept.kind, *concept.keywords]
    assert experiment.full_caption(concept, kind=False).split(", ") == [concept.name, *concept.keywords]
    made = [experiment.sample_caption(concept, random.Random(i)) for i in range(400)]
    assert all(set(caption.split(", ")) <= set(whole) for caption in made)
    assert all(made)
    with_name = sum(concept.name in caption.split(", ") for caption in made) / 400
    assert 0.75 < with_name < 0.87
    with_kind = sum(concept.kind in caption.split(", ") for caption in made) / 400
    assert 0.42 < with_kind < 0.58
    lonely = concept._replace(keywords=(), kind=concept.kind)
    assert experiment.sample_caption(lonely, random.Random(0))


def test_pictures_on_white():
    pictures = torch.zeros(1, 4, 2, 2, dtype=torch.uint8)
    pictures[0, :, 0, 0] = torch.tensor([255, 0, 51, 255])
    pictures[0, :, 0, 1] = torch.tensor([0, 0, 0, 51])
    white = experiment.on_white(pictures)
    assert_close(white[0, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))
    assert_close(white[0, :, 0, 1], torch.full((3,), 0.6))
    assert_close(white[0, :, 1, 1], torch.ones(3))


def test_a_picture_that_may_not_is_never_mirrored(emoji):
    pictures = emoji.images[0, :64].float()
    none = torch.zeros(64, dtype=torch.bool)
    changes = {}
    for name, mirror in (("never", none), ("may", ~none)):
        generator = torch.Generator().manual_seed(3)
        changes[name] = experiment.turned(pictures, mirror, generator)
    same = (changes["never"] == changes["may"]).flatten(1).all(dim=1)
    assert 0.3 < same.float().mean() < 0.7


def test_views_are_pictures_and_repeat_with_the_seed(emoji):
    pictures, mirror = emoji.images[0, :40], torch.ones(40, dtype=torch.bool)
    first, again, other = (
        experiment.augment(pictures, mirror, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (40, 3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= -1
    assert first.max() <= 1


def test_a_batch_follows_from_its_number(emoji):
    images, tokens, chosen = experiment.batch(emoji, 7, size=16)
    again = experiment.batch(emoji, 7, size=16)
    assert torch.equal(images, again[0])
    assert torch.equal(tokens, again[1])
    assert chosen == again[2]
    assert chosen != experiment.batch(emoji, 8, size=16)[2]
    assert chosen != experiment.batch(emoji, 7, seed=1, size=16)[2]
    assert len({emoji.concepts[i].family for i in chosen}) == 16
    assert (tokens == emoji.tokenizer.eot_id).any(dim=1).all()
    assert (tokens[:, -1] == emoji.tokenizer.eot_id).any()


def test_one_artist_alone_is_drawn(emoji):
    only = emoji._replace(images=torch.stack([emoji.images[0], torch.zeros_like(emoji.images[1])]))
    images, _, _ = experiment.batch(only, 0, artists=[0], size=16)
    expected, _, _ = experiment.batch(emoji, 0, artists=[0], size=16)
    assert torch.equal(images, expected)


def test_learning_rate():
    rates = [experiment.lr_at(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 50)
    assert max(rates) == rates[49] == 1.0
    assert rates[525] == pytest.approx(0.5, abs=0.01)
    assert 0 < rates[-1] < 1e-4


# The bag of words


def test_bags_are_shares_without_the_frame(emoji):
    model = experiment.BagOfWords(experiment.SMALL, contrastive=True)
    tokenizer = emoji.tokenizer
    rows = tokenizer(["red red heart", "heart"], experiment.BLOCK)
    bags = model.bags(rows)
    (red,), (heart,) = tokenizer.encode("red"), tokenizer.encode("heart")
    assert_close(bags[0, [red, heart]], torch.tensor([2 / 3, 1 / 3]))
    assert_close(bags[1, heart], torch.tensor(1.0))
    assert_close(bags.sum(dim=1), torch.ones(2))
    assert not bags[:, [0, tokenizer.sot_id, tokenizer.eot_id]].any()


def test_predicting_words_is_a_cross_entropy(emoji):
    torch.manual_seed(0)
    model = experiment.BagOfWords(experiment.SMALL, contrastive=False)
    images, rows = torch.randn(3, 3, 32, 32), emoji.tokenizer(["red", "heart", "red heart"], experiment.BLOCK)
    log_p = model.log_p(images)
    (red,), (heart,) = emoji.tokenizer.encode("red"), emoji.tokenizer.encode("heart")
    by_hand = -(log_p[0, red] + log_p[1, heart] + (log_p[2, red] + log_p[2, heart]) / 2) / 3
    assert_close(model.loss(images, rows), by_hand)
    prior = torch.randn(experiment.VOCABULARY)
    scores = model.scores(images, rows, prior)
    assert_close(scores[1, 0], log_p[1, red].detach() - prior[red])


def test_recall_of_scores_is_recall():
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(30, 6), dim=1) for _ in range(2))
    assert experiment.recall_of_scores(a @ b.T) == pytest.approx(recall_at(5, a, b))


@pytest.mark.parametrize("name", [*experiment.OBJECTIVES, *experiment.TEMPERATURES])
def test_every_model_of_the_experiment_trains(name, emoji, monkeypatch):
    small = replace(experiment.SMALL, d_image=16, n_image_layers=1, n_image_heads=2, d_image_mlp=16, n_text_layers=1)
    monkeypatch.setattr(experiment, "SMALL", small)
    monkeypatch.setattr(experiment, "EVALUATED", (1,))
    torch.manual_seed(0)
    model = experiment.make(name)
    losses, found = experiment.train_small(model, emoji, 0, range(2))
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert all(0 <= value <= 0.2 for value in found.values())
    if name in experiment.TEMPERATURES:
        assert model.scale().item() == pytest.approx(1 / experiment.TEMPERATURES[name])


def test_the_stored_numbers_are_of_the_present_experiment():
    stored = json.loads(experiment.RESULTS.read_text())
    names = [
        f"{name} {seed}" for seed in experiment.SEEDS for name in (*experiment.OBJECTIVES, *experiment.TEMPERATURES)
    ]
    assert stored["steps"] == experiment.STEPS
    # The runs are not all made yet; the chapter will need them.
    assert set(stored) <= {"steps", "batch", *names}


def test_the_recipe_writes_a_checkpoint_that_loads(emoji, tmp_path, monkeypatch, capsys):
    tiny = replace(experiment.RECIPE, d_image=16, n_image_layers=1, n_image_heads=2, d_image_mlp=16, n_text_layers=1)
    monkeypatch.setattr(experiment, "RECIPE", tiny)
    monkeypatch.setattr(experiment, "VIEWS", 1)
    figures = experiment.recipe(tmp_path, "twitter", steps=2)
    assert figures["trained on"] == ["twitter"]
    assert figures["images"] == 2 * experiment.BATCH
    assert json.loads((tmp_path / "metrics.json").read_text()) == figures
    model = CLIP.from_pretrained(tmp_path)
    assert experiment.evaluate(model, emoji) == figures["recall at 5"]
    assert experiment.ClipTokenizer.load(tmp_path).merges == emoji.tokenizer.merges
    # Run again, it has nothing left to do and says the same.
    assert experiment.recipe(tmp_path, "twitter", steps=2)["recall at 5"] == figures["recall at 5"]
    assert "step 2/2" in capsys.readouterr().out
