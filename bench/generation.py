"""Writing with a cache: GPT against transformers' `generate`, beside what the memory's bandwidth allows."""

import copy
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpt import SIZES, transformers_gpt
from bench.measure import Contender, bandwidth, few, interleaved, summary
from bench.training import OURS
from paperwalk.checkpoints import load_exactly
from paperwalk.generate import generate
from paperwalk.gpt import GPT, GPTConfig
from paperwalk.published.gpt import our_names

# A model and the tokens that it writes.
MODELS = {"middle": (SIZES["middle"].config, 200), "GPT-2, 124M": (GPTConfig.gpt2(), 64)}
BATCHES = (1, 8)
PROMPT = 16
# Half as many bytes to read; the text may be another one.
HALF = "ours, bf16 weights"
# And one call a step in place of some hundreds; compiling takes most of a minute, once.
COMPILED = "ours, bf16 weights, compiled"


def ours(model: GPT, prompts: Tensor, n_tokens: int) -> list[list[int]]:
    """The likeliest token each time."""
    return generate(model, prompts.tolist(), n_tokens, top_k=1)


@torch.no_grad()
def theirs(model: nn.Module, prompts: Tensor, n_tokens: int) -> list[list[int]]:
    """The same by transformers."""
    real = torch.ones_like(prompts)
    options = {"max_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0}
    return model.generate(prompts, attention_mask=real, **options).tolist()


def weight_bytes(model: GPT) -> int:
    """Bytes that a step reads: all weights, but one row of the positions."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p is not model.positions.weight)


def pair(config: GPTConfig) -> tuple[GPT, nn.Module]:
    """Ours and theirs with the same weights.

    Raises:
        AssertionError: they write something else.
    """
    torch.manual_seed(0)
    model, reference = GPT(config).eval(), transformers_gpt(config).eval()
    load_exactly(model, our_names(dict(reference.state_dict())))
    prompts = torch.randint(config.vocab_size, (2, min(PROMPT, config.block_size // 2)))
    n_tokens = min(PROMPT, config.block_size - prompts.shape[1])
    assert ours(model, prompts, n_tokens) == theirs(reference, prompts, n_tokens), "the same weights write another text"
    return model, reference


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of each model at each batch, and the most tokens a second that the memory allows."""
    found, rounds = {}, few(rounds)
    for name, (config, n_tokens) in MODELS.items():
        model, reference = pair(config)
        half, fast = (copy.deepcopy(model).bfloat16() for _ in range(2))
        fast.encode = torch.compile(fast.encode)
        sizes = {OURS: weight_bytes(model), HALF: weight_bytes(half), "transformers": weight_bytes(model)}
        sizes[COMPILED] = sizes[HALF]
        rates = {n_bytes: bandwidth(n_bytes) for n_bytes in set(sizes.values())}
        for batch in BATCHES:
            torch.compiler.reset()
            prompts = torch.randint(config.vocab_size, (batch, PROMPT))
            start = time.perf_counter()
            ours(fast, prompts, n_tokens)
            compiling = time.perf_counter() - start
            writers = [
                Contender(OURS, partial(ours, model, prompts, n_tokens)),
                Contender(HALF, partial(ours, half, prompts, n_tokens)),
                Contender(COMPILED, partial(ours, fast, prompts, n_tokens)),
                Contender("transformers", partial(theirs, reference, prompts, n_tokens)),
            ]
            found[f"{name}, batch {batch}"] = summary(interleaved(writers, rounds), (OURS, HALF, COMPILED)) | {
                "tokens": batch * n_tokens,
                "compiling": compiling,
                # Each step reads the weights once, for the whole batch.
                "limits": {each: batch * rates[n_bytes] / n_bytes for each, n_bytes in sizes.items()},
            }
    return {"rounds": rounds, "cases": found}


if __name__ == "__main__":
    from bench.run import main

    main("generation")
