r"""A transformer that sees only what came before learns to write, and much else, by predicting the next token.

Radford, Narasimhan, Salimans and Sutskever, "Improving Language Understanding by Generative Pre-Training", 2018 (GPT);
Radford, Wu, Child, Luan, Amodei and Sutskever, "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2, the
model here). Official implementation: openai/gpt-2, `src/model.py`.

| axis | paper | meaning |
|---|---|---|
| b | | batch |
| t | k | positions of the context |
| s | | positions seen so far: those in the cache, then the t new ones |
| d | | width of the model |
| n | | heads |
| f | | hidden width of the MLP |
| v | | vocabulary |

Differs from the paper:
- Positions start with standard deviation 0.02 as in PyTorch's ecosystem; the official code has 0.01.
- Dropout is 0 by default; GPT takes 0.1 after the embedding, on attention weights and on each sub-layer's output.
- Padding: `real` says which tokens count. The official code has none, and its batches have one length.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paperwalk import checkpoints
from paperwalk.nn import KeyValueCache, LearnedPositions, TransformerBlock, block_flops, causal_mask
from paperwalk.nn.checks import check_multiple, check_sizes, check_tokens
from paperwalk.published.gpt import from_transformers, our_names

INIT_STD = 0.02


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT; the defaults are the smallest GPT-2.

    Args:
        vocab_size: tokens v.
        block_size: most positions t that the model can see.
        d_model, n_layers, n_heads, d_mlp: width d, blocks, heads n and hidden width f of the MLP.
        dropout: probability of a zero after the embedding, in attention weights and in each sub-layer's output, in
            training.
        norm_eps: added to the variance inside each layer norm's square root.

    Raises:
        ValueError: a size below 1, or `d_model` not a multiple of `n_heads`.
    """

    vocab_size: int = 50_257
    block_size: int = 1024
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_mlp: int = 3072
    dropout: float = 0.0
    norm_eps: float = 1e-5

    def __post_init__(self):
        check_sizes(self, "vocab_size", "block_size", "d_model", "n_layers", "n_heads", "d_mlp")
        for name in ("dropout", "norm_eps"):
            if not isinstance(getattr(self, name), int | float) or not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected a number in 0..1")
        check_multiple(self, "d_model", "n_heads")

    @classmethod
    def gpt2(cls, **changes: Any) -> "GPTConfig":
        """The smallest GPT-2: 124,439,808 parameters (Table 2 says 117M)."""
        return cls(**changes)

    @classmethod
    def gpt2_medium(cls, **changes: Any) -> "GPTConfig":
        """354,823,168 parameters (Table 2 says 345M)."""
        return cls(**{"d_model": 1024, "n_layers": 24, "n_heads": 16, "d_mlp": 4096} | changes)

    @classmethod
    def gpt2_large(cls, **changes: Any) -> "GPTConfig":
        """774,030,080 parameters (Table 2 says 762M)."""
        return cls(**{"d_model": 1280, "n_layers": 36, "n_heads": 20, "d_mlp": 5120} | changes)

    @classmethod
    def gpt2_xl(cls, **changes: Any) -> "GPTConfig":
        """1,557,611,200 parameters (Table 2 says 1542M)."""
        return cls(**{"d_model": 1600, "n_layers": 48, "n_heads": 25, "d_mlp": 6400} | changes)

    def forward_flops(self, t: int) -> int:
        """FLOPs of one sequence of t tokens: matrix products only, a multiply-add counted as two.

        Attention is counted in full, as kernels are: the half above the diagonal is thrown away, not saved.
        """
        block = block_flops(t, self.d_model, self.d_mlp)
        return self.n_layers * block + 2 * t * self.d_model * self.vocab_size


class GPT(nn.Module):
    """A decoder-only transformer: tokens and positions → causal pre-norm blocks → layer norm → tied head.

    Source: Radford et al. 2018, Eq. 2, with the changes of Radford et al. 2019, Section 2.3.
    Cost: `config.forward_flops(t)` a sequence.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = LearnedPositions(config.block_size, config.d_model, std=INIT_STD)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                config.d_model,
                config.n_heads,
                config.d_mlp,
                norm="pre",
                norm_eps=config.norm_eps,
                activation=partial(F.gelu, approximate="tanh"),
                dropout=config.dropout,
                hidden_dropout=0.0,
                attention_dropout=config.dropout,
            )
            for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        # GPT: N(0, 0.02) for all matrices. GPT-2: 1/√N for those that write to the residual stream; N = 2 · n_layers.
        residual_std = INIT_STD / (2 * self.config.n_layers) ** 0.5
        nn.init.normal_(self.token_embedding.weight, std=INIT_STD)
        for block in self.blocks:
            for layer in (block.attention.in_proj, block.mlp.fc1, block.attention.out_proj, block.mlp.fc2):
                to_residual = layer in (block.attention.out_proj, block.mlp.fc2)
                nn.init.normal_(layer.weight, std=residual_std if to_residual else INIT_STD)
                nn.init.zeros_(layer.bias)

    def encode(
        self,
        tokens: Int[Tensor, "b t"],
        real: Bool[Tensor, "b s"] | None = None,
        cache: list[KeyValueCache] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """h_n: all tokens after the last block and the last norm. The arguments are `forward`'s, and are not checked.

        Source: Radford et al. 2018, Eq. 2 (first two lines).
        """
        t = tokens.shape[1]
        seen = cache[0].length if cache else 0
        if real is None:
            positions, mask = torch.arange(seen, seen + t, device=tokens.device), None
        else:
            # A token's position is the number of real tokens before it, whatever padding stands there.
            positions = (real.cumsum(dim=1) - 1).clamp(min=0)[:, seen:]
            mask = (causal_mask(t, seen + t, tokens.device) & real[:, None])[:, None]
        x = self.dropout(self.token_embedding(tokens) + self.positions.weight[positions])
        for i, block in enumerate(self.blocks):
            x = block(x, mask, causal=mask is None, cache=cache[i] if cache else None)
        return self.norm(x)

    def logits(self, h: Float[Tensor, "... d"]) -> Float[Tensor, "... v"]:
        """h W_eᵀ: the head is the token embedding, transposed, without bias (Eq. 2, last line, before the softmax)."""
        return F.linear(h, self.token_embedding.weight)

    def forward(
        self, tokens: Tensor, real: Bool[Tensor, "b s"] | None = None, cache: list[KeyValueCache] | None = None
    ) -> Float[Tensor, "b t v"]:
        """The logits of the token after each: row i has seen tokens 0 to i, and nothing later.

        Args:
            tokens: (b t) integers, 0 to v − 1.
            real: (b s), False where a token is padding, which nobody attends to and which takes no position; None if
                all are real. The logits at padding are meaningless.
            cache: from `new_cache`; tokens then continue those that went through it before.

        Raises:
            ValueError: not a batch of integers of the vocabulary, more positions than `block_size`, or `real` of
                another shape.
        """
        self._check(tokens, real, cache[0].length if cache else 0)
        return self.logits(self.encode(tokens, real, cache))

    def loss(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, ""]:
        """−1/(t − 1) Σ_{i = 2 … t} log P(u_i | u_1 … u_{i−1}) in nats: all tokens of a window but the first.

        Source: Radford et al. 2018, Eq. 1, with the sign and the mean that make it a loss.
        """
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def new_cache(self) -> list[KeyValueCache]:
        """An empty key–value cache, one a block, for `block_size` positions."""
        return [KeyValueCache(self.config.block_size) for _ in self.blocks]

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """For an optimiser: matrices decay, biases and norms do not, since those shift and scale features."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]

    @torch.no_grad()
    def attention_maps(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "layers b n t t"]:
        """The attention weights of every layer and head, query by key, for looking at.

        Cost: layers · b · n · t² numbers of memory.
        """
        self._check(tokens, None, 0)
        mask = causal_mask(tokens.shape[1], tokens.shape[1], tokens.device)
        x = self.token_embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        maps = []
        for block in self.blocks:
            maps.append(block.attention.weights(block.norm1(x), mask=mask))
            x = block(x, causal=True)
        return torch.stack(maps)

    def _check(self, tokens: Tensor, real: Tensor | None, seen: int) -> None:
        check_tokens("tokens", tokens, self.config.vocab_size, self.config.block_size - seen)
        expected = (len(tokens), seen + tokens.shape[1])
        if real is not None and tuple(real.shape) != expected:
            raise ValueError(f"real has shape {tuple(real.shape)}, expected {expected}: all positions seen so far")

    @classmethod
    def from_pretrained(cls, source: str | Path, *, config: GPTConfig | None = None) -> "GPT":
        """A GPT with published weights: ours, or GPT-2's (`GPT2LMHeadModel`, `GPT2Model`).

        Args:
            source: a folder, a weights file, or the id of a model on the Hugging Face hub ("openai-community/gpt2").
            config: sizes, for a weights file without config.json.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a damaged file, another architecture, or a tensor missing, left over or of another shape.

        Differs: a published configuration's dropout is not taken over; give it to the config to fine-tune with it.
        """
        values, tensors = checkpoints.read(source)
        if "paperwalk" in values:
            config = checkpoints.config_from(GPTConfig, values, "GPT")
        elif values:
            with checkpoints.described(source):
                sizes, tensors = from_transformers(values, tensors)
                config = GPTConfig(**sizes)
        elif config is not None:
            tensors = our_names(tensors)
        else:
            raise ValueError(f"{source} states no sizes, expected a folder with config.json, or config=GPTConfig(…)")
        return checkpoints.build(cls, config, tensors)

    def save_pretrained(self, folder: str | Path, *, bits: int = 32) -> None:
        """Write the model to a folder that `from_pretrained` reads; `bits` a weight, as in `checkpoints.write`."""
        checkpoints.write(folder, self, "GPT", self.config, bits)
