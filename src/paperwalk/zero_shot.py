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
from jaxtyping import Float, Int64
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
    block_size = model.config.block_size
    with torch.no_grad():
        rows = [model.encode_text(tokenizer(texts[i : i + batch], block_size)) for i in range(0, len(texts), batch)]
    return torch.cat(rows)


def encode_images(model: CLIP, images: Float[Tensor, "b c h w"], batch: int = 256) -> Float[Tensor, "b e"]:
    """The unit vectors of images, `batch` at a time, without gradients; the model is set to eval mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model.encode_image(part) for part in images.split(batch)])


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


def recall_at(n: int, queries: Float[Tensor, "b e"], candidates: Float[Tensor, "b e"]) -> float:
    """The share of queries whose own candidate, that of the same row, is among the n nearest; n / b at chance.

    A candidate as near as the own one counts as nearer, so that a model that maps all to one point scores nothing.

    Raises:
        ValueError: another number of candidates than of queries, or n outside 1 to their number.
    """
    if len(queries) != len(candidates):
        raise ValueError(f"{len(queries)} queries with {len(candidates)} candidates, expected pairs")
    if not 1 <= n <= len(candidates):
        raise ValueError(f"n={n}, expected 1 to {len(candidates)}, the number of candidates")
    cosines = unit(queries) @ unit(candidates).T
    not_farther = (cosines >= cosines.diagonal()[:, None]).sum(dim=1)
    return (not_farther <= n).float().mean().item()
