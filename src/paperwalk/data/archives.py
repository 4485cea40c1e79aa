"""Readers of published archives: named members only, into memory, with a limit on their size.

Nothing is ever extracted onto the disk and nothing is unpickled, so an archive from a foreign host can at
worst be refused.
"""

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

# Twice the largest member of any dataset here (47 MB: the training images of MNIST).
MEMBER_LIMIT = 100 << 20

# Of a whole archive, unpacked, and of what stands before a member: names longer than a hundred bytes and the like.
ARCHIVE_LIMIT = 1 << 31
HEADER_LIMIT = 1 << 14

_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, OverflowError, RecursionError)


class _Bounded:
    """An unpacked archive of which little may be read at once, for tarfile believes any length that it reads."""

    def __init__(self, file: gzip.GzipFile):
        self._file = file
        self.limit = HEADER_LIMIT
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.limit:
            raise ValueError(f"{size} bytes at once, expected at most {self.limit}")
        return self._file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        if not 0 <= place <= ARCHIVE_LIMIT:
            raise ValueError(f"byte {place}, expected at most {ARCHIVE_LIMIT}")
        return self._file.seek(place, whence)


def read_members(path: Path, names: Sequence[str]) -> list[bytes]:
    """Contents of the regular files ``names`` in the ``.tar.gz`` at ``path``, in the order of ``names``.

    Raises:
        ValueError: a truncated or damaged archive, a member that is missing, not a regular file or too large.
        OSError: the file cannot be read.
    """
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as unpacked, tarfile.open(fileobj=(file := _Bounded(unpacked)), mode="r:") as archive:
            for member in archive:
                # A size below zero would lead back, again and again.
                if member.size < 0:
                    raise ValueError(f"member {member.name} of {member.size} bytes, expected at least 0")
                if member.name not in names:
                    continue
                if not member.isfile() or member.size > MEMBER_LIMIT:
                    raise ValueError(
                        f"member {member.name} of {member.size} bytes, "
                        f"expected a regular file of at most {MEMBER_LIMIT}"
                    )
                content = archive.extractfile(member)
                assert content is not None
                file.limit = MEMBER_LIMIT
                found[member.name] = content.read()
                file.limit = HEADER_LIMIT
                if len(found) == len(names):
                    break
    except _DAMAGED as error:
        raise ValueError(f"{path.name}: truncated or damaged archive ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path.name}: expected members {', '.join(missing)} are not in the archive")
    return [found[name] for name in names]


def read_gzip(path: Path) -> bytes:
    """Content of the ``.gz`` file at ``path``.

    Raises:
        ValueError: a truncated or damaged file, or a content too large.
        OSError: the file cannot be read.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(MEMBER_LIMIT + 1)
    except _DAMAGED as error:
        raise ValueError(f"{path.name}: truncated or damaged gzip file ({error})") from error
    if len(content) > MEMBER_LIMIT:
        raise ValueError(f"{path.name}: content of more than {MEMBER_LIMIT} bytes, the most expected")
    return content
