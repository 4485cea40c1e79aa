"""The position-wise feed-forward network.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, Section 3.3.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def quick_gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x σ(1.702 x): a cheap stand-in for x Φ(x), off by at most 0.021.

    Source: Hendrycks and Gimpel 2016, Section 2 (the sigmoid approximation of GELU); openai/CLIP, `clip/model.py`.
    """
    return x * (1.702 * x).sigmoid()


class MLP(nn.Module):
    """W_2 activation(W_1 x + b_1) + b_2, the same at every position.

    Args:
        d_model: width d of input and output.
        d_mlp: hidden width f, usually 4 d.
        activation: elementwise function; exact GELU by default.
        dropout: probability of a zero after the second layer, in training.
        hidden_dropout: the same after the activation; as `dropout` when that is None.

    Cost: 4 · t · d · f FLOPs per sequence of t positions.
    Source: Vaswani et al. 2017, Section 3.3, Eq. 2 (which uses ReLU).
    """

    def __init__(
        self,
        d_model: int,
        d_mlp: int,
        *,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
    ):
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_mlp)
        self.fc2 = nn.Linear(d_mlp, d_model)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.hidden_dropout = nn.Dropout(dropout if hidden_dropout is None else hidden_dropout)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Apply the two layers to the last axis of x."""
        hidden = self.hidden_dropout(self.activation(self.fc1(x)))
        return self.dropout(self.fc2(hidden))
