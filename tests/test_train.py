"""The loop can be interrupted anywhere and goes on to the very bits."""

import pytest
import torch
from torch import nn

from paperwalk.train import fit


def run(folder, *, steps=12, stop_at=None, nan_at=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimiser = torch.optim.AdamW(model.parameters())

    def batch_loss(step):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        return loss * float("nan") if step == nan_at else loss

    options = {"steps": steps, "folder": folder, "save_every": 3}
    losses = fit(model, optimiser, lambda step: 0.1 / (1 + step), batch_loss, **options)
    return losses, [p.detach().clone() for p in model.parameters()], optimiser


@pytest.mark.parametrize("stop_at", [1, 3, 4, 8, 11])
def test_a_run_killed_and_resumed_has_the_same_weights(tmp_path, stop_at):
    losses, weights, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop_at=stop_at)
    losses_again, weights_again, _ = run(tmp_path / "killed")
    assert losses_again == losses
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_again, strict=True))


def test_the_learning_rate_of_each_step_is_used(tmp_path):
    _, _, optimiser = run(tmp_path, steps=5)
    assert optimiser.param_groups[0]["lr"] == 0.1 / 5


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path):
    with pytest.raises(FloatingPointError, match="step 7"):
        run(tmp_path, nan_at=7)
    assert len(torch.load(tmp_path / "state.pt", weights_only=True)["losses"]) == 6


def test_a_failed_write_leaves_the_state_before(tmp_path, monkeypatch):
    run(tmp_path, steps=3)
    before = (tmp_path / "state.pt").read_bytes()

    def full_disk(state, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        run(tmp_path, steps=6)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
