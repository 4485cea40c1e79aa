r"""Hide most patches of an image; a transformer that learns to paint them has learnt to see.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, arXiv:2111.06377. Official implementation:
facebookresearch/mae, `models_mae.py`. The paper numbers no equation; sections are named instead.

| axis | paper | meaning |
|---|---|---|
| b | | batch |
| c | | channels |
| h, w | | pixel rows and columns |
| p | | side of a patch, in pixels |
| t | | patches of an image, N = (h / p) · (w / p) |
| u | | visible (unmasked) patches, ⌊N · (1 − mask ratio)⌋ |
| d | | width of the encoder, or of the decoder |

Differs from the paper (what it does not say, we take from the official code, unless listed here):
- The patches are chosen first and embedded then; the paper and its code embed all and drop most. The map is the same.
- Positions are buffers, not parameters without a gradient; both are saved with the weights.
- `reconstruct` gives normalised patches back their true mean and spread, which the model has not seen.
Settled by the official code, not by the paper: the class token comes first and has the position zero; the decoder's
class token goes through the decoder and is dropped; the patch variance of the target divides by p²c − 1; 1e-6 is added
to it, and to the variance inside each layer norm; a batch's loss is one mean over all its masked patches; Xavier covers
queries, keys and values as one matrix; class and mask token start with a standard deviation of 0.02.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paperwalk import checkpoints
from paperwalk.nn import PatchEmbedding, TransformerBlock, block_flops, patchify, sinusoidal_2d, unpatchify
from paperwalk.nn.checks import check_images, check_multiple, check_sizes
from paperwalk.published.mae import OFFICIAL, from_official, from_transformers, our_names

TARGET_EPS = 1e-6


@dataclass(frozen=True)
class MAEConfig:
    """The sizes of a masked autoencoder; the defaults are ViT-Base/16 for 224 x 224 images.

    Args:
        image_size, patch_size: sides of the square image and of its square patches, in pixels.
        in_channels: channels c of the image.
        d_model, n_layers, n_heads, d_mlp: the encoder, a ViT.
        decoder_d_model, decoder_n_layers, decoder_n_heads, decoder_d_mlp: the decoder.
        mask_ratio: share of the patches that is hidden, in [0, 1).
        norm_target: predict each patch normalised by its own mean and standard deviation (Table 1d).
        norm_eps: added to the variance inside each layer norm's square root.

    Raises:
        ValueError: sizes that do not fit together, or a mask ratio that is none or leaves no patch visible.
    """

    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_mlp: int = 3072
    decoder_d_model: int = 512
    decoder_n_layers: int = 8
    decoder_n_heads: int = 16
    decoder_d_mlp: int = 2048
    mask_ratio: float = 0.75
    norm_target: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self):
        check_sizes(self, "image_size", "patch_size", "in_channels", "d_model", "n_layers", "n_heads", "d_mlp")
        check_sizes(self, "decoder_d_model", "decoder_n_layers", "decoder_n_heads", "decoder_d_mlp")
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "d_model", "n_heads")
        check_multiple(self, "decoder_d_model", "decoder_n_heads")
        for name in ("d_model", "decoder_d_model"):
            if getattr(self, name) % 4:
                raise ValueError(f"{name}={getattr(self, name)}, expected a multiple of 4: sines and cosines, two axes")
        if not isinstance(self.norm_target, bool):
            raise ValueError(f"norm_target={self.norm_target!r}, expected a bool")
        if self.norm_target and self.patch_size**2 * self.in_channels == 1:
            raise ValueError("norm_target=True with patches of one number, expected at least two to have a spread")
        if not isinstance(self.norm_eps, int | float) or self.norm_eps < 0:
            raise ValueError(f"norm_eps={self.norm_eps!r}, expected a number of at least 0")
        n_visible(self.n_patches, self.mask_ratio)

    @classmethod
    def base_16(cls, **changes: Any) -> "MAEConfig":
        """ViT-B/16 with the default decoder: 112M parameters, 86M of them in the encoder."""
        return cls(**changes)

    @classmethod
    def large_16(cls, **changes: Any) -> "MAEConfig":
        """ViT-L/16 with the default decoder, the paper's baseline: 329M parameters, 303M in the encoder."""
        return cls(**{"d_model": 1024, "n_layers": 24, "n_heads": 16, "d_mlp": 4096} | changes)

    @classmethod
    def huge_14(cls, **changes: Any) -> "MAEConfig":
        """ViT-H/14 with the default decoder: 657M parameters, 631M in the encoder."""
        return cls(**{"patch_size": 14, "d_model": 1280, "n_layers": 32, "n_heads": 16, "d_mlp": 5120} | changes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def n_patches(self) -> int:
        """Patches t of an image."""
        return self.grid[0] * self.grid[1]

    def encoder_sizes(self) -> dict[str, Any]:
        """The sizes of the encoder, as `ViTConfig` takes them."""
        names = ("image_size", "patch_size", "in_channels", "d_model", "n_layers", "n_heads", "d_mlp", "norm_eps")
        return {name: getattr(self, name) for name in names}

    def encoder_flops(self, mask_ratio: float | None = None) -> int:
        """FLOPs of the encoder for one image: matrix products only, a multiply-add counted as two."""
        u = n_visible(self.n_patches, self.mask_ratio if mask_ratio is None else mask_ratio)
        embed = 2 * u * self.patch_size**2 * self.in_channels * self.d_model
        return embed + self.n_layers * block_flops(u + 1, self.d_model, self.d_mlp)

    def decoder_flops(self, mask_ratio: float | None = None) -> int:
        """FLOPs of the decoder for one image, counted in the same way; it sees every patch at any mask ratio."""
        u, d = n_visible(self.n_patches, self.mask_ratio if mask_ratio is None else mask_ratio), self.decoder_d_model
        embed = 2 * (u + 1) * self.d_model * d
        head = 2 * self.n_patches * d * self.patch_size**2 * self.in_channels
        return embed + self.decoder_n_layers * block_flops(self.n_patches + 1, d, self.decoder_d_mlp) + head


def n_visible(n_patches: int, mask_ratio: float) -> int:
    """⌊N · (1 − mask ratio)⌋, the number of patches that the encoder sees.

    Raises:
        ValueError: the mask ratio is outside [0, 1), or so high that no patch is left.
    """
    if not isinstance(mask_ratio, int | float) or not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio!r}, expected a number in [0, 1)")
    # The floor of this very expression, as in the official code: with rounding errors and all.
    visible = int(n_patches * (1 - mask_ratio))
    if visible < 1:
        raise ValueError(f"mask_ratio={mask_ratio} leaves none of {n_patches} patches visible, expected at least one")
    return visible


class Masking(NamedTuple):
    """Which patches are seen: a random order of them, its inverse, and the mask.

    `ids_keep` (b u): the visible patches, in the shuffled order. `ids_restore` (b t): for each patch, its place in the
    shuffled order. `mask` (b t): True where a patch is hidden.
    """

    ids_keep: Int[Tensor, "b u"]
    ids_restore: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]


def random_masking(noise: Float[Tensor, "b t"], mask_ratio: float) -> Masking:
    """Shuffle the patches of each image by sorting noise, and keep the first ⌊t · (1 − mask ratio)⌋.

    The inverse of a permutation is the order that sorts it: `ids_restore = argsort(argsort(noise))`, the rank of each
    patch's noise. A patch is hidden when its rank is too high.

    Args:
        noise: one number a patch; uniform noise makes every subset equally likely.
        mask_ratio: share of the patches to hide, in [0, 1).

    Raises:
        ValueError: the noise is no finite (b t), or the mask ratio does not fit.

    Source: He et al. 2021, Section 3 ("Masking" and "Simple implementation").
    """
    if noise.ndim != 2 or not noise.isfinite().all():
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected finite numbers of shape (b, t)")
    visible = n_visible(noise.shape[1], mask_ratio)
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    return Masking(ids_shuffle[:, :visible], ids_restore, ids_restore >= visible)


def take(tokens: Float[Tensor, "b t d"], ids: Int[Tensor, "b u"]) -> Float[Tensor, "b u d"]:
    """Row ids[i, j] of image i, for each j.

    Raises:
        IndexError: an image has no such row.
    """
    # torch.gather would do, with an index for each number: it is slower, and may not check them.
    return tokens[torch.arange(len(tokens), device=ids.device)[:, None], ids]


def patch_statistics(patches: Float[Tensor, "b t p2c"]) -> tuple[Float[Tensor, "b t 1"], Float[Tensor, "b t 1"]]:
    """Mean and √(variance + 1e-6) of each patch over its own pixels and channels."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + TARGET_EPS).sqrt()


def normalise_patches(patches: Float[Tensor, "b t p2c"]) -> Float[Tensor, "b t p2c"]:
    """(x − mean) / √(variance + 1e-6) of each patch.

    Source: He et al. 2021, Section 3 ("Reconstruction target"); variance over p²c − 1, as in the official code.
    """
    mean, spread = patch_statistics(patches)
    return (patches - mean) / spread


def masked_loss(
    prediction: Float[Tensor, "b t p2c"], target: Float[Tensor, "b t p2c"], mask: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """The squared error of a pixel, averaged over the hidden patches of the batch; visible ones do not count.

    Raises:
        ValueError: no patch is hidden, so that there is nothing to average.

    Source: He et al. 2021, Section 3 ("Reconstruction target").
    """
    if not mask.any():
        raise ValueError("mask hides no patch, expected at least one: the loss is a mean over hidden patches")
    errors = (prediction - target).square().mean(dim=-1)
    return (errors * mask).sum() / mask.sum()


def cover(images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b c h w"]:
    """The images with hidden patches at 0, for looking at; a square grid of patches."""
    size = images.shape[-1]
    p = size // math.isqrt(mask.shape[1])
    return unpatchify(patchify(images, p).masked_fill(mask[..., None], 0.0), p, size, size)


def fixed_positions(grid: tuple[int, int], d_model: int) -> Float[Tensor, "t1 d"]:
    """2-D sine-cosine positions of a grid, row by row, after a zero for the class token.

    Source: He et al. 2021, Appendix A.1; the zero and the layout: facebookresearch/mae, `util/pos_embed.py`.
    """
    return torch.cat([torch.zeros(1, d_model), sinusoidal_2d(*grid, d_model)])


class MAEOutput(NamedTuple):
    """What a training step needs and a figure shows.

    `loss` (): see `masked_loss`. `prediction` (b t p²c): the decoder's patches, visible ones included. `mask` (b t):
    True where a patch was hidden. `ids_restore` (b t): see `Masking`.
    """

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "b t p2c"]
    mask: Bool[Tensor, "b t"]
    ids_restore: Int[Tensor, "b t"]


class MAE(nn.Module):
    """Masked autoencoder: visible patches → encoder → all patches, hidden ones as mask tokens → decoder → pixels.

    Source: He et al. 2021, Figure 1 and Section 3.
    Cost: `config.encoder_flops() + config.decoder_flops()` per image and forward pass.
    """

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.config = config
        d, decoder_d, length = config.d_model, config.decoder_d_model, config.patch_size**2 * config.in_channels
        self.patch_embedding = PatchEmbedding(config.patch_size, config.in_channels, d)
        self.class_token = nn.Parameter(torch.zeros(d))
        self.register_buffer("positions", fixed_positions(config.grid, d))
        self.blocks = nn.ModuleList(
            TransformerBlock(d, config.n_heads, config.d_mlp, norm_eps=config.norm_eps) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.decoder_embedding = nn.Linear(d, decoder_d)
        self.mask_token = nn.Parameter(torch.zeros(decoder_d))
        self.register_buffer("decoder_positions", fixed_positions(config.grid, decoder_d))
        self.decoder_blocks = nn.ModuleList(
            TransformerBlock(decoder_d, config.decoder_n_heads, config.decoder_d_mlp, norm_eps=config.norm_eps)
            for _ in range(config.decoder_n_layers)
        )
        self.decoder_norm = nn.LayerNorm(decoder_d, eps=config.norm_eps)
        self.decoder_head = nn.Linear(decoder_d, length)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode(
        self, images: Tensor, *, mask_ratio: float | None = None, noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b u1 d"], Masking]:
        """The encoder's last layer, class token first, then the visible patches in the order of `Masking.ids_keep`.

        Args:
            images: (b c h w), floating point, normalised as in training.
            mask_ratio: share of the patches to hide; the configuration's if None.
            noise: (b t), whose order decides what is hidden; uniform noise if None.

        Raises:
            ValueError: images or noise of another shape, not finite, or not floating point; a mask ratio that is none.

        Source: He et al. 2021, Section 3 ("MAE encoder").
        """
        check_images(images, self.config.in_channels, self.config.image_size)
        if not images.isfinite().all():
            raise ValueError("images hold NaN or infinity, expected finite pixels")
        expected = (len(images), self.config.n_patches)
        if noise is None:
            noise = torch.rand(expected, device=images.device)
        elif tuple(noise.shape) != expected:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {expected}: a number a patch")
        masking = random_masking(noise, self.config.mask_ratio if mask_ratio is None else mask_ratio)
        visible = take(patchify(images, self.config.patch_size), masking.ids_keep)
        z = self.patch_embedding.proj(visible) + self.positions[1:][masking.ids_keep]
        z = torch.cat([(self.class_token + self.positions[0]).expand(len(z), 1, -1), z], dim=1)
        for block in self.blocks:
            z = block(z)
        return self.norm(z), masking

    def decode(self, z: Tensor, ids_restore: Tensor) -> Float[Tensor, "b t p2c"]:
        """Predict the pixels of all patches: mask tokens fill the gaps, and every token gets its position.

        Args:
            z: (b u+1 d), as `encode` returns it.
            ids_restore: (b t), `Masking.ids_restore`.

        Raises:
            ValueError: the shapes are not those of `encode`.

        Source: He et al. 2021, Section 3 ("MAE decoder", "Simple implementation").
        """
        t, d = self.config.n_patches, self.config.d_model
        if z.ndim != 3 or z.shape[2] != d or not 2 <= z.shape[1] <= t + 1 or tuple(ids_restore.shape) != (len(z), t):
            raise ValueError(
                f"z has shape {tuple(z.shape)} and ids_restore {tuple(ids_restore.shape)}, expected (b, u + 1, {d}) "
                f"with 1 <= u <= {t}, and (b, {t})"
            )
        y = self.decoder_embedding(z)
        hidden = self.mask_token.to(y.dtype).expand(len(y), t + 1 - y.shape[1], -1)
        patches = take(torch.cat([y[:, 1:], hidden], dim=1), ids_restore)
        y = torch.cat([y[:, :1], patches], dim=1) + self.decoder_positions
        for block in self.decoder_blocks:
            y = block(y)
        return self.decoder_head(self.decoder_norm(y[:, 1:]))

    def target(self, images: Tensor) -> Float[Tensor, "b t p2c"]:
        """The patches that the decoder should predict: pixels, or normalised pixels."""
        patches = patchify(images, self.config.patch_size)
        return normalise_patches(patches) if self.config.norm_target else patches

    def forward(self, images: Tensor, noise: Tensor | None = None, *, mask_ratio: float | None = None) -> MAEOutput:
        """Hide patches, reconstruct them, and score the reconstruction; the arguments are those of `encode`.

        Raises:
            ValueError: as `encode`; or a mask ratio that hides nothing.
        """
        z, masking = self.encode(images, mask_ratio=mask_ratio, noise=noise)
        prediction = self.decode(z, masking.ids_restore)
        loss = masked_loss(prediction, self.target(images), masking.mask)
        return MAEOutput(loss, prediction, masking.mask, masking.ids_restore)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, prediction: Tensor, mask: Tensor) -> Float[Tensor, "b c h w"]:
        """The images with their hidden patches painted in, for looking at.

        A normalised prediction has neither mean nor contrast; the hidden patch's own are put back, which is more than
        the model knows.

        Args:
            images: those that were given to the model.
            prediction, mask: of its output.
        """
        p, size = self.config.patch_size, self.config.image_size
        patches = patchify(images, p)
        if self.config.norm_target:
            mean, spread = patch_statistics(patches)
            prediction = prediction * spread + mean
        return unpatchify(torch.where(mask[..., None], prediction, patches), p, size, size)

    def encoder_weights(self, n_classes: int = 0) -> checkpoints.Tensors:
        """The encoder as a ViT's weights, for fine-tuning: copies, under the names of `paperwalk.vit.ViT`.

        The fixed positions become that model's learned ones, and a new head starts at zero:

            vit = ViT(ViTConfig(**mae.config.encoder_sizes(), n_classes=10))
            load_exactly(vit, mae.encoder_weights(n_classes=10))

        Args:
            n_classes: rows of the new head; 0 for none.

        Source: He et al. 2021, Appendix A.1; learned positions in fine-tuning: facebookresearch/mae, `models_vit.py`.
        """
        ours = self.state_dict()
        names = ("class_token", "patch_embedding.", "blocks.", "norm.")
        weights = {name: tensor.clone() for name, tensor in ours.items() if name.startswith(names)}
        weights["positions.weight"] = ours["positions"].clone()
        if n_classes:
            weights |= {"head.weight": torch.zeros(n_classes, self.config.d_model), "head.bias": torch.zeros(n_classes)}
        return weights

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, config: MAEConfig | None = None, new_decoder: bool = False
    ) -> "MAE":
        """An MAE with published weights: ours, transformers' (`ViTMAEForPreTraining`) or the official ones.

        Args:
            source: a folder, a weights file, or the id of a model on the Hugging Face hub. An official file holds
                {"model": tensors} or the tensors themselves.
            config: sizes, for a weights file that is none of the paper's; a folder states its own.
            new_decoder: take the encoder only, and leave the decoder at its initial weights. The official files for
                fine-tuning hold no decoder.

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
            config = checkpoints.config_from(MAEConfig, values, "MAE")
        elif values:
            with checkpoints.described(source):
                sizes, tensors = from_transformers(values, tensors)
                config = MAEConfig(**sizes)
        elif config is not None:
            tensors = our_names(tensors, OFFICIAL)
        else:
            with checkpoints.described(source):
                sizes, tensors = from_official(tensors)
                config = MAEConfig(**sizes)
        initial = ("decoder_", "mask_token") if new_decoder else ()
        return checkpoints.build(cls, config, tensors, initial).eval()

    def save_pretrained(self, folder: str | Path, *, bits: int = 32) -> None:
        """Write the model to a folder that `from_pretrained` reads; `bits` a weight, as in `checkpoints.write`."""
        checkpoints.write(folder, self, "MAE", self.config, bits)
