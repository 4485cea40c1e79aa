"""Reading and writing weights: safetensors and config.json, every tensor accounted for.

Nothing is unpickled, except that a published `.pth`/`.bin` file goes through torch's weights-only loader.
"""

import dataclasses
import io
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paperwalk.files import parse_json, write_whole

Tensors = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)
SCALE = ".int8_scale"
# Those of ours and of transformers, then those of diffusers.
WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
# Bytes at the front of an old torch file in which its programs are, if it is a state dict.
PROGRAM = 1 << 26
# So many programs are in it: what it is, its version, the machine, the tensors, the names of their numbers.
PROGRAMS = 5
# Letters of a word in it: the name of a tensor, or of something to import.
LONGEST_WORD = 1_000
# Bytes that the sizes of a checkpoint may ask for without a look at its tensors.
UNCHECKED = 1 << 31
# Bytes of what a model computes from its sizes alone: positions.
TABLES = 1 << 28
# What weights and buffers are made of.
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool}
DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


def read(source: str | Path) -> tuple[dict[str, Any], Tensors]:
    """The configuration and the tensors of a checkpoint.

    Args:
        source: a folder with config.json and model.safetensors (or pytorch_model.bin); a single weights file,
            whose configuration is empty; or the id of a model on the Hugging Face hub, "owner/name".

    Raises:
        FileNotFoundError: nothing of that name here or on the hub, or a file is missing from the folder.
        ValueError: a file is damaged, holds anything but tensors, or a weight is not finite.
    """
    path = Path(source)
    if path.is_file():
        return {}, _read_tensors(path)
    if not path.is_dir():
        path = _download(str(source))
    config_path = path / "config.json"
    if not config_path.is_file():
        raise FileNotFoundError(f"{path} holds no config.json, expected a checkpoint folder")
    config = parse_json(config_path.read_bytes(), str(config_path))
    if not isinstance(config, dict):
        raise ValueError(f"{config_path} holds a {type(config).__name__}, expected a JSON object")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return config, _read_tensors(path / name)
    raise FileNotFoundError(f"{path} holds no weights, expected one of {', '.join(WEIGHT_FILES)}")


def _download(source: str) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith("."):
        raise FileNotFoundError(f"no such folder or file: {source}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        config = hf_hub_download(source, "config.json")
        for name in WEIGHT_FILES:
            try:
                # One is enough: fetching all would double the download.
                hf_hub_download(source, name)
                break
            except EntryNotFoundError:
                if name == WEIGHT_FILES[-1]:
                    raise
        return Path(config).parent
    except (OSError, ValueError, EntryNotFoundError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{source} is neither a folder here nor a model that could be fetched from the hub: {reason}"
        ) from None


def _read_tensors(path: Path) -> Tensors:
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(path)
        else:
            _check_pickle(path)
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # With code in it, torch's loader says which name it refused; that is worth passing on.
        reason = re.sub(r"\s+", " ", str(error))[:300]
        raise ValueError(f"{path} is not a file of plain tensors: {reason}") from None
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript program, expected tensors: save torch.jit.load({path.name!r}).state_dict()"
            ) from None
        # On a damaged file torch's loader fails with whatever it stumbles over: IndexError, struct.error, …
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} is truncated or damaged: {reason[0]}") from None
    if isinstance(tensors, Mapping) and isinstance(tensors.get("model"), Mapping):
        # As training scripts save it: {"model": tensors, "optimizer": …, "epoch": …}.
        tensors = tensors["model"]
    named = isinstance(tensors, Mapping) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds something other than named tensors, expected a state dict")
    size = path.stat().st_size
    for name, tensor in tensors.items():
        _check_tensor(tensor, f"{path}: tensor {name}", size)
    return _unpack(tensors)


def _check_tensor(tensor: Tensor, name: str, size: int) -> None:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in DTYPES
    # A view may repeat a few bytes without end.
    if not plain or tensor.numel() * tensor.element_size() > size:
        kind = f"{tensor.layout} on {tensor.device}, {tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {kind}, expected numbers, no more than the file's {size} bytes hold")
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinity, expected finite weights")


def _check_pickle(path: Path) -> None:
    """Refuse what makes torch's loader take memory that the file does not have, or time without end.

    Raises:
        ValueError: entries packed, or more than the file has room for, or bytes of a length that is merely stated.
        Exception: whatever pickletools stumbles over in what is no program.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            program = io.BytesIO(file.read(PROGRAM))
        _check_program(program.getvalue())
        for _ in range(PROGRAMS):
            if program.tell() < program.getbuffer().nbytes:
                _check_words(program)
        return
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    if any(each.filename.endswith("/constants.pkl") for each in entries):
        # A TorchScript program, which torch's loader names and does not read.
        return
    packed = [each.filename for each in entries if each.compress_type != zipfile.ZIP_STORED]
    total, size = sum(each.file_size for each in entries), path.stat().st_size
    if packed or total > size:
        raise ValueError(f"entries of {total} bytes in {size}, {len(packed)} compressed, expected them as they are")
    with zipfile.ZipFile(path) as file:
        for each in entries:
            if each.filename.endswith(".pkl"):
                program = file.read(each)
                _check_program(program)
                _check_words(io.BytesIO(program))


def _check_program(program: bytes) -> None:
    # Of the names that torch allows, one takes memory at once, and one makes tensors without numbers.
    found = re.search(rb"(?:__builtin__|builtins)\n(bytearray)\n|(_rebuild_meta_tensor)", program)
    if found:
        raise ValueError(f"it makes a {(found[1] or b'meta tensor').decode()}, expected tensors of numbers")


def _check_words(program: io.BytesIO) -> None:
    # torch's loader puts the word that it refuses into a message, and searches that in time that grows with the square
    # of the word's length.
    for _, argument, _ in pickletools.genops(program):
        if isinstance(argument, str | bytes) and len(argument) > LONGEST_WORD:
            raise ValueError(f"it holds a word of {len(argument)} letters, expected at most {LONGEST_WORD}")


def _pack(tensors: Mapping[str, Tensor], bits: int) -> Tensors:
    # Half precision, or for matrices whole numbers up to ±127 times a scale for each row (output feature).
    packed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bits == 32:
            packed[name] = tensor.contiguous()
        elif bits == 16 or tensor.ndim < 2:
            packed[name] = tensor.half()
        else:
            scale = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True).clamp(min=1e-30) / 127
            packed[name] = (tensor / scale).round().to(torch.int8)
            packed[name + SCALE] = scale
    return packed


def _unpack(packed: Mapping[str, Tensor]) -> Tensors:
    tensors = dict(packed)
    for name, scale in packed.items():
        base = name.removesuffix(SCALE)
        rows = packed.get(base) if base != name else None
        # A scale that belongs to nothing stays, and is named as left over.
        if rows is not None and rows.dtype == torch.int8 and scale.shape == (len(rows), *[1] * (rows.ndim - 1)):
            tensors[base] = rows * tensors.pop(name)
    return tensors


def rename(tensors: Mapping[str, Tensor], table: Mapping[str, str]) -> Tensors:
    r"""The tensors under new names: the first pattern of `table` that matches a whole name replaces it.

    A name that no pattern matches is kept, so that `load_exactly` names it as left over.

    Args:
        tensors: tensors by name.
        table: regular expression → replacement (`\1` is its first group).

    Raises:
        ValueError: two tensors get the same name.
    """
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in table.items():
            match = re.fullmatch(pattern, name)
            if match:
                name = match.expand(replacement)
                break
        if name in renamed:
            raise ValueError(f"two tensors of the checkpoint are {name}, expected one")
        renamed[name] = tensor
    return renamed


def fuse_qkv(tensors: Mapping[str, Tensor]) -> Tensors:
    """`*.q.*`, `*.k.*` and `*.v.*` put on top of each other as `*.in_proj.*`, the layout of `MultiHeadAttention`.

    Three that differ in shape stay apart, so that `load_exactly` names them.
    """
    fused = dict(tensors)
    for name in tensors:
        parts = [re.sub(r"\.q\.(weight|bias)$", rf".{letter}.\1", name) for letter in "qkv"]
        if not name.endswith((".q.weight", ".q.bias")) or not all(part in tensors for part in parts):
            continue
        if len({tensors[part].shape for part in parts}) == 1:
            fused[re.sub(r"\.q\.(weight|bias)$", r".in_proj.\1", name)] = torch.cat([fused.pop(p) for p in parts])
    return fused


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors into the module's parameters and buffers, none missing and none left over.

    Raises:
        ValueError: a tensor is missing, left over, of another shape, or of integers for floats; they are named.
    """
    _check_fit(module, tensors)
    module.load_state_dict(dict(tensors))


def _check_fit(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    problems = [f"missing {name} {tuple(own[name].shape)}" for name in own if name not in tensors]
    problems += [f"left over {name} {tuple(tensors[name].shape)}" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems += [
        f"{name} has dtype {tensors[name].dtype}, expected {own[name].dtype}"
        for name in own
        if name in tensors and tensors[name].is_floating_point() != own[name].is_floating_point()
    ]
    if problems:
        shown = "\n  ".join(problems[:10] + [f"… and {len(problems) - 10} more"] * (len(problems) > 10))
        raise ValueError(f"the checkpoint does not fit {type(module).__name__}:\n  {shown}")


@contextmanager
def described(source: str | Path) -> Iterator[None]:
    """For reading a configuration: whatever fails on values of a strange kind is a ValueError that names the source."""
    try:
        yield
    except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"{source} describes no model: {type(error).__name__}, {reason[:200]}") from error


class _Shapes(TorchFunctionMode):
    """Leaves out the draws of an initialisation: idle without numbers, and torch takes seconds to load them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def build(
    model: Callable[[Any], Module], config: Any, tensors: Mapping[str, Tensor], initial: tuple[str, ...] = ()
) -> Module:
    """The model of this configuration with these weights; memory is taken only once they are known to fit.

    Args:
        initial: beginnings of the names of parameters that keep their initial values.

    Raises:
        ValueError: as `load_exactly`; or sizes that the tensors cannot have.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        # Each block has a tensor at least, and without this a number alone would keep a processor busy.
        if field.name.endswith(("layers", "blocks")) and value > len(tensors):
            raise ValueError(f"{field.name}={value}, expected at most {len(tensors)}, the number of tensors")
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(initial)}
    held = sum(tensor.nbytes for tensor in tensors.values())
    # Where the sizes could not ask for much, the check is left out: torch takes seconds to load what it needs.
    if _most_bytes(config, len(tensors)) > max(UNCHECKED, 64 * held):
        with described("config.json"), torch.device("meta"), _Shapes():
            shapes = model(config)
        _check_fit(shapes, given | _beginning(shapes, initial))
        tables = sum(buffer.nbytes for name, buffer in shapes.named_buffers() if name not in given)
        if tables > TABLES:
            raise ValueError(f"the sizes ask for tables of {tables} bytes, expected at most {TABLES}")
    with described("config.json"):
        built = model(config)
    load_exactly(built, given | _beginning(built, initial))
    return built


def _most_bytes(config: Any, n_tensors: int) -> int:
    """More than a model of this configuration takes: its two largest sizes are those of each of its tensors."""
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    sizes = [value for value in values if type(value) is int]
    patch = getattr(config, "patch_size", 1)
    sizes.append((getattr(config, "image_size", 1) // patch) ** 2)
    sizes.append(getattr(config, "d_model", 1) * max(getattr(config, "multipliers", (1,))))
    first, second = sorted(sizes)[-2:]
    # Single precision, and three projections in one matrix or nine weights of a convolution.
    return 12 * first * second * patch * n_tensors


def _beginning(module: nn.Module, names: tuple[str, ...]) -> Tensors:
    return {name: tensor for name, tensor in module.state_dict().items() if name.startswith(names)}


def config_from(config_class: type, values: Mapping[str, Any], architecture: str) -> Any:
    """The configuration that `write` stored.

    Raises:
        ValueError: it is of another architecture, or a field is missing or unknown.
    """
    if values.get("paperwalk") != architecture:
        raise ValueError(f"the checkpoint holds a {values.get('paperwalk')!r}, expected {architecture!r}")
    # JSON has lists only, a configuration has tuples.
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "paperwalk"}
    expected = {field.name for field in dataclasses.fields(config_class)}
    if set(given) != expected:
        raise ValueError(
            f"config.json of a {architecture}: unknown fields {sorted(set(given) - expected)}, "
            f"missing fields {sorted(expected - set(given))}"
        )
    with described("config.json"):
        return config_class(**given)


def published_sizes(values: Mapping[str, Any], fields: Mapping[str, str], architecture: str) -> dict[str, Any]:
    """A published config.json under our names.

    Args:
        values: the published configuration.
        fields: our name → theirs.
        architecture: theirs, for the message.

    Raises:
        ValueError: a field is missing.
    """
    missing = [theirs for theirs in fields.values() if theirs not in values]
    if missing:
        raise ValueError(f"config.json of a {architecture} lacks {', '.join(missing)}")
    return {name: values[theirs] for name, theirs in fields.items()}


def write(folder: str | Path, module: nn.Module, architecture: str, config: Any, bits: int = 32) -> None:
    """Write model.safetensors and config.json; each file appears whole or not at all, neither before both are written.

    Args:
        folder: made if it does not exist.
        module: whose parameters and buffers are written.
        architecture: the class name that `config_from` will ask for.
        config: a dataclass.
        bits: of a stored weight: 32, 16 (half precision), or 8 (whole numbers up to ±127, a scale for each row of a
            matrix; vectors in half precision). `read` gives back floats.

    Raises:
        ValueError: `bits` is another number.
    """
    if bits not in (8, 16, 32):
        raise ValueError(f"bits is {bits}, expected 8, 16 or 32")
    tensors = _pack(module.state_dict(), bits)
    text = json.dumps({"paperwalk": architecture, **dataclasses.asdict(config)}, indent=2) + "\n"
    write_whole(folder, {"model.safetensors": safetensors.torch.save(tensors), "config.json": text})
