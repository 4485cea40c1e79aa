"""Writing with a GPT: which token comes next, and the next after that.

Radford et al. 2019, Section 3.6 (top-k sampling, after Fan et al. 2018); Holtzman et al., "The
Curious Case of Neural Text Degeneration", ICLR 2020, arXiv:1904.09751 (top-p).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paperwalk.gpt import GPT
from paperwalk.nn import KeyValueCache


def next_token_probabilities(
    logits: Float[Tensor, "b v"], *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "b v"]:
    """softmax(logits / temperature), then only the `top_k` likeliest, then only the fewest that sum to `top_p`.

    What is left is scaled to sum to one, after each step.

    Args:
        logits: dimensionless.
        temperature: above 0; 1 leaves the distribution as it is, less sharpens it, more flattens it.
        top_k: at least 1; 1 is greedy: all probability on the likeliest token.
        top_p: in (0, 1]; a token stays while those likelier than it sum to less than this.

    Raises:
        ValueError: an argument outside its range.

    Source: Holtzman et al. 2020, Sections 3.1 (top-p, Eq. 2 and 3), 3.2 (top-k) and 3.3 (temperature, Eq. 4).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}, expected a number above 0 (greedy is top_k=1)")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}, expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}, expected a number in (0, 1]")
    v = logits.shape[-1]
    # Relative to the largest, so that no temperature makes them overflow.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_k is None and top_p is None:
        return logits.softmax(dim=-1)
    likeliest = logits.topk(min(top_k or v, v), dim=-1)
    kept = likeliest.values.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        likelier = kept.cumsum(dim=-1) - kept
        kept = kept.masked_fill(likelier >= top_p, 0.0)
        kept = kept / kept.sum(dim=-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, likeliest.indices, kept)


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """The prompts as one batch that ends together, with zeros in front of the shorter, and which tokens are real."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        tokens[i, longest - len(prompt) :] = torch.tensor(prompt)
        real[i, longest - len(prompt) :] = True
    return tokens, real


def _check_prompts(prompts: Sequence[Sequence[int]], n_tokens: int, vocab_size: int, block_size: int) -> None:
    if not prompts:
        raise ValueError("no prompt, expected at least one")
    if n_tokens < 0:
        raise ValueError(f"n_tokens={n_tokens}, expected at least 0")
    for i, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= block_size:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens, expected 1 to block_size={block_size}")
        for token in prompt:
            if not 0 <= token < vocab_size:
                raise ValueError(f"prompt {i} has token {token}, expected 0 to {vocab_size - 1}")


def last_logits(
    model: GPT, tokens: Int[Tensor, "b t"], real: Bool[Tensor, "b t"] | None, cache: list[KeyValueCache] | None
) -> Float[Tensor, "b v"]:
    """The logits after the last token, given the last `block_size` tokens; what the cache has seen is not run again.

    `real` is False at padding; None if there is none.

    Once the window slides, the cache no longer serves: a token that was at position i stands at i − 1 now, so all keys
    and values have changed. Then the whole window runs at each step.
    """
    size = model.config.block_size
    if cache is not None and tokens.shape[1] <= size:
        new = tokens[:, cache[0].length :]
    else:
        new, real, cache = tokens[:, -size:], None if real is None else real[:, -size:], None
    return model.logits(model.encode(new, real, cache)[:, -1])


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """Continue each prompt by up to `n_tokens` tokens, drawn from `next_token_probabilities` one after the other.

    A token is drawn given the last `block_size` tokens of its own row, at positions 0 to `block_size` − 1 at most:
    neither padding nor the other rows matter, nor whether a cache is used. Without dropout, whatever the model's mode.

    Args:
        prompts: tokens, 1 to `block_size` of them each; they need not be equally many.
        n_tokens: most tokens to add to each.
        temperature, top_k, top_p: as in `next_token_probabilities`.
        stop: a token that ends its row; it is not returned.
        generator: for the draws; torch's own if None.
        use_cache: keep keys and values, so that a step within `block_size` runs one token and not all.

    Returns:
        For each prompt, the prompt and its continuation.

    Raises:
        ValueError: an empty or too long prompt, a token outside the vocabulary, or an argument outside its range.

    Cost: with the cache, a step is a read of all weights, `config.forward_flops(1)`, and 4 · s · d a block for the s
        positions seen. Without, or past `block_size`: `config.forward_flops(t)`, the head at the last position only.
    """
    config = model.config
    _check_prompts(prompts, n_tokens, config.vocab_size, config.block_size)
    if stop is not None and not 0 <= stop < config.vocab_size:
        raise ValueError(f"stop={stop}, expected None or a token 0 to {config.vocab_size - 1}")
    was_training = model.training
    model.eval()
    device = model.token_embedding.weight.device
    tokens, real = (x.to(device) for x in pad_left(prompts))
    if real.all():
        real = None
    cache = model.new_cache() if use_cache else None
    ends: list[int | None] = [None] * len(prompts)
    try:
        for _ in range(n_tokens):
            logits = last_logits(model, tokens, real, cache)
            probabilities = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
            drawn = torch.multinomial(probabilities, 1, generator=generator)
            if stop is not None:
                stopped = (drawn[:, 0] == stop).tolist()
                ends = [tokens.shape[1] if end is None and now else end for end, now in zip(ends, stopped, strict=True)]
            tokens = torch.cat([tokens, drawn], dim=1)
            if real is not None:
                real = torch.cat([real, torch.ones_like(drawn, dtype=torch.bool)], dim=1)
            if None not in ends:
                break
    finally:
        model.train(was_training)
    longest = max(len(prompt) for prompt in prompts)
    starts = [longest - len(prompt) for prompt in prompts]
    return [row[start:end].tolist() for row, start, end in zip(tokens, starts, ends, strict=True)]
