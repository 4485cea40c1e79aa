"""What a training costs, on paper: parameters, FLOPs, memory."""

import torch

from paperwalk.train.task import Recipe


def n_parameters(recipe: Recipe) -> int:
    """Numbers that the model of a recipe learns; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.build().parameters())


def describe(recipe: Recipe) -> str:
    """The sizes of a recipe's model, a line each.

    The backward pass costs about two forward passes. Training in single precision holds weights, gradients and Adam's
    two moments, 16 bytes a parameter (a moving average 4 more); activations come on top and grow with the batch.
    """
    n, flops = n_parameters(recipe), recipe.forward_flops()
    step, state = 3 * flops * recipe.examples_a_step(), (20 if recipe.ema else 16) * n
    return "\n".join(
        [
            f"parameters          {n:,}",
            f"forward pass        {flops / 1e9:,.2f} GFLOPs an example ({recipe.example_size()})",
            f"training step       {step / 1e12:,.2f} TFLOPs, batch_size {recipe.batch_size}",
            f"weights             {4 * n / 1e6:,.1f} MB in fp32, {2 * n / 1e6:,.1f} MB in bf16",
            f"weights, gradients, optimiser   {state / 1e6:,.1f} MB, before activations",
        ]
    )
