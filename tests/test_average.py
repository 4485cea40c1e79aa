"""The moving average of weights: against its definition, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from paperwalk.nn.average import follow


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_is_the_weighted_sum_of_all_steps(decay):
    model = nn.Linear(3, 2)
    average = copy.deepcopy(model).requires_grad_(False)
    kept = [[p.detach().clone() for p in model.parameters()]]
    for _ in range(4):
        for p in model.parameters():
            nn.init.normal_(p)
        follow(average, model, decay)
        kept.append([p.detach().clone() for p in model.parameters()])
    shares = [decay**4] + [(1 - decay) * decay ** (4 - i) for i in range(1, 5)]
    for i, found in enumerate(average.parameters()):
        assert_close(found, sum(share * each[i] for share, each in zip(shares, kept, strict=True)))
        assert_close(list(model.parameters())[i], kept[-1][i])


def test_takes_no_gradient():
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    follow(average, model, 0.5)
    assert all(p.grad is None and p.is_leaf for p in (*model.parameters(), *average.parameters()))


@pytest.mark.parametrize("decay", [-0.1, 1.1, torch.nan])
def test_bad_decays_are_named(decay):
    with pytest.raises(ValueError, match=r"decay is .*, expected 0 to 1"):
        follow(nn.Linear(1, 1), nn.Linear(1, 1), decay)
