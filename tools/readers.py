"""The readers of files of unknown origin that `make fuzz` feeds, and whole files for each, which the book writes."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from fuzz import Reader
from paperwalk import checkpoints
from paperwalk.clip import CLIP, CLIPConfig
from paperwalk.data import archives, cache, captions, emoji, folder, images, pairs, texts
from paperwalk.data.sources import TEXT_KEYS, Recipe, Source, read_by_hand
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.mae import MAE, MAEConfig
from paperwalk.quality import Judge, JudgeConfig
from paperwalk.tokenizers import BytePairTokenizer, CharTokenizer, ClipTokenizer
from paperwalk.train import runs, state
from paperwalk.train.recipes import PAPERS, recipe_class
from paperwalk.transformer import Transformer, TransformerConfig
from paperwalk.unet import UNet, UNetConfig
from paperwalk.vit import ViT, ViTConfig

TALE = "the whale and the sea, the sea and the whale; he sails and sails, and the whale is there. "
# Archives that unpack to far more than they hold are cut to this, so that many can be tried.
LIMIT = 1 << 22


def models() -> dict[str, torch.nn.Module]:
    """A small model of each paper, and a judge."""
    blocks = {"d_model": 8, "n_layers": 1, "n_heads": 2, "d_mlp": 8}
    picture = {"image_size": 4, "patch_size": 2, "in_channels": 1}
    decoder = {f"decoder_{name}": size for name, size in blocks.items()}
    towers = {f"{name}_{tower}": 8 for tower in ("image", "text") for name in ("d",)}
    towers |= {f"n_{tower}_{part}": 1 for tower in ("image", "text") for part in ("layers", "heads")}
    clip = {"image_size": 4, "patch_size": 2, "vocab_size": 9, "block_size": 5, "d_image_mlp": 8, "d_text_mlp": 8}
    unet = {"image_size": 4, "in_channels": 1, "d_model": 4, "multipliers": (1, 2), "n_blocks": 1, "n_groups": 2}
    return {
        "ViT": ViT(ViTConfig(**picture, **blocks, n_classes=3)),
        "GPT": GPT(GPTConfig(**blocks, vocab_size=9, block_size=5)),
        "Transformer": Transformer(TransformerConfig(**blocks, vocab_size=9, block_size=5)),
        "MAE": MAE(MAEConfig(**picture, **blocks, **decoder)),
        "CLIP": CLIP(CLIPConfig(**towers, **clip, d_embed=4)),
        "U-Net": UNet(UNetConfig(**unet, attention_sizes=(2,))),
        "Judge": Judge(JudgeConfig(image_size=4, in_channels=1, n_classes=3, d_model=2, d_features=4)),
    }


# What other libraries write, in short: our readers translate it.
PUBLISHED = {
    "ViT": {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 4,
            "intermediate_size": 8, "patch_size": 2, "num_channels": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
            "qkv_bias": True, "id2label": {"0": "a", "1": "b"}, "architectures": ["ViTForImageClassification"]},
    "GPT": {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 5, "n_ctx": 5, "n_inner": None,
            "vocab_size": 9, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    "Transformer": {"model_type": "marian", "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 9,
                    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8,
                    "decoder_ffn_dim": 8, "max_position_embeddings": 5, "activation_function": "swish",
                    "pad_token_id": 8, "eos_token_id": 0, "decoder_start_token_id": 8, "scale_embedding": True},
    "MAE": {"model_type": "vit_mae", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "image_size": 4, "patch_size": 2, "num_channels": 1, "hidden_act": "gelu",
            "layer_norm_eps": 1e-12, "qkv_bias": True, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2, "decoder_intermediate_size": 8, "mask_ratio": 0.5,
            "norm_pix_loss": False},
    "CLIP": {"model_type": "clip", "projection_dim": 4, "vision_config": {"hidden_size": 8, "image_size": 4},
             "text_config": {"hidden_size": 8, "vocab_size": 9}},
    "U-Net": {"_class_name": "UNet2DModel", "act_fn": "silu", "freq_shift": 1, "flip_sin_to_cos": False,
              "downsample_padding": 0, "sample_size": 4, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
              "norm_num_groups": 2, "norm_eps": 1e-6, "block_out_channels": [4, 8], "attention_head_dim": None,
              "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
              "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]},
}  # fmt: skip


def checkpoint_readers(place: Path) -> dict[str, Reader]:
    """config.json of each model, and the two kinds of files of weights."""
    found = {}
    # torch loads what a tensor without numbers needs at the first use, and takes seconds for it.
    torch.empty(1, device="meta").normal_()
    for name, model in models().items():
        where = place / name
        model.save_pretrained(where)
        seeds = [(where / "config.json").read_bytes()]
        seeds += [json.dumps(PUBLISHED[name]).encode()] if name in PUBLISHED else []

        def load(path: Path, model: torch.nn.Module = model) -> object:
            return type(model).from_pretrained(path.parent)

        found[f"config.json of {name}"] = Reader(seeds, _by_file(where / "config.json", load), share=4)
    small = {"a.weight": torch.randn(2, 3), "b": torch.arange(3), "c": torch.zeros(2, dtype=torch.bool)}
    packed = checkpoints._pack(small, 8)
    shipped = [safetensors.torch.save(tensors) for tensors in (small, packed, {}, _gpt_tensors())]
    found["safetensors"] = Reader(shipped, _by_file(place / "a.safetensors", checkpoints.read), share=30)
    found["torch file"] = Reader(torch_files(small), _by_file(place / "a.pth", _weights), share=15)
    return found


def _gpt_tensors() -> dict[str, torch.Tensor]:
    """The tensors of a small GPT."""
    return models()["GPT"].state_dict()


def _weights(path: Path) -> object:
    # A weights file alone tells a ViT's sizes by its shapes.
    checkpoints.read(path)
    return ViT.from_pretrained(path)


class Planted:
    """Unpickled by Python's own loader it would call a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def torch_files(tensors: dict[str, torch.Tensor]) -> list[bytes]:
    """Files of `torch.save`, new and old, and those with code or more than they hold in them."""
    strange = [
        tensors,
        {"model": tensors, "epoch": 3},
        {"a": Planted(os.system, "true")},
        {"a": Planted(eval, "__import__('os').system('true')")},
        {"a": Planted(bytearray, 1 << 40)},
        {"a": torch.zeros(1).expand(1 << 40)},
        {"a": torch.eye(3).to_sparse()},
        {"a": torch.zeros(3, device="meta")},
        {"a": torch.zeros(3).to(torch.float8_e4m3fn)},
        {"a": torch.zeros(3, dtype=torch.complex64)},
    ]
    files = []
    for content in strange:
        for new in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=new)
            files.append(file.getvalue())
    return [*files, pickle.dumps(Planted(os.system, "true")), _bomb()]


def _bomb() -> bytes:
    """A torch file whose tensor is packed a thousand times smaller than it is."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(1 << 18)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for each in source.infolist():
            target.writestr(each.filename, source.read(each))
    return packed.getvalue()


def tokenizer_readers(place: Path) -> dict[str, Reader]:
    """The files of the tokenizers."""
    byte_pairs, clip = BytePairTokenizer.train(TALE, 270), ClipTokenizer.train([TALE], 530)
    splits = pairs.split_pairs([("tomato", "T AH0 M EY1"), ("whale", "W EY1 L")])
    for tokenizer in (byte_pairs, clip, CharTokenizer(TALE), pairs.PairTokenizer.of(splits, "characters", "words")):
        tokenizer.save(place)
    encoder, merges = ((place / name).read_text(encoding="utf-8") for name in ("encoder.json", "vocab.bpe"))

    def use(tokenizer: Any) -> None:
        tokenizer.decode(tokenizer.encode(TALE))

    def pair_tokenizer(path: Path) -> None:
        tokenizer = pairs.PairTokenizer.load(path.parent)
        tokenizer.decode_target(range(len(tokenizer)))

    def seed(name: str) -> list[bytes]:
        return [(place / name).read_bytes()]

    return {
        "encoder.json": Reader(seed("encoder.json"), lambda d: use(BytePairTokenizer.parse(d.decode(), merges)), 20),
        "vocab.bpe": Reader(seed("vocab.bpe"), lambda d: use(BytePairTokenizer.parse(encoder, d.decode())), 60),
        "vocabulary folder": Reader(
            seed("encoder.json"), _by_file(place / "encoder.json", lambda p: use(BytePairTokenizer.load(p.parent))), 10
        ),
        "merges.txt": Reader(
            seed("merges.txt"), _by_file(place / "merges.txt", lambda p: use(ClipTokenizer.load(p.parent))), 20
        ),
        "characters.json": Reader(
            seed("characters.json"), _by_file(place / "characters.json", lambda p: CharTokenizer.load(p.parent)), 60
        ),
        "tokenizer.json": Reader(seed("tokenizer.json"), _by_file(place / "tokenizer.json", pair_tokenizer), 60),
    }


def _by_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def write_and_read(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return write_and_read


def idx(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def picture(kind: str, size: tuple[int, int], mode: str = "RGB") -> bytes:
    """A picture file."""
    from PIL import Image

    file = io.BytesIO()
    Image.effect_noise(size, 80).convert(mode).save(file, kind)
    return file.getvalue()


def tarball(contents: dict[str, bytes], pax: dict[str, str] | None = None) -> bytes:
    """A .tar, not yet packed."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), pax or {}
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(data: bytes) -> bytes:
    """Under gzip, quickly."""
    return gzip.compress(data, compresslevel=1)


def archive_readers(place: Path) -> dict[str, Reader]:
    """Archives, as they are and as what they hold."""
    # The real limits would let each bomb take its hundred megabytes.
    archives.MEMBER_LIMIT, archives.ARCHIVE_LIMIT = LIMIT, 8 * LIMIT
    names = ["a", "b/c"]
    wanted = {"a": b"first", "b/c": b"second" * 200}
    tars = [
        tarball(wanted),
        tarball({"../a": b"out", "/a": b"root", **wanted}),
        tarball(wanted, {"path": "a", "size": "7"}),
        tarball(wanted, {"size": "-512"}),
        tarball(wanted, {"GNU.sparse.map": "0,5", "GNU.sparse.size": "5", "GNU.sparse.realsize": str(1 << 40)}),
        tarball({"a" * 200: b"long", **wanted}),
    ]
    bombs = [zipped(bytes(4 * LIMIT)), zipped(tars[0] + bytes(16 * LIMIT))]

    def members(path: Path) -> object:
        return archives.read_members(path, names)

    return {
        "tar": Reader(tars, _by_file(place / "a.tgz", members), 20, wraps=zipped),
        "tar.gz": Reader([*map(zipped, tars), *bombs], _by_file(place / "b.tgz", members), 10),
        "gzip": Reader([zipped(b"text" * 99), bombs[0]], _by_file(place / "a.gz", archives.read_gzip), 10),
    }


def data_readers(place: Path) -> dict[str, Reader]:
    """The published forms of the data sets, and files of one's own."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 28, 28), np.uint8)
    rows = "\n".join(",".join(["0"] * 784 + [str(k)]) for k in range(10) for _ in range(5)).encode()
    drawn = [
        {"unified": "1F600", "image": "a.png", "sort_order": 1},
        {"unified": "1F601", "image": "b.png", "sort_order": 2},
    ]
    named = [{"hexcode": e["unified"], "label": "a face", "tags": ["grin"], "subgroup": 0} for e in drawn]
    messages = {"subgroups": [{"order": 0, "message": "face"}]}
    square = picture("PNG", (64, 64), "RGBA")
    tables = [json.dumps(table).encode() for table in (drawn, named, messages)]

    def drawings(data: bytes) -> None:
        # What was changed takes the place of the table that it was.
        kind = 2 if data[:1] == b"{" else 1 if b"hexcode" in data else 0
        now = [*tables[:kind], data, *tables[kind + 1 :]]
        both = {f"package/img/{artist}/64/{e['image']}": square for artist in emoji.ARTISTS for e in drawn}
        parts = [{"package/emoji.json": now[0], **both}, both]
        parts.append({"package/en/data.json": now[1], "package/en/messages.json": now[2]})
        paths = [place / f"{i}.tgz" for i in range(3)]
        for path, contents in zip(paths, parts, strict=True):
            path.write_bytes(zipped(tarball(contents)))
        emoji.decode_emoji(paths)

    def text(path: Path) -> object:
        source = Source("text", (path.name,), texts.decode_plain(TEXT_KEYS))
        return read_by_hand(source, path.parent)

    photos = [picture(kind, (20, 14)) for kind in ("JPEG", "PNG", "WEBP", "BMP")]
    photos += [picture("PNG", (9, 9), mode) for mode in ("L", "1", "P", "RGBA", "LA", "I;16")]
    photos += [picture(kind, (9, 9)) for kind in ("GIF", "TIFF", "EPS", "PPM", "ICO")]

    def csv(path: Path) -> object:
        return images.decode_mnist_5k([path])

    clothes = json.dumps({"data": [[0] * 784] * 2}).encode()
    return {
        "idx of images": Reader([idx(pixels)], lambda d: images.read_idx(d, (28, 28)), 100),
        "idx of labels": Reader([idx(pixels[0, 0])], lambda d: images.read_idx(d, ()), 100),
        "list of labels": Reader([b"[0, 1, 2, 9]", b"[]", b'{"a": 1}'], images.read_label_list, 100),
        "PNG of CIFAR-10": Reader([picture("PNG", (1024, 2))], images.read_png_rows, 20),
        "PNG of an emoji": Reader([square, picture("PNG", (64, 64), "P")], emoji.read_picture, 20),
        "batch of CIFAR-10": Reader([bytes(3073 * 2)], images.read_cifar_batch, 20),
        "picture": Reader(photos, _by_file(place / "a.jpg", lambda p: folder.read_image(p, 8)), 30),
        "CSV of MNIST": Reader([rows], _by_file(place / "a.csv.gz", csv), 3, wraps=zipped),
        "clothes": Reader([clothes], lambda d: images._clothes(_json(d), "it"), 10),
        "tables of emoji": Reader(tables, drawings, 3),
        "text": Reader([TALE.encode(), "é\n".encode()], _by_file(place / "data.txt", text), 60),
    }  # fmt: skip


def _json(data: bytes) -> object:
    from paperwalk.files import parse_json

    return parse_json(data, "it")


def pair_readers(place: Path) -> dict[str, Reader]:
    """Pairs of texts, and captioned pictures."""
    (place / "a.png").write_bytes(picture("PNG", (4, 4)))
    tsv = b"source\ttarget\na\tb\r\n\n\xef\xbb\xbfx\ty\n"
    lines = b'{"source": "a", "target": "b"}\n{"source": "x y", "target": "z", "more": [1]}\n'
    captioned = "".join(f"a.png\tcaption {i}\n" for i in range(100)).encode()
    objects = "".join(json.dumps({"picture": "a.png", "caption": f"é {i}"}) + "\n" for i in range(100)).encode()

    def both(path: Path) -> object:
        return pairs.split_pairs(pairs.read_pairs(path))

    return {
        "pairs.tsv": Reader([tsv], _by_file(place / "pairs.tsv", both), 60),
        "pairs.jsonl": Reader([lines], _by_file(place / "pairs.jsonl", both), 60),
        "captions.tsv": Reader([captioned], _by_file(place / "captions.tsv", captions.read_captioned), 10),
        "captions.jsonl": Reader([objects], _by_file(place / "captions.jsonl", captions.read_captioned), 10),
    }


def run_readers(place: Path) -> dict[str, Reader]:
    """States and descriptions of runs, and the cache of data."""
    tensors = {"model.a": torch.randn(2, 3), "random.cpu": torch.zeros(4, dtype=torch.uint8)}
    content, where = safetensors.torch.save(tensors), place / "states" / "step-00000003"
    where.mkdir(parents=True)
    about = json.dumps({"step": 3, "sha256": hashlib.sha256(content).hexdigest(), "values": {"losses": [1.0]}}).encode()

    def described(data: bytes) -> object:
        (where / "state.safetensors").write_bytes(content)
        (where / "state.json").write_bytes(data)
        return state.newest_state(where.parent)

    def filled(data: bytes) -> object:
        # With the right digest, as whoever damages a file on purpose would have it.
        right = {"step": 3, "sha256": hashlib.sha256(data).hexdigest(), "values": {}}
        (where / "state.safetensors").write_bytes(data)
        (where / "state.json").write_text(json.dumps(right))
        return state.newest_state(where.parent)

    def recipe(path: Path) -> object:
        return runs.from_json(runs.read_json(path, "recipe")["recipe"])

    recipes = [json.dumps({"recipe": runs.as_json(recipe_class(paper)())}).encode() for paper in PAPERS]
    arrays = {"text": torch.arange(9, dtype=torch.uint8)}

    def cached(path: Path) -> object:
        os.environ["PAPERWALK_DATA"] = str(path.parent)
        return cache.read_cache("cached", Recipe((), "0", (), TEXT_KEYS))

    return {
        "state.json": Reader([about], described, 30),
        "state.safetensors": Reader([content], filled, 30),
        "run.json": Reader(recipes, _by_file(place / "run.json", recipe), 10),
        "cache": Reader([safetensors.torch.save(arrays)], _by_file(place / "cached.safetensors", cached), 30),
    }


def readers(place: Path) -> dict[str, Reader]:
    """Every reader by name; they write into the folder."""
    torch.manual_seed(0)
    parts = (checkpoint_readers, tokenizer_readers, archive_readers, data_readers, pair_readers, run_readers)
    return {name: reader for part in parts for name, reader in part(place).items()}
