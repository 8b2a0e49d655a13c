"""What stage programs say: text, or with KDM_LOG=json one JSON object a line on stderr.

Imports neither torch nor the parameters: who reads a log needs `is_error` and `readable` alone.
"""

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from kdm_core.errors import KDMError

VARIABLE = "KDM_LOG"
Event = Literal["message", "progress", "warning", "error", "crash"]
LEVELS: dict[Event, str] = {"message": "info", "progress": "info", "warning": "warning",
                            "error": "error", "crash": "critical"}

speaker: str | None = None
"""The stage that this process runs; None in a program that is no stage."""


def set_up(stage: str) -> None:
    """Make a process speak as the stage that it runs; its worker processes call this, too.

    Where JSON is asked for, warnings, the loggers of libraries and the traceback of a crash become
    objects as well.

    Raises:
        KDMError: KDM_LOG asks for something unknown.
    """
    global speaker
    speaker = stage
    if os.environ.get(VARIABLE, "") not in ("", "json", "text"):
        raise KDMError(f"{VARIABLE}: there is no log format '{os.environ[VARIABLE]}'; set it to "
                       "json or text")
    if not as_json():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    sys.excepthook = show_crash


def as_json() -> bool:
    """Whether JSON is asked for."""
    return os.environ.get(VARIABLE) == "json"


def write(text: str, event: Event = "message", **fields: Any) -> None:
    """Write a line to stderr: the text as it is, or an object of it and of further fields."""
    print(entry(text, event, **fields) if as_json() else text, file=sys.stderr, flush=True)


def say(message: str, event: Event = "message", stage: str | None = None) -> None:
    """Write a message under the name of a stage, by default of the one that this process runs."""
    name = stage or speaker
    if as_json():
        write(message, event, stage=name)
    else:
        text = f"warning: {message}" if event == "warning" else message
        write(text if name is None else f"[{name}] {text}", event)


def failure(message: str) -> str:
    """The last line of a stage that ends for a reason which a user can mend.

    It is for `sys.exit`, which writes it to stderr: of several processes one speaks, and the
    others drop theirs.
    """
    return entry(message, "error") if as_json() else f"[{speaker}] error: {message}"


def entry(message: str, event: Event, **fields: Any) -> str:
    """A message as one JSON object on one line."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": time, "stage": speaker, "level": LEVELS[event], "event": event,
                       "message": message, **fields}, ensure_ascii=False)


def show_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What Python calls for an exception that nobody has caught."""
    lines = traceback.format_exception(kind, error, trace)
    write(lines[-1].strip(), "crash", traceback="".join(lines))


class Formatter(logging.Formatter):
    """Entries of Python's loggers as lines of this log."""

    def format(self, record: logging.LogRecord) -> str:
        event: Event = "message" if record.levelno < logging.WARNING else "warning"
        return entry(super().format(record), event, logger=record.name)


def is_error(line: str, stage: str) -> bool:
    """Whether a line of a log, text or JSON, is the reason for a stage's end that a user can mend.

    Another try would end alike.
    """
    found = parsed(line)
    if found is None:
        return line.startswith(f"[{stage}] error: ")
    return (found["stage"], found["event"]) == (stage, "error")


def readable(line: str) -> str:
    """A line of a log as text: what stands in an object, and other lines as they are."""
    found = parsed(line)
    if found is None:
        return line
    message = found.get("traceback") or found["message"]
    event = f"{found['event']}: " if found["event"] in ("warning", "error") else ""
    return f"[{found['stage']}] {event}{message}" if found["event"] != "progress" else str(message)


def parsed(line: str) -> dict[str, Any] | None:
    """The object that a line of a log is; None if it is none."""
    if not line.startswith('{"time": '):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    complete = isinstance(found, dict) and {"stage", "event", "message"} <= set(found)
    return found if complete else None
