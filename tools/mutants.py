"""`make mutants`: small mistakes made on purpose, one at a time, in the model and data files; the tests must notice.

A process that has imported everything and run the tests once, noting which lines each of them runs, forks a child for
each mutant. The child puts the mutated code in place and runs the tests that reach it, the quickest first, until one
fails. What no test notices is killed by a new test, or listed in `tools/equivalents.toml` with the reason.

mutmut leaves out what has a decorator and what stands outside functions, and cannot work together with the run-time
check of shapes, which is a part of our tests.
"""

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import tomllib
import types
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

from chapters import ROOT

PACKAGE = ROOT / "src" / "paperwalk"
RESULTS = ROOT / "tools" / "mutants.json"
EQUIVALENTS = ROOT / "tools" / "equivalents.toml"
SHARE = 0.95
# The exit status of a child that could not judge.
BROKEN = 99
# Of the tests that reach a mutant: the slowest that is asked, and all together, in seconds.
SLOWEST = 3.0
BUDGET = 20.0
# The tests of a file are those of its stem, except for these: a mistake is to be noticed where its file is tested.
JUDGES = {
    **{"nn/attention": "nn", "nn/block": "nn transformer", "nn/mlp": "nn"},
    **dict.fromkeys(["nn/patches", "nn/positions"], "nn_grid"),
    **{"nn/checks": "vit transformer", "nn/convolution": "unet", "nn/search": "transformer"},
    **{"samplers": "ddpm", "generate": "gpt", "probe": "mae_recipe"},
    **{"checkpoints": "checkpoints fuzz", "files": "checkpoints faults"},
    **{
        "vit": "vit checkpoints",
        "published/vit": "vit checkpoints",
        "published/ddpm": "unet",
        "published/clip": "clip",
    },
    **{"tokenizers/characters": "bpe", "tokenizers/ids": "bpe", "tokenizers/clip": "clip_tokenizer"},
    **dict.fromkeys([f"data/{x}" for x in ("archives", "cache", "images", "sources", "table", "__init__")], "data"),
    "data/decode": "emoji",
    **{"data/pictures": "captions", "data/texts": "data gpt"},
}

SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    **{ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.Pow: ("**", "*")},
    **{ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "/"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<")},
    **{ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.And: ("and", "or"), ast.Or: ("or", "and")},
    **{ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")},
    **{ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")},
    **{ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")},
}
NAMES = ["min max", "any all", "sum mean", "zeros ones", "zeros_like ones_like", "tril triu", "cos sin", "amin amax"]
NAMES += ["argmin argmax", "floor ceil", "minimum maximum", "clamp_min clamp_max", "ones_ zeros_", "isdigit isalpha"]
RENAMED = {a: b for pair in NAMES for a, b in (pair.split(), pair.split()[::-1])}


class Mutant(NamedTuple):
    """A mistake: the changed source, and where it stands.

    Args:
        function: qualified name of the outermost function around it; "" outside of functions.
        lines: the statement's first and last line, or the function's where a default was changed.
        default: whether it stands in the function's signature.
        before, after: the changed lines.
    """

    source: str
    function: str
    lines: tuple[int, int]
    default: bool
    before: str
    after: str
    text: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What names a mutant as long as its line stays the same."""
        return self.function, self.before, self.after


# Making mutants


class Maker(ast.NodeVisitor):
    """Collects the edits of a source: first and last byte, the new text, where."""

    def __init__(self, data: bytes):
        self.data, self.edits = data, []
        self.starts = [0, *(i + 1 for i, byte in enumerate(data) if byte == 10)]
        self.names: list[str] = []
        self.function, self.lines, self.default = "", (0, 0), False

    def span(self, node: Any) -> tuple[int, int]:
        """The bytes of a node."""
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        """The source of a node."""
        start, end = self.span(node)
        return self.data[start:end].decode()

    def edit(self, start: int, end: int, new: str) -> None:
        """Note a mutant."""
        self.edits.append((start, end, new, self.function, self.lines, self.default))

    def swap(self, left: ast.AST, operator: ast.AST, right: ast.AST) -> None:
        """Another operator between two nodes."""
        if type(operator) in SWAPS:
            old, new = SWAPS[type(operator)]
            start, end = self.span(left)[1], self.span(right)[0]
            pattern = re.escape(old.encode()).replace(rb"\ ", rb"\s+")
            match = re.search(pattern, self.data[start:end])
            if match:
                self.edit(start + match.start(), start + match.end(), new)

    def visit(self, node: ast.AST) -> None:
        """Edits of this node, then of those inside; nothing in annotations, messages and docstrings."""
        if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Global | ast.Nonlocal):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return self.definition(node)
        before = self.lines
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            self.lines = node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
            self.statement(node)
        if not isinstance(node, ast.Raise):
            getattr(self, f"visit_{type(node).__name__}", lambda _: None)(node)
            for name, child in ast.iter_fields(node):
                if name not in ("annotation", "type_params", "decorator_list"):
                    for each in child if isinstance(child, list) else [child]:
                        if isinstance(each, ast.AST) and not self.is_text(node, each):
                            self.visit(each)
        self.lines = before

    def is_text(self, node: ast.AST, child: ast.AST) -> bool:
        """Whether the child is a docstring, a list of names for `import *`, or an annotation outside a signature."""
        if isinstance(node, ast.Expr) and isinstance(child, ast.Constant):
            return True
        if isinstance(node, ast.Assign):
            annotation = not self.function and isinstance(node.value, ast.Subscript)
            return child is node.value and (self.text(node.targets[0]) == "__all__" or annotation)
        return isinstance(node, ast.Call) and self.text(node.func).endswith(("warn", "Error", "cast", "TypeVar"))

    def definition(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        """A function or class; within a function, inner ones belong to the outermost."""
        outer = self.function, self.lines, self.default
        self.names.append(node.name)
        if isinstance(node, ast.FunctionDef) and not self.function:
            self.function, self.lines = ".".join(self.names), (node.body[0].lineno, node.end_lineno or 0)
            self.default = True
            for value in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
                self.visit(value)
        self.default = False
        for each in node.body:
            self.visit(each)
        self.names.pop()
        self.function, self.lines, self.default = outer

    def statement(self, node: ast.stmt) -> None:
        """A statement left out; nothing returned."""
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if self.function and isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.Raise) and not docstring:
            self.edit(*self.span(node), "pass")
        if isinstance(node, ast.Return) and node.value is not None and self.text(node.value) != "None":
            self.edit(*self.span(node.value), "None")
        if isinstance(node, ast.Break | ast.Continue):
            self.edit(*self.span(node), "continue" if isinstance(node, ast.Break) else "break")

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Another operator."""
        self.swap(node.left, node.op, node.right)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Another operator."""
        self.swap(node.target, node.op, node.value)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """And for or."""
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.swap(left, node.op, right)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Another comparison."""
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.swap(left, operator, right)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Without its sign."""
        self.edit(self.span(node)[0], self.span(node.operand)[0], "")

    def negate(self, node: Any) -> None:
        """The other branch."""
        test = node.test
        if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant):
            self.edit(*self.span(test), f"not ({self.text(test)})")

    visit_If = visit_IfExp = visit_While = negate

    def visit_Call(self, node: ast.Call) -> None:
        """A keyword left out, or the last argument; a function exchanged for its opposite."""
        given = sorted([*node.args, *node.keywords], key=self.span)
        for i, each in enumerate(given):
            last = i == len(given) - 1 and not isinstance(each, ast.Starred | ast.GeneratorExp)
            if isinstance(each, ast.keyword) or last:
                start, end = self.span(each)
                if i:
                    start = self.span(given[i - 1])[1]
                elif len(given) > 1:
                    end = self.span(given[1])[0]
                self.edit(start, end, "")
        name = node.func.attr if isinstance(node.func, ast.Attribute) else self.text(node.func)
        if name in RENAMED:
            end = self.span(node.func)[1]
            self.edit(end - len(name), end, RENAMED[name])

    def visit_Slice(self, node: ast.Slice) -> None:
        """Without one of its bounds."""
        for bound in (node.lower, node.upper, node.step):
            if bound is not None:
                self.edit(*self.span(bound), "")

    def visit_Constant(self, node: ast.Constant) -> None:
        """The next numbers, the other truth, another name; no prose, addresses or checksums."""
        value = node.value
        if isinstance(value, bool):
            new = [str(not value)]
        elif isinstance(value, int):
            new = [str(value + 1), *([str(value - 1)] if value > 0 else [])]
        elif isinstance(value, float):
            new = [repr(value * 2 or 1.0)]
        elif isinstance(value, str) and value and ("->" in value or not re.search(r"\s|://|^[0-9a-f]{32,}$", value)):
            new = [re.sub(r"""^(\w*(?:'''|\"""|'|"))""", r"\1XX", self.text(node))]
        else:
            new = []
        for each in new:
            self.edit(*self.span(node), each)


def mutants(source: str, text: str) -> list[Mutant]:
    """All mutants of a text that are Python."""
    data, made = text.encode(), []
    maker = Maker(data)
    maker.visit(ast.parse(text))
    for start, end, new, function, lines, default in maker.edits:
        changed = (data[:start] + new.encode() + data[end:]).decode()
        first, last = data.rfind(b"\n", 0, start) + 1, data.find(b"\n", end)
        before, after = data[first:last], data[first:start] + new.encode() + data[end:last]
        try:
            compile(changed, source, "exec")
        except SyntaxError:
            continue
        made.append(
            Mutant(source, function, lines, default, *(" ".join(x.decode().split()) for x in (before, after)), changed)
        )
    return made


# Files, their judges, and what is known of them


def path_of(source: str) -> Path:
    """The file of `nn/mlp`."""
    return PACKAGE / f"{source}.py"


def sources() -> list[str]:
    """The model and data files, leaves first."""
    top = "vit samplers ddpm unet mae gpt transformer clip generate metrics quality probe zero_shot checkpoints files"
    folders = {f: sorted(p.stem for p in (PACKAGE / f).glob("*.py")) for f in ("nn", "tokenizers", "published", "data")}
    within = {f: [f"{f}/{stem}" for stem in stems if not stem.startswith("__")] for f, stems in folders.items()}
    return [*within.pop("nn"), *top.split(), *(name for names in within.values() for name in names), "data/__init__"]


def judges(source: str) -> list[Path]:
    """The test files that judge a source: its own."""
    stems = JUDGES.get(source, Path(source).name)
    return [ROOT / "tests" / f"test_{stem}.py" for stem in stems.split()]


def sha(paths: Iterable[Path]) -> str:
    """A short SHA-256 of files."""
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in paths)).hexdigest()[:16]


def equivalents() -> dict[str, dict[tuple[str, str, str], str]]:
    """The mutants that compute the same, and why: file → (function, before, after) → reason."""
    listed = tomllib.loads(EQUIVALENTS.read_text()) if EQUIVALENTS.is_file() else {}
    return {
        source: {(e["in"], e["before"], after): e["why"] for e in entries for after in e["after"]}
        for source, entries in listed.items()
    }


# Running


class Court:
    """A pytest plugin that runs the tests once, then once more for each mutant, as far as they reach it."""

    def __init__(self, wanted: dict[str, list[Mutant]], report: Any):
        self.wanted, self.report = wanted, report
        self.files = {str(path_of(source)): source for source in wanted}
        self.failed: set[str] = set()
        self.child = False
        self.rehearsed: set[Path] = set()
        self.reached: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self.took: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a failure: of that test no verdict is asked."""
        if report.failed:
            self.failed.add(report.nodeid)
            print(f"\nleft out: {report.nodeid}: {str(report.longrepr).splitlines()[-1][:100]}", flush=True)

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        """In a child the first failure is the end; its traceback is nobody's concern."""
        import pytest

        if self.child and call.excinfo and not call.excinfo.errisinstance(pytest.skip.Exception):
            os._exit(1)

    def pytest_runtestloop(self, session: Any) -> bool:
        """The whole trial."""
        if session.testsfailed:
            raise session.Failed("a test file cannot be read")
        for source in self.wanted:
            importlib.import_module("paperwalk." + source.replace("/", ".").removesuffix(".__init__"))
        self.codes = self.functions()
        for source, made in self.wanted.items():
            for path in judges(source):
                if path not in self.rehearsed:
                    self.rehearse(path, [item for item in session.items if item.path == path])
            able = [i for i in session.items if i.path in judges(source) and i.nodeid not in self.failed]
            able = sorted((i for i in able if self.took[i.nodeid] < SLOWEST), key=lambda i: self.took[i.nodeid])
            gc.collect()
            gc.freeze()
            start = time.perf_counter()
            for one in {bool(m.function): m for m in made}.values():
                if self.killed(one._replace(text=path_of(source).read_text()), able):
                    raise RuntimeError(f"the tests of {source} fail in a child without a mutant too")
            survivors = [mutant for mutant in made if not self.killed(mutant, able)]
            self.report(source, survivors, time.perf_counter() - start)
        return True

    def rehearse(self, path: Path, items: list) -> None:
        """Run the tests of a file, and note the time of each and the lines it reaches."""
        self.rehearsed.add(path)
        files = self.files
        # What is imported within the tests is here from the start, so that the first that asks does not wait for it.
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom) and node.col_offset:
                with contextlib.suppress(ImportError):
                    exec(ast.unparse(node), {})

        def note(frame: Any, event: str, _: Any) -> Any:
            name = files.get(frame.f_code.co_filename)
            if name is None:
                return None
            if event == "line":
                reached.add((name, frame.f_lineno))
            return note

        def late(*_: Any) -> None:
            raise TimeoutError("no judge: too slow")

        signal.signal(signal.SIGPROF, late)
        for item, following in zip(items, [*items[1:], None], strict=True):
            reached = self.reached[item.nodeid]
            start = time.process_time()
            # Being watched takes longer.
            signal.setitimer(signal.ITIMER_PROF, 3 * SLOWEST)
            sys.settrace(note)
            try:
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            finally:
                sys.settrace(None)
                signal.setitimer(signal.ITIMER_PROF, 0)
            self.took[item.nodeid] = time.process_time() - start
        for item in items:
            # The first test of all waits for what libraries import late.
            if self.took[item.nodeid] >= SLOWEST and item.nodeid not in self.failed:
                start = time.process_time()
                item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
                self.took[item.nodeid] = time.process_time() - start
        signal.signal(signal.SIGPROF, signal.SIG_DFL)

    def functions(self) -> dict[tuple[str, str], list[types.FunctionType]]:
        """All functions of the sources, under their decorators too."""
        found = defaultdict(list)
        for each in gc.get_objects():
            # Not isinstance, which asks the object: a library's may warn then.
            if type(each) is types.FunctionType and each.__code__.co_filename in self.files:
                found[self.files[each.__code__.co_filename], each.__code__.co_qualname].append(each)
        return found

    def killed(self, mutant: Mutant, able: list) -> bool:
        """Whether a test fails, or takes far too long."""
        lines = range(mutant.lines[0], mutant.lines[1] + 1) if mutant.function else range(10**6)
        chosen, total = [], 0.0
        for item in able:
            if total < BUDGET and any(s == mutant.source and n in lines for s, n in self.reached[item.nodeid]):
                chosen.append(item)
                total += self.took[item.nodeid]
        if not chosen:
            # A function that no test reaches may have made a table while the file was imported.
            return bool(mutant.function) and self.killed(mutant._replace(function="", default=False), able)
        for _ in range(2):
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                status = BROKEN
                try:
                    status = self.judge(mutant, chosen, total)
                finally:
                    os._exit(status)
            status = os.waitpid(child, 0)[1]
            # The clock goes on while a machine sleeps: a second time it is the mutant.
            if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM):
                break
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == BROKEN:
            raise RuntimeError(f"no verdict on {mutant.key} of {mutant.source}")
        return status != 0

    def judge(self, mutant: Mutant, chosen: list, total: float) -> int:
        """In the child: put the mutant in place and run the tests; 0 where all pass."""
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (4 << 30),) * 2)
        # Of the processor's time a little, of the clock's much: others may be at work.
        signal.setitimer(signal.ITIMER_PROF, 3 * total + (5 if self.replace(mutant) else 30))
        signal.setitimer(signal.ITIMER_REAL, 20 * total + 120)
        if not self.replaced:
            return self.anew(mutant, chosen)
        self.child = True
        for item, following in zip(chosen, [*chosen[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        return 0

    def replace(self, mutant: Mutant) -> bool:
        """Give the function that stands in memory the mutated code, or defaults; False where that cannot be done."""
        found = self.codes.get((mutant.source, mutant.function), [])
        if mutant.default:
            node = next(n for q, n in _functions(ast.parse(mutant.text)) if q == mutant.function)
            for each in found:
                scope = each.__globals__
                each.__defaults__ = tuple(eval(ast.unparse(d), scope) for d in node.args.defaults) or None
                names = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                each.__kwdefaults__ = {a.arg: eval(ast.unparse(d), scope) for a, d in names if d} or None
        elif found:
            code = next(c for c in _codes(compile(mutant.text, "", "exec")) if c.co_qualname == mutant.function)
            found = [f for f in found if f.__code__.co_freevars == code.co_freevars]
            for each in found:
                each.__code__ = code
        self.replaced = bool(found)
        return self.replaced

    def anew(self, mutant: Mutant, chosen: list) -> int:
        """Import the package and the tests once more, with the mutated file, and run the tests."""
        import pytest
        from beartype._cache.cacheclear import clear_caches

        # It knows classes by their names, and would ask for those of the first import.
        clear_caches()
        # Tests borrow from other tests and from the tools, and all must see the same package.
        ours = {"paperwalk", "bench", "conftest", *(tool.stem for tool in (ROOT / "tools").glob("*.py"))}
        for name in list(sys.modules):
            if name.split(".")[0] in ours or name.startswith("test_"):
                del sys.modules[name]
        path, real = str(path_of(mutant.source)), SourceFileLoader.get_data

        def get_data(loader: Any, asked: str) -> bytes:
            if asked == path:
                return mutant.text.encode()
            if asked.endswith(".pyc") and f"{Path(path).parent.name}/__pycache__/{Path(path).stem}." in asked:
                raise OSError("compiled from the file as it was")
            return real(loader, asked)

        SourceFileLoader.get_data, sys.dont_write_bytecode = get_data, True
        return int(pytest.main([*_OPTIONS, "-x", *(item.nodeid for item in chosen)]))


_OPTIONS = ["-q", "-s", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--no-summary"]


def _functions(node: ast.AST, above: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef):
            yield above + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{above}{child.name}.")


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield each
            yield from _codes(each)


# The verdict


def verdict(source: str, result: dict[str, Any], listed: dict[tuple[str, str, str], str]) -> tuple[int, int, list]:
    """Killed, equivalent, and the survivors that are not listed."""
    survivors = [tuple(s) for s in result["survivors"]]
    open_ = [s for s in survivors if s not in listed]
    return result["mutants"] - len(survivors), len(survivors) - len(open_), open_


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants; the exit status is 1 when too many live, or one that is not listed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as nn/mlp; by default all files that changed, or their tests")
    parser.add_argument("--again", action="store_true", help="those too that were killed before")
    given = parser.parse_args(arguments)
    names = given.names or sources()
    unknown = sorted(set(names) - set(sources()))
    if unknown:
        parser.error(f"no file {', '.join(unknown)}, expected some of {', '.join(sources())}")
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    wanted, made, state = {}, {}, {}
    for source in names:
        # As they are now: someone may be at work on them while this runs.
        state[source] = {"source": sha([path_of(source)]), "tests": sha(judges(source))}
        made[source] = mutants(source, path_of(source).read_text())
        old = results.get(source, {})
        of_now = old.get("source") == state[source]["source"] and old.get("mutants") == len(made[source])
        if of_now and old.get("tests") == state[source]["tests"] and not given.names:
            continue
        # What a test has killed stays dead as long as the file is the same: tests are added, seldom removed.
        alive = Counter(tuple(s) for s in old.get("survivors", ()))
        wanted[source] = [m for m in made[source] if given.again or not of_now or m.key in alive]
    print(f"{len(wanted)} files, {sum(map(len, wanted.values()))} mutants to try", flush=True)

    def report(source: str, survivors: list[Mutant], seconds: float) -> None:
        n = len(wanted[source])
        print(f"\n{source}: {n} tried, {len(survivors)} live, {seconds / max(n, 1):.2f} s each", flush=True)
        live = sorted(m.key for m in survivors)
        results[source] = {**state[source], "mutants": len(made[source]), "survivors": live}
        order = {name: i for i, name in enumerate(sources())}
        kept = sorted((r for r in results.items() if r[0] in order), key=lambda r: order[r[0]])
        text = json.dumps(dict(kept), indent=1, ensure_ascii=False)
        # A survivor a line.
        RESULTS.write_text(re.sub(r'\[\n +(".*"),\n +(".*"),\n +(".*")\n +\]', r"[\1, \2, \3]", text) + "\n")

    if any(wanted.values()):
        status = run({source: some for source, some in wanted.items() if some}, report)
        # 1: a test that failed, or was too slow to be a judge, was named and left out; that is no mutant's doing.
        if status not in (0, 1):
            return status
    for source, some in wanted.items():
        if not some:
            report(source, [], 0.0)
    return show(names, results, made)


def run(wanted: dict[str, list[Mutant]], report: Any) -> int:
    """Try the mutants in one session of pytest."""
    import hypothesis
    import pytest

    some = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=some, database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutants")
    tests = sorted({str(path) for source in wanted for path in judges(source)})
    with tempfile.TemporaryDirectory() as folder:
        return int(pytest.main([*_OPTIONS, "--basetemp", f"{folder}/tests", *tests], plugins=[Court(wanted, report)]))


def show(names: Sequence[str], results: dict[str, Any], made: dict[str, list[Mutant]]) -> int:
    """The survivors and the table; 1 when the rule is broken."""
    listed, broken, sums = equivalents(), False, [0, 0, 0, 0]
    for source in names:
        if source not in results:
            continue
        _, _, open_ = verdict(source, results[source], listed.get(source, {}))
        for function, before, after in open_:
            print(f"\n{source}, in {function or 'the module'}\n- {before}\n+ {after}")
        known = {m.key for m in made[source]}
        for key in set(listed.get(source, {})) - known:
            broken = True
            print(f"\n{EQUIVALENTS.name}: {source} has no such mutant any more: {' | '.join(key)}")
    print(f"\n{'file':26}{'mutants':>9}{'killed':>9}{'equivalent':>12}{'live':>6}{'share':>9}")
    for source in names:
        if source not in results:
            continue
        killed, same, open_ = verdict(source, results[source], listed.get(source, {}))
        row = [results[source]["mutants"], killed, same, len(open_)]
        sums = [a + b for a, b in zip(sums, row, strict=True)]
        share = killed / max(row[0] - same, 1) if row[0] else 1.0
        broken |= share < SHARE or bool(open_)
        print(f"{source:26}{row[0]:9}{killed:9}{same:12}{len(open_):6}{share:9.1%}")
    print(f"{'all':26}{sums[0]:9}{sums[1]:9}{sums[2]:12}{sums[3]:6}{sums[1] / max(sums[0] - sums[2], 1):9.1%}")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
