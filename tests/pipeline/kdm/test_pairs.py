"""`kdm pairs info|verify|repair|merge|subset|sample`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner, Result

from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_pairs, sample_shard
from kdm_core.pairs.store import PairStore
from kdm_core.teachers import save_teacher
from pipeline.kdm.cli import app
from pipeline.params.pairs import PairsParams
from pipeline.params.reading import parse
from tests.support.pairs import CPU, PAIRS, SIZES, config, flip, shard_path, teacher


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with a teacher in it."""
    monkeypatch.chdir(tmp_path)
    save_teacher(Path("data/teacher"), teacher())
    return tmp_path


def kdm(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["pairs", *arguments])


def store(name: str, shards: tuple[int, ...] = (0, 1, 2), **changes: object) -> PairStore:
    mark = save_teacher(Path("again"), teacher())
    spec = plan_store(config(**{**SIZES, **changes}), teacher(), mark, None, 7, CPU)
    made = PairStore.create(Path(name), spec, {
        "device": "cpu", "threads": torch.get_num_threads(), "numpy": np.__version__})
    for shard in shards:
        made.write_shard(shard, sample_shard(spec, teacher(), shard, CPU)[0])
    return made


def refused(result: Result, *said: str) -> None:
    """One line, exit code 1, no traceback."""
    assert result.exit_code == 1, result.output
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for text in said:
        assert text in line


def test_what_a_store_is() -> None:
    made = store("p", states=1, noise="seeded")
    shown = kdm("info", "p")
    assert shown.exit_code == 0, shown.output
    lines = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert lines["pairs"] == "35 of 35"
    assert lines["splits"] == "test 3, validation 2, train 30"
    assert lines["noise"] == "seeded float16, seed 7, scale 80"
    assert lines["solver"] == "kind heun, steps 3, 5 evaluations"
    assert lines["fingerprint"] == made.spec.fingerprint
    assert "subset" not in lines
    found = json.loads(kdm("info", "p", "--json").stdout)
    files = [path for path in Path("p").rglob("*") if path.is_file()]
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert found["bytes_per_pair"] == round(found["bytes"] / PAIRS, 1)
    assert found["codecs"]["sample"] == ["bytes", "zstd", "crc32c"]
    assert found["teacher"] == made.spec.teacher
    assert found["missing"] == ""


def test_what_is_missing_and_masked() -> None:
    made = store("p", (1,))
    reasons = np.array([1, 0, 3] + [0] * 32, np.uint16)
    KeepMask(made.spec.fingerprint, ["near", "flat"], reasons).write(made.group)
    shown = kdm("info", "p").stdout
    assert "16 of 35, missing 0:16, 32:35" in shown
    assert "keeps 33; near 2, flat 1" in shown


def test_params_sample_the_same() -> None:
    from ruamel.yaml import YAML

    store("p", states=1, noise="seeded")
    shown = kdm("info", "p", "--params")
    block = YAML(typ="safe").load(shown.stdout)["pairs"]
    parsed = parse(PairsParams, block, "x")
    assert isinstance(parsed, PairsConfig)
    assert parsed == config(**SIZES, states=1, noise="seeded", labels="uniform")
    kdm("subset", "p", "--out", "s", "--indices", "1:9")
    refused(kdm("info", "s", "--params"), "selected and not sampled", "source: store")


def test_verify_and_repair() -> None:
    made = store("p")
    whole = made.content_hash()
    fine = kdm("verify", "p", "--teacher", "data/teacher", "--device", "cpu")
    assert fine.exit_code == 0, fine.output
    assert fine.stdout == f"p: whole, 35 pairs\ncontent {whole}\n"
    assert "compare: 100%" in fine.stderr
    again = kdm("repair", "p")
    assert again.exit_code == 0
    assert again.stdout == fine.stdout
    for place in (3, 100):  # two chunks side by side
        flip(shard_path(made, "sample", 1), place)
    flip(shard_path(made, "noise", 0), 3)
    shard_path(made, "label", 2).unlink()
    shard_path(made, "index", 2).unlink()
    broken = kdm("verify", "p")
    refused(broken, "p is not whole: of 35 pairs 15 are incomplete; kdm pairs repair")
    assert broken.stdout.splitlines() == [
        "missing    32:35", "noise      0:4", "sample     16:24"]
    mended = kdm("repair", "p", "--device", "cpu")
    assert mended.exit_code == 0, mended.output
    assert mended.stdout.endswith(fine.stdout)
    assert "agree with them to rounding" in mended.stderr  # of torch, the store does not say
    assert made.content_hash() == whole


def test_files_that_changed_places_and_others() -> None:
    made = store("p")
    whole = made.content_hash()
    one, two = (shard_path(made, "sample", shard) for shard in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    Path("p/.DS_Store").write_text("?")
    blind = kdm("verify", "p")
    assert blind.exit_code == 0
    assert "not the store's: .DS_Store" in blind.stderr
    refused(kdm("verify", "p", "--teacher", "data/teacher", "--device", "cpu"), "32 are incomplete")
    mended = kdm("repair", "p", "--teacher", "data/teacher", "--device", "cpu")
    assert mended.exit_code == 0, mended.output
    assert made.content_hash() == whole


def test_an_altered_description_is_repaired() -> None:
    whole = store("p").content_hash()
    file = Path("p/noise/zarr.json")
    file.write_text(file.read_text().replace('"little"', '"big"', 1))
    broken = kdm("verify", "p")
    refused(broken, "not whole")
    assert "metadata   the description of noise was altered (codecs)" in broken.stdout
    mended = kdm("repair", "p")
    assert mended.exit_code == 0, mended.output
    assert mended.stdout.endswith(f"content {whole}\n")


def test_repair_needs_the_right_teacher_or_a_copy() -> None:
    made, copy = store("p"), store("q")
    flip(shard_path(made, "sample", 1), 3)
    other = teacher()
    other.network.leave.bias.data.add_(1)
    save_teacher(Path("other"), other)
    refused(kdm("repair", "p", "--teacher", "other"), "other is not the teacher of these pairs")
    refused(kdm("repair", "p", "--teacher", "none"), "none")
    flip(shard_path(copy, "sample", 1), 3)
    refused(kdm("repair", "p", "--from", "q"), "only their teacher can make them again")
    flip(shard_path(copy, "sample", 1), 3)
    mended = kdm("repair", "p", "--from", "q")
    assert mended.exit_code == 0, mended.output
    assert made.content_hash() == copy.content_hash()


def test_merge() -> None:
    whole = store("w").content_hash()
    store("a", (0,))
    store("b", (1,))
    store("c", (2,))
    some = kdm("merge", "a", "c", "--out", "m")
    assert some.exit_code == 0, some.output
    assert some.stdout == "m: 19 of 35 pairs; 16:32 are missing\n"
    rest = kdm("merge", "b", "--out", "m")
    assert rest.stdout == f"m: 35 of 35 pairs, content {whole}\n"
    refused(kdm("merge", "a", "w", "--out", "n"), "a and w overlap: both have the pairs 0:16")


def test_subset() -> None:
    made = store("p")
    label = made.read(range(PAIRS)).label
    shown = kdm("subset", "p", "--out", "s", "--labels", "b", "--split", "train", "--train", "4")
    assert shown.exit_code == 0, shown.output
    part = PairStore.open("s")
    assert part.read(range(4)).index.tolist() == (np.flatnonzero(label[5:] == 1)[:4] + 5).tolist()
    assert shown.stdout == (f"s: 4 of 35 pairs (splits train; labels 1; the first 4 train pairs), "
                            f"content {part.content_hash()}\n")
    assert "subset       of " in kdm("info", "s").stdout
    reasons = np.zeros(PAIRS, np.uint16)
    reasons[10] = 1
    KeepMask(made.spec.fingerprint, ["near"], reasons).save("keep.zarr")
    assert "note: --train: 500 are asked for, and there are 30" in kdm(
        "subset", "p", "--out", "all", "--train", "500").stderr
    refused(kdm("subset", "p", "--out", "t", "--mask", "keep.zarr"), "--mask: say --kept as well")
    assert kdm("subset", "p", "--out", "t", "--mask", "keep.zarr", "--kept").exit_code == 0
    assert PairStore.open("t").spec.count == PAIRS - 1
    refused(kdm("subset", "p", "--out", "u", "--kept"), "p has no mask of its own")
    refused(kdm("subset", "p", "--out", "u", "--labels", "c"),
            "no class 'c'; the classes are [a, b]")
    refused(kdm("subset", "p", "--out", "u", "--indices", "3-5"), "'3-5' is no range")
    refused(kdm("subset", "p", "--out", "u", "--indices", "0:36"), "0 to 35, and not 0:36")
    assert "splits" in kdm("subset", "p", "--out", "u", "--split", "tset").stderr
    assert not Path("u").exists()


def test_what_is_no_store() -> None:
    Path("empty").mkdir()
    zarr.create_group("foreign")
    zarr.create_array("array", shape=(3,), dtype="int8")
    Path("file").write_text("?")
    for command in (["info"], ["verify"], ["repair"], ["subset", "--out", "x"],
                    ["merge", "--out", "x"]):
        for name in ("none", "empty", "foreign", "array", "file"):
            refused(kdm(*command, name), name)


def test_a_store_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    flip(shard_path(store("p"), "noise", 1), 3)

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("zarr.storage._local._put", denied)
    refused(kdm("repair", "p"), "cannot write shard 1 of p: Permission denied")


def test_parts_to_sample_are_checked() -> None:
    for part in ("2", "a/b", "1/", "/"):
        refused(kdm("sample", "p", "--part", part), f"'{part}' is no part such as 2/3")


def test_incomplete_stores_are_completed_by_repair() -> None:
    made = store("p", (1,))
    assert kdm("repair", "p", "--device", "cpu").exit_code == 0
    whole = store("w", ())
    sample_pairs(whole, teacher(), CPU)
    assert made.content_hash() == whole.content_hash()
