"""The choice of an average's length after the training, from snapshots that lie on disk.

Karras et al. 2024 (arXiv:2312.02696), section 3.2: snapshots of two power-function averages are
kept over the run, and any other average is made from them by least squares.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdm_core.errors import DataError, at_most
from kdm_core.serialization import write_tensors
from kdm_core.training.config import PostHocConfig
from kdm_core.training.ema import Averages
from kdm_core.training.profiles import synthesis


def snapshot_steps(config: PostHocConfig, steps: int) -> list[int]:
    """Numbers of steps done at which snapshots are taken: evenly spaced, the last at the end."""
    count = at_most("training.post_hoc.snapshots", config.snapshots, steps, "steps")
    return [-(-steps * part // count) for part in range(1, count + 1)]


def snapshot_path(checkpoint: Path, step: int) -> Path:
    """Where the snapshot lies that is taken after `step` steps."""
    return checkpoint.with_name(f"{checkpoint.stem}-averages-{step:08d}.safetensors")


def write_snapshot(checkpoint: Path, work_key: str, averages: Averages[Any], step: int) -> None:
    """Write the power-function averages as they are after `step` steps, all at once."""
    tensors = {f"{index}/{name}": value for index in range(len(averages.profiles))
               for name, value in averages.named_profile(index).items()}
    write_tensors(snapshot_path(checkpoint, step), tensors, {"work_key": work_key})


def choose(
    config: PostHocConfig, averages: Averages[Any], steps: int, checkpoint: Path,
    work_key: str, error: Callable[[], float],
) -> dict[str, float]:
    """Make `averages.shadow` the candidate with the smallest error.

    Args:
        config: profiles and candidates.
        averages: of a training that is complete, all of whose snapshots are written.
        steps: steps of that training.
        checkpoint: beside which the snapshots lie.
        work_key: of the run that wrote them.
        error: measures `averages.shadow`.

    Returns:
        `sigma_rel` of the choice, and the error of each candidate as `error_sigma_rel_WIDTH`.

    Raises:
        DataError: a snapshot is missing or damaged, or of another run.
    """
    times = snapshot_steps(config, steps)
    known = [(width, step) for step in times for width in config.profiles]
    factors = torch.from_numpy(synthesis(known, config.candidates, steps))
    paths = [snapshot_path(checkpoint, step) for step in times]
    candidates: list[dict[str, Tensor]] = [{} for _ in config.candidates]
    with opened(paths, work_key) as files:
        for name, parameter in averages.shadow.named_parameters():
            parts = [file.get_tensor(f"{index}/{name}").to(torch.float64).flatten()
                     for file in files for index in range(len(config.profiles))]
            mixed = (factors @ torch.stack(parts)).to(torch.float32)
            for candidate, value in zip(candidates, mixed, strict=True):
                candidate[name] = value.view(parameter.shape)
    errors = []
    for candidate in candidates:
        averages.show(candidate)
        errors.append(error())
    best = min(range(len(errors)), key=errors.__getitem__)
    averages.show(candidates[best])
    return {"sigma_rel": config.candidates[best],
            **{f"error_sigma_rel_{width:g}": value
               for width, value in zip(config.candidates, errors, strict=True)}}


@contextmanager
def opened(paths: Sequence[Path], work_key: str) -> Iterator[list[Any]]:
    """A context in which snapshots can be read tensor by tensor."""
    from safetensors import SafetensorError, safe_open

    path = paths[0]
    try:
        with ExitStack() as stack:
            files = []
            for path in paths:
                file = stack.enter_context(safe_open(path, framework="pt"))
                if (file.metadata() or {}).get("work_key") != work_key:
                    raise DataError(f"{path} belongs to another run: delete {path.parent} to "
                                    "train from the start")
                files.append(file)
            yield files
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: a snapshot of the averages is missing or damaged ({error}); "
                        f"delete {path.parent} to train from the start, or set training.post_hoc "
                        "to null") from error
