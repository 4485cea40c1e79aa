"""Labelled images in folders: which files there are, and how one is cut to a square."""

import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

from paperwalk.data.folder import folder_sha256, read_folder, read_image, read_images


@pytest.fixture
def folder(tmp_path):
    for name in ("train/dog/b.JPG", "train/dog/a.png", "train/cat/c.webp", "train/cat/d.bmp", "train/owl/e.jpeg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    for name in ("train/cat/notes.txt", "train/.cache/x.png", "train/list.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "train" / "empty").mkdir()
    return tmp_path


def test_classes_and_files_are_in_the_order_of_the_alphabet(folder):
    for given in (folder, str(folder)):
        split = read_folder(given, "train")
        assert split.classes == ("cat", "dog", "empty", "owl")
        assert [path.relative_to(folder / "train").as_posix() for path in split.files] == [
            *("cat/c.webp", "cat/d.bmp"),
            *("dog/a.png", "dog/b.JPG", "owl/e.jpeg"),
        ]
        assert split.labels.tolist() == [0, 0, 1, 1, 3]
    assert read_images(split.files, 4).shape == (5, 3, 4, 4)


def test_what_is_not_there_is_named(folder, monkeypatch):
    with pytest.raises(ValueError, match=r"no folder .*val, expected train/CLASS/ and val/CLASS/"):
        read_folder(folder, "val")
    (folder / "val" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"val holds no images, expected CLASS/\*\.jpg"):
        read_folder(folder, "val")
    for right in (os.R_OK, os.X_OK):
        monkeypatch.setattr(os, "access", lambda path, asked, right=right: not asked & right)
        with pytest.raises(PermissionError, match="train may not be read"):
            read_folder(folder, "train")


def test_the_sum_of_a_folder_is_that_of_names_and_sizes(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two").write_bytes(b"12")
    (tmp_path / "a").write_bytes(b"1")
    expected = hashlib.sha256(b"a 1\nb/two 2").hexdigest()
    assert folder_sha256(tmp_path) == folder_sha256(str(tmp_path)) == expected


def test_the_shorter_side_is_scaled_and_the_middle_cut_out(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 10, 20, 30
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 4)
    assert image.shape == (3, 4, 4)
    assert image.amin(dim=(1, 2)).tolist() == image.amax(dim=(1, 2)).tolist() == [10, 20, 30]
    fine = np.random.default_rng(0).integers(256, size=(9, 9, 3), dtype=np.uint8)
    Image.fromarray(fine).save(tmp_path / "b.png")
    bicubic = Image.fromarray(fine).resize((4, 4), Image.Resampling.BICUBIC)
    assert torch.equal(read_image(tmp_path / "b.png", 4), torch.from_numpy(np.array(bicubic)).permute(2, 0, 1))
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    both = read_images([tmp_path / "a.png", tmp_path / "grey.png"], 4)
    assert both.shape == (2, 3, 4, 4)
    assert torch.equal(both[0], image)
    assert both[1].unique().tolist() == [7]


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.png is not an image"):
        read_image(tmp_path / "a.png", 4)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png", "GIF")
    with pytest.raises(ValueError, match=r"b\.png is not an image"):
        read_image(tmp_path / "b.png", 4)
