"""A run from beginning to end: its folder, the training, the card of the finished model.

The folder holds run.json (the recipe and its precision), states/ (to go on from), events for TensorBoard, and at the
end the model in `from_pretrained`'s format, card.json (figures, where they come from, the curve) and loss.png.
"""

import contextlib
import dataclasses
import json
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from paperwalk.files import parse_json, write_whole
from paperwalk.train.engine import Options, Run
from paperwalk.train.precision import fast_precision
from paperwalk.train.provenance import provenance, thinned
from paperwalk.train.recipes import recipe_class
from paperwalk.train.task import Recipe


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values."""
    return {"paper": recipe.paper, **dataclasses.asdict(recipe)}


def from_json(values: Mapping[str, Any]) -> Recipe:
    """The recipe that `as_json` gave.

    Raises:
        ValueError: an unknown paper or field, or a bad value.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"a recipe is given as {values!r}, expected its fields")
    fields = {name: value for name, value in values.items() if name != "paper"}
    try:
        return _build(recipe_class(values.get("paper", "")), fields)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"a recipe has a value of a strange kind: {error}") from error


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    kinds = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ValueError(f"{cls.__name__} is given as {values!r}, expected its fields")
    unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {', '.join(unknown)}")
    return cls(
        **{
            name: _build(kinds[name], v) if dataclasses.is_dataclass(kinds[name]) else _tuple(v)
            for name, v in values.items()
        }
    )


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_json(path: Path, *names: str) -> dict[str, Any]:
    """A JSON file that holds these names.

    Raises:
        ValueError: it is damaged.
    """
    try:
        values = parse_json(path.read_bytes(), "it")
        return values | {name: values[name] for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two recipes as JSON, a field a line."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            line for key in keys for line in differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if before == now else [f"{name} was {before}, now {now}"]


def check_folder(recipe: Recipe, options: Options) -> tuple[Path, Options]:
    """The folder of the run, and the options with the precision that the run has; changes nothing.

    Raises:
        ValueError: it holds a run already, or with `resume`, none or one of another recipe.
    """
    folder = options.output or Path("runs") / recipe.paper
    about_path = folder / "run.json"
    if not options.resume:
        if not about_path.exists() and folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds something other than a run: choose another folder with --output")
        if about_path.exists() and not options.overwrite:
            raise ValueError(f"{folder} holds a run already: --resume goes on with it, --overwrite begins again")
        precision = fast_precision() if options.precision == "auto" else options.precision
        return folder, dataclasses.replace(options, precision=precision)
    if not about_path.is_file():
        raise ValueError(f"{folder} holds no run to go on with: leave --resume out")
    about = read_json(about_path, "recipe", "precision")
    found = differences(about["recipe"], json.loads(json.dumps(as_json(recipe))))
    if options.precision not in ("auto", about["precision"]):
        found.append(f"precision was {about['precision']}, now {options.precision}")
    if found:
        raise ValueError(f"{folder} holds another run: {'; '.join(found)}")
    return folder, dataclasses.replace(options, precision=about["precision"])


def check_evaluation(recipe: Recipe, run: Run) -> None:
    """Evaluate on next to nothing before the training: what would fail after hours fails now."""
    if run.accelerator.is_main_process:
        with torch.random.fork_rng():
            recipe.evaluate(run.model, 2)


@contextlib.contextmanager
def _no_denormals() -> Iterator[None]:
    # Sharp attention leaves weights and gradients below 1e-38, with which a processor multiplies far more slowly: the
    # backward pass of a trained GPT took 2.2 times as long. Here they become zero; in torch's other threads only if
    # they start later than this, and for good.
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_no_denormals()
def train_only(recipe: Recipe, options: Options, before: Callable[[Recipe, Run], None] = lambda *_: None) -> Run:
    """Train, and return the finished run; nothing is evaluated or written but its states.

    Args:
        before: called before the first step.

    Raises:
        ValueError: bad data, or a folder that does not fit.
        FloatingPointError, Interrupted: as `Run.train`.
    """
    folder, options = check_folder(recipe, options)
    torch.manual_seed(recipe.seed)
    run = Run(recipe.task(), recipe, options, folder)
    data = recipe.data_sha256() | recipe.start_sha256()
    # Nobody writes before everybody has looked.
    run.accelerator.wait_for_everyone()
    if options.resume:
        changed = differences(read_json(folder / "run.json", "data")["data"], data)
        if changed:
            raise ValueError(f"{folder} was begun with other data: {'; '.join(changed)}")
        run.resume()
    elif run.accelerator.is_main_process:
        if options.overwrite and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", {"recipe": as_json(recipe), "precision": run.options.precision, "data": data})
    run.accelerator.wait_for_everyone()
    run.accelerator.init_trackers("paperwalk", config=flat(as_json(recipe)))
    before(recipe, run)
    run.train()
    return run


def train(recipe: Recipe, options: Options, command: str) -> Path:
    """Train, evaluate, write the model and its card; returns the folder.

    Args:
        command: what was typed; it goes on the card.

    Raises:
        ValueError, FloatingPointError, Interrupted: as `train_only`.
    """
    run = train_only(recipe, options, check_evaluation)
    main = run.accelerator.is_main_process
    # The others do not wait: an evaluation may take longer than a barrier allows.
    run.accelerator.end_training()
    if main:
        finish(recipe, run, command)
    return run.folder


def finish(recipe: Recipe, run: Run, command: str) -> None:
    """Write the model, evaluate what was written, write its card and its curve."""
    recipe.save(run.model.cpu(), run.folder)
    card = {
        "recipe": as_json(recipe),
        "precision": run.options.precision,
        "compiled": run.compiled,
        "processes": run.accelerator.num_processes,
        "accumulate": run.options.accumulate,
        **provenance(command, seed=recipe.seed, data=recipe.data_sha256() | recipe.start_sha256()),
        "seconds": round(run.seconds),
        "cpu_seconds": round(run.cpu_seconds),
        # Share of the time in which the training waited for its batches.
        "waited": round(run.waited / max(run.seconds, 1e-9), 4),
        "metrics": evaluate(recipe, run.folder),
        "quick": {"limit": recipe.quick, "metrics": evaluate(recipe, run.folder, recipe.quick)},
        "curve": thinned(run.losses),
    }
    write_json(run.folder / "card.json", card)
    draw(card["curve"], run.folder / "loss.png")


def evaluate(recipe: Recipe, folder: Path, limit: int | None = None) -> dict[str, Any]:
    """The figures of the model in a folder, on all the data held out or on about `limit` examples of it."""
    recipe.check_tokens(folder)
    model = recipe.load(folder)
    return recipe.evaluate(model.to("cuda" if torch.cuda.is_available() else "cpu"), limit)


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
    write_whole(path.parent, {path.name: text + "\n"})


def draw(curve: Sequence[Sequence[int | float]], path: Path) -> None:
    """The loss curve as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*curve, strict=True))
    axis.set(xlabel="step", ylabel="training loss")
    figure.savefig(path, dpi=120)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, as loggers want them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return found
