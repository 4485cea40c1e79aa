from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    # pytest checks every annotation of the package at run time; a user's Python does not, and meets our own checks.
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def randomise() -> Callable[[nn.Module], nn.Module]:
    # Zero biases, unit gains and zero heads hide swapped or forgotten terms.
    def draw(module: nn.Module, std: float = 0.2) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * std)
        return module

    return draw


@pytest.fixture
def comes_back_in_half(tmp_path: Path, randomise: Callable) -> Callable[[nn.Module], None]:
    """A model written with 16 bits a weight is nearly the same, and not quite."""

    def check(model: nn.Module) -> None:
        randomise(model).save_pretrained(tmp_path, bits=16)
        again, before = type(model).from_pretrained(tmp_path).state_dict(), model.state_dict()
        torch.testing.assert_close(again, before, atol=1e-3, rtol=1e-3)
        assert not all(torch.equal(again[name], tensor) for name, tensor in before.items())

    return check
