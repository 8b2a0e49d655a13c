"""Pairs for others: each format has the store's values, and the import gives them back."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from kdm_core.errors import DataError
from kdm_core.noise import check_value, draw
from kdm_core.pairs.exporting import (
    Selection,
    export_npz,
    export_published,
    export_webdataset,
    select,
)
from kdm_core.pairs.importing import (
    ImportConfig,
    import_pairs,
    open_source,
    plan_import,
)
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.opening import open_or_create
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block, PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.values import from_uint8
from pipeline.kdm.cli import app

SPLITS = {"test": 5, "validation": 4, "train": 31}
COUNT, SEED = 40, 7
KINDS = {
    "rgb": SampleSpec(kind="image", shape=[3, 8, 8], label_names=["ant", "bee", "cat"]),
    "gray": SampleSpec(kind="image", shape=[1, 8, 8]),
    "cifar": SampleSpec(kind="image", shape=[3, 32, 32]),
    "points": SampleSpec(kind="points", shape=[2]),
    "named points": SampleSpec(kind="points", shape=[2], label_names=["left", "right"]),
}
Export = Callable[[Selection, Path, Callable[[int], None]], None]
EXPORTS: dict[str, Export] = {"npz": export_npz, "published": export_published,
                              "webdataset": export_webdataset}


def kdm(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pairs", *map(str, arguments)])


def made(path: Path, samples: SampleSpec, **changes: Any) -> PairStore:
    """A store whose samples are random."""
    points = samples.kind == "points"
    values: dict[str, Any] = {
        "samples": samples, "teacher": "f" * 64, "noise_seed": SEED, "noise_dtype": "float16",
        "noise_scale": 80.0, "sample_dtype": "float32" if points else "uint8",
        "solver": FixedSolver(kind="heun", steps=3), "times": [80.0, 1.0, 0.1, 0.0], "nfe": 5,
        "compute_batch": 8, "precision": "fp32", "splits": SPLITS, "chunk": 4, "shard": 16,
        **changes}
    spec = StoreSpec(**values)
    store = PairStore.create(path, spec, {})
    rng = np.random.default_rng(0)
    for shard in range(spec.num_shards):
        index = np.array(spec.shard_range(shard), np.int64)
        noise, labels = draw(SEED, index, samples.sample_shape, "float16", samples.num_classes)
        shape = (len(index), *samples.shape)
        sample: Any = (rng.integers(0, 256, shape, dtype=np.uint8)
                       if spec.sample_dtype == "uint8" else
                       rng.uniform(-1, 1, shape).astype(np.float32))
        store.write_shard(shard, Block(noise, sample, labels, index))
    return store


def seeded(path: Path, samples: SampleSpec) -> PairStore:
    return made(path, samples, noise="seeded",
                noise_check=check_value(SEED, samples.sample_shape, "float16"))


def nothing(pairs: int) -> None:
    pass


def hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("noise", ["stored", "seeded"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", EXPORTS)
def test_round_trip(tmp_path: Path, format: str, kind: str, noise: str) -> None:
    store = (made if noise == "stored" else seeded)(tmp_path / "store", KINDS[kind])
    out = tmp_path / {"npz": "out.npz", "published": "out.npy"}.get(format, "out")
    if (format, kind) == ("published", "named points"):
        with pytest.raises(DataError, match="^format: .* have no labels: use npz"):
            export_published(select(store), out, nothing)
        return
    told: list[int] = []
    EXPORTS[format](select(store), out, told.append)
    assert sum(told) == COUNT
    source = open_source(out, "published" if out.is_dir() and format == "published" else "auto")
    plan = plan_import(source, ImportConfig(test=5, validation=4, shard=16, chunk=4))
    spec, back = plan.spec, open_or_create(tmp_path / "back", plan.spec, {})
    import_pairs(source, back, plan.scale)
    for name in ("noise", "sample", "label", "index"):
        np.testing.assert_array_equal(getattr(back.read(range(COUNT)), name),
                                      getattr(store.read(range(COUNT)), name))
    assert spec.noise_scale == (80 if format == "published" else 1)
    assert spec.samples.shape == store.spec.samples.shape
    names = store.spec.samples.label_names
    assert spec.samples.label_names == (
        names if format != "published" else [str(i) for i in range(len(names))])


def test_npz_is_as_for_fid(tmp_path: Path) -> None:
    store = made(tmp_path / "store", KINDS["rgb"])
    export_npz(select(store), tmp_path / "out.npz", nothing)
    block = store.read(range(COUNT))
    with np.load(tmp_path / "out.npz") as arrays:
        assert set(arrays) == {"arr_0", "arr_1", "noise", "label_names"}
        np.testing.assert_array_equal(arrays["arr_0"], block.sample.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(arrays["arr_1"], block.label)
        np.testing.assert_array_equal(arrays["noise"], block.noise)
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["noise"].dtype == np.float16
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize(("kind", "scale", "key", "noise_first"), [
    ("rgb", 80.0, "endpoints", False), ("cifar", 80.0, "arr_0", True),
    ("gray", 80.0, "arr_0", False), ("cifar", 1.0, "arr1", False)])
def test_published(
    tmp_path: Path, kind: str, scale: float, key: str, noise_first: bool
) -> None:
    store = made(tmp_path / "store", KINDS[kind], noise_scale=scale)
    export_published(select(store), tmp_path / "out", nothing)
    block = store.read(range(COUNT))
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"{i:06}.npz" for i in range(COUNT)]
    for i in (0, 17, COUNT - 1):
        with np.load(files[i]) as arrays:
            assert set(arrays) == ({key, "label"} if kind == "rgb" else {key})
            noise, sample = arrays[key][:: 1 if noise_first else -1]
            np.testing.assert_array_equal(noise, block.noise[i].astype(np.float32) * scale)
            np.testing.assert_array_equal(
                sample, from_uint8(torch.from_numpy(block.sample[i])).numpy())
            if kind == "rgb":
                assert arrays["label"].tolist() == np.eye(3)[block.label[i]].tolist()


def test_webdataset_is_read_by_its_package(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    store = made(tmp_path / "store", KINDS["rgb"])
    export_webdataset(select(store), tmp_path / "out", nothing, 15)
    block = store.read(range(COUNT))
    names = [f"pairs-{i:06}.tar" for i in range(3)]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    data = webdataset.WebDataset([str(tmp_path / "out" / name) for name in names],
                                 shardshuffle=False, nodesplitter=None)
    found = list(data)
    assert [pair["__key__"] for pair in found] == [f"{i:06}" for i in range(COUNT)]
    for i, pair in enumerate(found):
        pixels = np.asarray(Image.open(io.BytesIO(pair["png"])))
        np.testing.assert_array_equal(pixels, block.sample[i].transpose(1, 2, 0))
        np.testing.assert_array_equal(np.load(io.BytesIO(pair["noise.npy"])), block.noise[i])
        assert int(pair["cls"]) == block.label[i]
    decoded = next(iter(data.decode("rgb8")))
    np.testing.assert_array_equal(decoded["noise.npy"], block.noise[0])
    assert decoded["cls"] == block.label[0]
    facts = [json.loads(pair["json"]) for pair in found]
    assert facts[4] == {"index": 4, "split": "test",
                        "label_name": KINDS["rgb"].label_names[block.label[4]]}
    assert [fact["split"] for fact in facts].count("train") == 31


@pytest.mark.parametrize("format", EXPORTS)
def test_equal_pairs_give_equal_bytes(
    tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(tmp_path / "store", KINDS["rgb"])
    EXPORTS[format](select(store), tmp_path / "a", nothing)
    monkeypatch.setattr("time.time", lambda: 2e9)
    EXPORTS[format](select(seeded(tmp_path / "seeded", KINDS["rgb"])), tmp_path / "b", nothing)
    assert list(hashes(tmp_path / "a").values()) == list(hashes(tmp_path / "b").values())


def masked(store: PairStore) -> PairStore:
    reasons = np.zeros(COUNT, np.uint16)
    reasons[[0, 5, 12, 20, 39]] = 1  # a test pair, a validation pair, train pairs
    return store.masked(KeepMask(store.spec.fingerprint, ["copies"], reasons))


def test_kept_pairs_and_splits(tmp_path: Path) -> None:
    store = made(tmp_path / "store", KINDS["rgb"])
    with pytest.raises(DataError, match="has no mask"):
        select(store, kept=True)
    chosen = select(masked(store), kept=True)
    assert chosen.rows.tolist() == sorted(set(range(COUNT)) - {5, 12, 20, 39})
    export_npz(chosen, tmp_path / "kept.npz", nothing)
    with np.load(tmp_path / "kept.npz") as arrays:
        np.testing.assert_array_equal(arrays["noise"], store.read(range(COUNT)).noise[chosen.rows])
    train = select(store, ["train"])
    assert train.rows.tolist() == list(range(9, COUNT))
    export_webdataset(train, tmp_path / "train", nothing)
    source = open_source(tmp_path / "train")
    np.testing.assert_array_equal(source.read(np.arange(31)).noise,
                                  store.read(range(9, COUNT)).noise)
    with pytest.raises(DataError, match="no pairs of validation"):
        select(made(tmp_path / "none", KINDS["gray"],
                    splits={"test": 20, "validation": 0, "train": 20}), ["validation"])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("format", EXPORTS)
def test_stopped_exports_leave_nothing_half(tmp_path: Path, format: str) -> None:
    store = made(tmp_path / "store", KINDS["rgb"])

    def run(out: Path, on_pairs: Callable[[int], None]) -> None:
        if format == "webdataset":
            export_webdataset(select(store), out, on_pairs, 10)
        else:
            EXPORTS[format](select(store), out, on_pairs)

    run(tmp_path / "whole", nothing)
    done: list[int] = []

    def stop(pairs: int) -> None:
        done.append(pairs)
        if sum(done) > 20:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path / "out", stop)
    assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.exporting/files"
    if format != "npz":
        kept = {file.name: file.stat().st_mtime_ns for file in work.iterdir()}
        assert kept
    run(tmp_path / "out", nothing)
    assert list(hashes(tmp_path / "out").values()) == list(hashes(tmp_path / "whole").values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "store", "whole"]
    if format != "npz":  # what was there was not written again
        assert kept.items() <= {file.name: file.stat().st_mtime_ns
                                for file in (tmp_path / "out").iterdir()}.items()


def test_what_is_left_of_another_export_is_not_mixed_in(tmp_path: Path) -> None:
    store = made(tmp_path / "store", KINDS["rgb"])
    files = tmp_path / ".out.exporting/files"
    files.mkdir(parents=True)
    (files / "000000.npz").write_bytes(b"other")
    (files.parent / "export.txt").write_text("published other")
    export_published(select(store), tmp_path / "out", nothing)
    with np.load(tmp_path / "out/000000.npz") as arrays:
        assert "endpoints" in arrays


def test_damaged_pairs_are_not_exported(tmp_path: Path) -> None:
    store = made(tmp_path / "store", KINDS["rgb"])
    store.discard_shard(1)
    for format, export in EXPORTS.items():
        with pytest.raises(DataError, match="pairs 16 to 32 are not complete"):
            export(select(store), tmp_path / format, nothing)
        assert not (tmp_path / format).exists()


def test_command(tmp_path: Path) -> None:
    store = made(tmp_path / "store", KINDS["rgb"])
    result = kdm("export", tmp_path / "store", tmp_path / "out", "--format", "webdataset",
                 "--split", "train", "--split", "test", "--pairs-per-file", 20)
    assert result.exit_code == 0, result.output
    assert "36 pairs" in result.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2
    result = kdm("export", tmp_path / "store", tmp_path / "out", "--format", "published")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "exists already" in result.stderr
    mask = masked(store).mask
    assert mask is not None
    mask.save(tmp_path / "keep.zarr")
    result = kdm("export", tmp_path / "store", tmp_path / "kept.npz", "--format", "npz", "--kept",
                 "--mask", tmp_path / "keep.zarr")
    assert "36 pairs" in result.stdout
    for arguments, message in [(("--kept",), "has no mask"), (("--split", "dev"), "no dev"),
                               (("--mask", tmp_path / "keep.zarr"), "--kept as well")]:
        result = kdm("export", tmp_path / "store", tmp_path / "x", "--format", "npz", *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
    (tmp_path / "file").write_text("")
    result = kdm("export", tmp_path / "store", tmp_path / "file/out", "--format", "npz")
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
