"""The encoder–decoder against transformers' Marian and torch.nn.Transformer."""

from functools import partial

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from bench.training import Paper, Reference, Size, measure_training
from paperwalk.checkpoints import Tensors
from paperwalk.nn import causal_mask, sinusoidal_1d
from paperwalk.published.transformer import from_torch, marian_names
from paperwalk.transformer import Transformer, TransformerConfig, label_smoothing_loss

SMOOTHING = 0.1
# Tokens of a source and of a target; Marian's ε is fixed.
COMMON = {"block_size": 64, "dropout": 0.0, "norm_eps": 1e-5}
SIZES = {
    "small": Size(TransformerConfig(1_000, 128, n_layers=2, n_heads=4, d_mlp=512, **COMMON), 16),
    "middle": Size(TransformerConfig(2_000, 256, n_layers=3, n_heads=4, d_mlp=1024, **COMMON), 16),
    "large": Size(TransformerConfig(8_000, 512, n_layers=4, n_heads=8, d_mlp=2048, **COMMON), 8),
}


def inputs(size: Size) -> tuple[Tensor, Tensor]:
    """Sources of `block_size` tokens, and targets of one more; no padding."""
    config = size.config
    draws = torch.Generator().manual_seed(0)
    lengths = (config.block_size, config.block_size + 1)
    return tuple(torch.randint(3, config.vocab_size, (size.batch, length), generator=draws) for length in lengths)


def loss(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """Section 5.4, by our loss."""
    return label_smoothing_loss(model(source, target[:, :-1]), target[:, 1:], model.config.pad_id, SMOOTHING)


def torch_loss(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """The same, by torch's."""
    logits = model(source, target[:, :-1]).flatten(0, 1)
    return F.cross_entropy(logits, target[:, 1:].flatten(), ignore_index=0, label_smoothing=SMOOTHING)


class TorchTransformer(nn.Module):
    """torch.nn.Transformer between embedding and output, masks as its documentation says."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.register_buffer("sinusoids", sinusoidal_1d(config.block_size, config.d_model), persistent=False)
        sizes = (config.d_model, config.n_heads, config.n_layers, config.n_layers, config.d_mlp)
        self.stacks = nn.Transformer(*sizes, dropout=0.0, batch_first=True, layer_norm_eps=config.norm_eps)
        # Theirs end with a norm more than the paper's.
        self.stacks.encoder.norm = self.stacks.decoder.norm = None

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedding and position, (b t d)."""
        return self.embedding(tokens) * self.config.d_model**0.5 + self.sinusoids[: tokens.shape[1]]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The logits, (b t v)."""
        padding = {"src_key_padding_mask": source == 0, "memory_key_padding_mask": source == 0}
        out = self.stacks(
            self.embed(source),
            self.embed(target),
            tgt_mask=~causal_mask(target.shape[1], target.shape[1]),
            tgt_key_padding_mask=target == 0,
            **padding,
        )
        return out @ self.embedding.weight.T


def torch_names(tensors: Tensors) -> Tensors:
    """Our names for its tensors."""
    return from_torch({name.removeprefix("stacks."): tensor for name, tensor in tensors.items()})


class Marian(nn.Module):
    """transformers' MarianMTModel, called as ours is."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        kinds = {"layers": config.n_layers, "attention_heads": config.n_heads, "ffn_dim": config.d_mlp}
        self.inner = transformers.MarianMTModel(
            transformers.MarianConfig(
                **{f"{part}_{kind}": value for part in ("encoder", "decoder") for kind, value in kinds.items()},
                vocab_size=config.vocab_size,
                d_model=config.d_model,
                activation_function=config.activation,
                scale_embedding=True,
                static_position_embeddings=True,
                max_position_embeddings=config.block_size,
                dropout=0.0,
                pad_token_id=config.pad_id,
                decoder_start_token_id=config.bos_id,
                eos_token_id=config.eos_id,
                forced_eos_token_id=None,
            )
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The logits, (b t v)."""
        return self.inner(
            input_ids=source,
            attention_mask=(source != 0).long(),
            decoder_input_ids=target,
            decoder_attention_mask=(target != 0).long(),
            use_cache=False,
        ).logits


def inner_names(tensors: Tensors) -> Tensors:
    """Our names for its tensors."""
    return marian_names({name.removeprefix("inner."): tensor for name, tensor in tensors.items()})


PAPER = Paper(
    name="transformer",
    unit="tokens",
    items=lambda size: 2 * size.batch * size.config.block_size,
    sizes=SIZES,
    model=Transformer,
    loss=loss,
    inputs=inputs,
    flops=lambda config: config.forward_flops(config.block_size, config.block_size),
    references={
        "Marian": Reference(Marian, torch_loss, inner_names),
        "torch.nn": Reference(TorchTransformer, torch_loss, torch_names),
    },
)
measure = partial(measure_training, PAPER)

if __name__ == "__main__":
    from bench.run import main

    main(PAPER.name)
