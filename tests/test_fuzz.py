"""Damaged and malicious files: some hundred for each reader, and each kind of fault that `make fuzz` has found."""

import json
import os
import pickle
import random
import resource
import sys
import warnings
import zipfile

import pytest
import torch

import fuzz
import readers
from paperwalk import checkpoints
from paperwalk.data import archives, cache, captions, decode, emoji, folder, images, pairs
from paperwalk.data.sources import TEXT_KEYS, Recipe
from paperwalk.files import parse_json
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.tokenizers import BytePairTokenizer, CharTokenizer
from paperwalk.train import runs, state
from paperwalk.transformer import Transformer, TransformerConfig
from paperwalk.unet import UNet, UNetConfig

# A few for what loads a model, many for what is quick.
QUOTA = {3: 12, 4: 12, 10: 30, 15: 40}
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    limits = archives.MEMBER_LIMIT, archives.ARCHIVE_LIMIT
    before = os.environ.get("PAPERWALK_DATA")
    yield readers.readers(tmp_path_factory.mktemp("readers"))
    archives.MEMBER_LIMIT, archives.ARCHIVE_LIMIT = limits
    os.environ.pop("PAPERWALK_DATA")
    if before is not None:
        os.environ["PAPERWALK_DATA"] = before


@pytest.mark.usefixtures("unchecked")
def test_no_reader_breaks_the_rule(known):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, reader in known.items():
            for seed in reader.seeds:
                data = reader.wraps(seed) if reader.wraps else seed
                assert fuzz.broken(reader.read, data, []) is None, name
            for number in range(QUOTA.get(reader.share, 100)):
                found = fuzz.broken(reader.read, fuzz.made(name, reader, 1, number), [])
                assert found is None, f"{name}, input {number}: {found}"


def test_inputs_depend_on_seed_reader_and_number_alone(known):
    reader = known["encoder.json"]
    inputs = [fuzz.made("a", reader, 0, i) for i in range(20)]
    assert inputs == [fuzz.made("a", reader, 0, i) for i in range(20)]
    assert inputs != [fuzz.made("a", reader, 1, i) for i in range(20)]
    assert len(set(inputs)) > 15


@pytest.mark.parametrize("change", fuzz.CHANGES)
def test_every_change_takes_any_file(change):
    for seed in (b"", b"a", b'{"a": 17}' * 9):
        for i in range(30):
            change(random.Random(i), bytearray(seed), seed)


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (lambda _: bytearray(1 << 60), "MemoryError"),
        (lambda _: sys.audit("os.system", "true"), "it started os.system"),
        (lambda _: os.kill(os.getpid(), 9), "the process died"),
    ],
)
def test_a_reader_that_breaks_the_rule_is_found(read, what):
    limit = resource.getrlimit(resource.RLIMIT_AS)
    found = fuzz.feed("broken", fuzz.Reader([b"x"], read), 0, range(3))
    assert len(found) == 3
    assert all(each.what.startswith(what) for each in found)
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


def test_one_that_never_ends_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)

    def forever(_: bytes) -> None:
        while True:
            pass

    (found,) = fuzz.feed("slow", fuzz.Reader([b"x"], forever), 0, range(1))
    assert found.what.startswith("Late: more than 0.2 s")


# What was found, by reading the code or by feeding it


@pytest.mark.parametrize(
    "read",
    [
        lambda f: parse_json(DEEP, "it"),
        lambda f: images.read_label_list(DEEP),
        lambda f: emoji._entries(DEEP, "it"),
        lambda f: BytePairTokenizer.parse(DEEP.decode(), ""),
        lambda f: CharTokenizer.load(f),
        lambda f: pairs.PairTokenizer.load(f),
        lambda f: pairs.read_pairs(f / "a.jsonl"),
        lambda f: runs.read_json(f / "run.json"),
        lambda f: checkpoints.read(f),
    ],
)
def test_json_nested_too_deeply_is_refused(read, tmp_path):
    for name in ("characters.json", "tokenizer.json", "a.jsonl", "run.json", "config.json"):
        (tmp_path / name).write_bytes(DEEP)
    with pytest.raises(ValueError, match=r"nested too deeply|recursion"):
        read(tmp_path)


def test_a_state_of_nested_json_or_of_another_kind_is_passed_over(tmp_path):
    for i, content in enumerate([DEEP, b'{"step": "3", "sha256": "", "values": {}}'], start=1):
        (tmp_path / f"step-0000000{i}").mkdir()
        (tmp_path / f"step-0000000{i}" / "state.json").write_bytes(content)
        (tmp_path / f"step-0000000{i}" / "state.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        assert state.newest_state(tmp_path) is None


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path):
    for content in (
        torch.zeros(1).expand(1 << 40),
        torch.eye(3).to_sparse(),
        torch.zeros(3).to(torch.float8_e4m3fn),
    ):
        torch.save({"a": content}, tmp_path / "a.pth")
        with pytest.raises(
            ValueError, match=r"tensor a is .*, expected numbers, no more than the file's \d+ bytes hold"
        ):
            checkpoints.read(tmp_path / "a.pth")


def test_a_torch_file_may_not_unpack_to_more_than_it_is(tmp_path):
    (tmp_path / "a.pth").write_bytes(readers._bomb())
    with pytest.raises(ValueError, match="compressed, expected them as they are"):
        checkpoints.read(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False])
def test_a_torch_file_may_not_ask_for_bytes(new, tmp_path):
    torch.save({"a": readers.Planted(bytearray, 1 << 40)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match="it makes a bytearray, expected tensors of numbers"):
        checkpoints.read(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False])
def test_a_torch_file_may_not_hold_a_word_without_end(new, tmp_path):
    # A name to import, and a word that is called: torch's message about either takes minutes to search.
    for word in (b"c" + 100_000 * b"a" + b"\nb\n.", b"X" + (100_000).to_bytes(4, "little") + 100_000 * b"a" + b")R."):
        torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        content = (tmp_path / "a.pth").read_bytes()
        if new:
            (tmp_path / "a.pth").unlink()
            with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
                file.writestr("a/data.pkl", b"\x80\x02" + word)
                file.writestr("a/version", "3")
        else:
            (tmp_path / "a.pth").write_bytes(content.replace(b"}q\x00(", word, 1))
        with pytest.raises(ValueError, match=r"it holds a word of 10000\d letters, expected at most 1000"):
            checkpoints.read(tmp_path / "a.pth")


def test_a_tensor_without_numbers_is_refused(tmp_path):
    torch.save({"a": torch.zeros(3, device="meta")}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="it makes a meta tensor, expected tensors of numbers"):
        checkpoints.read(tmp_path / "a.pth")


def test_planted_code_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    planted = readers.Planted(os.mkdir, str(marker))
    pickle.loads(pickle.dumps(planted))
    marker.rmdir()
    for content in (pickle.dumps(planted), pickle.dumps({"a": planted})):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"not a file of plain tensors|damaged"):
            checkpoints.read(tmp_path / "a.pth")
    assert not marker.exists()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 1 << 40}, "describes no model|does not fit"),
        ({"d_mlp": 1 << 28}, "does not fit"),
        ({"vocab_size": 1 << 33}, "does not fit"),
        ({"n_layers": 1 << 40}, "n_layers=.*, expected at most"),
        ({"block_size": 1 << 40}, "tables of|describes no model"),
        ({"n_heads": [1]}, "expected an int"),
    ],
)
def test_sizes_that_the_weights_do_not_have_take_no_memory(changes, message, tmp_path):
    config = TransformerConfig(vocab_size=9, d_model=8, n_layers=1, n_heads=2, d_mlp=8, block_size=5)
    Transformer(config).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "changes", [{"block_out_channels": 3}, {"block_out_channels": [0]}, {"down_block_types": [{}]}, {"norm_eps": "a"}]
)
def test_published_sizes_of_a_strange_kind_are_refused(changes, tmp_path):
    unet = UNetConfig(image_size=4, in_channels=1, d_model=4, multipliers=(1,), attention_sizes=(), n_groups=2)
    UNet(unet).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(readers.PUBLISHED["U-Net"] | changes))
    with pytest.raises(ValueError, match=r"describes no model|expected"):
        UNet.from_pretrained(tmp_path)


def test_a_model_is_built_without_its_draws_first():
    # torch takes seconds to load what it needs to draw numbers that are not there.
    model = GPT(GPTConfig(vocab_size=9, d_model=8, n_layers=1, n_heads=2, d_mlp=8, block_size=5))
    built = checkpoints.build(GPT, model.config, model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), built.parameters(), strict=True))
    with torch.device("meta"), checkpoints._Shapes():
        drawn = torch.randn(2, 3), torch.nn.init.normal_(torch.empty(2)), torch.empty(4).uniform_()
    assert [tuple(each.shape) for each in drawn] == [(2, 3), (2,), (4,)]


@pytest.mark.parametrize(
    "pax", [{"size": "-512"}, {"size": "-1024"}, {"comment": "x" * (1 << 15)}, {"GNU.sparse.map": "0"}]
)
def test_an_archive_that_leads_back_or_says_too_much_is_refused(pax, tmp_path):
    (tmp_path / "a.tgz").write_bytes(readers.zipped(readers.tarball({"a": b"first"}, pax)))
    with pytest.raises(ValueError, match=r"a\.tgz: "):
        archives.read_members(tmp_path / "a.tgz", ["b"])


def test_an_archive_may_not_be_endless(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVE_LIMIT", 1 << 16)
    (tmp_path / "a.tgz").write_bytes(readers.zipped(readers.tarball({"a": bytes(1 << 17), "b": b""})))
    with pytest.raises(ValueError, match=r"byte \d+, expected at most 65536"):
        archives.read_members(tmp_path / "a.tgz", ["b"])


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "GIF"])
def test_a_picture_that_is_another_kind_than_it_may_be_is_not_opened(kind, tmp_path):
    # Pillow reads EPS by starting Ghostscript.
    (tmp_path / "a.jpg").write_bytes(readers.picture(kind, (4, 4)))
    with pytest.raises(ValueError, match=r"a\.jpg is not an image"):
        folder.read_image(tmp_path / "a.jpg", 4)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "PIXEL_LIMIT", 99)
    (tmp_path / "a.png").write_bytes(readers.picture("PNG", (10, 10)))
    with pytest.raises(ValueError, match="10 x 10 pixels, expected at most 99"):
        folder.read_image(tmp_path / "a.png", 4)


@pytest.mark.parametrize("content", [{"data": [5] * 7000}, {"data": 5}, {"data": [[0.5] * 784] * 7000}])
def test_clothes_of_a_strange_kind_are_refused(content):
    with pytest.raises(ValueError, match="expected"):
        images._clothes(content, "class 0")


def test_a_table_of_emoji_without_its_fields_is_refused(known):
    for table in (b'[{"unified": 5}]', b'[{"hexcode": 5}]', b'{"subgroups": 5}', b"{}"):
        with pytest.raises(ValueError, match=r"other tables|no name|objects"):
            known["tables of emoji"].read(table)


def test_the_name_of_a_picture_may_be_too_long(tmp_path):
    (tmp_path / "a.tsv").write_text("a" * 5000 + "\tcaption\n")
    with pytest.raises(ValueError, match=r"line 1: no file 'aaa.*File name too long"):
        captions.read_captioned(tmp_path / "a.tsv")


@pytest.mark.parametrize("symbols", ['["<pad>", "<start>", "<end>", 5]', "5", "[[]]"])
def test_symbols_that_are_no_strings_are_refused(symbols, tmp_path):
    text = f'{{"symbols": {symbols}, "source_unit": "words", "target_unit": "words"}}'
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        pairs.PairTokenizer.load(tmp_path)


def test_a_recipe_with_values_of_a_strange_kind_is_refused():
    for values in ({"paper": "transformer", "epochs": "a"}, {"paper": [], "epochs": 1}, {"paper": "vit", "model": 5}):
        with pytest.raises(ValueError, match=r"strange kind|expected|unknown"):
            runs.from_json(values)


def test_a_cache_file_of_a_type_without_numpy_is_damaged(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setenv("PAPERWALK_DATA", str(tmp_path))
    save_file({"text": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is damaged"):
        cache.read_cache("a", Recipe((), "0", (), TEXT_KEYS))
