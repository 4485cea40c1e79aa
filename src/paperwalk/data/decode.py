"""Pictures and tables from files of unknown origin: whatever is wrong with them is a ValueError."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

# Pixels of a picture, which take four bytes each while it is read.
PIXEL_LIMIT = 1 << 26


@contextmanager
def opened(source: Path | bytes, formats: Sequence[str], wrong: str) -> "Iterator[Image]":
    """The picture in a file or in its bytes; its pixels are decoded when they are asked for.

    Args:
        formats: as Pillow names them. Only these are looked for: some others start a program to be read.
        wrong: how the message begins.

    Raises:
        ValueError: not such a picture, damaged, or of more pixels than `PIXEL_LIMIT`; and what else fails in the block.
    """
    from PIL import Image

    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file, formats=formats) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise ValueError(f"{image.width} x {image.height} pixels, expected at most {PIXEL_LIMIT}")
            yield image
    except Exception as error:
        # On damaged files the decoders fail with whatever they stumble over: SyntaxError, struct.error, IndexError, …
        raise ValueError(f"{wrong}: {error or type(error).__name__}") from error
