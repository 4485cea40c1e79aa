"""GPT-2 weights as OpenAI's conversion and transformers publish them."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from paperwalk.checkpoints import Tensors, published_sizes, rename

# Files of `GPT2LMHeadModel` have the prefix, files of `GPT2Model` (the hub's "gpt2" among them) have not.
TRANSFORMERS = {
    r"(?:transformer\.)?wte\.weight": "token_embedding.weight",
    r"(?:transformer\.)?wpe\.weight": "positions.weight",
    r"(?:transformer\.)?h\.(\d+)\.ln_([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    r"(?:transformer\.)?h\.(\d+)\.attn\.c_attn\.(\w+)": r"blocks.\1.attention.in_proj.\2",
    r"(?:transformer\.)?h\.(\d+)\.attn\.c_proj\.(\w+)": r"blocks.\1.attention.out_proj.\2",
    r"(?:transformer\.)?h\.(\d+)\.mlp\.c_fc\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"(?:transformer\.)?h\.(\d+)\.mlp\.c_proj\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"(?:transformer\.)?ln_f\.(\w+)": r"norm.\1",
}
# The causal mask and its number for "masked", which older files carry beside the weights.
BUFFERS = r"(?:transformer\.)?h\.\d+\.attn\.(?:bias|masked_bias)"
# Their matrices are those of a `Conv1D`, (in, out); a linear layer's are (out, in).
TRANSPOSED = r"(?:transformer\.)?h\.\d+\.(?:attn|mlp)\.c_\w+\.weight"
HEAD = "lm_head.weight"


def our_names(tensors: Tensors) -> Tensors:
    """The tensors under our names and in our layout; an unknown one keeps its name, and `load_exactly` names it.

    Left out are the head, which is the token embedding once more, and the buffers `attn.bias` and `attn.masked_bias`.

    Raises:
        ValueError: a head that is not the token embedding, or a buffer `attn.bias` that is no causal mask.
    """
    kept = {}
    for name, tensor in tensors.items():
        if re.fullmatch(BUFFERS, name):
            _check_buffer(name, tensor)
        elif name != HEAD:
            matrix = tensor.ndim == 2 and re.fullmatch(TRANSPOSED, name)
            kept[name] = tensor.T.contiguous() if matrix else tensor
    ours = rename(kept, TRANSFORMERS)
    embedding = ours.get("token_embedding.weight")
    if HEAD in tensors and embedding is not None and not torch.equal(tensors[HEAD], embedding):
        raise ValueError(f"{HEAD} is not the token embedding, expected a tied head")
    return ours


def _check_buffer(name: str, tensor: torch.Tensor) -> None:
    if name.endswith("masked_bias"):
        return
    mask = tensor.squeeze()
    if mask.ndim > 2 or not torch.equal(
        mask, torch.ones_like(mask).tril() if mask.ndim == 2 else torch.ones_like(mask)
    ):
        raise ValueError(f"buffer {name} {tuple(tensor.shape)} is not ones below the diagonal, expected a causal mask")


def from_transformers(values: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Sizes and tensors of transformers' `GPT2LMHeadModel` or `GPT2Model`.

    Raises:
        ValueError: the configuration is of another architecture or asks for something that GPT does not have.
    """
    expected: dict[str, tuple[Any, ...]] = {
        "model_type": ("gpt2",),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    for name, allowed in expected.items():
        if values.get(name, allowed[0]) not in allowed:
            raise ValueError(f"the checkpoint has {name}={values[name]!r}, expected {allowed[0]!r}")
    fields = {
        "vocab_size": "vocab_size",
        "block_size": "n_positions",
        "d_model": "n_embd",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "norm_eps": "layer_norm_epsilon",
    }
    sizes = published_sizes(values, fields, "gpt2")
    return sizes | {"d_mlp": values.get("n_inner") or 4 * values["n_embd"]}, our_names(tensors)
