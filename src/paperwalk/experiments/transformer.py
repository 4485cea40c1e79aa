"""Spelling to pronunciation with a small Transformer: heads, √d_k and positions varied.

The claims are those of Vaswani et al. 2017, Table 3, rows (A) and (E), and of Section 3.2.1, scaled down: each variant
is trained alike, three seeds. Run: `python -m paperwalk.experiments.transformer` (about 25 minutes on one thread); it
writes transformer.json beside this file.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperwalk.data.pairs import END, PAD, START, Pair, PairSplits, PairTokenizer, cmudict_pairs
from paperwalk.experiments import run_missing, train_steps
from paperwalk.metrics import phoneme_error_rate, word_error_rate
from paperwalk.nn import MultiHeadAttention
from paperwalk.train.recipes.transformer import (
    Examples,
    adam,
    answers,
    make_batches,
    make_examples,
    padded,
    pronounce,
    schedule,
    smoothed_loss,
)
from paperwalk.transformer import Transformer, TransformerConfig

RESULTS = Path(__file__).with_suffix(".json")

# The chapter and the experiment.
SMALL = TransformerConfig(
    vocab_size=101, d_model=64, n_layers=2, n_heads=4, d_mlp=256, block_size=64, pad_id=PAD, bos_id=START, eos_id=END
)
STEPS = 1_200
SMALL_WARMUP = 300
SEEDS = (0, 1, 2)
# Table 3, row (A): the cost stays the same, since a head is d / n wide. Row (E): learned positions.
VARIANTS: dict[str, dict[str, Any]] = {
    "1 head": {"n_heads": 1},
    "2 heads": {"n_heads": 2},
    "4 heads": {},
    "8 heads": {"n_heads": 8},
    "16 heads": {"n_heads": 16},
    "learned positions": {"positions": "learned"},
    "no positions": {"positions": "none"},
    "4 heads, unscaled": {},
    "1 head, unscaled": {"n_heads": 1},
}
BATCH_TOKENS = 512


def error_rates(
    model: Transformer, tokenizer: PairTokenizer, pairs: Sequence[Pair], **options: Any
) -> tuple[float, float]:
    """Phoneme and word error rate on the pairs, as shares. `options` are `pronounce`'s."""
    hypotheses, references = (
        pronounce(model, tokenizer, [pair.source for pair in pairs], **options),
        answers(pairs, tokenizer),
    )
    return phoneme_error_rate(hypotheses, references), word_error_rate(hypotheses, references)


def unscaled(model: Transformer) -> Transformer:
    """The model with every 1/√d_k of Eq. 1 taken out again: its queries are √d_k times as long."""

    def longer(project: Callable[..., tuple[Tensor, Tensor, Tensor]], *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = project(*args)
        return q * q.shape[-1] ** 0.5, k, v

    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.project = partial(longer, module.project)
    return model


def make_variant(name: str) -> Transformer:
    """An untrained model of `VARIANTS`."""
    model = Transformer(replace(SMALL, **VARIANTS[name]))
    return unscaled(model) if name.endswith("unscaled") else model


def train_small(
    model: Transformer, examples: Examples, steps: Iterable[int] = range(STEPS), seed: int = 0
) -> list[float]:
    """A short training, 0.6 passes over the examples; returns the loss of each step."""
    batches = make_batches(examples, BATCH_TOKENS, seed)
    rate = partial(schedule, steps=STEPS, d_model=model.config.d_model, warmup=SMALL_WARMUP)
    return train_steps(
        model,
        adam(model),
        rate,
        lambda step: smoothed_loss(model, *padded([examples[i] for i in batches[step]])),
        steps,
    )


@torch.no_grad()
def held_out_loss(model: Transformer, examples: Examples) -> float:
    """Mean loss of a target token, in nats, without label smoothing."""
    model.eval()
    batches = make_batches(examples, 4 * BATCH_TOKENS, seed=0)
    total = tokens = 0.0
    for step in range(len(batches)):
        batch = [examples[i] for i in batches[step]]
        n_tokens = sum(len(target) - 1 for _, target in batch)
        total, tokens = total + n_tokens * smoothed_loss(model, *padded(batch), epsilon=0.0).item(), tokens + n_tokens
    return total / tokens


def run_one(name: str, seed: int, splits: PairSplits, tokenizer: PairTokenizer) -> dict[str, float]:
    """Phoneme error rate and loss on held-out words of one variant, trained from one seed."""
    torch.manual_seed(seed)
    model = make_variant(name)
    train_small(model, make_examples(splits.train, tokenizer), seed=seed)
    held_out = splits.valid[::6]
    per, wer = error_rates(model, tokenizer, held_out)
    return {"per": per, "wer": wer, "loss": held_out_loss(model, make_examples(held_out, tokenizer))}


def experiment() -> None:
    """Run what transformer.json does not hold yet."""
    splits = cmudict_pairs()
    tokenizer = PairTokenizer.of(splits, "characters", "words")
    runs = {f"{name} {seed}": partial(run_one, name, seed, splits, tokenizer) for seed in SEEDS for name in VARIANTS}
    run_missing(RESULTS, runs)


if __name__ == "__main__":
    experiment()
