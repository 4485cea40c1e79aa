import math
from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor, nn

from paperwalk.nn import MultiHeadAttention, attention
from paperwalk.published.vit import TIMM, our_names
from paperwalk.testing import Ladder, Rung, prove, refuses, relative_error
from paperwalk.vit import ViT, ViTConfig

SMALL = ViTConfig(image_size=8, patch_size=4, n_classes=5, d_model=12, n_layers=2, n_heads=3, d_mlp=24)


def qkv() -> list[Tensor]:
    return [torch.randn(2, 3, 5, 4) for _ in range(3)]


def wrong_axis(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 2).softmax(dim=-2) @ v


def no_square_root(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / 4).softmax(dim=-1) @ v


def no_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(dim=-1) @ v


def one_head_permuted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v)[:, [1, 0, 2]]


def queries_and_keys_swapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(k, q, v)


def not_a_number(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k, v) * float("nan")


def one_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = attention(q, k, v)
    return torch.where(torch.arange(4) == 3, math.inf, out)


@pytest.mark.parametrize(
    "wrong",
    [wrong_axis, no_square_root, no_scale, one_head_permuted, queries_and_keys_swapped, not_a_number, one_infinity],
)
def test_wrong_output_is_red(wrong):
    inputs = qkv()
    prove("attention", "itself", attention, attention, *inputs)
    for pair in ((wrong, attention), (attention, wrong)):
        with pytest.raises(AssertionError, match="right against wrong: outputs differ by"):
            prove("right", "wrong", *pair, *inputs)


def test_nan_on_both_sides_is_red():
    for wrong in (not_a_number, one_infinity):
        with pytest.raises(AssertionError, match="outputs differ by inf"):
            prove("a", "b", wrong, wrong, *qkv())


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.999, math.nan, math.inf])
@pytest.mark.parametrize("which", range(3))
def test_wrong_gradient_of_an_input_is_red(factor, which):
    def wrong(*inputs):
        return attention(*(Scaled.apply(x, factor) if i == which else x for i, x in enumerate(inputs)))

    inputs = qkv()
    for pair in ((wrong, attention), (attention, wrong)):
        with pytest.raises(AssertionError, match=f"gradients of input {which} differ by"):
            prove("a", "b", *pair, *inputs)


def test_detached_input_is_red():
    with pytest.raises(AssertionError, match="gradients of input 1 differ by 1"):
        prove("a", "b", lambda q, k, v: attention(q, k.detach(), v), attention, *qkv())


def climb(ours: nn.Module, randomise) -> Rung:
    from timm.models.vision_transformer import VisionTransformer

    theirs = randomise(VisionTransformer(8, 4, 3, 5, embed_dim=12, depth=2, num_heads=3, mlp_ratio=2))
    return prove("ViT", "timm", ours, theirs, torch.randn(2, 3, 8, 8), convert=lambda t: our_names(t, TIMM))


def without_class_position(model: ViT) -> None:
    mask = torch.ones(5, 1)
    mask[0] = 0
    model.positions.forward = lambda: model.positions.weight * mask


def with_detached_class_token(model: ViT) -> None:
    embed, token = model.embed, model.class_token
    model.embed = lambda x: embed(x) - (torch.arange(5)[:, None] == 0) * (token - token.detach())


def with_detached_residual(model: ViT) -> None:
    block = model.blocks[1]
    block.forward = lambda x: type(block).forward(block, x) - x + x.detach()


def with_swapped_projections(model: ViT) -> None:
    module: MultiHeadAttention = model.blocks[0].attention
    module.project = lambda *inputs: [MultiHeadAttention.project(module, *inputs)[i] for i in (1, 0, 2)]


def without_last_norm(model: ViT) -> None:
    model.norm.forward = lambda x: x


def with_patches_by_column(model: ViT) -> None:
    embed = model.patch_embedding
    embed.forward = lambda x: type(embed).forward(embed, x.mT)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_class_position, "outputs differ"),
        (with_swapped_projections, "outputs differ"),
        (without_last_norm, "outputs differ"),
        (with_patches_by_column, "outputs differ"),
        (with_detached_class_token, "gradients of class_token differ by 1"),
        (with_detached_residual, "gradients of .* differ"),
    ],
)
def test_spoilt_model_is_red(spoil, message, randomise):
    ours = ViT(SMALL)
    assert climb(ours, randomise).n_gradients == 1 + len(list(ours.parameters()))
    spoil(ours)
    with pytest.raises(AssertionError, match=f"ViT against timm: {message}"):
        climb(ours, randomise)


def test_weights_are_loaded_and_shared_ones_compared():
    ours, theirs = nn.Linear(3, 4), nn.Linear(3, 4)
    x = torch.randn(2, 3)
    assert prove("a", "b", ours, theirs, x, convert=dict).n_gradients == 3
    assert torch.equal(ours.weight, theirs.weight)
    assert prove("a", "b", ours, lambda x: x @ ours.weight.T + ours.bias, x, shared=ours).n_gradients == 3
    assert (
        prove("a", "b", ours, lambda x: (x @ ours.weight.T + ours.bias)[None], x, read=lambda y: y[0]).n_gradients == 1
    )
    with pytest.raises(AssertionError, match="gradients of weight differ by 1"):
        prove("a", "b", ours, lambda x: x @ ours.weight.detach().T + ours.bias, x, shared=ours)


def test_inputs_are_left_alone():
    x, index = torch.randn(4, 3), torch.tensor([2, 0])
    before = x.clone()

    def careless(x, i):
        out = 2 * x[i.clone()]
        i.zero_()
        return out

    assert prove("a", "b", careless, lambda x, i: 2 * x[i], x, index).n_gradients == 1
    assert index.tolist() == [2, 0]
    assert torch.equal(x, before)
    assert x.grad is None


def test_tolerance_is_the_line():
    def close(x):
        return x * (1 + 1e-3)

    x = torch.randn(5)
    rung = prove("a", "b", close, lambda x: x * 1, x, output_tolerance=2e-3, gradient_tolerance=2e-3)
    assert rung.output_error == pytest.approx(1e-3, rel=0.01)
    assert rung.gradient_error == pytest.approx(1e-3, rel=0.01)
    with pytest.raises(AssertionError, match=r"outputs differ by 1\.0e-03, allowed 5e-04"):
        prove("a", "b", close, lambda x: x * 1, x, output_tolerance=5e-4, gradient_tolerance=1.0)
    with pytest.raises(AssertionError, match=r"gradients of input 0 differ by 1\.0e-03, allowed 5e-04"):
        prove("a", "b", close, lambda x: x * 1, x, output_tolerance=1.0, gradient_tolerance=5e-4)


def test_relative_error():
    assert relative_error(torch.tensor([1.0, 2.2]), torch.tensor([1.0, -2.0])) == pytest.approx(2.1)
    assert relative_error(torch.tensor([0.1]), torch.tensor([0.0])) == pytest.approx(0.1)
    assert relative_error(torch.tensor([0.1]), torch.tensor([0.0]), scale=10.0) == pytest.approx(0.01)
    assert relative_error(torch.tensor([math.nan]), torch.tensor([1.0])) == math.inf
    assert relative_error(torch.tensor([1.0]), torch.tensor([math.inf])) == math.inf
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "message"),
    [
        (lambda x: x[:1] * 1, lambda x: x * 1, {}, r"shape \(1, 3\), theirs \(2, 3\)"),
        (nn.Linear(3, 2), nn.Linear(3, 4), {"convert": dict}, r"weight has shape \(4, 3\), expected \(2, 3\)"),
        (nn.Linear(3, 2, bias=False), nn.Linear(3, 2), {"convert": dict}, "left over bias"),
        (nn.Linear(3, 2), nn.Linear(3, 2, bias=False), {"convert": dict}, "missing bias"),
        (lambda x: x.detach(), lambda x: x * 1, {}, "no gradient to compare"),
        (lambda x: x * 1, lambda x: x.detach(), {}, "no gradient to compare"),
    ],
)
def test_what_cannot_be_compared_is_named(ours, theirs, options, message):
    with pytest.raises(ValueError, match=message):
        prove("a", "b", ours, theirs, torch.randn(2, 3), **options)
    with pytest.raises(ValueError, match="no gradient"):
        prove("a", "b", lambda x: x * 1, lambda x: x * 1, torch.tensor([1, 2]))


class Cells(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.cells: list[str] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_ladder_keeps_and_shows_every_rung():
    ladder = Ladder()
    first = ladder.prove("x < y & z", "itself", attention, attention, *qkv())
    ladder.prove("linear", "torch", nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(1, 3), convert=dict)
    with pytest.raises(AssertionError):
        ladder.prove("red", "wrong", attention, wrong_axis, *qkv())
    assert ladder.rungs[0] == first == Rung("x < y & z", "itself", 0.0, 0.0, 3)
    head, rows = (Cells(part).cells for part in ladder._repr_html_().split("</thead>"))
    assert head == ["block", "proven against", "output error", "gradient error", "gradients compared"]
    assert rows == ["x < y & z", "itself", "0e+00", "0e+00", "3", "linear", "torch", "0e+00", "0e+00", "3"]
    assert repr(ladder) == "Ladder of 2 rungs"


def test_refuses_says_whether_prove_would():
    layer = nn.Linear(4, 4)
    x = torch.randn(2, 4)
    assert not refuses(layer, layer, x, shared=layer)
    assert refuses(layer, lambda x: layer(x) * 1.001, x, shared=layer)
