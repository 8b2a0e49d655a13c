"""`kdm status`: what is done, what runs, what is stale and why, and how long it will take."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from kdm_core.errors import DataError
from pipeline.reporting.text import duration

if TYPE_CHECKING:
    from pipeline.project.staleness import Standing
    from pipeline.runtime.status import Status

WATCH_S = 2.0
CLEAR = "\x1b[2J\x1b[H"
"""Makes a terminal empty and writes from its top."""
COLOURS = {"done": typer.colors.GREEN, "running": typer.colors.CYAN, "failed": typer.colors.RED,
           "interrupted": typer.colors.YELLOW, "stale": typer.colors.YELLOW}


class Row(NamedTuple):
    """One stage.

    Attributes:
        state: done, running, interrupted, failed, stale or never run.
        detail: in words.
        left_s: seconds until it is done; None if that is unknown.
        pid: of the process that runs it.
        progress: what it counts, as in its status file.
        why: what has changed since it was run, by kind.
        after: stages whose results are not up to date either.
        kept: unfinished work, in words.
        error: why it failed.
    """

    stage: str
    state: str
    detail: str
    left_s: float | None = None
    pid: int | None = None
    progress: dict[str, Any] | None = None
    why: dict[str, list[str]] = {}
    after: list[str] = []
    kept: str = ""
    error: str | None = None


def status(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]
    = False,
    watch: Annotated[bool, typer.Option(help="Show it again every two seconds, until Ctrl-C.")]
    = False,
) -> None:
    """What is done, running or stale, how much of the pairs is there, and the time left.

    Only looks: a pipeline that runs is not disturbed.
    """
    try:
        while True:
            document = survey()
            text = json.dumps(document) if as_json else render(document)
            if watch and not as_json:
                typer.echo(CLEAR, nl=False)
            typer.echo(text)
            if not watch:
                return
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return


def survey() -> dict[str, Any]:
    """All that there is to say about the project in the current folder, as JSON has it.

    Raises:
        PipelineError: there is no pipeline, or DVC cannot read it.
        DataError: a file of the pipeline's own is damaged.
    """
    from pipeline.project.current import require_current_project
    from pipeline.project.staleness import standings
    from pipeline.project.unfinished import pairs_there
    from pipeline.runtime.status import read_status

    require_current_project(Path())
    params = read_raw(Path("params.yaml"))
    rows = [describe(standing, params) for standing in standings(Path())]
    pairs = pairs_there(read_status(Path(), "sample_pairs"))
    to_do = [row for row in rows if row.state != "done"]
    return {
        "stages": [row._asdict() for row in rows],
        "pairs": None if pairs is None else pairs._asdict(),
        "left_s": sum(row.left_s or 0 for row in to_do),
        "left_unknown": [row.stage for row in to_do if row.left_s is None],
        "verdicts": verdicts(rows),
    }


def verdicts(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """What evaluations came to, by student: the words on it and on its teacher, and whether they
    are of what there is now.

    Raises:
        DataError: the figures of an evaluation are damaged.
    """
    found = {}
    for row in rows:
        stage, _, name = row.stage.partition("@")
        path = Path(f"data/evaluation/{name}/evaluation.json")
        if stage != "evaluate" or not path.is_file():
            continue
        try:
            words = json.loads(path.read_bytes()).get("verdicts", {})
            if words:
                found[name] = {str(who): str(one["word"]) for who, one in words.items()} | {
                    "current": row.state == "done"}
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged ({error}): delete it") from error
    return found


def describe(standing: "Standing", params: Any) -> Row:
    """The row of a stage, from what DVC, the stage's lock and its status file say."""
    from pipeline.runtime.guard import holder
    from pipeline.runtime.status import read_status

    name, last = standing.stage, read_status(Path(), standing.stage)
    seconds = recorded_seconds(name) or (last.complete_s if last is not None else None)
    if (pid := holder(name)) is not None or standing.busy:
        return running(name, pid, last)
    if standing.is_current:
        return Row(name, "done", "" if seconds is None else f"took {duration(seconds)}")
    if last is not None and last.state != "done":
        row = unfinished(last, params, seconds)
    elif standing.recorded:
        row = Row(name, "stale", reasons(standing), seconds)
    else:
        # A stage program was run by itself, or its DVC was killed.
        row = Row(name, "never run", "" if last is None else "DVC has not recorded its result",
                  seconds)
    return row._replace(why=standing.why, after=standing.waits_for)


def reasons(standing: "Standing") -> str:
    """Why a stage is stale, in a line: of many names of a kind, the first and how many more."""
    parts = [f"{kind} ({first(names)})" for kind, names in standing.why.items()]
    if standing.waits_for:
        parts.append(f"after {first(standing.waits_for)}")
    return "; ".join(parts)


def first(names: list[str]) -> str:
    """The first of some names, and how many others there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def unfinished(last: "Status", params: Any, seconds: float | None) -> Row:
    """The row of a stage that did not come to its end when it was run last."""
    from pipeline.project.unfinished import kept_work

    kept = kept_work(last.stage, params, last)
    state = "failed" if last.state == "failed" else "interrupted"
    cause = {"failed": last.error, "stopped": "stopped"}.get(last.state, "killed")
    left = last.progress.left_s if last.progress is not None else None
    return Row(last.stage, state, f"{cause}; kept: {kept}" if kept else str(cause),
               seconds if left is None else left, kept=kept, error=last.error)


def running(name: str, pid: int | None, last: "Status | None") -> Row:
    """The row of a stage that runs, or whose result DVC writes down."""
    if pid is None:
        return Row(name, "running", "DVC prepares it or writes down its result")
    if last is None:
        return Row(name, "running", f"pid {pid}", pid=pid)
    parts, progress = [f"pid {pid} since {local_time(last.started)}"], last.progress
    if progress is None:
        return Row(name, "running", parts[0], pid=pid)
    parts.append(f"{progress.name}: {progress.done:,} of {progress.total:,} {progress.unit}s "
                 f"({progress.done / max(progress.total, 1):.0%})")
    if progress.left_s is not None:
        parts.append(f"{progress.rate:,.1f}/s, {duration(progress.left_s)} left")
    if progress.note:
        parts.append(progress.note)
    return Row(name, "running", ", ".join(parts), progress.left_s, pid, progress.model_dump())


def recorded_seconds(stage: str) -> float | None:
    """How long a stage took, as far as its result is there."""
    from pipeline.runtime import paths

    path = paths.TIMINGS / f"{stage}.json"
    try:
        return float(json.loads(path.read_bytes())["seconds"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it") from error


def read_raw(path: Path) -> Any:
    """params.yaml as it stands there: DVC says what is wrong with it, if anything is."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError, UnicodeDecodeError):
        return None


def render(document: dict[str, Any]) -> str:
    """The survey as a table and two lines below it."""
    width = max(len(row["stage"]) for row in document["stages"])
    lines = [f"{row['stage']:{width}}  "
             f"{typer.style(format(row['state'], '11'), fg=COLOURS.get(row['state']))}  "
             f"{row['detail'].splitlines()[0] if row['detail'] else ''}".rstrip()
             for row in document["stages"]]
    pairs = document["pairs"]
    if pairs is not None:
        shards = f" ({pairs['shards_done']} of {pairs['shards']} shards)" if pairs["shards"] else ""
        lines += ["", f"pairs      {pairs['done']:,} of {pairs['total']:,}{shards} in "
                      f"{pairs['location']}"]
    lines.append(f"time left  {time_left(document)}")
    if document["verdicts"]:
        lines += ["", *tell(document["verdicts"])]
    return "\n".join(lines)


def tell(found: dict[str, dict[str, Any]]) -> list[str]:
    """A line on what was learned from and one on each student; the report says why."""
    from kdm_core.samples import SOURCE_NAMES

    words: dict[str, str] = {}
    for name, own in found.items():
        stale = "" if own["current"] else " (of an earlier run)"
        for source, known_as in SOURCE_NAMES.items():
            if source in own:
                words.setdefault(known_as, f"{own[source]}{stale}")
        words[name] = f"{own['student']}{stale}"
    width = max(map(len, words))
    return [f"verdict    {name:{width}}  "
            + (typer.style(word, fg=typer.colors.RED) if word.startswith("failed") else word)
            for name, word in words.items()]


def time_left(document: dict[str, Any]) -> str:
    """The time left in words: stages one after another, as long as they took last."""
    if all(row["state"] == "done" for row in document["stages"]):
        return "none, all is done"
    unknown = document["left_unknown"]
    known = len(unknown) < sum(row["state"] != "done" for row in document["stages"])
    about = f"about {duration(document['left_s'])}" if known else ""
    without = f"nothing is known yet of {', '.join(unknown)}" if unknown else ""
    return "; ".join(filter(None, (about, without)))


def local_time(iso: str) -> str:
    """A time of a status file on this machine's clock; with its date if it is not of today."""
    then = datetime.fromisoformat(iso).astimezone()
    same_day = then.date() == datetime.now().astimezone().date()
    return then.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M")
