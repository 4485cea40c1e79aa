"""The command line: train, eval, sample, data, info; its fields are those of the recipes, documented there."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from paperwalk.train.recipes import PAPERS, one_of, recipe_class

USAGE = """\
usage: paperwalk COMMAND …

  train PAPER [--recipe NAME] [--preset NAME] [--FIELD VALUE …]   train a model; --help lists the fields
  eval FOLDER [--limit N] [--FIELD VALUE …]                       measure a trained model on data not trained on
  sample FOLDER [--FIELD VALUE …]                                 let a trained model write, say or show something
  info PAPER [--preset NAME] | info FOLDER                        parameters, FLOPs and memory
  data list | data fetch NAME … | data verify NAME …              the data sets

papers: {papers}"""


class UsageError(Exception):
    """What was typed wrong, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0, 1 when it failed, 2 when it was typed wrong, 128 + n when signal n stopped it."""
    from paperwalk.data import FetchError
    from paperwalk.train.engine import Interrupted

    typed = list(sys.argv[1:] if arguments is None else arguments)
    usage = USAGE.format(papers=", ".join(PAPERS))
    if not typed or typed[0] in ("-h", "--help"):
        print(usage)
        return 0 if typed else 2
    try:
        command = one_of("command", typed[0], COMMANDS)
        COMMANDS[command](typed[1:])
    except Interrupted as error:
        print(f"paperwalk: {error}; the same command with --resume goes on", file=sys.stderr)
        return 128 + error.number
    except FloatingPointError as error:
        print(f"paperwalk: {error}; the states written before stay", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("paperwalk: stopped; after a training, the same command with --resume goes on", file=sys.stderr)
        return 130
    except FetchError as error:
        print(f"paperwalk: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except (UsageError, ValueError, FileNotFoundError, PermissionError) as error:
        print(f"paperwalk: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"paperwalk: {error}", file=sys.stderr)
        return 1
    return 0


def parse(cls: Any, default: Any, arguments: Sequence[str], prog: str) -> Any:
    """The fields of a dataclass from the command line.

    Raises:
        UsageError: an unknown field or a wrong value; with the field that was perhaps meant.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(cls, default=default, args=list(arguments), prog=prog)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(one_line(said.getvalue())) from None


def one_line(box: str) -> str:
    """tyro's boxed message as one line; the box is drawn in ASCII where the terminal has nothing better."""
    parts = [re.sub(r"\s+", " ", part) for part in re.split(r"[─-]{5,}", re.sub(r"[│╭╮╰╯|+]", " ", box))]
    texts = [part.strip() for part in parts if part.strip()]
    # The box's title is repeated in what follows it.
    message = next((text for text in texts[1:] if text), texts[0] if texts else "bad arguments")
    for text in texts:
        if text.startswith("Perhaps you meant"):
            near = re.findall(r"--[a-z][\w.-]*", text)[:2]
            message += f"; did you mean {' or '.join(near)}?"
    return message


def take(arguments: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE`, and the other arguments.

    Raises:
        UsageError: the name stands last, without a value.
    """
    rest, value, each = [], None, iter(arguments)
    for argument in each:
        if argument == f"--{name}":
            value = next(each, None)
            if value is None:
                raise UsageError(f"--{name} needs a value")
        elif argument.startswith(f"--{name}="):
            value = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return value, rest


def chosen(paper: str, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The recipe that --recipe and --preset name, and the other arguments.

    Raises:
        ValueError: no recipe or preset of that name.
    """
    cls = recipe_class(paper)
    recipe_name, rest = take(arguments, "recipe")
    preset, rest = take(rest, "preset")
    named = cls.named()
    recipe = cls() if recipe_name is None else named[one_of(f"recipe of {paper}", recipe_name, named)]
    if preset is not None:
        recipe = dataclasses.replace(recipe, model=cls.PRESETS[one_of(f"preset of {paper}", preset, cls.PRESETS)])
    return recipe, rest


def split_help(paper: str) -> str:
    """What --help says about --recipe and --preset."""
    cls = recipe_class(paper)
    return f"{cls.__doc__.splitlines()[0]} --recipe: {', '.join(cls.named())}. --preset: {', '.join(cls.PRESETS)}."


def train(arguments: Sequence[str]) -> None:
    """`paperwalk train PAPER …`."""
    import tyro

    from paperwalk.train import runs
    from paperwalk.train.engine import Options

    paper, rest = positional(arguments, "paper", PAPERS)
    recipe, rest = chosen(paper, rest)
    both = dataclasses.make_dataclass(
        "Train",
        [
            ("recipe", Annotated[type(recipe), tyro.conf.arg(name="")]),
            ("options", Annotated[Options, tyro.conf.arg(name="")]),
        ],
    )
    both.__doc__ = split_help(paper)
    given = parse(both, both(recipe, Options()), rest, f"paperwalk train {paper}")
    folder = runs.train(given.recipe, given.options, command_line("train", arguments))
    if os.environ.get("RANK", "0") != "0":
        return
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    print(f"{folder}: {card['seconds'] / 60:.1f} minutes of training")
    show(card["metrics"])


def evaluate(arguments: Sequence[str]) -> None:
    """`paperwalk eval FOLDER …`."""
    from paperwalk.train import runs
    from paperwalk.train.provenance import provenance

    folder, recipe, rest = trained(arguments)
    limit, rest = take(rest, "limit")
    if limit is not None and not limit.isdigit():
        raise UsageError(f"--limit is {limit}, expected a number of examples")
    recipe = parse(type(recipe), recipe, rest, f"paperwalk eval {folder}")
    metrics = runs.evaluate(recipe, folder, int(limit) if limit else None)
    command = command_line("eval", arguments)
    result = {"metrics": metrics, **provenance(command, seed=recipe.seed, data=recipe.data_sha256())}
    runs.write_json(folder / "eval.json", result)
    show(metrics)
    print(f"written to {folder / 'eval.json'}")


def sample(arguments: Sequence[str]) -> None:
    """`paperwalk sample FOLDER …`."""
    folder, recipe, rest = trained(arguments)
    if recipe.Sampling is None:
        raise UsageError(f"a model of {recipe.paper} makes nothing that could be sampled; see paperwalk eval")
    how = parse(recipe.Sampling, recipe.Sampling(), rest, f"paperwalk sample {folder}")
    print(recipe.sample(recipe.load(folder), folder, how))


def info(arguments: Sequence[str]) -> None:
    """`paperwalk info PAPER [--preset NAME]`, or `paperwalk info FOLDER`."""
    from paperwalk.train.sizes import describe

    if arguments and arguments[0] in PAPERS:
        recipe, rest = chosen(arguments[0], arguments[1:])
    else:
        folder, recipe, rest = trained(arguments)
        recipe = dataclasses.replace(recipe, model=recipe.load(folder).config)
    if rest:
        raise UsageError(f"info takes nothing like {rest[0]}; expected PAPER [--preset NAME] or FOLDER")
    print(describe(recipe))


def data(arguments: Sequence[str]) -> None:
    """`paperwalk data list`, `data fetch NAME …`, `data verify NAME …`."""
    from paperwalk.data import cache_file, fetch, names, verify

    action, chosen_names = positional(arguments, "action", ("list", "fetch", "verify"))
    if action == "list":
        for name in names():
            path = cache_file(name)
            print(f"{name:16} {f'{path.stat().st_size / 1e6:.1f} MB, {path}' if path.exists() else 'not fetched'}")
        return
    if not chosen_names:
        raise UsageError(f"data {action} needs names, some of: {', '.join(names())}")
    for name in chosen_names:
        one_of("data set", name, names())
    for name in chosen_names:
        if action == "verify":
            verify(name)
        print(f"{name}: {'intact' if action == 'verify' else fetch(name)}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "info": info,
    "data": data,
}


def positional(arguments: Sequence[str], kind: str, names: Any) -> tuple[str, list[str]]:
    """The first argument, one of the names, and the rest.

    Raises:
        UsageError: there is none.
        ValueError: it is no such name.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(f"which {kind}? Expected one of: {', '.join(names)}")
    return one_of(kind, arguments[0], names), list(arguments[1:])


def trained(arguments: Sequence[str]) -> tuple[Path, Any, list[str]]:
    """The folder of a trained model, its recipe, and the other arguments.

    Raises:
        UsageError: no folder, or one without a card.
    """
    from paperwalk.train import runs

    if not arguments or arguments[0].startswith("-"):
        raise UsageError("which folder? Expected one that paperwalk train has written, or one of checkpoints/")
    folder = Path(arguments[0])
    card = folder / "card.json"
    if not card.is_file():
        raise UsageError(f"{folder} holds no card.json: it is not the folder of a finished training")
    return folder, runs.from_json(runs.read_json(card, "recipe")["recipe"]), list(arguments[1:])


def command_line(command: str, arguments: Sequence[str]) -> str:
    """What to type for the whole of it: a resumed training is the training, wherever it is written to."""
    _, rest = take(arguments, "output")
    return shlex.join(["paperwalk", command, *(each for each in rest if each not in ("--resume", "--overwrite"))])


def show(metrics: dict[str, Any]) -> None:
    """One line a figure."""
    for name, each in metrics.items():
        low, high = each["interval"]
        print(f"{name}: {each['value']:.4f}  (95 %: {low:.4f} to {high:.4f}; {each['n']} examples)")
