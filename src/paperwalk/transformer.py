r"""Attention alone, without recurrence or convolution, turns one sequence into another, and trains in parallel.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762. Official implementation:
tensorflow/tensor2tensor, `tensor2tensor/models/transformer.py` and `tensor2tensor/utils/beam_search.py`.

| axis | paper | meaning |
|---|---|---|
| b | | batch |
| s | n | positions of the source |
| t | m | positions of the target |
| d | d_model | width of the model |
| n | h | heads |
| e | d_k = d_v | width of one head |
| f | d_ff | hidden width of the MLP |
| v | | vocabulary, shared by source and target |

Differs from the paper:
- The four projections of an attention have biases, as in every library; the paper's formulas and code have none.
- Label smoothing spreads ε over all v tokens (Szegedy et al. 2016); the official code over the v − 1 wrong ones.
- Sinusoids alternate sine and cosine, as the paper's formula; the official code puts all sines first and divides
  the exponent by d / 2 − 1 instead of d / 2.
- The decoder starts from a token of its own, `bos_id`; the official code starts from a vector of zeros.
- Of the hypotheses that end, beam search counts those among the `beam` best candidates of a step, as transformers
  does; the official code those among the 2 · `beam` best.
- The positions end at `block_size`; the paper's sinusoids go on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from paperwalk import checkpoints
from paperwalk.nn import DecoderBlock, LearnedPositions, TransformerBlock, block_flops, sinusoidal_1d
from paperwalk.nn.attention import causal_mask
from paperwalk.nn.checks import check_choice, check_multiple, check_sizes, check_tokens
from paperwalk.nn.search import beam_search, greedy_search
from paperwalk.published.transformer import from_marian

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of an encoder–decoder Transformer; the defaults are the base model.

    Args:
        vocab_size: tokens v, one vocabulary for source and target (two languages can share one: their union).
        d_model, n_layers, n_heads, d_mlp: the columns of Table 3; n_layers in the encoder and as many in the decoder.
        block_size: longest sequence, in tokens.
        dropout: probability of a zero after the embedding and in each sub-layer's output, in training.
        norm: "post" as in the paper, or "pre".
        positions: "sinusoidal" (Section 3.5), "learned" (Table 3, row E) or "none".
        activation: of the MLP; "relu" in the paper.
        norm_eps: added to the variance inside each layer norm's square root.
        pad_id, bos_id, eos_id: the tokens that fill up a batch, start a target and end one.
        output_bias: a fixed vector added to the logits, which published Marian models have.

    Raises:
        ValueError: sizes that do not fit together, or an unknown choice.
    """

    vocab_size: int = 37_000
    d_model: int = 512
    n_layers: int = 6
    n_heads: int = 8
    d_mlp: int = 2048
    block_size: int = 512
    dropout: float = 0.1
    norm: Literal["post", "pre"] = "post"
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    activation: Literal["relu", "gelu", "silu"] = "relu"
    norm_eps: float = 1e-6
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    output_bias: bool = False

    def __post_init__(self):
        check_sizes(self, "vocab_size", "d_model", "n_layers", "n_heads", "d_mlp", "block_size")
        for name in ("pad_id", "bos_id", "eos_id"):
            if not isinstance(getattr(self, name), int) or not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(f"{name}={getattr(self, name)!r}, expected an int from 0 to {self.vocab_size - 1}")
        if self.eos_id in (self.pad_id, self.bos_id):
            raise ValueError(f"eos_id={self.eos_id} is also pad_id or bos_id, expected a token of its own")
        for name, limit in (("dropout", 1), ("norm_eps", math.inf)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < limit:
                raise ValueError(f"{name}={value!r}, expected a number of at least 0 and below {limit}")
        check_multiple(self, "d_model", "n_heads")
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model={self.d_model}, expected an even number: sines and cosines come in pairs")
        check_choice(self, "norm", ("post", "pre"))
        check_choice(self, "positions", ("sinusoidal", "learned", "none"))
        check_choice(self, "activation", tuple(ACTIVATIONS))

    @classmethod
    def base(cls, **changes: Any) -> "TransformerConfig":
        """The base model: 65M parameters in Table 3."""
        return cls(**changes)

    @classmethod
    def big(cls, **changes: Any) -> "TransformerConfig":
        """The big model: 213M parameters in Table 3."""
        return cls(**{"d_model": 1024, "n_heads": 16, "d_mlp": 4096, "dropout": 0.3} | changes)

    def forward_flops(self, s: int, t: int) -> int:
        """FLOPs of a source of s tokens and a target of t: matrix products only, a multiply-add counted as two.

        Attention is counted in full, as kernels are, the masked part included.
        """
        d, f = self.d_model, self.d_mlp
        encoder = block_flops(s, d, f)
        decoder = block_flops(t, d, f)
        cross = 4 * (t + s) * d**2 + 4 * s * t * d
        return self.n_layers * (encoder + decoder + cross) + 2 * t * d * self.vocab_size


def padding_mask(tokens: Int[Tensor, "b s"], pad_id: int) -> Bool[Tensor, "b 1 1 s"]:
    """True where a key is a token, False where it only fills up the batch."""
    return (tokens != pad_id)[:, None, None, :]


def label_smoothing_loss(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"], pad_id: int, epsilon: float = 0.1
) -> Float[Tensor, ""]:
    """Mean over the tokens y of (1 − ε) (−log p(y)) + ε · mean over k of (−log p(k)), in nats; padding left out.

    It is the cross-entropy with a target that has 1 − ε + ε / v at y and ε / v at each other token.

    Raises:
        ValueError: ε outside [0, 1), or every target is padding.

    Source: Vaswani et al. 2017, Section 5.4; Szegedy et al. 2016, Section 7.
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon={epsilon!r}, expected at least 0 and below 1")
    real = targets != pad_id
    if not real.any():
        raise ValueError("every target is padding, expected at least one token")
    log_p = logits.log_softmax(dim=-1)
    right = log_p.gather(-1, targets.long()[..., None]).squeeze(-1)
    return -((1 - epsilon) * right + epsilon * log_p.mean(dim=-1))[real].mean()


def learning_rate(step: int, d_model: int, warmup: int = 4000) -> float:
    """d_model^{-1/2} · min(step^{-1/2}, step · warmup^{-3/2}).

    Args:
        step: from 1.
        d_model: width d.
        warmup: steps until the peak, (d_model · warmup)^{-1/2}.

    Raises:
        ValueError: `step`, `d_model` or `warmup` below 1.

    Source: Vaswani et al. 2017, Section 5.3, Eq. 3.
    """
    if min(step, d_model, warmup) < 1:
        raise ValueError(f"step={step}, d_model={d_model}, warmup={warmup}, expected all at least 1")
    return d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)


class Transformer(nn.Module):
    """Encoder–decoder Transformer: source tokens → encoder → decoder, which also reads the target so far → logits.

    Source: Vaswani et al. 2017, Figure 1.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        d = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, d)
        self.dropout = nn.Dropout(config.dropout)
        if config.positions == "sinusoidal":
            self.register_buffer("sinusoids", sinusoidal_1d(config.block_size, d), persistent=False)
        elif config.positions == "learned":
            self.source_positions = LearnedPositions(config.block_size, d)
            self.target_positions = LearnedPositions(config.block_size, d)
        # Section 5.4 drops outputs of sub-layers only, not the MLP's hidden layer.
        options = {"norm": config.norm, "norm_eps": config.norm_eps, "dropout": config.dropout, "hidden_dropout": 0.0}
        sizes = (d, config.n_heads, config.d_mlp)
        options["activation"] = ACTIVATIONS[config.activation]
        self.encoder = nn.ModuleList(TransformerBlock(*sizes, **options) for _ in range(config.n_layers))
        self.decoder = nn.ModuleList(DecoderBlock(*sizes, **options) for _ in range(config.n_layers))
        # A post-norm block ends with a norm; a pre-norm stack needs one at its end.
        last = (lambda: nn.LayerNorm(d, eps=config.norm_eps)) if config.norm == "pre" else nn.Identity
        self.encoder_norm, self.decoder_norm = last(), last()
        self.register_buffer("output_bias", torch.zeros(config.vocab_size) if config.output_bias else None)
        self._initialise()

    def _initialise(self) -> None:
        # Multiplied by √d the embeddings have variance 1.
        nn.init.normal_(self.embedding.weight, std=self.config.d_model**-0.5)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
                # One bound a projection: Xavier of the fused (3d, d) matrix would be smaller than that of three (d, d).
                for projection in module.weight.chunk(3 if name.endswith("in_proj") else 1):
                    nn.init.xavier_uniform_(projection)

    def embed(self, tokens: Int[Tensor, "b t"], *, target: bool = False) -> Float[Tensor, "b t d"]:
        """√d · E[token] + PE[position], the same E for source and target.

        Source: Sections 3.4 and 3.5.
        """
        x = self.embedding(tokens) * math.sqrt(self.config.d_model)
        if self.config.positions == "sinusoidal":
            x = x + self.sinusoids[: tokens.shape[1]]
        elif self.config.positions == "learned":
            positions = self.target_positions if target else self.source_positions
            x = x + positions()[: tokens.shape[1]]
        return self.dropout(x)

    def encode(self, source: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """The encoder's states of the source, which the decoder attends to."""
        self._check("source", source)
        x, mask = self.embed(source), padding_mask(source, self.config.pad_id)
        for block in self.encoder:
            x = block(x, mask)
        return self.encoder_norm(x)

    def _target_mask(self, target: Int[Tensor, "b t"]) -> Bool[Tensor, "b 1 t t"]:
        mask = padding_mask(target, self.config.pad_id) & causal_mask(target.shape[1], target.shape[1], target.device)
        # The first token starts the target, whatever its id: Marian starts with the padding token.
        mask[..., 0] = True
        return mask

    def _begin(self, target: Tensor, source: Tensor) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b 1 t t"]]:
        self._check("target", target)
        if len(target) != len(source):
            raise ValueError(f"{len(source)} sources and {len(target)} targets, expected as many")
        return self.embed(target, target=True), self._target_mask(target)

    def decode(
        self, target: Int[Tensor, "b t"], states: Float[Tensor, "b s d"], source: Int[Tensor, "b s"]
    ) -> Float[Tensor, "b t v"]:
        """The logits of the token that follows each token of the target, given the encoder's states of the source.

        Source: Figure 1, right; Section 3.4 for the tied output.
        """
        x, mask = self._begin(target, source)
        for block in self.decoder:
            x = block(x, states, mask, padding_mask(source, self.config.pad_id))
        return F.linear(self.decoder_norm(x), self.embedding.weight, self.output_bias)

    def forward(self, source: Tensor, target: Tensor) -> Float[Tensor, "b t v"]:
        """The logits of the token that follows each token of the target.

        Args:
            source: token ids, (b s), filled up on the right with `pad_id`.
            target: token ids, (b t), each row starting with `bos_id`, filled up likewise.

        Raises:
            ValueError: not a batch of integers of this vocabulary, empty, or longer than `block_size`.
        """
        return self.decode(target, self.encode(source), source)

    def _check(self, name: str, tokens: Tensor) -> None:
        check_tokens(name, tokens, self.config.vocab_size, self.config.block_size)

    def _search(
        self, search: Callable[..., list[list[int]]], source: Tensor, beam: int, max_length: int | None
    ) -> list[list[int]]:
        states = self.encode(source).repeat_interleave(beam, dim=0)
        rows, config = source.repeat_interleave(beam, dim=0), self.config
        limits = (source != config.pad_id).sum(dim=1) + 50
        limits = (limits if max_length is None else torch.full_like(limits, max_length)).clamp(max=config.block_size)
        return search(
            lambda target: self.decode(target, states, rows)[:, -1].log_softmax(dim=-1),
            torch.full_like(limits, config.bos_id),
            limits,
            eos_id=config.eos_id,
            forbidden=(config.pad_id, config.bos_id),
        )

    @torch.no_grad()
    def greedy(self, source: Tensor, *, max_length: int | None = None) -> list[list[int]]:
        """The target of each source, the most probable token taken at each step. Call `eval()` first.

        Args:
            source: token ids, (b s), as in `forward`.
            max_length: most tokens of a target, the end included; source length + 50 by default (Section 6.1).

        Raises:
            ValueError: a bad source, or max_length below 1.
        """
        return self._search(greedy_search, source, 1, max_length)

    @torch.no_grad()
    def beam_search(
        self, source: Tensor, *, beam: int = 4, alpha: float = 0.6, max_length: int | None = None
    ) -> list[list[int]]:
        """The target of each source with the largest log p / lp that a beam finds. Call `eval()` first.

        Args:
            source, max_length: as in `greedy`.
            beam: beginnings kept at each step.
            alpha: exponent of the length penalty; 0 for none.

        Raises:
            ValueError: a bad source, or a bad beam, alpha or max_length.

        Source: Section 6.1; `paperwalk.nn.search`.
        """
        if beam < 1:
            raise ValueError(f"beam={beam}, expected at least 1")
        return self._search(partial(beam_search, beam=beam, alpha=alpha), source, beam, max_length)

    @torch.no_grad()
    def cross_attention_maps(self, source: Tensor, target: Tensor) -> Float[Tensor, "layers b n t s"]:
        """Where each target position looks in the source, by layer and head; for looking at, sources of one length.

        Raises:
            ValueError: as `forward`, or a source with padding.
        """
        if (source == self.config.pad_id).any():
            raise ValueError("source has padding, expected sources of one length")
        states, maps = self.encode(source), []
        x, mask = self._begin(target, source)
        for block in self.decoder:
            maps.append(block.cross_weights(x, states, mask))
            x = block(x, states, mask)
        return torch.stack(maps)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Transformer":
        """A Transformer with our weights, or with those of a published Marian model (transformers' `MarianMTModel`).

        Args:
            source: a folder, or the id of a model on the Hugging Face hub.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a damaged file, another architecture, or a tensor missing, left over or of another shape.
        """
        values, tensors = checkpoints.read(source)
        if "paperwalk" in values:
            config = checkpoints.config_from(TransformerConfig, values, "Transformer")
        else:
            with checkpoints.described(source):
                sizes, tensors = from_marian(values, tensors)
                config = TransformerConfig(**sizes)
        return checkpoints.build(cls, config, tensors)

    def save_pretrained(self, folder: str | Path, *, bits: int = 32) -> None:
        """Write the model to a folder that `from_pretrained` reads; `bits` a weight, as in `checkpoints.write`."""
        checkpoints.write(folder, self, "Transformer", self.config, bits)
