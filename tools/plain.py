"""MyST Markdown rewritten as the plain Markdown that Colab and Jupyter show.

Every role and directive that a chapter may use is here; one that is not is an error, so that none is left raw.
"""

import re
from functools import cache
from pathlib import Path

from pybtex.database import parse_file

BIBLIOGRAPHY = Path(__file__).resolve().parent.parent / "book" / "references.bib"
CALLOUTS = {"note", "tip", "important", "warning", "admonition", "exercise"}
SILENT = {"solution-end"}


@cache
def _bibliography() -> dict[str, str]:
    shown = {}
    for name, entry in parse_file(str(BIBLIOGRAPHY)).entries.items():
        people = [" ".join(person.prelast_names + person.last_names) for person in entry.persons["author"]]
        authors = f"{people[0]} et al." if len(people) > 2 else " and ".join(people)
        text = f"{authors} ({entry.fields['year']})"
        shown[name] = f"[{text}]({entry.fields['url']})" if "url" in entry.fields else text
    return shown


def _role(match: re.Match[str]) -> str:
    name, content = match["name"], match["content"]
    shown = re.sub(r"\s*<[^<>]+>$", "", content)
    if name in ("cite:t", "cite:p", "cite"):
        keys = [key.strip() for key in content.split(",")]
        for key in keys:
            if key not in _bibliography():
                raise ValueError(f"{key} is cited but not in book/references.bib: add it")
        return ", ".join(_bibliography()[key] for key in keys)
    if name == "glue:text":
        return f"`{content.split(':')[0]}`"
    if name in ("doc", "ref", "term"):
        return f"*{shown}*"
    raise ValueError(f"role {{{name}}} is not known to tools/plain.py: teach it, or use another")


def _link(match: re.Match[str], pages: str) -> str:
    # A chapter's notebook lies beside this one; the other pages are read in the repository.
    path = match["path"]
    return f"]({path}.ipynb" if "/" not in path else f"]({pages}/{path.removeprefix('../')}.md"


def _inline(line: str, pages: str) -> str:
    line = re.sub(r"\]\((?P<path>[\w./-]+)\.md(?=[)#])", lambda match: _link(match, pages), line)
    return re.sub(r"\{(?P<name>[\w:-]+)\}`(?P<content>[^`]+)`", _role, line)


def _callout(name: str, argument: str, body: list[str], pages: str) -> list[str]:
    body = [line for line in body if not re.fullmatch(r":[\w-]+:.*", line) and "{run-time" not in line]
    title = argument if name == "admonition" else f"{name.capitalize()}: {argument}" if argument else name.capitalize()
    return [
        "",
        f"> **{title}**",
        ">",
        *(f"> {_inline(line, pages)}".rstrip() for line in "\n".join(body).strip().split("\n")),
        "",
    ]


def plain(text: str, pages: str = "..") -> str:
    """One Markdown cell, without MyST.

    Args:
        text: the cell's source.
        pages: address of the folder book/, for links to pages that are no chapter.

    Raises:
        ValueError: a role or directive that this tool does not know, or one that is not closed.
    """
    lines, out = text.split("\n"), []
    while lines:
        line = lines.pop(0)
        fence = re.fullmatch(r"(?P<marks>:{3,}|`{3,})\{(?P<name>[\w-]+)\}\s*(?P<argument>.*)", line)
        label = re.fullmatch(r"\((?P<label>[\w-]+)\)=", line)
        if fence:
            if fence["marks"] not in lines:
                raise ValueError(f"{line} is not closed")
            end = lines.index(fence["marks"])
            body, lines = lines[:end], lines[end + 1 :]
            if fence["name"] in CALLOUTS:
                out += _callout(fence["name"], fence["argument"], body, pages)
            elif fence["name"] == "solution-start":
                out += ["**Solution**", ""]
            elif fence["name"] not in SILENT:
                raise ValueError(
                    f"directive {{{fence['name']}}} is not known to tools/plain.py: teach it, or use another"
                )
        elif label:
            out.append(f'<a id="{label["label"]}"></a>\n')
        elif re.match(r"%( |$)", line) or "{run-time" in line:
            continue
        elif module := re.fullmatch(r"\{source:(\w+)\}", line):
            path = f"src/paperwalk/{module[1]}.py"
            out.append(f"The finished module: [{path}]({pages.removesuffix('/book')}/{path}).")
        else:
            out.append(_inline(line, pages))
    left = re.search(r"^\s*(?::{3,}|`{3,})\{.*|^\$\$ *\(.*", "\n".join(out), re.MULTILINE)
    if left:
        raise ValueError(f"{left[0].strip()!r} cannot be rewritten here: put it at the left margin, without a label")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip("\n")
