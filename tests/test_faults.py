"""Every write interrupted at every point: what was there is whole, nothing is left over, the next one works."""

import errno
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import build
import cells
import new
import sync
from paperwalk import experiments, files
from paperwalk.data import cache, pairs
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.tokenizers import BytePairTokenizer, CharTokenizer, ClipTokenizer
from paperwalk.train import runs
from paperwalk.train.state import State, newest_state, write_state

TALE = "the whale and the sea, the sea and the whale; he sails and sails, and the whale is there. "


def a_gpt(version: int) -> GPT:
    torch.manual_seed(version)
    return GPT(GPTConfig(vocab_size=9, block_size=3, d_model=4 * version, n_layers=1, n_heads=2, d_mlp=4))


def a_state(folder: Path, version: int, step: int = 7) -> None:
    tensors = {"a": torch.full((1000,), float(version))}
    write_state(folder, State(step, tensors, {"version": version}), keep=2)


def an_experiment(folder: Path, version: int) -> None:
    threads = torch.get_num_threads()
    (folder / "a.json").unlink(missing_ok=True) if version == 0 else None
    experiments.run_missing(folder / "a.json", {f"run {i}": lambda: 1.0 for i in range(version)})
    torch.set_num_threads(threads)


def a_cache(folder: Path, version: int) -> None:
    os.environ["PAPERWALK_DATA"] = str(folder)
    cache.write_cache("a", {"text": torch.full((100,), version, dtype=torch.uint8)})


def a_list(folder: Path, version: int) -> None:
    if not (folder / "toc").exists():
        files.write_whole(folder, {"toc": "file: a\n"})
    new.insert(folder / "toc", "^file: a", f"file: {version}")


# What writes a version, 1 or 2, into a folder.
WRITERS: dict[str, Callable[[Path, int], object]] = {
    "checkpoint": lambda folder, version: a_gpt(version).save_pretrained(folder),
    "card": lambda folder, version: runs.write_json(folder / "card.json", {"version": [version] * 99}),
    "byte pairs": lambda folder, version: BytePairTokenizer.train(TALE, 260 + version).save(folder),
    "CLIP's pairs": lambda folder, version: ClipTokenizer.train([TALE], 520 + version).save(folder),
    "characters": lambda folder, version: CharTokenizer(TALE[: 9 * version]).save(folder),
    "symbols": lambda folder, version: pairs.PairTokenizer((*pairs.SPECIAL, "a" * version)).save(folder),
    "keys of a build": lambda folder, version: build.replace(folder / "keys.json", "ab" * version),
    "pair of a chapter": lambda folder, version: sync.write(folder / "one.py", "x = 1\n" * version),
    "experiment": an_experiment,
    "cache": a_cache,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Faults:
    """The n-th write, or renaming, fails: it is done to the half, or not at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]):
        self.left, self._fail = -1, fail
        monkeypatch.setattr(Path, "write_bytes", self._half(Path.write_bytes))
        monkeypatch.setattr(Path, "write_text", self._half(Path.write_text))
        monkeypatch.setattr(
            cache, "save_file", self._half(lambda path, arrays: safetensors.torch.save_file(arrays, path))
        )
        for owner, name in ((os, "replace"), (os, "rename"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._none(getattr(owner, name)))

    def _now(self) -> bool:
        self.left -= 1
        return self.left == -1

    def _half(self, write: Callable) -> Callable:
        def writes(first, second, *rest, **options):
            path, content = (first, second) if isinstance(first, Path) else (second, first)
            if self._now():
                with path.open("wb") as file:
                    file.write(b"half of it")
                self._fail()
            return write(path, content, *rest, **options)

        return writes

    def _none(self, do: Callable) -> Callable:
        def does(*arguments, **options):
            if self._now():
                self._fail()
            return do(*arguments, **options)

        return does


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def stopped() -> None:
    raise KeyboardInterrupt


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    # Put back after the test.
    monkeypatch.setenv("PAPERWALK_DATA", "/nowhere")


@pytest.fixture
def versions(tmp_path):
    def make(write: Callable[[Path, int], object]) -> tuple[dict[str, bytes], dict[str, bytes]]:
        folder = tmp_path / "expected"
        folder.mkdir()
        found = []
        for version in (1, 2):
            write(folder, version)
            found.append(contents(folder))
        return found[0], found[1]

    return make


@pytest.mark.parametrize("fail", [full, stopped])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_write_that_fails_at_any_point_leaves_what_was_there(write, fail, versions, tmp_path, monkeypatch):
    first, second = versions(write)
    for before in (None, first):
        for n in range(20):
            folder = tmp_path / f"{before is None} {n}"
            folder.mkdir()
            if before:
                write(folder, 1)
            with monkeypatch.context() as patch:
                faults = Faults(patch, fail)
                faults.left = n
                try:
                    write(folder, 2)
                except (OSError, KeyboardInterrupt):
                    failed = True
                else:
                    failed = faults.left <= -1
            found = contents(folder)
            assert all(content in (first.get(name), second[name]) for name, content in found.items()), (n, [*found])
            assert set(before or {}) <= set(found)
            write(folder, 2)
            assert contents(folder) == second
            if not failed:
                assert n, "nothing was interrupted"
                break
        else:
            raise AssertionError("more than 20 points")


def in_a_process(do: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            do()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


@pytest.mark.parametrize("n", range(4))
@pytest.mark.parametrize("name", ["checkpoint", "card", "byte pairs", "cache"])
def test_a_process_killed_at_any_point_leaves_what_was_there(name, n, versions, tmp_path, monkeypatch):
    write = WRITERS[name]
    first, second = versions(write)
    folder = tmp_path / "target"
    folder.mkdir()
    write(folder, 1)

    def die() -> None:
        Faults(monkeypatch, killed).left = n
        write(folder, 2)

    os.waitpid(in_a_process(die), 0)
    whole = {k: v for k, v in contents(folder).items() if k in first}
    assert all(content in (first[k], second[k]) for k, content in whole.items())
    assert set(whole) == set(first)
    # Of this moment it could be another process's; an hour later it is not.
    for left in set(contents(folder)) - set(first):
        os.utime(folder / left, (0, time.time() - files.LEFT - 1))
    write(folder, 2)
    assert contents(folder) == second


@pytest.mark.parametrize("name", ["checkpoint", "card", "characters", "keys of a build"])
def test_two_that_write_the_same_at_once_leave_one_of_both_whole(name, versions, tmp_path):
    write = WRITERS[name]
    first, second = versions(write)
    folder = tmp_path / "target"
    folder.mkdir()

    def often(version: int) -> None:
        for _ in range(20):
            write(folder, version)

    children = [in_a_process(lambda version=version: often(version)) for version in (1, 2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = contents(folder)
    assert set(found) == set(first)
    assert all(content in (first[k], second[k]) for k, content in found.items())


@pytest.mark.parametrize("write", [w for n, w in WRITERS.items() if n not in ("experiment", "cache")])
def test_a_folder_that_cannot_be_is_named_and_left_alone(write, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OSError, match="file"):
        write(tmp_path / "file", 1)
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_source_that_is_edited_by_a_tool_is_never_half_written(tmp_path, monkeypatch):
    source = "```{code-cell} python\nx = {'a':1}\n```\n"
    (tmp_path / "one.md").write_text(source)
    monkeypatch.setattr(cells, "chapters", lambda: [tmp_path / "one.md"])
    monkeypatch.setattr("sys.argv", ["cells.py"])
    monkeypatch.setattr(cells, "formatted", lambda code: code.replace(":", ": "))
    a_list(tmp_path, 1)
    before = contents(tmp_path)
    for do in (cells.main, lambda: a_list(tmp_path, 2)):
        with monkeypatch.context() as patch:
            for n in range(3):
                Faults(patch, full).left = n
                with pytest.raises(OSError, match="No space left"):
                    do()
                patch.undo()
                assert contents(tmp_path) == before


# States of a run


@pytest.mark.parametrize("fail", [full, stopped])
@pytest.mark.parametrize("step", [5, 7, 9])
def test_a_state_that_fails_at_any_point_leaves_one_to_go_on_from(step, fail, tmp_path, monkeypatch):
    for n in range(20):
        folder = tmp_path / str(n)
        a_state(folder, 1)
        with monkeypatch.context() as patch:
            faults = Faults(patch, fail)
            faults.left = n
            try:
                a_state(folder, 2, step)
                failed = faults.left <= -1
            except (OSError, KeyboardInterrupt):
                failed = True
        found = newest_state(folder)
        assert found is not None
        assert (found.step, found.values["version"]) in ((7, 1), (step, 2))
        assert float(found.tensors["a"][0]) == found.values["version"]
        assert not list(folder.glob(".*"))
        a_state(folder, 2, step)
        assert newest_state(folder).values == {"version": 2}
        if not failed:
            assert n
            break


@pytest.mark.parametrize("n", range(6))
def test_a_process_killed_while_it_writes_a_state_leaves_one(n, tmp_path, monkeypatch):
    a_state(tmp_path, 1)

    def die() -> None:
        Faults(monkeypatch, killed).left = n
        a_state(tmp_path, 2)

    os.waitpid(in_a_process(die), 0)
    found = newest_state(tmp_path)
    assert found is not None
    assert found.values["version"] in (1, 2)
    a_state(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    assert newest_state(tmp_path).values == {"version": 2}


# What the mutants of `make mutants` showed to be without a judge here.


def test_only_what_a_killed_process_left_long_ago_is_removed(tmp_path):
    old = time.time() - files.LEFT - 1
    for name, when in ((".a.txt.123", old), (".a.txt.456", time.time()), (".a.txt.bak", old), (".b.txt.123", old)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    files.write_whole(str(tmp_path), {"a.txt": "é"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.txt.456", ".a.txt.bak", ".b.txt.123", "a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9"


def test_a_rest_that_another_process_removes_first_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([self / ".a.txt.123"]))
    files.write_whole(tmp_path, {"a.txt": "new"})
    assert (tmp_path / "a.txt").read_text() == "new"
