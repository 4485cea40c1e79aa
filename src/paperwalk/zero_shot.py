"""What a CLIP is for: classes named in words, and retrieval from image to text and from text to image.

Radford et al. 2021, Sections 3.1.2 (classification), 3.1.4 (prompts and their ensembles).

| axis | meaning |
|---|---|
| b | images or, in retrieval, queries |
| k | classes |
| s | candidates of retrieval |
| e | width of the shared space |
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from paperwalk.clip import CLIP, unit

Tokenizer = Callable[[Sequence[str], int], Tensor]
# A small part of the paper's 80 prompts for ImageNet.
TEMPLATES = ("a photo of a {}.", "a bad photo of a {}.", "a drawing of a {}.", "a photo of the small {}.")


def encode_texts(model: CLIP, tokenizer: Tokenizer, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "b e"]:
    """The unit vectors of texts, `batch` at a time, without gradients; the model is set to eval mode.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("no texts, expected at least one")
    model.eval()
    tokens = tokenizer(texts, model.config.block_size).to(model.log_scale.device)
    with torch.no_grad():
        return torch.cat([model.encode_text(part) for part in tokens.split(batch)])


def encode_images(model: CLIP, images: Float[Tensor, "b c h w"], batch: int = 256) -> Float[Tensor, "b e"]:
    """The unit vectors of images, `batch` at a time, without gradients; the model is set to eval mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model.encode_image(part.to(model.log_scale.device)) for part in images.split(batch)])


def class_vectors(
    model: CLIP, tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[Tensor, "k e"]:
    """The vector of each class: the mean of its prompts' unit vectors, made a unit vector again.

    Args:
        tokenizer: from texts and a length to integers (b t).
        class_names: what stands for the {} of a template.
        templates: prompts with one {} each.

    Raises:
        ValueError: no class, no template, or a template without exactly one {}.

    Source: Section 3.1.4: the ensemble is over the embeddings, not over the probabilities, so that it costs nothing
    once the class vectors are kept.
    """
    if isinstance(class_names, str) or not class_names:
        raise ValueError(f"class names are {class_names!r}, expected at least one, in a list")
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates are {templates!r}, expected at least one, in a list")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r} has {template.count('{}')} places {{}}, expected 1")
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    vectors = encode_texts(model, tokenizer, prompts).unflatten(0, (len(class_names), len(templates)))
    return unit(vectors.mean(dim=1))


def classify(
    model: CLIP,
    tokenizer: Tokenizer,
    images: Float[Tensor, "b c h w"],
    class_names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Float[Tensor, "b k"]:
    """The probability of each class for each image: softmax of the scaled cosines with the class vectors.

    The classes need not have been seen in training; only their words must say something to the text tower.

    Raises:
        ValueError: as `class_vectors` and `CLIP.encode_image`.

    Source: Section 3.1.2.
    """
    vectors = class_vectors(model, tokenizer, class_names, templates)
    with torch.no_grad():
        return (model.scale() * encode_images(model, images) @ vectors.T).softmax(dim=-1)


def nearest(
    queries: Float[Tensor, "b e"], candidates: Float[Tensor, "s e"], n: int
) -> tuple[Int64[Tensor, "b n"], Float[Tensor, "b n"]]:
    """The n candidates of the largest cosine with each query, best first: their indices and those cosines.

    Image to text: images are the queries and texts the candidates; text to image: the other way round.

    Raises:
        ValueError: n is below 1 or above the number of candidates.
    """
    if not 1 <= n <= len(candidates):
        raise ValueError(f"n={n}, expected 1 to {len(candidates)}, the number of candidates")
    cosines, indices = (unit(queries) @ unit(candidates).T).topk(n, dim=1)
    return indices, cosines


def found_among(n: int, scores: Float[Tensor, "b s"], right: Int64[Tensor, " b"] | None = None) -> Bool[Tensor, " b"]:
    """Whether the right candidate of each query is among the n of the largest score.

    A candidate that scores as much as the right one counts as before it, so that a model that maps all to one point
    finds nothing.

    Args:
        scores: a row for each query, a column for each candidate.
        right: the candidate of each query; that of the same number by default.

    Raises:
        ValueError: another number of candidates than of queries, when `right` is not given, or n outside 1 to their
            number.
    """
    if right is None:
        if scores.shape[0] != scores.shape[1]:
            raise ValueError(f"{scores.shape[0]} queries with {scores.shape[1]} candidates, expected pairs")
        right = torch.arange(len(scores), device=scores.device)
    if not 1 <= n <= scores.shape[1]:
        raise ValueError(f"n={n}, expected 1 to {scores.shape[1]}, the number of candidates")
    return (scores >= scores.gather(1, right[:, None])).sum(dim=1) <= n


def recall_at(n: int, queries: Float[Tensor, "b e"], candidates: Float[Tensor, "b e"]) -> float:
    """The share of queries whose own candidate, that of the same row, is among the n nearest; n / b at chance.

    Raises:
        ValueError: another number of candidates than of queries, or n outside 1 to their number.
    """
    return found_among(n, unit(queries) @ unit(candidates).T).float().mean().item()
