"""The command line: measure the parts named, or all, and write them into results.json."""

import argparse
import json
import re
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch

from bench import measure
from paperwalk.files import write_whole
from paperwalk.train.provenance import provenance
from paperwalk.train.recipes import one_of

RESULTS = Path(__file__).with_name("results.json")
PARTS = ("vit", "gpt", "mae", "ddpm", "clip", "transformer", "masking", "generation", "sampling", "growth", "loop")
LIBRARIES = ("timm", "transformers", "diffusers", "open-clip-torch")


def measure_part(part: str, rounds: int) -> dict[str, object]:
    """What a part measured, and where."""
    torch.manual_seed(0)
    found = {"machine": measure.machine(), "rounds": rounds, "threads": torch.get_num_threads()}
    about = provenance(f"make bench NAME={part}", seed=0, data={})
    about["versions"] |= {library: version(library) for library in LIBRARIES}
    return about | found | import_module(f"bench.{part}").measure(rounds)


def store(part: str, found: dict[str, object], path: Path = RESULTS) -> None:
    """Put a part into the file, the others as they are."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    merged = results | {part: json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.5g}"))}
    ordered = {name: merged[name] for name in PARTS if name in merged}
    # A list a line.
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(ordered, indent=1))
    write_whole(path.parent, {path.name: text + "\n"})


def main(*parts: str, arguments: Sequence[str] | None = None) -> None:
    """Measure; `parts` are those of a file that was run by itself."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__.splitlines()[0])
    if not parts:
        parser.add_argument(
            "parts", nargs="*", metavar="PART", help=f"one or more of {', '.join(PARTS)}; all by default"
        )
    parser.add_argument("--rounds", type=int, default=7, help="in each of which every contender runs once")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    options = parser.parse_args(arguments)
    try:
        chosen = [one_of("part", part, PARTS) for part in parts or options.parts or PARTS]
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(options.threads)
    for part in chosen:
        start = time.perf_counter()
        store(part, measure_part(part, options.rounds))
        print(f"{part}: measured in {time.perf_counter() - start:.0f} s", flush=True)
