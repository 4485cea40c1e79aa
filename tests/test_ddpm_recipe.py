"""The recipe of the diffusion model: what it trains on, what it measures, what it draws."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from paperwalk.ddpm import GaussianDiffusion, linear_schedule
from paperwalk.samplers import ancestral, ddim
from paperwalk.train import cli
from paperwalk.train.recipes.ddpm import DDPMRecipe, estimated_bits
from paperwalk.train.task import generator
from paperwalk.unet import UNet, UNetConfig

TINY = UNetConfig.mnist(d_model=8, multipliers=(1, 1), n_blocks=1, n_groups=2, attention_sizes=())
QUICK = DDPMRecipe(data="mnist-5k", model=TINY, steps=3, batch_size=12, n_steps=25, sample_steps=4, samples=8)


def test_a_batch_is_cut_into_its_parts():
    task = QUICK.task()
    whole = task.batch(1, 0, 1)
    parts = [task.batch(1, i, 5) for i in range(5)]
    assert all(
        torch.equal(each, torch.cat(pieces)) for each, pieces in zip(whole, zip(*parts, strict=True), strict=True)
    )
    images, t, epsilon = whole
    assert images.shape == epsilon.shape == (12, 1, 28, 28)
    assert (images.min(), images.max()) == (-1, 1)
    assert 1 <= t.min() <= t.max() <= 25
    assert not torch.equal(task.batch(2, 0, 1)[2], epsilon)


def test_times_are_drawn_evenly_from_the_first_to_the_last():
    task = replace(QUICK, batch_size=2_000).task()
    t = torch.cat([task.batch(step, 0, 1)[1] for step in range(5)])
    shares = torch.bincount(t, minlength=26)[1:] / len(t)
    assert shares.min() > 0.032
    assert shares.max() < 0.048


@pytest.mark.parametrize(
    ("objective", "predict"),
    [("simple", "epsilon"), ("simple", "mean"), ("simple", "velocity"), ("bound", "epsilon"), ("bound", "velocity")],
)
def test_the_loss_is_that_of_the_process(objective, predict, randomise):
    recipe = replace(QUICK, objective=objective, predict=predict)
    task, diffusion = recipe.task(), recipe.diffusion()
    model, batch = randomise(task.model), task.batch(0, 0, 1)
    measure = diffusion.loss if objective == "simple" else diffusion.bound_term
    mean, n = task.loss(model, batch)
    assert n == 12
    assert mean.item() == pytest.approx(measure(model, *batch).mean().item())


def test_a_shorter_process_ends_in_the_same_noise():
    assert torch.equal(DDPMRecipe().diffusion().beta[1:], linear_schedule())
    short = replace(QUICK, n_steps=100).diffusion()
    assert short.alpha_bar[100] < 1e-4
    assert short.beta[1:].mean() == pytest.approx(0.1005)


def test_images_are_drawn_by_the_sampler_that_eta_names(randomise):
    model, process = randomise(QUICK.build()), QUICK.diffusion()
    draws = generator(0, 0)
    noise = torch.randn(3, 1, 28, 28, generator=draws)
    state = draws.get_state()
    for eta, sampler in ((None, ancestral), (0.0, ddim), (1.0, partial(ddim, eta=1.0))):
        draws.set_state(state)
        expected = sampler(process, model, noise, steps=4, generator=draws).images
        assert torch.equal(QUICK.draw(model, 3, 4, eta=eta), expected)


@pytest.mark.parametrize("eta", [None, 0.5])
def test_the_evaluation_draws_as_the_recipe_says(eta, monkeypatch):
    seen = []

    def draw(self, model, n, *how, **named):
        seen.append((n, how, named))
        assert torch.is_autocast_enabled("cpu")
        return torch.zeros(n, 1, 28, 28)

    monkeypatch.setattr(DDPMRecipe, "draw", draw)
    monkeypatch.setattr("paperwalk.train.precision.fast_dtype", lambda: torch.bfloat16)
    replace(QUICK, sample_eta=eta).evaluate(QUICK.build(), limit=4)
    assert seen == [(4, (4,), {"eta": eta})]


def test_half_of_the_images_are_mirrored():
    plain, flipped = QUICK.task().batch(0, 0, 1)[0], replace(QUICK, flip=True).task().batch(0, 0, 1)[0]
    same = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(plain, flipped, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(mirrored) < 12


def test_the_paper_s_learning_rate_stays():
    rate = DDPMRecipe.named()["paper"].schedule(800_000)
    assert rate(0) == pytest.approx(2e-4 / 5_000)
    assert rate(4_999) == rate(799_999) == pytest.approx(2e-4)
    assert QUICK.schedule(100)(99) < 0.01 * QUICK.lr


def test_the_bound_is_estimated_without_bias(randomise):
    diffusion = GaussianDiffusion(linear_schedule(200, 1e-3, 0.1))
    model = randomise(UNet(TINY), 0.05).eval()
    x_0 = (torch.randn(200, 1, 4, 4) * 0.3).clamp(-1, 1)
    whole = diffusion.bits_per_dim(model, x_0[:40], torch.Generator().manual_seed(0)).sum(dim=1).mean().item()
    found = estimated_bits(diffusion, model, x_0[:40].repeat(10, 1, 1, 1))
    spread = found.std().item() / math.sqrt(len(found))
    assert found.mean().item() == pytest.approx(whole, abs=4 * spread)
    short = GaussianDiffusion(linear_schedule(2))
    assert estimated_bits(short, model, x_0[:2]).isfinite().all()


def test_the_command_trains_measures_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("paperwalk.train.recipes.ddpm.BOUND_IMAGES", 50)
    arguments = ["train", "ddpm", "--data", "mnist-5k", "--steps", "3", "--batch-size", "4", "--precision", "fp32"]
    arguments += ["--model.d-model", "8", "--model.multipliers", "1", "1", "--model.n-blocks", "1"]
    arguments += ["--model.attention-sizes", "14", "--model.n-groups", "2", "--n-steps", "25", "--sample-steps", "2"]
    assert cli.main([*arguments, "--samples", "4", "--output", str(tmp_path / "run")]) == 0
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert {"loss", "bits per dimension"} <= card["metrics"].keys()
    assert card["metrics"].keys() == card["quick"]["metrics"].keys()
    if "sure" in card["metrics"]:
        assert card["metrics"]["sure"]["n"] == 4
        assert card["metrics"]["real: sure"]["value"] > 0.9
    capsys.readouterr()
    picture = tmp_path / "drawn.png"
    sample = ["sample", str(tmp_path / "run"), "--n", "5", "--columns", "3", "--output", str(picture)]
    assert cli.main([*sample, "--steps", "2"]) == 0
    assert f"5 images in {picture}" in capsys.readouterr().out
    from PIL import Image

    with Image.open(picture) as image:
        assert image.size == (3 * 56, 2 * 56)
    assert cli.main([*sample, "--steps", "26"]) == 2
    assert "steps is 26, expected 1 to 25" in capsys.readouterr().err
    assert cli.main([*sample, "--columns", "0"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "imagenet"}, "unknown data 'imagenet', expected one of mnist, mnist-5k, fashion-mnist, cifar10"),
        ({"n_steps": 20}, "n_steps is 20, expected more than 20"),
        ({"sample_steps": 1_001}, "sample_steps is 1001, expected 1 to n_steps, 1000"),
        ({"focus": -0.5}, "focus is -0.5, expected a number of at least 0, or none"),
        ({"focus": math.inf}, "focus is inf, expected a number"),
        ({"samples": 1}, "samples is 1, expected at least 2"),
        ({"ema": 1.0}, "ema is 1.0"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        DDPMRecipe(**changes)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (UNetConfig.mnist(image_size=32), "model.image_size is 32, expected 28: that of mnist-5k"),
        (UNetConfig.mnist(in_channels=3), "model.in_channels is 3, expected 1"),
    ],
)
def test_sizes_that_are_not_the_data_s_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        DDPMRecipe(data="mnist-5k", model=model).task()


def test_times_of_a_batch_are_evenly_spread_and_each_is_as_likely():
    recipe, draws = replace(QUICK, focus=0.0), torch.Generator().manual_seed(0)
    for n in (1, 7, 25, 64):
        batches = [recipe.times(n, draws) for _ in range(400)]
        for t in batches:
            counts = torch.bincount(t, minlength=26)[1:]
            assert counts.sum() == n
            assert counts.max() - counts.min() <= 1
        # Each image's own time, over the batches: 400 draws of 25 values, chi squared with 24 degrees of freedom.
        first = torch.bincount(torch.stack(batches)[:, 0], minlength=26)[1:]
        assert ((first - 16) ** 2 / 16).sum() < 52
    assert (recipe.task().batch(0, 0, 1)[1].sort().values.diff() >= 2).all()
    assert not torch.equal(recipe.task().batch(0, 0, 1)[1], recipe.task().batch(1, 0, 1)[1])


@pytest.mark.parametrize("focus", [0.5, 1.0])
def test_times_in_the_middle_are_drawn_as_often_as_said(focus):
    recipe, draws = replace(QUICK, focus=focus), torch.Generator().manual_seed(0)
    bar = recipe.diffusion().alpha_bar[1:]
    share = (bar.sqrt() * (1 - bar)) ** focus
    share = share / share.sum()
    batches = torch.stack([recipe.times(40, draws) for _ in range(500)])
    # Within a batch less than one off. Each image's own time, over the batches: chi squared, 24 degrees of freedom.
    for t in batches:
        assert (torch.bincount(t, minlength=26)[1:] - 40 * share).abs().max() < 1
    first = torch.bincount(batches[:, 0], minlength=26)[1:]
    assert ((first - 500 * share) ** 2 / (500 * share)).sum() < 52
