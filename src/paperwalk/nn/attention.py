"""Scaled dot-product attention and its multi-head module.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, Sections 3.2.1 and 3.2.2.

| axis | paper | meaning |
|---|---|---|
| b | | batch |
| n | h | heads |
| t | | query positions |
| s | | key (and value) positions |
| e | d_k = d_v | width of one head |
| d | d_model | width of the model |
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn


def _check_mask(mask: Tensor, q: Tensor, k: Tensor) -> None:
    expected = (*q.shape[:-1], k.shape[-2])
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}, expected torch.bool (True = may attend)")
    try:
        broadcast = torch.broadcast_shapes(mask.shape, expected)
    except RuntimeError:
        broadcast = None
    if broadcast != expected:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected one that broadcasts to (b n t s) = {tuple(expected)}"
        )


def _fused_is_slow(q: Tensor) -> bool:
    # In bfloat16 on a processor torch's function takes up to three times as long as plain products, most of all for
    # short sequences and with dropout; the (t, s) weights of a few hundred positions are small. For a single query it
    # is the faster one.
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and 1 < q.shape[-2] <= 512


def attention(
    q: Float[Tensor, "b n t e"],
    k: Float[Tensor, "b n s e"],
    v: Float[Tensor, "b n s e"],
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout: float = 0.0,
) -> Float[Tensor, "b n t e"]:
    """softmax(q kᵀ / √e) v, the softmax over the key positions s.

    Runs on torch's fused kernel, which never stores the (t, s) weights: memory grows with t + s, not t · s. Except on a
    processor with dropout, for which torch has none, and for short sequences in bfloat16 there, where plain products
    are faster.

    Args:
        q, k, v: queries, keys and values, dimensionless.
        mask: bool, broadcastable to (b n t s); True where a query may attend to a key. A query that may
            attend to nothing gets zeros.
        causal: query i attends to keys up to i only. Not together with `mask`.
        dropout: probability with which a weight is set to zero.

    Raises:
        ValueError: `mask` is not bool, does not broadcast to (b n t s), or comes together with `causal`.

    Cost: 4 · b · n · t · s · e FLOPs (a multiply-add counts as two).
    Source: Vaswani et al. 2017, Section 3.2.1, Eq. 1.
    Differs: the mask is boolean; the paper sets the scores to −∞, which is the same except for an empty row.
    """
    if causal and mask is not None:
        raise ValueError("got both mask and causal=True, expected one: put the causal pattern into the mask")
    if _fused_is_slow(q):
        if causal:
            # As the kernel counts: from the first key.
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        return F.dropout(attention_weights(q, k, mask), dropout) @ v
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)
    _check_mask(mask, q, k)
    # The kernels take no mask of fewer than two axes. An empty row would be 0/0; since torch 2.5 they give zeros.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.atleast_2d(mask), dropout_p=dropout)


def attention_weights(
    q: Float[Tensor, "b n t e"],
    k: Float[Tensor, "b n s e"],
    mask: Tensor | None = None,
) -> Float[Tensor, "b n t s"]:
    """softmax(q kᵀ / √e), for looking at, and where `attention` has no fast kernel. `mask` as there.

    Scores and softmax are of single precision at least: in bfloat16 a score of 10 is off by up to 0.03, and so is the
    logarithm of its weight.

    Cost: b · n · t · s numbers of memory.
    Source: Vaswani et al. 2017, Section 3.2.1, Eq. 1.
    """
    if mask is not None:
        _check_mask(mask, q, k)
    precise = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.to(precise) * q.shape[-1] ** -0.5) @ k.to(precise).mT
        if mask is None:
            return scores.softmax(dim=-1).to(q.dtype)
        # An empty row is 0/0, and becomes zeros as in `attention`.
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1).masked_fill(~mask, 0.0)
        return weights.to(q.dtype)


def causal_mask(t: int, s: int, device: torch.device | None = None) -> Bool[Tensor, "t s"]:
    """True where a query may attend: the last of t queries stands at the last of s keys, and none sees a later key.

    With t = s this is `attention`'s causal=True. That flag counts from the first key, which is wrong where the keys
    of earlier positions are kept from before (t < s).
    """
    return torch.ones(t, s, dtype=torch.bool, device=device).tril(s - t)


class KeyValueCache:
    """The keys and values of the positions that one self-attention has already seen.

    Room for all positions is taken at the first use, so that a step writes one position and copies none. For
    inference: the stored keys and values are overwritten in place, which a backward pass would refuse.

    Args:
        capacity: most positions s that it can hold.

    Cost: 2 · b · capacity · d numbers of memory.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(
        self, k: Float[Tensor, "b n t e"], v: Float[Tensor, "b n t e"]
    ) -> tuple[Float[Tensor, "b n s e"], Float[Tensor, "b n s e"]]:
        """Append t positions; returns the keys and values of all s positions so far.

        Raises:
            ValueError: there is no room for t more positions, or the batch is another one.
        """
        b, n, t, e = k.shape
        end = self.length + t
        if end > self.capacity:
            raise ValueError(f"{end} positions, expected at most {self.capacity}: the cache has no room for more")
        if self._keys is None or self._values is None:
            self._keys, self._values = (x.new_empty(b, n, self.capacity, e) for x in (k, v))
        elif len(self._keys) != b:
            raise ValueError(f"a batch of {b}, expected {len(self._keys)}: a cache serves one batch")
        self._keys[:, :, self.length : end] = k
        self._values[:, :, self.length : end] = v
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


class MultiHeadAttention(nn.Module):
    """Concat(head_1, …, head_n) W_O, with head_i = attention(x W_Qi, y W_Ki, y W_Vi); y = x for self-attention.

    The three input projections of all heads are the rows of one matrix, `in_proj` (queries, then keys, then
    values), so that self-attention multiplies once.

    Args:
        d_model: width d of the model.
        n_heads: number of heads n, a divisor of d_model; each head is e = d / n wide.
        dropout: probability with which an attention weight is set to zero in training.
        bias: whether the four projections have a bias.

    Raises:
        ValueError: `d_model` is not a multiple of `n_heads`, or n_heads < 1.

    Cost: 8 · t · d² + 4 · t² · d FLOPs per sequence for self-attention.
    Source: Vaswani et al. 2017, Section 3.2.2.
    Differs: the paper's projections have no bias; BERT, GPT and ViT have one, so it is the default here.
    """

    def __init__(self, d_model: int, n_heads: int, *, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}, expected one that is")
        self.n_heads = n_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def _heads(self, x: Float[Tensor, "b t d_all"], n_parts: int) -> tuple[Float[Tensor, "b n t e"], ...]:
        # In parts first: their gradients are then put together by one copy, not by one each way.
        return tuple(rearrange(part, "b t (n e) -> b n t e", n=self.n_heads) for part in x.chunk(n_parts, dim=-1))

    def project(
        self, x: Float[Tensor, "b t d"], context: Float[Tensor, "b s d"] | None = None
    ) -> tuple[Float[Tensor, "b n t e"], Float[Tensor, "b n s e"], Float[Tensor, "b n s e"]]:
        """The queries of x and the keys and values of `context` (of x itself when that is None), split into heads."""
        if context is None:
            return self._heads(self.in_proj(x), 3)
        d = x.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        (q,) = self._heads(F.linear(x, weight[:d], None if bias is None else bias[:d]), 1)
        k, v = self._heads(F.linear(context, weight[d:], None if bias is None else bias[d:]), 2)
        return q, k, v

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        context: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
        *,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Attend from x to `context` (to x itself when that is None). `mask` and `causal` as in `attention`.

        With a `cache`, x continues the positions that went through it before: its queries attend to those too.
        """
        q, k, v = self.project(x, context)
        if cache is not None:
            seen = cache.length
            k, v = cache.extend(k, v)
            if causal and seen and mask is None:
                # A single query is the last position and may attend to all: no mask, and the fast kernel.
                mask = causal_mask(q.shape[-2], k.shape[-2], q.device) if q.shape[-2] > 1 else None
                causal = False
        dropout = self.dropout if self.training else 0.0
        heads = attention(q, k, v, mask, causal=causal, dropout=dropout)
        return self.out_proj(rearrange(heads, "b n t e -> b t (n e)"))

    def weights(
        self,
        x: Float[Tensor, "b t d"],
        context: Float[Tensor, "b s d"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b n t s"]:
        """The weights of each head, from x to `context` (to x itself when that is None), for looking at."""
        q, k, _ = self.project(x, context)
        return attention_weights(q, k, mask)
