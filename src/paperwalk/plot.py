"""Figures that more than one chapter draws."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

STYLE = (
    ".paperwalk-slider{margin:1em 0;max-width:100%}"
    ".paperwalk-slider img{max-width:100%;height:auto;background:#fff}"
    ".paperwalk-slider img[hidden]{display:none}"
    ".paperwalk-slider label{display:flex;flex-wrap:wrap;gap:.6em;align-items:center;margin:.4em 0}"
    ".paperwalk-slider input{flex:1 1 8em;max-width:24em;min-height:2em}"
    ".paperwalk-slider output{min-width:4em;font-variant-numeric:tabular-nums}"
    "@media print{.paperwalk-slider input{display:none}}"
)
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


class Slider:
    """Frames of which one is shown, and a slider that chooses it; `slider` makes it, a notebook shows it."""

    def __init__(self, pngs: Sequence[bytes], labels: Sequence[str], alt: str, name: str):
        self.pngs, self.labels, self.alt, self.name = pngs, labels, alt, name

    def __repr__(self) -> str:
        return f"slider of {len(self.pngs)} frames: {self.name}"

    def _repr_html_(self) -> str:
        middle = len(self.pngs) // 2
        images = "".join(
            f'<img data-label="{escape(label)}" alt="{escape(f"{self.alt} {self.name}: {label}.")}" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}"{"" if i == middle else " hidden"}>'
            for i, (png, label) in enumerate(zip(self.pngs, self.labels, strict=True))
        )
        # The handler finds its own figure, so that nothing on the page needs an id and several sliders cannot clash.
        handler = (
            "const all=this.closest('figure').querySelectorAll('img');all.forEach((e,i)=>e.hidden=i!=this.value);"
            "const text=all[this.value].dataset.label;this.setAttribute('aria-valuetext',text);"
            "this.nextElementSibling.value=text"
        )
        return (
            f'<figure class="paperwalk-slider"><style>{STYLE}</style>{images}<figcaption><label>{escape(self.name)} '
            f'<input type="range" min="0" max="{len(self.pngs) - 1}" value="{middle}" step="1" autocomplete="off" '
            f'aria-valuetext="{escape(self.labels[middle])}" oninput="{handler}"><output>{escape(self.labels[middle])}'
            f"</output></label></figcaption></figure>"
        )


def slider(frames: Sequence[Any], labels: Sequence[str], *, alt: str, name: str) -> Slider:
    """A figure that the reader moves: one of the frames is shown, the middle one first, which is also what is printed.

    It is one piece of HTML that needs no network and no kernel; arrow keys move it.

    Args:
        frames: matplotlib figures, which are closed, or images (h w), (h w 3): float in [0, 1] or uint8.
        labels: what the slider says at each frame, such as "75 %".
        alt: what all frames show, in a sentence; each frame's label is added.
        name: what the slider changes, such as "mask ratio".

    Raises:
        ValueError: no frame, another number of labels, frames of different sizes, or an empty `alt` or `name`.
    """
    if len(frames) == 0 or len(frames) != len(labels):
        raise ValueError(f"{len(frames)} frames and {len(labels)} labels, expected as many of each, and at least one")
    if not alt.strip() or not name.strip():
        raise ValueError(f"alt={alt!r} and name={name!r}, expected text in both")
    pngs = [_png(frame) for frame in frames]
    # A PNG's width and height stand in bytes 16 to 24.
    sizes = {(int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) for png in pngs}
    if len(sizes) > 1:
        raise ValueError(f"frames have {len(sizes)} sizes, {sorted(sizes)} in pixels, expected one")
    return Slider(pngs, [str(label) for label in labels], alt.strip(), name.strip())


def _png(frame: Any) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    if isinstance(frame, plt.Figure):
        frame.savefig(buffer, format="png", facecolor="white")
        plt.close(frame)
    else:
        image = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else frame
        # Without vmin and vmax a grey image would be stretched to its own darkest and brightest pixel.
        limits = {"vmin": 0, "vmax": 255 if image.dtype.kind in "iu" else 1}
        plt.imsave(buffer, image, cmap="gray", format="png", **limits)
    return buffer.getvalue()
