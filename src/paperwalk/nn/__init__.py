"""Leaves that several papers share: attention, MLP, transformer block, patches and positions."""

from paperwalk.nn.attention import MultiHeadAttention, attention, attention_weights
from paperwalk.nn.block import TransformerBlock
from paperwalk.nn.mlp import MLP
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
    "LearnedPositions",
    "LearnedPositions2d",
    "MultiHeadAttention",
    "PatchEmbedding",
    "TransformerBlock",
    "attention",
    "attention_weights",
    "patchify",
    "resize_positions",
    "sinusoidal_1d",
    "sinusoidal_2d",
    "unpatchify",
]
