"""The command line: what is typed wrong is said in one line, exit code 2; what is typed right works."""

import json
import stat

import pytest
import torch

from paperwalk.data.folder import folder_sha256, read_image
from paperwalk.gpt import GPT
from paperwalk.train import cli

SMALL = ["--model.d-model", "8", "--model.n-layers", "1", "--model.n-heads", "2", "--model.d-mlp", "8"]
QUICK = ["--steps", "3", "--batch-size", "4", "--precision", "fp32"]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text("the white whale and the old captain, " * 40)
    return str(tmp_path / "text.txt")


@pytest.fixture
def trained(tmp_path, text, capsys):
    """A GPT of three steps."""
    folder = tmp_path / "run"
    arguments = ["train", "gpt", *SMALL, *QUICK, "--model.block-size", "8", "--data", text, "--output", str(folder)]
    assert cli.main(arguments) == 0
    assert "loss: " in capsys.readouterr().out
    return folder


@pytest.fixture
def picture_folder(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name, colour in (("dark", 20), ("light", 230)):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(4):
                image = Image.new("RGB", (12 + i, 10), (colour, colour, colour + i))
                image.save(tmp_path / "pictures" / split / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("frain vit", "unknown command 'frain', did you mean train?"),
        ("train", "which paper? Expected one of: vit, gpt, transformer"),
        ("train vti", "unknown paper 'vti', did you mean vit?"),
        ("train vit --recipe cifar", "unknown recipe of vit 'cifar', did you mean cifar10-cpu?"),
        ("train vit --preset tiny", "unknown preset of vit 'tiny', did you mean tiny-"),
        ("train vit --recipe", "--recipe needs a value"),
        ("train vit --epoch 3", "Unrecognized options: --epoch, 3; did you mean --epochs?"),
        ("train vit --epochs many", "could not convert string to float: 'many'"),
        (
            "train vit --model.pool max",
            "invalid choice 'max' for argument '--model.pool'. Expected one of ('cls', 'mean')",
        ),
        ("train vit --model.d-model 7", "d_model=7 is not a multiple of n_heads=3"),
        ("train vit --lr 0", "lr is 0.0, expected more than 0"),
        ("train vit --shift -1", "shift is -1, expected at least 0 pixels"),
        ("train vit --smoothing 2", "smoothing is 2.0, expected at least 0 and below 1"),
        ("train vit --data cifra10", "unknown data 'cifra10', expected one of mnist, mnist-5k, cifar10, or a folder"),
        ("train vit --data mnist-5k", "model.in_channels is 3, expected 1: that of mnist-5k"),
        ("train vit --preset tiny-28 --data mnist-5k --batch-size 5000", "batch_size is 5000, expected at most 4000"),
        ("train transformer --data words.txt", "unknown data 'words.txt', expected cmudict, or a file of pairs"),
        ("eval", "which folder?"),
        ("eval nowhere", "nowhere holds no card.json"),
        ("info gpt --presets nano", "info takes nothing like --presets"),
        ("data", "which action? Expected one of: list, fetch, verify"),
        ("data fetch", "data fetch needs names"),
        ("data fetch minst", "unknown data set 'minst', did you mean mnist?"),
    ],
)
def test_what_is_typed_wrong_is_said_in_one_line(typed, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(typed.split()) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("paperwalk: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_usage_lists_the_commands(capsys):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {command} " in said for command in cli.COMMANDS)


def test_help_lists_the_fields_with_their_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "vit", "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--recipe: cifar10-cpu, cifar10-finetune, mnist-cpu, paper" in said
    assert "--preset: tiny-32" in said
    assert "passes over the training data. (default: 10.0)" in said
    assert "--model.d-model INT" in said


def test_train_writes_a_model_with_its_card(trained):
    card = json.loads((trained / "card.json").read_text())
    assert card["command"].startswith("paperwalk train gpt --model.d-model 8")
    assert "--output" not in card["command"]
    assert card["recipe"]["steps"] == 3
    assert {"value", "interval", "n"} == set(card["metrics"]["loss"])
    assert (trained / "loss.png").stat().st_size > 1000
    assert list(trained.glob("paperwalk/**/events*"))


def test_train_refuses_a_folder_with_a_run(trained, text, capsys):
    arguments = ["train", "gpt", *SMALL, *QUICK, "--model.block-size", "8", "--data", text, "--output", str(trained)]
    assert cli.main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert cli.main([*arguments, "--lr", "0.1", "--resume"]) == 2
    assert "lr was 0.001, now 0.1" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_eval_measures_what_train_measured(trained, capsys):
    assert cli.main(["eval", str(trained)]) == 0
    measured = json.loads((trained / "eval.json").read_text())
    card = json.loads((trained / "card.json").read_text())
    assert measured["metrics"] == card["metrics"]
    assert measured["command"] == f"paperwalk eval {trained}"
    assert measured["data"] == card["data"]
    assert cli.main(["eval", str(trained), "--limit", "5"]) == 0
    assert (
        8 * 5
        <= json.loads((trained / "eval.json").read_text())["metrics"]["loss"]["n"]
        < measured["metrics"]["loss"]["n"]
    )
    assert cli.main(["eval", str(trained), "--limit", "0"]) == 2
    assert "limit is 0, expected at least 1" in capsys.readouterr().err
    assert cli.main(["eval", str(trained), "--no-such"]) == 2
    assert "--no-such" in capsys.readouterr().err


def test_sample_writes_text(trained, capsys):
    assert cli.main(["sample", str(trained), "--prompt", "the w", "--tokens", "7"]) == 0
    assert len(capsys.readouterr().out.rstrip("\n")) >= 12
    assert cli.main(["sample", str(trained), "--prompt", "the", "--temperature", "0"]) == 2
    assert "temperature" in capsys.readouterr().err


def test_info_counts(trained, capsys):
    assert cli.main(["info", "gpt", "--preset", "gpt2"]) == 0
    assert "124,439,808" in capsys.readouterr().out
    assert cli.main(["info", "vit", "--preset", "base-16"]) == 0
    assert "86,567,656" in capsys.readouterr().out
    assert cli.main(["info", "transformer", "--preset", "base"]) == 0
    assert "63,082,496" in capsys.readouterr().out
    assert cli.main(["info", str(trained)]) == 0
    assert "8 tokens" in capsys.readouterr().out


def test_data_lists_and_verifies(capsys, tmp_path, monkeypatch):
    assert cli.main(["data", "fetch", "mnist-5k"]) == 0
    assert cli.main(["data", "verify", "mnist-5k"]) == 0
    assert "mnist-5k: intact" in capsys.readouterr().out
    monkeypatch.setenv("PAPERWALK_DATA", str(tmp_path))
    assert cli.main(["data", "list"]) == 0
    assert "not fetched" in capsys.readouterr().out
    assert cli.main(["data", "verify", "mnist-5k"]) == 2


def test_pairs_of_ones_own_are_trained_on_and_translated(tmp_path, capsys):
    lines = [f"{word}\t{word[::-1]}" for word in ("abc", "bca", "cab", "acb", "bac", "cba") for _ in range(1)]
    words = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"]
    lines += [f"{word}\t{word[::-1]}" for word in words]
    (tmp_path / "pairs.tsv").write_text("source\ttarget\n" + "\n".join(lines) + "\n")
    arguments = ["train", "transformer", *SMALL, "--steps", "3", "--batch-size", "64", "--precision", "fp32"]
    arguments += ["--data", str(tmp_path / "pairs.tsv"), "--output", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    assert "phoneme error rate, beam 4" in capsys.readouterr().out
    assert cli.main(["sample", str(tmp_path / "run"), "--source", "abc", "ca", "--beam", "2"]) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["abc", "ca"]


def test_a_folder_of_pictures_is_trained_on(picture_folder, tmp_path, capsys):
    arguments = ["train", "vit", *SMALL, "--steps", "60", "--batch-size", "4", "--precision", "fp32", "--lr", "0.01"]
    arguments += ["--model.image-size", "8", "--model.patch-size", "4", "--model.n-classes", "2", "--shift", "1"]
    arguments += ["--data", str(picture_folder), "--output", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    assert json.loads((tmp_path / "run" / "card.json").read_text())["metrics"]["accuracy"]["value"] == 1.0


def test_a_folder_of_pictures_is_known_by_names_and_sizes(picture_folder):
    before = folder_sha256(picture_folder)
    assert folder_sha256(picture_folder) == before
    extra = picture_folder / "train" / "dark" / "0.txt"
    extra.write_text("a")
    added = folder_sha256(picture_folder)
    extra.write_text("ab")
    assert len({before, added, folder_sha256(picture_folder)}) == 3


def test_a_picture_too_large_to_unpack_is_named(picture_folder, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"0\.png is not an image: Image size .* could be decompression bomb"):
        read_image(picture_folder / "train" / "dark" / "0.png", 8)


def test_info_counts_the_model_in_the_folder(text, tmp_path, capsys):
    arguments = [
        "train",
        "gpt",
        *SMALL,
        *QUICK,
        "--model.block-size",
        "8",
        "--unit",
        "byte-pairs",
        "--vocab-size",
        "270",
    ]
    assert cli.main([*arguments, "--data", text, "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert cli.main(["info", str(tmp_path / "run")]) == 0
    n = sum(p.numel() for p in GPT.from_pretrained(tmp_path / "run").parameters())
    assert f"parameters          {n:,}" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "empty", "not an image", "truncated", "other names", "other classes"])
def test_a_bad_folder_of_pictures_is_named(damage, picture_folder, tmp_path, capsys):
    said = {"missing": "no folder", "empty": "holds no images", "not an image": "is not an image"}
    said |= {"truncated": "is not an image", "other names": "train/ and val/ differ in the classes dark, grey"}
    train = picture_folder / "train"
    if damage == "missing":
        train.rename(picture_folder / "elsewhere")
    elif damage == "empty":
        for path in train.glob("*/*"):
            path.unlink()
    elif damage == "not an image":
        for path in train.glob("*/*"):
            path.write_text("text")
    elif damage == "truncated":
        for path in train.glob("*/*"):
            path.write_bytes(path.read_bytes()[:45])
    elif damage == "other names":
        (train / "dark").rename(train / "grey")
    arguments = ["train", "vit", *SMALL, *QUICK, "--model.image-size", "8", "--model.patch-size", "4"]
    classes = "3" if damage == "other classes" else "2"
    arguments += ["--model.n-classes", classes, "--data", str(picture_folder), "--output", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    assert said.get(damage, "model.n_classes is 3, expected 2") in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_is_named(picture_folder, tmp_path, capsys, monkeypatch):
    import os

    # Root may read everything: say for it what the system would say to others.
    monkeypatch.setattr(os, "access", lambda path, mode: bool(path.stat().st_mode & stat.S_IRUSR))
    (picture_folder / "train").chmod(0)
    try:
        assert cli.main(["train", "vit", "--data", str(picture_folder)]) == 2
        assert "may not be read" in capsys.readouterr().err
    finally:
        (picture_folder / "train").chmod(0o755)


def test_a_loss_that_is_not_finite_exits_with_one_line(text, tmp_path, capsys, monkeypatch):
    from paperwalk.gpt import GPT

    monkeypatch.setattr(GPT, "loss", lambda self, tokens: self(tokens[:, :-1]).sum() * torch.nan)
    arguments = ["train", "gpt", *SMALL, *QUICK, "--model.block-size", "8", "--data", text]
    assert cli.main([*arguments, "--output", str(tmp_path / "run")]) == 1
    assert "step 0: the loss is nan" in capsys.readouterr().err


def test_one_line_of_a_box():
    lines = [
        "╭─ Title ───────╮",
        "│ a message     │",
        "│ that goes on  │",
        "│ ───────────── │",
        "│ For help, see │",
        "╰───────────────╯",
    ]
    box = "\n".join(lines)
    assert cli.one_line(box) == "a message that goes on"
    ascii_box = box.translate(str.maketrans("╭╮╰╯│─", "++++|-"))
    assert cli.one_line(ascii_box) == "a message that goes on"


def test_eval_on_other_characters_is_refused(trained, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("THE WHITE WHALE AND THE OLD CAPTAIN, " * 40)
    assert cli.main(["eval", str(trained), "--data", str(tmp_path / "other.txt")]) == 2
    assert "are not those that the model in" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("content", ["{}", "[]", '{"recipe": []}', '{"recipe": {"paper": "gpt", "model": 3}}'])
def test_a_damaged_card_is_named(content, tmp_path, capsys):
    (tmp_path / "card.json").write_text(content)
    assert cli.main(["info", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_data_that_cannot_be_had_is_one_line(capsys, monkeypatch):
    from paperwalk.data import FetchError
    from paperwalk.train.recipes import images

    def offline(name):
        raise FetchError("no source of cifar10 answered")

    monkeypatch.setattr(images, "load", offline)
    images._read.cache_clear()
    assert cli.main(["train", "vit"]) == 1
    assert capsys.readouterr().err == "paperwalk: no source of cifar10 answered\n"
