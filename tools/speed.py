"""The page of speed, from bench/results.json: what `make bench` measured, and nothing else."""

import json
from collections.abc import Mapping
from typing import Any

from chapters import ROOT

OURS, FAST = "ours", "ours, fast"
PAPERS = ("vit", "gpt", "mae", "ddpm", "clip", "transformer")
PARTS = (*PAPERS, "masking", "generation", "sampling", "growth", "loop")
INTRO = """\
# Speed

Our modules beside the reference implementations: the same weights, the same batch, the same machine, in one run. Before
anything is timed, loss and all gradients are shown to be equal, text and images to be the same. Contenders then take turns,
round by round, so that a machine that is slow for a while is so for all; what is shown is the median, in parentheses the
quartiles. A ratio is taken within each round, and over 1 ours is the faster. `make bench` measures everything again, `make
bench NAME=vit` a part of it; this page is made of `bench/results.json` by `make sync`.

*Ours* is the module as the chapters build it, trained as `paperwalk train --precision fp32` does, with the fused AdamW; the
references have AdamW as torch gives it by default, and as they themselves use it. *Ours, fast* is what `paperwalk train` does
by default: the same with the precision of matrix products that is fastest here, and with torch.compile where the trial in its
first steps finds that it pays (marked *compiled*). *Share of peak* is the FLOPs on paper (three forward passes; matrix
products only), a second, over those of a product of two matrices of 2048 x 2048 in single precision; a convolution may need
fewer than are counted. *Memory* is the most that a step takes beyond the weights, in a fresh process: gradients, the
optimiser's moments, activations. What is freed goes back to the system at once there, so that the layout of the heap, which
differs from run to run, does not count. nanoGPT is its model made of transformers' GPT-2, as in
`paperwalk.experiments.nanogpt`: exact GELU, no biases learned.

"""


def speed() -> str:
    """The page of what was measured."""
    path = ROOT / "bench" / "results.json"
    return page(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})


def page(results: Mapping[str, Any]) -> str:
    """The page of these results: what was measured, and at the end what was not."""
    parts = [
        ("Training step", "".join(one(results, paper, training) for paper in PAPERS)),
        ("What masking saves", one(results, "masking", masking)),
        ("Writing with a cache", one(results, "generation", generation)),
        ("Images out of noise", one(results, "sampling", sampling)),
        ("How the cost grows", one(results, "growth", growth)),
        ("The training loop", one(results, "loop", loop)),
        ("Where the numbers come from", origins(results)),
    ]
    text = "\n\n".join(f"## {title}\n\n{text.rstrip()}" for title, text in parts if text)
    missing = [f"`make bench NAME={part}`" for part in PARTS if part not in results]
    return INTRO + text + "\n" + (f"\nNot measured yet: {', '.join(missing)}.\n" if missing else "")


def one(results: Mapping[str, Any], part: str, say: Any) -> str:
    """A part, if it was measured."""
    title = f"### {part}\n\n" if part in PAPERS else ""
    return title + say(results[part]) if part in results else ""


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Rows of cells as Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n\n"


def ratio(spread: list[float]) -> str:
    """A ratio with its quartiles."""
    middle, low, high = spread
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def rate(n: float, seconds: list[float]) -> str:
    """So many a second."""
    found = n / seconds[0]
    return f"{found:,.0f}" if found >= 100 else f"{found:.1f}"


def spread_of(seconds: list[float]) -> str:
    """The least and the most."""
    return f"{min(seconds):.0f} to {max(seconds):.0f}"


def fastest(found: Mapping[str, Any]) -> str:
    """The reference whose median is least."""
    others = {name: each for name, each in found["seconds"].items() if name not in (OURS, FAST)}
    return min(others, key=lambda name: others[name][0])


def megabytes(found: Mapping[str, Any], name: str) -> str:
    """The memory of a contender's step."""
    return f"{found['bytes'][name] / 1e6:,.0f} MB" if name in found["bytes"] else "not known"


def training(part: Mapping[str, Any]) -> str:
    """A paper's training step: the ratios to the fastest reference, then each contender."""
    unit, peak = part["unit"], part["machine"]["peak"]["fp32"]
    titles = ["size", "fastest reference", "ours, times as fast", "ours, fast, times as fast", "memory: ours", "theirs"]
    ratios, rates, sizes = [], [], []
    for size, found in part["sizes"].items():
        best, quotients = fastest(found), found["times as fast"]
        both = [ratio(quotients[ours][best]) for ours in (OURS, FAST)]
        ratios.append([size, best, *both, megabytes(found, OURS), megabytes(found, best)])
        for name, seconds in found["seconds"].items():
            share = f"{found['flops'] / seconds[0] / peak:.0%}"
            marked = f"{name}, compiled" if name == FAST and found.get("compiled") else name
            rates.append([size, marked, rate(found["items"], seconds), f"{1e3 * seconds[0]:.0f} ms", share])
        config = ", ".join(f"{name} {each}" for name, each in found["config"].items() if isinstance(each, int | list))
        sizes.append(f"- {size}: batch {found['batch']}, {config}")
    details = table(["size", "contender", f"{unit} a second", "a step", "share of peak"], rates)
    untried = [size for size, found in part["sizes"].items() if "compiled" not in found]
    without = f"Measured without the trial of torch.compile: {', '.join(untried)}.\n\n" if untried else ""
    return table(titles, ratios) + details + without + "\n".join(sizes) + "\n\n"


def masking(part: Mapping[str, Any]) -> str:
    """The encoder with most patches hidden, beside none."""
    (hidden, against), flops = next(iter(part["times as fast"].items())), part["flops"]
    rows = [[every, ratio(each), f"{flops[every] / flops[hidden]:.2f}"] for every, each in against.items()]
    text = f"Forward and backward pass of the middle MAE's encoder with {hidden} of the patches hidden.\n\n"
    return text + table(["beside", "times as fast", "foretold by FLOPs"], rows)


def generation(part: Mapping[str, Any]) -> str:
    """Tokens a second, and the limit of the memory."""
    rows = []
    for case, found in part["cases"].items():
        for name, seconds in found["seconds"].items():
            against = found["times as fast"].get(name)
            limit = found["limits"][name]
            share = f"{found['tokens'] / seconds[0] / limit:.0%}"
            quotient = ratio(against["transformers"]) if against else ""
            rows.append([case, name, rate(found["tokens"], seconds), quotient, f"{limit:,.0f}", share])
    text = (
        "The likeliest token each time, with a cache of keys and values; the same text from ours and theirs. A step reads all "
        "weights once for the whole batch: the limit is how often a second this machine reads that many bytes, measured as "
        "products of matrices that large with a vector. Compiled: `model.encode = torch.compile(model.encode)`, which took "
        f"{spread_of([found['compiling'] for found in part['cases'].values()])} seconds at the first call.\n\n"
    )
    titles = [
        "model",
        "contender",
        "tokens a second",
        "times as fast as transformers",
        "limit by memory",
        "share of it",
    ]
    return text + table(titles, rows)


def sampling(part: Mapping[str, Any]) -> str:
    """Milliseconds a step of each sampler."""
    rows = []
    for sampler, found in part["samplers"].items():
        steps = [f"{1e3 * found['seconds'][name][0] / found['steps']:.1f} ms" for name in (OURS, "diffusers")]
        rows.append([f"{sampler}, {found['steps']} steps", *steps, ratio(found["times as fast"][OURS]["diffusers"])])
    text = f"The middle U-Net of DDPM, {part['batch']} images at once, the samplers of both libraries; the same images.\n\n"
    return text + table(["sampler", "ours, a step", "diffusers, a step", "times as fast"], rows)


def growth(part: Mapping[str, Any]) -> str:
    """The figure, and what the ends of each axis say."""
    alt = "Seconds a training step against tokens, width, batch and depth, each beside a dashed line of the FLOPs on paper."
    rows = []
    for axis, points in part["axes"].items():
        first, last = points[0], points[-1]
        grown = [
            last["value"] / first["value"],
            last["seconds"][0] / first["seconds"][0],
            last["flops"] / first["flops"],
        ]
        rows.append([f"{axis}, {first['value']} to {last['value']}", *(f"{each:.1f}" for each in grown)])
    text = (
        "A training step of our ViT, one size changed at a time. Dashed: the FLOPs on paper, done as fast as at the size in "
        "the middle. Where the line is above the points, larger sizes use the machine better; the other way round it works on "
        "what no FLOP count sees, or memory is in the way.\n\n"
    )
    return f"{text}![{alt}](../bench/growth.svg)\n\n" + table(["axis", "times", "time grew by", "FLOPs by"], rows)


def loop(part: Mapping[str, Any]) -> str:
    """`paperwalk train` beside the bare loop, and what the data cost."""
    quotient = ratio(part["times as fast"])
    rates = [[name, rate(part["images"], seconds)] for name, seconds in part["seconds"].items()]
    text = (
        "The ViT chapter's model on MNIST, batches of 128, single precision. The bare loop is the chapter's: images that lie in "
        "memory normalised, gradients clipped, a schedule. `paperwalk train` also draws its batches from bytes, watches for "
        f"signals and numbers that are not finite, logs, and writes its state. Over {part['turns']} turns of each, "
        f"all together, it is {quotient} times as fast (in parentheses the 95 % interval); share of its time that batches "
        f"took: {part['waited']:.1%}.\n\n"
    )
    waits = [
        [
            f"`{each['recipe']}`",
            f"{1e3 * each['seconds'] / each['steps']:.0f} ms",
            f"{each['waited'] / each['seconds']:.1%}",
        ]
        for each in part["recipes"]
    ]
    waiting = "What each paper's recipe waits for its data, on a processor, where they are made between two steps:\n\n"
    text += table(["loop", "images a second"], rates) + waiting
    return text + table(["recipe", "a step", "share of time that batches took"], waits)


def origins(results: Mapping[str, Any]) -> str:
    """Machine, versions and commit of each part."""
    lines = []
    for part in results.values():
        peaks = ", ".join(f"{kind} {flops / 1e9:,.0f}" for kind, flops in part["machine"]["peak"].items())
        versions = ", ".join(f"{library} {number}" for library, number in part["versions"].items())
        lines.append(
            f"- `{part['command']}`: {part['hardware']}; {part['rounds']} rounds; peak in GFLOPs a second: {peaks}; "
            f"precision chosen: {part['machine']['precision']}; {versions}; commit {part['commit']}; {part['date']}"
        )
    return "\n".join(lines)
