"""What a training costs, on paper: parameters, FLOPs, memory."""

import torch

from paperwalk.train.task import Recipe


def n_parameters(recipe: Recipe) -> int:
    """Numbers that the model of a recipe learns; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in recipe.build().parameters())


def describe(recipe: Recipe) -> str:
    """The sizes of a recipe's model, a line each.

    Training in single precision holds weights, gradients and Adam's two moments, 16 bytes a parameter (a moving average
    4 more); activations come on top and grow with the batch.
    """
    n = n_parameters(recipe)
    state = (20 if recipe.ema else 16) * n
    return "\n".join(
        [
            f"parameters          {n:,}",
            f"forward pass        {recipe.forward_flops() / 1e9:,.2f} GFLOPs an example ({recipe.example_size()})",
            f"training step       {recipe.step_flops() / 1e12:,.2f} TFLOPs, batch_size {recipe.batch_size}",
            f"weights             {4 * n / 1e6:,.1f} MB in fp32, {2 * n / 1e6:,.1f} MB in bf16",
            f"weights, gradients, optimiser   {state / 1e6:,.1f} MB, before activations",
        ]
    )
