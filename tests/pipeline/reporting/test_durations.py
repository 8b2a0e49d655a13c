"""The table of times in the report."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.reporting.durations import durations, wall_s
from pipeline.reporting.records import Timing
from pipeline.reporting.text import duration

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def timing(seconds: float, end: float | None = None, **more: Any) -> Timing:
    """Of a stage that ended so many seconds after noon."""
    finished = None if end is None else NOON + timedelta(seconds=end)
    return Timing(seconds=seconds, device="cpu", finished=finished, **more)


def test_wall_time_counts_what_runs_side_by_side_once() -> None:
    assert wall_s({}) == 0
    assert wall_s({"a": timing(10, 10), "b": timing(5, 20)}) == 15
    assert wall_s({"a": timing(10, 10), "b": timing(10, 12), "c": timing(2, 8)}) == 12
    assert wall_s({"a": timing(10, 10), "old": timing(7)}) == 17  # as older versions noted it


def test_a_line_tells_when_how_long_and_how_fast() -> None:
    counted = [{"name": "reading", "unit": "pair", "done": 5000, "seconds": 0.5},
               {"name": "kdm", "unit": "pair", "done": 9000, "seconds": 60.0}]
    found = durations({"train_student@kdm": timing(
        100.0, 0, earlier_seconds=35.0, hardware="H200", throughput=counted)})
    (line,) = found.lines
    assert (line.finished, line.took, line.device) == ("2026-01-02 12:00 UTC", "1 min 40 s",
                                                       "cpu (H200)")
    assert (line.throughput, line.counted) == ("150 pairs/s", "kdm")
    assert line.note == "35 s of it in runs that were stopped"
    assert found.total == found.wall == "1 min 40 s"
    (bare,) = durations({"report": timing(3)}).lines
    assert bare[1:] == ("", "3.0 s", "", "", "", "cpu")


@pytest.mark.parametrize("seconds, text", [
    (0, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (61, "1 min 01 s"), (599, "9 min 59 s"),
    (600, "10 min"), (3599, "1 h 00 min"), (3600 * 30, "30 h 00 min")])
def test_time_spans(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("document", ["{}", '{"seconds": -1, "device": "cpu"}',
                                      '{"seconds": 1, "device": "cpu", "finished": "noon"}'])
def test_damaged_timings_are_refused(document: str) -> None:
    with pytest.raises(ValidationError):
        Timing.model_validate_json(document)
