"""The benchmarks: that contenders do the same work, how they are timed, and the page of what was measured."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest
import torch

import speed
from bench import generation, growth, loop, masking, measure, memory, run, sampling, training
from bench.measure import Contender
from bench.training import FAST, OURS, Size
from paperwalk.clip import CLIPConfig
from paperwalk.gpt import GPTConfig
from paperwalk.mae import MAEConfig
from paperwalk.train import compiling
from paperwalk.transformer import TransformerConfig
from paperwalk.unet import UNetConfig
from paperwalk.vit import ViTConfig

TINY = {
    "vit": ViTConfig(8, 4, 3, 5, d_model=12, n_layers=1, n_heads=3, d_mlp=24),
    "gpt": GPTConfig(17, 8, d_model=12, n_layers=2, n_heads=3, d_mlp=48),
    "mae": MAEConfig(8, 4, 3, 12, 1, 3, 24, 8, 1, 2, 16, mask_ratio=0.5, norm_target=True),
    "ddpm": UNetConfig(8, 1, d_model=8, multipliers=(1, 2), n_blocks=1, attention_sizes=(4,), n_groups=4),
    "clip": CLIPConfig(8, 4, 12, 1, 3, 24, 20, 6, 12, n_text_layers=1, n_text_heads=3, d_text_mlp=24, d_embed=8),
    "transformer": TransformerConfig(20, 12, n_layers=1, n_heads=2, d_mlp=24, block_size=6, dropout=0.0, norm_eps=1e-5),
}  # fmt: skip


def tiny(paper: str) -> training.Paper:
    """The paper with one tiny size for all."""
    size = Size(TINY[paper], 4)
    return replace(import_module(f"bench.{paper}").PAPER, sizes={"small": size, "middle": size})


@pytest.mark.parametrize("paper", TINY)
def test_contenders_do_the_same_work(paper):
    tested = tiny(paper)
    size = tested.sizes["small"]
    losses, inputs = training.checked(tested, size), tested.inputs(size)
    values = {name: loss(*inputs).item() for name, loss in losses.items()}
    assert set(values) == {OURS, FAST, *tested.references}
    assert all(value == pytest.approx(values[OURS], rel=1e-3) for value in values.values())
    for name, loss in losses.items():
        training.step_of(tested, name, size, loss)()
        assert loss(*inputs).item() < values[name]


@pytest.mark.parametrize("pays", [False, True])
def test_the_fast_way_is_that_of_the_trial(pays, monkeypatch):
    stances, now = [], [0.0]
    monkeypatch.setattr(training, "Trial", partial(compiling.Trial, clock=lambda: now[0]))
    monkeypatch.setattr(torch.compiler, "set_stance", lambda stance: stances.append(stance) or nullcontext())
    monkeypatch.setattr(training.Loss, "compile", lambda self: None)

    def step() -> None:
        now[0] += 1.0 if (stances[-1] == "default") == pays else 2.0

    within, compiled = training.in_the_faster_way(training.Loss(torch.nn.Identity(), None), step)
    assert compiled == pays
    assert len(stances) == 2 * (compiling.WARM + compiling.TIMED)
    within()
    assert stances[-1] == ("default" if pays else "force_eager")


def test_other_work_is_refused():
    tested = tiny("vit")
    timm = tested.references["timm"]
    other = replace(timm, loss=lambda model, images, labels: timm.loss(model, images, labels.flip(0)))
    with pytest.raises(AssertionError, match="vit against timm"):
        training.checked(replace(tested, references={"timm": other}), tested.sizes["small"])
    with pytest.raises(AssertionError, match="ours, fast"):
        training.checked(replace(tested, loss=Untrue(tested.loss), references={}), tested.sizes["small"])


class Untrue:
    """A loss that is another one each time."""

    def __init__(self, loss):
        self.loss, self.calls = loss, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.calls * self.loss(*inputs)


def test_contenders_take_turns():
    now, order = [0.0], []

    def contender(name: str, seconds: list[float]) -> Contender:
        left = iter(seconds)

        def step() -> None:
            order.append(name)
            now[0] += next(left)

        return Contender(name, step)

    # The first is the one that does not count.
    both = [contender("a", [50, 1, 9, 2]), contender("b", [70, 2, 27, 2])]
    seconds = measure.interleaved(both, 3, clock=lambda: now[0])
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert seconds == {"a": [1, 9, 2], "b": [2, 27, 2]}
    found = measure.summary(seconds, ["a"])
    assert found["seconds"] == {"a": [2, 1.5, 5.5], "b": [2, 2, 14.5]}
    # Round by round 2, 3 and 1: a slow round tells as much as a fast one.
    assert found["times as fast"] == {"a": {"b": [2, 1.5, 2.5]}}
    assert measure.spread([3.0]) == [3, 3, 3]


def test_a_peak_is_what_a_step_takes(monkeypatch):
    monkeypatch.setattr("bench.vit.PAPER", tiny("vit"))
    monkeypatch.setattr(memory, "step_of", lambda *_: lambda: torch.ones(2**24))
    if not (memory.PROC / "clear_refs").exists():
        pytest.skip("this system does not tell its memory")
    assert memory._peak("vit", "middle", OURS, torch.get_num_threads()) / 2**26 == pytest.approx(1, abs=0.2)


def test_generation_and_sampling_agree(monkeypatch):
    model, _ = generation.pair(TINY["gpt"])
    assert generation.weight_bytes(model) == 4 * sum(p.numel() for p in model.parameters()) - 4 * 8 * 12
    monkeypatch.setattr(sampling, "BATCH", 2)
    _, _, noise = sampling.pair(TINY["ddpm"])
    assert noise.shape == (2, 1, 8, 8)


def test_masking_is_measured(monkeypatch):
    monkeypatch.setitem(masking.SIZES, "middle", Size(replace(TINY["mae"], mask_ratio=0.75), 2))
    found = masking.measure(1)
    assert set(found["seconds"]) == set(found["flops"]) == {"75%", "0%"}
    assert found["times as fast"]["75%"]["0%"][0] > 0


def test_growth_changes_one_size_at_a_time(tmp_path):
    for name, (values, size_of) in growth.AXES.items():
        counted = {"tokens": lambda s: s.config.n_tokens, "width": lambda s: s.config.d_model}
        counted |= {"batch": lambda s: s.batch, "depth": lambda s: s.config.n_layers}
        assert [counted[name](size_of(value)) for value in values] == list(values)
        assert growth.BASE in [size_of(value) for value in values]
    axes = RESULTS["growth"]["axes"]
    pictures = []
    for i in range(2):
        growth.draw(axes, tmp_path / f"{i}.svg")
        pictures.append((tmp_path / f"{i}.svg").read_text())
    assert pictures[0] == pictures[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.svg", "1.svg"]


def test_both_loops_train(tmp_path, monkeypatch):
    assert set(loop.RECIPES) == set(TINY)
    images = {"train": (torch.randn(256, 1, 28, 28), torch.randint(10, (256,)))}
    monkeypatch.setattr(loop.experiment, "mnist", lambda: images)
    recipe = replace(loop.same_settings(10), data="mnist-5k")
    training = loop.Training(recipe, loop.Options(precision="fp32"), tmp_path)
    training.go(1)
    found = training.waited(2)
    training.run.accelerator.end_training()
    assert len(training.run.losses) == 3
    assert 0 < found["waited"] < found["seconds"]


def test_loops_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STEPS", 2)
    training = loop.Training(loop.same_settings(10), loop.Options(precision="fp32"), tmp_path)
    order, bare, step = [], loop.bare_loop(1), training.run._step
    monkeypatch.setattr(training.run, "_step", lambda *given: order.append("t") or step(*given))
    seconds, waited = loop.in_turn(training, lambda: order.append("b") or bare(), 3)
    training.run.accelerator.end_training()
    # A step asks for its batch when it has begun.
    assert "".join(order) == "tbttbttbt"
    assert [len(each) for each in seconds.values()] == [3, 3]
    assert all(each > 0 for each in (*seconds[loop.TRAIN], *seconds[loop.BARE]))
    assert 0 < waited < 1


# The file and the page


def spread(median: float) -> list[float]:
    return [median, 0.9 * median, 1.1 * median]


def step(references: dict[str, float]) -> dict:
    seconds = {OURS: 0.5, FAST: 0.25, **references}
    return {
        "seconds": {name: spread(each) for name, each in seconds.items()},
        "times as fast": {
            ours: {name: spread(each / seconds[ours]) for name, each in references.items()} for ours in (OURS, FAST)
        },
        "config": {"d_model": 12, "pool": "cls", "multipliers": [1, 2]},
        "batch": 4,
        "items": 64,
        "flops": 3_000_000_000,
        "compiled": True,
        "bytes": {name: 1_000_000 * i for i, name in enumerate(seconds, start=7)},
    }


ABOUT = {
    "command": "make bench NAME=vit",
    "versions": {"torch": "9.9", "timm": "8.8"},
    "commit": "abc",
    "hardware": "an abacus, 2 cores, threads used: 1",
    "date": "2030-01-01",
    "machine": {"peak": {"fp32": 1e11, "bf16": 4e11}, "precision": "bf16"},
    "rounds": 9,
    "threads": 1,
}
WRITTEN = {
    "tokens": 100,
    "compiling": 41.2,
    "limits": {OURS: 400.0, "transformers": 400.0},
    "seconds": {OURS: spread(0.5), "transformers": spread(1.0)},
    "times as fast": {OURS: {"transformers": spread(2.0)}},
}
RESULTS = {
    "vit": ABOUT | {"unit": "images", "sizes": {"small": step({"timm": 0.6, "torchvision": 0.55})}},
    "masking": ABOUT | {"flops": {"75%": 1, "0%": 4}, "times as fast": {"75%": {"0%": spread(3.3)}}},
    "generation": ABOUT | {"cases": {"middle, batch 1": WRITTEN}},
    "sampling": ABOUT
    | {
        "batch": 16,
        "samplers": {
            "DDIM": {
                "steps": 50,
                "seconds": {OURS: spread(2.0), "diffusers": spread(2.5)},
                "times as fast": {OURS: {"diffusers": spread(1.27)}},
            }
        },
    },
    "growth": ABOUT
    | {
        "axes": {
            axis: [{"value": i, "seconds": spread(i), "flops": 3 * i} for i in (1, 2, 4)]
            for axis in ("tokens", "width", "batch", "depth")
        }
    },
    "loop": ABOUT
    | {
        "turns": 70,
        "images": 1000,
        "waited": 0.031,
        "seconds": {"paperwalk train": spread(2.0), "bare loop": spread(1.96)},
        "times as fast": spread(0.98),
        "recipes": [{"recipe": "vit cifar10-cpu", "steps": 10, "seconds": 5.0, "waited": 0.1}],
    },
}


def test_the_page_says_what_was_measured():
    page = speed.page(RESULTS)
    # The fastest reference is torchvision.
    assert "| small | torchvision | 1.10 (0.99 to 1.21) | 2.20 (1.98 to 2.42) | 7 MB | 10 MB |" in page
    assert "| small | timm | 107 | 600 ms | 5% |" in page
    assert "| small | ours, fast, compiled | 256 | 250 ms | 12% |" in page
    assert "without the trial" not in page
    assert "- small: batch 4, d_model 12, multipliers [1, 2]\n" in page
    assert "| 0% | 3.30 (2.97 to 3.63) | 4.00 |" in page
    assert "| middle, batch 1 | ours | 200 | 2.00 (1.80 to 2.20) | 400 | 50% |" in page
    assert "| DDIM, 50 steps | 40.0 ms | 50.0 ms | 1.27" in page
    assert "| width, 1 to 4 | 4.0 | 4.0 | 4.0 |" in page
    assert "![Seconds a training step" in page
    assert "Over 70 turns of each, all together, it is 0.98 (0.88 to 1.08) times as fast" in page
    assert "| `vit cifar10-cpu` | 500 ms | 2.0% |" in page
    assert "`make bench NAME=vit`: an abacus, 2 cores, threads used: 1; 9 rounds; " in page
    assert "fp32 100, bf16 400; precision chosen: bf16; torch 9.9, timm 8.8; commit abc; 2030-01-01\n" in page
    papers = ("gpt", "mae", "ddpm", "clip", "transformer")
    missing = ", ".join(f"`make bench NAME={paper}`" for paper in papers)
    assert page.endswith(f"Not measured yet: {missing}.\n")
    assert not any(f"### {paper}" in page for paper in papers)


def test_a_page_of_nothing_has_no_numbers():
    page = speed.page({})
    assert speed.PARTS == run.PARTS
    assert page.count("make bench NAME=") == len(run.PARTS)
    assert "\n## " not in page
    assert "growth.svg" not in page


def test_memory_that_the_system_does_not_tell_is_not_known():
    part = RESULTS["vit"]["sizes"]["small"] | {"bytes": {}}
    page = speed.page({"vit": RESULTS["vit"] | {"sizes": {"small": part}}})
    assert "| not known | not known |" in page


def test_a_part_from_before_the_trial_says_so():
    part = {name: each for name, each in RESULTS["vit"]["sizes"]["small"].items() if name != "compiled"}
    page = speed.page({"vit": RESULTS["vit"] | {"sizes": {"small": part}}})
    assert "| small | ours, fast | 256 |" in page
    assert "Measured without the trial of torch.compile: small.\n" in page


def test_parts_are_stored_one_by_one(tmp_path):
    path = tmp_path / "results.json"
    run.store("loop", {"seconds": 0.123456789, "steps": 123456789}, path)
    run.store("vit", {"rounds": 3}, path)
    run.store("loop", {"seconds": 2.0}, path)
    assert json.loads(path.read_text()) == {"vit": {"rounds": 3}, "loop": {"seconds": 2.0}}
    assert list(json.loads(path.read_text())) == ["vit", "loop"]


def test_the_command_line_measures_what_is_named(monkeypatch, capsys):
    called, threads = [], torch.get_num_threads()
    monkeypatch.setattr(run, "measure_part", lambda part, rounds: called.append((part, rounds)))
    monkeypatch.setattr(run, "store", lambda *_: None)
    try:
        run.main(arguments=["vit", "loop", "--rounds", "3"])
        run.main("gpt", arguments=[])
        with pytest.raises(SystemExit):
            run.main(arguments=["vti"])
    finally:
        torch.set_num_threads(threads)
    assert called == [("vit", 3), ("loop", 3), ("gpt", 7)]
    assert "did you mean vit?" in capsys.readouterr().err


def test_a_part_carries_where_it_comes_from(monkeypatch):
    monkeypatch.setattr(measure, "SIDE", 8)
    monkeypatch.setattr(masking, "measure", lambda rounds: {"rounds": rounds, "found": 1})
    part = run.measure_part("masking", 3)
    assert part["command"] == "make bench NAME=masking"
    assert {"timm", "transformers", "diffusers", "open-clip-torch", "torch", "python"} <= set(part["versions"])
    assert part["machine"]["peak"]["fp32"] > 0
    assert part["threads"] == torch.get_num_threads()
    assert measure.bandwidth(2**20) > 0


def test_every_part_is_a_file():
    assert all(callable(import_module(f"bench.{part}").measure) for part in run.PARTS)


def test_the_stored_results_make_the_page():
    if not run.RESULTS.exists():
        pytest.skip("not measured yet: make bench")
    results = json.loads(run.RESULTS.read_text(encoding="utf-8"))
    assert list(results) == [part for part in run.PARTS if part in results]
    assert ("Not measured yet" in speed.page(results)) == (len(results) < len(run.PARTS))
    assert growth.FIGURE.exists() == ("growth" in results)
