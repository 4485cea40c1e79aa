"""GPT against nanoGPT's model and transformers."""

from functools import partial

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from bench.training import Paper, Reference, Size, measure_training
from paperwalk.experiments.nanogpt import NanoGPT
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.published.gpt import our_names

SIZES = {
    "small": Size(GPTConfig(65, 128, d_model=192, n_layers=4, n_heads=3, d_mlp=768), 8),
    "middle": Size(GPTConfig(65, 256, d_model=384, n_layers=6, n_heads=6, d_mlp=1536), 8),
    "large": Size(GPTConfig(65, 256, d_model=768, n_layers=6, n_heads=12, d_mlp=3072), 2),
}


def inputs(size: Size) -> tuple[Tensor]:
    """Windows one token longer than the model's."""
    shape = (size.batch, size.config.block_size + 1)
    return (torch.randint(size.config.vocab_size, shape, generator=torch.Generator().manual_seed(0)),)


def transformers_gpt(config: GPTConfig) -> nn.Module:
    """transformers', without dropout."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_inner=config.d_mlp,
            layer_norm_epsilon=config.norm_eps,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Of transformers' model, as `GPT.loss`."""
    logits = model(tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def like_nanogpt(model: GPT) -> None:
    """Exact GELU, and biases that do not learn: its own are zero and stay so."""
    for block in model.blocks:
        block.mlp.activation = F.gelu
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("bias"))


PAPER = Paper(
    name="gpt",
    unit="tokens",
    items=lambda size: size.batch * size.config.block_size,
    sizes=SIZES,
    model=GPT,
    loss=GPT.loss,
    inputs=inputs,
    flops=lambda config: config.forward_flops(config.block_size),
    references={
        "nanoGPT": Reference(lambda config: NanoGPT(config).model, loss, our_names, like_nanogpt),
        "transformers": Reference(transformers_gpt, loss, our_names),
    },
)
measure = partial(measure_training, PAPER)

if __name__ == "__main__":
    from bench.run import main

    main(PAPER.name)
