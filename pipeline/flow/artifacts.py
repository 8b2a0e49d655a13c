"""What a flow run shows beside its log: Prefect's artifacts."""

import json
import logging
import threading
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from pipeline.params.overrides import MISSING, Change
from pipeline.runtime.status import ProgressStatus, read_status

EVERY_S = 5.0
LAST_S = 2.0
"""How long the end of a stage waits for its last figures to be shown."""


def publish_report(reports: Path) -> None:
    """The metrics and a link to the report, as artifacts of the flow run."""
    report = json.loads((reports / "report.json").read_text(encoding="utf-8"))
    create_table_artifact(metrics_table(report), key="kdm-metrics",
                          description=f"Students beside {beside(report)} on {report['dataset']}")
    create_link_artifact((reports / "report.html").as_uri(), link_text="report.html",
                         key="kdm-report", description="The report, as one HTML file")


def beside(report: dict[str, Any]) -> str:
    """What the students of a report were measured beside."""
    return "the pairs that they learned from" if report.get("pairs") else "their teacher"


def metrics_table(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts, then one row a metric; a column a model, null where it has no such figure.

    Of a student that failed nobody is told how many times its teacher's speed it has.
    """
    source = "pairs" if report.get("pairs") else "teacher"
    models = {source: report[source],
              **{f"student {name}": figures for name, figures in report["students"].items()}}
    words = report.get("verdicts", {})
    said = {source: words.get(source),
            **{f"student {name}": one for name, one in words.get("students", {}).items()}}
    word = {name: (said.get(name) or {}).get("word") for name in models}
    models = {name: {key: value for key, value in figures.items()
                     if (word[name], key) != ("failed", "speedup")}
              for name, figures in models.items()}
    metrics = dict.fromkeys(metric for figures in models.values() for metric in figures)
    return [{"metric": "verdict", **word},
            *({"metric": metric, **{name: figures.get(metric) for name, figures in models.items()}}
              for metric in metrics)]


def publish_changes(changes: list[Change]) -> None:
    """What the overrides changed in params.yaml, as a table."""
    rows = [{"parameter": change.parameter, "before": shown(change.before),
             "now": shown(change.now)} for change in changes]
    create_table_artifact(rows, key="kdm-overrides",
                          description="What this run changed in params.yaml")


def shown(value: Any) -> str:
    """A parameter's value as it could stand in the file; nothing where there is none."""
    return "" if value is MISSING else json.dumps(value, ensure_ascii=False)


class StageProgress:
    """How far a stage is, as an artifact of its task run, by what its status file says.

    Renewed every few seconds while its context is open, by a thread of its own: it only informs,
    and a server that is away keeps Prefect's client waiting for a minute or more.
    """

    def __init__(self, stage: str, root: Path) -> None:
        self.stage, self.root = stage, root
        self.began = datetime.now(UTC).replace(microsecond=0)
        self.artifact: Any = None  # its id
        self.over = threading.Event()
        # Artifacts belong to the run in whose context they are made.
        self.thread = threading.Thread(target=copy_context().run, args=(self.follow,), daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(LAST_S)

    def follow(self) -> None:
        """Show what there is until the context is left, and then how far the stage came."""
        while not self.over.wait(EVERY_S):
            self.update()
        self.update()

    def update(self) -> None:
        """Show what there is now."""
        progress = self.read()
        if progress is None:
            return
        try:
            self.show(progress)
        # Whatever Prefect's client raises, no stage is to fail for it.
        except Exception as error:
            logging.getLogger(__name__).warning("%s: progress is not shown: %s", self.stage, error)

    def read(self) -> ProgressStatus | None:
        """The progress of this run of the stage; None before there is any."""
        status = read_status(self.root, self.stage)
        if status is None or datetime.fromisoformat(status.started) < self.began:
            return None
        return status.progress

    def show(self, progress: ProgressStatus) -> None:
        percent = 100 * progress.done / progress.total if progress.total else 100.0
        about = f"{progress.name}: {progress.done:,} of {progress.total:,} {progress.unit}"
        if progress.left_s is not None:
            about += f", {progress.rate:.3g} {progress.unit}/s, {progress.left_s:.0f} s left"
        if self.artifact is None:
            self.artifact = create_progress_artifact(percent, key=key_of(self.stage),
                                                     description=about)
        else:
            update_progress_artifact(self.artifact, percent, description=about)


def key_of(stage: str) -> str:
    """The artifact of a stage's progress; Prefect wants small letters, digits and dashes."""
    return "kdm-progress-" + "".join(c if c.isalnum() else "-" for c in stage.lower())
