"""CLIP weights as transformers, OpenAI and open_clip publish them."""

import math
import re
from collections.abc import Mapping
from typing import Any

from paperwalk.checkpoints import Tensors, fuse_qkv, published_sizes, rename
from paperwalk.nn.patches import linear_from_conv

_TOWERS = {"vision_model": "image", "text_model": "text", "visual.transformer": "image", "transformer": "text"}


def _both(theirs: str, pattern: str, ours: str) -> dict[str, str]:
    """The same rule for a module of each tower."""
    return {rf"{re.escape(theirs)}\.{pattern}": rf"{_TOWERS[theirs]}.{ours}"}


def _transformers_blocks(tower: str) -> dict[str, str]:
    layer = r"encoder\.layers\.(\d+)\."
    return {
        **_both(tower, layer + r"layer_norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        **_both(tower, layer + r"self_attn\.([qkv])_proj\.(\w+)", r"blocks.\1.attention.\2.\3"),
        **_both(tower, layer + r"self_attn\.out_proj\.(\w+)", r"blocks.\1.attention.out_proj.\2"),
        **_both(tower, layer + r"mlp\.(fc[12])\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    }


def _openai_blocks(tower: str) -> dict[str, str]:
    layer = r"resblocks\.(\d+)\."
    return {
        **_both(tower, layer + r"ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        **_both(tower, layer + r"attn\.in_proj_(\w+)", r"blocks.\1.attention.in_proj.\2"),
        **_both(tower, layer + r"attn\.out_proj\.(\w+)", r"blocks.\1.attention.out_proj.\2"),
        **_both(tower, layer + r"mlp\.c_fc\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
        **_both(tower, layer + r"mlp\.c_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    }


TRANSFORMERS = {
    **_transformers_blocks("vision_model"),
    **_transformers_blocks("text_model"),
    r"vision_model\.embeddings\.class_embedding": "image.class_token",
    r"vision_model\.embeddings\.patch_embedding\.weight": "image.patch_embedding.proj.weight",
    r"vision_model\.embeddings\.position_embedding\.weight": "image.positions.weight",
    # Their own spelling, with which the files are written.
    r"vision_model\.pre_?layr?norm\.(\w+)": r"image.norm_pre.\1",
    r"vision_model\.post_layernorm\.(\w+)": r"image.norm.\1",
    r"visual_projection\.weight": "image.projection.weight",
    r"text_model\.embeddings\.token_embedding\.weight": "text.token_embedding.weight",
    r"text_model\.embeddings\.position_embedding\.weight": "text.positions.weight",
    r"text_model\.final_layer_norm\.(\w+)": r"text.norm.\1",
    r"text_projection\.weight": "text.projection.weight",
    r"logit_scale": "log_scale",
}
OPENAI = {
    **_openai_blocks("visual.transformer"),
    **_openai_blocks("transformer"),
    r"visual\.class_embedding": "image.class_token",
    r"visual\.conv1\.weight": "image.patch_embedding.proj.weight",
    r"visual\.positional_embedding": "image.positions.weight",
    r"visual\.ln_pre\.(\w+)": r"image.norm_pre.\1",
    r"visual\.ln_post\.(\w+)": r"image.norm.\1",
    r"visual\.proj": "image.projection.weight",
    r"token_embedding\.weight": "text.token_embedding.weight",
    r"positional_embedding": "text.positions.weight",
    r"ln_final\.(\w+)": r"text.norm.\1",
    r"text_projection": "text.projection.weight",
    r"logit_scale": "log_scale",
}
# Not weights: numbers of the positions in transformers' older files, sizes and the causal mask in OpenAI's.
BUFFERS = r".*\.position_ids|input_resolution|context_length|vocab_size|attn_mask|.*\.attn_mask"
# (in, out) in OpenAI's files; a linear layer's are (out, in).
TRANSPOSED = ("visual.proj", "text_projection")
# Of the published models every head is so wide.
D_HEAD = 64


def our_names(tensors: Tensors, table: Mapping[str, str]) -> Tensors:
    """The tensors under our names and in our layout; those that `table` does not know keep theirs.

    A tensor that does not have the published layout stays as it is, and `load_exactly` names it.
    """
    kept = {
        name: tensor.T.contiguous() if name in TRANSPOSED and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
        if not re.fullmatch(BUFFERS, name)
    }
    ours = fuse_qkv(rename(kept, table))
    kernel = ours.get("image.patch_embedding.proj.weight")
    if kernel is not None and kernel.ndim == 4:
        ours["image.patch_embedding.proj.weight"] = linear_from_conv(kernel)
    return ours


def from_transformers(values: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of transformers' `CLIPModel`.

    Raises:
        ValueError: the configuration is of another architecture or asks for something that CLIP does not have.
    """
    if values.get("model_type") != "clip":
        raise ValueError(f"the checkpoint has model_type={values.get('model_type')!r}, expected 'clip'")
    # Old files state these sizes twice; what is absent has transformers' default, that of ViT-B/32.
    image = {**_IMAGE_DEFAULTS, **(values.get("vision_config") or {})}
    text = {**_TEXT_DEFAULTS, **(values.get("text_config") or {})}
    for name in ("hidden_act", "layer_norm_eps"):
        if image[name] != text[name]:
            raise ValueError(f"the towers have {name} {image[name]!r} and {text[name]!r}, expected the same")
    if image["num_channels"] != 3:
        raise ValueError(f"the checkpoint has num_channels={image['num_channels']}, expected 3")
    sizes = published_sizes(image, _IMAGE_FIELDS, "clip") | published_sizes(text, _TEXT_FIELDS, "clip")
    # Files from before 2023 say 2, which is no end of text; they mean the largest integer.
    sizes["eot"] = None if text["eos_token_id"] in (2, text["vocab_size"] - 1) else text["eos_token_id"]
    return sizes | {"d_embed": values.get("projection_dim", 512)}, our_names(tensors, TRANSFORMERS)


_IMAGE_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "d_image": "hidden_size",
    "n_image_layers": "num_hidden_layers",
    "n_image_heads": "num_attention_heads",
    "d_image_mlp": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}
_TEXT_FIELDS = {
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "d_text": "hidden_size",
    "n_text_layers": "num_hidden_layers",
    "n_text_heads": "num_attention_heads",
    "d_text_mlp": "intermediate_size",
}
_IMAGE_DEFAULTS = {
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT_DEFAULTS = {
    "vocab_size": 49_408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49_407,
}


def from_openai(tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of OpenAI's or open_clip's state dict, the sizes read off the shapes; heads are 64 wide.

    Raises:
        ValueError: the tensors are of another architecture.
    """
    expected = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
        "token_embedding.weight": 2,
        "positional_embedding": 2,
        "transformer.resblocks.0.mlp.c_fc.weight": 2,
        "text_projection": 2,
    }
    wrong = [name for name, ndim in expected.items() if name not in tensors or tensors[name].ndim != ndim]
    if wrong:
        raise ValueError(
            f"the file is not a CLIP with a Vision Transformer: expected {wrong[0]} of {expected[wrong[0]]} axes, "
            f"received {', '.join(list(tensors)[:3]) or 'no tensors'} …"
        )
    d_image, _, patch_size, _ = tensors["visual.conv1.weight"].shape
    block_size, d_text = tensors["positional_embedding"].shape
    numbers = {
        tower: [int(match[1]) for name in tensors if (match := re.match(tower + r"\.resblocks\.(\d+)\.", name))]
        for tower in ("visual.transformer", "transformer")
    }
    sizes = {
        "image_size": math.isqrt(len(tensors["visual.positional_embedding"]) - 1) * patch_size,
        "patch_size": patch_size,
        "d_image": d_image,
        "n_image_layers": 1 + max(numbers["visual.transformer"]),
        "n_image_heads": max(1, d_image // D_HEAD),
        "d_image_mlp": len(tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        "vocab_size": len(tensors["token_embedding.weight"]),
        "block_size": block_size,
        "d_text": d_text,
        "n_text_layers": 1 + max(numbers["transformer"]),
        "n_text_heads": max(1, d_text // D_HEAD),
        "d_text_mlp": len(tensors["transformer.resblocks.0.mlp.c_fc.weight"]),
        "d_embed": tensors["text_projection"].shape[1],
    }
    return sizes, our_names(tensors, OPENAI)
