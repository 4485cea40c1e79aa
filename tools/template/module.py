r"""TODO: the claim of the paper, in one sentence.

TODO: authors, "title", where, year, arXiv. Official implementation: TODO.

| axis | paper | meaning |
|---|---|---|
| b | | batch |
| d | | width of the input |
| k | | classes |

Differs from the paper:
- TODO: every departure, with its reason.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class TemplateConfig:
    """The sizes of the model.

    Args:
        d_in: width d of the input.
        n_classes: classes k.

    Raises:
        ValueError: a size below 1.
    """

    d_in: int = 2
    n_classes: int = 3

    def __post_init__(self):
        for name in ("d_in", "n_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")


def shares(scores: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """p_i = exp(s_i) / Σ_j exp(s_j), dimensionless; no score is too large for it.

    Source: TODO: paper, Eq. 1.
    """
    # The largest score is taken off first: the shares stay the same, and no exponential overflows.
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return weights / weights.sum(dim=-1, keepdim=True)


class Template(nn.Module):
    """p = shares(W x + b): the shares of the classes."""

    def __init__(self, config: TemplateConfig):
        super().__init__()
        self.config = config
        self.head = nn.Linear(config.d_in, config.n_classes)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """The shares of the classes for each input.

        Raises:
            ValueError: the inputs have another width.
        """
        if x.ndim != 2 or x.shape[-1] != self.config.d_in:
            raise ValueError(f"inputs of shape {tuple(x.shape)}, expected (b, {self.config.d_in})")
        return shares(self.head(x))
