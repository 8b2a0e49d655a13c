"""Files of the pair store that are cut, emptied, altered or lost; a `dvc.lock` that is cut."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from kdm_core.pairs.spec import SPLITS, Split
from kdm_core.pairs.store import PairStore
from tests.drills.bench import CUT, LIMIT_S, MENDED, SAME, Bench, Drill, await_progress, kill

PAIRS = "data/pairs/pairs.zarr"
STUDENT = "train_student@kdm-f"


def damage_unfinished(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """Before DVC has recorded it: sampling is killed, and a file of the unfinished store damaged.

    Where the stage does not notice by itself that a shard has to be made again, it says so.
    """
    expected, _ = bench.undisturbed("sample_pairs")
    for _ in range(times):
        bench.clear("sample_pairs")
        process = bench.start_stage("sample_pairs")
        await_progress(process, lambda: len(complete_shards(bench)), random.randint(2, 20))
        kill(process)
        shard = random.choice(complete_shards(bench))
        store = shard.parents[2]
        damage_file(random.choice(shard_files(store, shard.name)), random)
        mark = bench.mark()
        process = bench.start_stage("sample_pairs")
        outcome = SAME
        if process.wait(LIMIT_S) != 0:
            bench.require_clear_error(process, mark, "kdm pairs repair")
            repair(bench, store)
            bench.complete(bench.start_stage("sample_pairs"))
            outcome = MENDED
        bench.require(expected, "sample_pairs")
        yield outcome


def damage_recorded(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """After DVC has recorded it: no student is trained on it, and it is repaired."""
    expected, _ = bench.undisturbed(STUDENT)
    pairs = bench.results("sample_pairs")
    for _ in range(times):
        bench.clear(STUDENT)
        files = shard_files(bench.project / PAIRS, random_shard(bench, random, "train"))
        damage_file(random.choice(files), random)
        mark = bench.mark()
        bench.require_clear_error(bench.start_stage(STUDENT), mark, f"{PAIRS}: pairs ")
        repair(bench, bench.project / PAIRS)
        bench.require(pairs, "sample_pairs")
        bench.complete(bench.start_stage(STUDENT))
        bench.require(expected, STUDENT)
        yield MENDED


def damage_with_dvc(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """After DVC has recorded it: the next `dvc repro` puts it back."""
    expected = bench.results()
    for _ in range(times):
        files = shard_files(bench.project / PAIRS, random_shard(bench, random, *SPLITS))
        damage_file(random.choice(files), random)
        bench.complete(bench.start_dvc())
        bench.require(expected)
        yield SAME


def cut_lock(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """As by a DVC that was killed while it wrote it. Not every cut can be seen."""
    expected = bench.results()
    lock = bench.project / "dvc.lock"
    for _ in range(times):
        content = lock.read_bytes()
        lock.write_bytes(content[: random.randrange(len(content))])
        mark = bench.mark()
        cut = bench.mend_records(bench.start_dvc(), mark)
        bench.require(expected)
        yield CUT if cut else SAME


def complete_shards(bench: Bench) -> list[Path]:
    """The files that say which shards of the unfinished store are complete."""
    return sorted((bench.project / "data/work/sample_pairs").glob("*/pairs.zarr/index/c/*[0-9]"))


def random_shard(bench: Bench, random: Random, *splits: Split) -> str:
    """The name of a shard with pairs of these splits."""
    spec = PairStore.open(bench.project / PAIRS).spec
    rows = [row for split in splits for row in spec.split_range(split)]
    return str(random.choice(rows) // spec.shard)


def shard_files(store: Path, shard: str) -> list[Path]:
    """All files of a shard."""
    found = [path for path in sorted(store.glob(f"*/c/{shard}/**/*")) if path.is_file()]
    return found + [path for path in sorted(store.glob(f"*/c/{shard}")) if path.is_file()]


def damage_file(path: Path, random: Random, missing: bool = True) -> str:
    """Cut, empty, alter or (if `missing`) remove a file; returns what was done.

    Other names of the same file, which DVC or the stages may have, keep what they have: disks
    lose what lies in one place.
    """
    content = path.read_bytes()
    how = random.choice(["cut", "emptied", "altered"] + ["lost"] * missing)
    at = random.randrange(len(content))
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:at])
    elif how == "emptied":
        path.touch()
    elif how == "altered":
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << random.randrange(8)])
                         + content[at + 1 :])
    return how


def repair(bench: Bench, store: Path) -> None:
    """What the error says: `kdm pairs repair`."""
    command = f"from pipeline.kdm.cli import app; app(['pairs', 'repair', {str(store)!r}])"
    bench.complete(bench.start("-c", command))


DRILLS: dict[str, Drill] = {
    "unfinished pair store damaged": damage_unfinished,
    "recorded pair store damaged, then a student": damage_recorded,
    "recorded pair store damaged, then dvc repro": damage_with_dvc,
    "dvc.lock cut, then dvc repro": cut_lock,
}
