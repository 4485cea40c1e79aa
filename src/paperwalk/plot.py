"""Figures that more than one chapter draws."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def use_style() -> None:
    """The book's figure style: colours that the colour-blind can tell apart, light grid, no box, white ground."""
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.4),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": mpl.cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "image.cmap": "viridis",
        }
    )


def show_images(
    images: Shaped[Tensor, "b c h w"],
    *,
    titles: Sequence[str] = (),
    columns: int = 8,
    side: float = 1.0,
    **imshow: Any,
) -> Any:
    """A grid of images, one channel in grey, three in colour; returns the figure.

    Args:
        images: float in [0, 1] or uint8; other ranges with `vmin` and `vmax` in `imshow`.
        titles: one an image, or none.
        columns: images in a row.
        side: width of an image, in inches.
    """
    import matplotlib.pyplot as plt

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = side * (1.25 if titles else 1.0)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * side, rows * height), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        grey = {"cmap": "gray"} if len(image) == 1 else {}
        axis.imshow(image.permute(1, 2, 0).squeeze(-1).detach().cpu().numpy(), **grey | imshow)
        if titles:
            axis.set_title(titles[i], fontsize=9)
    return figure
