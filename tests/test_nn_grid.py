import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from paperwalk.nn import (
    LearnedPositions,
    LearnedPositions2d,
    PatchEmbedding,
    patchify,
    resize_positions,
    sinusoidal_1d,
    sinusoidal_2d,
    unpatchify,
)
from paperwalk.nn.patches import linear_from_conv
from paperwalk.testing import prove


@st.composite
def cut_images(draw):
    b, c, p, gh, gw = (draw(st.integers(1, 4)) for _ in range(5))
    dtype = draw(st.sampled_from([torch.float32, torch.uint8, torch.bool]))
    return torch.randint(0, 2, (b, c, gh * p, gw * p)).to(dtype), p


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(cut_images())
def test_patches_are_cut_row_by_row_and_put_back(case):
    images, p = case
    _, c, h, w = images.shape
    patches = patchify(images, p)
    for t, (y, x) in enumerate(itertools.product(range(0, h, p), range(0, w, p))):
        numbers = [images[:, i, y + row, x + column] for row in range(p) for column in range(p) for i in range(c)]
        assert torch.equal(patches[:, t], torch.stack(numbers, dim=1))
    assert torch.equal(unpatchify(patches, p, h, w), images)


@pytest.mark.parametrize(("p", "c", "size"), [(1, 1, (2, 3)), (3, 2, (6, 9)), (4, 3, (8, 4))])
def test_patch_embedding_equals_convolution(p, c, size, randomise):
    ours, theirs = PatchEmbedding(p, c, 7), randomise(nn.Conv2d(c, 7, p, stride=p))
    prove(
        "patches",
        "Conv2d",
        ours,
        theirs,
        torch.randn(2, c, *size),
        convert=lambda s: {"proj.weight": linear_from_conv(s["weight"]), "proj.bias": s["bias"]},
        read=lambda y: y.flatten(2).mT,
    )


def test_sinusoids_equal_their_formula():
    ours = sinusoidal_1d(300, 10)
    for t, i in itertools.product((0, 1, 7, 299), range(5)):
        angle = t / 10_000 ** (2 * i / 10)
        assert ours[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
        assert ours[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)


def test_grid_sinusoids_equal_their_formula_and_transformers():
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    ours = sinusoidal_2d(3, 5, 12)
    for y, x, i in itertools.product(range(3), range(5), range(3)):
        wave = 10_000 ** (i / 3)
        expected = [math.sin(x / wave), math.cos(x / wave), math.sin(y / wave), math.cos(y / wave)]
        assert ours[5 * y + x, i::3].tolist() == pytest.approx(expected, abs=1e-6)
    rows_first = build_2d_sinusoidal_position_embedding(3, 5, 12)
    assert_close(ours, rows_first.roll(6, dims=1))


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def cubic_matrix(old: int, new: int) -> Tensor:
    matrix = torch.zeros(new, old)
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(centre - j)
    return matrix


@pytest.mark.parametrize("n_extra", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), [((3, 3), (5, 5)), ((4, 2), (3, 7)), ((2, 3), (3, 2)), ((6, 5), (2, 2))])
def test_resized_positions_equal_cubic_convolution(old, new, n_extra):
    def naive(positions):
        grid = positions[n_extra:].reshape(*old, 5)
        grid = torch.einsum("ya,xb,abd->yxd", cubic_matrix(old[0], new[0]), cubic_matrix(old[1], new[1]), grid)
        return torch.cat([positions[:n_extra], grid.reshape(-1, 5)])

    positions = torch.randn(n_extra + math.prod(old), 5)
    prove("resize", "cubic convolution", lambda x: resize_positions(x, old, new), naive, positions)
    assert torch.equal(resize_positions(positions, old, new)[:n_extra], positions[:n_extra])
    assert torch.equal(resize_positions(positions, old, old), positions)


def test_learned_positions():
    module = LearnedPositions(400, 50, std=0.3)
    assert module().shape == (400, 50)
    assert module().std().item() == pytest.approx(0.3, rel=0.05)
    grid = LearnedPositions2d(3, 4, 6)
    for y, x in itertools.product(range(3), range(4)):
        assert torch.equal(grid()[4 * y + x], torch.cat([grid.rows[y], grid.columns[x]]))
    assert LearnedPositions2d(100, 100, 50, std=0.3)().std().item() == pytest.approx(0.3, rel=0.1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patchify(torch.zeros(1, 3, 8, 10), 4), "8 x 10 pixels with patch_size=4"),
        (lambda: patchify(torch.zeros(1, 3, 10, 8), 4), "10 x 8 pixels with patch_size=4"),
        (lambda: patchify(torch.zeros(1, 3, 8, 8), 0), "patch_size=0"),
        (lambda: PatchEmbedding(4, 3, 8)(torch.zeros(1, 3, 9, 8)), "9 x 8 pixels"),
        (lambda: unpatchify(torch.zeros(1, 5, 12), 2, 4, 4), "5 patches of 12 numbers, expected 4"),
        (lambda: unpatchify(torch.zeros(1, 4, 10), 2, 4, 4), "4 patches of 10 numbers"),
        (lambda: unpatchify(torch.zeros(1, 4, 12), 2, 5, 4), "5 x 4 pixels"),
        (lambda: unpatchify(torch.zeros(1, 4, 12), 0, 4, 4), "patch_size=0"),
        (lambda: sinusoidal_1d(4, 7), "d_model=7, expected an even"),
        (lambda: sinusoidal_2d(4, 4, 6), "d_model=6, expected a multiple of 4"),
        (lambda: LearnedPositions2d(4, 4, 7), "d_model=7, expected an even"),
        (lambda: resize_positions(torch.zeros(8, 2), (3, 3), (2, 2)), "8 positions, expected at least 3 x 3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_positions_start_as_small_as_the_papers():
    assert LearnedPositions(400, 50)().std().item() == pytest.approx(0.02, rel=0.05)
    assert LearnedPositions2d(100, 100, 50)().std().item() == pytest.approx(0.02, rel=0.1)


def test_patch_embedding_without_bias():
    assert [name for name, _ in PatchEmbedding(2, 3, 4, bias=False).named_parameters()] == ["proj.weight"]
