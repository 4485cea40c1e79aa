"""The ladder of proof: two implementations, the same weights, the same inputs; outputs and gradients compared.

A rung compares one block with its naive version or with an independent implementation; a `Ladder` keeps the rungs of
a chapter and shows their table. A comparison that fails raises, so a table that is shown holds proven rows only.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from paperwalk.checkpoints import Tensors, load_exactly

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
# A gradient that is zero on paper (a key bias: softmax ignores it) is rounding noise in both implementations.
# It is measured against this share of the largest gradient instead of against itself.
NOISE_FLOOR = 1e-3


@dataclasses.dataclass(frozen=True)
class Rung:
    """One comparison: what, against what, and the largest relative errors."""

    block: str
    against: str
    output_error: float
    gradient_error: float
    n_gradients: int


def relative_error(ours: Tensor, theirs: Tensor, *, scale: float = 0.0) -> float:
    """max |ours − theirs| / max(max |theirs|, scale), dimensionless.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"ours has shape {tuple(ours.shape)}, theirs {tuple(theirs.shape)}, expected the same")
    difference = (ours.detach().double() - theirs.detach().double()).abs().max().item()
    # NaN compares false with everything, and ∞ / ∞ is NaN: neither must pass for a small error.
    if not math.isfinite(difference):
        return float("inf")
    largest = max(theirs.detach().abs().max().item(), scale)
    return difference / largest if largest else difference


def prove(
    block: str,
    against: str,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *inputs: Any,
    convert: Callable[[Tensors], Mapping[str, Tensor]] | None = None,
    shared: nn.Module | None = None,
    read: Callable[[Any], Tensor] = lambda output: output,
    output_tolerance: float = OUTPUT_TOLERANCE,
    gradient_tolerance: float = GRADIENT_TOLERANCE,
) -> Rung:
    """Run both on the same inputs, pull the same random gradient back through both, and compare everything.

    Args:
        block, against: names for the table.
        ours, theirs: modules or functions of `inputs`. Every floating-point input gets a gradient.
        inputs: given to both; tensors are copied.
        convert: from their state dict to ours, both being modules. Their weights are loaded into ours, and the
            gradients of all parameters are compared, theirs after the same conversion.
        shared: a module whose weights both use (a naive version that reads them); their gradients are compared.
        read: from their output to the tensor that ours returns.
        output_tolerance, gradient_tolerance: largest relative error allowed, of the output and of each gradient.

    Raises:
        AssertionError: an error is above its tolerance; it names the tensor.
        ValueError: the weights do not fit, a shape differs, or there is no gradient to compare.
    """
    if convert is not None:
        load_exactly(ours, convert(dict(theirs.state_dict())))
    ours_output, ours_gradients, of_parameters = _run(ours, inputs, ours if convert else shared)
    ours_gradients |= of_parameters
    theirs_output, theirs_gradients, of_parameters = _run(theirs, inputs, theirs if convert else shared, read)
    theirs_gradients |= convert(of_parameters) if convert else of_parameters
    return _compare(
        (block, against),
        (ours_output, theirs_output, output_tolerance),
        (ours_gradients, theirs_gradients, gradient_tolerance),
    )


def _run(
    function: Callable[..., Any],
    inputs: tuple[Any, ...],
    module: nn.Module | None,
    read: Callable[[Any], Tensor] = lambda output: output,
) -> tuple[Tensor, Tensors, Tensors]:
    """The output, the gradients of the inputs, and those of the module's parameters."""
    copies = [x.detach().clone() if isinstance(x, Tensor) else x for x in inputs]
    leaves = {f"input {i}": x for i, x in enumerate(copies) if isinstance(x, Tensor) and x.is_floating_point()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    parameters = dict(module.named_parameters()) if module is not None else {}
    for parameter in parameters.values():
        parameter.grad = None
    output = read(function(*copies))
    generator = torch.Generator().manual_seed(0)
    if not output.requires_grad:
        raise ValueError(f"no gradient to compare: the output of {function} has none, expected one that requires it")
    output.backward(torch.randn(output.shape, generator=generator).to(output))
    # A tensor that does not take part in the output has the gradient zero.
    gradients = (
        {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in group.items()}
        for group in (leaves, parameters)
    )
    return output, *gradients


def _compare(
    names: tuple[str, str],
    outputs: tuple[Tensor, Tensor, float],
    gradients: tuple[Tensors, Tensors, float],
) -> Rung:
    ours, theirs, tolerance = outputs
    title = f"{names[0]} against {names[1]}"
    output_error = relative_error(ours, theirs)
    assert output_error <= tolerance, f"{title}: outputs differ by {output_error:.1e}, allowed {tolerance:.0e}"
    ours, theirs, tolerance = gradients
    if not ours or set(ours) - set(theirs):
        raise ValueError(
            f"{title}: no gradient of theirs to compare with: {sorted(set(ours) - set(theirs)) or 'at all'}"
        )
    floor = NOISE_FLOOR * max(g.abs().max().item() for g in theirs.values())
    errors = {name: relative_error(ours[name], theirs[name], scale=floor) for name in ours}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= tolerance, (
        f"{title}: gradients of {worst} differ by {errors[worst]:.1e}, allowed {tolerance:.0e}"
    )
    return Rung(*names, output_error, errors[worst], len(errors))


def refuses(ours: Callable[..., Any], theirs: Callable[..., Any], *inputs: Any, **options: Any) -> bool:
    """Whether `prove` rejects the pair; for showing that a mistake would be found."""
    try:
        prove("ours", "theirs", ours, theirs, *inputs, **options)
    except AssertionError:
        return True
    return False


class Ladder:
    """The rungs of a chapter, in order; shows itself as a table in a notebook."""

    def __init__(self):
        self.rungs: list[Rung] = []

    def prove(self, block: str, against: str, ours: Any, theirs: Any, *inputs: Any, **options: Any) -> Rung:
        """`prove`, and keep the rung."""
        self.rungs.append(prove(block, against, ours, theirs, *inputs, **options))
        return self.rungs[-1]

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col">{title}</th>'
            for title in ("block", "proven against", "output error", "gradient error", "gradients compared")
        )
        rows = "".join(
            f"<tr><td>{escape(r.block)}</td><td>{escape(r.against)}</td><td>{r.output_error:.0e}</td>"
            f"<td>{r.gradient_error:.0e}</td><td>{r.n_gradients}</td></tr>"
            for r in self.rungs
        )
        return f'<table class="ladder"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'

    def __repr__(self) -> str:
        return f"Ladder of {len(self.rungs)} rungs"
