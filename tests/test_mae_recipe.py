"""Masked autoencoders by command: trained, probed, painted with, and gone on from."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from paperwalk.experiments import mae as experiment
from paperwalk.mae import MAE, MAEConfig, masked_loss
from paperwalk.nn import patchify
from paperwalk.probe import features, linear_probe
from paperwalk.train import cli, runs
from paperwalk.train.recipes.images import normalise
from paperwalk.train.recipes.mae import MAERecipe
from paperwalk.train.recipes.vit import ViTRecipe, load_encoder
from paperwalk.vit import ViT, ViTConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*(CUDA|cuda).*")

SMALL = MAEConfig(
    image_size=28,
    patch_size=7,
    in_channels=1,
    d_model=16,
    n_layers=1,
    n_heads=2,
    d_mlp=16,
    decoder_d_model=8,
    decoder_n_layers=1,
    decoder_n_heads=2,
    decoder_d_mlp=8,
    norm_target=True,
)
RECIPE = MAERecipe(data="mnist-5k", model=SMALL, steps=40, lr=1e-2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae") / "run"
    sizes = [f"--model.{name.replace('_', '-')}={value}" for name, value in vars(SMALL).items() if name[0] in "ipdn"]
    sizes = [each.replace("--model.norm-target=True", "--model.norm-target") for each in sizes]
    arguments = ["--data", "mnist-5k", "--steps", "40", "--lr", "1e-2", "--precision", "fp32", "--output", str(folder)]
    assert cli.main(["train", "mae", *sizes, *arguments]) == 0
    return folder


def test_train_writes_a_model_that_has_learned(trained):
    card = json.loads((trained / "card.json").read_text())
    assert runs.from_json(card["recipe"]) == RECIPE
    metrics = card["metrics"]
    untrained = RECIPE.evaluate(RECIPE.build())
    assert metrics["reconstruction loss"]["value"] < untrained["reconstruction loss"]["value"] - 0.2
    assert metrics["linear probe accuracy"]["n"] == metrics["reconstruction loss"]["n"] == 1_000
    assert 0.3 < metrics["linear probe accuracy"]["value"] <= 1
    assert card["quick"]["metrics"]["linear probe accuracy"]["n"] == 100


def test_the_loss_of_an_evaluation_is_the_mean_over_hidden_patches(trained):
    model = RECIPE.load(trained)
    _, test = RECIPE.splits()
    images = normalise(test.pixels(torch.arange(0, 1000, 20), 28))
    noise = torch.rand(50, 16, generator=torch.Generator().manual_seed(0))
    out = model(images, noise)
    expected = masked_loss(out.prediction, model.target(images), out.mask).item()
    assert RECIPE.evaluate(model, 50)["reconstruction loss"]["value"] == pytest.approx(expected, abs=1e-4)


def test_a_batch_depends_on_the_step_and_is_cut_into_parts():
    task = RECIPE.task()
    images, noise = task.batch(3, 0, 1)
    assert images.shape == (128, 1, 28, 28)
    assert noise.shape == (128, 16)
    parts = [task.batch(3, part, 3) for part in range(3)]
    assert_close(torch.cat([part[0] for part in parts]), images)
    assert torch.equal(torch.cat([part[1] for part in parts]), noise)
    assert not torch.equal(task.batch(4, 0, 1)[1], noise)
    assert not torch.equal(replace(RECIPE, seed=1).task().batch(3, 0, 1)[1], noise)


def test_painting_writes_three_rows(trained, tmp_path, capsys):
    arguments = ["sample", str(trained), "--images", "4", "--mask-ratio", "0.5", "--file", str(tmp_path / "a.png")]
    assert cli.main(arguments) == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (4 * 30 + 2, 3 * 30 + 2)
        pixels = torch.from_numpy(np.array(picture.convert("L")))[2:30, 2:30]
    hidden = patchify(pixels[None, None].float(), 7)[0].var(1) == 0
    assert 8 <= hidden.sum() <= 16
    assert "seen, painted, true" in capsys.readouterr().out
    assert cli.main(["sample", str(trained), "--mask-ratio", "1"]) == 2
    assert "mask_ratio=1.0, expected a number in [0, 1)" in capsys.readouterr().err


def test_the_probe_reads_off_what_is_there_and_nothing_else():
    labels = torch.arange(600) % 3
    told = torch.eye(3)[labels] + 0.1 * torch.randn(600, 3)
    assert linear_probe((told[:400], labels[:400]), (told[400:], labels[400:])).float().mean() > 0.99
    noise = torch.randn(600, 3)
    assert linear_probe((noise[:400], labels[:400]), (noise[400:], labels[400:])).float().mean() < 0.5
    # Scale and offset of a feature say nothing.
    again = linear_probe((5 * told[:400] + 9, labels[:400]), (5 * told[400:] + 9, labels[400:]))
    assert again.float().mean() > 0.99


def test_the_probe_is_momentum_along_a_cosine_written_out():
    labels = torch.randint(3, (3_000,))
    # The last feature has hardly any spread: what is added to it counts.
    x = (torch.eye(3)[labels] + 0.7 * torch.randn(3_000, 3)) * torch.tensor([1.0, 10.0, 3e-6])
    train, test = (x[:700], labels[:700]), (x[700:], labels[700:])
    ours = linear_probe(train, test, seed=3)
    mean, std = train[0].mean(dim=0), train[0].std(dim=0)
    x, x_test = ((part - mean) / (std + 1e-6) for part in (train[0], test[0]))
    w, speed, generator = torch.zeros(3, 4), torch.zeros(3, 4), torch.Generator().manual_seed(3)
    x, x_test = (torch.cat([part, torch.ones(len(part), 1)], dim=1) for part in (x, x_test))
    for epoch in range(20):
        order = torch.randperm(700, generator=generator)
        for i in range(2):
            chosen = order[256 * i : 256 * (i + 1)]
            error = (x[chosen] @ w.T).softmax(dim=1) - torch.eye(3)[train[1][chosen]]
            speed = 0.9 * speed + error.T @ x[chosen] / 256
            w = w - 0.05 * (1 + math.cos(math.pi * (2 * epoch + i) / 40)) * speed
    best = (x_test @ w.T).topk(2, dim=1)
    clear = best.values[:, 0] - best.values[:, 1] > 1e-4
    assert torch.equal(ours[clear], (best.indices[:, 0] == test[1])[clear])
    assert clear.float().mean() > 0.99
    assert torch.equal(linear_probe(train, test), linear_probe(train, test, seed=0))


def test_features_are_the_mean_of_the_patches_without_the_class_token(randomise):
    vit = randomise(ViT(ViTConfig(8, 4, 1, 0, 8, 1, 2, 8)))
    images = torch.randn(3, 1, 8, 8)
    assert_close(features(vit, images), vit.encode(images)[:, 1:].mean(1))


def test_fine_tuning_begins_with_the_encoder(trained):
    model = ViTConfig(**SMALL.encoder_sizes(), n_classes=10)
    recipe = ViTRecipe(data="mnist-5k", model=model, start=str(trained), labels=300, batch_size=50, epochs=1.0)
    task = recipe.task()
    encoder = MAE.from_pretrained(trained).encoder_weights(10)
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in task.model.state_dict().items())
    assert task.steps == 6
    assert set(recipe.data_sha256()) == {"mnist-5k"}
    assert set(recipe.start_sha256()) == {str(trained)}
    fresh = replace(recipe, start=None).task().model
    assert not torch.equal(fresh.blocks[0].mlp.fc1.weight, task.model.blocks[0].mlp.fc1.weight)


def test_few_labels_are_the_same_ones_in_each_pass():
    recipe = ViTRecipe(
        data="mnist-5k", model=ViTRecipe.PRESETS["tiny-28"], labels=60, batch_size=30, shift=0, flip=False
    )

    def seen(recipe, *steps):
        batches = [recipe.task().batch(step, 0, 1)[0] for step in steps]
        return {tuple(image.flatten().tolist()) for batch in batches for image in batch}

    assert seen(recipe, 0, 1) == seen(recipe, 4, 5)
    assert len(seen(recipe, 0, 1)) == 60
    assert seen(recipe, 0, 1) != seen(replace(recipe, seed=1), 0, 1)


def test_an_encoder_of_other_sizes_is_refused(trained):
    with pytest.raises(ValueError, match=r"model.d_model is 64, expected 16: that of the encoder"):
        ViTRecipe(data="mnist-5k", model=ViTRecipe.PRESETS["tiny-28"], start=str(trained)).task()
    with pytest.raises(FileNotFoundError):
        ViTRecipe(data="mnist-5k", model=ViTRecipe.PRESETS["tiny-28"], start="nowhere").task()
    with pytest.raises(ValueError, match="labels is 0, expected at least 1 image"):
        ViTRecipe(labels=0)
    with pytest.raises(ValueError, match=r"model.in_channels is 3, expected 1: that of mnist-5k"):
        MAERecipe(data="mnist-5k").task()
    with pytest.raises(ValueError, match="left over class_token"):
        load_encoder(ViT(ViTConfig(**SMALL.encoder_sizes(), n_classes=10, pool="mean")), MAE(SMALL))


def test_the_experiment_runs_and_its_numbers_are_of_the_present_recipe(monkeypatch):
    stored = json.loads(experiment.RESULTS.read_text())
    assert stored["recipe"] == json.loads(json.dumps(experiment.about()))
    assert len(stored) == 1 + len(experiment.SEEDS) * (2 + len(experiment.RATIOS) + 1)
    monkeypatch.setattr(experiment, "SMALL", RECIPE)
    tuned = ViTRecipe(
        data="mnist-5k", model=ViTConfig(**SMALL.encoder_sizes(), n_classes=10), labels=100, batch_size=50
    )
    monkeypatch.setattr(experiment, "SMALL_TUNED", replace(tuned, steps=2))
    monkeypatch.setattr(experiment, "PROBED", 500)
    values = [experiment.at_ratio(ratio, 0) for ratio in (0.5, None)]
    assert all(0 < value < 1 for each in values for value in each.values())
    assert values[0] != values[1]
