"""The pages that are made: the results, from the cards of the checkpoints; the cost of the papers' own sizes; speed."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from chapters import ROOT
from speed import speed

RESULTS = """\
# Results

What the checkpoints that come with the book reach on data they were not trained on, beside what the paper says of its
own models. The table is made by `make sync` from the `card.json` of each folder of `checkpoints/`; a card holds the
command, the seed, the SHA-256 of the data, the versions, the commit, the machine, the loss curve and the figures with
their 95 % intervals (from resampling the test examples). `make test` measures every checkpoint again on a part of the
data. To measure one on all of it: `paperwalk eval checkpoints/NAME`.

"""


class Claim(NamedTuple):
    """What a card cannot know.

    Args:
        paper: title and chapter.
        claim: of the paper.
        theirs: its number.
        headline: the figure of ours to put beside it.
        unit: of our figures.
        setting: data and size of ours.
        why: where and why ours falls short.
    """

    paper: str
    claim: str
    theirs: str
    headline: str
    unit: str
    setting: str
    why: str


CLAIMS = {
    "gpt-moby-dick": Claim(
        "[GPT, GPT-2](chapters/gpt.md)",
        "predicting the next token is enough to learn language",
        "GPT-2 small, WikiText103: perplexity 37.5 a word (Table 3)",
        "loss",
        "nats a character",
        "6 blocks of 384, characters, Moby Dick",
        "Nats a character and perplexity a word cannot be compared; a novel is 30,000 times less text than WebText.",
    ),
    "mae-cifar10": Claim(
        "[MAE](chapters/mae.md)",
        "painting hidden patches teaches an encoder to see, without labels",
        "ViT-L, ImageNet: linear probe 73.5 % (Table 1)",
        "linear probe accuracy",
        "a share",
        "encoder 6 x 192, decoder 2 x 96, CIFAR-10; the loss is the share of each hidden patch's variance that it misses",
        "Another data set, a hundred times fewer parameters, 24 passes instead of 800. A random encoder reaches 0.43: see the chapter.",
    ),
    "transformer-cmudict": Claim(
        "[Transformer](chapters/transformer.md)",
        "attention alone is enough to turn one sequence into another",
        "base, English to German: BLEU 27.3 (Table 2)",
        "phoneme error rate, beam 4",
        "a share",
        "4 + 4 layers of 128, spelling to pronunciation",
        "Another task, which fits two cores: error rates of phonemes and words instead of BLEU.",
    ),
    "vit-cifar10": Claim(
        "[ViT](chapters/vit.md)",
        "patches and attention, hardly anything else, are enough to classify images",
        "ViT-H/14, pre-trained on 300 million images, CIFAR-10: accuracy 99.5 % (Table 2)",
        "accuracy",
        "a share",
        "6 layers of 192, patches of 4 pixels, CIFAR-10 from scratch; the 10,000 test images",
        "No pre-training, 230 times fewer parameters, 24 passes over 50,000 images.",
    ),
    "clip-emoji": Claim(
        "[CLIP](chapters/clip.md)",
        "captions are enough to learn to name things that were never labelled",
        "ViT-L/14 at 336 pixels, ImageNet without its labels: accuracy 76.2 % (Table 1)",
        "recall at 5, google, image to text",
        "a share",
        "image tower 6 layers of 192, begun with the encoder of mae-cifar10; text tower 2 of 128; 1,218 families of emoji by two "
        "artists; asked about 200 others, chance is 0.025",
        "2,844 pictures instead of 400 million, 32 pixels wide; a word that no training caption has means what its pieces mean.",
    ),
    "clip-emoji-google": Claim(
        "[CLIP](chapters/clip.md)",
        "what is learned from captions holds for another style of picture",
        "ViT-L/14 at 336 pixels, ImageNet Sketch without its labels: accuracy 60.2 % (Figure 13)",
        "recall at 5, twitter, image to text",
        "a share",
        "the same, on the pictures of one artist, Google's; Twitter's were never trained on",
        "Half of the pictures, fewer steps; and all that it knows of style is one artist's.",
    ),
    "ddpm-mnist": Claim(
        "[DDPM](chapters/ddpm.md)",
        "a squared error on noise is enough to paint new images",
        "CIFAR-10: Fréchet distance 3.17 (Table 1)",
        "sure",
        "see the setting",
        "U-Net of 2.7M, MNIST, 5,000 images in 100 steps of DDIM with η = 1. By a classifier that is right on 99.5 % of the test images: sure "
        "of which share (over 0.9 for one digit), share of the rarest and commonest digit, class score of 10, distance to test "
        "images; real: 5,000 held-out images",
        "Other data, another network's features: only the rows for real images compare with ours. Times in "
        "the middle are trained on more often than the paper does.",
    ),
    "ddpm-fashion-mnist": Claim(
        "[DDPM](chapters/ddpm.md)",
        "the same model learns other data",
        "CelebA-HQ and LSUN beside CIFAR-10; LSUN Bedroom: Fréchet distance 4.90 (Figure 4)",
        "sure",
        "see the setting",
        "the same U-Net on Fashion-MNIST, predicting the velocity; 5,000 images in 100 steps of DDIM with η = 1, by a classifier of clothes",
        "Eight passes. The loss is that of the velocity, not to be compared with that of digits; distances neither, the classifier is another.",
    ),
}


def value(figure: dict[str, Any]) -> str:
    """A figure with its interval."""
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"


def section(name: str, card: dict[str, Any], claim: Claim) -> str:
    """What there is to say of one checkpoint."""
    rows = {
        "claim": claim.claim,
        "the paper's number": claim.theirs,
        **{f"ours: {metric} ({claim.unit})": value(each) for metric, each in card["metrics"].items()},
        "setting": claim.setting,
        "time": f"{card['cpu_seconds'] / 60:.0f} minutes of one core ({card['hardware']})",
        "command": f"`{card['command']}`",
        "where it falls short": claim.why,
    }
    lines = [f"\n## {claim.paper}: `{name}`\n", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {title} | {text} |" for title, text in rows.items())]) + "\n"


def results() -> str:
    """The page of results, from the cards as they are.

    Raises:
        ValueError: a checkpoint has no card, there is no claim for it here, or its card lacks the claim's figure.
    """
    names = sorted(path.parent.name for path in (ROOT / "checkpoints").glob("*/config.json"))
    lines = ["| paper | the paper's number | ours |", "|---|---|---|"]
    sections = []
    for name in names:
        path = ROOT / "checkpoints" / name / "card.json"
        if not path.is_file() or name not in CLAIMS:
            raise ValueError(f"checkpoints/{name} lacks its card.json or its claim in tools/pages.py")
        card, claim = json.loads(path.read_text(encoding="utf-8")), CLAIMS[name]
        if claim.headline not in card.get("metrics", {}):
            raise ValueError(
                f"checkpoints/{name}/card.json has no metric {claim.headline!r}: copy the card of a finished run, or "
                "mend the claim in tools/pages.py"
            )
        ours = f"{claim.headline} ({claim.unit}): {value(card['metrics'][claim.headline])}"
        lines.append(f"| {claim.paper} | {claim.theirs} | {ours} |")
        sections.append(section(name, card, claim))
    return RESULTS + "\n".join(lines) + "\n" + "".join(sections)


SCALE = """\
# From a laptop to a cluster

A chapter trains for a minute. The same module trains longer, and on more machines, by one command (after
`source .venv/bin/activate`; a run needs a folder of its own, `runs/PAPER` unless `--output` names one):

```
# A recipe by name: 52 minutes of one core that is fast in bfloat16, longer on others. --help lists the fields.
paperwalk train gpt --recipe moby-dick-cpu
paperwalk train gpt --recipe moby-dick-cpu --data book.txt --output runs/book
# Go on where it was stopped, to the very bits.
paperwalk train gpt --recipe moby-dick-cpu --resume
# Two processes without a graphics card; all graphics cards of a machine.
torchrun --nproc_per_node 2 -m paperwalk train gpt --recipe moby-dick-cpu --output runs/two
accelerate launch --multi_gpu -m paperwalk train gpt --recipe paper --data corpus.txt --output runs/paper
# Four machines with eight each; on the others --machine_rank is 1, 2, 3.
accelerate launch --multi_gpu --num_machines 4 --num_processes 32 --machine_rank 0 \\
  --main_process_ip HOST -m paperwalk train gpt --recipe paper --data corpus.txt --output runs/paper-32
```

`--batch-size` is that of all processes together, so that the curve does not depend on how many there are; each takes its
part of a batch that is drawn from the seed and the number of the step alone. When a part does not fit into memory,
`--accumulate 4` cuts it into four. The tests hold both: two processes, or several parts, give the curve of one to 1e-5.
CLIP compares each picture of a batch with each caption, so its batch cannot be cut into parts that come one after another:
its processes exchange their features, and `--accumulate` is refused.

A run is a folder: `run.json`, `states/` (the last two, each written whole or not at all), events for TensorBoard, and at
the end the model, `card.json` and `loss.png`. Kill it whenever you like.

## What it costs, on paper

A step of each paper's base or smallest model, with examples of full length, by `paperwalk info PAPER --recipe paper`. A
training step costs about three forward passes: the forward pass, and a backward pass that costs about two. Memory is weights, gradients and Adam's two moments in single precision, 16 bytes a parameter, the
same on each device; activations come on top. After each backward pass the devices average their gradients: with N of them
each sends and receives 2 (N − 1) / N times 4 bytes a parameter, nearly the column's figure for many.

"""


def scale() -> str:
    """The page that leads from a laptop to a cluster."""
    from paperwalk.train.recipes import PAPERS, recipe_class
    from paperwalk.train.sizes import n_parameters

    titles = (
        "paper",
        "example",
        "parameters",
        "FLOPs a step",
        "memory, before activations",
        "exchanged a step and device",
    )
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for paper in PAPERS:
        recipe = recipe_class(paper).named()["paper"]
        n = n_parameters(recipe)
        cells = (
            f"{paper}, {recipe.examples_a_step():,.0f} examples a step",
            recipe.example_size(),
            f"{n / 1e6:,.1f} M",
            f"{recipe.step_flops():.1e}",
        )
        lines.append(f"| {' | '.join(cells)} | {16 * n / 1e9:.2f} GB | {8 * n / 1e9:.2f} GB |")
    return SCALE + "\n".join(lines) + AFTER


AFTER = """

How to read it: a device whose peak is 10¹⁴ FLOPs a second, used at 40 %, does 4 · 10¹³. Divide a row's FLOPs by that, and
by the number of devices: the seconds of a step. Divide the last column by the bandwidth between devices: the seconds of the
exchange. As long as the second is well below the first, more devices help; it overlaps with the backward pass, except for the
gradients that come last, those of the first layers. Both processors and networks differ by orders of magnitude, so measure: the log prints steps a second.

## Precision and compiling

On a processor `--precision auto` measures for a tenth of a second whether matrix products are at least 1.5 times as fast in bfloat16 as in
single precision, and uses it for them if so; weights, sums and the optimiser stay in single precision. On the two cores that
trained the checkpoints of this book they are more than four times as fast (the GPT was trained so, the Transformer in
single precision). On a graphics card it takes bfloat16 where the card has it.

A training of at least 10¹⁴ FLOPs also finds out whether `torch.compile` pays. It takes its first 14 steps by turns compiled
and as the model is written, times them, and goes on in the faster way. The card notes which, and so do the states: who
resumes does not ask again. On another machine the verdict, and with it the rounding, may be another; `--no-compile` leaves it out.
"""

PAGES = {Path("book", "results.md"): results, Path("book", "scale.md"): scale, Path("book", "speed.md"): speed}
