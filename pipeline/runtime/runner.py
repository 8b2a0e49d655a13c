"""What every stage program does besides its work: parameters, errors, resumption, timings."""

import hashlib
import json
import os
import platform
import shutil
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from kdm_core.compute import is_worker
from kdm_core.errors import Adapted, KDMError, printable
from kdm_core.serialization import write_atomic, write_json
from kdm_core.weights import WeightsMissing
from pipeline.params.run import Params, load_params
from pipeline.runtime import log, paths, status
from pipeline.runtime.guard import Code, end_with_dvc, is_of_dvc, leave, only_run
from pipeline.runtime.plan.plans import current_plan, written
from pipeline.runtime.plan.resolving import parameters_of
from pipeline.runtime.stopping import INTERRUPTED, end_interrupted


class Stage:
    """One run of one stage.

    Attributes:
        name: as DVC calls it, e.g. `train_student@kdm`.
        params: the whole of params.yaml, validated.
        plan: what decides the result besides what other stages made.
        device: where to compute.
        notes: what was adapted, in a line each; the report has them among its conditions.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.params: Params = load_params()
        self.plan = current_plan(name)
        self.code = Code(self.plan["code"])
        self.require_planned()
        self.device = self.params.compute.there()
        if self.params.compute.threads:
            torch.set_num_threads(self.params.compute.threads)
        # Seeds in params.yaml decide everything; kernels that add in a random order would undo
        # that. Where a device has no deterministic kernel, torch warns.
        torch.use_deterministic_algorithms(self.params.compute.deterministic, warn_only=True)
        self.started = time.perf_counter()
        self.notes: list[str] = []

    def say(self, message: str) -> None:
        log.say(message, stage=self.name)

    def warn(self, message: str) -> None:
        """Say what a user should look at; the report has it from the stage's result."""
        log.say(message, "warning", stage=self.name)

    def note(self, message: str) -> None:
        """Say what was adapted, and keep the line for the report."""
        message = printable(message)
        if message not in self.notes:
            self.notes.append(message)
            if is_first():  # of processes that train together, each meets the same
                self.say(f"note: {message}")

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Take what the library says of adaptations as notes of this stage."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", Adapted)
            former = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
                if issubclass(category, Adapted):
                    self.note(str(message))
                else:
                    former(message, category, *rest)

            warnings.showwarning = cast(Any, show)
            yield

    def seed(self, purpose: str) -> int:
        """A 31-bit seed for one purpose of this stage, from the run's seed."""
        return self._seed(self.name, purpose)

    def shared_seed(self, purpose: str) -> int:
        """The same for all students, whose figures are then compared fairly."""
        return self._seed(self.name.split("@")[0], purpose)

    def _seed(self, name: str, purpose: str) -> int:
        text = f"{self.params.seed}/{name}/{purpose}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1

    def key(self, *inputs: Any) -> str:
        """A hash of a stage's inputs and its plan's code: the same for work that is the same.

        Args:
            inputs: all that the result depends on besides: parameters, fingerprints.
        """
        made_by = [self.plan["code"], self.plan["torch"]]
        text = json.dumps([self.name, inputs, made_by], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def work_folder(self, *inputs: Any) -> tuple[Path, str]:
        """The folder in which this stage's unfinished work lies, and the work's key.

        Args:
            inputs: as those of `key`.
        """
        key = self.key(*inputs)
        return self.folder_of(key), key

    def folder_of(self, key: str) -> Path:
        """The folder of unfinished work of a key.

        DVC removes a stage's outputs before it runs the stage; it knows nothing of this folder,
        whose content `finish` moves to the output's place.
        """
        if status.current is not None:
            status.current.begin_work(key[:16])
        folder = paths.WORK / self.name / key[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def require_planned(self) -> None:
        """Make sure that DVC records as this stage's plan what it works by.

        Raises:
            KDMError: parameters or code were edited after the plan was written, or since this
                program began to read them.
        """
        self.code.require_settled()
        planned = written(self.name)
        if (self.plan["parameters"] != json.loads(json.dumps(parameters_of(self.name, self.params)))
                or is_of_dvc() and (planned is None or json.loads(planned) != self.plan)):
            raise KDMError("params.yaml or the code was edited after this run was planned: run "
                           "`dvc repro` again")

    def finish(self, result: Path, output: Path) -> None:
        """Move a complete result to its place, all at once, and drop the rest of the work.

        Raises:
            KDMError: another plan was written meanwhile; the work stays where it is.
        """
        self.require_planned()
        if output.exists():
            shutil.rmtree(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        result.replace(output)
        work = paths.WORK / self.name
        if work in result.parents:
            shutil.rmtree(result.parent)

    def write_metrics(self, name: str, figures: Mapping[str, float | str | None]) -> None:
        """Keep the few figures by which runs are compared, as `dvc metrics` and `dvc exp` show
        them: rounded to three digits, and without those that are not known.

        `name`: of what they are about; all such names are in one table.
        """
        known = {key: shown(value) for key, value in figures.items() if value is not None}
        # In the order in which they are given, in which `dvc exp show` has its columns.
        text = json.dumps(known, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomic(paths.REPORTS / f"{name}.json", f"{text}\n".encode())

    def write_timing(self, **figures: float | int | str) -> None:
        """Keep how long the work took and on what, for the report.

        Runs that did not come to their end count; what they did is not in the `throughput`.
        """
        run = status.current
        earlier = run.status.earlier_s if run is not None else 0.0
        write_json(paths.TIMINGS / f"{self.name}.json", {
            "seconds": round(earlier + time.perf_counter() - self.started, 2),
            "earlier_seconds": earlier,
            "finished": status.timestamp(),
            "throughput": [counted._asdict() for counted in run.counted] if run is not None else [],
            "device": str(self.device),
            "hardware": hardware(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "notes": self.notes,
            **figures,
        })


def shown(value: float | str) -> float | str:
    """A figure with three digits; whole numbers and words as they are."""
    if isinstance(value, str) or value == round(value):
        return value if isinstance(value, str) else round(value)
    return float(f"{value:.3g}")


def is_first() -> bool:
    """Whether this is the only process that trains, or the first of several."""
    return not is_worker() or os.environ.get("RANK", "0") == "0"


def hardware(device: torch.device) -> str:
    """What a device is, as far as it tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{cpu}, {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else cpu


def run(
    name: str, main: Callable[[Stage], None], relief: str = "lower the batch sizes in params.yaml"
) -> None:
    """Run a stage program; what a user can mend is one message and exit code 1.

    `relief` says what to do where memory does not suffice.
    """
    if not is_worker():  # those end with the program that started them
        end_with_dvc()
    rank = int(os.environ.get("RANK", "0")) if is_worker() else None
    explain = partial(explanation, relief=relief)
    try:
        log.set_up(name)
        # Of processes that train together, the one that started them has the lock.
        with (nullcontext() if is_worker() else only_run(name, log.say),
              status.recorded(name, explain, rank)):
            stage = Stage(name)
            with stage.noting():
                main(stage)
            stage.require_planned()
        leave()
    except KeyboardInterrupt:
        end_interrupted()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # of the processes that this one has started
            end_interrupted()
        raise
    except Exception as error:
        text = explain(error)
        if text is None:
            raise
        sys.exit(log.failure(text))


def with_command(error: WeightsMissing) -> str:
    """The message, and the command that fetches what is missing."""
    return f"{error}; `kdm weights fetch {error.name}` fetches them" if error.name else str(error)


def explanation(error: BaseException, relief: str) -> str | None:
    """What a user can mend, in one message; None for anything else."""
    if isinstance(error, WeightsMissing):
        return with_command(error)
    if isinstance(error, KDMError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"not enough device memory ({error}); {relief}, or set compute.device: cpu"
    # The second is how torch says it on a CPU.
    if isinstance(error, MemoryError) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return f"not enough memory; {relief}"
    if isinstance(error, OSError):
        return printable(f"{error.filename or 'input/output'}: {error.strerror or error}")
    if isinstance(error, sqlite3.OperationalError):  # of DVC, which DVCLive asks
        return (f"DVC cannot write its database under .dvc ({error}): free some space or check "
                "the permissions, then run again")
    return None
