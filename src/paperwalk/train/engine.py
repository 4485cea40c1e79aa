"""The training loop at scale: the same on one core and, under `accelerate launch` or `torchrun`, on many machines."""

import contextlib
import copy
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from paperwalk.nn.average import follow
from paperwalk.train import compiling
from paperwalk.train.progress import Progress, stop_signals
from paperwalk.train.state import (
    State,
    newest_state,
    optimiser_tensors,
    random_states,
    restore_optimiser,
    restore_random,
    write_state,
)
from paperwalk.train.task import Batch, Recipe, Task


@dataclass(frozen=True)
class Options:
    """Where and how a training runs.

    Args:
        output: folder of the run; runs/PAPER by default.
        resume: go on from the newest whole state in `output`.
        overwrite: remove the run that `output` holds, and begin again.
        precision: of the matrix products; "auto" measures whether bf16 is faster here.
        accumulate: parts that each process cuts its share of a batch into, to save memory.
        compile: let torch.compile fuse model and loss if the first steps are faster so; only in trainings of at least
            10¹⁴ FLOPs, since compiling takes half a minute.
        log_every: steps between two lines of the log.
        save_every: steps between two states.
        keep: states kept.
        wandb: log to Weights & Biases as well.
    """

    output: Path | None = None
    resume: bool = False
    overwrite: bool = False
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    accumulate: int = 1
    compile: bool = True
    log_every: int = 50
    save_every: int = 200
    keep: int = 2
    wandb: bool = False

    def __post_init__(self):
        for name in ("accumulate", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.resume and self.overwrite:
            raise ValueError(
                "resume and overwrite together, expected one: the first keeps the run, the second removes it"
            )


class Interrupted(Exception):
    """A signal stopped the run, after its state was written."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.number = number


class _Loss(nn.Module):
    # The loss is computed inside `forward`, where DistributedDataParallel and autocast take hold.
    def __init__(self, task: Task, precision: str):
        super().__init__()
        self.model, self._loss, self.precision = task.model, task.loss, precision

    def forward(self, *batch: Tensor) -> tuple[Tensor, int]:
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self._loss(self.model, batch)


class Run:
    """One training in this process.

    Args:
        task: what to train; its model and optimiser are changed in place.
        recipe: its `clip`, `ema` and `seed`.
        options: how; `precision` must not be "auto".
        folder: for states/ and the events of TensorBoard.

    Raises:
        ValueError: the batch cannot be cut into `accumulate` parts, or a package is missing.
    """

    def __init__(self, task: Task, recipe: Recipe, options: Options, folder: Path):
        from accelerate import Accelerator
        from accelerate.utils import broadcast_object_list

        if options.wandb and find_spec("wandb") is None:
            raise ValueError("wandb is not installed: pip install wandb, or leave --wandb out")
        if task.whole_batch and options.accumulate > 1:
            raise ValueError(
                f"accumulate is {options.accumulate}, expected 1: this loss compares a whole batch at once"
            )
        self.accelerator = Accelerator(
            # Said outright: several processes on processors alone are not found out otherwise.
            cpu=not torch.accelerator.is_available(),
            # Autocast is ours, inside `_Loss`.
            mixed_precision="no",
            log_with=["tensorboard"] + ["wandb"] * options.wandb,
            project_dir=folder,
        )
        # Each process may have measured another one.
        (precision,) = broadcast_object_list([options.precision])
        self.task, self.recipe, self.folder = task, recipe, folder
        self.options = replace(options, precision=precision)
        self.losses: list[float] = []
        self.seconds = self.cpu_seconds = self.waited = 0.0
        self.average = copy.deepcopy(task.model).requires_grad_(False) if recipe.ema else None
        if self.average is not None:
            self.average.to(self.accelerator.device)
        module = _Loss(task, precision)
        self.trial = None
        if options.compile and recipe.step_flops() * task.steps >= compiling.LONG:
            self.trial = compiling.Trial(module, agree=lambda pays: broadcast_object_list([pays])[0])
        self.module = self.accelerator.prepare(module)
        if self.accelerator.num_processes > 1:
            # The weights are drawn; from here on each process drops other units.
            torch.manual_seed(recipe.seed + 10**6 * (1 + self.accelerator.process_index))

    @property
    def model(self) -> nn.Module:
        """What is evaluated and saved: the moving average of the weights where the recipe has one."""
        return self.task.model if self.average is None else self.average

    @property
    def compiled(self) -> bool | None:
        """Whether torch.compile was found to pay; None where it was not tried."""
        return None if self.trial is None else self.trial.pays

    def train(self) -> None:
        """Train what is left of the steps, writing states.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; the states written before stay.
            Interrupted: Ctrl-C or SIGTERM; the state was written.
        """
        self.module.train()
        start, before = time.perf_counter(), self.seconds
        cpu_start, cpu_before = time.process_time(), self.cpu_seconds
        progress = Progress(
            self.task.steps, len(self.losses), self.options.log_every, shown=self.accelerator.is_main_process
        )
        with stop_signals() as signals, contextlib.closing(progress), _Batches(self) as batches:
            for number in range(len(self.losses), self.task.steps):
                with contextlib.nullcontext() if self.trial is None else self.trial.step():
                    self.losses.append(self._step(number, batches))
                done = number + 1
                self.seconds = before + time.perf_counter() - start
                self.cpu_seconds = cpu_before + time.process_time() - cpu_start
                progress.update(self.losses)
                if done % self.options.log_every == 0:
                    self.accelerator.log({"loss": self.losses[-1], "lr": self.task.lr_at(number)}, step=done)
                stop = self._agree(signals)
                if done % self.options.save_every == 0 or done == self.task.steps or stop:
                    self.save()
                if stop and done < self.task.steps:
                    raise Interrupted(stop, done)

    def _agree(self, signals: list[int]) -> int:
        # The signal that any process got, or 0: all must stop after the same step.
        if self.accelerator.num_processes == 1:
            return signals[0] if signals else 0
        mine = torch.tensor([signals[0] if signals else 0], device=self.accelerator.device)
        return int(self.accelerator.gather(mine).max())

    def _step(self, number: int, batches: "_Batches") -> float:
        for group in self.task.optimiser.param_groups:
            group["lr"] = self.task.lr_at(number)
        self.task.optimiser.zero_grad()
        loss = self._backward(number, batches)
        norm = nn.utils.clip_grad_norm_(self.task.model.parameters(), self.recipe.clip)
        if not (loss.isfinite() and norm.isfinite()):
            raise FloatingPointError(
                f"step {number}: the loss is {loss.item()}, the norm of its gradient {norm.item()}"
            )
        self.task.optimiser.step()
        self._average()
        return loss.item()

    def _backward(self, number: int, batches: "_Batches") -> Tensor:
        if batches.parts == 1:
            loss, _ = self.module(*batches.take(number, 0))
            loss.backward()
            return loss.detach()
        # The parts may differ in size: add up sums, and divide by the number of items of all parts in the end.
        total = torch.zeros(2, device=self.accelerator.device)
        for i in range(self.options.accumulate):
            last = i + 1 == self.options.accumulate
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                loss, items = self.module(*batches.take(number, i))
                (loss * items).backward()
            total += torch.stack([loss.detach() * items, torch.full_like(total[0], items)])
        total = self.accelerator.reduce(total, "sum")
        # DistributedDataParallel took the mean over the processes.
        scale = self.accelerator.num_processes / total[1].item()
        torch._foreach_mul_([p.grad for p in self.task.model.parameters() if p.grad is not None], scale)
        return total[0] / total[1]

    def _average(self) -> None:
        if self.average is not None:
            follow(self.average, self.task.model, self.recipe.ema)

    def save(self) -> None:
        """Write a state: all that the next step depends on."""
        tensors = {f"model.{name}": tensor for name, tensor in self.task.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        tensors |= optimiser_tensors(self.task.optimiser)
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        for name, draws in random_states(self.accelerator.device.type).items():
            tensors[name] = self.accelerator.gather(draws[None].to(self.accelerator.device))
        if self.accelerator.is_main_process:
            values = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "compiled": self.compiled}
            state = State(len(self.losses), tensors, values)
            write_state(self.folder / "states", state, keep=self.options.keep)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go back to the newest whole state in the folder, or stay at the beginning when there is none."""
        state = newest_state(self.folder / "states")
        if state is None:
            return

        def named(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in state.tensors.items() if name.startswith(prefix)}

        self.task.model.load_state_dict(named("model."))
        if self.average is not None:
            self.average.load_state_dict(named("average."))
        restore_optimiser(self.task.optimiser, state.tensors)
        self.losses = state.tensors["losses"].tolist()
        self.seconds, self.cpu_seconds = state.values["seconds"], state.values["cpu_seconds"]
        if self.trial is not None:
            self.trial.pays = state.values.get("compiled")
        rank = self.accelerator.process_index
        # A process more than before has no draws to go back to and keeps its own.
        if rank < len(state.tensors["random.cpu"]):
            # A copy: torch 2.15 crashes on a random state that is a view into a larger tensor.
            draws = {name: t[rank].clone() for name, t in state.tensors.items() if name.startswith("random.")}
            restore_random(self.accelerator.device.type, draws)


class _Batches:
    # This process's parts of each batch. On a graphics card the next part is made while the card works on this one.
    def __init__(self, run: Run):
        accelerator, accumulate = run.accelerator, run.options.accumulate
        self.run, self.accumulate, self.device = run, accumulate, accelerator.device
        self.parts, self.first = accelerator.num_processes * accumulate, accelerator.process_index * accumulate
        self.ahead: dict[tuple[int, int], Future] = {}
        self.worker = ThreadPoolExecutor(1) if self.device.type != "cpu" else None

    def __enter__(self) -> "_Batches":
        return self

    def __exit__(self, *_) -> None:
        if self.worker is not None:
            self.worker.shutdown(cancel_futures=True)

    def _make(self, step: int, i: int) -> Batch:
        made = self.run.task.batch(step, self.first + i, self.parts)
        if len(made[0]) == 0:
            raise ValueError(f"the batch of step {step} has fewer examples than the {self.parts} parts it is cut into")
        return made

    def take(self, step: int, i: int) -> Batch:
        start = time.perf_counter()
        made = self.ahead.pop((step, i)).result() if (step, i) in self.ahead else self._make(step, i)
        if self.worker is not None:
            following = (step, i + 1) if i + 1 < self.accumulate else (step + 1, 0)
            self.ahead[following] = self.worker.submit(self._make, *following)
        batch = tuple(tensor.to(self.device, non_blocking=True) for tensor in made)
        self.run.waited += time.perf_counter() - start
        return batch
