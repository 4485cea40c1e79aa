r"""The network of the diffusion model: a U-Net of residual blocks that is told how noisy its input is.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239, Section 4 and
Appendix B. Official implementation: hojonathanho/diffusion, `diffusion_tf/models/unet.py`.

| axis | paper | meaning |
|---|---|---|
| b | | batch |
| c | | channels of the image, or of a feature map |
| h, w | | pixel rows and columns |
| d | | channels of the first level; the time embedding is 4 d wide |
| t | t | time, counted from 0 |
| n, e | | heads, width of one head |

A *level* is one size of feature map: the first has the size of the image, each further one half the side.

Differs from the paper:
- What the official code starts at 10⁻¹⁰ times the usual variance (the last layer of each block, of each attention and
  of the network) starts at zero.
- No dropout by default (the paper has 0.1 on CIFAR-10, none elsewhere).
- Attention may have several heads (`d_head`); the paper has one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from paperwalk import checkpoints
from paperwalk.nn.checks import check_sizes
from paperwalk.nn.convolution import Downsample, ResidualBlock, SpatialAttention, Upsample, time_embedding
from paperwalk.published.ddpm import from_diffusers


class StageShape(NamedTuple):
    """The blocks of one level, on the way down or up: side in pixels, channels into and out of each, and whether
    attention follows each."""

    side: int
    blocks: tuple[tuple[int, int], ...]
    attention: bool


@dataclass(frozen=True)
class UNetConfig:
    """The sizes of a U-Net; the defaults are those of the paper's CIFAR-10 model, without its dropout.

    Args:
        image_size: side of the training images, in pixels; the network runs on any side that its levels divide.
        in_channels: channels c of the image, in and out.
        d_model: channels d of the first level.
        multipliers: channels of each level, in multiples of d.
        n_blocks: residual blocks a level; one more on the way up.
        attention_sizes: sides of the feature maps that have self-attention; the middle always has it.
        d_head: channels of one attention head; None for one head.
        n_groups: groups of each group norm.
        dropout: probability of a zero before the last convolution of each block, in training.
        norm_eps: added to the variance inside each group norm's square root.

    Raises:
        ValueError: sizes that do not fit together.
    """

    image_size: int = 32
    in_channels: int = 3
    d_model: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    n_blocks: int = 2
    attention_sizes: tuple[int, ...] = (16,)
    d_head: int | None = None
    n_groups: int = 32
    dropout: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_sizes(self, "image_size", "in_channels", "d_model", "n_blocks", "n_groups")
        for name in ("multipliers", "attention_sizes"):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(isinstance(v, int) and v >= 1 for v in values):
                raise ValueError(f"{name}={values!r}, expected a tuple of ints of at least 1")
        if not self.multipliers:
            raise ValueError("multipliers=(), expected one a level, at least one")
        for name in ("dropout", "norm_eps"):
            if not isinstance(getattr(self, name), int | float) or getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected a number of at least 0")
        if self.image_size % self.factor:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of {self.factor}, expected one that is: "
                f"{len(self.multipliers)} levels halve it {len(self.multipliers) - 1} times"
            )
        if self.d_model % 2 or self.d_model < 4:
            raise ValueError(f"d_model={self.d_model}, expected an even number of at least 4: sines and cosines")
        for width in self.widths:
            if width % self.n_groups:
                raise ValueError(f"a level has {width} channels, expected a multiple of n_groups={self.n_groups}")
            if self.d_head is not None and (not isinstance(self.d_head, int) or self.d_head < 1 or width % self.d_head):
                raise ValueError(f"d_head={self.d_head!r}, expected None or a divisor of a level's {width} channels")
        if set(self.attention_sizes) - set(self.sides):
            raise ValueError(
                f"attention_sizes={self.attention_sizes}, expected some of the levels' sides, {self.sides} pixels"
            )

    @classmethod
    def cifar10(cls, **changes: Any) -> "UNetConfig":
        """35.7M parameters, for 32 x 32 colour images (Appendix B)."""
        return cls(**{"dropout": 0.1} | changes)

    @classmethod
    def pixels_256(cls, **changes: Any) -> "UNetConfig":
        """114M parameters, six levels, for CelebA-HQ and LSUN (Appendix B; multipliers from `scripts/run_lsun.py`)."""
        return cls(**{"image_size": 256, "multipliers": (1, 1, 2, 2, 4, 4)} | changes)

    @classmethod
    def mnist(cls, **changes: Any) -> "UNetConfig":
        """2.7M parameters, for 28 x 28 (or, with `image_size`, 32 x 32) grey images; not in the paper."""
        sizes = {"image_size": 28, "in_channels": 1, "d_model": 32, "multipliers": (1, 2, 4), "n_blocks": 1}
        side = changes.get("image_size", 28)
        return cls(**sizes | {"n_groups": 8, "attention_sizes": (side // 4,)} | changes)

    @property
    def factor(self) -> int:
        """What the sides of an image must be multiples of."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of each level's feature map, in pixels."""
        return tuple(self.image_size // 2**i for i in range(len(self.multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.d_model * multiplier for multiplier in self.multipliers)

    def stages(self) -> tuple[list[StageShape], list[StageShape]]:
        """The blocks of each level on the way down and, in the order in which they run, on the way up.

        Each feature map of the way down is kept (the first convolution's, each block's and each halving's), and each
        block of the way up reads one of them, the last kept first, beside what comes from below.
        """
        down, up, kept, current = [], [], [self.d_model], self.d_model
        last = len(self.widths) - 1
        for i, (side, width) in enumerate(zip(self.sides, self.widths, strict=True)):
            ins = [current] + [width] * (self.n_blocks - 1)
            down.append(StageShape(side, tuple((c, width) for c in ins), side in self.attention_sizes))
            kept += [width] * (self.n_blocks + (i < last))
            current = width
        for side, width in zip(self.sides[::-1], self.widths[::-1], strict=True):
            ins = [current + kept.pop()] + [width + kept.pop() for _ in range(self.n_blocks)]
            up.append(StageShape(side, tuple((c, width) for c in ins), side in self.attention_sizes))
            current = width
        return down, up

    def forward_flops(self) -> int:
        """FLOPs of one image: convolutions and matrix products only, a multiply-add counted as two."""
        d, (down, up) = self.d_model, self.stages()

        def block(side: int, c_in: int, c_out: int, attention: bool) -> int:
            t = side**2
            shortcut = 2 * t * c_in * c_out if c_in != c_out else 0
            attend = 8 * t * c_out**2 + 4 * t**2 * c_out if attention else 0
            return 18 * t * c_out * (c_in + c_out) + 8 * d * c_out + shortcut + attend

        total = sum(block(s.side, *widths, s.attention) for s in down + up for widths in s.blocks)
        side, width = self.sides[-1], self.widths[-1]
        middle = block(side, width, width, True) + block(side, width, width, False)
        # A halving writes a quarter of the places, a doubling four times as many.
        halvings = sum(18 * (s // 2) ** 2 * c**2 for s, c in zip(self.sides[:-1], self.widths[:-1], strict=True))
        doublings = sum(18 * (2 * s) ** 2 * c**2 for s, c in zip(self.sides[1:], self.widths[1:], strict=True))
        ends = 18 * self.image_size**2 * self.in_channels * (d + self.widths[0])
        return total + middle + halvings + doublings + ends + 2 * (d * 4 * d + 16 * d**2)


class Stage(nn.Module):
    """The blocks of one level, an attention (or nothing) after each, and the way to the next level (or nothing)."""

    def __init__(self, config: UNetConfig, shape: StageShape, resample: nn.Module | None = None):
        super().__init__()
        norms = {"n_groups": config.n_groups, "norm_eps": config.norm_eps}
        self.blocks, self.attentions = nn.ModuleList(), nn.ModuleList()
        for c_in, c_out in shape.blocks:
            block = ResidualBlock(c_in, c_out, 4 * config.d_model, dropout=config.dropout, **norms)
            n_heads = c_out // (config.d_head or c_out)
            self.blocks.append(block)
            self.attentions.append(SpatialAttention(c_out, n_heads, **norms) if shape.attention else nn.Identity())
        self.resample = resample


class UNet(nn.Module):
    """ε_θ(x_t, t), or μ_θ(x_t, t): an image of the size of the input.

    Down through the levels, keeping every feature map; a middle of block, attention, block; up again, where each block
    reads a kept feature map beside its input; group norm, swish, convolution.

    Source: Section 4 and Appendix B; the official code.
    Cost: `config.forward_flops()` per image.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        d, (down, up) = config.d_model, config.stages()
        last, top = config.widths[-1], len(down) - 1
        self.time_mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.SiLU(), nn.Linear(4 * d, 4 * d))
        self.conv_in = nn.Conv2d(config.in_channels, d, 3, padding=1)
        self.down = nn.ModuleList(
            Stage(config, shape, Downsample(shape.blocks[-1][1]) if i < top else None) for i, shape in enumerate(down)
        )
        middle = StageShape(config.sides[-1], ((last, last), (last, last)), True)
        self.middle = Stage(config, middle)
        # Only the first of the two blocks is followed by attention.
        self.middle.attentions[1] = nn.Identity()
        self.up = nn.ModuleList(
            Stage(config, shape, Upsample(shape.blocks[-1][1]) if i < top else None) for i, shape in enumerate(up)
        )
        self.norm_out = nn.GroupNorm(config.n_groups, config.widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(config.widths[0], config.in_channels, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        # Every block starts as its shortcut, and the network as zero.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            if isinstance(module, SpatialAttention):
                # One bound a projection: Xavier of the fused (3c, c) matrix would be smaller than that of three (c, c).
                for projection in module.attention.in_proj.weight.chunk(3):
                    nn.init.xavier_uniform_(projection)
                nn.init.zeros_(module.attention.out_proj.weight)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor, t: Tensor) -> Float[Tensor, "b c h w"]:
        """The prediction for noisy images.

        Args:
            x: (b c h w), floating point; h and w multiples of `config.factor`.
            t: (b), integers from 0: how often noise was added, less one.

        Raises:
            ValueError: another shape or type of either, or a negative time.
        """
        self._check(x, t)
        time = self.time_mlp(time_embedding(t, self.config.d_model).to(x.dtype))
        x = self.conv_in(x)
        kept = [x]
        for stage in self.down:
            for block, attention in zip(stage.blocks, stage.attentions, strict=True):
                x = attention(block(x, time))
                kept.append(x)
            if stage.resample is not None:
                x = stage.resample(x)
                kept.append(x)
        for block, attention in zip(self.middle.blocks, self.middle.attentions, strict=True):
            x = attention(block(x, time))
        for stage in self.up:
            for block, attention in zip(stage.blocks, stage.attentions, strict=True):
                x = attention(block(torch.cat([x, kept.pop()], dim=1), time))
            if stage.resample is not None:
                x = stage.resample(x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def _check(self, x: Tensor, t: Tensor) -> None:
        channels, factor = self.config.in_channels, self.config.factor
        fits = x.ndim == 4 and x.shape[1] == channels and 0 not in x.shape
        if not fits or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(
                f"images have shape {tuple(x.shape)}, expected (b, {channels}, h, w) with b >= 1 "
                f"and h and w multiples of {factor}"
            )
        if not x.is_floating_point():
            raise ValueError(f"images have dtype {x.dtype}, expected floating point, scaled to -1 … 1")
        if t.shape != (len(x),) or t.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"t is {t.dtype} of shape {tuple(t.shape)}, expected integers of shape ({len(x)},)")
        if t.min() < 0:
            raise ValueError(f"t has {t.min().item()}, expected at least 0")

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "UNet":
        """A U-Net with weights of ours, or published in diffusers' format (`UNet2DModel`).

        Args:
            source: a folder, or the id of a model on the Hugging Face hub, such as "google/ddpm-cifar10-32".

        Raises:
            FileNotFoundError: nothing of that name.
            ValueError: a damaged file, another architecture, or a tensor missing, left over or of another shape.
        """
        values, tensors = checkpoints.read(source)
        if not values:
            raise ValueError(f"{source} is a file of weights, expected a folder: config.json tells the sizes")
        if "paperwalk" in values:
            config = checkpoints.config_from(UNetConfig, values, "UNet")
        else:
            with checkpoints.described(source):
                sizes, tensors = from_diffusers(values, tensors)
                config = UNetConfig(**sizes)
        return checkpoints.build(cls, config, tensors).eval()

    def save_pretrained(self, folder: str | Path, *, bits: int = 32) -> None:
        """Write the model to a folder that `from_pretrained` reads; `bits` a weight, as in `checkpoints.write`."""
        checkpoints.write(folder, self, "UNet", self.config, bits)
