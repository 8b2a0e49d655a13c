"""The training loop: steps, curves, checkpoints. What is trained is a `Task`."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kdm_core.compute import dropout_seed, seeded
from kdm_core.errors import DataError, DivergedError
from kdm_core.serialization import read_tensors, write_tensors
from kdm_core.training.config import TrainingConfig
from kdm_core.training.optimizer import ScheduledAdam

Record = dict[str, float]
"""One point of the training curves: "step" and named scalars."""


class Task(ABC):
    """Something that is trained step by step and can be put into a checkpoint.

    Attributes:
        config: steps, batch, rates.
        seed: decides, with the step, all that is random in it.
        modules: everything with weights that a later step depends on (models, averages, critics).
        optimizers: everything with moments.
    """

    config: TrainingConfig
    seed: int
    modules: dict[str, nn.Module]
    optimizers: dict[str, ScheduledAdam]

    @abstractmethod
    def step(self, step: int) -> dict[str, Tensor]:
        """Train on the batch of step `step`; returns scalars for the curves, with "loss"."""

    def seeded_step(self, step: int) -> dict[str, Tensor]:
        """`step` with what dropout layers draw a function of (seed, step), too."""
        with seeded(dropout_seed(self.seed, step)):
            return self.step(step)

    def validate(self) -> dict[str, float]:
        """Scalars measured on held-out data at each point of the curves; none by default."""
        return {}


def fit(
    task: Task,
    checkpoint: Path,
    work_key: str,
    on_step: Callable[[int], None] = lambda step: None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Train a task to its last step, from its checkpoint if there is one.

    Since batches and random numbers are functions of the step, a run that was killed ends with
    the weights of one that was not (bit for bit on a CPU with the same number of threads).

    Args:
        task: what to train.
        checkpoint: file that holds the state of a run that is under way.
        work_key: identifies the run; a checkpoint of another one is not used.
        on_step: called with the number of steps done, for progress.
        on_record: called with each point of the curves, those of the checkpoint first.

    Returns:
        All points of the curves.

    Raises:
        DivergedError: the loss is not finite.
        DataError: the checkpoint cannot be written, or is damaged.
    """
    config = task.config
    start, records = restore(task, checkpoint, work_key)
    for record in records:
        on_record(record)
    sums: dict[str, Tensor] = {}
    window = 0
    for step in range(start, config.steps):
        for name, value in task.seeded_step(step).items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        window += 1
        done = step + 1
        on_step(done)
        # Curves are cut at checkpoints too: a resumed run then averages over the same windows.
        checkpointed = done % config.checkpoint_every == 0
        if done % config.log_every == 0 or checkpointed or done == config.steps:
            record = {name: float(value) / window for name, value in sums.items()}
            if not all(math.isfinite(value) for value in record.values()):
                raise DivergedError(
                    f"training diverged: {record} at step {done}; lower the learning rate (lr), "
                    "set clip, or use precision: fp32")
            records.append({"step": done, **record, **task.validate()})
            on_record(records[-1])
            sums, window = {}, 0
        if checkpointed and done < config.steps:
            store(task, checkpoint, work_key, done, records)
    return records


def store(task: Task, checkpoint: Path, work_key: str, step: int, records: list[Record]) -> None:
    """Write everything the rest of the run depends on, in one file, all at once."""
    tensors = {f"{name}/{key}": value for name, module in task.modules.items()
               for key, value in module.state_dict().items()}
    for name, optimizer in task.optimizers.items():
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state_tensors().items()}
    progress = json.dumps({"work_key": work_key, "step": step, "records": records})
    write_tensors(checkpoint, tensors, {"progress": progress})


def restore(task: Task, checkpoint: Path, work_key: str) -> tuple[int, list[Record]]:
    """Put a checkpoint back into the task; returns the next step and the curves so far."""
    if not checkpoint.exists():
        return 0, []
    tensors, metadata = read_tensors(checkpoint)
    try:
        progress = json.loads(metadata["progress"])
        if progress["work_key"] != work_key:
            return 0, []

        def own(name: str) -> dict[str, Tensor]:
            return {key.removeprefix(f"{name}/"): value for key, value in tensors.items()
                    if key.startswith(f"{name}/")}

        for name, module in task.modules.items():
            module.load_state_dict(own(name))
        for name, optimizer in task.optimizers.items():
            optimizer.load_state_tensors(own(name))
        return int(progress["step"]), list(progress["records"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{checkpoint} is damaged ({str(error)[:200]}): delete it to train from "
                        "the start") from error
