"""The drills in short: each fault once, at an instant drawn by `--seed`. `make drills` runs them
in full.

Lost Dask workers and schedulers, lost ranks and a bucket behind a bad network have tests of their
own.
"""

from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.drills import (
    checkpoints,
    clocks,
    damage,
    edits,
    full_disk,
    kills,
    prefect_server,
    stops,
)
from tests.drills.bench import Bench, Drill, Impossible
from tests.drills.table import BEGIN, END, Result, write_table

SHORT: dict[str, Drill] = {
    "kill-sampling": partial(kills.kill_stage, "sample_pairs"),
    "kill-training": partial(kills.kill_stage, "train_student@kdm-f"),
    "kill-dvc": partial(kills.kill_dvc, ["sample_pairs"]),
    "disk-full": partial(full_disk.fill_disk, "sample_pairs"),
    "damaged-pairs": damage.damage_recorded,
    "damaged-checkpoint": partial(checkpoints.damage_checkpoint, "teacher"),
    "clock-jumps": partial(clocks.jump, "sample_pairs"),
    "edit": partial(edits.edit, edits.OWN, True),
}
SLOW = {"kill-training"}


@pytest.mark.drill
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SHORT])
def test_drill(
    name: str, finished: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    random = Random(f"{pytestconfig.option.seed}/{name}")
    assert "same bytes" in try_out(SHORT[name], finished, tmp_path, random)


def try_out(drill: Drill, finished: Path, folder: Path, random: Random) -> str:
    """What came of a drill, where it can be done."""
    with Bench(finished, folder / "bench") as bench:
        try:
            outcome, = drill(bench, random, 1)
        except Impossible as error:
            pytest.skip(str(error))
    return outcome


@pytest.mark.drill
def test_a_stop_in_midwork_is_code_143(finished: Path, tmp_path: Path) -> None:
    drill = partial(stops.stop_stage, "filter_pairs", latest=0.0)
    assert try_out(drill, finished, tmp_path, Random(0)) == "exit code 143, same bytes"


@pytest.mark.slow
def test_a_prefect_server_that_is_restarted(tmp_path: Path) -> None:
    assert prefect_server.run(tmp_path) == "the run ends as Completed, the same bytes"


def test_the_table_stands_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    order = ["fire", "flood"]
    write_table(page, {"flood": Result(["same bytes"] * 2, None, 1.0)}, order)
    assert "| flood | 2 | same bytes | 1 |" in page.read_text()
    write_table(page, {"fire": Result(["same bytes", "clear error"], "burnt", 1.0)}, order)
    write_table(page, {"flood": Result(["same bytes"] * 3, None, 4.2)}, order)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}| fault |")
    assert "| flood | 3 | same bytes | 4 |" in text
    assert "| fire | 3 | 1 × same bytes, 1 × clear error, **then it failed** | 1 |" in text
    assert text.endswith(f"{END}after\n")
    assert "old" not in text
