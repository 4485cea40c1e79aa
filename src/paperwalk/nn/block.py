"""The transformer encoder block, normalised before (pre) or after (post) each sub-layer.

Vaswani et al. 2017, Section 3.1 (post-norm); Wang et al. 2019 and Xiong et al. 2020 (pre-norm).
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from paperwalk.nn.attention import MultiHeadAttention
from paperwalk.nn.mlp import MLP


class TransformerBlock(nn.Module):
    """Self-attention, then an MLP, each with a residual connection and a layer norm.

    pre:  x ← x + MHA(LN(x));  x ← x + MLP(LN(x))
    post: x ← LN(x + MHA(x));  x ← LN(x + MLP(x))

    Args:
        d_model: width d.
        n_heads: number of heads n, a divisor of d_model.
        d_mlp: hidden width f of the MLP.
        norm: "pre" or "post".
        norm_eps: added to the variance inside the layer norm's square root.
        activation: elementwise function of the MLP.
        dropout: probability of a zero in each sub-layer's output and in the MLP's hidden layer, in training.
        attention_dropout: the same for the attention weights.

    Raises:
        ValueError: an unknown `norm`, or `d_model` not a multiple of `n_heads`.

    Source: ViT's encoder is Dosovitskiy et al. 2020, Eq. 2 and 3 (pre-norm).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_mlp: int,
        *,
        norm: Literal["pre", "post"] = "pre",
        norm_eps: float = 1e-5,
        activation: Callable[[Tensor], Tensor] = F.gelu,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm={norm!r}, expected 'pre' or 'post'")
        self.norm = norm
        self.norm1 = nn.LayerNorm(d_model, eps=norm_eps)
        self.attention = MultiHeadAttention(d_model, n_heads, dropout=attention_dropout)
        self.norm2 = nn.LayerNorm(d_model, eps=norm_eps)
        self.mlp = MLP(d_model, d_mlp, activation=activation, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "..."] | None = None, *, causal: bool = False
    ) -> Float[Tensor, "b t d"]:
        """One block. `mask` and `causal` as in `paperwalk.nn.attention`."""
        if self.norm == "pre":
            x = x + self.dropout(self.attention(self.norm1(x), mask=mask, causal=causal))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.dropout(self.attention(x, mask=mask, causal=causal)))
        return self.norm2(x + self.mlp(x))
