"""The drills in short: each fault once. `make drills` runs them in full.

Lost Dask workers and schedulers, lost ranks, a Prefect server that is restarted and a bucket
behind a bad network have tests of their own.
"""

from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.drills import checkpoints, clocks, damage, edits, full_disk, kills, stops
from tests.drills.bench import Bench, Drill
from tests.drills.table import BEGIN, END, Result, as_table, write_table

SHORT: dict[str, tuple[Drill, int]] = {
    "kill-sampling": (partial(kills.kill_stage, "sample_pairs"), 2),
    "kill-training": (partial(kills.kill_stage, "train_student@kdm-f"), 1),
    "kill-dvc": (partial(kills.kill_dvc, ["sample_pairs"]), 2),
    "stop-filtering": (partial(stops.stop_stage, "filter_pairs"), 1),
    "disk-full": (partial(full_disk.fill_disk, "sample_pairs"), 1),
    "damaged-pairs": (damage.damage_recorded, 1),
    "damaged-checkpoint": (partial(checkpoints.damage_checkpoint, "teacher"), 1),
    "clock-jumps": (partial(clocks.jump, "sample_pairs"), 2),
    "edit": (partial(edits.edit, edits.OWN, True), 1),
}


@pytest.mark.parametrize("name", SHORT)
def test_drill(name: str, finished: Path, tmp_path: Path) -> None:
    drill, times = SHORT[name]
    outcomes = list(drill(Bench(finished, tmp_path / "bench"), Random(name), times))
    assert len(outcomes) == times
    assert all("same bytes" in outcome for outcome in outcomes)


def test_the_table_stands_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    table = as_table({"flood": Result(["same bytes"] * 3, None, 4.2),
                      "fire": Result(["same bytes", "clear error"], "burnt", 1.0)})
    write_table(page, table)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}| fault |")
    assert "| flood | 3 | same bytes | 4 |" in text
    assert "| fire | 3 | 1 × same bytes, 1 × clear error, **then it failed** | 1 |" in text
    assert text.endswith(f"{END}after\n")
    assert "old" not in text
