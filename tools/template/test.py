"""TODO: what these tests prove of the paper."""

import pytest
import torch
from torch import nn

from paperwalk.template import Template, TemplateConfig, shares
from paperwalk.testing import prove


def naive_shares(scores):
    return torch.stack([torch.stack([s.exp() / sum(t.exp() for t in row) for s in row]) for row in scores])


@pytest.mark.parametrize(("b", "k"), [(1, 1), (2, 3), (5, 7)])
def test_shares_equal_the_equation_and_torch(b, k):
    scores = torch.randn(b, k, requires_grad=True)
    prove("shares", "naive", shares, naive_shares, scores)
    prove("shares", "torch", shares, lambda s: torch.softmax(s, dim=-1), scores)


def test_large_scores_do_not_overflow():
    assert torch.equal(shares(torch.tensor([[1000.0, 0.0]])), torch.tensor([[1.0, 0.0]]))


def test_the_model_equals_torch(randomise):
    model = randomise(Template(TemplateConfig(d_in=4, n_classes=5)))
    oracle = nn.Sequential(nn.Linear(4, 5), nn.Softmax(dim=-1))
    oracle[0].load_state_dict(model.head.state_dict())
    x = torch.randn(6, 4)
    torch.testing.assert_close(model(x), oracle(x))
    ours = torch.autograd.grad(model(x)[:, 0].sum(), list(model.parameters()))
    theirs = torch.autograd.grad(oracle(x)[:, 0].sum(), list(oracle.parameters()))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_a_constant_added_to_all_scores_changes_nothing():
    scores = torch.randn(3, 4)
    torch.testing.assert_close(shares(scores + 5), shares(scores))


def test_the_parameters_are_those_on_paper():
    model = Template(TemplateConfig(d_in=4, n_classes=5))
    assert sum(p.numel() for p in model.parameters()) == 4 * 5 + 5


@pytest.mark.parametrize("name", ["d_in", "n_classes"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        TemplateConfig(**{name: 0})


def test_inputs_of_another_width_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(b, 2\)"):
        Template(TemplateConfig())(torch.zeros(2, 3))
