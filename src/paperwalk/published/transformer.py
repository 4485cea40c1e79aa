"""Encoder–decoder weights as transformers' Marian and torch.nn name them."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paperwalk.checkpoints import Tensors, fuse_qkv, published_sizes, rename

_PART = r"(encoder|decoder)\.layers\.(\d+)\."
MARIAN = {
    r"model\.shared\.weight": "embedding.weight",
    rf"model\.{_PART}self_attn\.([qkv])_proj\.(\w+)": r"\1.\2.attention.\3.\4",
    rf"model\.{_PART}self_attn\.out_proj\.(\w+)": r"\1.\2.attention.out_proj.\3",
    rf"model\.{_PART}encoder_attn\.([qkv])_proj\.(\w+)": r"\1.\2.cross_attention.\3.\4",
    rf"model\.{_PART}encoder_attn\.out_proj\.(\w+)": r"\1.\2.cross_attention.out_proj.\3",
    rf"model\.{_PART}self_attn_layer_norm\.(\w+)": r"\1.\2.norm1.\3",
    rf"model\.{_PART}encoder_attn_layer_norm\.(\w+)": r"\1.\2.norm_cross.\3",
    rf"model\.{_PART}final_layer_norm\.(\w+)": r"\1.\2.norm2.\3",
    rf"model\.{_PART}fc([12])\.(\w+)": r"\1.\2.mlp.fc\3.\4",
    r"final_logits_bias": "output_bias",
}
# Other names of the one embedding, and the sinusoids, which are not learned.
MARIAN_COPIES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
MARIAN_SINUSOIDS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
# torch.nn.TransformerEncoderLayer and TransformerDecoderLayer, whose last norms are the second and the third.
TORCH_LAYER = {
    r"self_attn\.in_proj_(\w+)": r"attention.in_proj.\1",
    r"self_attn\.out_proj\.(\w+)": r"attention.out_proj.\1",
    r"multihead_attn\.in_proj_(\w+)": r"cross_attention.in_proj.\1",
    r"multihead_attn\.out_proj\.(\w+)": r"cross_attention.out_proj.\1",
    r"linear([12])\.(\w+)": r"mlp.fc\1.\2",
    r"norm1\.(\w+)": r"norm1.\1",
}
TORCH_ENCODER_LAYER = TORCH_LAYER | {r"norm2\.(\w+)": r"norm2.\1"}
TORCH_DECODER_LAYER = TORCH_LAYER | {r"norm2\.(\w+)": r"norm_cross.\1", r"norm3\.(\w+)": r"norm2.\1"}
TORCH_LAYERS = {"encoder": TORCH_ENCODER_LAYER, "decoder": TORCH_DECODER_LAYER}
# Which axis of our tensors runs over the channels of the model.
CHANNELS = {
    r"embedding\.weight|.*\.(in_proj|fc1)\.weight": 1,
    r".*\.(norm\w*|out_proj|fc2)\.(weight|bias)": 0,
}


def from_torch(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors of torch.nn.Transformer under our names; those that a Transformer does not have keep theirs.

    Differs: torch's stacks end with a norm even when the layers are post-norm; the paper's do not. Set its
    `encoder.norm` and `decoder.norm` to None then.
    """
    ours = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name)
        if match:
            (rest,) = rename({match[3]: tensor}, TORCH_LAYERS[match[1]])
            name = f"{match[1]}.{match[2]}.{rest}"
        ours[re.sub(r"^(encoder|decoder)\.norm\.", r"\1_norm.", name)] = tensor
    return ours


def marian_names(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors of transformers' `MarianMTModel` under our names and in our order of channels.

    Marian's sinusoids are ours with all sines first and all cosines after them. Which channel is which is a matter of
    names: with the channels of every weight put in another order the model computes the same.
    """
    shared = tensors.get("model.shared.weight")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in MARIAN_SINUSOIDS
        and not (name in MARIAN_COPIES and shared is not None and torch.equal(tensor, shared))
        and not (name == "final_logits_bias" and not tensor.any())
    }
    ours = fuse_qkv(rename(kept, MARIAN))
    if "output_bias" in ours:
        ours["output_bias"] = ours["output_bias"].flatten()
    if shared is None or shared.ndim != 2 or shared.shape[1] % 2:
        return ours
    d = shared.shape[1]
    order = torch.arange(d).view(2, d // 2).T.flatten()
    for name, tensor in ours.items():
        axis = next((axis for pattern, axis in CHANNELS.items() if re.fullmatch(pattern, name)), None)
        # A damaged tensor stays as it is; `load_exactly` names it.
        if axis is not None and tensor.ndim > axis and tensor.shape[axis] == d:
            ours[name] = tensor.index_select(axis, order)
    return ours


def from_marian(values: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of transformers' `MarianMTModel`, which has the architecture of the paper.

    Raises:
        ValueError: the configuration is of another architecture or asks for something that Transformer does not have.
    """
    expected = {
        "model_type": "marian",
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "tie_word_embeddings": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
    }
    required = ("model_type", "scale_embedding")
    for name, value in expected.items():
        if values.get(name, None if name in required else value) != value:
            raise ValueError(f"the checkpoint has {name}={values.get(name)!r}, expected {value!r}")
    fields = {
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "n_layers": "encoder_layers",
        "n_heads": "encoder_attention_heads",
        "d_mlp": "encoder_ffn_dim",
        "block_size": "max_position_embeddings",
        "dropout": "dropout",
        "activation": "activation_function",
        "pad_id": "pad_token_id",
        "bos_id": "decoder_start_token_id",
        "eos_id": "eos_token_id",
    }
    sizes = published_sizes(values, fields, "marian")
    for name in ("layers", "attention_heads", "ffn_dim"):
        encoder, decoder = values[f"encoder_{name}"], values.get(f"decoder_{name}")
        if encoder != decoder:
            raise ValueError(
                f"the checkpoint has encoder_{name}={encoder} and decoder_{name}={decoder}, expected equal"
            )
    # Marian's own word for x · sigmoid(x).
    sizes["activation"] = {"swish": "silu"}.get(sizes["activation"], sizes["activation"])
    ours = marian_names(tensors)
    return sizes | {"norm": "post", "norm_eps": 1e-5, "output_bias": "output_bias" in ours}, ours


def to_marian(ours: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensors:
    """Our tensors under the names and in the order of a `MarianMTModel`'s `parameters`: `marian_names` undone.

    Args:
        ours: the state dict of a Transformer without `output_bias`.
        parameters: Marian's, by name, each shared one once (`named_parameters`); their values do not matter.
    """
    theirs = {name: parameter for name, parameter in parameters.items() if name not in MARIAN_SINUSOIDS}
    ends = list(itertools.accumulate(parameter.numel() for parameter in theirs.values()))
    flat = torch.zeros(ends[-1], dtype=ours["embedding.weight"].dtype)
    # Number all of their weights, and see where each number goes.
    places = torch.arange(ends[-1]).tensor_split(ends[:-1])
    numbered = {name: place.view(theirs[name].shape) for name, place in zip(theirs, places, strict=True)}
    for name, place in marian_names(numbered).items():
        flat[place] = ours[name]
    values = flat.tensor_split(ends[:-1])
    return {name: value.view(theirs[name].shape) for name, value in zip(theirs, values, strict=True)}
