"""Masked autoencoder weights as transformers and the authors publish them."""

import math
import re
from collections.abc import Mapping
from typing import Any

from paperwalk.checkpoints import Tensors, fuse_qkv, published_sizes, rename
from paperwalk.nn.patches import linear_from_conv

# facebookresearch/mae, models_mae.py; the blocks are timm's. What has our name already is not listed.
OFFICIAL = {
    r"cls_token": "class_token",
    r"(decoder_)?pos_embed": r"\1positions",
    r"patch_embed\.proj\.(\w+)": r"patch_embedding.proj.\1",
    r"(decoder_)?blocks\.(\d+)\.attn\.qkv\.(\w+)": r"\1blocks.\2.attention.in_proj.\3",
    r"(decoder_)?blocks\.(\d+)\.attn\.proj\.(\w+)": r"\1blocks.\2.attention.out_proj.\3",
    r"decoder_embed\.(\w+)": r"decoder_embedding.\1",
    r"decoder_pred\.(\w+)": r"decoder_head.\1",
}


def _layers(theirs: str, ours: str) -> dict[str, str]:
    # transformers stores one spelling on disk (…attention.attention.query) and uses another in memory (…q_proj).
    start, end = rf"{theirs}\.(\d+)\.", rf"{ours}.\1."
    return {
        start + r"layernorm_before\.(\w+)": end + r"norm1.\2",
        start + r"layernorm_after\.(\w+)": end + r"norm2.\2",
        start + r"attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.(\w+)": end + r"attention.\2.\3",
        start + r"attention\.(?:output\.dense|o_proj)\.(\w+)": end + r"attention.out_proj.\2",
        start + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)": end + r"mlp.fc1.\2",
        start + r"(?:output\.dense|mlp\.fc2)\.(\w+)": end + r"mlp.fc2.\2",
    }


TRANSFORMERS = {
    r"vit\.embeddings\.cls_token": "class_token",
    r"vit\.embeddings\.position_embeddings": "positions",
    r"vit\.embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embedding.proj.\1",
    **_layers(r"vit\.(?:encoder\.)?layers?", "blocks"),
    r"vit\.layernorm\.(\w+)": r"norm.\1",
    r"decoder\.decoder_embed\.(\w+)": r"decoder_embedding.\1",
    r"decoder\.mask_token": "mask_token",
    r"decoder\.decoder_pos_embed": "decoder_positions",
    **_layers(r"decoder\.decoder_(?:encoder\.)?layers?", "decoder_blocks"),
    r"decoder\.decoder_norm\.(\w+)": r"decoder_norm.\1",
    r"decoder\.decoder_pred\.(\w+)": r"decoder_head.\1",
}
# Shapes do not tell the number of heads; the official models have these.
HEADS = {768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}


def our_names(tensors: Tensors, table: Mapping[str, str]) -> Tensors:
    """The tensors under our names and in our layout; those that `table` does not know keep theirs.

    A tensor that does not have the published layout stays as it is: it is in ours, or `load_exactly` names it.
    """
    ours = fuse_qkv(rename(tensors, table))
    ones = {"class_token": (1, 1), "mask_token": (1, 1), "positions": (1,), "decoder_positions": (1,)}
    for name, axes in ones.items():
        if name in ours and ours[name].ndim == 3 and ours[name].shape[: len(axes)] == axes:
            ours[name] = ours[name].flatten(0, len(axes))
    kernel = ours.get("patch_embedding.proj.weight")
    if kernel is not None and kernel.ndim == 4 and kernel.shape[2] == kernel.shape[3]:
        ours["patch_embedding.proj.weight"] = linear_from_conv(kernel)
    return ours


def from_transformers(values: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of transformers' `ViTMAEForPreTraining`.

    Raises:
        ValueError: the configuration is of another architecture or asks for something that MAE does not have.
    """
    expected = {"model_type": "vit_mae", "hidden_act": "gelu", "qkv_bias": True}
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise ValueError(f"the checkpoint has {name}={values[name]!r}, expected {value!r}")
    fields = {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "in_channels": "num_channels",
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "d_mlp": "intermediate_size",
        "decoder_d_model": "decoder_hidden_size",
        "decoder_n_layers": "decoder_num_hidden_layers",
        "decoder_n_heads": "decoder_num_attention_heads",
        "decoder_d_mlp": "decoder_intermediate_size",
        "mask_ratio": "mask_ratio",
        "norm_target": "norm_pix_loss",
        "norm_eps": "layer_norm_eps",
    }
    return published_sizes(values, fields, "vit_mae"), our_names(tensors, TRANSFORMERS)


def from_official(tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of the official `MaskedAutoencoderViT`, read off the shapes.

    A file for fine-tuning, without a decoder, gets the sizes of the default decoder.

    Raises:
        ValueError: the tensors are of another architecture, or of a width that does not tell the number of heads.
    """
    kernel, positions = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    first = tensors.get("blocks.0.mlp.fc1.weight")
    if kernel is None or positions is None or first is None or (kernel.ndim, positions.ndim, first.ndim) != (4, 3, 2):
        raise ValueError(
            "the file is not an official masked autoencoder: expected patch_embed.proj.weight, pos_embed and blocks.…, "
            f"received {', '.join(list(tensors)[:3]) or 'no tensors'} …"
        )
    d_model, in_channels, patch_size, _ = kernel.shape
    sizes = {
        "image_size": math.isqrt(positions.shape[1] - 1) * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "d_model": d_model,
        "n_layers": _count(tensors, r"blocks\.(\d+)\."),
        "n_heads": _heads(d_model, HEADS),
        "d_mlp": len(first),
    }
    decoder, first = tensors.get("decoder_embed.weight"), tensors.get("decoder_blocks.0.mlp.fc1.weight")
    if decoder is not None and first is not None and decoder.ndim == first.ndim == 2:
        sizes |= {
            "decoder_d_model": len(decoder),
            "decoder_n_layers": _count(tensors, r"decoder_blocks\.(\d+)\."),
            "decoder_n_heads": _heads(len(decoder), DECODER_HEADS),
            "decoder_d_mlp": len(first),
        }
    return sizes, our_names(tensors, OFFICIAL)


def _count(tensors: Tensors, pattern: str) -> int:
    return 1 + max(int(match[1]) for match in (re.match(pattern, name) for name in tensors) if match)


def _heads(width: int, known: Mapping[int, int]) -> int:
    if width not in known:
        raise ValueError(
            f"a width of {width} does not tell the number of heads (known: {sorted(known)}); pass config=MAEConfig(…)"
        )
    return known[width]
