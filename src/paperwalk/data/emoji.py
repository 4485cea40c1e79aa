"""Decoder of the emoji set: 1,906 concepts, each drawn by two artists, with a name and keywords.

A concept is one entry of Unicode's list; a *family* is the concepts that are one but for gender, skin tone, age or
the side they face ("woman mage", "man mage" and "mage"), or that an artist draws to the pixel alike. What is held out
is held out by families, so that no picture of a held-out concept is trained on under another name.

Sources: npm emoji-datasource-google (Noto Emoji, Apache-2.0), npm emoji-datasource-twitter (Twemoji, CC-BY-4.0),
npm emojibase-data (names and keywords of Unicode CLDR, MIT).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import reduce
from jaxtyping import UInt8
from torch import Tensor

from paperwalk.data.archives import read_members
from paperwalk.data.decode import opened
from paperwalk.data.sources import Arrays, progress
from paperwalk.files import parse_json

PACKAGES = ("emoji-datasource-google@16.0.0", "emoji-datasource-twitter@16.0.0", "emojibase-data@17.0.0")
ARTISTS = ("google", "twitter")
EMOJI_KEYS = ("images", "concepts")
PUBLISHED_SIDE = 64
SIDE = 32
N_HELD_OUT = 200

SKIN_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
# Joiner, the sign for "as a picture", woman's and man's sign, "facing right".
MARKS = {"200D", "FE0F", "2640", "2642", "27A1"}
ADULTS = {"1F468", "1F469", "1F9D1"}
CHILDREN = {"1F466", "1F467", "1F9D2"}
# One concept that Unicode gives a code for each gender or age, or that is written in two ways.
ALIKE = (
    ("1F9D1", "1F471", "1F9D1-1F9B0", "1F9D1-1F9B1", "1F9D1-1F9B2", "1F9D1-1F9B3", "1F9D4"),
    ("1F9D2", "1F466", "1F467"),
    ("1F9D3", "1F474", "1F475"),
    ("1F934", "1F478", "1FAC5"),
    ("1F930", "1FAC3", "1FAC4"),
    ("1F931", "1F9D1-1F37C"),
    ("1F385", "1F936", "1F9D1-1F384"),
    ("1F57A", "1F483"),
    ("1F46B", "1F46C", "1F46D", "1F9D1-1F91D-1F9D1"),
    ("1F48F", "1F9D1-2764-1F48B-1F9D1"),
    ("1F491", "1F9D1-2764-1F9D1"),
)
FAMILY = "1F46A"


class Concept(NamedTuple):
    """One entry of Unicode's list.

    Attributes:
        name: as in Unicode's CLDR, "red heart".
        keywords: of CLDR, without the name's own words.
        kind: what the list files it under, "hearts".
        family: the code of one member.
    """

    name: str
    keywords: tuple[str, ...]
    kind: str
    family: str


def family_of(code: str) -> str:
    """The family of a code such as ``1F9D9-200D-2640-FE0F`` (woman mage): here ``1F9D9`` (mage)."""
    # A mark alone (♀) is a concept of its own.
    parts = [part for part in code.split("-") if part not in MARKS | SKIN_TONES] or [code.split("-")[0]]
    parts = ["1F9D1" if part in ADULTS else part for part in parts]
    people = ADULTS | CHILDREN
    if len(parts) > 1 and all(part in people for part in parts):
        return FAMILY
    key = "-".join(parts)
    return next((alike[0] for alike in ALIKE if key in alike), key)


def held_out_families(families: Sequence[str], n: int = N_HELD_OUT) -> tuple[str, ...]:
    """The n families whose SHA-256 is smallest: the same ones on every machine, whatever else is in the list.

    Raises:
        ValueError: there are no n families.
    """
    distinct = set(families)
    if not 0 < n <= len(distinct):
        raise ValueError(f"{n} of {len(distinct)} families, expected 1 to {len(distinct)}")
    return tuple(sorted(distinct, key=lambda family: hashlib.sha256(family.encode()).hexdigest())[:n])


def read_picture(data: bytes) -> UInt8[np.ndarray, "4 32 32"]:
    """A 64 x 64 PNG as red, green, blue and opacity, each the mean of 2 x 2 pixels; transparent pixels count nothing.

    Raises:
        ValueError: damaged, no PNG, or of another size.
    """
    with opened(data, ["PNG"], f"damaged PNG of {len(data)} bytes") as image:
        if image.size != (PUBLISHED_SIDE, PUBLISHED_SIDE):
            raise ValueError(f"PNG of {image.size} pixels, expected {PUBLISHED_SIDE} x {PUBLISHED_SIDE}")
        pixels = np.asarray(image.convert("RGBA")).astype(np.int64)
    block = PUBLISHED_SIDE // SIDE
    # In integers, rounded half up, so that every machine has the same bytes.
    alpha = pixels[..., 3:]
    pattern = "(h bh) (w bw) c -> c h w"
    colour = reduce(pixels[..., :3] * alpha, pattern, "sum", bh=block, bw=block)
    weight = reduce(alpha, pattern, "sum", bh=block, bw=block)
    colour = (2 * colour + weight) // np.maximum(2 * weight, 1)
    opacity = (2 * weight + block**2) // (2 * block**2)
    return np.concatenate([colour, opacity]).astype(np.uint8)


def _concept(entry: Mapping[str, Any], kinds: Mapping[int, str], family: str) -> Concept:
    words = set(re.findall(r"\w+", entry["label"].lower()))
    keywords = tuple(tag for tag in entry.get("tags", ()) if tag.lower() not in words)
    return Concept(entry["label"], keywords, kinds[entry["subgroup"]], family)


def _families(codes: Sequence[str], pictures: UInt8[np.ndarray, "a b 4 32 32"]) -> list[str]:
    """The family of each code; those that an artist draws alike are joined."""
    families = [family_of(code) for code in codes]
    for artist in pictures:
        first: dict[bytes, str] = {}
        for i, picture in enumerate(artist):
            mine = families[i]
            twin = first.setdefault(picture.tobytes(), mine)
            if twin != mine:
                families = [twin if family == mine else family for family in families]
                first = {key: twin if value == mine else value for key, value in first.items()}
    return families


def _entries(table: bytes, what: str) -> list[Mapping[str, Any]]:
    entries = parse_json(table, what)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{what} is not a list of objects, expected one an emoji")
    return entries


def decode_emoji(paths: list[Path]) -> Arrays:
    """Pictures and concepts from the tarballs of ``PACKAGES``, in the order of Unicode's list; no skin-tone samples.

    Raises:
        ValueError: a package holds something else.
    """
    try:
        return _decode(paths)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"a package holds other tables than expected: {error!r}") from error


def _decode(paths: list[Path]) -> Arrays:
    (drawn,) = read_members(paths[0], ["package/emoji.json"])
    named, messages = read_members(paths[2], ["package/en/data.json", "package/en/messages.json"])
    kinds = {
        subgroup["order"]: subgroup["message"] for subgroup in parse_json(messages, "en/messages.json")["subgroups"]
    }

    def bare(code: str) -> str:
        return code.replace("-FE0F", "")

    names = {bare(entry["hexcode"]): entry for entry in _entries(named, "en/data.json")}
    entries = [entry for entry in _entries(drawn, "emoji.json") if entry["unified"] not in SKIN_TONES]
    entries.sort(key=lambda entry: entry["sort_order"])
    missing = [entry["unified"] for entry in entries if bare(entry["unified"]) not in names]
    if missing:
        raise ValueError(f"{len(missing)} emoji have no name, the first {missing[0]}, expected a name for each")
    pictures = []
    with progress("emoji", len(ARTISTS) * len(entries), "picture") as bar:
        for artist, path in zip(ARTISTS, paths, strict=False):
            files = [f"package/img/{artist}/{PUBLISHED_SIDE}/{entry['image']}" for entry in entries]
            pictures.append(np.stack([read_picture(data) for data in read_members(path, files)]))
            bar.update(len(entries))
    images = np.ascontiguousarray(np.stack(pictures))
    families = _families([entry["unified"] for entry in entries], images)
    concepts = [
        _concept(names[bare(entry["unified"])], kinds, family) for entry, family in zip(entries, families, strict=True)
    ]
    text = json.dumps(concepts, ensure_ascii=False).encode()
    return {"images": torch.from_numpy(images), "concepts": torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def read_concepts(data: UInt8[Tensor, " n"]) -> tuple[Concept, ...]:
    """The concepts that ``decode_emoji`` wrote."""
    return tuple(
        Concept(name, tuple(tags), kind, family) for name, tags, kind, family in json.loads(data.numpy().tobytes())
    )
