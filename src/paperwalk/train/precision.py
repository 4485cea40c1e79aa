"""Which number format multiplies matrices fastest here."""

import time
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def fast_dtype() -> torch.dtype:
    """bfloat16 where this machine multiplies matrices at least 1.5 times as fast in it, else float32; measured.

    Not every processor has instructions for bfloat16; without them it is slower than single precision.
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype)
        rounds = []
        for _ in range(20):
            start = time.perf_counter()
            a @ a
            rounds.append(time.perf_counter() - start)
        seconds[dtype] = min(rounds)
    return torch.bfloat16 if 1.5 * seconds[torch.bfloat16] < seconds[torch.float32] else torch.float32


def fast_precision() -> Precision:
    """`fast_dtype` by the name that the command line uses."""
    return "bf16" if fast_dtype() == torch.bfloat16 else "fp32"


def fast_autocast() -> torch.autocast:
    """A context in which matrix products on the processor are of `fast_dtype`."""
    dtype = fast_dtype()
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
