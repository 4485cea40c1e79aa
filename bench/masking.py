"""What hiding three quarters of the patches saves the masked autoencoder's encoder."""

from functools import partial
from typing import Any

import torch

from bench.mae import SIZES, inputs
from bench.measure import Contender, interleaved, summary
from paperwalk.mae import MAE

RATIOS = (0.75, 0.0)


def measure(rounds: int) -> dict[str, Any]:
    """Forward and backward pass of the encoder with the usual share hidden, and with none."""
    size = SIZES["middle"]
    model, (images, noise) = MAE(size.config), inputs(size)

    def step(ratio: float) -> None:
        model.zero_grad()
        z, _ = model.encode(images, mask_ratio=ratio, noise=noise)
        z.backward(torch.ones_like(z))

    hidden = [Contender(f"{ratio:.0%}", partial(step, ratio)) for ratio in RATIOS]
    flops = {f"{ratio:.0%}": 3 * size.batch * size.config.encoder_flops(ratio) for ratio in RATIOS}
    return summary(interleaved(hidden, rounds), hidden[0][:1]) | {"batch": size.batch, "flops": flops}


if __name__ == "__main__":
    from bench.run import main

    main("masking")
