"""The moving average of a model's weights: steadier than the weights of any one step."""

import torch
from torch import nn


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """θ̄ ← decay · θ̄ + (1 − decay) · θ, in place, for each parameter θ of a model and θ̄ of its average.

    Args:
        average: a copy of the model, made when training began.
        decay: how much of the average stays in a step, 0 to 1; it looks back over about 1 / (1 − decay) steps.

    Raises:
        ValueError: a decay outside 0 … 1.

    Source: Ho et al. 2020, Appendix B (decay 0.9999).
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}, expected 0 to 1")
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
