"""Training curves as files of programs that show those of many runs: TensorBoard, and Weights &
Biases. Both are installed only by who wants them."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdm_core.errors import DataError, KDMError, adapted, shown
from kdm_core.figures.curves import Curve
from pipeline.reporting.reading import damaged, read_curves
from pipeline.runtime import paths

Tracker = Literal["tensorboard", "wandb"]
Runs = Mapping[str, Mapping[str, Curve]]
"""The curves of each model, by the names of both."""


def export_curves(names: Sequence[str], tracker: Tracker, out: Path) -> list[str]:
    """Write the curves of this folder's models for a program, a run each, without a network.

    Args:
        names: `teacher` and names of students; empty for all that have curves.
        out: a folder that is not there yet.

    Returns:
        The models.

    Raises:
        DataError: there are none, or one is unknown or damaged.
        KDMError: the program is not installed.
    """
    there = sorted(path.parent.name for path in paths.CURVES.glob("*/plots"))
    if unknown := sorted(set(names) - set(there)):
        raise DataError(f"no curves of {', '.join(map(shown, unknown))} in {paths.CURVES}: there "
                        f"are {', '.join(map(shown, there)) or 'none'}; training writes them")
    if not there:
        raise DataError(f"there is nothing in {paths.CURVES}: go to a project's folder in which a "
                        "model has been trained (`dvc repro`)")
    runs = {name: curves_of(name) for name in names or there}
    WRITERS[tracker](runs, out)
    return list(runs)


def curves_of(name: str) -> dict[str, Curve]:
    """A model's curves, whose steps are whole numbers that rise.

    Raises:
        DataError: a file is missing or damaged.
    """
    stage = "teacher" if name == "teacher" else f"train_student@{name}"
    curves = read_curves(name, stage)
    for term, (steps, values) in curves.items():
        file = paths.CURVES / name / "plots/metrics" / f"{term}.tsv"
        if not (np.all((steps >= 0) & (steps < 2**53)) and np.all(steps % 1 == 0)
                and np.all(np.diff(steps) > 0)):
            raise damaged(file, stage, "its steps are not whole numbers that rise from 0")
        if count := int(np.sum(~np.isfinite(values))):
            adapted(f"{file}: {count} of {len(values)} values are not finite, and are written so")
    return curves


def write_tensorboard(runs: Runs, out: Path) -> None:
    """Event files, a folder a model."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing("tensorboard", error) from error
    for name, curves in runs.items():
        with SummaryWriter(str(out / name)) as writer:
            for term, curve in curves.items():
                for step, value in points(curve):
                    writer.add_scalar(term, value, step)


def write_wandb(runs: Runs, out: Path) -> None:
    """Runs that `wandb sync` uploads, of a project that is called as the current folder."""
    # It would report errors of its own to its makers.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    try:
        import wandb
    except ImportError as error:
        raise missing("wandb", error) from error
    out.mkdir(parents=True)  # it takes another folder where there is none
    # Nothing but the curves: not the machine, nor the packages, nor the code.
    settings = wandb.Settings(
        mode="offline", silent=True, console="off", disable_git=True, disable_code=True,
        x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        x_save_requirements=False)
    project = re.sub(r"[/\\#?%:]", "-", Path.cwd().name)[:128]
    for name, curves in runs.items():
        logged: dict[int, dict[str, float]] = defaultdict(dict)
        for term, curve in curves.items():
            for step, value in points(curve):
                logged[step][term] = value
        with wandb.init(project=project, name=name, dir=str(out), settings=settings) as run:
            for step in sorted(logged):
                run.log(logged[step], step=step)
    wandb.teardown()  # its process may still be writing, of which a run that is finished knows not


def points(curve: Curve) -> list[tuple[int, float]]:
    """Steps and values, as Python's numbers."""
    return [(int(step), float(value)) for step, value in zip(*curve, strict=True)]


def missing(package: str, error: ImportError) -> KDMError:
    return KDMError(f"{package} needs the package {package}: pip install {package} ({error})",
                    field="format")


WRITERS: dict[Tracker, Callable[[Runs, Path], Any]] = {
    "tensorboard": write_tensorboard, "wandb": write_wandb}
