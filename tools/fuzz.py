"""`make fuzz`: damaged and malicious files for every reader of files of unknown origin.

Each input is made from files that the book itself writes, by changes drawn from (seed, reader, number), so that any of
them can be made again. A reader may return or raise a ValueError (or say that a file is missing); it may not raise
anything else, take more memory or time than it is given, start a program, or die. What breaks this is written to
`_build/fuzz`, and named.
"""

import argparse
import json
import math
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from chapters import ROOT

OUTPUT = ROOT / "_build" / "fuzz"
INPUTS = 100_000
# Bytes that a reader may take beyond what Python and torch hold, and seconds for one input.
MEMORY = 3 << 30
SECONDS = 20
# Findings of one kind that are kept.
KEPT = 3
# What a reader of data has no reason to do.
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.remove", "os.rename"}
NUMBERS = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    0x7FFF,
    0xFFFF,
    0x10000,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**64 - 1,
]
LEAVES = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, math.inf, math.nan, "", "a", "\0",
          "../../etc/passwd", "/etc/passwd", "\ud800", "é" * 300, [], {}, [[]], {"a": 1}, [1, 2, 3]]  # fmt: skip


class Reader(NamedTuple):
    """What is fed.

    Args:
        seeds: whole files, from which damaged ones are made.
        read: reads the bytes of one.
        share: of the inputs, in proportion; more for what is quick.
        wraps: puts a changed content back into its container, so that the changes get past the container's checksums;
            the seeds of such a reader are contents.
    """

    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    share: int = 10
    wraps: Callable[[bytes], bytes] | None = None


class Finding(NamedTuple):
    """An input that broke the rule, and how."""

    reader: str
    number: int
    what: str
    where: str


# Changes


def flip(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Flip one to eight bits."""
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Write a number where a length may stand, in either order of bytes."""
    size, order = rng.choice([("B", 1), ("H", 2), ("I", 4), ("Q", 8)]), rng.choice("<>")
    number = rng.choice(NUMBERS) if rng.random() < 0.7 else max(0, len(data) + rng.randint(-9, 9))
    place = rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data)) if data else 0
    data[place : place + size[1]] = struct.pack(order + size[0], number % 256 ** size[1])


def cut(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Leave out the end, or a part."""
    start = rng.randrange(len(data) + 1)
    del data[start : None if rng.random() < 0.5 else start + rng.randint(1, 64)]


def repeat(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Say a part again, up to a thousand times."""
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.randint(1, 64)]
    data[start:start] = part * rng.choice([1, 2, 10, 1000])


def splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    """Put a part of another file in."""
    start, place = rng.randrange(len(other) + 1), rng.randrange(len(data) + 1)
    part = other[start : start + rng.randint(1, 256)]
    data[place : place + (len(part) if rng.random() < 0.5 else 0)] = part


def noise(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Put random bytes in."""
    place = rng.randrange(len(data) + 1)
    data[place : place + rng.randint(0, 16)] = rng.randbytes(rng.randint(1, 16))


def nest(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Open brackets without end, or close them too."""
    depth, place = rng.choice([10, 1_000, 100_000]), rng.randrange(len(data) + 1)
    opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
    data[place:place] = opening * depth + (b"1" + closing * depth if rng.random() < 0.5 else b"")


def digits(rng: random.Random, data: bytearray, _: bytes) -> None:
    """Make the first number after a place a long one."""
    start = rng.randrange(len(data) + 1)
    found = next((i for i in range(start, len(data)) if 48 <= data[i] < 58), None)
    if found is not None:
        data[found : found + 1] = rng.choice([b"-1", b"9" * 10, b"9" * 40, b"9" * 5000, b"1e400", b"0.1"])


CHANGES = (flip, overwrite, cut, repeat, splice, noise, nest, digits)


def change_json(rng: random.Random, value: object) -> object:
    """The value with one leaf or branch replaced, removed or added, at any depth."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key, draw = rng.choice(list(value)), rng.random()
        if draw < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if draw < 0.2:
            return value | {str(rng.choice(LEAVES)): rng.choice(LEAVES)}
        return value | {key: change_json(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return [*value[:i], *([] if rng.random() < 0.1 else [change_json(rng, value[i])]), *value[i + 1 :]]
    if isinstance(value, int) and rng.random() < 0.4:
        return rng.choice([value + 1, value - 1, value * 2, -value, value * 10**6, value / 2])
    return rng.choice(LEAVES)


def make(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One input: a seed changed one to four times; at times nothing but noise."""
    seed = rng.choice(seeds)
    if rng.random() < 0.01:
        return rng.randbytes(rng.randrange(200))
    value = _as_json(seed) if rng.random() < 0.6 else None
    if value is not None:
        for _ in range(rng.randint(1, 3)):
            value = change_json(rng, value)
        return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    data, other = bytearray(seed), rng.choice(seeds)
    for _ in range(rng.randint(1, 4)):
        rng.choice(CHANGES)(rng, data, other)
    return bytes(data)


def _as_json(data: bytes) -> object:
    try:
        return json.loads(data) if data[:1] in (b"{", b"[", b'"') else None
    except ValueError:
        return None


def made(name: str, reader: Reader, seed: int, number: int) -> bytes:
    """The input of this number."""
    data = make(random.Random(f"{seed} {name} {number}"), reader.seeds)
    return reader.wraps(data) if reader.wraps else data


# The rule


def broken(read: Callable[[bytes], object], data: bytes, started: list[str]) -> tuple[str, str] | None:
    """What the reader did that it may not do, and where; None if it kept to the rule."""
    started.clear()
    try:
        read(data)
    except (ValueError, FileNotFoundError):
        pass
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "paperwalk" in f.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"{type(error).__name__}: {str(error)[:160]}", place
    return (f"it started {started[0]}", "?") if started else None


class Late(BaseException):
    """An input took too long."""


def work(name: str, reader: Reader, seed: int, numbers: range, progress: mmap.mmap, report: Callable) -> None:
    """Feed these inputs, in this process, which has little memory and is told the time."""
    watched, started = [True], []

    def hook(event: str, arguments: tuple) -> None:
        if event in FORBIDDEN and watched[0]:
            started.append(f"{event} {arguments!r}"[:120])

    def late(*_: object) -> None:
        raise Late(f"more than {SECONDS} s")

    sys.addaudithook(hook)
    signal.signal(signal.SIGALRM, late)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    kinds: dict[tuple[str, str], int] = {}
    for number in numbers:
        progress[:8] = struct.pack("<Q", number)
        data = made(name, reader, seed, number)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        found = broken(reader.read, data, started)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if found:
            kind = (found[0].split(":")[0], found[1])
            kinds[kind] = kinds.get(kind, 0) + 1
            if kinds[kind] <= KEPT:
                watched[0] = False
                report(Finding(name, number, *found))
                watched[0] = True
    progress[:8] = struct.pack("<Q", numbers.stop)


def feed(name: str, reader: Reader, seed: int, numbers: range) -> list[Finding]:
    """Feed these inputs in a process of their own; one that dies is begun anew behind the input that killed it."""
    findings: list[Finding] = []
    with tempfile.NamedTemporaryFile("w+", suffix=".jsonl") as said:
        while numbers:
            progress = mmap.mmap(-1, 8)
            child = os.fork()
            if child == 0:
                try:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                    work(name, reader, seed, numbers, progress, lambda f: print(json.dumps(f), file=said, flush=True))
                finally:
                    os._exit(0)
            status = _wait(child, progress)
            (reached,) = struct.unpack("<Q", progress[:8])
            if reached < numbers.stop:
                findings.append(Finding(name, reached, f"the process died, status {status}", "?"))
            numbers = range(reached + 1, numbers.stop)
        said.seek(0)
        return findings + [Finding(*json.loads(line)) for line in said]


def _wait(child: int, progress: mmap.mmap) -> int:
    """The child's status; killed when one input takes so long that not even an alarm stops it."""
    last, since = b"", time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if progress[:8] != last:
            last, since = progress[:8], time.monotonic()
        elif time.monotonic() - since > 3 * SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def main() -> int:
    """Feed all readers, or those named; the exit status is 1 when one broke the rule."""
    from readers import readers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="readers; all by default")
    parser.add_argument("--inputs", type=int, default=INPUTS, help="in all, shared out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first input's number")
    parser.add_argument("--make", type=int, metavar="NUMBER", help="write this input to _build/fuzz and feed it alone")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    total, findings = 0, []
    OUTPUT.mkdir(parents=True, exist_ok=True)
    # In memory where that is possible: most readers want a file.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        known = readers(Path(folder))
        unknown = sorted(set(given.names) - set(known))
        if unknown:
            parser.error(f"no reader {', '.join(unknown)}, expected some of {', '.join(known)}")
        chosen = {name: known[name] for name in given.names or known}
        shares = sum(reader.share for reader in chosen.values())
        for name, reader in chosen.items():
            n = -(-given.inputs * reader.share // shares)
            numbers = range(given.first, given.first + n) if given.make is None else range(given.make, given.make + 1)
            start = time.perf_counter()
            found = feed(name, reader, given.seed, numbers)
            seconds = time.perf_counter() - start
            total += len(numbers)
            print(f"{name}: {len(numbers)} inputs, {len(numbers) / seconds:.0f} a second", flush=True)
            for each in found:
                path = OUTPUT / f"{name.replace(' ', '-').replace('/', '-')}-{given.seed}-{each.number}"
                path.write_bytes(made(name, reader, given.seed, each.number))
                print(f"  {path.relative_to(ROOT)}: {each.what} ({each.where})", flush=True)
            if given.make is not None:
                (OUTPUT / f"{name.replace(' ', '-')}-{given.make}").write_bytes(
                    made(name, reader, given.seed, given.make)
                )
            findings += found
    print(f"{total} inputs, {len(findings)} findings")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
