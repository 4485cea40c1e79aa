"""Pictures with captions: the emoji, or a file of one's own; what is held out of them; captions and pictures as drawn.

A *subject* is what one caption is about: a concept of the emoji, or a caption of the file. It has a picture or several,
and phrases that can be said of it.
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from paperwalk.data import load
from paperwalk.data.emoji import N_HELD_OUT, held_out_families
from paperwalk.data.pairs import read_pairs
from paperwalk.data.pictures import Picture

# A country's name does not say what its flag looks like.
FLAGS = ("country flags", "subdivision flags")
# Words whose pictures a mirror would make wrong; letters and digits too.
NO_MIRROR = re.compile(r"\b(left|right|button|keycap|clock|input|mark|clef|letter)", re.IGNORECASE)
FEWEST = 100

Phrases = Sequence[str]


class Captioned(NamedTuple):
    """Subjects with their pictures.

    Attributes:
        pictures: of each subject, one by each artist (of a file, as many as it has): red, green, blue and opacity,
            uint8 (4 h w), or the file to read.
        phrases: of each subject, its name first.
        artists: who drew.
        groups: the subjects to learn from; those of one group are too much alike to be told apart.
        held_out: the subjects to ask about.
    """

    pictures: Sequence[Sequence[Picture]]
    phrases: Sequence[Phrases]
    artists: tuple[str, ...]
    groups: list[list[int]]
    held_out: list[int]

    def only(self, artist: str) -> "Captioned":
        """With the pictures of one artist alone."""
        k = self.artists.index(artist)
        return self._replace(pictures=[(each[k],) for each in self.pictures], artists=(artist,))

    def training_captions(self) -> list[str]:
        """The full captions of the subjects to learn from."""
        return [full_caption(self.phrases[i]) for group in self.groups for i in group]


def captioned_emoji() -> Captioned:
    """The emoji but flags of places; 200 families are held out by hash, the first of each asked about."""
    data = load("emoji")
    members: dict[str, list[int]] = {}
    for i, concept in enumerate(data.concepts):
        if concept.kind not in FLAGS:
            members.setdefault(concept.family, []).append(i)
    secret = set(held_out_families(list(members)))
    return Captioned(
        pictures=list(data.images.transpose(0, 1)),
        phrases=[(concept.name, concept.kind, *concept.keywords) for concept in data.concepts],
        artists=data.artists,
        groups=[found for family, found in members.items() if family not in secret],
        held_out=[found[0] for family, found in members.items() if family in secret],
    )


def read_captioned(path: str | Path) -> Captioned:
    """The pictures and captions of a file; a tenth of the captions, at most 200, chosen by hash, is held out.

    Args:
        path: `.tsv`, picture and caption with a tab between them; or `.jsonl`, `{"picture": …, "caption": …}`. Pictures
            are named from the file's own folder. Pictures with the same caption are of one subject.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no such pair, or whose picture is missing, named by its number; too few captions.
    """
    folder = Path(path).parent

    def check(picture: str, _: str) -> None:
        try:
            found = (folder / picture).is_file()
        except OSError as error:
            raise ValueError(f"no file {picture[:80]!r}…: {error.strerror}") from None
        if not found:
            raise ValueError(f"no file {folder / picture}")

    pictures: dict[str, list[Path]] = {}
    for picture, caption in read_pairs(path, ("picture", "caption"), check):
        pictures.setdefault(caption, []).append(folder / picture)
    if len(pictures) < FEWEST:
        raise ValueError(f"{path} has {len(pictures)} different captions, expected at least {FEWEST}")
    captions = list(pictures)
    secret = set(held_out_families(captions, min(N_HELD_OUT, len(captions) // 10)))
    return Captioned(
        pictures=list(pictures.values()),
        phrases=[(caption,) for caption in captions],
        artists=("pictures",),
        groups=[[i] for i, caption in enumerate(captions) if caption not in secret],
        held_out=[i for i, caption in enumerate(captions) if caption in secret],
    )


def may_mirror(subjects: Sequence[Phrases]) -> Bool[Tensor, " b"]:
    """Whether the pictures of these subjects may be mirrored."""
    return torch.tensor([not NO_MIRROR.search(full_caption(phrases)) for phrases in subjects])


def full_caption(phrases: Phrases) -> str:
    """All that can be said: what a subject is looked up by."""
    return ", ".join(phrases)


def sample_caption(phrases: Phrases, rng: random.Random, keep: float) -> str:
    """A caption to train on: each phrase but the name with probability `keep`, in any order, and mostly the name.

    Captions seldom repeat, so that words are learned rather than captions.
    """
    name, *others = phrases
    words = [phrase for phrase in others if rng.random() < keep]
    rng.shuffle(words)
    if words and rng.random() < 0.2:
        return ", ".join(words)
    return ", ".join([name, *words] if rng.random() < 0.5 else [*words, name])
