"""Sphinx extension of the book: mends the theme, links equations from code, says run times and what to read first."""

import json
import os
import platform
import re
from pathlib import Path, PurePosixPath
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

import reading

LOGGER = logging.getLogger(__name__)
# What a screen reader would be told wrongly.
MENDED = {
    # The fold says "Show code cell source"; the name that myst-nb gives it hides that.
    '<summary aria-label="Toggle hidden content">': "<summary>",
    # Entries are no items of a list since their role was withdrawn; both roles come from docutils.
    '<div role="list" class="citation-list">': '<div class="citation-list">',
    ' role="doc-biblioentry"': "",
}


def _repository(app: Sphinx) -> tuple[str, str]:
    options = app.config.html_theme_options
    slug = options["repository_url"].removeprefix("https://github.com/")
    # A pull request's ref is no branch that Colab could open.
    ref = os.environ.get("GITHUB_REF", "")
    branch = ref.removeprefix("refs/heads/") if ref.startswith("refs/heads/") else options["repository_branch"]
    return os.environ.get("GITHUB_REPOSITORY", slug), branch


def _colab(context: dict[str, Any], page: str, repository: tuple[str, str]) -> None:
    # The theme links the .md, which Colab cannot open; the chapter's ipynb is in notebooks/.
    slug, branch = repository
    url = f"https://colab.research.google.com/github/{slug}/blob/{branch}/notebooks/{PurePosixPath(page).name}.ipynb"
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if "colab" in button.get("url", ""):
                button["url"] = url


def _link_equations(body: str, page: str) -> str:
    # In code, `# (eq-vit-1)` becomes a link to the equation of that label on the same page.
    def link(match: re.Match[str]) -> str:
        label = match[1]
        if f'id="{label}"' not in body:
            LOGGER.warning("code comment names equation %s, which the page does not have", label, location=page)
        return f'<a class="equation-link" href="#{label}">({label})</a>'

    comment = re.compile(r'<span class="c1">[^<]*</span>')
    return comment.sub(lambda match: re.sub(r"\((eq-[\w-]+)\)", link, match[0]), body)


def _check_images(body: str, page: str) -> None:
    for image in re.findall(r"<img [^>]*>", body):
        alt = re.search(r'alt="([^"]*)"', image)
        if not alt or not alt[1].strip() or "_images/" in alt[1]:
            LOGGER.warning("figure without alt text: %s", image[:120], location=page)


def _seconds(app: Sphinx, page: str) -> float | None:
    return app.env.nb_metadata.get(page, {}).get("exec_data", {}).get("runtime")


def _memory(app: Sphinx, page: str) -> str:
    # What tools/build.py measured; empty for a page that something else executed.
    path = Path(app.srcdir, "_build", "executed", "peaks.json")
    peaks = json.loads(path.read_text()) if path.exists() else {}
    peak = peaks.get(PurePosixPath(page).name)
    return f"{peak / 1e9:.1f} GB" if peak else ""


def _run_time(app: Sphinx, chapter: str | None, page: str) -> str:
    # `{run-time:vit}` is that of a chapter; `{run-time}` is that of the page itself, with its memory.
    seconds = _seconds(app, f"book/chapters/{chapter}" if chapter else page)
    if seconds is None:
        LOGGER.warning("no measured run time of %s", chapter or page, location=page)
        return "not measured"
    memory = "" if chapter else _memory(app, page)
    return f"{seconds:.0f} s" + (f" and {memory} of memory" if memory else "")


def _run_times(app: Sphinx) -> str:
    # The table of the page of run times, the longest first.
    measured = {page: seconds for page in app.env.nb_metadata if (seconds := _seconds(app, page))}
    rows = "".join(
        f'<tr><td><a href="chapters/{PurePosixPath(page).name}.html">{app.env.titles[page].astext()}</a></td>'
        f"<td>{seconds:.0f} s</td><td>{_memory(app, page)}</td></tr>"
        for page, seconds in sorted(measured.items(), key=lambda item: -item[1])
    )
    machine = f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    head = "<thead><tr><th>chapter</th><th>time</th><th>memory, at most</th></tr></thead>"
    total = f"<p>{sum(measured.values()):.0f} s in all, on one thread each ({machine}).</p>"
    return f'<table class="table run-times">{head}<tbody>{rows}</tbody></table>{total}'


def _source(app: Sphinx, name: str) -> str:
    # The finished module, folded.
    code = (Path(app.srcdir) / "src" / "paperwalk" / f"{name}.py").read_text(encoding="utf-8")
    shown = app.builder.highlighter.highlight_block(code, "python")
    summary = f"<summary>The finished module, <code>src/paperwalk/{name}.py</code></summary>"
    return f'<details class="module-source">{summary}{shown}</details>'


def _neighbours(app: Sphinx, page: str) -> str:
    # Where to go from a chapter, by what needs what; the theme's own links follow the table of contents.
    first, stem = reading.needs(), PurePosixPath(page).name
    ways = {"Builds on": first[stem], "Leads to": {other for other, needed in first.items() if stem in needed}}

    def links(stems: set[str]) -> str:
        return ", ".join(
            f'<a href="{other}.html">{app.env.titles[f"book/chapters/{other}"].astext()}</a>' for other in sorted(stems)
        )

    said = "".join(f"<p>{way}: {links(stems)}</p>" for way, stems in ways.items() if stems)
    return f'<nav class="neighbours" aria-label="What to read before and after">{said}</nav>'


def _finish_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    # sphinx-thebe declares a constant twice, a script error on every page; live code is Colab's part.
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if "thebe" not in str(file)]
    if doctree is None:
        return
    _colab(context, page, _repository(app))
    body = _link_equations(context["body"], page)
    for theirs, ours in MENDED.items():
        body = body.replace(theirs, ours)
    _check_images(body, page)
    body = re.sub(r"\{run-time(?::([\w-]+))?\}", lambda m: _run_time(app, m[1], page), body)
    body = re.sub(r"<p>\{source:(\w+)\}</p>", lambda m: _source(app, m[1]), body)
    if "<p>{run-times}</p>" in body:
        body = body.replace("<p>{run-times}</p>", _run_times(app))
    if "<p>{reading-map}</p>" in body:
        body = body.replace("<p>{reading-map}</p>", reading.svg())
    if page.startswith("book/chapters/"):
        body += _neighbours(app, page)
    context["body"] = body


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook; late, so that the theme has made its buttons."""
    app.connect("html-page-context", _finish_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
