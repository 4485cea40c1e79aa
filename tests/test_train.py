"""The training loop at scale: interrupted anywhere it goes on to the very bits, and refuses what does not fit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from paperwalk.train import cli, compiling, progress, runs
from paperwalk.train.engine import Interrupted, Options, Run
from paperwalk.train.precision import fast_precision
from paperwalk.train.provenance import commit, provenance, thinned
from paperwalk.train.recipes import PAPERS, recipe_class
from paperwalk.train.state import newest_state, random_states, restore_random
from paperwalk.train.task import Recipe, Task, cut, figure, generator, shuffled

pytestmark = pytest.mark.filterwarnings("ignore:.*(CUDA|cuda).*")


@dataclass(frozen=True)
class Sizes:
    d_hidden: int = 8


@dataclass(frozen=True)
class Sum(Recipe):
    """Learn to add four numbers; dropout, so that random states matter."""

    paper: ClassVar[str] = "sum"
    lr: float = 0.05
    batch_size: int = 16
    steps: int | None = 12
    whole: bool = False
    dropout: float = 0.5
    model: Sizes = field(default_factory=Sizes)

    def task(self) -> Task:
        net = nn.Sequential(
            nn.Linear(4, self.model.d_hidden), nn.Dropout(self.dropout), nn.Linear(self.model.d_hidden, 1)
        )

        def batch(step, part, parts):
            x = torch.randn(self.batch_size, 4, generator=generator(self.seed, step))
            return (cut(x, part, parts),)

        def loss(model, batch):
            (x,) = batch
            return (model(x) - x.sum(1, keepdim=True)).square().mean(), len(x)

        return Task(net, self.adamw(net), self.cosine(self.steps), self.steps, batch, loss, self.whole)

    def save(self, model, folder):
        torch.save(model.state_dict(), folder / "weights.pt")

    def load(self, folder):
        net = self.task().model
        net.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
        return net

    def evaluate(self, model, limit=None):
        return {"weight": figure(model[0].weight.sum().item(), (0.0, 1.0), 1)}

    def data_sha256(self):
        return {}

    def forward_flops(self):
        return 10 * self.model.d_hidden


FP32 = {"precision": "fp32", "save_every": 3, "log_every": 2}


def run_to_the_end(folder, recipe=None, **options):
    return runs.train_only(recipe or Sum(), Options(output=folder, **FP32 | options))


def weights(run):
    return [p.detach().clone() for p in run.model.parameters()]


def assert_same(a, b):
    assert a.losses == b.losses
    assert all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


@pytest.fixture
def stop_at(monkeypatch):
    """Make the run fail with `error` when it has done so many steps."""

    def install(step, error=KeyboardInterrupt):
        ordinary = Run._step

        def failing(self, number, batches):
            if number == step:
                raise error
            return ordinary(self, number, batches)

        monkeypatch.setattr(Run, "_step", failing)
        return lambda: monkeypatch.setattr(Run, "_step", ordinary)

    return install


# Going on


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("step", [1, 3, 4, 8, 11])
def test_a_run_killed_and_resumed_has_the_same_weights(step, ema, tmp_path, stop_at):
    recipe = Sum(ema=ema)
    whole = run_to_the_end(tmp_path / "whole", recipe)
    restore = stop_at(step)
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(tmp_path / "killed", recipe)
    restore()
    again = run_to_the_end(tmp_path / "killed", recipe, resume=True)
    assert_same(whole, again)


def test_the_loss_falls(tmp_path):
    losses = run_to_the_end(tmp_path, Sum(steps=300, dropout=0.0)).losses
    assert losses[-1] < 0.02 * losses[0]


def test_a_damaged_state_is_passed_over(tmp_path, stop_at):
    whole = run_to_the_end(tmp_path / "whole")
    restore = stop_at(8)
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(tmp_path / "killed")
    restore()
    newest = sorted((tmp_path / "killed" / "states").glob("step-*"))[-1]
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "state.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match="step-00000006 is damaged"):
        assert newest_state(tmp_path / "killed" / "states").step == 3
    with pytest.warns(UserWarning, match="going back to the state before"):
        again = run_to_the_end(tmp_path / "killed", resume=True)
    assert_same(whole, again)


@pytest.mark.parametrize("left", ["", "{", '{"step": 1}', "[]"])
def test_a_half_written_state_is_passed_over(left, tmp_path):
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "state.json").write_text(left)
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest_state(tmp_path) is None


def test_only_the_last_states_are_kept(tmp_path):
    run_to_the_end(tmp_path, keep=3)
    assert sorted(p.name for p in (tmp_path / "states").iterdir()) == [
        "step-00000006",
        "step-00000009",
        "step-00000012",
    ]


def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch):
    ordinary, written = Path.write_bytes, []

    def full(path, content):
        written.extend([path] * (path.name == "state.safetensors"))
        if len(written) == 2:
            ordinary(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return ordinary(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run_to_the_end(tmp_path / "full")
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "full" / "states").iterdir()] == ["step-00000003"]
    assert_same(run_to_the_end(tmp_path / "whole"), run_to_the_end(tmp_path / "full", resume=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_a_state_first(number, tmp_path, monkeypatch):
    ordinary = Run._step

    def signalled(self, step, batches):
        loss = ordinary(self, step, batches)
        if step == 4:
            os.kill(os.getpid(), number)
        return loss

    before = signal.getsignal(number)
    monkeypatch.setattr(Run, "_step", signalled)
    with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(number).name} after step 5"):
        run_to_the_end(tmp_path / "stopped")
    monkeypatch.undo()
    assert signal.getsignal(number) == before
    assert newest_state(tmp_path / "stopped" / "states").step == 5
    assert_same(run_to_the_end(tmp_path / "whole"), run_to_the_end(tmp_path / "stopped", resume=True))


COMMAND = [sys.executable, "-m", "paperwalk", "train", "gpt", "--steps", "60", "--model.d-model", "8"]
COMMAND += ["--model.n-layers", "1", "--model.n-heads", "2", "--model.d-mlp", "8", "--model.block-size", "8"]
COMMAND += ["--precision", "fp32", "--save-every", "2", "--log-every", "1"]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]


@pytest.fixture
def short_text(tmp_path):
    (tmp_path / "text.txt").write_text("the white whale and the old captain, " * 40)
    return ["--data", str(tmp_path / "text.txt"), "--output", str(tmp_path / "run")]


def test_a_command_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path, short_text):
    assert cli.main([*COMMAND[3:], *short_text]) == 0
    whole = (tmp_path / "run" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run")
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*COMMAND, *short_text], stdout=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if line.startswith("step 17/"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert cli.main([*COMMAND[3:], *short_text, "--resume"]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == whole
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["command"].startswith("paperwalk train gpt --steps 60")
    assert card["curve"][-1][0] == 60


# Parts of a batch


@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_a_batch_in_parts_gives_the_same_curve(accumulate, tmp_path):
    recipe = Sum(dropout=0.0, steps=20)
    whole = run_to_the_end(tmp_path / "whole", recipe)
    parts = run_to_the_end(tmp_path / "parts", recipe, accumulate=accumulate)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-5)


def test_two_processes_give_the_same_curve_as_one(tmp_path, short_text):
    # Twelve windows in two parts; the model drops nothing, since each process would drop other units.
    command = [*COMMAND, *short_text, "--steps", "20", "--batch-size", "12", "--model.dropout", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert cli.main(command[3:]) == 0
    alone = newest_state(tmp_path / "run" / "states").tensors
    shutil.rmtree(tmp_path / "run")
    done = subprocess.run([*LAUNCHER, *command[2:]], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    shared = newest_state(tmp_path / "run" / "states").tensors
    assert shared["losses"].tolist() == pytest.approx(alone["losses"].tolist(), rel=1e-5)
    assert [len(each["random.cpu"]) for each in (alone, shared)] == [1, 2]


def test_two_processes_go_on_to_the_very_bits(tmp_path, short_text):
    # With dropout: each process goes back to draws of its own.
    options = ["--steps", "6", "--batch-size", "12", "--model.dropout", "0.3", "--save-every", "3"]
    command = [*LAUNCHER, *COMMAND[2:], *short_text, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    weights = tmp_path / "run" / "model.safetensors"
    whole = weights.read_bytes()
    states = sorted((tmp_path / "run" / "states").iterdir())
    assert [newest_state(tmp_path / "run" / "states").step, len(states)] == [6, 2]
    shutil.rmtree(states[-1])
    weights.unlink()
    assert newest_state(tmp_path / "run" / "states").step == 3
    subprocess.run([*command, "--resume"], check=True, capture_output=True, env=environment)
    assert weights.read_bytes() == whole


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_device_goes_back_to_its_draws(kind, monkeypatch):
    device = torch.Generator()
    module = SimpleNamespace(get_rng_state=device.get_state, set_rng_state=device.set_state)
    monkeypatch.setattr(torch, "get_device_module", {kind: module}.__getitem__)
    states = random_states(kind)
    draws = [torch.rand(3), torch.rand(3, generator=device)]
    restore_random(kind, states)
    assert all(map(torch.equal, draws, [torch.rand(3), torch.rand(3, generator=device)]))
    # A run begun elsewhere has no state of this device.
    before = device.get_state()
    restore_random(kind, {"random.cpu": states["random.cpu"]})
    assert torch.equal(device.get_state(), before)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_gives_the_same_curve(tmp_path, monkeypatch, stop_at):
    recipe = Sum(dropout=0.0, ema=0.9)
    plain = run_to_the_end(tmp_path / "plain", recipe)
    monkeypatch.setattr(compiling, "LONG", recipe.step_flops() * recipe.steps)
    monkeypatch.setattr(compiling, "TIMED", 1)
    # Any step of a compiled model pays.
    monkeypatch.setattr(compiling, "SHARE", float("inf"))
    counters["frames"].clear()
    compiled = run_to_the_end(tmp_path / "compiled", recipe)
    assert counters["frames"]["ok"] > 0
    assert (plain.compiled, compiled.compiled) == (None, True)
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-5)
    # The verdict is after step 6; who goes on keeps to it.
    restore = stop_at(8)
    with pytest.raises(KeyboardInterrupt):
        run_to_the_end(tmp_path / "killed", recipe)
    restore()
    assert newest_state(tmp_path / "killed" / "states").values["compiled"]
    monkeypatch.setattr(compiling, "SHARE", 0.0)
    assert_same(run_to_the_end(tmp_path / "killed", recipe, resume=True), compiled)
    # Neither one that is told not to, nor a shorter training, tries.
    counters["frames"].clear()
    assert_same(run_to_the_end(tmp_path / "told", recipe, compile=False), plain)
    assert run_to_the_end(tmp_path / "shorter", replace(recipe, steps=recipe.steps - 1)).compiled is None
    assert not counters["frames"]


def test_without_a_compiler_the_training_goes_on(tmp_path, monkeypatch):
    recipe = Sum(model=Sizes(d_hidden=9))
    plain = run_to_the_end(tmp_path / "plain", recipe)
    monkeypatch.setattr(compiling, "LONG", 0)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "nowhere"),))
    assert_same(run_to_the_end(tmp_path / "compiled", recipe), plain)


@pytest.mark.parametrize(("as_written", "pays"), [(2.0, True), (1.02, False), (0.5, False)])
def test_the_faster_of_both_ways_is_kept(as_written, pays):
    module, now, turns = nn.Linear(1, 1), [0.0], []
    trial = compiling.Trial(module, agree=lambda verdict: turns.append(verdict) or verdict, clock=lambda: now[0])
    counters["frames"].clear()
    for number in range(2 * (compiling.WARM + compiling.TIMED)):
        assert trial.pays is None
        with trial.step():
            # Compiling takes long, and is not counted.
            now[0] += (100.0 if number < 4 else 1.0) if number % 2 == 0 else as_written
    assert (trial.pays, turns) == (pays, [pays])
    with trial.step():
        module(torch.zeros(1))
    assert bool(counters["frames"]) == pays


def test_a_loss_over_the_whole_batch_is_not_cut(tmp_path):
    with pytest.raises(ValueError, match="accumulate is 2, expected 1"):
        run_to_the_end(tmp_path, Sum(whole=True), accumulate=2)


def test_weights_and_biases_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("paperwalk.train.engine.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is not installed: pip install wandb"):
        run_to_the_end(tmp_path, wandb=True)


def test_parts_cover_the_rows_once():
    rows = torch.arange(11)
    for parts in range(1, 12):
        pieces = [cut(rows, i, parts) for i in range(parts)]
        assert torch.equal(torch.cat(pieces), rows)
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_each_pass_sees_each_example_once():
    first = torch.cat([shuffled(20, 6, 0, step) for step in range(3)])
    second = torch.cat([shuffled(20, 6, 0, step) for step in range(3, 6)])
    assert len(first.unique()) == len(second.unique()) == 18
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.cat([shuffled(20, 6, 1, step) for step in range(3)]))


# What the recipe says


def test_the_moving_average_is_that_of_the_weights(tmp_path, monkeypatch):
    seen, ordinary = [], Run._average

    def watch(self):
        ordinary(self)
        seen.append((self.task.model[0].weight.detach().clone(), self.average[0].weight.clone()))

    monkeypatch.setattr(Run, "_average", watch)
    run = run_to_the_end(tmp_path, Sum(ema=0.9, steps=3))
    (_, before), (new, after), _ = seen
    torch.testing.assert_close(after, 0.9 * before + 0.1 * new)
    assert run.model is run.average


def test_learning_rate_rises_and_falls():
    recipe = Sum(lr=2.0, warmup=0.1, final_lr=0.1)
    rates = [recipe.cosine(100)(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.2, rel=0.01)


def test_biases_do_not_decay():
    matrices, others = Sum(weight_decay=0.3).adamw(nn.Linear(3, 2)).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert [p.ndim for p in matrices["params"]] == [2]


TINY = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
import test_train

def tiny():
    return (torch.full((1_000_000,), 1e-30) * torch.full((1_000_000,), 1e-10)).count_nonzero().item()

plain = test_train.Sum.task
def task(self):
    made = plain(self)
    loss = made.loss
    made.loss = lambda model, batch: print(tiny()) or loss(model, batch)
    return made

test_train.Sum.task = task
test_train.run_to_the_end(test_train.Path(sys.argv[2]), test_train.replace(test_train.Sum(), steps=2), precision="auto")
torch.set_num_threads(1)
print(tiny())
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_too_small_to_be_normal_are_zero_in_training_alone(threads, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", TINY, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["0", "0", "1000000"]


def test_gradients_are_clipped(tmp_path):
    # AdamW takes out the length of a gradient, save where it is as small as its epsilon.
    recipes = [Sum(steps=1, clip=clip, weight_decay=0.0) for clip in (1.0, 1e-10)]
    moved = [weights(run_to_the_end(tmp_path / str(recipe.clip), recipe))[0] for recipe in recipes]
    assert not torch.allclose(*moved, atol=1e-4)


def test_the_precision_is_used_and_kept(tmp_path):
    exact = run_to_the_end(tmp_path / "exact", Sum(steps=1)).losses
    folder = tmp_path / "rounded"
    rounded = run_to_the_end(folder, Sum(steps=1), precision="bf16").losses
    assert 0 < abs(exact[0] - rounded[0]) < 0.05 * exact[0]
    assert json.loads((folder / "run.json").read_text())["precision"] == "bf16"
    again = runs.check_folder(Sum(steps=1), Options(output=folder, resume=True))[1]
    assert again.precision == "bf16"
    assert fast_precision() in ("bf16", "fp32")


# What does not fit


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path):
    class Bad(Sum):
        def task(self):
            task = super().task()
            ordinary = task.loss

            def loss(model, batch):
                mean, n = ordinary(model, batch)
                return (mean * float("nan") if next(steps) == 7 else mean), n

            steps = iter(range(99))
            return replace(task, loss=loss)

    with pytest.raises(FloatingPointError, match="step 7: the loss is nan"):
        run_to_the_end(tmp_path, Bad())
    state = newest_state(tmp_path / "states")
    assert state.step == 6
    assert all(t.isfinite().all() for t in state.tensors.values() if t.is_floating_point())


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    run_to_the_end(tmp_path)
    with pytest.raises(ValueError, match="holds a run already: --resume goes on with it, --overwrite begins again"):
        run_to_the_end(tmp_path)
    run_to_the_end(tmp_path, Sum(steps=3), overwrite=True)
    assert newest_state(tmp_path / "states").step == 3


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds something other than a run"):
            run_to_the_end(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").exists()


def test_damaged_newer_states_do_not_outlive_a_good_one(tmp_path):
    run_to_the_end(tmp_path, keep=2)
    for place in (tmp_path / "states").iterdir():
        (place / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest_state(tmp_path / "states") is None
    from paperwalk.train.state import State, write_state

    write_state(tmp_path / "states", State(3, {"x": torch.zeros(1)}, {}), keep=2)
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-00000003"]


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_run_file_is_named(content, tmp_path):
    run_to_the_end(tmp_path)
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        run_to_the_end(tmp_path, resume=True)


def test_a_second_signal_at_once_is_one(monkeypatch):
    # A shell may have started the tests with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    now = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with progress.stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert received == [signal.SIGINT, signal.SIGINT]
    with progress.stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        now = 101.5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_two_processes_stop_after_the_same_step(tmp_path, short_text):
    options = ["--steps", "100000", "--batch-size", "12", "--model.dropout", "0", "--save-every", "100000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*LAUNCHER, *COMMAND[2:], *short_text, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    for line in process.stdout:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=60)
    state = newest_state(tmp_path / "run" / "states")
    assert state.step >= 3
    assert len(state.tensors["random.cpu"]) == 2


def test_another_recipe_is_not_resumed(tmp_path):
    run_to_the_end(tmp_path)
    with pytest.raises(ValueError, match=r"holds another run: lr was 0\.05, now 0\.1; model\.d_hidden was 8, now 9"):
        run_to_the_end(tmp_path, Sum(lr=0.1, model=Sizes(9)), resume=True)
    with pytest.raises(ValueError, match="precision was fp32, now bf16"):
        run_to_the_end(tmp_path, resume=True, precision="bf16")
    with pytest.raises(ValueError, match="holds no run to go on with"):
        run_to_the_end(tmp_path / "other", resume=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sum(lr=0.0), r"lr is 0\.0, expected more than 0"),
        (lambda: Sum(lr=float("nan")), "lr is nan, expected more than 0"),
        (lambda: Sum(batch_size=0), "batch_size is 0, expected more than 0"),
        (lambda: Sum(epochs=-1.0), r"epochs is -1\.0, expected more than 0"),
        (lambda: Sum(steps=0), "steps is 0, expected more than 0"),
        (lambda: Sum(ema=1.0), r"ema is 1\.0, expected at least 0 and below 1"),
        (lambda: Sum(warmup=-0.1), r"warmup is -0\.1, expected at least 0"),
        (lambda: Sum(weight_decay=-1.0), r"weight_decay is -1\.0, expected at least 0"),
        (lambda: Sum(batch_size=16).steps_of(15), "batch_size is 16, expected at most 15"),
        (lambda: Options(accumulate=0), "accumulate is 0, expected at least 1"),
        (lambda: Options(keep=0), "keep is 0, expected at least 1"),
        (lambda: Options(resume=True, overwrite=True), "resume and overwrite together"),
        (lambda: recipe_class("resnet"), "unknown paper 'resnet'"),
        (lambda: recipe_class("transformer")(beta2=0.9), r"beta2 is 0\.9, expected 0\.98: Section 5\.3 fixes it"),
        (lambda: recipe_class("transformer")(warmup=0.2), r"warmup is 0\.2, expected 0\.1"),
        (lambda: runs.from_json({"paper": "vit", "epoch": 1}), "ViTRecipe has no field epoch"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Cards and recipes


@pytest.mark.parametrize("paper", PAPERS)
def test_recipes_survive_json(paper):
    for recipe in recipe_class(paper).named().values():
        assert runs.from_json(json.loads(json.dumps(runs.as_json(recipe)))) == recipe


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_has_a_small_recipe_and_the_papers_own(paper):
    named = recipe_class(paper).named()
    assert "paper" in named
    assert any(name.endswith("-cpu") for name in named)


def test_where_a_number_comes_from():
    about = provenance("paperwalk eval x", seed=3, data={"mnist": "abc"})
    assert about["command"] == "paperwalk eval x"
    assert about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert about["commit"] is None or len(commit().rstrip("+")) == 12


def test_a_thinned_curve_keeps_the_mean_and_the_end():
    losses = [float(i) for i in range(1001)]
    curve = thinned(losses, points=100)
    assert len(curve) <= 100
    assert curve[-1][0] == 1001
    assert curve[0] == [11, 5.0]
    assert thinned([1.0, 2.0]) == [[1, 1.0], [2, 2.0]]


def test_a_run_is_not_resumed_on_other_data(tmp_path, monkeypatch):
    monkeypatch.setattr(Sum, "data_sha256", lambda self: {"numbers": "aa"})
    run_to_the_end(tmp_path)
    run_to_the_end(tmp_path, resume=True)
    monkeypatch.setattr(Sum, "data_sha256", lambda self: {"numbers": "bb"})
    with pytest.raises(ValueError, match="was begun with other data: numbers was aa, now bb"):
        run_to_the_end(tmp_path, resume=True)


def test_a_finished_run_resumed_stays_as_it_is(tmp_path):
    first = run_to_the_end(tmp_path)
    again = run_to_the_end(tmp_path, resume=True)
    assert_same(first, again)
    assert again.seconds == first.seconds


def test_more_parts_than_examples_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the batch of step 0 has fewer examples than the 17 parts"):
        run_to_the_end(tmp_path, accumulate=17)


def test_an_evaluation_that_fails_does_so_before_the_training(tmp_path, monkeypatch):
    def evaluate(self, model, limit=None):
        torch.rand(3)
        if limit == 2:
            raise ValueError("the held-out text is too short")

    monkeypatch.setattr(runs, "recipe_class", lambda paper: Sum)
    monkeypatch.setattr(Sum, "evaluate", evaluate)
    options = Options(output=tmp_path / "a", **FP32)
    with pytest.raises(ValueError, match="too short"):
        runs.train(Sum(), options, "paperwalk train sum")
    assert not list((tmp_path / "a").glob("states/*"))
    # Its draws are not taken from those of the training.
    run = Run(Sum().task(), Sum(), options, tmp_path / "b")
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="too short"):
        runs.check_evaluation(Sum(), run)
    assert torch.equal(before, torch.get_rng_state())
