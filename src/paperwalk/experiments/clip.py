"""A small CLIP on emoji: contrastive against bag-of-words prediction, and the temperature learned against fixed.

The claims are those of Radford et al. 2021, Figure 2 (predicting a caption's words learns more slowly than telling
captions apart) and, of which the paper reports no comparison, the temperature learned as in Section 2.5, scaled down:
the same steps and images, three seeds. Run: `python -m paperwalk.experiments.clip` (about 10 minutes on one thread); it
writes clip.json beside this file. "from random weights" in it is the card of a run that `paperwalk train clip --preset
small` repeats; the recipe `emoji-cpu` was that one at the time.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from paperwalk.clip import CLIP, INIT_TEMPERATURE, CLIPConfig, ImageTower, contrastive_loss, unit
from paperwalk.data.captions import Captioned, full_caption
from paperwalk.data.pictures import on_white, read_pictures
from paperwalk.experiments import run_missing, train_steps
from paperwalk.tokenizers import ClipTokenizer
from paperwalk.train.precision import fast_autocast
from paperwalk.train.recipes.clip import CLIPRecipe
from paperwalk.train.runs import as_json
from paperwalk.zero_shot import found_among

RESULTS = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
STEPS = 160
EVALUATED = (40, 80, 120, 160)
SMALL = replace(CLIPRecipe.PRESETS["small"], patch_size=8, n_image_layers=3)
RECIPE = CLIPRecipe(model=SMALL, steps=STEPS)
OBJECTIVES = ("CLIP", "bag of words, contrastive", "bag of words, predicted")
TEMPERATURES = {"fixed at 1": 1.0, "fixed at 0.07": 0.07, "fixed at 0.01": 0.01}


class BagOfWords(nn.Module):
    """The image tower with captions as bags of words: told apart (as CLIP) or predicted word by word.

    A "word" is a token here: a byte pair, or a comma.

    Predicting, each word of the caption is a class of a softmax over the vocabulary, as in Joulin et al. 2016. A
    caption's score for an image is then the mean over its words of log p(word | image) − log p(word).
    """

    def __init__(self, config: CLIPConfig, *, contrastive: bool):
        super().__init__()
        self.contrastive = contrastive
        self.image = ImageTower(config)
        self.words = nn.Embedding(config.vocab_size, config.d_embed)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(INIT_TEMPERATURE)))
        nn.init.normal_(self.words.weight, std=config.d_embed**-0.5)

    def bags(self, tokens: Int64[Tensor, "b t"]) -> Float[Tensor, "b v"]:
        """The share of each token in a text, without the frame."""
        counts = torch.zeros(len(tokens), self.words.num_embeddings)
        counts.scatter_add_(1, tokens, torch.ones(tokens.shape))
        # The padding, the start and the end.
        counts[:, [0, -2, -1]] = 0
        return counts / counts.sum(dim=1, keepdim=True)

    def cosines(self, images: Tensor, bags: Float[Tensor, "s v"]) -> Float[Tensor, "b s"]:
        """Of each image with the mean of each bag's word vectors."""
        return unit(self.image(images)) @ unit(bags @ self.words.weight).T

    def log_p(self, images: Tensor) -> Float[Tensor, "b v"]:
        """Log-probability of each word."""
        return F.linear(self.image(images), self.words.weight, self.bias).log_softmax(dim=1)

    def loss(self, images: Tensor, tokens: Tensor) -> Float[Tensor, ""]:
        """In nats: of telling captions apart, or of a word."""
        bags = self.bags(tokens)
        if self.contrastive:
            return contrastive_loss(self.log_scale.exp() * self.cosines(images, bags))
        return -(bags * self.log_p(images)).sum(dim=1).mean()

    def scores(self, images: Tensor, tokens: Tensor, log_prior: Tensor) -> Float[Tensor, "b_images b_texts"]:
        """How well each text fits each image."""
        bags = self.bags(tokens)
        return self.cosines(images, bags) if self.contrastive else (self.log_p(images) - log_prior) @ bags.T


@torch.no_grad()
def held_out_recall(model: nn.Module, data: Captioned, tokenizer: ClipTokenizer) -> float:
    """Recall at 5, the mean over artists and directions; of a CLIP or of a bag of words."""

    def rows(subjects: Iterable[int]) -> Tensor:
        return tokenizer([full_caption(data.phrases[i]) for i in subjects], RECIPE.model.block_size)

    captions = rows(data.held_out)
    bag = isinstance(model, BagOfWords)
    if bag:
        log_prior = (model.bags(rows(group[0] for group in data.groups)).mean(dim=0) + 1e-5).log()
    model.eval()
    values = []
    for k in range(len(data.artists)):
        pictures = on_white(read_pictures([data.pictures[i][k] for i in data.held_out], RECIPE.model.image_size))
        scores = model.scores(pictures, captions, log_prior) if bag else model(pictures, captions)
        values += [found_among(5, each).float().mean().item() for each in (scores, scores.T)]
    model.train()
    return sum(values) / len(values)


def train_small(
    model: nn.Module, data: Captioned, tokenizer: ClipTokenizer, seed: int, steps: Iterable[int] = range(STEPS)
) -> tuple[list[float], dict[str, float]]:
    """A short training; the loss of each step, and the held-out recall after the steps of `EVALUATED`."""
    recipe, autocast, found = replace(RECIPE, seed=seed), fast_autocast(), {}

    def loss(step: int) -> Tensor:
        if step in EVALUATED:
            found[str(step)] = held_out_recall(model, data, tokenizer)
        pictures, tokens, _ = recipe.batch(data, tokenizer, step)
        with autocast:
            return model.loss(pictures, tokens)

    losses = train_steps(model, recipe.adamw(model), recipe.cosine(STEPS), loss, steps)
    found[str(STEPS)] = held_out_recall(model, data, tokenizer)
    return losses, found


def make(name: str) -> nn.Module:
    """An untrained model of the experiment."""
    if name.startswith("bag"):
        return BagOfWords(RECIPE.model, contrastive=name.endswith("contrastive"))
    model = CLIP(RECIPE.model)
    if name in TEMPERATURES:
        nn.init.constant_(model.log_scale, -math.log(TEMPERATURES[name]))
        model.log_scale.requires_grad_(False)
    return model


def run_one(name: str, seed: int, data: Captioned, tokenizer: ClipTokenizer) -> dict[str, Any]:
    """Train one model of the experiment; its held-out recall by steps, and its last scale."""
    torch.manual_seed(seed)
    model = make(name)
    _, found = train_small(model, data, tokenizer, seed)
    return {"recall": {step: round(value, 4) for step, value in found.items()}, "scale": model.log_scale.exp().item()}


def about() -> dict[str, Any]:
    """What the stored numbers were made with; stored beside them, so that a change here shows."""
    return as_json(RECIPE)


def main() -> None:
    """Run what clip.json does not hold yet."""
    data, tokenizer = RECIPE.examples()
    names = (*OBJECTIVES, *TEMPERATURES)
    runs = {f"{name} {seed}": partial(run_one, name, seed, data, tokenizer) for seed in SEEDS for name in names}
    run_missing(RESULTS, runs, recipe=about())


if __name__ == "__main__":
    main()
