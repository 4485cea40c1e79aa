"""One file a paper: its data, model and task, its recipes by name, its figures."""

import difflib
from collections.abc import Iterable
from importlib import import_module

from paperwalk.train.task import Recipe

PAPERS = {
    "vit": "ViTRecipe",
    "gpt": "GPTRecipe",
    "transformer": "TransformerRecipe",
    "mae": "MAERecipe",
    "clip": "CLIPRecipe",
    "ddpm": "DDPMRecipe",
}


def recipe_class(paper: str) -> type[Recipe]:
    """The recipes of a paper.

    Raises:
        ValueError: no such paper.
    """
    return getattr(import_module(f"{__name__}.{one_of('paper', paper, PAPERS)}"), PAPERS[paper])


def one_of(kind: str, name: str, names: Iterable[str]) -> str:
    """The name, if it is one of the names.

    Raises:
        ValueError: it is not; the message names the nearest one and all.
    """
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f", did you mean {near[0]}?" if near else "."
        raise ValueError(f"unknown {kind} {name!r}{hint} Expected one of: {', '.join(names)}")
    return name
