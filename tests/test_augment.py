"""Random changes of images."""

import torch

from paperwalk.data.augment import draw_shifts_and_flips, shift_and_flip

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
