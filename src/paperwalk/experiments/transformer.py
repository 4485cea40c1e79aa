"""Spelling to pronunciation with a small Transformer: heads, √d_k and positions varied; and the long recipe.

The claims are those of Vaswani et al. 2017, Table 3, rows (A) and (E), and of Section 3.2.1, scaled down: each variant
is trained alike, three seeds. Run: `python -m paperwalk.experiments.transformer` (about 25 minutes on one thread); it
writes transformer.json beside this file.

`--recipe FOLDER` trains the shipped checkpoint instead (about 40 minutes on one thread), and with `--pairs FILE` the
same model on any other pairs of texts (.tsv or .jsonl).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperwalk.data.pairs import (
    END,
    PAD,
    START,
    LengthBatches,
    Pair,
    PairSplits,
    PairTokenizer,
    Unit,
    cmudict_pairs,
    pad_batch,
    read_pairs,
    split_pairs,
)
from paperwalk.experiments import run_missing
from paperwalk.metrics import phoneme_error_rate, word_error_rate
from paperwalk.nn import MultiHeadAttention
from paperwalk.train import fit
from paperwalk.transformer import Transformer, TransformerConfig, label_smoothing_loss, learning_rate

RESULTS = Path(__file__).with_suffix(".json")
Examples = list[tuple[list[int], list[int]]]

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

# The shipped checkpoint.
RECIPE = TransformerConfig(
    vocab_size=101, d_model=128, n_layers=4, n_heads=4, d_mlp=512, block_size=64, pad_id=PAD, bos_id=START, eos_id=END
)
PASSES = 12
WARMUP = 1_000
BATCH_TOKENS = 512


def make_examples(pairs: Sequence[Pair], tokenizer: PairTokenizer) -> Examples:
    """Token ids of source and target, an example for each right target."""
    return [
        (tokenizer.encode_source(pair.source), tokenizer.encode_target(target))
        for pair in pairs
        for target in pair.targets
    ]


def make_batches(examples: Examples, tokens: int, seed: int) -> LengthBatches:
    """Batches of examples of similar length."""
    return LengthBatches([max(len(source), len(target)) for source, target in examples], tokens, seed=seed)


def smoothed_loss(model: Transformer, examples: Examples, epsilon: float = 0.1) -> Tensor:
    """The label-smoothed loss of predicting each token of the targets from those before it."""
    source, target = (pad_batch(rows) for rows in zip(*examples, strict=True))
    return label_smoothing_loss(model(source, target[:, :-1]), target[:, 1:], PAD, epsilon)


def schedule(step: int, steps: int, d_model: int, warmup: int) -> float:
    """Eq. 3, and over the last 40 % of the steps down to zero in a line; `step` from 0.

    The paper averages its last checkpoints instead, which also takes the noise out of the last steps.
    """
    return learning_rate(step + 1, d_model, warmup) * min(1.0, (steps - step) / (0.4 * steps))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The paper's optimiser (Section 5.3)."""
    return torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True)


def pronounce(
    model: Transformer, tokenizer: PairTokenizer, words: Sequence[str], *, beam: int = 1, alpha: float = 0.6
) -> list[list[str]]:
    """The target symbols that the model finds for each source text: greedily, or with a beam."""
    model.eval()
    rows = [tokenizer.encode_source(word) for word in words]
    # Words of a length together: less padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, list[str]] = {}
    for start in range(0, len(order), 256):
        chunk = order[start : start + 256]
        source = pad_batch([rows[i] for i in chunk])
        ids = model.greedy(source) if beam == 1 else model.beam_search(source, beam=beam, alpha=alpha)
        found |= {i: [tokenizer.symbols[k] for k in row] for i, row in zip(chunk, ids, strict=True)}
    return [found[i] for i in range(len(rows))]


def error_rates(
    model: Transformer, tokenizer: PairTokenizer, pairs: Sequence[Pair], **options: Any
) -> tuple[float, float]:
    """Phoneme and word error rate on the pairs, as shares. `options` are `pronounce`'s."""
    split: Callable[[str], list[str]] = list if tokenizer.target_unit == "characters" else str.split
    hypotheses = pronounce(model, tokenizer, [pair.source for pair in pairs], **options)
    references = [[split(target) for target in pair.targets] for pair in pairs]
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
    optimiser, batches = adam(model), make_batches(examples, BATCH_TOKENS, seed)
    losses = []
    model.train()
    for step in steps:
        for group in optimiser.param_groups:
            group["lr"] = schedule(step, STEPS, model.config.d_model, SMALL_WARMUP)
        loss = smoothed_loss(model, [examples[i] for i in batches[step]])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def held_out_loss(model: Transformer, examples: Examples) -> float:
    """Mean loss of a target token, in nats, without label smoothing."""
    model.eval()
    batches = make_batches(examples, 4 * BATCH_TOKENS, seed=0)
    total = tokens = 0.0
    for step in range(len(batches)):
        batch = [examples[i] for i in batches[step]]
        n_tokens = sum(len(target) - 1 for _, target in batch)
        total, tokens = total + n_tokens * smoothed_loss(model, batch, epsilon=0.0).item(), tokens + n_tokens
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


def train_recipe(splits: PairSplits, tokenizer: PairTokenizer, folder: Path, *, passes: int = PASSES) -> Transformer:
    """The model of the shipped checkpoint, trained on `splits.train`; an interrupted run in `folder` goes on."""
    torch.manual_seed(0)
    examples = make_examples(splits.train, tokenizer)
    batches = make_batches(examples, BATCH_TOKENS, seed=0)
    longest = max(len(row) for example in examples for row in example)
    config = replace(RECIPE, vocab_size=len(tokenizer), block_size=max(RECIPE.block_size, longest))
    model, steps = Transformer(config), passes * len(batches)
    fit(
        model,
        adam(model),
        partial(schedule, steps=steps, d_model=config.d_model, warmup=WARMUP),
        lambda step: smoothed_loss(model, [examples[i] for i in batches[step]]),
        steps=steps,
        folder=folder,
    )
    return model


def recipe(folder: Path, pairs: Path | None, unit: Unit, passes: int) -> None:
    """Train, save the checkpoint with its tokenizer, and measure it on the held-out words."""
    start = time.perf_counter()
    splits = cmudict_pairs() if pairs is None else split_pairs(read_pairs(pairs))
    tokenizer = PairTokenizer.of(splits, *(("characters", "words") if pairs is None else (unit, unit)))
    model = train_recipe(splits, tokenizer, folder, passes=passes)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    numbers: dict[str, float] = {"train_seconds": round(time.perf_counter() - start)}
    for name, held_out in (("valid", splits.valid), ("test", splits.test)):
        for beam in (1, 4):
            per, wer = error_rates(model, tokenizer, held_out, beam=beam)
            numbers |= {f"{name}_per_beam_{beam}": per, f"{name}_wer_beam_{beam}": wer}
            print(f"{name}, beam {beam}: phoneme error rate {per:.2%}, word error rate {wer:.2%}", flush=True)
    (folder / "metrics.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run what transformer.json does not hold yet, or the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, metavar="FOLDER", help="train the shipped checkpoint into FOLDER")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="train on these pairs instead: .tsv or .jsonl")
    parser.add_argument("--unit", choices=("characters", "words"), default="characters", help="tokens of --pairs")
    parser.add_argument("--passes", type=int, default=PASSES, help=f"over the training pairs ({PASSES})")
    arguments = parser.parse_args()
    if arguments.recipe is not None:
        recipe(arguments.recipe, arguments.pairs, arguments.unit, arguments.passes)
    else:
        experiment()


if __name__ == "__main__":
    main()
