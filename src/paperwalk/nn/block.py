"""The transformer blocks of encoder and decoder, normalised before (pre) or after (post) each sub-layer.

Vaswani et al. 2017, Section 3.1 (post-norm); Wang et al. 2019 and Xiong et al. 2020 (pre-norm).
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from paperwalk.nn.attention import KeyValueCache, MultiHeadAttention
from paperwalk.nn.mlp import MLP


def block_flops(t: int, d: int, f: int) -> int:
    """FLOPs of a block on t tokens of width d, with f hidden units: matrix products only, a multiply-add as two."""
    return 8 * t * d**2 + 4 * t**2 * d + 4 * t * d * f


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
        dropout: probability of a zero in each sub-layer's output, in training.
        hidden_dropout: the same for the MLP's hidden layer; as `dropout` when that is None.
        attention_dropout: the same for the attention weights.

    Raises:
        ValueError: an unknown `norm`, or `d_model` not a multiple of `n_heads`.

    Source: Vaswani et al. 2017, Section 3.1; ViT's encoder is Dosovitskiy et al. 2020, Eq. 2 and 3 (pre-norm).
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
        hidden_dropout: float | None = None,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        if norm not in ("pre", "post"):
            raise ValueError(f"norm={norm!r}, expected 'pre' or 'post'")
        self.norm = norm
        self.norm1 = nn.LayerNorm(d_model, eps=norm_eps)
        self.attention = MultiHeadAttention(d_model, n_heads, dropout=attention_dropout)
        self.norm2 = nn.LayerNorm(d_model, eps=norm_eps)
        self.mlp = MLP(d_model, d_mlp, activation=activation, dropout=dropout, hidden_dropout=hidden_dropout)
        self.dropout = nn.Dropout(dropout)

    def _attend(
        self, x: Tensor, mask: Tensor | None, *, causal: bool = False, cache: KeyValueCache | None = None
    ) -> Tensor:
        if self.norm == "pre":
            return x + self.dropout(self.attention(self.norm1(x), mask=mask, causal=causal, cache=cache))
        return self.norm1(x + self.dropout(self.attention(x, mask=mask, causal=causal, cache=cache)))

    def _transform(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm2(x)) if self.norm == "pre" else self.norm2(x + self.mlp(x))

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "b t d"]:
        """One block. `mask`, `causal` and `cache` as in `MultiHeadAttention`."""
        return self._transform(self._attend(x, mask, causal=causal, cache=cache))


class DecoderBlock(TransformerBlock):
    """Self-attention, then cross-attention to another sequence, then an MLP; the arguments are `TransformerBlock`'s.

    pre:  x ← x + MHA(LN(x));  x ← x + MHA(LN(x), context);  x ← x + MLP(LN(x))
    post: x ← LN(x + MHA(x));  x ← LN(x + MHA(x, context));  x ← LN(x + MLP(x))

    Source: Vaswani et al. 2017, Section 3.1 ("Decoder") and 3.2.3.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_mlp: int,
        *,
        norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        **options,
    ):
        super().__init__(d_model, n_heads, d_mlp, norm_eps=norm_eps, attention_dropout=attention_dropout, **options)
        self.norm_cross = nn.LayerNorm(d_model, eps=norm_eps)
        self.cross_attention = MultiHeadAttention(d_model, n_heads, dropout=attention_dropout)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        context: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "..."] | None = None,
        context_mask: Bool[Tensor, "..."] | None = None,
        *,
        causal: bool = False,
    ) -> Float[Tensor, "b t d"]:
        """One block. `mask` and `causal` are for the self-attention, `context_mask` is for the other."""
        x = self._attend(x, mask, causal=causal)
        if self.norm == "pre":
            x = x + self.dropout(self.cross_attention(self.norm_cross(x), context, context_mask))
        else:
            x = self.norm_cross(x + self.dropout(self.cross_attention(x, context, context_mask)))
        return self._transform(x)

    def cross_weights(
        self, x: Float[Tensor, "b t d"], context: Float[Tensor, "b s d"], mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "b n t s"]:
        """The weights of the cross-attention when the block gets x, for looking at."""
        x = self._attend(x, mask)
        return self.cross_attention.weights(self.norm_cross(x) if self.norm == "pre" else x, context)
