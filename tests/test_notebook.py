import sys
import time
import types

import matplotlib as mpl
import pytest
import torch

from paperwalk.notebook import checkpoint, glue, milliseconds, progress
from paperwalk.plot import COLOURS, show_images, use_style


@pytest.fixture
def pyplot():
    with mpl.rc_context():
        mpl.use("agg")
        import matplotlib.pyplot as plt

        yield plt
        plt.close("all")


def test_progress_passes_the_items_on_and_ends_as_one_line(capsys):
    assert list(progress([3, 1, 2], "training")) == [3, 1, 2]
    out, err = capsys.readouterr()
    last = out.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("training: 100% |")
    assert "3/3" in last
    assert out.endswith("\n")
    assert out.count("\n") == 1
    assert err == ""


def test_milliseconds_is_the_median_without_the_first_call(monkeypatch):
    calls, clock = [], iter([0.0, 0.003, 1.0, 1.5, 2.0, 2.004])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert milliseconds(lambda: calls.append(1), repeats=3) == pytest.approx(4.0)
    assert len(calls) == 4


def test_glue_prints_and_hands_over(capsys, monkeypatch):
    glued = []
    module = types.SimpleNamespace(glue=lambda name, value, display: glued.append((name, value, display)))
    monkeypatch.setitem(sys.modules, "myst_nb", module)
    glue(accuracy=0.123456, steps=1300, name="vit")
    assert capsys.readouterr().out == "accuracy = 0.1235\nsteps = 1300\nname = vit\n"
    assert glued == [("accuracy", 0.123456, False), ("steps", 1300, False), ("name", "vit", False)]
    monkeypatch.setitem(sys.modules, "myst_nb", None)
    glue(steps=7)
    assert capsys.readouterr().out == "steps = 7\n"


def test_style_is_the_books(pyplot):
    use_style()
    assert pyplot.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS)
    assert not pyplot.rcParams["axes.spines.top"]


@pytest.mark.parametrize(
    ("channels", "n", "columns", "grid"), [(1, 5, 3, (2, 3)), (3, 2, 8, (1, 2)), (3, 4, 2, (2, 2))]
)
def test_images_are_shown_in_a_grid(channels, n, columns, grid, pyplot):
    images = torch.rand(n, channels, 4, 6)
    titles = [f"image {i}" for i in range(n)]
    figure = show_images(images, titles=titles, columns=columns, side=2.0, vmin=0, vmax=1)
    axes = figure.axes
    assert len(axes) == grid[0] * grid[1]
    assert tuple(figure.get_size_inches()) == pytest.approx((2.0 * grid[1], 2.5 * grid[0]))
    for i in range(n):
        shown = axes[i].get_images()[0]
        expected = images[i, 0] if channels == 1 else images[i].permute(1, 2, 0)
        assert torch.equal(torch.as_tensor(shown.get_array().data), expected)
        assert axes[i].get_title() == titles[i]
        assert shown.get_cmap().name == "gray" or channels == 3
    assert not any(axis.get_images() for axis in axes[n:])
    assert not any(axis.axison for axis in axes)
    figure.canvas.draw()


def test_a_checkpoint_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="no checkpoint 'none-such'"):
        checkpoint("none-such")
