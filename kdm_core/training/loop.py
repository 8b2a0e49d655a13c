"""The training loop: steps, curves, checkpoints. What is trained is a `Task`."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kdm_core.errors import DivergedError
from kdm_core.training.checkpoints import Record, restore, store
from kdm_core.training.distributed import check_start, is_main, mean_over_processes
from kdm_core.training.task import Task
from kdm_core.training.waiting import Waiting

__all__ = ["Record", "Task", "fit"]

PATIENCE = 10
"""Failed steps in a row after which a run counts as diverged."""


class Window:
    """Scalars of the steps since the last point of the curves, on the device until it is closed.

    Attributes:
        failed: steps in a row, up to the last one, with a scalar that is not finite; known when
            the window is closed.
    """

    def __init__(self) -> None:
        self.failed = 0
        self.names: list[str] = []
        self.steps: list[Tensor] = []

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Take the scalars of one step."""
        self.names += [f"{len(self.steps)}/{name}" for name in scalars]
        self.steps.append(torch.stack([value.detach().float() for value in scalars.values()]))

    def close(self) -> Record:
        """Means over steps and processes of what is finite, in one transfer from the device.

        Empty where all steps since the last point failed: they stay part of the window.
        """
        values = mean_over_processes(
            dict(zip(self.names, torch.cat(self.steps).tolist(), strict=True)))
        finite: dict[str, list[float]] = {}
        broken: set[int] = set()
        for key, value in values.items():
            step, name = key.split("/", 1)
            if math.isfinite(value):
                finite.setdefault(name, []).append(value)
            else:
                broken.add(int(step))
        count = len(self.steps)
        self.failed = next((i for i in range(count) if count - 1 - i not in broken), count)
        if self.failed == count:
            return {}
        self.names, self.steps = [], []
        return {name: sum(found) / len(found) for name, found in finite.items()}


def fit(
    task: Task,
    checkpoint: Path,
    work_key: str,
    on_step: Callable[[int], None] = lambda step: None,
    on_record: Callable[[Record], None] = lambda record: None,
    on_checkpoint: Callable[[int], None] = lambda step: None,
    say: Callable[[str], None] = warnings.warn,
    waiting: Waiting | None = None,
    on_start: Callable[[int], None] = lambda step: None,
) -> list[Record]:
    """Train a task to its last step, from its checkpoint if there is one.

    Since batches and random numbers are functions of the step, a run that was killed ends with
    the weights of one that was not (bit for bit on a CPU with the same number of threads).

    Args:
        task: what to train.
        checkpoint: the name of the files that hold the state of a run that is under way, to which
            each adds its step.
        work_key: identifies the run; a checkpoint of another one is not used.
        on_step: called with the number of steps done, for progress.
        on_record: called with each point of the curves, those of the checkpoint first.
        on_checkpoint: called with the number of steps done when a checkpoint has been written.
        say: told what a user should know and can live with.
        waiting: measures how long the device waits; by default nobody asks.
        on_start: called once, with the number of steps that an earlier run has done.

    Returns:
        All points of the curves.

    Raises:
        DivergedError: what is trained is not finite any more.
        DataError: a checkpoint cannot be written, or all are damaged.
        MismatchError: the checkpoint is of another architecture.
    """
    config = task.config
    waiting = waiting or Waiting(torch.device("cpu"))
    start, records = restore(task, checkpoint, work_key, say)
    check_start(start)
    on_start(start)
    for record in records:
        on_record(record)
    window = Window()
    for step in range(start, config.steps):
        task.prepare(step)
        with waiting.step():
            scalars = task.seeded_step(step)
        window.add(scalars)
        done = step + 1
        on_step(done)
        # Curves are cut at checkpoints too: a resumed run then averages over the same windows.
        checkpointed = done % config.checkpoint_every == 0 and done < config.steps
        if done % config.log_every == 0 or checkpointed or done == config.steps:
            curves = window.close()
            waiting.pause()
            if window.failed >= PATIENCE or (done == config.steps and not curves):
                raise DivergedError(
                    f"training diverged: {window.failed} steps in a row up to step {done} were "
                    "not finite; lower the learning rate (lr), set clip, or use precision: fp32")
            if curves:
                records.append({"step": done, **curves, **task.validate()})
                on_record(records[-1])
        if checkpointed and not window.failed:
            if is_main():
                store(task, checkpoint, work_key, done, records)
            on_checkpoint(done)
    return records
