"""The pipeline as a Prefect flow: one task run for each DVC stage.

DVC decides what has to run and keeps the results; Prefect schedules, retries, logs and shows.
`python -m pipeline.flow` runs the flow without a server of its own standing by.
"""

import fcntl
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, wait
from prefect.settings import PREFECT_SERVER_ANALYTICS_ENABLED, temporary_settings
from prefect.tasks import Task

from kdm_core.errors import KDMError
from pipeline import repro
from pipeline.params import load_params

NAME = "kdm-distill"
# With `prefect concurrency-limit create kdm-stage 1`, one stage runs at a time.
TAG = "kdm-stage"
RETRIES = 2
RETRY_DELAY_S = 5


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
      retry_condition_fn=worth_retrying, tags=[TAG])
def run_stage(stage: str, root: Path, stop: threading.Event, beside_others: bool) -> None:
    """Run one DVC stage, its output going to the task run's log."""
    repro.reproduce(stage, root, get_run_logger().info, stop, beside_others)


@flow(name=NAME)
def distill(root: str = ".", stages: list[str] | None = None) -> None:
    """Run the pipeline of params.yaml, each stage as soon as those that it needs are done.

    Args:
        root: the project's folder, in which params.yaml lies.
        stages: run these only, on what is there of the others' results; all by default.

    Raises:
        ParamsError: params.yaml cannot be used.
        PipelineError: there is no pipeline in `root`.
        FlowError: `stages` names something unknown, a stage failed, or another run is under way.
    """
    folder = Path(root).resolve()
    load_params(folder / "params.yaml")
    graph = select(repro.stage_graph(folder), stages)
    with only_run(folder):
        run_stages(folder, graph)
    if "report" in graph:
        publish(folder / "reports")


def run_stages(folder: Path, graph: dict[str, set[str]]) -> None:
    """Run all stages of a graph, those that do not need each other side by side.

    Raises:
        FlowError: one failed.
    """
    stop = threading.Event()
    futures: dict[str, PrefectFuture[None]] = {}
    try:
        for stage, needs in graph.items():
            # All `train_student@…` run side by side, and so do all `evaluate@…`.
            group = [other for other in graph if other.split("@")[0] == stage.split("@")[0]]
            futures[stage] = run_stage.with_options(name=stage, task_run_name=stage).submit(
                stage, folder, stop, len(group) > 1, return_state=False,
                wait_for=[futures[need] for need in sorted(needs)])
        wait(list(futures.values()))
    finally:
        # Matters where a cancellation or Ctrl-C ended the wait: Prefect waits for its threads,
        # and they wait for their stages.
        stop.set()
    raise_failures(futures)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep a second run out: DVC would remove outputs that the first one's stages are writing.

    The lock goes with the process that holds it, however that ends.

    Raises:
        FlowError: there is another run.
    """
    with (folder / ".dvc" / "tmp" / "kdm-flow.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FlowError(f"another run is under way in {folder}") from error
        yield


def select(graph: dict[str, set[str]], stages: list[str] | None) -> dict[str, set[str]]:
    """The part of the graph that is asked for.

    Raises:
        FlowError: there is no such stage.
    """
    if stages is None:
        return graph
    unknown = sorted(set(stages) - set(graph))
    if unknown:
        raise FlowError(f"stages: no stage {', '.join(unknown)}; there are {', '.join(graph)}")
    return {stage: needs & set(stages) for stage, needs in graph.items() if stage in stages}


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


def publish(reports: Path) -> None:
    """The metrics and a link to the report, as artifacts of the flow run."""
    report = json.loads((reports / "report.json").read_text(encoding="utf-8"))
    create_table_artifact(metrics_table(report), key="kdm-metrics",
                          description=f"Students beside their teacher on {report['dataset']}")
    create_link_artifact((reports / "report.html").as_uri(), link_text="report.html",
                         key="kdm-report", description="The report, as one HTML file")


def metrics_table(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a metric, one column a model; null where a model does not have the metric."""
    models = {"teacher": report["teacher"],
              **{f"student {name}": figures for name, figures in report["students"].items()}}
    metrics = dict.fromkeys(metric for figures in models.values() for metric in figures)
    return [{"metric": metric, **{name: figures.get(metric) for name, figures in models.items()}}
            for metric in metrics]


def main() -> None:
    """Run the flow in the current folder; a failure is one message and exit code 1."""
    try:
        with temporary_settings({PREFECT_SERVER_ANALYTICS_ENABLED: False}):
            distill()
    except KDMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
