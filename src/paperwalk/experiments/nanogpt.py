"""nanoGPT's model on the batches of `paperwalk train gpt --recipe moby-dick-cpu`: what loss does it reach?

Run: `python -m paperwalk.experiments.nanogpt FOLDER` (as long as the recipe itself); it trains in FOLDER, goes on where
it stopped, and writes nanogpt.json beside this file. The settings are those of the recipe, the same batches included;
with `--own-settings` the batch, the dropout, the warm-up and the last learning rate are those of nanoGPT's
config/train_shakespeare_char.py, for the same number of tokens.

The model is transformers' GPT-2, made like karpathy/nanoGPT's model.py: no biases, exact GELU, its initialisation.
"""

import argparse
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperwalk.experiments import run_missing
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.metrics import bootstrap_interval
from paperwalk.notebook import checkpoint
from paperwalk.train import runs
from paperwalk.train.engine import Options
from paperwalk.train.recipes.gpt import GPTRecipe, window_losses
from paperwalk.train.task import figure

RESULTS = Path(__file__).with_suffix(".json")


class NanoGPT(nn.Module):
    """nanoGPT's model."""

    def __init__(self, config: GPTConfig):
        import transformers

        super().__init__()
        rate = config.dropout
        self.model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.block_size,
                n_embd=config.d_model,
                n_layer=config.n_layers,
                n_head=config.n_heads,
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
                residual = 0.02 / math.sqrt(2 * config.n_layers)
                nn.init.normal_(parameter, std=residual if "c_proj" in name else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        return self.model(tokens, use_cache=False).logits

    def loss(self, tokens: Tensor) -> Tensor:
        """As `GPT.loss`."""
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    def save_pretrained(self, folder: Path, **_) -> None:
        """As transformers does."""
        self.model.save_pretrained(folder)


@dataclass(frozen=True)
class NanoGPTRecipe(GPTRecipe):
    """The recipe of the shipped checkpoint with nanoGPT's model in it."""

    def build(self) -> nn.Module:
        """nanoGPT's model."""
        return NanoGPT(self.model)


def recipe(own_settings: bool) -> NanoGPTRecipe:
    """The recipe: ours, or with nanoGPT's own settings and as many tokens."""
    ours = GPTRecipe.named()["moby-dick-cpu"]
    same = NanoGPTRecipe(**{field.name: getattr(ours, field.name) for field in fields(ours)})
    if not own_settings:
        return same
    steps = ours.steps * ours.batch_size // 64
    model = replace(ours.model, dropout=0.2)
    return replace(same, steps=steps, batch_size=64, warmup=100 / steps, final_lr=0.1, model=model)


def run(folder: Path, own_settings: bool) -> dict[str, object]:
    """Train what is left; the loss on the held-out text, and by how much that of the shipped model is above it."""
    chosen = recipe(own_settings)
    started = (folder / "run.json").exists()
    trained = runs.train_only(chosen, Options(output=folder, resume=started))
    return chosen.evaluate(trained.model)["loss"] | {
        "ours above": above(trained.model, GPT.from_pretrained(checkpoint("gpt-moby-dick"))),
        "seconds": round(trained.seconds),
        "tokens": chosen.steps * chosen.batch_size * chosen.model.block_size,
    }


@torch.no_grad()
def above(theirs: nn.Module, ours: nn.Module) -> dict[str, object]:
    """By how much the loss of ours is above theirs on the held-out text, window by window."""
    chosen = recipe(own_settings=False)
    _, _, held_out = chosen.tokens()
    (a, counts), (b, _) = (window_losses(m, held_out, chosen.model.block_size + 1) for m in (ours, theirs))
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    return figure(sum(gaps) / sum(counts), bootstrap_interval(gaps, counts), len(gaps))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser("python -m paperwalk.experiments.nanogpt", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("--own-settings", action="store_true", help="batch, dropout and warm-up as in nanoGPT")
    options = parser.parse_args()
    name = "own settings" if options.own_settings else "same settings"
    run_missing(RESULTS, {name: lambda: run(options.folder, options.own_settings)})


if __name__ == "__main__":
    main()
