"""GPT on any text, by characters or byte pairs."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperwalk.data import consecutive_windows, load, random_windows
from paperwalk.data.table import RECIPES as DATASETS
from paperwalk.generate import generate
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.metrics import bootstrap_interval
from paperwalk.tokenizers import BytePairTokenizer, CharTokenizer
from paperwalk.train.task import Batch, Metrics, Recipe, Task, cut, figure, file_sha256, generator, spaced

TEXTS = ("moby-dick",)
Tokenizer = CharTokenizer | BytePairTokenizer


@dataclass(frozen=True)
class Sampling:
    """How to write.

    Args:
        prompt: the text to go on from.
        tokens: tokens to write.
        temperature, top_k, top_p: as in `paperwalk.generate`.
        seed: of the draws.
        file: where to write the text as well.
    """

    prompt: str = "The whale"
    tokens: int = 400
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    file: Path | None = None


@dataclass(frozen=True)
class GPTRecipe(Recipe):
    """Train a GPT.

    Args:
        data: "moby-dick", or a text file in UTF-8. The first 90 % are trained on, the rest is held out.
        unit: what a token is: a character of the text, a byte pair learned from it, or one of GPT-2's.
        vocab_size: tokens, for byte pairs learned from the text.
        model: sizes; the vocabulary is the tokenizer's.
    """

    paper: ClassVar[str] = "gpt"
    Sampling: ClassVar[type] = Sampling
    PRESETS: ClassVar = {
        "nano": GPTConfig(vocab_size=83, block_size=256, d_model=384, n_layers=6, n_heads=6, d_mlp=1536, dropout=0.1),
        "gpt2": GPTConfig.gpt2(dropout=0.1),
        "gpt2-medium": GPTConfig.gpt2_medium(dropout=0.1),
        "gpt2-large": GPTConfig.gpt2_large(dropout=0.1),
        "gpt2-xl": GPTConfig.gpt2_xl(dropout=0.1),
    }

    beta2: float = 0.99
    weight_decay: float = 0.1
    final_lr: float = 0.1
    batch_size: int = 16
    data: str = "moby-dick"
    unit: Literal["characters", "byte-pairs", "gpt2"] = "characters"
    vocab_size: int = 1_000
    model: GPTConfig = field(default_factory=lambda: GPTRecipe.PRESETS["nano"])

    @classmethod
    def named(cls) -> dict[str, "GPTRecipe"]:
        """The recipes by name."""
        return {
            "moby-dick-cpu": cls(
                steps=3_600, batch_size=8, warmup=0.03, model=replace(cls.PRESETS["nano"], dropout=0.05)
            ),
            "byte-pairs-cpu": cls(steps=1_800, unit="byte-pairs"),
            # GPT-2 does not state its optimiser; these are GPT's (Section 4.1), with GPT-2's batch and window.
            "paper": cls(
                model=cls.PRESETS["gpt2"],
                unit="gpt2",
                batch_size=512,
                lr=2.5e-4,
                weight_decay=0.01,
                beta2=0.999,
                warmup=0.02,
                final_lr=0.0,
            ),
        }

    def tokens(self) -> tuple[Tokenizer, Tensor, Tensor]:
        """The tokenizer, the tokens to train on, and those held out.

        Raises:
            ValueError: no such data set or file.
        """
        return _read(self.data, self.unit, self.vocab_size)

    def data_sha256(self) -> dict[str, str]:
        """Name of the text → SHA-256 of its content."""
        return {self.data: DATASETS[self.data].sha256 if self.data in TEXTS else file_sha256(self.data)}

    def build(self) -> nn.Module:
        """The untrained model, by the sizes of the recipe alone."""
        return GPT(self.model)

    def forward_flops(self) -> int:
        """FLOPs of one window."""
        return self.model.forward_flops(self.model.block_size)

    def example_size(self) -> str:
        """A window, in words."""
        return f"{self.model.block_size} tokens"

    def task(self) -> Task:
        """Predict each character or byte pair from those before it."""
        tokenizer, trained_on, _ = self.tokens()
        length = self.model.block_size + 1
        steps = self.steps_of(len(trained_on) // length)
        model = replace(self, model=replace(self.model, vocab_size=tokenizer.vocab_size)).build()

        def batch(step: int, part: int, parts: int) -> Batch:
            windows = random_windows(trained_on, length, self.batch_size, generator(self.seed, step))
            return (cut(windows, part, parts),)

        def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
            return model.loss(batch[0]), batch[0][:, 1:].numel()

        return Task(model, self.adamw(model), self.cosine(steps), steps, batch, loss)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The weights, eight bits each, and the tokenizer."""
        model.save_pretrained(folder, bits=8)
        self.tokens()[0].save(folder)

    def load(self, folder: Path) -> GPT:
        """The model that `save` wrote."""
        return GPT.from_pretrained(folder)

    def load_tokenizer(self, folder: Path) -> Tokenizer:
        """The tokenizer that `save` wrote."""
        return (CharTokenizer if self.unit == "characters" else BytePairTokenizer).load(folder)

    def check_tokens(self, folder: Path) -> None:
        """Raise a ValueError when the text has other tokens than the model in the folder knows."""
        name = "characters" if self.unit == "characters" else "vocabulary"
        if getattr(self.tokens()[0], name) != getattr(self.load_tokenizer(folder), name):
            raise ValueError(f"the tokens of {self.data} are not those that the model in {folder} was trained on")

    def evaluate(self, model: nn.Module, limit: int | None = None) -> Metrics:
        """Nats a token on the held-out text, each token but the first predicted once, from those of its window."""
        _, _, held_out = self.tokens()
        sums, counts = window_losses(model, held_out, self.model.block_size + 1, limit)
        return {"loss": figure(sum(sums) / sum(counts), bootstrap_interval(sums, counts), int(sum(counts)))}

    def sample(self, model: nn.Module, folder: Path, how: Sampling) -> str:
        """The prompt, gone on from."""
        tokenizer = self.load_tokenizer(folder)
        (row,) = generate(
            model,
            [tokenizer.encode(how.prompt)],
            how.tokens,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            generator=torch.Generator().manual_seed(how.seed),
        )
        text = tokenizer.decode(row)
        if how.file is not None:
            how.file.write_text(text, encoding="utf-8")
        return text


@cache
def _read(data: str, unit: str, vocab_size: int) -> tuple[Tokenizer, Tensor, Tensor]:
    if data in TEXTS:
        text = load(data).text
    elif Path(data).is_file():
        text = Path(data).read_text(encoding="utf-8")
    else:
        raise ValueError(f"unknown data {data!r}, expected {' or '.join(TEXTS)}, or a text file")
    if unit == "gpt2":
        vocabulary = load("gpt2-vocabulary")
        tokenizer = BytePairTokenizer.parse(vocabulary.encoder, vocabulary.merges)
    else:
        tokenizer = CharTokenizer(text) if unit == "characters" else BytePairTokenizer.train(text, vocab_size)
    tokens = torch.tensor(tokenizer.encode(text))
    n = int(0.9 * len(tokens))
    return tokenizer, tokens[:n], tokens[n:]


@torch.no_grad()
def window_losses(
    model: nn.Module, tokens: Tensor, length: int, limit: int | None = None
) -> tuple[list[float], list[float]]:
    """Of each window that covers the text, or about `limit` of them: its losses in nats, summed, and their number."""
    model.eval()
    device = next(model.parameters()).device
    everything = torch.cat(list(consecutive_windows(tokens, length)))
    sums = []
    for windows in everything[spaced(len(everything), limit)].split(32):
        logits, targets = model(windows[:, :-1].to(device)), windows[:, 1:].to(device)
        sums += F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1).tolist()
    return sums, [float(length - 1)] * len(sums)
