"""What is there of the pairs, and of the work of stages that did not come to their end.

Looks at names and descriptions of files alone, so that it answers at once, whatever their size.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.runtime import paths
from pipeline.runtime.status import Status

CHECKPOINT = re.compile(r"(.+)-(\d{8})\.safetensors")


class Pairs(NamedTuple):
    """A pair store, complete or not.

    Attributes:
        location: where it lies.
        done, total: pairs; `done` counts whole shards.
        shards_done, shards: None for a store that lies elsewhere.
    """

    location: str
    done: int
    total: int
    shards_done: int | None = None
    shards: int | None = None

    def __str__(self) -> str:
        shards = f" ({self.shards_done} of {self.shards} shards)" if self.shards else ""
        return f"{self.done:,} of {self.total:,} pairs{shards} in {self.location}"


def pairs_there(status: Status | None) -> Pairs | None:
    """The pairs that are being sampled, or those that are finished; None if there are none.

    `status` is that of sample_pairs: unfinished pairs that lie elsewhere are known from it alone.

    Raises:
        DataError: the reference to pairs that lie elsewhere is damaged.
    """
    work = work_of(status)
    if work is not None and (work / "pairs.zarr").is_dir():
        return count_pairs(work / "pairs.zarr")
    if (paths.PAIRS / "reference.json").is_file():
        from kdm_core.pairs.reference import find_reference  # which needs torch

        if (found := find_reference(paths.PAIRS)) is not None:
            return Pairs(str(found.target(paths.PAIRS)), found.pairs, found.pairs)
    if paths.PAIRS.is_dir():
        return count_pairs(paths.PAIRS)
    progress = status.progress if status is not None and status.state != "done" else None
    return Pairs("pairs.location", progress.done, progress.total) if progress else None


def count_pairs(store: Path) -> Pairs | None:
    """How much of a store is there; None where nothing can be said of it.

    Reads its description and lists the files of the array that is written last, one a shard;
    importing Zarr for that would take longer than all the rest.
    """
    try:
        spec = json.loads((store / "zarr.json").read_bytes())["attributes"]["kdm_pairs"]["spec"]
        total, shard = sum(spec["splits"].values()), int(spec["shard"])
        done = sum(path.is_file() for path in (store / "index" / "c").rglob("*"))
        return Pairs(str(store), min(done * shard, total), total, done, -(-total // shard))
    except (OSError, KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return None


def kept_work(stage: str, params: Any, status: Status) -> str:
    """What an interrupted stage goes on with, in a few words; empty if it starts over.

    Args:
        stage: which.
        params: all of params.yaml as it stands there, valid or not.
        status: of the stage.
    """
    if stage == "sample_pairs":
        found = pairs_there(status)
        return "" if found is None else str(found)
    work = work_of(status)
    latest = newest(work, "*-[0-9]*.safetensors") if work is not None else None
    match = CHECKPOINT.fullmatch(latest.name) if latest is not None else None
    if match is not None:
        steps = training(params, stage, match[1]).get("steps")
        of = f" of {steps:,}" if isinstance(steps, int) else ""
        return f"{match[1]} at step {int(match[2]):,}{of}"
    if stage == "filter_pairs" and status.progress is not None:
        return f"{status.progress.done:,} of {status.progress.total:,} pairs"
    return ""


def training(params: Any, stage: str, model: str) -> dict[str, Any]:
    """The section of params.yaml on the training of a model; empty where it is not there."""
    name, _, key = stage.partition("@")
    places = {"train_student": ("students", key), "reference": ("reference", "classifier"),
              "teacher": ("teacher", "guide") if model == "guide" else ("teacher",)}
    found = params
    for part in (*places.get(name, ()), "training"):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def work_of(status: Status | None) -> Path | None:
    """The folder of the work that a stage has begun and not finished; None if there is none.

    Work of other parameters may lie beside it.
    """
    if status is None or status.state == "done" or status.work is None:
        return None
    return paths.WORK / status.stage / status.work


def newest(folder: Path, pattern: str) -> Path | None:
    """The path of a pattern that was changed last."""
    found = [(path.stat().st_mtime, path) for path in folder.glob(pattern)]
    return max(found)[1] if found else None
