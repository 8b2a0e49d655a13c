"""The pipeline as a Prefect flow: one task run for each DVC stage.

DVC decides what has to run and keeps the results; Prefect schedules, retries, logs and shows.
`python -m pipeline.flow` runs the flow without a server of its own standing by.
"""

import fcntl
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.settings import (
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from prefect.tasks import Task
from pydantic import Field

from kdm_core.errors import KDMError
from kdm_core.serialization import write_atomic
from pipeline.flow.artifacts import StageProgress, publish_changes, publish_report
from pipeline.flow.server import require_server
from pipeline.params.overrides import Change, Overrides, override
from pipeline.params.reading import read_file
from pipeline.params.run import load_params
from pipeline.project import repro
from pipeline.project.current import require_current_project
from pipeline.project.staleness import PLAN, standings
from pipeline.runtime.guard import try_lock

NAME = "kdm-distill"
# With `prefect concurrency-limit create kdm-stage 1`, one stage runs at a time, and with kdm-gpu
# one of those that compute on a GPU.
TAG, GPU_TAG = "kdm-stage", "kdm-gpu"
WITHOUT_GPU = (PLAN, "prepare_data", "report")
RETRIES = 2
RETRY_DELAY_S = 5
START_S = 180
"""How long a server of this process alone may take to start: Prefect's 20 s are too few where a
machine is busy."""


class FlowError(KDMError):
    """The flow cannot start, or some of its stages failed."""


def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may go better: not where the stage said what a person must mend.

    A stage that was killed (for memory, say) goes on from its last checkpoint.
    """
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, repro.StageStopped)
                or isinstance(error, repro.StageError) and error.mendable)


# What has run before is DVC's knowledge, so Prefect caches nothing.
@task(cache_policy=NO_CACHE, retries=RETRIES, retry_delay_seconds=RETRY_DELAY_S,
      retry_condition_fn=worth_retrying)
def run_stage(
    stage: str, root: Path, stop: threading.Event, beside_others: bool, timeout_s: float | None,
    is_current: bool = False,
) -> None:
    """Run one DVC stage, its output going to the task run's log and its progress to an artifact.

    DVC, which takes a second or two to say so, is not asked about one that is known to be current.
    """
    if is_current:
        get_run_logger().info("nothing that it depends on has changed")
        return
    with StageProgress(stage, root):
        repro.reproduce(stage, root, get_run_logger().info, stop, beside_others, timeout_s)


@flow(name=NAME)
def distill(
    overrides: Overrides | None = None,
    stages: list[str] | None = None,
    stage_timeout_s: Annotated[float, Field(gt=0)] | None = None,
    root: str = ".",
) -> None:
    """Run the pipeline of params.yaml, each stage as soon as those that it needs are done.

    Args:
        overrides: values to write into params.yaml before anything runs; what is left out here
            stays as it is there.
        stages: run these only, on what is there of the others' results; all by default.
        stage_timeout_s: seconds after which a stage is stopped; the next run goes on with it.
        root: the project's folder, in which params.yaml lies.

    Raises:
        ServerError: the Prefect server cannot be used.
        ParamsError: params.yaml cannot be used, or not with the overrides.
        PipelineError: there is no project in `root`, or one of an older version.
        FlowError: `stages` names something unknown, a stage failed, or another run is under way.
    """
    require_server()
    folder = Path(root).resolve()
    require_current_project(folder)
    with only_run(folder):
        job = prepare(folder, overrides or {}, stages)
        if job.changes:
            publish_changes(job.changes)
        run_stages(folder, job, stage_timeout_s)
    if "report" in job.graph:
        publish_report(folder / "reports")


class Job(NamedTuple):
    """What a run is to do.

    Attributes:
        graph: the stages to run, and for each those of them that it needs.
        current: those of them whose results are up to date.
        on_gpu: whether they compute on a GPU.
        changes: what the overrides have changed in params.yaml.
    """

    graph: dict[str, set[str]]
    current: set[str]
    on_gpu: bool
    changes: list[Change]


def prepare(folder: Path, overrides: dict[str, Any], stages: list[str] | None) -> Job:
    """Write the overrides into params.yaml, which stays as it was if that makes no run.

    Raises:
        KDMError: no run comes of this; the message says why.
    """
    file = folder / "params.yaml"
    before = read_file(file)
    changes = override(file, overrides)
    try:
        device = load_params(file).compute.there()
        graph = select(repro.stage_graph(folder), stages)
        current = current_of(folder, graph)
    except BaseException:
        if changes:
            write_atomic(file, before)
        raise
    return Job(graph, current, device.type != "cpu", changes)


def current_of(folder: Path, graph: dict[str, set[str]]) -> set[str]:
    """The stages of a graph whose results are up to date; if all are, so is their plan."""
    current = {one.stage for one in standings(folder) if one.is_current}
    return current | ({PLAN} if graph.keys() <= current | {PLAN} else set())


def run_stages(folder: Path, job: Job, timeout_s: float | None) -> None:
    """Run the stages of a job, those that do not need each other side by side.

    Raises:
        FlowError: one failed.
    """
    stop = threading.Event()
    futures: dict[str, PrefectFuture[None]] = {}
    try:
        for stage, needs in job.graph.items():
            # All `train_student@…` run side by side, and so do all `evaluate@…`.
            group = [other for other in job.graph if other.split("@")[0] == stage.split("@")[0]]
            made = run_stage.with_options(
                name=stage, task_run_name=stage, tags=tags_of(stage, job.on_gpu))
            futures[stage] = made.submit(
                stage, folder, stop, len(group) > 1, timeout_s, stage in job.current,
                return_state=False,
                wait_for=[futures[need] for need in sorted(needs)])
        wait(list(futures.values()))
    finally:
        # Matters where a cancellation or Ctrl-C ended the wait: Prefect waits for its threads,
        # and they wait for their stages.
        stop.set()
    raise_failures(futures)


def tags_of(stage: str, on_gpu: bool) -> set[str]:
    """What the concurrency limits of Prefect know a stage by."""
    return {TAG, GPU_TAG} if on_gpu and stage not in WITHOUT_GPU else {TAG}


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep a second run out: DVC would remove outputs that the first one's stages are writing.

    The lock goes with the process that holds it, however that ends.

    Raises:
        FlowError: there is another run.
    """
    path = folder / ".dvc" / "tmp" / "kdm-flow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)  # DVC makes it, and may not have run here yet
    with path.open("w") as file:
        if not try_lock(file.fileno(), fcntl.LOCK_EX):
            raise FlowError(f"another run is under way in {folder}")
        yield


def select(graph: dict[str, set[str]], stages: list[str] | None) -> dict[str, set[str]]:
    """The part of the graph that is asked for, and the plan of it.

    Raises:
        FlowError: there is no such stage.
    """
    if stages is None:
        return graph
    unknown = sorted(set(stages) - set(graph))
    if unknown:
        raise FlowError(f"stages: no stage {', '.join(unknown)}; there are {', '.join(graph)}")
    asked = {*stages, PLAN}
    return {stage: needs & asked for stage, needs in graph.items() if stage in asked}


def raise_failures(futures: dict[str, PrefectFuture[None]]) -> None:
    """Name the stages that failed; the message of each is in its own task run.

    Raises:
        FlowError: not all stages are completed.
    """
    states = {stage: future.state for stage, future in futures.items()}
    failed = [stage for stage, state in states.items() if state.is_failed() or state.is_crashed()]
    missing = [stage for stage, state in states.items()
               if not state.is_completed() and stage not in failed]
    if failed:
        messages = [f"{states[stage].message}" for stage in failed]
        skipped = f"\nnot run for that: {', '.join(missing)}" if missing else ""
        raise FlowError("\n".join(messages) + skipped)
    if missing:
        raise FlowError(f"not run: {', '.join(missing)}")


def main() -> None:
    """Run the flow in the current folder; a failure is one message and exit code 1."""
    # However it is told to stop, it stops its stages, and the server that Prefect has started.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        require_server()
        with temporary_settings(
                {PREFECT_SERVER_ANALYTICS_ENABLED: False},
                set_defaults={PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: START_S}):
            distill()
    except KDMError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the next run goes on with what is unfinished")
