"""Leaves that several papers share: attention, MLP, transformer block, patches and positions."""

from paperwalk.nn.attention import KeyValueCache, MultiHeadAttention, attention, attention_weights, causal_mask
from paperwalk.nn.block import DecoderBlock, TransformerBlock, block_flops
from paperwalk.nn.mlp import MLP, quick_gelu
from paperwalk.nn.patches import PatchEmbedding, patchify, unpatchify
from paperwalk.nn.positions import (
    LearnedPositions,
    LearnedPositions2d,
    resize_positions,
    sinusoidal_1d,
    sinusoidal_2d,
)

__all__ = [
    "MLP",
    "DecoderBlock",
    "KeyValueCache",
    "LearnedPositions",
    "LearnedPositions2d",
    "MultiHeadAttention",
    "PatchEmbedding",
    "TransformerBlock",
    "attention",
    "attention_weights",
    "block_flops",
    "causal_mask",
    "patchify",
    "quick_gelu",
    "resize_positions",
    "sinusoidal_1d",
    "sinusoidal_2d",
    "unpatchify",
]
