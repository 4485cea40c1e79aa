"""The state of a run on disk: written whole or not at all, checked when read, nothing in it unpickled.

A folder `step-00000200` holds state.safetensors (weights, optimiser, random states, losses) and state.json (the rest,
and the SHA-256 of the tensors). It is written beside its place and renamed, so that a kill or a full disk leaves the
states before it as they were.
"""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from paperwalk.files import parse_json


class State(NamedTuple):
    """The number of steps done, tensors by name, and what JSON can hold."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def write_state(folder: Path, state: State, *, keep: int) -> None:
    """Write `folder/step-…`, then remove all but the newest `keep`.

    Raises:
        OSError: the disk is full or gone; the states before it stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    place = folder / f"step-{state.step:08d}"
    temporary = folder / f".{place.name}.{os.getpid()}"
    try:
        temporary.mkdir()
        # A file of its own memory: views that share memory cannot be written.
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.tensors.items()}
        content = safetensors.torch.save(tensors)
        (temporary / "state.safetensors").write_bytes(content)
        about = {"step": state.step, "sha256": hashlib.sha256(content).hexdigest(), "values": state.values}
        (temporary / "state.json").write_text(json.dumps(about), encoding="utf-8")
        if place.exists():
            # Out of the way in one step: half removed it would be neither the old state nor the new one.
            os.replace(place, folder / f"{temporary.name}.old")
        os.replace(temporary, place)
    finally:
        _tidy(folder)
    # Those of later steps are of a run that went back to an earlier state: damaged, or to be made again.
    steps = sorted(folder.glob("step-*"))
    for old in [path for path in steps if path > place] + [path for path in steps if path <= place][:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Remove what an interrupted call left; a state that it had moved out of the way goes back."""
    for left in folder.glob(".step-*"):
        place = folder / left.name[1:].split(".")[0]
        if left.suffix == ".old" and not place.exists():
            os.replace(left, place)
        else:
            shutil.rmtree(left, ignore_errors=True)


def newest_state(folder: Path) -> State | None:
    """The newest state in the folder that is whole; a damaged one is named in a warning and passed over."""
    _tidy(folder)
    for place in sorted(folder.glob("step-*"), reverse=True):
        try:
            about = parse_json((place / "state.json").read_bytes(), "state.json")
            content = (place / "state.safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() != about["sha256"]:
                raise ValueError("its content is not what was written")
            if type(about["step"]) is not int or not isinstance(about["values"], dict):
                raise ValueError("its step is no integer or its values are no object")
            return State(about["step"], safetensors.torch.load(content), about["values"])
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            warnings.warn(f"{place} is damaged ({error}); going back to the state before it", stacklevel=2)
    return None


def random_states(kind: str) -> dict[str, Tensor]:
    """The states of torch's generators by name: of the processor, and of a device of this kind ("cuda", "mps", …)."""
    device = {} if kind == "cpu" else {f"random.{kind}": torch.get_device_module(kind).get_rng_state()}
    return {"random.cpu": torch.get_rng_state()} | device


def restore_random(kind: str, states: dict[str, Tensor]) -> None:
    """Go back to states of `random_states`; a device keeps its own where there is none of its kind."""
    torch.set_rng_state(states["random.cpu"].cpu())
    if kind != "cpu" and f"random.{kind}" in states:
        torch.get_device_module(kind).set_rng_state(states[f"random.{kind}"].cpu())


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors; its settings are the recipe's and are not stored."""
    return {
        f"optimiser.{i}.{name}": torch.as_tensor(value)
        for i, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimiser the state that `optimiser_tensors` took from one alike."""
    stored: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, i, key = name.split(".", 2)
            stored.setdefault(int(i), {})[key] = tensor
    optimiser.load_state_dict({"state": stored, "param_groups": optimiser.state_dict()["param_groups"]})
