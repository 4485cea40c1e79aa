"""Sphinx extension of the book: links that the theme gets wrong, equations linked from code, run times."""

import os
import re
from pathlib import PurePosixPath
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


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


def _run_time(app: Sphinx, chapter: str | None, page: str) -> str:
    # `{run-time}` is that of the page itself, `{run-time:vit}` that of a chapter.
    name = f"book/chapters/{chapter}" if chapter else page
    seconds = app.env.nb_metadata.get(name, {}).get("exec_data", {}).get("runtime")
    if seconds is None:
        LOGGER.warning("no measured run time of %s", name, location=page)
        return "not measured"
    return f"{seconds:.0f} s"


def _finish_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    # sphinx-thebe declares a constant twice, a script error on every page; live code is Colab's part.
    context["script_files"] = [
        f for f in context.get("script_files", []) if "thebe" not in str(getattr(f, "filename", f))
    ]
    if doctree is None:
        return
    _colab(context, page, _repository(app))
    body = _link_equations(context["body"], page)
    _check_images(body, page)
    context["body"] = re.sub(r"\{run-time(?::([\w-]+))?\}", lambda m: _run_time(app, m[1], page), body)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the hook; late, so that the theme has made its buttons."""
    app.connect("html-page-context", _finish_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
