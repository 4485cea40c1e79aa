"""Random changes of images."""

import math

import torch
from torch.testing import assert_close

from paperwalk.data.augment import crop, draw_crops, draw_shifts_and_flips, shift_and_flip

IMAGES = torch.arange(1, 1 + 3 * 2 * 4 * 5).view(3, 2, 4, 5)
NO = torch.zeros(3, dtype=torch.bool)


def shifted_naive(image, down, right, flip):
    h, w = image.shape[1:]
    out = torch.zeros_like(image)
    for i in range(h):
        for j in range(w):
            if 0 <= i - down < h and 0 <= j - right < w:
                out[:, i, j] = image[:, i - down, j - right]
    return out.flip(-1) if flip else out


def test_shifts_and_flips_equal_the_loops():
    shifts, flips = torch.tensor([[1, -2], [-3, 0], [0, 2]]), torch.tensor([True, False, True])
    expected = [shifted_naive(x, *s.tolist(), f) for x, s, f in zip(IMAGES, shifts, flips, strict=True)]
    assert torch.equal(shift_and_flip(IMAGES, shifts, flips), torch.stack(expected))


def test_no_shift_and_no_flip_is_the_image():
    assert torch.equal(shift_and_flip(IMAGES.to(torch.uint8), torch.zeros(3, 2, dtype=torch.long), NO), IMAGES)


def test_draws_are_within_the_range_and_use_all_of_it():
    shifts, flips = draw_shifts_and_flips(4000, 2, torch.Generator().manual_seed(0), flip=True)
    assert shifts.unique().tolist() == [-2, -1, 0, 1, 2]
    assert 0.45 < flips.float().mean() < 0.55
    assert not draw_shifts_and_flips(100, 2, torch.Generator().manual_seed(0), flip=False)[1].any()


def test_images_that_stay_as_they_are_are_not_copied():
    assert shift_and_flip(IMAGES, torch.zeros(3, 2, dtype=torch.long), NO) is IMAGES
    none = IMAGES[:0]
    assert shift_and_flip(none, torch.zeros(0, 2, dtype=torch.long), NO[:0]) is none


def test_either_change_alone_is_made():
    assert torch.equal(shift_and_flip(IMAGES, torch.zeros(3, 2, dtype=torch.long), ~NO), IMAGES.flip(3))
    down = shift_and_flip(IMAGES, torch.tensor([[1, 0]] * 3), NO)
    assert torch.equal(down[:, :, 1:], IMAGES[:, :, :-1])
    assert draw_shifts_and_flips(5, 2, torch.Generator(), flip=True)[0].shape == (5, 2)


def test_the_same_generator_gives_the_same_changes():
    for draw in (lambda g: draw_shifts_and_flips(50, 2, g, flip=True), lambda g: draw_crops(50, g)):
        first, again = (draw(torch.Generator().manual_seed(1)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_crop_is_the_part_of_the_image_that_it_says():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    whole = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    assert_close(crop(image, whole), image)
    assert_close(crop(image, whole * torch.tensor([-1.0, 1, 1])[None, None]), image.flip(3))
    corner = crop(image, torch.tensor([[[0.5, 0, 0.5], [0, 0.5, -0.5]]]))
    assert_close(corner[..., 1:-1, 1:-1].mean(), image[..., :4, 4:].mean())


def test_crops_are_of_the_sizes_they_should_be():
    theta = draw_crops(5_000, torch.Generator().manual_seed(0))
    width, height = theta[:, 0, 0].abs(), theta[:, 1, 1]
    area = width * height
    assert 0.15 < area.min() < 0.25
    assert area.max() <= 1
    assert ((width / height <= 4 / 3 + 1e-5) & (height / width <= 4 / 3 + 1e-5)).all()
    assert ((theta[:, 0, 2].abs() + width <= 1 + 1e-6) & (theta[:, 1, 2].abs() + height <= 1 + 1e-6)).all()
    assert 0.45 < (theta[:, 0, 0] < 0).float().mean() < 0.55


def test_beyond_the_image_a_crop_repeats_its_border():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    twice = crop(image, torch.tensor([[[2.0, 0, 0], [0, 2, 0]]]))
    assert torch.equal(twice[..., 0, 0], image[..., 0, 0])
    assert torch.equal(twice[..., -1, -1], image[..., -1, -1])


def test_crops_written_out():
    found = draw_crops(4, torch.Generator().manual_seed(0), smallest=0.5)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.rand(4, generator=generator) for _ in range(5)]
    for (area, stretch, x, y, flip), theta in zip(torch.stack(draws, dim=1).tolist(), found, strict=True):
        area, stretch = 0.5 + 0.5 * area, (4 / 3) ** (2 * stretch - 1)
        width, height = min(1, math.sqrt(area * stretch)), min(1, math.sqrt(area / stretch))
        middle = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
        expected = [[-width if flip < 0.5 else width, 0, middle[0]], [0, height, middle[1]]]
        assert_close(theta, torch.tensor(expected))
