r"""A transformer on image patches classifies images as well as convolutional networks when it has enough data.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
arXiv:2010.11929. Official implementation: google-research/vision_transformer, `vit_jax/models_vit.py`.

| axis | paper | meaning |
|---|---|---|
| b | | batch |
| c | C | channels |
| h, w | H, W | pixel rows and columns |
| p | P | side of a patch, in pixels |
| t | N + 1 | tokens: the class token, then N = (h / p) · (w / p) patches |
| d | D | width of the model |
| n | k | heads |
| e | D_h | width of one head |
| f | | hidden width of the MLP |
| k | K | classes |

Differs from the paper:
- Position embeddings are resized bicubically, as PyTorch's ecosystem does; the official code is bilinear.
- The pre-training head (one tanh hidden layer) is there only if `d_pre_logits` is given; the default is the
  single linear layer of fine-tuning.
- GELU is exact, as in PyTorch's ecosystem; the official code takes JAX's default, the tanh approximation.
- No dropout by default (the paper uses 0.1 or none, by data set).
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from paperwalk import checkpoints
from paperwalk.nn import (
    LearnedPositions,
    LearnedPositions2d,
    PatchEmbedding,
    TransformerBlock,
    block_flops,
    resize_positions,
    sinusoidal_2d,
)
from paperwalk.nn.checks import check_images, check_multiple, check_sizes
from paperwalk.published.vit import TORCHVISION, from_torchvision, from_transformers, our_names


@dataclass(frozen=True)
class ViTConfig:
    """The sizes of a Vision Transformer; the defaults are ViT-Base/16 for 224 x 224 images.

    Args:
        image_size, patch_size: sides of the square image and of its square patches, in pixels.
        in_channels: channels c of the image.
        n_classes: classes k; 0 leaves the head out, and the model returns the image representation y.
        d_model, n_layers, n_heads, d_mlp: the columns of Table 1.
        pool: "cls" reads the image off the class token; "mean" has no class token and averages the patches.
        positions: "learned" (Eq. 1), or, for Appendix D.4: "learned_2d", "sincos_2d", "none".
        d_pre_logits: hidden width of the pre-training head; None for a linear head.
        dropout: probability of a zero after the embedding and in each sub-layer, in training.
        norm_eps: added to the variance inside each layer norm's square root.

    Raises:
        ValueError: sizes that do not fit together, or an unknown `pool` or `positions`.
    """

    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    n_classes: int = 1000
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_mlp: int = 3072
    pool: Literal["cls", "mean"] = "cls"
    positions: Literal["learned", "learned_2d", "sincos_2d", "none"] = "learned"
    d_pre_logits: int | None = None
    dropout: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_sizes(self, "image_size", "patch_size", "in_channels", "d_model", "n_layers", "n_heads", "d_mlp")
        if not isinstance(self.n_classes, int) or self.n_classes < 0:
            raise ValueError(f"n_classes={self.n_classes!r}, expected an int of at least 0")
        if self.d_pre_logits is not None and (not isinstance(self.d_pre_logits, int) or self.d_pre_logits < 1):
            raise ValueError(f"d_pre_logits={self.d_pre_logits!r}, expected None or an int of at least 1")
        for name in ("dropout", "norm_eps"):
            if not isinstance(getattr(self, name), int | float) or getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected a number of at least 0")
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "d_model", "n_heads")
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"pool={self.pool!r}, expected 'cls' or 'mean'")
        if self.positions not in ("learned", "learned_2d", "sincos_2d", "none"):
            raise ValueError(f"positions={self.positions!r}, expected 'learned', 'learned_2d', 'sincos_2d' or 'none'")

    @classmethod
    def tiny_16(cls, **changes: Any) -> "ViTConfig":
        """Ti/16: 5.7M parameters (Touvron et al. 2021, DeiT-Ti)."""
        return cls(**{"d_model": 192, "n_heads": 3, "d_mlp": 768} | changes)

    @classmethod
    def small_16(cls, **changes: Any) -> "ViTConfig":
        """S/16: 22M parameters (Touvron et al. 2021, DeiT-S)."""
        return cls(**{"d_model": 384, "n_heads": 6, "d_mlp": 1536} | changes)

    @classmethod
    def base_16(cls, **changes: Any) -> "ViTConfig":
        """B/16: 86M parameters (Table 1)."""
        return cls(**changes)

    @classmethod
    def base_32(cls, **changes: Any) -> "ViTConfig":
        """B/32: the same layers on a quarter of the patches (Table 1)."""
        return cls(**{"patch_size": 32} | changes)

    @classmethod
    def large_16(cls, **changes: Any) -> "ViTConfig":
        """L/16: 307M parameters in Table 1."""
        return cls(**{"d_model": 1024, "n_layers": 24, "n_heads": 16, "d_mlp": 4096} | changes)

    @classmethod
    def huge_14(cls, **changes: Any) -> "ViTConfig":
        """H/14: 632M parameters (Table 1)."""
        return cls(**{"patch_size": 14, "d_model": 1280, "n_layers": 32, "n_heads": 16, "d_mlp": 5120} | changes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def n_tokens(self) -> int:
        """Length t of the sequence, the class token included."""
        return math.prod(self.grid) + (self.pool == "cls")

    def forward_flops(self) -> int:
        """FLOPs of one image through the model: matrix products only, a multiply-add counted as two."""
        n_patches, t, d = math.prod(self.grid), self.n_tokens, self.d_model
        embed = 2 * n_patches * self.patch_size**2 * self.in_channels * d
        hidden = self.d_pre_logits or 0
        head = 2 * d * hidden + 2 * (hidden or d) * self.n_classes
        return embed + self.n_layers * block_flops(t, d, self.d_mlp) + head


class ViT(nn.Module):
    """Vision Transformer: patches → tokens → pre-norm encoder → layer norm → head.

    Source: Dosovitskiy et al. 2020, Figure 1 and Eq. 1–4.
    Cost: `config.forward_flops()` per image.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        d = config.d_model
        self.patch_embedding = PatchEmbedding(config.patch_size, config.in_channels, d)
        self.class_token = nn.Parameter(torch.zeros(d)) if config.pool == "cls" else None
        self.positions = self._make_positions()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                d, config.n_heads, config.d_mlp, norm="pre", norm_eps=config.norm_eps, dropout=config.dropout
            )
            for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(d, eps=config.norm_eps)
        hidden = config.d_pre_logits
        self.pre_logits = nn.Sequential(nn.Linear(d, hidden), nn.Tanh()) if hidden else nn.Identity()
        self.head = nn.Linear(hidden or d, config.n_classes) if config.n_classes else nn.Identity()
        self._initialise()

    def _make_positions(self) -> nn.Module | None:
        config = self.config
        if config.positions == "learned":
            return LearnedPositions(config.n_tokens, config.d_model)
        if config.positions == "learned_2d":
            return LearnedPositions2d(*config.grid, config.d_model)
        if config.positions == "sincos_2d":
            self.register_buffer("sincos", sinusoidal_2d(*config.grid, config.d_model), persistent=False)
        return None

    def _initialise(self) -> None:
        # As in the official code: Xavier in the encoder, LeCun for the patches, zero for the head.
        nn.init.normal_(self.patch_embedding.proj.weight, std=self.patch_embedding.proj.in_features**-0.5)
        nn.init.zeros_(self.patch_embedding.proj.bias)
        for block in self.blocks:
            # One bound a projection: Xavier of the fused (3d, d) matrix would be smaller than that of three (d, d).
            for projection in block.attention.in_proj.weight.chunk(3):
                nn.init.xavier_uniform_(projection)
            nn.init.zeros_(block.attention.in_proj.bias)
            nn.init.xavier_uniform_(block.attention.out_proj.weight)
            nn.init.zeros_(block.attention.out_proj.bias)
            for layer in (block.mlp.fc1, block.mlp.fc2):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def embed(self, images: Tensor) -> Float[Tensor, "b t d"]:
        """z_0 = [x_class; x_p E] + E_pos.

        Raises:
            ValueError: as `forward`.

        Source: Eq. 1.
        """
        check_images(images, self.config.in_channels, self.config.image_size)
        z = self.patch_embedding(images)
        if self.config.positions in ("learned_2d", "sincos_2d"):
            # These have a vector for each place of the grid only; the class token has none.
            z = z + (self.sincos if self.positions is None else self.positions())
        if self.class_token is not None:
            z = torch.cat([self.class_token.expand(len(z), 1, -1), z], dim=1)
        if self.config.positions == "learned":
            z = z + self.positions()
        return self.dropout(z)

    def encode(self, images: Tensor) -> Float[Tensor, "b t d"]:
        """LN(z_L), all tokens of the last layer.

        Source: Eq. 2 and 3, and the norm of Eq. 4.
        """
        z = self.embed(images)
        for block in self.blocks:
            z = block(z)
        return self.norm(z)

    def forward(self, images: Tensor) -> Float[Tensor, "b k"]:
        """The logits of each class; with n_classes=0 the representation y (Eq. 4), (b d).

        Args:
            images: (b c h w), floating point, normalised as in training.

        Raises:
            ValueError: not a batch of floating-point images of this model's size, or an empty one.
        """
        z = self.encode(images)
        y = z[:, 0] if self.class_token is not None else z.mean(dim=1)
        return self.head(self.pre_logits(y))

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> Float[Tensor, "layers b n t t"]:
        """The attention weights of every layer and head, query by key, for looking at: without dropout in eval mode.

        Cost: layers · b · n · t² numbers of memory.
        """
        z = self.embed(images)
        maps = []
        for block in self.blocks:
            maps.append(block.attention.weights(block.norm1(z)))
            z = block(z)
        return torch.stack(maps)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, config: ViTConfig | None = None, image_size: int | None = None
    ) -> "ViT":
        """A ViT with published weights: ours, transformers' (`ViTForImageClassification`, `ViTModel`) or torchvision's.

        Args:
            source: a folder, a weights file, or the id of a model on the Hugging Face hub.
            config: sizes, for a weights file that is none of Table 1's; a folder states its own.
            image_size: another image side in pixels; the positions are then interpolated (Section 3.2).

        Returns:
            The model in eval mode.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a damaged file, another architecture, or a tensor missing, left over or of another shape.
        """
        values, tensors = checkpoints.read(source)
        if values and config is not None:
            raise ValueError(f"got config for {source}, which states its own sizes in config.json")
        if "paperwalk" in values:
            config = checkpoints.config_from(ViTConfig, values, "ViT")
        elif values:
            with checkpoints.described(source):
                sizes, tensors = from_transformers(values, tensors)
                config = ViTConfig(**sizes)
        elif config is not None:
            tensors = our_names(tensors, TORCHVISION)
        else:
            with checkpoints.described(source):
                sizes, tensors = from_torchvision(tensors)
                config = ViTConfig(**sizes)
        if image_size is not None and image_size != config.image_size:
            resized = replace(config, image_size=image_size)
            positions = tensors.get("positions.weight")
            if positions is not None and positions.ndim == 2:
                tensors["positions.weight"] = resize_positions(positions.float(), config.grid, resized.grid)
            config = resized
        return checkpoints.build(cls, config, tensors).eval()

    def save_pretrained(self, folder: str | Path, *, bits: int = 32) -> None:
        """Write the model to a folder that `from_pretrained` reads; `bits` a weight, as in `checkpoints.write`."""
        checkpoints.write(folder, self, "ViT", self.config, bits)
