"""Leaves of convolutional networks that are told a time: residual block, attention over places, other sizes.

Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, Appendix B; Zagoruyko and Komodakis, "Wide Residual
Networks", 2016; Wu and He, "Group Normalization", 2018.

| axis | meaning |
|---|---|
| b | batch |
| c | channels of a feature map |
| h, w | rows and columns |
| d | width of the time embedding; `d_time` after the small network |
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from paperwalk.nn.attention import MultiHeadAttention


def time_embedding(t: Int[Tensor, " b"], d_model: int) -> Float[Tensor, "b d"]:
    """sin(t ω_0), …, sin(t ω_{d/2−1}), then the cosines, with ω_i = 10000^{−i / (d/2 − 1)}.

    Source: Ho et al. 2020, Appendix B; the official code, `diffusion_tf/nn.py`.
    Differs: the Transformer's sinusoids alternate sines and cosines and divide by d/2.
    """
    half = d_model // 2
    # In single precision, as published weights have seen it: at t = 999 that moves the angles by up to 1e-4.
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / (half - 1))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ResidualBlock(nn.Module):
    """x + conv(dropout(swish(GN(y)))) with y = conv(swish(GN(x))) + W swish(time): two convolutions, told the time.

    Args:
        c_in, c_out: channels; where they differ a 1 x 1 convolution carries x across.
        d_time: width of the time embedding.
        n_groups: of each group norm, a divisor of both.
        dropout: probability of a zero before the last convolution, in training.
        norm_eps: added to the variance inside each group norm's square root.

    Source: Ho et al. 2020, Appendix B (a block of Wide ResNet with group norm).
    """

    def __init__(self, c_in: int, c_out: int, d_time: int, *, n_groups: int, dropout: float, norm_eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(n_groups, c_in, eps=norm_eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_proj = nn.Linear(d_time, c_out)
        self.norm2 = nn.GroupNorm(n_groups, c_out, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c_in h w"], time: Float[Tensor, "b d_time"]) -> Float[Tensor, "b c_out h w"]:
        """One block."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time_proj(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(y))))


class SpatialAttention(nn.Module):
    """x + MHA(GN(x)): every place of a feature map attends to every other.

    Cost: 8 t c² + 4 t² c FLOPs for t = h · w places.
    Source: Ho et al. 2020, Section 4 and Appendix B.
    """

    def __init__(self, channels: int, n_heads: int, *, n_groups: int, norm_eps: float):
        super().__init__()
        self.norm = nn.GroupNorm(n_groups, channels, eps=norm_eps)
        self.attention = MultiHeadAttention(channels, n_heads)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Attend within each image."""
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        return x + rearrange(self.attention(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    """Half the side, by a convolution with stride 2; an even side needs zeros on one end only, below and right."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h_half w_half"]:
        """Halve."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: each pixel four times, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h_double w_double"]:
        """Double."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
