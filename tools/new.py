"""`make new NAME=…`: a chapter, its module and its test, which run and pass; their text waits to be replaced."""

import argparse
import keyword
import re
import sys
from pathlib import Path

import sync
from chapters import CHAPTERS, ROOT, SOURCE, ChapterError
from paperwalk.files import write_whole

TEMPLATE = Path(__file__).parent / "template"


def check_name(name: str) -> None:
    """Raises ChapterError: a name that cannot be a module, or that is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ChapterError(f"{name!r} cannot be a module: small letters, digits and _, a letter first")
    taken = [SOURCE / "paperwalk" / name, *files(name)]
    for path in taken:
        if path.exists():
            raise ChapterError(f"{path.relative_to(ROOT)} exists: choose another name, or remove it first")


def files(name: str) -> dict[Path, str]:
    """Where each file goes, and what stands in it."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    # A label must not have an underscore, which the links from code to equations do not know.
    label = name.replace("_", "-")

    def filled(template: str) -> str:
        text = (TEMPLATE / template).read_text(encoding="utf-8").replace("TITLE", f"{camel} (TODO: the paper's title)")
        text = re.sub(r"\b(eq|ex)-template", rf"\1-{label}", text)
        text = text.replace("Template", camel).replace("paperwalk.template", f"paperwalk.{name}")
        text = text.replace("{source:template}", f"{{source:{name}}}")
        # Where the module's import stands among the others depends on its name.
        imports = re.compile(r"(?:^from paperwalk.*\n)+", re.MULTILINE)
        return imports.sub(lambda block: "".join(sorted(block[0].splitlines(keepends=True))), text)

    return {
        CHAPTERS / f"{name}.md": filled("chapter.md"),
        SOURCE / "paperwalk" / f"{name}.py": filled("module.py"),
        ROOT / "tests" / f"test_{name}.py": filled("test.py"),
    }


def insert(path: Path, pattern: str, line: str) -> None:
    """Put a line after the last one that the pattern matches.

    Raises:
        ChapterError: no line does.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    places = [i for i, text in enumerate(lines) if re.search(pattern, text)]
    if not places:
        raise ChapterError(f"{path.relative_to(ROOT)} has no line {pattern!r} to put {line!r} below: add it by hand")
    lines.insert(places[-1] + 1, line)
    write_whole(path.parent, {path.name: "\n".join(lines)})


def main() -> None:
    """Write the files, list the chapter, run it once for its reference outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the stem of everything of the paper, such as vit")
    name = parser.parse_args().name
    check_name(name)
    for path, text in files(name).items():
        sync.write(path, text)
        print(f"wrote {path.relative_to(ROOT)}")
    insert(ROOT / "_toc.yml", r"file: book/chapters/", f"  - file: book/chapters/{name}")
    row = f"| [{name}](chapters/{name}.md) | TODO | `{name}` | TODO | TODO | {{run-time:{name}}} |"
    insert(ROOT / "book" / "index.md", r"\{run-time:", row)
    insert(ROOT / "README.md", r"^\| .* \| `paperwalk\.", f"| {name} | `paperwalk.{name}` | TODO |")
    print("listed it in _toc.yml, book/index.md and README.md")
    sync.update([name])
    print(f"it runs; now search for TODO in it, and after each change: make lint, make refs NAME={name}, make test")


if __name__ == "__main__":
    try:
        main()
    except (ChapterError, ValueError) as error:
        sys.exit(str(error))
