"""What a flow run shows beside its log: Prefect's artifacts."""

import json
import logging
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from pipeline.overrides import MISSING, Change
from stages.status import ProgressStatus, read_status

EVERY_S = 5.0


def publish_report(reports: Path) -> None:
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

    It only informs: a server that is away for a while disturbs no stage.
    """

    def __init__(self, stage: str, root: Path, every_s: float = EVERY_S) -> None:
        self.stage, self.root, self.every_s = stage, root, every_s
        self.began = datetime.now(UTC).replace(microsecond=0)
        self.shown = -math.inf
        self.artifact: Any = None  # its id

    def update(self, now: bool = False) -> None:
        """Show what has changed; every few seconds at most, or `now`."""
        if not now and time.monotonic() - self.shown < self.every_s:
            return
        self.shown = time.monotonic()
        progress = self.read()
        if progress is None:
            return
        try:
            self.show(progress)
        except httpx.HTTPError as error:
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
