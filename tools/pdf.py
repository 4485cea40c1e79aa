"""`make pdf`: each chapter as a PDF file, with outline and page numbers, printed by a browser from the built site."""

import sys
from pathlib import Path
from typing import Any

import browser
from build import HTML
from chapters import ROOT, chapters

PDF = ROOT / "_build" / "pdf"
FOOTER = """<div style="width: 100%; font-size: 8px; text-align: center">
<span class="title"></span> · <span class="pageNumber"></span> / <span class="totalPages"></span></div>"""
# Pictures further down are fetched when one scrolls to them, and formulas are set after the page has come.
READY = """async () => {
  const pictures = [...document.images];
  pictures.forEach(picture => (picture.loading = 'eager'));
  await Promise.all(pictures.map(picture => picture.decode()));
  await window.MathJax?.startup?.promise;
}"""


def write(chromium: Any, pages: list[Path], folder: Path) -> list[Path]:
    """Print HTML files as PDF files of the same names; returns those.

    Args:
        chromium: a browser that playwright has started.

    Raises:
        FileNotFoundError: a page is not built.
    """
    written = []
    for page in pages:
        if not page.is_file():
            raise FileNotFoundError(f"{page.name} is not built: run `make book`")
        view = chromium.new_page(color_scheme="light")
        view.goto(page.as_uri())
        view.evaluate(READY)
        written.append(folder / f"{page.stem}.pdf")
        view.pdf(
            path=written[-1],
            format="A4",
            scale=0.85,
            margin={"top": "15mm", "right": "15mm", "bottom": "18mm", "left": "15mm"},
            print_background=True,
            display_header_footer=True,
            header_template="<div></div>",
            footer_template=FOOTER,
            outline=True,
            tagged=True,
        )
        view.close()
    return written


def main() -> None:
    """Print all chapters."""
    from playwright.sync_api import sync_playwright

    program = browser.find()
    if program is None:
        sys.exit("make pdf: no browser here: install Chromium, or run `python tools/browser.py`")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--disable-gpu"])
        for file in write(chromium, [HTML / "book" / "chapters" / f"{path.stem}.html" for path in chapters()], PDF):
            print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1e6:.1f} MB")
        chromium.close()


if __name__ == "__main__":
    main()
