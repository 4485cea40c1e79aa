"""The emoji: families by hand, pictures to the byte, the packages decoded, what a held-out concept may not meet."""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from paperwalk import data
from paperwalk.data import emoji, sources, table
from paperwalk.data.decode import opened


@pytest.fixture(scope="module")
def loaded():
    return data.load("emoji")


# Families


@pytest.mark.parametrize(
    ("codes", "family"),
    [
        ("1F9D9 1F9D9-200D-2640-FE0F 1F9D9-200D-2642-FE0F 1F9D9-1F3FD-200D-2640-FE0F", "1F9D9"),
        ("1F468-200D-1F373 1F469-200D-1F373 1F9D1-1F3FF-200D-1F373", "1F9D1-1F373"),
        ("1F468 1F469 1F9D1 1F471-200D-2640-FE0F 1F9D1-200D-1F9B0 1F9D4-200D-2642-FE0F", "1F9D1"),
        ("1F466 1F467 1F9D2-1F3FB", "1F9D2"),
        ("1F46A 1F468-200D-1F469-200D-1F466 1F469-200D-1F467 1F9D1-200D-1F9D1-200D-1F9D2", "1F46A"),
        ("1F46B 1F46D 1F9D1-200D-1F91D-200D-1F9D1", "1F46B"),
        ("1F48F 1F469-200D-2764-FE0F-200D-1F48B-200D-1F468", "1F48F"),
        ("1F491 1F468-200D-2764-FE0F-200D-1F468", "1F491"),
        ("1F6B6 1F6B6-200D-2642-FE0F-200D-27A1-FE0F", "1F6B6"),
        ("1F934 1F478 1FAC5", "1F934"),
        ("1F9D1-1F9B0 1F9D1-1F9B1 1F9D1-1F9B2 1F9D1-1F9B3", "1F9D1"),
        ("1F9D3 1F474 1F475", "1F9D3"),
        ("1F930 1FAC3 1FAC4", "1F930"),
        ("1F931 1F9D1-1F37C", "1F931"),
        ("1F385 1F936 1F9D1-1F384", "1F385"),
        ("1F57A 1F483", "1F57A"),
        ("1F46C 1F46D", "1F46B"),
        ("1F9D9-1F3FB 1F9D9-1F3FC 1F9D9-1F3FD 1F9D9-1F3FE 1F9D9-1F3FF", "1F9D9"),
        ("2764-FE0F 2764", "2764"),
        ("2640-FE0F", "2640"),
        ("2642-FE0F", "2642"),
        ("27A1-FE0F", "27A1"),
        ("1F1E9-1F1EA", "1F1E9-1F1EA"),
    ],
)
def test_variants_of_a_concept_are_one_family(codes, family):
    assert {emoji.family_of(code) for code in codes.split()} == {family}


def test_held_out_families_are_fixed_by_their_hash():
    families = [f"{i:04X}" for i in range(50)]
    chosen = emoji.held_out_families(families, 7)
    by_hand = sorted(families, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:7]
    assert list(chosen) == by_hand
    assert emoji.held_out_families(families[::-1] * 2, 7) == chosen
    # Removing another family changes nothing.
    assert emoji.held_out_families([f for f in families if f != sorted(set(families) - set(chosen))[0]], 7) == chosen
    for n in (0, 51):
        with pytest.raises(ValueError, match=f"{n} of 50 families, expected 1 to 50"):
            emoji.held_out_families(families, n)


# Pictures


def png(pixels: np.ndarray, mode: str = "RGBA") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels, mode if mode == "RGBA" else None).save(file, "PNG")
    return file.getvalue()


def test_a_picture_is_the_mean_of_what_is_opaque():
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[0, 0] = 200, 100, 51, 255
    pixels[0, 1] = 100, 50, 50, 255
    pixels[2:4, 2:4] = 7, 8, 9, 100
    small = emoji.read_picture(png(pixels))
    assert small.shape == (4, 32, 32)
    # Two of four pixels are opaque; the transparent ones do not darken the colour.
    assert small[:, 0, 0].tolist() == [150, 75, 51, 128]
    assert small[:, 1, 1].tolist() == [7, 8, 9, 100]
    assert not small[:, 5, 5].any()


def test_rows_and_columns_stay_what_they_are():
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[10:12, 40:42] = 255
    small = emoji.read_picture(png(pixels))
    assert np.argwhere(small[3]).tolist() == [[5, 20]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(np.zeros((64, 32, 4), np.uint8)), r"PNG of \(32, 64\) pixels, expected 64 x 64"),
        (b"no picture", "damaged PNG of 10 bytes"),
        (png(np.zeros((64, 64, 4), np.uint8))[:60], "damaged PNG"),
    ],
)
def test_a_damaged_picture_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        emoji.read_picture(content)


# The packages


def pack(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


ENTRIES = [
    {"unified": "2764-FE0F", "image": "2764-fe0f.png", "sort_order": 2},
    {"unified": "1F408", "image": "1f408.png", "sort_order": 1},
    {"unified": "1F3FB", "image": "1f3fb.png", "sort_order": 0},
    {"unified": "1F5A4", "image": "1f5a4.png", "sort_order": 3},
]
NAMES = [
    {"hexcode": "2764", "label": "Red Heart", "subgroup": 14, "tags": ["heart", "love", "I Love you"]},
    {"hexcode": "1F408", "label": "cat", "subgroup": 34, "tags": ["animal"]},
    {"hexcode": "1F5A4", "label": "black heart", "subgroup": 14},
]


def packages(folder, names=NAMES, alike=False):
    paths = []
    for k, artist in enumerate(emoji.ARTISTS):
        pictures = {}
        for i, entry in enumerate(ENTRIES):
            value = 1 if alike and k == 1 and i in (0, 3) else 10 * k + i
            pixels = np.full((64, 64, 4), value, np.uint8)
            pictures[f"img/{artist}/64/{entry['image']}"] = png(pixels)
        content = {"emoji.json": json.dumps(ENTRIES).encode()} | pictures
        paths.append(pack(folder / f"{artist}.tgz", content))
    kinds = {"subgroups": [{"order": 14, "message": "hearts"}, {"order": 34, "message": "mammals"}]}
    base = {"en/data.json": json.dumps(names).encode(), "en/messages.json": json.dumps(kinds).encode()}
    return [*paths, pack(folder / "base.tgz", base)]


def test_the_packages_are_decoded_in_unicodes_order(tmp_path):
    arrays = emoji.decode_emoji(packages(tmp_path))
    assert arrays["images"].shape == (2, 3, 4, 32, 32)
    assert arrays["images"].is_contiguous()
    # Cat, red heart, black heart; the sample of a skin tone is left out.
    assert arrays["images"][:, :, 3, 0, 0].tolist() == [[1, 0, 3], [11, 10, 13]]
    assert emoji.read_concepts(arrays["concepts"]) == (
        emoji.Concept("cat", ("animal",), "mammals", "1F408"),
        emoji.Concept("Red Heart", ("love", "I Love you"), "hearts", "2764"),
        emoji.Concept("black heart", (), "hearts", "1F5A4"),
    )


def test_pictures_drawn_alike_join_their_families(tmp_path):
    concepts = emoji.read_concepts(emoji.decode_emoji(packages(tmp_path, alike=True))["concepts"])
    assert concepts[1].family == concepts[2].family == "2764"
    assert concepts[0].family == "1F408"


def test_an_emoji_without_a_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 emoji have no name, the first 1F5A4"):
        emoji.decode_emoji(packages(tmp_path, names=NAMES[:2]))


def test_a_table_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"en/data\.json is not a list of objects"):
        emoji.decode_emoji(packages(tmp_path, names={"2764": {}}))


def test_load_gives_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERWALK_DATA", str(tmp_path / "cache"))
    paths = packages(tmp_path)
    arrays = emoji.decode_emoji(paths)
    source = replace(table.RECIPES["emoji"].sources[0], fetch=lambda folder: [p.rename(folder / f) for p, f in
                     zip(paths, table.RECIPES["emoji"].sources[0].files, strict=True)])  # fmt: skip
    entry = replace(table.RECIPES["emoji"], sha256=sources.digest(arrays, emoji.EMOJI_KEYS), sources=(source,))
    monkeypatch.setitem(table.RECIPES, "emoji", entry)
    dataset = data.load("emoji")
    assert dataset.artists == ("google", "twitter")
    assert torch.equal(dataset.images, arrays["images"])
    assert [concept.name for concept in dataset.concepts] == ["cat", "Red Heart", "black heart"]


# What the mutants of `make mutants` showed to be without a judge here.


def test_as_many_families_are_held_out_as_asked():
    families = [f"{i:04X}" for i in range(300)]
    assert len(emoji.held_out_families(families)) == 200
    assert len(emoji.held_out_families(families, 1)) == 1
    assert sorted(emoji.held_out_families(families, 300)) == families


def test_packages_are_named_with_their_versions():
    expected = [r"emoji-datasource-google@[\d.]+", r"emoji-datasource-twitter@[\d.]+", r"emojibase-data@[\d.]+"]
    assert emoji.family_of("1F408") == "1F408"
    assert all(re.fullmatch(*pair) for pair in zip(expected, emoji.PACKAGES, strict=True))


def test_another_kind_of_picture_is_not_opened():
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "GIF")
    with pytest.raises(ValueError, match="damaged PNG"):
        emoji.read_picture(file.getvalue())


def test_a_picture_has_at_most_so_many_pixels():
    for height in (8192, 8193):
        file = io.BytesIO()
        Image.new("1", (8192, height)).save(file, "PNG")
        if height == 8192:
            with opened(file.getvalue(), ["PNG"], "wrong") as image:
                assert image.size == (8192, 8192)
    with (
        pytest.raises(ValueError, match="wrong: 8192 x 8193 pixels, expected at most 67108864"),
        opened(file.getvalue(), ["PNG"], "wrong"),
    ):
        raise AssertionError("opened")


def test_a_picture_without_opacity_is_opaque():
    small = emoji.read_picture(png(np.full((64, 64, 3), 9, np.uint8), "RGB"))
    assert small[:, 3, 3].tolist() == [9, 9, 9, 255]


def test_what_is_drawn_alike_is_followed_through_all_families():
    p, q = np.zeros((2, 4, 32, 32), np.uint8)
    q[:] = 1
    # The third, of the second's family, looks like the first; the last looks like the second.
    found = emoji._families(["2764", "1F408", "1F408", "1F5A4"], np.stack([p, q, p, q])[None])
    assert found == ["2764"] * 4


def test_names_are_stored_as_they_are_written(tmp_path):
    names = [NAMES[0] | {"label": "piñata"}, *NAMES[1:]]
    assert "piñata".encode() in emoji.decode_emoji(packages(tmp_path, names=names))["concepts"].numpy().tobytes()


@pytest.mark.parametrize("file", ["emoji.json", "en/data.json", "en/messages.json"])
@pytest.mark.parametrize("content", [b"[", b"[{}, 3]"])
def test_the_bad_table_is_named(file, content, tmp_path):
    paths = packages(tmp_path)
    members = {"en/data.json": json.dumps(NAMES).encode(), "en/messages.json": b'{"subgroups": []}'}
    where = paths[0] if file == "emoji.json" else paths[2]
    pack(where, {file: content} if file == "emoji.json" else members | {file: content})
    expected = "other tables than expected" if file == "en/messages.json" and content != b"[" else f"^{file} is not "
    with pytest.raises(ValueError, match=expected):
        emoji.decode_emoji(paths)


# The real set


def test_the_published_set(loaded):
    assert loaded.images.shape == (2, 1906, 4, 32, 32)
    assert loaded.images.dtype == torch.uint8
    assert len(loaded.concepts) == 1906
    names = [concept.name for concept in loaded.concepts]
    assert len(set(names)) == 1906
    cat = loaded.concepts[names.index("cat")]
    assert cat.family == "1F408"
    assert "pet" in cat.keywords
    assert cat.kind == "mammals"
    assert all(concept.name for concept in loaded.concepts)


def test_no_picture_is_in_two_families(loaded):
    for artist in loaded.images:
        families = {}
        for concept, picture in zip(loaded.concepts, artist, strict=True):
            families.setdefault(picture.numpy().tobytes(), set()).add(concept.family)
        assert [found for found in families.values() if len(found) > 1] == []


def test_names_that_differ_in_gender_only_are_one_family(loaded):
    def neutral(name):
        gendered = {"man": "person", "woman": "person", "men": "people", "women": "people"}
        words = [gendered.get(word.strip(":,"), word) for word in name.lower().split()]
        return " ".join(word for word in words if word != "person")

    families = {}
    for concept in loaded.concepts:
        if any(word.strip(":,") in ("man", "woman", "men", "women", "person") for word in concept.name.split()):
            families.setdefault(neutral(concept.name), set()).add(concept.family)
    assert {name: found for name, found in families.items() if len(found) > 1} == {}


def test_held_out_families_of_the_published_set(loaded):
    families = [concept.family for concept in loaded.concepts]
    held_out = emoji.held_out_families(families)
    assert len(set(held_out)) == emoji.N_HELD_OUT
    sizes = Counter(families)
    assert sum(sizes[family] for family in held_out) < 260
