"""What to read first, as the chapters say it in their fronts, and a small map of it for the front page."""

import re
from html import escape

from chapters import chapters

# The sentence of a front that names what comes before: "Read the [einops primer](einops.md); …".
FIRST = re.compile(r"^Read .*?\.\s", re.MULTILINE | re.DOTALL)
WIDTH, HEIGHT, ACROSS, DOWN = 120, 34, 150, 70


def needs() -> dict[str, set[str]]:
    """The chapters that each chapter wants read before it; what those want themselves is not repeated."""
    named = {}
    for path in chapters():
        sentence = FIRST.search(path.read_text(encoding="utf-8"))
        named[path.stem] = set(re.findall(r"\]\((\w+)\.md\)", sentence[0])) if sentence else set()

    def before(stem: str) -> set[str]:
        return named[stem].union(*map(before, named[stem]))

    return {stem: first.difference(*map(before, first)) for stem, first in named.items()}


def svg() -> str:
    """The map: a row for each step of the way, a link for each chapter, a line from what comes first."""
    first = needs()

    def depth(stem: str) -> int:
        return max((depth(other) + 1 for other in first[stem]), default=0)

    rows: dict[int, list[str]] = {}
    for stem in sorted(first):
        rows.setdefault(depth(stem), []).append(stem)
    widest = max(map(len, rows.values())) * ACROSS
    places = {}
    for row, stems in sorted(rows.items()):
        # A chapter stands below the first of those that it builds on, so that lines cross as little as they can.
        stems.sort(key=lambda stem: min((places[other][0] for other in first[stem]), default=0))
        margin = (widest - len(stems) * ACROSS) / 2 + ACROSS / 2
        places |= {stem: (margin + i * ACROSS, row * DOWN + HEIGHT) for i, stem in enumerate(stems)}
    shapes = []
    for stem, (x, y) in places.items():
        for a, b in (places[other] for other in sorted(first[stem])):
            shapes.append(f'<line x1="{a:.0f}" y1="{b + HEIGHT / 2:.0f}" x2="{x:.0f}" y2="{y - HEIGHT / 2:.0f}"/>')
        shapes.append(
            f'<a href="chapters/{stem}.html"><rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" '
            f'width="{WIDTH}" height="{HEIGHT}" rx="6"/><text x="{x:.0f}" y="{y + 5:.0f}">{escape(stem)}</text></a>'
        )
    said = "; ".join(f"{stem} after {' and '.join(sorted(other))}" for stem, other in first.items() if other)
    size = f'viewBox="0 0 {widest} {len(rows) * DOWN}" width="{widest}"'
    label = escape(f"What to read first: {said}.")
    return f'<svg class="reading-map" role="group" aria-label="{label}" {size}>{"".join(shapes)}</svg>'
