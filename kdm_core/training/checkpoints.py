"""The state of a training on disk: what the rest of the run depends on, in one file.

Files are named after the step; the last few are kept. A kill leaves the old ones and the new one,
or the old ones alone, and so does a full disk.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import DataError, MismatchError
from kdm_core.serialization import fingerprint, read_tensors, write_tensors
from kdm_core.training.task import Task

Record = dict[str, float]
"""One point of the training curves: "step" and named scalars."""


def checkpoint_path(checkpoint: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies; `checkpoint` is the name that all of a run share."""
    return checkpoint.with_name(f"{checkpoint.stem}-{step:08d}{checkpoint.suffix}")


def checkpoints(checkpoint: Path) -> dict[int, Path]:
    """All checkpoints of that name by step, the newest first."""
    digits = "[0-9]" * 8
    found = {int(path.stem[-8:]): path for path in
             checkpoint.parent.glob(f"{checkpoint.stem}-{digits}{checkpoint.suffix}")}
    return dict(sorted(found.items(), reverse=True))


def store(task: Task, checkpoint: Path, work_key: str, step: int, records: list[Record]) -> None:
    """Write the checkpoint of `step` and remove those that are not kept.

    Raises:
        DataError: it cannot be written; those before it are as they were.
    """
    tensors = {f"{name}/{key}": value for name, module in task.modules.items()
               for key, value in module.state_dict().items()}
    for name, optimizer in task.optimizers.items():
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state_tensors().items()}
    progress = {"work_key": work_key, "step": step, "architecture": architecture(task),
                "records": records}
    write_tensors(checkpoint_path(checkpoint, step), tensors,
                  {"progress": json.dumps(progress), "fingerprint": fingerprint(progress, tensors)})
    # What lies ahead of the run was damaged, or of another run.
    ahead = [path for found, path in checkpoints(checkpoint).items() if found > step]
    older = [path for found, path in checkpoints(checkpoint).items() if found <= step]
    unfinished = checkpoint.parent.glob(f".{checkpoint.stem}-*.tmp")
    for path in (*ahead, *older[task.config.keep_checkpoints:], *unfinished):
        path.unlink(missing_ok=True)


def restore(
    task: Task, checkpoint: Path, work_key: str, say: Callable[[str], None]
) -> tuple[int, list[Record]]:
    """Put the newest checkpoint that is whole back into the task.

    Args:
        task: as it was built; its state is replaced.
        checkpoint: the name that all checkpoints of the run share.
        work_key: of the run; checkpoints of another one are not used.
        say: told of each checkpoint that is damaged where an older one serves.

    Returns:
        The next step, and the curves so far; 0 and none where there is no checkpoint.

    Raises:
        DataError: there are checkpoints, and all of them are damaged.
        MismatchError: a checkpoint of this run is of another architecture.
    """
    damaged: list[str] = []
    for path in checkpoints(checkpoint).values():
        try:
            tensors, progress = read(path)
            if progress["work_key"] != work_key:
                continue
            check_architecture(path, task, progress["architecture"])
            load(task, tensors)
            result = int(progress["step"]), list(progress["records"])
        except (DataError, KeyError, ValueError, TypeError, RuntimeError) as error:
            damaged.append(f"{path} is damaged ({str(error)[:200]})")
            continue
        for problem in damaged:
            say(f"{problem}: going on from step {result[0]} instead")
        return result
    if damaged:
        raise DataError(f"{'; '.join(damaged)}: delete it to train from the start")
    return 0, []


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and progress of a checkpoint; ValueError where its bytes are not as written."""
    tensors, metadata = read_tensors(path)
    progress = json.loads(metadata["progress"])
    if metadata["fingerprint"] != fingerprint(progress, tensors):
        raise ValueError("its checksum does not fit")
    return tensors, progress


def load(task: Task, tensors: dict[str, Tensor]) -> None:
    """Put the tensors of a checkpoint into modules and optimisers."""
    def own(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}/"): value for key, value in tensors.items()
                if key.startswith(f"{name}/")}

    for name, module in task.modules.items():
        module.load_state_dict(own(name))
    for name, optimizer in task.optimizers.items():
        optimizer.load_state_tensors(own(name))


def architecture(task: Task) -> dict[str, Any]:
    """The configurations that the task's modules were built from."""
    configs = {name: getattr(module, "config", None) for name, module in task.modules.items()}
    return {name: config.model_dump(mode="json") for name, config in configs.items()
            if isinstance(config, Config)}


def check_architecture(path: Path, task: Task, found: dict[str, Any]) -> None:
    """Raise MismatchError, naming the fields that differ, unless both are the same."""
    fields = differences(found, architecture(task))
    if fields:
        raise MismatchError(f"{path} is of another architecture: {'; '.join(fields)}; use the "
                            "parameters that it was made with, or delete it to train from the "
                            "start")


def differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """The fields in which two configurations differ, with both values, as `a.b: 1, not 2`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*wanted, *found])
        return [line for key in keys for line in differences(
            found.get(key), wanted.get(key), f"{name}.{key}" if name else str(key))]
    return [] if found == wanted else [f"{name}: {found}, not {wanted}"]
