"""Images as sequences of patches, and back.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, Section 3.1.

| axis | paper | meaning |
|---|---|---|
| b | | batch |
| c | C | channels |
| h, w | H, W | pixel rows and columns |
| p | P | side of a patch, in pixels |
| t | N | patches, row by row |
| d | D | width of the model |
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def check_sides(images: Shaped[Tensor, "b c h w"], patch_size: int) -> None:
    """Raise the ValueError of `patchify`: a convolution would silently drop the rows and columns left over."""
    h, w = images.shape[-2:]
    if patch_size < 1 or h % patch_size or w % patch_size:
        raise ValueError(
            f"image of {h} x {w} pixels with patch_size={patch_size}, expected sides that are multiples of it"
        )


def patchify(images: Shaped[Tensor, "b c h w"], patch_size: int) -> Shaped[Tensor, "b t p2c"]:
    """Cut images into (h / p) · (w / p) patches, row by row, each flattened to p · p · c numbers.

    Within a patch the order is row, column, channel.

    Raises:
        ValueError: an image side is not a multiple of `patch_size`.

    Source: Dosovitskiy et al. 2020, Section 3.1: x ∈ R^{H×W×C} becomes x_p ∈ R^{N×(P²·C)}.
    """
    check_sides(images, patch_size)
    return rearrange(images, "b c (gh p1) (gw p2) -> b (gh gw) (p1 p2 c)", p1=patch_size, p2=patch_size)


def unpatchify(
    patches: Shaped[Tensor, "b t p2c"], patch_size: int, height: int, width: int
) -> Shaped[Tensor, "b c h w"]:
    """The images that `patchify` cut up: `unpatchify(patchify(x, p), p, h, w)` is x.

    Args:
        patches: flattened patches, row by row.
        patch_size: side p of a patch, in pixels.
        height, width: size of the images, in pixels.

    Raises:
        ValueError: number or length of the patches does not fit that size.
    """
    if patch_size < 1:
        raise ValueError(f"patch_size={patch_size}, expected at least 1")
    grid = (height // patch_size, width // patch_size)
    t, length = patches.shape[-2:]
    if height % patch_size or width % patch_size or t != grid[0] * grid[1] or length % patch_size**2:
        raise ValueError(
            f"{t} patches of {length} numbers, expected {grid[0] * grid[1]} of a multiple of {patch_size**2} "
            f"for an image of {height} x {width} pixels with patch_size={patch_size}"
        )
    pattern = "b (gh gw) (p1 p2 c) -> b c (gh p1) (gw p2)"
    return rearrange(patches, pattern, gh=grid[0], gw=grid[1], p1=patch_size, p2=patch_size)


class PatchEmbedding(nn.Module):
    """x_p E + b: each flattened patch times one matrix.

    `proj.weight` is Eᵀ. It is applied as a convolution whose kernel and stride are the patch: the same map, and
    faster, because the patches need not be copied out of the image first.

    Args:
        patch_size: side p of a patch, in pixels.
        in_channels: number of channels c.
        d_model: width d of the embedding.
        bias: whether to add b.

    Cost: 2 · t · p² · c · d FLOPs per image.
    Source: Dosovitskiy et al. 2020, Eq. 1 (the term x_p E).
    """

    def __init__(self, patch_size: int, in_channels: int, d_model: int, *, bias: bool = True):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size**2 * in_channels, d_model, bias=bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b t d"]:
        """Embed the patches of images, row by row.

        Raises:
            ValueError: an image side is not a multiple of the patch size.
        """
        check_sides(images, self.patch_size)
        kernels = conv_from_linear(self.proj.weight, self.patch_size)
        embedded = F.conv2d(images, kernels, self.proj.bias, stride=self.patch_size)
        return rearrange(embedded, "b d gh gw -> b (gh gw) d")


def linear_from_conv(weight: Shaped[Tensor, "d c p1 p2"]) -> Shaped[Tensor, "d p2c"]:
    """The `PatchEmbedding.proj` weight that does what a stride-p convolution with this kernel does."""
    return rearrange(weight, "d c p1 p2 -> d (p1 p2 c)")


def conv_from_linear(weight: Shaped[Tensor, "d p2c"], patch_size: int) -> Shaped[Tensor, "d c p1 p2"]:
    """The kernels of the stride-p convolution that does what `PatchEmbedding.proj` with this weight does."""
    return rearrange(weight, "d (p1 p2 c) -> d c p1 p2", p1=patch_size, p2=patch_size)
