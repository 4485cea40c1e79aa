"""CLIP under the command line: trained on the emoji or on pictures of one's own, measured, asked."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from paperwalk.clip import CLIP
from paperwalk.mae import MAE, MAEConfig
from paperwalk.metrics import bootstrap_interval
from paperwalk.tokenizers import ClipTokenizer
from paperwalk.train import cli, runs
from paperwalk.train.engine import Options
from paperwalk.train.recipes import clip as recipes
from paperwalk.train.recipes.clip import CLIPRecipe, Sampling
from paperwalk.train.state import newest_state
from paperwalk.zero_shot import encode_images, encode_texts

TINY = replace(
    CLIPRecipe.PRESETS["small"],
    d_image=16,
    n_image_layers=1,
    n_image_heads=2,
    d_image_mlp=16,
    d_text=16,
    n_text_layers=1,
    n_text_heads=2,
    d_text_mlp=16,
    vocab_size=600,
    d_embed=8,
    dropout=0.0,
)
RECIPE = CLIPRecipe(model=TINY, steps=3, batch_size=8)
SIZES = [
    f"--model.{name.replace('_', '-')}={getattr(TINY, name)}"
    for name in (
        *("d_image", "n_image_layers", "n_image_heads", "d_image_mlp", "d_text", "n_text_layers", "n_text_heads"),
        *("d_text_mlp", "vocab_size", "d_embed", "dropout"),
    )
]


@pytest.fixture(scope="module")
def examples():
    return RECIPE.examples()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CLIP(TINY)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """120 pictures and captions."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("own")
    for i in range(120):
        Image.new("RGB", (9, 9), (2 * i, 255 - 2 * i, 90)).save(folder / f"{i}.png")
    (folder / "pairs.tsv").write_text("".join(f"{i}.png\ta shade of green, number {i}\n" for i in range(120)))
    return folder / "pairs.tsv"


# Batches


def test_a_batch_follows_from_its_number(examples):
    images, tokens, chosen = RECIPE.batch(*examples, 7)
    again = RECIPE.batch(*examples, 7)
    assert torch.equal(images, again[0])
    assert torch.equal(tokens, again[1])
    assert chosen == again[2]
    assert chosen != RECIPE.batch(*examples, 8)[2]
    assert chosen != replace(RECIPE, seed=1).batch(*examples, 7)[2]
    eot = examples[1].eot_id
    assert (tokens == eot).any(dim=1).all()
    assert (tokens[:, -1] == eot).any()


def test_no_two_of_a_batch_are_of_one_group(examples):
    group_of = {i: g for g, group in enumerate(examples[0].groups) for i in group}
    for step in range(5):
        _, _, chosen = replace(RECIPE, batch_size=1000).batch(*examples, step)
        assert len({group_of[i] for i in chosen}) == 1000


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_make_up_the_batch(parts, examples):
    images, tokens, chosen = RECIPE.batch(*examples, 3)
    found = [RECIPE.batch(*examples, 3, part, parts) for part in range(parts)]
    assert torch.equal(torch.cat([each[0] for each in found]), images)
    assert [i for each in found for i in each[2]] == chosen
    for each, rows in zip(found, tokens.split(8 // parts), strict=True):
        n = each[1].shape[1]
        assert torch.equal(each[1], rows[:, :n])
        assert not rows[:, n:].any()


def test_parts_of_different_sizes_are_refused(examples):
    with pytest.raises(ValueError, match="batch_size is 8, expected a multiple of 3, the number of processes"):
        RECIPE.batch(*examples, 0, 0, 3)


def test_one_artist_alone_is_drawn(examples):
    data, tokenizer = examples
    blank = [(google, torch.zeros_like(google)) for google, _ in data.pictures]
    recipe = replace(RECIPE, artist="google")
    seen = recipe.task().batch(0, 0, 1)[0]
    expected = recipe.batch(data._replace(pictures=blank).only("google"), tokenizer, 0)[0]
    assert torch.equal(seen, expected)
    assert not torch.equal(RECIPE.task().batch(0, 0, 1)[0], expected)


def test_what_the_recipe_keeps_is_in_the_captions(examples):
    _, tokens, chosen = replace(RECIPE, keywords=0.0).batch(*examples, 0)
    for row, i in zip(tokens, chosen, strict=True):
        assert torch.equal(row, examples[1]([examples[0].phrases[i][0]], 32)[0, : len(row)])


# The optimiser


def test_the_optimiser_is_the_papers(model):
    groups = RECIPE.adamw(model).param_groups
    assert [(g["weight_decay"], g["betas"], g["eps"]) for g in groups] == [(w, (0.9, 0.98), 1e-6) for w in (0.2, 0.0)]
    for undecayed in (model.log_scale, model.image.class_token, model.text.norm.weight):
        assert any(p is undecayed for p in groups[1]["params"])


# Another model's encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    sizes = {"image_size": 32, "patch_size": 4, "d_model": 16, "n_layers": 1, "n_heads": 2, "d_mlp": 16}
    small = {"decoder_d_model": 8, "decoder_n_layers": 1, "decoder_n_heads": 2, "decoder_d_mlp": 8}
    torch.manual_seed(1)
    mae = MAE(MAEConfig(**sizes, **small))
    with torch.no_grad():
        mae.patch_embedding.proj.bias.normal_()
    folder = tmp_path_factory.mktemp("mae")
    mae.save_pretrained(folder)
    return folder


def test_the_image_tower_begins_with_the_encoder(encoder):
    recipe = replace(RECIPE, start=str(encoder), model=replace(TINY, norm_eps=1e-6))
    mae = MAE.from_pretrained(encoder)
    assert set(recipe.start_sha256()) == {str(encoder)}
    assert RECIPE.start_sha256() == {}
    torch.manual_seed(0)
    tower = recipe.task().model.image
    torch.manual_seed(0)
    fresh = RECIPE.task().model.image
    assert torch.equal(tower.projection.weight, fresh.projection.weight)
    # Without the norm that the tower has before its blocks, and with their activation, it is the encoder.
    tower.norm_pre = nn.Identity()
    for block in (*tower.blocks, *mae.blocks):
        block.mlp.activation = F.gelu
    images = torch.randn(2, 3, 32, 32)
    order = torch.arange(64.0).expand(2, -1)
    expected, _ = mae.encode(images, mask_ratio=0.0, noise=order)
    assert_close(tower.encode(images), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(tower.encode(images), fresh.encode(images), atol=0.1)


def test_an_encoder_of_other_sizes_is_refused(encoder):
    wrong = replace(RECIPE, start=str(encoder), model=replace(TINY, n_image_layers=2))
    with pytest.raises(ValueError, match=r"model.n_image_layers is 2, expected 1: that of the encoder"):
        wrong.task()
    with pytest.raises(FileNotFoundError):
        replace(RECIPE, start="nowhere").task()


# The figures


def test_recall_is_counted_by_hand(model, examples):
    data, tokenizer = examples
    metrics = RECIPE.evaluate(model)
    assert list(metrics) == [
        f"recall at 5, {artist}, {direction}"
        for artist in ("google", "twitter")
        for direction in ("image to text", "text to image")
    ]
    pictures, captions = recipes.held_out_features(model, data, tokenizer)
    cosines = pictures[1] @ captions.T
    hits = [int(i in row.argsort(descending=True)[:5]) for i, row in enumerate(cosines.T)]
    said = metrics["recall at 5, twitter, text to image"]
    assert said["value"] == pytest.approx(sum(hits) / 200)
    assert said["interval"] == pytest.approx(bootstrap_interval(hits), abs=1e-5)
    assert said["n"] == 200


def test_a_limit_asks_fewer_among_all(model, examples):
    pictures, captions = recipes.held_out_features(model, *examples)
    cosines = pictures[0] @ captions.T
    found = RECIPE.evaluate(model, 40)["recall at 5, google, image to text"]
    hits = [int(i in cosines[i].argsort(descending=True)[:5]) for i in range(0, 200, 5)]
    assert found["n"] == 40
    assert found["value"] == pytest.approx(sum(hits) / 40)
    with pytest.raises(ValueError, match="limit is 0, expected at least 1"):
        RECIPE.evaluate(model, 0)


def test_features_are_means_over_views_and_orders(model, examples, monkeypatch):
    data, tokenizer = examples
    subjects = data.held_out[:6]
    phrases = [data.phrases[i] for i in subjects]
    for make in (
        lambda: recipes.picture_features(model, data, 0, subjects),
        lambda: recipes.caption_features(model, tokenizer, phrases),
    ):
        assert_close(make().norm(dim=1), torch.ones(6))
        assert torch.equal(make(), make())
    monkeypatch.setattr(recipes, "VIEWS", 0)
    plain = recipes.on_white(torch.stack([data.pictures[i][0] for i in subjects]))
    assert_close(recipes.picture_features(model, data, 0, subjects), encode_images(model, plain))
    texts = [", ".join(each) for each in phrases]
    assert_close(recipes.caption_features(model, tokenizer, phrases), encode_texts(model, tokenizer, texts))


# The command line


def test_a_file_of_ones_own_is_trained_on_measured_and_asked(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recipes, "VIEWS", 1)
    folder = tmp_path / "run"
    command = ["train", "clip", *SIZES, "--data", str(own), "--steps", "2", "--batch-size", "6"]
    assert cli.main([*command, "--output", str(folder)]) == 0
    card = json.loads((folder / "card.json").read_text())
    assert list(card["metrics"]) == [f"recall at 5, pictures, {way}" for way in ("image to text", "text to image")]
    assert card["metrics"]["recall at 5, pictures, image to text"]["n"] == 12
    assert ClipTokenizer.load(folder).vocab_size == CLIP.from_pretrained(folder).config.vocab_size
    assert cli.main(["eval", str(folder), "--limit", "6"]) == 0
    capsys.readouterr()
    assert cli.main(["sample", str(folder), "--captions", "green", "a shade", "--n", "3"]) == 0
    first, second = capsys.readouterr().out.strip().split("\n")
    assert first.startswith("green\ta shade of green, number ")
    assert first.count("(pictures)") == second.count("(pictures)") == 3
    picture = str(own.parent / "5.png")
    assert cli.main(["sample", str(folder), "--captions", "green", "red", "--picture", picture]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.strip().split("\n")]
    assert {caption for _, caption in lines} == {"green", "red"}
    assert sum(float(share) for share, _ in lines) == pytest.approx(1, abs=0.002)
    other = own.with_name("other.tsv")
    other.write_text("".join(f"{i}.png\tan old ship, number {i}\n" for i in range(120)))
    assert cli.main(["eval", str(folder), "--data", str(other)]) == 2
    assert "are not those that the model in" in capsys.readouterr().err


def test_two_processes_give_the_same_curve_as_one(own, tmp_path):
    command = ["paperwalk", "train", "clip", *SIZES, "--data", str(own), "--steps", "6", "--batch-size", "12"]
    command += ["--precision", "fp32", "--clip", "100", "--output", str(tmp_path / "run"), "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert cli.main(command[1:]) == 0
    alone = newest_state(tmp_path / "run" / "states").tensors
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = newest_state(tmp_path / "run" / "states").tensors
    assert shared["losses"].tolist() == pytest.approx(alone["losses"].tolist(), rel=1e-5)
    assert [len(each["random.cpu"]) for each in (alone, shared)] == [1, 2]
    assert alone["losses"][-1] < alone["losses"][0]


def test_a_batch_is_not_cut_in_one_process(own, tmp_path):
    with pytest.raises(ValueError, match="accumulate is 2, expected 1"):
        runs.train_only(replace(RECIPE, data=str(own)), Options(output=tmp_path / "run", accumulate=2))


def test_asked_for_emoji_it_names_them(model, examples, tmp_path):
    examples[1].save(tmp_path)
    said = RECIPE.sample(model, tmp_path, Sampling(captions=("cat", "a red heart"), n=2))
    names = {f"{examples[0].phrases[i][0]} ({artist})" for i in examples[0].held_out for artist in examples[0].artists}
    for line, caption in zip(said.split("\n"), ("cat", "a red heart"), strict=True):
        asked, found = line.split("\t")
        assert asked == caption
        assert all(each.rsplit(" ", 1)[0] in names for each in found.split(", ") if "(" in each)


def test_info_counts_both_towers(capsys):
    assert cli.main(["info", "clip", "--recipe", "paper"]) == 0
    said = capsys.readouterr().out
    assert "151,277,313" in said
    assert "an image of 224 x 224 pixels and a text of 77 tokens" in said
    assert "batch_size 32768" in said


def test_the_papers_recipe_is_table_18():
    recipe = CLIPRecipe.named()["paper"]
    assert (recipe.batch_size, recipe.epochs, recipe.lr, recipe.weight_decay) == (32_768, 32, 5e-4, 0.2)
    assert recipe.warmup * recipe.epochs * 400e6 / recipe.batch_size == pytest.approx(2_000)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--data emojis", "unknown data 'emojis', expected emoji, or a file of pictures and captions"),
        ("--keywords 1.5", "keywords is 1.5, expected 0 to 1"),
        ("--model.image-size 64", "model.image_size is 64, expected 32: that of the emoji"),
        ("--artist picasso", "invalid choice 'picasso'"),
        ("--batch-size 5000", "batch_size is 5000, expected at most 1218"),
        ("--vocabulary mine", "invalid choice 'mine'"),
        ("--model.vocab-size 500", "vocab_size=500, expected at least 514"),
    ],
)
def test_what_is_typed_wrong_is_said_in_one_line(typed, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "clip", *typed.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_file_names_no_artists(own, capsys, tmp_path):
    command = ["train", "clip", "--data", str(own), "--artist", "google", "--output", str(tmp_path / "run")]
    assert cli.main(command) == 2
    assert "artist is 'google', expected 'all'" in capsys.readouterr().err
