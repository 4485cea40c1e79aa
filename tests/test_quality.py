"""The quality of generated images: the Fréchet distance against scipy, the judge against its data."""

import json

import pytest
import torch
from torch.testing import assert_close

from paperwalk.quality import (
    JUDGES,
    Judge,
    JudgeConfig,
    Verdict,
    class_score,
    class_shares,
    confident,
    frechet_distance,
)
from paperwalk.train.judge import JudgeRecipe, hold_out, main, quality_figures


def reference(a: torch.Tensor, b: torch.Tensor) -> float:
    import numpy as np
    import scipy.linalg

    a, b = a.double().numpy(), b.double().numpy()
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 4), (500, 400, 64), (30, 20, 1), (100, 90, 2)])
def test_frechet_distance_is_scipy_s(n, m, d):
    a, b = torch.randn(n, d) @ torch.randn(d, d) + 1, torch.randn(m, d) @ torch.randn(d, d)
    assert frechet_distance(a, b) == pytest.approx(reference(a, b), rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_frechet_distance_of_known_normals():
    a = torch.randn(100, 3)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a + torch.tensor([3.0, 0, 4]), a) == pytest.approx(25, rel=1e-5)
    # N(0, σ²) and N(0, 4σ²) in each of three directions: 3 σ² (1 − 2)².
    a = torch.linalg.qr(a - a.mean(0))[0] * 99**0.5
    assert frechet_distance(2 * a, a) == pytest.approx(3, rel=1e-4)


def test_fewer_rows_than_features_still_have_a_distance():
    a, b = torch.randn(5, 20), torch.randn(400, 20)
    assert frechet_distance(a, b) > frechet_distance(torch.randn(400, 20), b) > 0


def test_confidence_and_classes():
    verdict = Verdict(torch.zeros(3, 1), torch.tensor([[0.95, 0.05], [0.6, 0.4], [0.1, 0.9]]))
    assert confident(verdict).tolist() == [1, 0, 0]
    assert confident(verdict, over=0.5).tolist() == [1, 1, 1]
    assert_close(class_shares(torch.tensor([0, 2, 2, 0]), 4), torch.tensor([0.5, 0, 0.5, 0]))


def test_class_score_wants_sure_and_spread():
    even = torch.eye(4).repeat(5, 1)
    assert class_score(even) == pytest.approx(4)
    assert class_score(even[:1].repeat(9, 1)) == pytest.approx(1)  # sure, and always of the same
    assert class_score(torch.full((7, 4), 0.25)) == pytest.approx(1)  # never sure
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
    mean = p.mean(0)
    assert class_score(p) == pytest.approx((p * (p / mean).log()).sum(1).mean().exp().item())


def test_noise_has_no_class_score_though_the_judge_is_sure_of_it():
    found = Judge.from_pretrained("mnist").judge(torch.randn(100, 1, 28, 28).clamp(-1, 1))
    assert confident(found).double().mean() > 0.9
    assert class_score(found.probabilities) < 1.5


def test_figures_of_images_like_the_reference():
    features, probabilities = torch.randn(600, 5), torch.full((600, 4), 0.01)
    probabilities[torch.arange(600), torch.arange(600) % 4] = 0.97
    found = quality_figures("x: ", Verdict(features, probabilities), torch.randn(5_000, 5))
    assert list(found) == ["x: Fréchet distance", "x: class score", "x: sure", "x: rarest class", "x: commonest class"]
    assert found["x: sure"]["value"] == 1
    assert found["x: rarest class"]["value"] == found["x: commonest class"]["value"] == 0.25
    low, high = found["x: Fréchet distance"]["interval"]
    assert 0 <= low <= high < 0.1


def test_judge_comes_back(tmp_path, randomise):
    judge = randomise(Judge(JudgeConfig(8, 2, 3, d_model=4, d_features=5))).eval()
    judge.save_pretrained(tmp_path)
    x = torch.randn(7, 2, 8, 8)
    again = Judge.from_pretrained(tmp_path)
    # In training mode too, whose dropout and batch statistics would give other numbers.
    verdict = again.train().judge(x, batch=3)
    assert torch.equal(again(x), judge(x))
    assert verdict.features.shape == (7, 5)
    assert_close(verdict.probabilities, judge(x).softmax(dim=1).detach(), rtol=1e-4, atol=1e-6)
    judge.save_pretrained(tmp_path, bits=16)
    assert not torch.equal(Judge.from_pretrained(tmp_path)(x), judge(x))


@pytest.mark.parametrize("name", sorted(path.parent.name for path in JUDGES.glob("*/config.json")))
def test_a_packaged_judge_is_what_its_card_says(name):
    card = json.loads((JUDGES / name / "card.json").read_text())
    measured = JudgeRecipe(data=card["recipe"]["data"]).evaluate(Judge.from_pretrained(name), 2_000)["accuracy"]
    low, high = measured["interval"]
    assert low <= card["metrics"]["accuracy"]["value"] <= high
    if name == "mnist":
        assert card["metrics"]["accuracy"]["value"] >= 0.99
    assert card["command"].startswith(f"python -m paperwalk.train.judge --data {name}")


def test_judge_is_trained_by_a_command(tmp_path, capsys):
    main(["--data", "mnist-5k", "--epochs", "0.1", "--output", str(tmp_path / "judge")])
    assert "accuracy: " in capsys.readouterr().out
    assert Judge.from_pretrained(tmp_path / "judge").config == JudgeConfig()
    card = json.loads((tmp_path / "judge" / "card.json").read_text())
    assert card["command"] == "python -m paperwalk.train.judge --data mnist-5k --epochs 0.1"


def test_held_out_images_are_the_last_twelfth():
    from paperwalk.data import Split

    split = Split(torch.arange(24).reshape(24, 1, 1, 1).byte(), torch.arange(24))
    kept, held_out = hold_out(split)
    assert kept.labels.tolist() == list(range(22))
    assert held_out.images.flatten().tolist() == [22, 23]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3)),
            r"\(1, 3\) and \(5, 3\), expected .* n, m > 1",
        ),
        (lambda: frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4)), r"\(5, 3\) and \(5, 4\)"),
        (lambda: frechet_distance(torch.zeros(5), torch.zeros(5)), r"\(5,\) and \(5,\)"),
        (lambda: frechet_distance(torch.zeros(5), torch.zeros(5, 3)), r"\(5,\) and \(5, 3\)"),
        (lambda: frechet_distance(torch.zeros(5, 3) / 0, torch.zeros(5, 3)), "features hold NaN or infinity"),
        (lambda: frechet_distance(torch.diag(torch.tensor([1.0, torch.nan])), torch.zeros(5, 2)), "hold NaN"),
        (lambda: frechet_distance(torch.zeros(5, 2), torch.diag(torch.tensor([1.0, torch.nan]))), "hold NaN"),
        (lambda: class_shares(torch.tensor([0, 4]), 4), "expected at least one, in 0 to 3"),
        (lambda: class_shares(torch.tensor([-1, 2]), 4), "expected at least one, in 0 to 3"),
        (lambda: class_shares(torch.tensor([]).long(), 4), "0 classes, expected at least one"),
        (lambda: JudgeConfig(image_size=30), "image_size=30 is not a multiple of 4"),
        (lambda: JudgeConfig(d_features=0), "d_features=0, expected"),
        (lambda: Judge(JudgeConfig())(torch.zeros(1, 1, 32, 32)), r"\(1, 1, 32, 32\), expected \(b, 1, 28, 28\)"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_judge_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Judge.from_pretrained("nowhere")


# What the mutants of `make mutants` showed to be without a judge here.


def test_a_judge_is_as_small_as_the_packaged_ones_unless_asked():
    assert JudgeConfig() == JudgeConfig(28, 1, 10, 32, 64, 0.3)
    assert Judge(JudgeConfig(dropout=0.1)).dropout.p == 0.1


def test_two_rows_have_a_distance():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    # The covariance of two rows is v vᵀ, with v their difference over √2.
    v, w = ((x[0] - x[1]).double() / 2**0.5 for x in (a, b))
    spread = v.dot(v) + w.dot(w) - 2 * v.dot(w).abs()
    expected = (a.mean(dim=0) - b.mean(dim=0)).double().square().sum() + spread
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-4)
