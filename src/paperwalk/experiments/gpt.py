"""Does a larger GPT predict better after the same number of characters? Perplexity on Moby Dick by model size.

The claim is that of Radford et al. 2019, Section 4 and Figure 4, scaled down: three sizes, the same number of steps and
of characters, three seeds. Run: `python -m paperwalk.experiments.gpt` (about 3 minutes on one thread); it writes
gpt.json beside this file.

`--recipe FOLDER` trains the shipped checkpoint instead: six layers, 384 wide, six heads, characters (at most an hour on
two cores; run again, it goes on where it stopped). `--stand-in` trains nanoGPT's model on the same batches, to compare
with; `--text FILE` takes another text, `--bpe SIZE` byte pairs instead of characters.
"""

import argparse
import math
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from paperwalk.data import consecutive_windows, load, random_windows
from paperwalk.experiments import run_missing
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.tokenizers import BytePairTokenizer, CharTokenizer
from paperwalk.train import fit

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
STEPS = 850
BATCH = 16
BLOCK = 64
WARMUP = 0.1
# Of each size: layers, width, heads, and the best of the peak learning rates tried, by the loss of another seed.
SIZES = {"small": (2, 16, 2, 1.2e-2), "medium": (2, 48, 3, 1.2e-2), "large": (2, 128, 4, 6e-3)}

RECIPE = {"block_size": 256, "d_model": 384, "n_layers": 6, "n_heads": 6, "d_mlp": 1536, "dropout": 0.1}
RECIPE_STEPS = 1_800
RECIPE_BATCH = 16
RECIPE_LR = 1e-3

Tokens = Int64[Tensor, "_"]


def split(tokens: list[int]) -> tuple[Tokens, Tokens]:
    """The first 90 % to train on, the rest to test, as nanoGPT splits a text."""
    ids = torch.tensor(tokens)
    n = int(0.9 * len(ids))
    return ids[:n], ids[n:]


def moby_dick() -> tuple[CharTokenizer, Tokens, Tokens]:
    """The tokenizer of Moby Dick's characters, the characters to train on, and those held out."""
    text = load("moby-dick").text
    tokenizer = CharTokenizer(text)
    return tokenizer, *split(tokenizer.encode(text))


def config(size: str, vocab_size: int) -> GPTConfig:
    """The configuration of a size of the experiment."""
    layers, width, heads, _ = SIZES[size]
    return GPTConfig(vocab_size, BLOCK, d_model=width, n_layers=layers, n_heads=heads, d_mlp=4 * width)


def batch(tokens: Tokens, step: int, seed: int = 0, *, length: int = BLOCK + 1, size: int = BATCH) -> Tensor:
    """The windows of a step: drawn from the seed and the step's number alone."""
    return random_windows(tokens, length, size, torch.Generator().manual_seed(seed * 10**9 + step))


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
    model.train()
    losses = []
    for step in steps:
        for group in optimiser.param_groups:
            group["lr"] = lr_at(step, peak)
        loss = model.loss(batch(tokens, step, seed))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def mean_loss(model: nn.Module, tokens: Tokens, length: int = BLOCK + 1) -> float:
    """Nats a token over all of the text, window after window; `model` maps tokens to logits."""
    model.eval()
    total, n = 0.0, 0
    for windows in consecutive_windows(tokens, length, 32):
        logits: Float[Tensor, "b t v"] = model(windows[:, :-1])
        total += F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum").item()
        n += windows[:, 1:].numel()
    return total / n


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


class StandIn(nn.Module):
    """nanoGPT's model by another hand: transformers' GPT-2 without biases, with exact GELU, initialised as there."""

    def __init__(self, vocab_size: int):
        import transformers

        super().__init__()
        rate = RECIPE["dropout"]
        self.model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=vocab_size,
                n_positions=RECIPE["block_size"],
                n_embd=RECIPE["d_model"],
                n_layer=RECIPE["n_layers"],
                n_head=RECIPE["n_heads"],
                activation_function="gelu",
                resid_pdrop=rate,
                embd_pdrop=rate,
                attn_pdrop=rate,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        for name, parameter in self.model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter).requires_grad_(False)
            elif "ln_" not in name:
                residual = 0.02 / math.sqrt(2 * RECIPE["n_layers"])
                nn.init.normal_(parameter, std=residual if "c_proj" in name else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        return self.model(tokens, use_cache=False).logits

    def loss(self, tokens: Tensor) -> Tensor:
        """As `GPT.loss`."""
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """As `GPT.parameter_groups`, which nanoGPT's optimiser does too."""
        learned = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in learned if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
        ]


def recipe(folder: Path, *, text: str | None, bpe: int | None, stand_in: bool, steps: int = RECIPE_STEPS) -> float:
    """Train the model of the shipped checkpoint into `folder`; returns its loss on the held-out text, nats a token."""
    text = load("moby-dick").text if text is None else text
    tokenizer = CharTokenizer(text) if bpe is None else BytePairTokenizer.train(text, bpe)
    trained_on, held_out = split(tokenizer.encode(text))
    torch.manual_seed(0)
    model = StandIn(tokenizer.vocab_size) if stand_in else GPT(GPTConfig(tokenizer.vocab_size, **RECIPE))
    length = RECIPE["block_size"] + 1
    fit(
        model,
        adamw(model.parameter_groups(0.1)),
        lambda step: lr_at(step, RECIPE_LR, steps),
        lambda step: model.loss(batch(trained_on, step, length=length, size=RECIPE_BATCH)),
        steps=steps,
        folder=folder,
    )
    loss = mean_loss(model, held_out, length)
    tokenizer.save(folder)
    if not stand_in:
        model.save_pretrained(folder)
    return loss


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m paperwalk.experiments.gpt", description=__doc__)
    parser.add_argument("--recipe", type=Path, metavar="FOLDER", help="train the shipped checkpoint into this folder")
    parser.add_argument("--stand-in", action="store_true", help="train nanoGPT's model instead, on the same batches")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a text in UTF-8, instead of Moby Dick")
    parser.add_argument("--bpe", type=int, metavar="SIZE", help="byte pairs in a vocabulary of this size")
    parser.add_argument("--steps", type=int, default=RECIPE_STEPS)
    options = parser.parse_args()
    if options.recipe is None:
        experiment()
        return
    text = options.text.read_text(encoding="utf-8") if options.text else None
    loss = recipe(options.recipe, text=text, bpe=options.bpe, stand_in=options.stand_in, steps=options.steps)
    print(f"loss on the held-out text: {loss:.4f} nats a token")


if __name__ == "__main__":
    sys.exit(main())
