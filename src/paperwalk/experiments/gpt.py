"""Does a larger GPT predict better after the same number of characters? Perplexity on Moby Dick by model size.

The claim is that of Radford et al. 2019, Section 4 and Figure 4, scaled down: three sizes, the same number of steps and
of characters, three seeds. Run: `python -m paperwalk.experiments.gpt` (about 3 minutes on one thread); it writes
gpt.json beside this file.
"""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from paperwalk.data import random_windows
from paperwalk.experiments import run_missing, train_steps
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.tokenizers import CharTokenizer
from paperwalk.train.recipes.gpt import GPTRecipe, window_losses
from paperwalk.train.task import generator

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
STEPS = 850
BATCH = 16
BLOCK = 64
WARMUP = 0.1
# Of each size: layers, width, heads, and the best of the peak learning rates tried, by the loss of another seed.
SIZES = {"small": (2, 16, 2, 1.2e-2), "medium": (2, 48, 3, 1.2e-2), "large": (2, 128, 4, 6e-3)}

Tokens = Int64[Tensor, "_"]


def moby_dick() -> tuple[CharTokenizer, Tokens, Tokens]:
    """The tokenizer of Moby Dick's characters, the characters to train on, and those held out."""
    return GPTRecipe().tokens()


def config(size: str, vocab_size: int) -> GPTConfig:
    """The configuration of a size of the experiment."""
    layers, width, heads, _ = SIZES[size]
    return GPTConfig(vocab_size, BLOCK, d_model=width, n_layers=layers, n_heads=heads, d_mlp=4 * width)


def batch(tokens: Tokens, step: int, seed: int = 0) -> Tensor:
    """The windows of a step: drawn from the seed and the step's number alone."""
    return random_windows(tokens, BLOCK + 1, BATCH, generator(seed, step))


def lr_at(step: int, peak: float, steps: int = STEPS) -> float:
    """Up to `peak` in a line over the first tenth of the steps, then a cosine down to a tenth of it."""
    warmup = WARMUP * steps
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / (steps - warmup)))


def adamw(groups: Any) -> torch.optim.Optimizer:
    """AdamW with a shorter memory than usual, for short runs; `groups` are `GPT.parameter_groups(0.1)`."""
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)


def train(model: GPT, tokens: Tokens, peak: float, seed: int = 0, steps: Iterable[int] = range(STEPS)) -> list[float]:
    """Train for the steps given; returns the loss of each, in nats a character."""
    optimiser = adamw(model.parameter_groups(0.1))
    return train_steps(
        model, optimiser, lambda step: lr_at(step, peak), lambda step: model.loss(batch(tokens, step, seed)), steps
    )


def mean_loss(model: nn.Module, tokens: Tokens, length: int = BLOCK + 1) -> float:
    """Nats a token over all of the text, window after window; `model` maps tokens to logits."""
    sums, counts = window_losses(model, tokens, length)
    return sum(sums) / sum(counts)


def run_one(size: str, seed: int, trained_on: Tokens, held_out: Tokens) -> dict[str, float]:
    """Train one model; its loss on as much of the training text as is held out, and on the held-out text."""
    torch.manual_seed(seed)
    model = GPT(config(size, vocab_size=int(max(trained_on.max(), held_out.max())) + 1))
    train(model, trained_on, SIZES[size][3], seed)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train": mean_loss(model, trained_on[: len(held_out)]),
        "held out": mean_loss(model, held_out),
    }


def experiment() -> None:
    """Run what gpt.json does not hold yet."""
    _, trained_on, held_out = moby_dick()
    runs = {f"{size} {seed}": partial(run_one, size, seed, trained_on, held_out) for size in SIZES for seed in SEEDS}
    run_missing(RESULTS, runs)


if __name__ == "__main__":
    experiment()
