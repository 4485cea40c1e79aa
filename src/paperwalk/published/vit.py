"""Vision Transformer weights as transformers, torchvision and timm publish them."""

import math
import re
from collections.abc import Mapping
from typing import Any

from paperwalk.checkpoints import Tensors, fuse_qkv, published_sizes, rename
from paperwalk.nn.patches import linear_from_conv

# transformers stores one spelling on disk (…attention.attention.query) and uses another in memory (…attention.q_proj).
TRANSFORMERS = {
    r"(?:vit\.)?embeddings\.cls_token": "class_token",
    r"(?:vit\.)?embeddings\.position_embeddings": "positions.weight",
    r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embedding.proj.\1",
    r"(?:vit\.)?(?:encoder\.)?layers?\.(\d+)\.layernorm_before\.(\w+)": r"blocks.\1.norm1.\2",
    r"(?:vit\.)?(?:encoder\.)?layers?\.(\d+)\.layernorm_after\.(\w+)": r"blocks.\1.norm2.\2",
    r"(?:vit\.)?(?:encoder\.)?layers?\.(\d+)\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.(\w+)": (
        r"blocks.\1.attention.\2.\3"
    ),
    r"(?:vit\.)?(?:encoder\.)?layers?\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(\w+)": (
        r"blocks.\1.attention.out_proj.\2"
    ),
    r"(?:vit\.)?(?:encoder\.)?layers?\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"(?:vit\.)?(?:encoder\.)?layers?\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"(?:vit\.)?layernorm\.(\w+)": r"norm.\1",
    r"(?:vit\.)?pooler\.dense\.(\w+)": r"pre_logits.0.\1",
    r"classifier\.(\w+)": r"head.\1",
}
TORCHVISION = {
    r"class_token": "class_token",
    r"encoder\.pos_embedding": "positions.weight",
    r"conv_proj\.(\w+)": r"patch_embedding.proj.\1",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)": r"blocks.\1.attention.in_proj.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)": r"blocks.\1.attention.out_proj.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"encoder\.ln\.(\w+)": r"norm.\1",
    r"heads\.pre_logits\.(\w+)": r"pre_logits.0.\1",
    r"heads\.head\.(\w+)": r"head.\1",
}
TIMM = {
    r"cls_token": "class_token",
    r"pos_embed": "positions.weight",
    r"patch_embed\.proj\.(\w+)": r"patch_embedding.proj.\1",
    r"blocks\.(\d+)\.attn\.qkv\.(\w+)": r"blocks.\1.attention.in_proj.\2",
    r"blocks\.(\d+)\.attn\.proj\.(\w+)": r"blocks.\1.attention.out_proj.\2",
}
# Shapes do not tell the number of heads; these widths are published with one number only.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}


def our_names(tensors: Tensors, table: Mapping[str, str]) -> Tensors:
    """The tensors under our names and in our layout; those that `table` does not know keep theirs.

    A tensor that does not have the published layout stays as it is: it is in ours, or `load_exactly` names it.
    """
    ours = fuse_qkv(rename(tensors, table))
    for name, ones in {"class_token": (1, 1), "positions.weight": (1,)}.items():
        if name in ours and ours[name].ndim == 3 and ours[name].shape[: len(ones)] == ones:
            ours[name] = ours[name].flatten(0, len(ones))
    kernel = ours.get("patch_embedding.proj.weight")
    if kernel is not None and kernel.ndim == 4 and kernel.shape[2] == kernel.shape[3]:
        ours["patch_embedding.proj.weight"] = linear_from_conv(kernel)
    return ours


def from_transformers(values: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of transformers' `ViTForImageClassification` or `ViTModel` (whose pooler is `pre_logits`).

    Raises:
        ValueError: the configuration is of another architecture or asks for something that ViT does not have.
    """
    ours = our_names(tensors, TRANSFORMERS)
    expected = {"model_type": "vit", "hidden_act": "gelu", "qkv_bias": True}
    if "pre_logits.0.weight" in ours:
        expected["pooler_act"] = "tanh"
        # transformers classifies past the pooler; a head on top of it would be another model.
        if "head.weight" in ours:
            raise ValueError("the checkpoint has pooler.dense.* beside classifier.*, expected one of them")
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
        "norm_eps": "layer_norm_eps",
    }
    sizes = published_sizes(values, fields, "vit")
    return sizes | _heads(ours), ours


def from_torchvision(tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of torchvision's `VisionTransformer`, read off the shapes.

    Raises:
        ValueError: the tensors are of another architecture, or of a width that does not tell the number of heads.
    """
    kernel, positions = tensors.get("conv_proj.weight"), tensors.get("encoder.pos_embedding")
    first = tensors.get("encoder.layers.encoder_layer_0.mlp.0.weight")
    first = tensors.get("encoder.layers.encoder_layer_0.mlp.linear_1.weight", first)
    if kernel is None or positions is None or first is None or (kernel.ndim, positions.ndim, first.ndim) != (4, 3, 2):
        raise ValueError(
            "the file is not a torchvision VisionTransformer: expected conv_proj.weight, encoder.pos_embedding and "
            f"encoder.layers.…, received {', '.join(list(tensors)[:3]) or 'no tensors'} …"
        )
    d_model, in_channels, patch_size, _ = kernel.shape
    if d_model not in HEADS:
        raise ValueError(
            f"d_model={d_model} does not tell the number of heads (known: {sorted(HEADS)}); pass config=ViTConfig(…)"
        )
    layers = [re.search(r"encoder_layer_(\d+)\.", name) for name in tensors]
    ours = our_names(tensors, TORCHVISION)
    sizes = {
        "image_size": math.isqrt(positions.shape[1] - 1) * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "d_model": d_model,
        "n_layers": 1 + max(int(match[1]) for match in layers if match),
        "n_heads": HEADS[d_model],
        "d_mlp": len(first),
    }
    return sizes | _heads(ours), ours


def _heads(ours: Tensors) -> dict[str, Any]:
    """Classes and hidden width of the head that the tensors hold."""
    # A damaged tensor may have no axis at all; `load_exactly` names it.
    rows = {name: tensor.shape[0] if tensor.ndim else 0 for name, tensor in ours.items()}
    return {"n_classes": rows.get("head.weight", 0), "d_pre_logits": rows.get("pre_logits.0.weight")}
