"""The encoder–decoder Transformer on pairs of texts: spelling and pronunciation, or a file of one's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from paperwalk.data.pairs import (
    CMUDICT_SHA256,
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
from paperwalk.metrics import bootstrap_interval, phoneme_errors, word_error_rate
from paperwalk.train.task import Batch, Metrics, Recipe, Task, cut, figure, file_sha256, spaced
from paperwalk.transformer import Transformer, TransformerConfig, label_smoothing_loss, learning_rate

Examples = list[tuple[list[int], list[int]]]


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


def padded(examples: Examples) -> tuple[Tensor, Tensor]:
    """Sources and targets of a batch, each filled up to its longest."""
    source, target = (pad_batch(rows) for rows in zip(*examples, strict=True))
    return source, target


def smoothed_loss(
    model: Callable[[Tensor, Tensor], Tensor], source: Tensor, target: Tensor, epsilon: float = 0.1
) -> Tensor:
    """The label-smoothed loss of predicting each token of the targets from those before it."""
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
    device = model.embedding.weight.device
    rows = [tokenizer.encode_source(word) for word in words]
    # Words of a length together: less padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, list[str]] = {}
    for start in range(0, len(order), 256):
        chunk = order[start : start + 256]
        source = pad_batch([rows[i] for i in chunk]).to(device)
        ids = model.greedy(source) if beam == 1 else model.beam_search(source, beam=beam, alpha=alpha)
        found |= {i: [tokenizer.symbols[k] for k in row] for i, row in zip(chunk, ids, strict=True)}
    return [found[i] for i in range(len(rows))]


def answers(pairs: Sequence[Pair], tokenizer: PairTokenizer) -> list[list[list[str]]]:
    """The right target symbols of each pair, for the error rates."""
    split: Callable[[str], list[str]] = list if tokenizer.target_unit == "characters" else str.split
    return [[split(target) for target in pair.targets] for pair in pairs]


def without_stress(symbols: Sequence[str]) -> list[str]:
    """Phonemes of cmudict without the digits that say how a vowel is stressed: AH0 → AH."""
    return [symbol.rstrip("012") for symbol in symbols]


def _rates(name: str, said: list[list[str]], right: list[list[list[str]]]) -> Metrics:
    errors, lengths = phoneme_errors(said, right)
    wrong = [word_error_rate([a], [b]) for a, b in zip(said, right, strict=True)]
    rate, n = sum(errors) / sum(lengths), len(said)
    return {
        f"phoneme error rate, {name}": figure(rate, bootstrap_interval(errors, lengths), n),
        f"word error rate, {name}": figure(sum(wrong) / n, bootstrap_interval(wrong), n),
    }


@dataclass(frozen=True)
class Sampling:
    """What to translate.

    Args:
        source: texts.
        beam: beginnings that the search keeps; 1 is greedy.
        alpha: exponent of the length penalty.
    """

    source: tuple[str, ...] = ("lightning", "examiner")
    beam: int = 4
    alpha: float = 0.6


@dataclass(frozen=True)
class TransformerRecipe(Recipe):
    """Train an encoder–decoder Transformer. The learning rate is Eq. 3's; `lr` scales it.

    Args:
        warmup: fixed; the rate of Eq. 3 has `warmup_steps`.
        final_lr: fixed; the rate falls to zero in a line over the last 40 % of the steps.
        weight_decay: fixed, as in Section 5.3.
        beta2: fixed, as in Section 5.3.
        data: "cmudict", or a file of pairs, .tsv or .jsonl.
        unit: what a token of such a file is.
        batch_size: tokens of a batch, padding included; of source or target, whichever is longer.
        warmup_steps: steps until the learning rate's peak.
        smoothing: label smoothing ε.
        model: sizes; the vocabulary is that of the data.
    """

    paper: ClassVar[str] = "transformer"
    Sampling: ClassVar[type] = Sampling
    PRESETS: ClassVar = {
        "small": TransformerConfig(vocab_size=101, d_model=128, n_layers=4, n_heads=4, d_mlp=512, block_size=64),
        "base": TransformerConfig.base(),
        "big": TransformerConfig.big(),
    }

    epochs: float = 12.0
    batch_size: int = 512
    lr: float = 1.0
    weight_decay: float = 0.0
    beta2: float = 0.98
    data: str = "cmudict"
    unit: Unit = "characters"
    warmup_steps: int = 1_000
    smoothing: float = 0.1
    model: TransformerConfig = field(default_factory=lambda: TransformerRecipe.PRESETS["small"])

    def __post_init__(self):
        super().__post_init__()
        for name in ("warmup", "final_lr", "weight_decay", "beta2"):
            value, fixed = getattr(self, name), getattr(TransformerRecipe, name)
            if value != fixed:
                raise ValueError(
                    f"{name} is {value}, expected {fixed}: Section 5.3 fixes it; lr and warmup_steps are free"
                )

    @classmethod
    def named(cls) -> dict[str, "TransformerRecipe"]:
        """The recipes by name."""
        paper = {"model": cls.PRESETS["base"], "unit": "words", "batch_size": 25_000, "warmup_steps": 4_000}
        return {"cmudict-cpu": cls(), "paper": cls(**paper, steps=100_000)}

    def pairs(self) -> tuple[PairSplits, PairTokenizer]:
        """The pairs in three splits, and their tokenizer.

        Raises:
            ValueError: no such data, or a damaged file.
        """
        return _read(self.data, self.unit)

    def data_sha256(self) -> dict[str, str]:
        """Name of the data → SHA-256 of its content."""
        return {self.data: CMUDICT_SHA256 if self.data == "cmudict" else file_sha256(self.data)}

    def build(self) -> Transformer:
        """The untrained model, by the sizes of the recipe alone."""
        return Transformer(self.model)

    def forward_flops(self) -> int:
        """FLOPs of a source and a target of `block_size` tokens each."""
        return self.model.forward_flops(self.model.block_size, self.model.block_size)

    def example_size(self) -> str:
        """The longest pair, in words."""
        return f"{self.model.block_size} tokens in, {self.model.block_size} out"

    def examples_a_step(self) -> int | float:
        """A batch is counted in tokens."""
        return self.batch_size / self.model.block_size

    def task(self) -> Task:
        """Predict each token of a target from its source and the tokens before it."""
        splits, tokenizer = self.pairs()
        examples = make_examples(splits.train, tokenizer)
        batches = make_batches(examples, self.batch_size, self.seed)
        longest = max(len(row) for example in examples for row in example)
        special = {"vocab_size": len(tokenizer), "pad_id": PAD, "bos_id": START, "eos_id": END}
        model = Transformer(replace(self.model, **special, block_size=max(self.model.block_size, longest)))
        steps = self.steps or max(1, round(self.epochs * len(batches)))
        rate = partial(schedule, steps=steps, d_model=self.model.d_model, warmup=self.warmup_steps)

        def batch(step: int, part: int, parts: int) -> Batch:
            rows = cut(torch.tensor(batches[step]), part, parts).tolist()
            return padded([examples[i] for i in rows])

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            return smoothed_loss(model, *batch, self.smoothing), int((batch[1][:, 1:] != PAD).sum())

        return Task(model, adam(model), lambda step: self.lr * rate(step), steps, batch, loss)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The weights, in half precision, and the tokenizer."""
        model.save_pretrained(folder, bits=16)
        self.pairs()[1].save(folder)

    def load(self, folder: Path) -> Transformer:
        """The model that `save` wrote."""
        return Transformer.from_pretrained(folder)

    def check_tokens(self, folder: Path) -> None:
        """Raise a ValueError when the pairs have other symbols than the model in the folder knows."""
        if self.pairs()[1] != PairTokenizer.load(folder):
            raise ValueError(f"the symbols of {self.data} are not those that the model in {folder} was trained on")

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Metrics:
        """Symbol and sequence error rate on the pairs held out for testing, greedy and with a beam of four.

        Of "cmudict" the symbols are the 39 phonemes, as the field counts them, and once more with their stress.
        """
        splits, tokenizer = self.pairs()
        pairs, found = splits.test[spaced(len(splits.test), limit)], {}
        right, sources = answers(pairs, tokenizer), [pair.source for pair in pairs]
        for name, beam in (("greedy", 1), ("beam 4", 4)):
            said = pronounce(model, tokenizer, sources, beam=beam)
            if self.data == "cmudict":
                found |= _rates(f"{name}, stress counted", said, right)
                plain = [[without_stress(symbols) for symbols in row] for row in right]
                found |= _rates(name, [without_stress(symbols) for symbols in said], plain)
            else:
                found |= _rates(name, said, right)
        return found

    def sample(self, model: nn.Module, folder: Path, how: Sampling) -> str:
        """Each source text with the target found for it."""
        tokenizer = PairTokenizer.load(folder)
        found = pronounce(model, tokenizer, how.source, beam=how.beam, alpha=how.alpha)
        join = ("" if tokenizer.target_unit == "characters" else " ").join
        return "\n".join(f"{source}\t{join(symbols)}" for source, symbols in zip(how.source, found, strict=True))


@cache
def _read(data: str, unit: Unit) -> tuple[PairSplits, PairTokenizer]:
    if data == "cmudict":
        splits = cmudict_pairs()
        return splits, PairTokenizer.of(splits, "characters", "words")
    if not Path(data).is_file():
        raise ValueError(f"unknown data {data!r}, expected cmudict, or a file of pairs, .tsv or .jsonl")
    splits = split_pairs(read_pairs(data))
    return splits, PairTokenizer.of(splits, unit, unit)
