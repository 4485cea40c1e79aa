"""U-Net weights as diffusers publishes them (`UNet2DModel`): google/ddpm-cifar10-32 and its like."""

from collections.abc import Mapping
from typing import Any

from paperwalk.checkpoints import Tensors, fuse_qkv, published_sizes, rename

_BLOCK = {name: name for name in ("norm1", "norm2", "conv1", "conv2")}
_BLOCK |= {"time_emb_proj": "time_proj", "conv_shortcut": "shortcut"}
# Attention is spelled in two ways: as in the files published first, and as the library has it now.
_ATTENTION = {
    "group_norm": "norm",
    "(?:query|to_q)": "attention.q",
    "(?:key|to_k)": "attention.k",
    "(?:value|to_v)": "attention.v",
    r"(?:proj_attn|to_out\.0)": "attention.out_proj",
}


def _table() -> dict[str, str]:
    table = {
        r"conv_(in|out)\.(\w+)": r"conv_\1.\2",
        r"conv_norm_out\.(\w+)": r"norm_out.\1",
        r"time_embedding\.linear_1\.(\w+)": r"time_mlp.0.\1",
        r"time_embedding\.linear_2\.(\w+)": r"time_mlp.2.\1",
        r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv\.(\w+)": r"\1.\2.resample.conv.\3",
    }
    for theirs, ours in ((r"(down|up)_blocks\.(\d+)", r"\1.\2"), (r"(mid)_block()", "middle")):
        for kind, group, names in (("resnets", "blocks", _BLOCK), ("attentions", "attentions", _ATTENTION)):
            for name, our_name in names.items():
                table[rf"{theirs}\.{kind}\.(\d+)\.{name}\.(\w+)"] = rf"{ours}.{group}.\3.{our_name}.\4"
    return table


DIFFUSERS = _table()
# What the U-Net of the paper is, and has to be said in a configuration when it is not diffusers' default.
EXPECTED = {
    "_class_name": "UNet2DModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "add_attention": True,
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "downsample_type": "conv",
    "upsample_type": "conv",
    "downsample_padding": 0,
}
DEFAULTS = {"freq_shift": 0, "flip_sin_to_cos": True, "downsample_padding": 1}
FIELDS = {
    "image_size": "sample_size",
    "in_channels": "in_channels",
    "n_blocks": "layers_per_block",
    "n_groups": "norm_num_groups",
    "norm_eps": "norm_eps",
}


def our_names(tensors: Tensors) -> Tensors:
    """The tensors under our names and in our layout; those that are not known keep theirs."""
    return fuse_qkv(rename(tensors, DIFFUSERS))


def from_diffusers(values: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of diffusers' `UNet2DModel`.

    Raises:
        ValueError: the configuration is of another architecture, or asks for something that the paper's U-Net has not.
    """
    for name, value in EXPECTED.items():
        received = values.get(name, DEFAULTS.get(name, value))
        if received != value:
            raise ValueError(f"the checkpoint has {name}={received!r}, expected {value!r}")
    sizes = published_sizes(values, FIELDS, "UNet2DModel")
    sizes |= _levels(values, sizes)
    if values.get("out_channels") != sizes["in_channels"]:
        raise ValueError(
            f"the checkpoint has out_channels={values.get('out_channels')!r}, expected {sizes['in_channels']}"
        )
    return sizes, our_names(tensors)


def _levels(values: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Channels and attention of each level."""
    down, up = (tuple(values.get(f"{way}_block_types", ())) for way in ("down", "up"))
    widths = tuple(values.get("block_out_channels", ()))
    attend = tuple(kind == "AttnDownBlock2D" for kind in down)
    expected = tuple("AttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attend))
    if not widths or len(down) != len(widths) or set(down) - {"DownBlock2D", "AttnDownBlock2D"} or up != expected:
        raise ValueError(
            f"the checkpoint has down_block_types={down}, up_block_types={up}, block_out_channels={widths}, expected "
            "as many of each, DownBlock2D or AttnDownBlock2D, and the same mirrored on the way up"
        )
    if any(width % widths[0] for width in widths):
        raise ValueError(f"the checkpoint has block_out_channels={widths}, expected multiples of the first")
    return {
        "d_model": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "attention_sizes": tuple(sizes["image_size"] // 2**i for i, each in enumerate(attend) if each),
        "d_head": values.get("attention_head_dim", 8),
        "dropout": values.get("dropout", 0.0),
    }
