"""How the cost of a training step grows, and whether counting FLOPs foretells it: growth.svg."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bench.measure import Contender, interleaved, spread
from bench.training import OURS, Size, build, step_of
from bench.vit import PAPER
from paperwalk.files import write_whole
from paperwalk.vit import ViTConfig

FIGURE = Path(__file__).with_name("growth.svg")
BASE = Size(ViTConfig(32, 4, 3, 10, d_model=192, n_layers=4, n_heads=3, d_mlp=768), 8)


def _config(**changes: int) -> Size:
    return replace(BASE, config=replace(BASE.config, **changes))


# An axis of the cost: its values, and the size that a value means. Heads stay 64 wide.
AXES: dict[str, tuple[tuple[int, ...], Callable[[int], Size]]] = {
    "tokens": ((17, 37, 65, 145, 257, 577), lambda t: _config(image_size=4 * round((t - 1) ** 0.5))),
    "width": ((64, 128, 192, 384, 768), lambda d: _config(d_model=d, n_heads=d // 64, d_mlp=4 * d)),
    "batch": ((1, 2, 4, 8, 16, 32), lambda b: replace(BASE, batch=b)),
    "depth": ((1, 2, 4, 8, 16), lambda n: _config(n_layers=n)),
}


def measure_axis(name: str, rounds: int) -> list[dict[str, Any]]:
    """Of each value: the seconds of a step of ours, and its FLOPs."""
    values, size_of = AXES[name]
    sizes = {value: size_of(value) for value in values}
    steps = [
        Contender(str(value), step_of(PAPER, OURS, size, build(PAPER, OURS, size.config)))
        for value, size in sizes.items()
    ]
    seconds = interleaved(steps, rounds)
    return [
        {"value": value, "seconds": spread(seconds[str(value)]), "flops": 3 * size.batch * PAPER.flops(size.config)}
        for value, size in sizes.items()
    ]


def measure(rounds: int) -> dict[str, Any]:
    """All axes; draws the figure as well."""
    axes = {name: measure_axis(name, rounds) for name in AXES}
    draw(axes)
    return {"config": vars(BASE.config), "batch": BASE.batch, "axes": axes}


def draw(axes: dict[str, list[dict[str, Any]]], path: Path = FIGURE) -> None:
    """A panel an axis: measured, and what the FLOPs say when they are done as fast as at the size in the middle."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for panel, (name, points) in zip(figure.subplots(2, 2).flat, axes.items(), strict=True):
        middle = points[len(points) // 2]
        values = [point["value"] for point in points]
        median, low, high = zip(*(point["seconds"] for point in points), strict=True)
        foretold = [point["flops"] * middle["seconds"][0] / middle["flops"] for point in points]
        panel.plot(values, foretold, color="grey", ls="--", label="foretold by FLOPs")
        panel.fill_between(values, low, high, alpha=0.3)
        panel.plot(values, median, marker="o", ms=4, label="measured")
        panel.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds a training step")
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
    figure.axes[0].legend()
    # Without them each drawing would be another file.
    with matplotlib.rc_context({"svg.hashsalt": "growth"}):
        figure.savefig(path.parent / f".{path.name}", format="svg", metadata={"Date": None})
    text = (path.parent / f".{path.name}").read_text(encoding="utf-8")
    (path.parent / f".{path.name}").unlink()
    write_whole(path.parent, {path.name: text})


if __name__ == "__main__":
    from bench.run import main

    main("growth")
