import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from paperwalk import checkpoints
from paperwalk.nn import resize_positions
from paperwalk.published.vit import TORCHVISION, TRANSFORMERS, from_torchvision, from_transformers, our_names
from paperwalk.vit import ViT, ViTConfig

SMALL = ViTConfig(image_size=8, patch_size=4, in_channels=3, n_classes=5, d_model=12, n_layers=2, n_heads=3, d_mlp=20)


def images(side: int = 8) -> Tensor:
    return torch.randn(2, 3, side, side)


def transformers_vit(class_name: str = "ViTForImageClassification", **changes) -> nn.Module:
    import transformers

    sizes = {
        "image_size": 8,
        "patch_size": 4,
        "num_labels": 5,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "layer_norm_eps": 0.01,
    }
    return getattr(transformers, class_name)(transformers.ViTConfig(**sizes | changes)).eval()


def torchvision_vit(d_model: int = 12, n_heads: int = 3, **changes) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(8, 4, 2, n_heads, d_model, 20, num_classes=5, **changes).eval()


@pytest.fixture
def ours(tmp_path, randomise) -> Path:
    randomise(ViT(SMALL)).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def transformers_folder(tmp_path, randomise) -> Path:
    randomise(transformers_vit()).save_pretrained(tmp_path / "transformers")
    return tmp_path / "transformers"


@pytest.fixture
def torchvision_file(tmp_path, randomise) -> Path:
    torch.save(randomise(torchvision_vit()).state_dict(), tmp_path / "torchvision.pth")
    return tmp_path / "torchvision.pth"


def edit_json(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pool": "mean", "positions": "learned_2d"},
        {"positions": "sincos_2d", "d_pre_logits": 7, "dropout": 0.1},
        {"positions": "none", "n_classes": 0, "norm_eps": 1e-3},
    ],
)
def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path, changes, randomise):
    model = randomise(ViT(replace(SMALL, **changes)))
    model.save_pretrained(tmp_path / "a" / "b")
    loaded = ViT.from_pretrained(tmp_path / "a" / "b")
    assert loaded.config == model.config
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    x = images()
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["config.json", "model.safetensors"]


def test_weights_file_of_ours_needs_the_sizes(ours):
    x = images()
    assert torch.equal(ViT.from_pretrained(ours / "model.safetensors", config=SMALL)(x), ViT.from_pretrained(ours)(x))
    with pytest.raises(ValueError, match="expected conv_proj"):
        ViT.from_pretrained(str(ours / "model.safetensors"))


def test_interrupted_write_leaves_the_old_files(ours, monkeypatch):
    before = {path.name: path.read_bytes() for path in ours.iterdir()}
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ViT(replace(SMALL, n_classes=3)).save_pretrained(ours)
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == before


def test_transformers_classifier(transformers_folder):
    theirs, x = transformers_vit().from_pretrained(transformers_folder), images()
    model = ViT.from_pretrained(transformers_folder)
    assert_close(model(x), theirs(x).logits, rtol=1e-5, atol=1e-5)
    assert model.config == replace(SMALL, norm_eps=0.01)


def test_transformers_model_with_pooler(tmp_path, randomise):
    theirs, x = randomise(transformers_vit("ViTModel", pooler_output_size=7)), images()
    theirs.save_pretrained(tmp_path)
    model = ViT.from_pretrained(tmp_path)
    assert (model.config.n_classes, model.config.d_pre_logits) == (0, 7)
    assert_close(model(x), theirs(x).pooler_output, rtol=1e-5, atol=1e-5)
    assert_close(model.encode(x), theirs(x).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_transformers_bin_with_either_spelling(transformers_folder):
    expected, x = ViT.from_pretrained(transformers_folder), images()
    in_memory = transformers_vit().from_pretrained(transformers_folder).state_dict()
    on_disk = load_file(transformers_folder / "model.safetensors")
    assert set(in_memory) != set(on_disk)
    (transformers_folder / "model.safetensors").unlink()
    for tensors in (in_memory, on_disk):
        torch.save(tensors, transformers_folder / "pytorch_model.bin")
        assert torch.equal(ViT.from_pretrained(transformers_folder)(x), expected(x))


@pytest.mark.parametrize("d_model", [12, 192])
@pytest.mark.parametrize("changes", [{}, {"representation_size": 9}])
def test_torchvision_file(tmp_path, d_model, changes, randomise):
    theirs, x = randomise(torchvision_vit(d_model, 3, **changes), 0.05), images()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    config = replace(SMALL, d_model=d_model, d_pre_logits=changes.get("representation_size"))
    model = ViT.from_pretrained(tmp_path / "vit.pth", config=None if d_model == 192 else config)
    assert model.config == config
    assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_torchvision_file_with_the_old_spelling(tmp_path, torchvision_file):
    old = {r"mlp\.0": "mlp.linear_1", r"mlp\.3": "mlp.linear_2"}
    tensors = torch.load(torchvision_file)
    for new_name, old_name in old.items():
        tensors = {re.sub(new_name, old_name, name): tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "old.pth")
    x, expected = images(), ViT.from_pretrained(torchvision_file, config=SMALL)
    assert torch.equal(ViT.from_pretrained(tmp_path / "old.pth", config=SMALL)(x), expected(x))


def test_torchvision_width_does_not_always_tell_the_heads(torchvision_file):
    with pytest.raises(ValueError, match=r"d_model=12 does not tell.*\[192, 384, 768, 1024, 1280\]"):
        ViT.from_pretrained(torchvision_file)


@pytest.mark.parametrize("side", [4, 12, 20])
def test_other_image_size_equals_transformers(transformers_folder, side):
    theirs, x = transformers_vit().from_pretrained(transformers_folder), images(side)
    model, before = (ViT.from_pretrained(transformers_folder, image_size=size) for size in (side, None))
    assert model.config == replace(before.config, image_size=side)
    assert_close(model(x), theirs(x, interpolate_pos_encoding=True).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.positions.weight[0], before.positions.weight[0])


def test_other_image_size_needs_resizable_positions(tmp_path):
    for positions in ("sincos_2d", "none", "learned_2d"):
        ViT(replace(SMALL, positions=positions)).save_pretrained(tmp_path / positions)
    for positions in ("sincos_2d", "none"):
        assert ViT.from_pretrained(tmp_path / positions, image_size=12)(images(12)).shape == (2, 5)
    with pytest.raises(ValueError, match=r"positions.rows has shape \(2, 6\), expected \(3, 6\)"):
        ViT.from_pretrained(tmp_path / "learned_2d", image_size=12)
    with pytest.raises(ValueError, match="image_size=9 is not a multiple"):
        ViT.from_pretrained(tmp_path / "none", image_size=9)


def test_half_precision_weights_become_float(transformers_folder):
    path = transformers_folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    model, before = (ViT.from_pretrained(transformers_folder, image_size=size) for size in (12, None))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.positions.weight, resize_positions(before.positions.weight, (2, 2), (3, 3)))


def loader(kind: str, request: pytest.FixtureRequest) -> tuple[dict[str, Tensor], dict[str, str], Callable]:
    if kind == "torchvision":
        path = request.getfixturevalue("torchvision_file")
        return torch.load(path), TORCHVISION, lambda t: (torch.save(t, path), ViT.from_pretrained(path, config=SMALL))
    folder = request.getfixturevalue({"transformers": "transformers_folder"}.get(kind, kind))
    path = folder / "model.safetensors"
    table = TRANSFORMERS if kind == "transformers" else {}
    return load_file(path), table, lambda t: (save_file(t, path), ViT.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["ours", "transformers", "torchvision"])
def test_every_tensor_is_accounted_for(kind, request):
    tensors, table, load = loader(kind, request)
    for name, tensor in tensors.items():
        (own,) = our_names({name: tensor}, table)
        own = re.escape(re.sub(r"\.[qkv]\.", ".in_proj.", own).rpartition(".")[0] or own)
        rest = {other: t for other, t in tensors.items() if other != name}
        reshaped = [tensor[:-1].clone(), tensor[None].clone(), tensor.flatten()[:1].clone(), tensor.sum()]
        if tensor.ndim > 1 and tensor.shape[0] != tensor.shape[-1]:
            reshaped.append(tensor.transpose(0, -1).contiguous())
        if tensor.ndim > 2:
            reshaped.append(tensor.transpose(1, -1).contiguous())
        for broken in (rest, rest | {f"{name}2": tensor}, *(rest | {name: changed} for changed in reshaped)):
            with pytest.raises(ValueError, match=f"does not fit ViT(?s:.)*{own}"):
                load(broken)
        with pytest.raises(ValueError, match=f"left over {re.escape(name)}.extra"):
            load(tensors | {f"{name}.extra": tensor.clone()})
    load(tensors)


def test_damaged_torchvision_file_is_refused_when_sizes_are_read_off_it(tmp_path):
    path, tensors = tmp_path / "vit.pth", torchvision_vit(192).state_dict()
    for name, tensor in tensors.items():
        rest = {other: t for other, t in tensors.items() if other != name}
        changed = [tensor[:-1], tensor[None], tensor.sum()]
        for broken in (rest, *(rest | {name: part} for part in changed)):
            torch.save(broken, path)
            for image_size in (None, 12):
                with pytest.raises(ValueError, match=r"fit|torchvision|heads|image_size|patch_size"):
                    ViT.from_pretrained(path, image_size=image_size)


def test_shapes_that_make_up_for_each_other_are_refused(transformers_folder):
    path = transformers_folder / "model.safetensors"
    tensors = load_file(path)
    query, key = (f"vit.encoder.layer.0.attention.attention.{part}.weight" for part in ("query", "key"))
    changed = {query: tensors[query][:-1].clone(), key: torch.cat([tensors[key], tensors[key][:1]])}
    save_file(tensors | changed, path)
    with pytest.raises(ValueError, match=r"missing blocks\.0\.attention\.in_proj\.weight \(36, 12\)"):
        ViT.from_pretrained(transformers_folder)


def test_one_tensor_under_two_names_is_refused(transformers_folder):
    path = transformers_folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"embeddings.cls_token": torch.zeros(1, 1, 12)}, path)
    with pytest.raises(ValueError, match="two tensors of the checkpoint are class_token"):
        ViT.from_pretrained(transformers_folder)


def test_many_problems_are_counted(ours):
    edit_json(ours, d_model=15)
    with pytest.raises(ValueError, match="… and 19 more"):
        ViT.from_pretrained(ours)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("ours", {"paperwalk": "GPT"}, "holds a 'GPT', expected 'ViT'"),
        ("ours", {"colour": 1}, r"unknown fields \['colour'\]"),
        ("ours", {"d_mlp": ...}, r"missing fields \['d_mlp'\]"),
        ("ours", {"d_mlp": None}, "d_mlp=None"),
        ("ours", {"n_heads": 5}, "not a multiple of n_heads=5"),
        ("transformers_folder", {"model_type": "bert"}, "model_type='bert', expected 'vit'"),
        ("transformers_folder", {"hidden_act": "relu"}, "hidden_act='relu', expected 'gelu'"),
        ("transformers_folder", {"qkv_bias": False}, "qkv_bias=False, expected True"),
        ("transformers_folder", {"hidden_size": ..., "image_size": ...}, "lacks image_size, hidden_size"),
        ("transformers_folder", {"patch_size": [4, 4]}, r"patch_size=\[4, 4\], expected an int"),
    ],
)
def test_config_that_does_not_fit_is_named(kind, changes, message, request):
    folder = request.getfixturevalue(kind)
    edit_json(folder, **changes)
    with pytest.raises(ValueError, match=message):
        ViT.from_pretrained(folder)


def test_pooler_without_tanh_is_refused(tmp_path):
    transformers_vit("ViTModel", pooler_act="relu").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pooler_act='relu', expected 'tanh'"):
        ViT.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", [b"", b'{"paperwalk": "ViT",', b"[1, 2]", b"\xff\xfe\x00", b"null"])
def test_broken_config_is_named(ours, text):
    (ours / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json (is not JSON|holds a)"):
        ViT.from_pretrained(ours)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["ours", "transformers", "torchvision"])
def test_weights_that_are_not_finite_are_named(kind, bad, request):
    tensors, _, load = loader(kind, request)
    name = list(tensors)[len(tensors) // 2]
    tensors[name].view(-1)[-1] = bad
    with pytest.raises(ValueError, match=f"tensor {re.escape(name)} holds NaN or infinity"):
        load(tensors)


def write_zip(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path)


def write_legacy(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [save_file, write_zip, write_legacy])
def test_cut_file_is_refused_at_any_length(tmp_path, write):
    path = tmp_path / ("w.safetensors" if write is save_file else "w.pth")
    tensors = {"a": torch.randn(9, 7), "b": torch.arange(5)}
    write(tensors, path)
    whole = path.read_bytes()
    assert torch.equal(checkpoints.read(path)[1]["a"], tensors["a"])
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            checkpoints.read(path)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "write", [write_zip, write_legacy, lambda x, path: path.write_bytes(pickle.dumps(x, protocol=2))]
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "vit.pth"])
def test_code_in_a_pickle_is_never_run(tmp_path, write, name):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Bomb(mark)))
    mark.unlink()
    write({"a": torch.zeros(2), "b": Bomb(mark)}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{name} is not a file of plain tensors"):
        ViT.from_pretrained(tmp_path if name == "pytorch_model.bin" else tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"state_dict": {"a": torch.zeros(2)}}, {0: torch.zeros(2)}])
def test_something_else_than_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="something other than named tensors"):
        ViT.from_pretrained(tmp_path / "a.pth")


def test_another_architecture_in_a_weights_file_is_named(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"not a torchvision VisionTransformer.*received weight, bias"):
        ViT.from_pretrained(tmp_path / "a.pth")


def test_missing_files_are_named(ours):
    (ours / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights, expected one of model\.safetensors, pytorch_model\.bin"):
        ViT.from_pretrained(ours)
    (ours / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        ViT.from_pretrained(ours)
    for source in (ours / "nothing", ours / "nothing.pth", "nothing", "../some/folder", ".hidden/folder", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=f"no such folder or file: {re.escape(str(source))}"):
            ViT.from_pretrained(source)


def test_hub_without_network_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="paperwalk/no-such-model is neither a folder here nor a model that"):
        ViT.from_pretrained("paperwalk/no-such-model")


@pytest.mark.parametrize("published", ["model.safetensors", "pytorch_model.bin"])
def test_hub_fetches_one_weights_file(published, ours, tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    shutil.copy(ours / "config.json", tmp_path)
    if published == "model.safetensors":
        shutil.copy(ours / published, tmp_path)
    else:
        torch.save(load_file(ours / "model.safetensors"), tmp_path / published)
    fetched = []

    def download(source, name):
        if name not in ("config.json", published):
            raise LocalEntryNotFoundError(name)
        fetched.append((source, name))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert ViT.from_pretrained("owner/name").config == SMALL
    assert fetched == [("owner/name", "config.json"), ("owner/name", published)]


def test_a_pooler_beside_a_classifier_is_refused(transformers_folder):
    path = transformers_folder / "model.safetensors"
    pooler = {f"vit.{name}": t for name, t in transformers_vit("ViTModel").state_dict().items() if "pooler" in name}
    assert len(pooler) == 2
    save_file(load_file(path) | pooler, path)
    with pytest.raises(ValueError, match=r"pooler.dense.\* beside classifier"):
        ViT.from_pretrained(transformers_folder)


def test_sizes_given_for_a_folder_that_states_its_own_are_refused(ours):
    with pytest.raises(ValueError, match="states its own sizes"):
        ViT.from_pretrained(ours, config=SMALL)


def test_integers_for_floats_are_refused(ours):
    tensors = load_file(ours / "model.safetensors")
    save_file(tensors | {"class_token": tensors["class_token"].to(torch.int8)}, ours / "model.safetensors")
    with pytest.raises(ValueError, match=r"class_token has dtype torch\.int8, expected torch\.float32"):
        ViT.from_pretrained(ours)


def test_a_loaded_model_is_in_eval_mode(ours):
    assert not ViT.from_pretrained(ours).training


# Fewer bits


@pytest.mark.parametrize(("bits", "most"), [(32, 0.0), (16, 5e-4), (8, 0.5 / 127 + 5e-4)])
def test_a_checkpoint_of_fewer_bits_is_smaller_and_nearly_the_same(bits, most, tmp_path, randomise):
    config = replace(SMALL, d_model=48, d_mlp=96)
    model = randomise(ViT(config))
    model.save_pretrained(tmp_path, bits=bits)
    again = ViT.from_pretrained(tmp_path)
    for (name, before), after in zip(model.named_parameters(), again.parameters(), strict=True):
        assert after.dtype == torch.float32
        largest = before.abs().flatten(1).amax(1) if before.ndim > 1 else before.abs()
        worst = (after - before).abs().flatten(1).amax(1) if before.ndim > 1 else (after - before).abs()
        assert (worst <= most * largest).all(), name
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < (bits / 32 + 0.1) * sum(4 * p.numel() for p in model.parameters()) + 4000


def test_a_row_of_zeros_survives_eight_bits(tmp_path, randomise):
    model = randomise(ViT(SMALL))
    with torch.no_grad():
        model.head.weight[0] = 0
    model.save_pretrained(tmp_path, bits=8)
    assert not ViT.from_pretrained(tmp_path).head.weight[0].any()


def test_bits_are_checked(tmp_path):
    with pytest.raises(ValueError, match="bits is 4, expected 8, 16 or 32"):
        ViT(SMALL).save_pretrained(tmp_path, bits=4)
    assert not list(tmp_path.iterdir())


def test_a_scale_that_belongs_to_nothing_is_named(tmp_path, randomise):
    randomise(ViT(SMALL)).save_pretrained(tmp_path, bits=8)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"stray.int8_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"left over stray\.int8_scale"):
        ViT.from_pretrained(tmp_path)
    save_file(tensors | {"head.weight.int8_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"head\.weight has dtype torch\.int8"):
        ViT.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_is_named(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match=r"is a TorchScript program, expected tensors: save torch\.jit\.load"):
        checkpoints.read(tmp_path / "model.pt")


# What the mutants of `make mutants` showed to be without a judge here.


def missing(n: int) -> str:
    model = nn.ParameterDict({f"p{i:02}": nn.Parameter(torch.zeros(1)) for i in range(n)})
    with pytest.raises(ValueError, match="does not fit") as found:
        checkpoints.load_exactly(model, {})
    return str(found.value)


def test_ten_problems_are_named_and_those_after_counted():
    assert missing(10).count("missing") == 10
    assert "more" not in missing(10)
    assert missing(11).endswith("missing p09 (1,)\n  … and 1 more")


@pytest.mark.parametrize("name", checkpoints.WEIGHT_FILES)
def test_each_published_name_is_read_and_fetched(name, tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert name in (
        *("model.safetensors", "pytorch_model.bin"),
        *("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    )
    (tmp_path / "config.json").write_text("{}")
    (save_file if name.endswith("safetensors") else torch.save)({"a": torch.ones(2)}, tmp_path / name)

    def download(source, asked):
        if not (tmp_path / asked).is_file():
            raise LocalEntryNotFoundError(asked)
        return str(tmp_path / asked)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for source in (tmp_path, "owner/name"):
        assert torch.equal(checkpoints.read(source)[1]["a"], torch.ones(2))


@pytest.mark.parametrize(("said", "reason"), [("no weights\nat all", "no weights"), ("", "LocalEntryNotFoundError")])
def test_a_model_without_weights_on_the_hub_is_named(said, reason, tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    (tmp_path / "config.json").write_text("{}")

    def download(source, asked):
        if asked != "config.json":
            raise LocalEntryNotFoundError(said)
        return str(tmp_path / asked)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=rf"could be fetched from the hub: {reason}$"):
        checkpoints.read("owner/name")


def test_a_training_scripts_file_is_its_model(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pth")
    assert [*checkpoints.read(tmp_path / "a.pth")[1]] == ["a"]


@pytest.mark.parametrize("content", [{"a": torch.zeros(2), "b": 3}, {"a": torch.zeros(2), 3: torch.zeros(2)}])
def test_one_tensor_among_others_is_no_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="something other than named tensors"):
        checkpoints.read(tmp_path / "a.pth")


def test_a_file_that_goes_while_it_is_read_is_missing(tmp_path, monkeypatch):
    def gone(path):
        raise FileNotFoundError(path)

    (tmp_path / "a.safetensors").touch()
    monkeypatch.setattr("safetensors.torch.load_file", gone)
    with pytest.raises(FileNotFoundError):
        checkpoints.read(tmp_path / "a.safetensors")


def test_what_torch_refuses_is_passed_on_in_one_line(tmp_path, monkeypatch):
    def load(*args, **options):
        raise pickle.UnpicklingError("Unsupported\n\n   global " + 400 * "x")

    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    monkeypatch.setattr("torch.load", load)
    with pytest.raises(ValueError, match="not a file of plain tensors") as found:
        checkpoints.read(tmp_path / "a.pth")
    assert str(found.value).endswith(": Unsupported global " + (300 - len("Unsupported global ")) * "x")


def test_words_and_views_up_to_the_limit_are_read(tmp_path):
    for letters in (1_000, 1_001):
        torch.save({letters * "a": torch.zeros(1)}, tmp_path / "a.pth")
        if letters == 1_000:
            assert len(checkpoints.read(tmp_path / "a.pth")[1]) == 1
    with pytest.raises(ValueError, match="it holds a word of 1001 letters, expected at most 1000"):
        checkpoints.read(tmp_path / "a.pth")
    torch.save({"a": torch.zeros(1).expand(2_000)}, tmp_path / "a.pth")
    assert 2_000 // 4 < (tmp_path / "a.pth").stat().st_size < 4 * 2_000
    with pytest.raises(ValueError, match="no more than the file's"):
        checkpoints.read(tmp_path / "a.pth")


def test_each_program_of_an_old_file_is_looked_at(tmp_path):
    # What it is, its version, the machine, the tensors, the names of their numbers.
    parts = [0x1950A86A20F9469CFC6C, 1001, {}, {}, [2_000 * "a"]]
    (tmp_path / "a.pth").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(ValueError, match="it holds a word of 2000 letters"):
        checkpoints.read(tmp_path / "a.pth")


def test_a_packed_file_is_refused_though_it_is_no_smaller(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", os.urandom(1_000))
    with pytest.raises(ValueError, match="1 compressed, expected them as they are"):
        checkpoints.read(tmp_path / "a.pth")


def test_the_largest_of_a_row_is_127(tmp_path):
    layer = nn.Linear(3, 2, bias=False)
    checkpoints.write(tmp_path, layer, "Linear", SMALL, bits=8)
    stored = load_file(tmp_path / "model.safetensors")["weight"]
    assert stored.abs().amax(dim=1).tolist() == [127, 127]


def test_a_configuration_is_written_to_be_read(tmp_path):
    checkpoints.write(tmp_path, nn.Linear(2, 1), "Linear", Listed())
    assert (
        tmp_path / "config.json"
    ).read_text() == '{\n  "paperwalk": "Linear",\n  "sizes": [\n    1,\n    2\n  ]\n}\n'
    values, tensors = checkpoints.read(tmp_path)
    assert checkpoints.config_from(Listed, values, "Linear") == Listed()
    assert tensors["weight"].dtype == torch.float32


@dataclass(frozen=True)
class Listed:
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        if self.sizes == (0,):
            raise TypeError("no size\nat all")


def test_values_of_a_strange_kind_are_named_with_their_reason(monkeypatch):
    expected = r"^config\.json describes no model: TypeError, no size$"
    with pytest.raises(ValueError, match=expected):
        checkpoints.config_from(Listed, {"paperwalk": "x", "sizes": [0]}, "x")

    def model(config):
        raise TypeError("no size\nat all")

    # With a look at the sizes first, and without.
    for unchecked in (0, 1 << 31):
        monkeypatch.setattr(checkpoints, "UNCHECKED", unchecked)
        with pytest.raises(ValueError, match=expected):
            checkpoints.build(model, Listed(), {"a": torch.zeros(0)})


def test_json_without_end_is_named(ours):
    (ours / "config.json").write_text(100_000 * "[")
    with pytest.raises(ValueError, match="nested too deeply, expected a few levels"):
        checkpoints.read(ours)


def test_the_first_pattern_that_matches_names_a_tensor():
    assert [*checkpoints.rename({"a": torch.zeros(1)}, {"a": "b", "b": "c"})] == ["b"]


def sizes(**values) -> object:
    return make_dataclass("Sizes", [(name, object, value) for name, value in values.items()])()


def test_the_most_that_sizes_may_ask_for():
    # 5 x 5 patches, and the side.
    assert checkpoints._most_bytes(sizes(image_size=20, patch_size=4, d_model=6), 7) == 12 * 25 * 20 * 4 * 7
    # The widest level, and the first.
    assert checkpoints._most_bytes(sizes(image_size=3, d_model=10, multipliers=(1, 5)), 7) == 12 * 50 * 10 * 7
    assert checkpoints._most_bytes(sizes(image_size=9, d_model=2), 1) == 12 * 81 * 9
    assert checkpoints._most_bytes(sizes(vocab_size=11, d_model=7), 1) == 12 * 11 * 7
    assert checkpoints._most_bytes(sizes(vocab_size=3, flag=True), 1) == 12 * 3


@pytest.mark.parametrize("floor", [0, 1 << 31])
def test_only_sizes_that_ask_for_much_are_looked_at_first(floor, monkeypatch):
    looked, layer = [], nn.Linear(3, 1)
    limit = floor or 64 * 16
    monkeypatch.setattr(checkpoints, "UNCHECKED", floor) if not floor else None
    monkeypatch.setattr(checkpoints, "_Shapes", lambda: looked.append(1) or nullcontext())
    for most, expected in ((limit, 0), (limit + 1, 1)):
        monkeypatch.setattr(checkpoints, "_most_bytes", lambda *_, most=most: most)
        checkpoints.build(lambda config: nn.Linear(3, 1), sizes(), layer.state_dict())
        assert len(looked) == expected


class Table(nn.Module):
    """A module that computes a table of so many bytes; memory that nobody writes to is not taken."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("table", torch.empty(config.table, dtype=torch.uint8), persistent=False)


@pytest.mark.usefixtures("unchecked")
def test_tables_may_take_a_quarter_of_a_gigabyte(monkeypatch):
    monkeypatch.setattr(checkpoints, "UNCHECKED", 0)
    weight = {"weight": torch.ones(1)}
    assert checkpoints.build(Table, sizes(table=1 << 28), weight).table.nbytes == 1 << 28
    with pytest.raises(ValueError, match=f"tables of {(1 << 28) + 1} bytes, expected at most {1 << 28}"):
        checkpoints.build(Table, sizes(table=(1 << 28) + 1), weight)


def test_as_many_blocks_as_tensors_are_possible():
    tensors = nn.Linear(3, 1).state_dict()
    for name in ("n_layers", "n_blocks"):
        checkpoints.build(lambda config: nn.Linear(3, 1), sizes(**{name: 2}), tensors)
        with pytest.raises(ValueError, match=f"{name}=3, expected at most 2, the number of tensors"):
            checkpoints.build(lambda config: nn.Linear(3, 1), sizes(**{name: 3}), tensors)


def torchvision_shapes(**changes: tuple[int, ...] | None) -> dict[str, Tensor]:
    shapes = {
        **{"conv_proj.weight": (192, 3, 4, 4), "encoder.pos_embedding": (1, 10, 192)},
        **{"encoder.layers.encoder_layer_0.mlp.0.weight": (5, 192), "heads.head.weight": (7, 192)},
    }
    return {name: torch.zeros(shape) for name, shape in (shapes | changes).items() if shape is not None}


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16)])
@pytest.mark.parametrize("spelling", ["0", "linear_1"])
def test_torchvisions_sizes_are_read_off_the_shapes(width, heads, spelling):
    first = "encoder.layers.encoder_layer_0.mlp."
    changes = {"conv_proj.weight": (width, 3, 4, 4), first + "0.weight": None, f"{first}{spelling}.weight": (5, width)}
    sizes, _ = from_torchvision(torchvision_shapes(**changes))
    assert (sizes["d_model"], sizes["n_heads"], sizes["d_mlp"], sizes["image_size"]) == (width, heads, 5, 12)
    assert sizes["n_classes"] == 7


@pytest.mark.parametrize(
    "name", ["conv_proj.weight", "encoder.pos_embedding", "encoder.layers.encoder_layer_0.mlp.0.weight"]
)
@pytest.mark.parametrize("shape", [None, (192,)])
def test_a_torchvision_file_without_its_parts_is_named(name, shape):
    with pytest.raises(ValueError, match="not a torchvision VisionTransformer"):
        from_torchvision(torchvision_shapes(**{name: shape}))


def test_a_head_without_axes_has_no_classes():
    assert from_torchvision(torchvision_shapes(**{"heads.head.weight": ()}))[0]["n_classes"] == 0


def test_a_published_configuration_may_leave_out_what_is_usual():
    with pytest.raises(ValueError, match=r"config\.json of a vit lacks image_size"):
        from_transformers({}, {})
