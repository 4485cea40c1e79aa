"""Pictures with captions: what is held out, captions and pictures as they are trained on, files of one's own."""

import json
import math
import random

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from paperwalk.data import load
from paperwalk.data.captions import (
    FLAGS,
    captioned_emoji,
    full_caption,
    may_mirror,
    read_captioned,
    sample_caption,
)
from paperwalk.data.pictures import N_DRAWS, augment, on_white, read_pictures, turned


@pytest.fixture(scope="module")
def emoji():
    return captioned_emoji()


@pytest.fixture(scope="module")
def concepts():
    return load("emoji").concepts


def draws(seed, b):
    return torch.rand(b, N_DRAWS, generator=torch.Generator().manual_seed(seed))


# The emoji


def test_no_family_is_on_both_sides(emoji, concepts):
    secret = {concepts[i].family for i in emoji.held_out}
    trained = [i for group in emoji.groups for i in group]
    assert len(emoji.held_out) == len(secret) == 200
    assert secret.isdisjoint(concepts[i].family for i in trained)
    assert len(set(trained)) == len(trained)
    assert not {concepts[i].kind for i in trained + emoji.held_out} & set(FLAGS)
    for group in emoji.groups:
        assert len({concepts[i].family for i in group}) == 1
    assert emoji.training_captions() == [full_caption(emoji.phrases[i]) for i in trained]


def test_no_held_out_picture_is_trained_on(emoji):
    trained = [i for group in emoji.groups for i in group]
    for k in range(2):
        seen = {emoji.pictures[i][k].numpy().tobytes() for i in trained}
        assert [i for i in emoji.held_out if emoji.pictures[i][k].numpy().tobytes() in seen] == []


def test_subjects_are_the_concepts(emoji, concepts):
    data = load("emoji")
    assert len(emoji.pictures) == len(emoji.phrases) == len(concepts)
    for i in (0, 700, len(concepts) - 1):
        assert emoji.phrases[i] == (concepts[i].name, concepts[i].kind, *concepts[i].keywords)
        assert torch.equal(emoji.pictures[i][1], data.images[1, i])
    alone = emoji.only("twitter")
    assert alone.artists == ("twitter",)
    assert torch.equal(torch.stack([each[0] for each in alone.pictures]), data.images[1])
    assert alone.held_out == emoji.held_out


# Captions


def test_captions_keep_phrases_as_often_as_told():
    phrases = ("lion", "mammals", "animal", "mane")
    for keep in (0.0, 0.3, 0.7):
        made = [sample_caption(phrases, random.Random(i), keep).split(", ") for i in range(600)]
        assert all(set(caption) <= set(phrases) for caption in made)
        for phrase in phrases[1:]:
            assert sum(phrase in caption for caption in made) / 600 == pytest.approx(keep, abs=0.06)
        without = (1 - (1 - keep) ** 3) * 0.2
        assert sum("lion" not in caption for caption in made) / 600 == pytest.approx(without, abs=0.05)
    assert {tuple(caption) for caption in made if len(caption) == 2} >= {("lion", "mane"), ("mane", "lion")}
    assert sample_caption(("lion",), random.Random(0), 0.5) == "lion"


def test_what_has_a_side_is_not_mirrored():
    sides = [
        ("Left arrow",),
        ("bright sun",),
        ("one o’clock",),
        ("lion", "mane"),
        ("x", "question mark"),
        ("bookmark",),
    ]
    assert may_mirror(sides).tolist() == [False, True, False, True, False, True]


# Pictures


def test_pictures_on_white():
    pictures = torch.zeros(1, 4, 2, 2, dtype=torch.uint8)
    pictures[0, :, 0, 0] = torch.tensor([255, 0, 51, 255])
    pictures[0, :, 0, 1] = torch.tensor([0, 0, 0, 51])
    white = on_white(pictures)
    assert_close(white[0, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))
    assert_close(white[0, :, 0, 1], torch.full((3,), 0.6))
    assert_close(white[0, :, 1, 1], torch.ones(3))


def test_a_picture_that_may_not_is_never_mirrored(emoji):
    pictures = torch.stack([emoji.pictures[i][0] for i in range(64)]).float()
    numbers = draws(3, 64)
    # All but the last number at rest: nothing but the mirror is left.
    numbers[:, :6] = 0.5
    never, may = (turned(pictures, mirror, iter(numbers.T)) for mirror in (torch.zeros(64) > 0, torch.ones(64) > 0))
    assert_close(never, pictures)
    mirrored = numbers[:, 6] < 0.5
    assert 0.3 < mirrored.float().mean() < 0.7
    assert_close(may[mirrored], pictures[mirrored].flip(-1), atol=0.1, rtol=0)
    assert_close(may[~mirrored], pictures[~mirrored])


def test_a_view_follows_from_its_numbers_alone(emoji):
    pictures = torch.stack([emoji.pictures[i][0] for i in range(40)])
    mirror, numbers = torch.ones(40, dtype=torch.bool), draws(1, 40)
    whole = augment(pictures, mirror, numbers)
    assert whole.shape == (40, 3, 32, 32)
    parts = [augment(pictures[rows], mirror[rows], numbers[rows]) for rows in (slice(0, 13), slice(13, 40))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(augment(pictures, mirror, draws(2, 40)), whole)
    assert whole.min() >= -1
    assert whole.max() <= 1
    with pytest.raises((RuntimeError, StopIteration)):
        augment(pictures, mirror, numbers[:, :-1])


def test_every_number_counts(emoji):
    pictures, mirror = emoji.pictures[emoji.held_out[0]][:1], torch.ones(1, dtype=torch.bool)
    # Covered, on a coloured ground: all numbers are used.
    numbers = torch.full((1, N_DRAWS), 0.4)
    first = augment(pictures, mirror, numbers)
    for k in range(N_DRAWS):
        other = numbers.clone()
        other[0, k] = 0.9
        assert not torch.equal(augment(pictures, mirror, other), first), k


# A file of one's own


@pytest.fixture
def own(tmp_path):
    """A table of 120 captions, every tenth with two pictures."""
    from PIL import Image

    lines = []
    for i in range(132):
        Image.new("RGB", (10 + i % 3, 9), (i, 2 * i % 256, 90)).save(tmp_path / f"{i}.png")
        lines.append((f"{i}.png", f"thing number {i if i < 120 else i - 120}"))
    (tmp_path / "own.tsv").write_text("".join(f"{picture}\t{caption}\n" for picture, caption in lines))
    return tmp_path / "own.tsv", lines


def test_a_file_is_read(own):
    path, lines = own
    data = read_captioned(path)
    assert len(data.phrases) == 120
    assert data.artists == ("pictures",)
    assert data.phrases[3] == ("thing number 3",)
    assert [picture.name for picture in data.pictures[3]] == ["3.png", "123.png"]
    assert len(data.held_out) == 12
    assert sorted([i for (i,) in data.groups] + data.held_out) == list(range(120))
    pixels = read_pictures([data.pictures[3][0], data.pictures[5][0]], 8)
    assert pixels.shape == (2, 4, 8, 8)
    assert pixels[1, :, 4, 4].tolist() == [5, 10, 90, 255]
    as_json = path.with_suffix(".jsonl")
    as_json.write_text("\n".join(json.dumps({"caption": caption, "picture": picture}) for picture, caption in lines))
    assert read_captioned(as_json) == data


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7.png", "own.tsv, line 8: 1 column, expected picture, tab, caption"),
        ("7.png\ta\tb", "own.tsv, line 8: 3 columns, expected picture, tab, caption"),
        ("7.png\t ", "own.tsv, line 8: the caption is empty"),
        ("\tthing", "own.tsv, line 8: the picture is empty"),
        ("nowhere.png\tthing", "own.tsv, line 8: no file .*nowhere.png"),
    ],
)
def test_a_bad_line_is_named(line, message, own):
    path, _ = own
    lines = path.read_text().split("\n")
    lines[7] = line
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_captioned(path)


def test_a_bad_line_of_json_is_named(own):
    path = own[0].with_suffix(".jsonl")
    path.write_text('{"picture": "1.png", "text": "one"}\n')
    with pytest.raises(ValueError, match=r'line 1: no caption, expected \{"picture": …, "caption": …}'):
        read_captioned(path)


def test_too_few_captions_are_refused(own):
    path, lines = own
    path.write_text("".join(f"{picture}\t{caption}\n" for picture, caption in lines[:99]))
    with pytest.raises(ValueError, match=r"own\.tsv has 99 different captions, expected at least 100"):
        read_captioned(path)
    path.write_text("".join(f"{picture}\t{caption}\n" for picture, caption in lines[:100]))
    assert len(read_captioned(path).phrases) == 100


# What the mutants of `make mutants` showed to be without a judge here.


def written_out(picture, may_mirror, numbers):
    """`augment` of one picture, number by number; the interpolation is torch's."""
    c, h, w = picture.shape
    u = iter(numbers.tolist())
    angle, scale, aspect, shear, x, y, side = (2 * next(u) - 1 for _ in range(7))
    scale, aspect, angle = math.exp(0.25 * scale), math.exp(0.12 * aspect), 0.35 * angle
    side = -1 if side < 0 and may_mirror else 1
    theta = [
        [side * aspect * scale * math.cos(angle), 0.15 * shear - aspect * scale * math.sin(angle), 0.2 * x],
        [side * scale * math.sin(angle) / aspect, scale * math.cos(angle) / aspect, 0.2 * y],
    ]
    pixels = picture.float() / 255
    pixels[:3] *= pixels[3].clone()
    grid = F.affine_grid(torch.tensor([theta]), [1, c, h, w], align_corners=False)
    pixels = F.grid_sample(pixels[None], grid, align_corners=False)[0]

    def jitter(size):
        return math.exp(size * (2 * next(u) - 1))

    coloured = next(u) < 0.5
    ground = torch.tensor([next(u) for _ in range(3)] if coloured else [next(u) * 0 + 1 for _ in range(3)])
    out = (pixels[:3] + (1 - pixels[3]) * ground[:, None, None]) * jitter(0.3)
    out = out.mean() + (out - out.mean()) * jitter(0.3)
    grey = out.mean(dim=0)
    tint = torch.tensor([jitter(0.1) for _ in range(3)])[:, None, None]
    out = ((grey + (out - grey) * jitter(0.4)) * tint).clamp(0, 1)
    row, column = h * next(u), w * next(u)
    hides, patch = next(u) < 0.5, torch.tensor([next(u) for _ in range(3)])
    for i in range(h):
        for j in range(w):
            if hides and abs(i - row) < h / 7 and abs(j - column) < w / 7:
                out[:, i, j] = patch
    return 2 * out - 1


def test_views_written_out():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (24, 4, 21, 28), generator=generator, dtype=torch.uint8)
    mirror = torch.arange(24) % 3 > 0
    numbers = torch.rand(24, N_DRAWS, generator=generator)
    for got, *given in zip(augment(pictures, mirror, numbers), pictures, mirror, numbers, strict=True):
        assert_close(got, written_out(*given), rtol=1e-4, atol=1e-4)


def test_pictures_in_memory_are_put_together():
    pictures = torch.randint(256, (1, 4, 5, 5), dtype=torch.uint8)
    assert torch.equal(read_pictures([*pictures], 5), pictures)


def test_words_of_a_caption_change_their_order():
    made = {sample_caption(("lion", "mammals", "animal", "mane"), random.Random(i), 1.0) for i in range(200)}
    assert {"lion, mammals, animal, mane", "lion, mane, animal, mammals", "animal, mammals, mane, lion"} <= made


def test_pictures_lie_by_concept():
    images = load("emoji").images
    pictures = captioned_emoji().pictures
    assert (len(pictures), pictures[0].shape) == (images.shape[1], images[:, 0].shape)
    assert torch.equal(pictures[5], images[:, 5])
