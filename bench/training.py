"""A training step of ours beside those of the references: the same weights and batch, shown to be the same work."""

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench import measure
from bench.measure import Contender
from paperwalk.checkpoints import Tensors
from paperwalk.testing import prove, relative_error
from paperwalk.train.compiling import Trial
from paperwalk.train.precision import fast_autocast
from paperwalk.train.recipes import recipe_class
from paperwalk.train.task import Recipe

OURS, FAST = "ours", "ours, fast"
LR = 1e-4
NOISE = 0.02
# In double precision, where no input of a ReLU lies within a rounding of 0; diffusers' sines have 24 bits even there.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-7, 1e-5
# bfloat16 has 8 bits.
FAST_TOLERANCE = 0.05


@dataclass(frozen=True)
class Size:
    """A model's configuration and the examples of a batch."""

    config: Any
    batch: int


class Loss(nn.Module):
    """A model and the number that its training step lowers: `forward(*inputs)` is `compute(model, *inputs)`."""

    def __init__(self, model: nn.Module, compute: Callable[..., Tensor]):
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *inputs: Tensor) -> Tensor:
        """The loss, ()."""
        return self.compute(self.model, *inputs)


@dataclass(frozen=True)
class Reference:
    """Another implementation.

    Args:
        model: from our configuration to theirs.
        loss: `loss(model, *inputs)`.
        convert: from their tensors to our names and layout.
        like: changes a model of ours into one that computes what theirs does, where they differ.
    """

    model: Callable[[Any], nn.Module]
    loss: Callable[..., Tensor]
    convert: Callable[[Tensors], Mapping[str, Tensor]]
    like: Callable[[nn.Module], None] = lambda model: None


@dataclass(frozen=True)
class Paper:
    """What is compared for one paper.

    Args:
        name: the stem.
        unit: what is counted a second.
        items: how many of them a batch of a size holds.
        sizes: "small", "middle" and "large".
        model, loss: ours; `loss(model, *inputs)`.
        inputs: a batch of a size.
        flops: of the forward pass of one example, by configuration.
        references: by name.
    """

    name: str
    unit: str
    items: Callable[[Size], int]
    sizes: dict[str, Size]
    model: Callable[[Any], nn.Module]
    loss: Callable[..., Tensor]
    inputs: Callable[[Size], tuple[Tensor, ...]]
    flops: Callable[[Any], int]
    references: dict[str, Reference]

    @property
    def contenders(self) -> tuple[str, ...]:
        """Their names: ours in single precision, ours as `paperwalk train` runs it, the references."""
        return OURS, FAST, *self.references

    def recipe(self, config: Any) -> Recipe:
        """What `paperwalk train` would train."""
        return recipe_class(self.name)(model=config)


def build(paper: Paper, name: str, config: Any) -> Loss:
    """A contender's model, in training mode, with weights of its own."""
    if name in paper.references:
        reference = paper.references[name]
        return Loss(reference.model(config), reference.loss).train()
    model = paper.recipe(config).build() if name == FAST else paper.model(config)
    return Loss(model, paper.loss).train()


def step_of(paper: Paper, name: str, size: Size, loss: Loss) -> Callable[[], None]:
    """A training step: ours with the AdamW of `paperwalk train`, theirs with torch's as it is by default."""
    fast, inputs = name == FAST, paper.inputs(size)
    theirs = name in paper.references
    adamw = torch.optim.AdamW(loss.parameters()) if theirs else paper.recipe(size.config).adamw(loss)
    for group in adamw.param_groups:
        group["lr"] = LR
    # Made once: it measures the processor.
    autocast = fast_autocast() if fast else contextlib.nullcontext()

    def step() -> None:
        adamw.zero_grad()
        with autocast:
            value = loss(*inputs)
        value.backward()
        adamw.step()

    return step


def in_the_faster_way(loss: Loss, step: Callable[[], None]) -> tuple[Callable[[], None], bool]:
    """The step as `paperwalk train` goes on with it after its trial, and whether that is compiled."""
    # What was compiled for other sizes would count, and torch stops after eight.
    torch.compiler.reset()
    trial = Trial(loss)

    def within() -> None:
        with trial.step():
            step()

    while trial.pays is None:
        within()
    return within, trial.pays


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Add noise to all weights: zeros, as a head may begin with, would hide what comes before them."""
    for parameter in model.parameters():
        parameter.add_(NOISE * torch.randn_like(parameter))


@torch.no_grad()
def give_weights(theirs: Loss, ours: Loss, convert: Callable[[Tensors], Mapping[str, Tensor]]) -> None:
    """Put our weights where `convert` finds them: number all of theirs, and see where each number goes."""
    parameters = dict(theirs.named_parameters())
    values = torch.cat([parameter.flatten() for parameter in parameters.values()])
    counts = [parameter.numel() for parameter in parameters.values()]
    numbers = zip(parameters.items(), torch.arange(len(values)).split(counts), strict=True)
    state = ours.state_dict()
    for name, places in convert({name: part.view(p.shape) for (name, p), part in numbers}).items():
        values[places] = state[name]
    for parameter, value in zip(parameters.values(), values.split(counts), strict=True):
        parameter.copy_(value.view(parameter.shape))


def inside(convert: Callable[[Tensors], Mapping[str, Tensor]]) -> Callable[[Tensors], Tensors]:
    """The same for the tensors of a `Loss`, whose model's names begin with "model."."""

    def converted(tensors: Tensors) -> Tensors:
        inner = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        return {f"model.{name}": tensor for name, tensor in convert(inner).items()}

    return converted


def checked(paper: Paper, size: Size) -> dict[str, Loss]:
    """All contenders with the same weights; their losses and gradients, in double precision, are equal.

    Raises:
        AssertionError: one of them computes something else.
    """
    torch.manual_seed(0)
    losses, inputs = {name: build(paper, name, size.config) for name in paper.contenders}, paper.inputs(size)
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    ours = losses[OURS]
    stir(ours)
    losses[FAST].load_state_dict(ours.state_dict())
    for name, reference in paper.references.items():
        convert = inside(reference.convert)
        give_weights(losses[name], ours, convert)
        twin = copy.deepcopy(ours)
        reference.like(twin.model)
        theirs = copy.deepcopy(losses[name]).double()
        tolerances = {"output_tolerance": LOSS_TOLERANCE, "gradient_tolerance": GRADIENT_TOLERANCE}
        prove(paper.name, name, twin.double(), theirs, *exact, convert=convert, **tolerances)
    with torch.no_grad():
        with fast_autocast():
            quick = losses[FAST](*inputs)
        error = relative_error(quick, ours(*inputs))
    assert error <= FAST_TOLERANCE, f"{paper.name}: the loss of {FAST} is off by {error:.1e}"
    return losses


def measure_size(paper: Paper, name: str, rounds: int) -> dict[str, Any]:
    """The steps of all contenders at one size."""
    # Here, since a contender's process imports this file.
    from bench.memory import peaks

    size = paper.sizes[name]
    losses = checked(paper, size)
    steps = {each: step_of(paper, each, size, loss) for each, loss in losses.items()}
    steps[FAST], compiled = in_the_faster_way(losses[FAST], steps[FAST])
    found = measure.summary(measure.interleaved([Contender(*each) for each in steps.items()], rounds), (OURS, FAST))
    del losses, steps
    return found | {
        "compiled": compiled,
        "config": vars(size.config),
        "batch": size.batch,
        "items": paper.items(size),
        # A backward pass costs two forward passes.
        "flops": 3 * size.batch * paper.flops(size.config),
        "bytes": peaks(paper.name, name, (OURS, *paper.references)),
    }


def measure_training(paper: Paper, rounds: int) -> dict[str, Any]:
    """The training steps of a paper at its three sizes."""
    found = {name: measure_size(paper, name, rounds) for name in paper.sizes}
    return {"unit": paper.unit, "sizes": found}
