"""The loop behind the shipped checkpoints: it can be killed at any step and goes on to the same weights."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from paperwalk.train.precision import fast_dtype as fast_dtype


def fit(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    lr_at: Callable[[int], float],
    batch_loss: Callable[[int], Tensor],
    *,
    steps: int,
    folder: str | Path,
    clip: float = 1.0,
    dtype: torch.dtype = torch.float32,
    save_every: int = 200,
    log_every: int = 50,
) -> list[float]:
    """Train for `steps` steps, or for what is left of them when `folder` holds an interrupted run.

    Args:
        model: trained in place.
        optimiser: over the model's parameters.
        lr_at: learning rate of a step, counted from 0.
        batch_loss: the loss of a step. It draws its batch from the step's number alone, so that a resumed run sees
            the batches that an uninterrupted one would have seen.
        steps: number of optimiser steps.
        folder: keeps state.pt, written whole every `save_every` steps.
        clip: largest norm of all gradients together.
        dtype: of the matrix products in the forward and backward passes; the weights stay in single precision.
        save_every, log_every: steps between two states, and between two printed lines.

    Returns:
        The loss of every step, those before an interruption included.

    Raises:
        FloatingPointError: the loss is not finite; the last state stays as it is.
    """
    state_path = Path(folder) / "state.pt"
    state_path.parent.mkdir(parents=True, exist_ok=True)
    losses = _resume(state_path, model, optimiser) if state_path.exists() else []
    first, start = len(losses), time.perf_counter()
    model.train()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = lr_at(step)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = batch_loss(step)
        if not loss.isfinite():
            raise FloatingPointError(f"loss is {loss.item()} at step {step}; the last state is in {state_path}")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        losses.append(loss.item())
        done = step + 1
        if done % log_every == 0 or done == steps:
            mean = sum(losses[-log_every:]) / len(losses[-log_every:])
            seconds = time.perf_counter() - start
            left = seconds / (done - first) * (steps - done)
            print(f"step {done}/{steps}  loss {mean:.4f}  {seconds:.0f} s, {left:.0f} s left", flush=True)
        if done % save_every == 0 or done == steps:
            _save(state_path, model, optimiser, losses)
    return losses


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, losses: list[float]) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "losses": losses,
        "random": torch.get_rng_state(),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> list[float]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    return state["losses"]
