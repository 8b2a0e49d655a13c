"""Pairs of others: every layout with noise and sample the right way round, and hostile files."""

import io
import json
import multiprocessing
import os
import signal
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from kdm_core.datasets.npy import parse_npy
from kdm_core.datasets.npz import NpzConfig, read_npz
from kdm_core.errors import Adapted, DataError, MismatchError
from kdm_core.pairs.importing import (
    ImportConfig,
    KnownTeacher,
    PairSource,
    compare_with_teacher,
    import_pairs,
    open_source,
    plan_import,
    say_missing_classes,
)
from kdm_core.pairs.importing.source import RawPairs, SampleRange
from kdm_core.pairs.opening import open_or_create
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import save_teacher
from kdm_core.teachers.exact import GaussianMixture, fit_mixture
from kdm_core.values import from_uint8
from pipeline.kdm.cli import app
from tests.support.pictures import raw_png

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)
COUNT = 24
CONFIG = ImportConfig(test=4, validation=3, shard=8, chunk=4)


class Made:
    """Pairs to write to files: noise of variance 1, images as uint8 and as floats, labels."""

    def __init__(self, shape: tuple[int, ...] = SHAPE, count: int = COUNT) -> None:
        rng = np.random.default_rng(0)
        self.noise = rng.standard_normal((count, *shape)).astype(np.float16)
        self.images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        self.floats = from_uint8(torch.from_numpy(self.images)).numpy()
        self.labels = rng.permutation(np.arange(count) % 5)


MADE = Made()


def kdm(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pairs", *map(str, arguments)])


def imported(source: PairSource, path: Path, config: ImportConfig = CONFIG) -> PairStore:
    plan = plan_import(source, config)
    store = open_or_create(path, plan.spec, {})
    import_pairs(source, store, plan.scale)
    return store


def check(store: PairStore, labelled: bool = True, scale: float = 1.0) -> None:
    """The store holds `MADE`."""
    block = store.read(range(store.spec.count))
    np.testing.assert_array_equal(block.noise, MADE.noise)
    np.testing.assert_array_equal(block.sample, MADE.images)
    np.testing.assert_array_equal(block.label, MADE.labels if labelled else -1)
    assert store.spec.noise_scale == scale
    assert store.spec.teacher is store.spec.noise_seed is store.spec.solver is None
    assert store.spec.splits == {"test": 4, "validation": 3, "train": COUNT - 7}
    assert store.spec.samples.sigma_data == pytest.approx(MADE.floats.std(), rel=1e-6)


def write_published(
    folder: Path, key: str, scale: float, noise_first: bool, labelled: bool = False, states: int = 2
) -> Path:
    folder.mkdir()
    for i in range(COUNT):
        noise = MADE.noise[i].astype(np.float32) * np.float32(scale)
        ends = [noise, MADE.floats[i]]
        first, last = ends if noise_first else ends[::-1]
        between = [np.full(SHAPE, 7, np.float32)] * (states - 2)
        arrays: dict[str, Any] = {key: np.stack([first, *between, last])}
        if labelled:
            arrays["label"] = np.eye(5)[MADE.labels[i]]
        np.savez(folder / f"{i}.npz", **arrays)
    return folder


@pytest.mark.parametrize(("key", "scale", "noise_first", "labelled", "states"), [
    ("arr_0", 80, True, False, 5),
    ("arr_0", 80, False, False, 2),
    ("endpoints", 80, False, True, 2),
    ("arr1", 1, False, False, 3),
])
def test_published_images(
    tmp_path: Path, key: str, scale: float, noise_first: bool, labelled: bool, states: int
) -> None:
    folder = write_published(tmp_path / "in", key, scale, noise_first, labelled, states)
    store = imported(open_source(folder), tmp_path / "out")
    check(store, labelled, scale)
    assert store.spec.imported is not None
    assert key in store.spec.imported


def test_order_can_be_forced(tmp_path: Path) -> None:
    """Of small noise the deviations say nothing."""
    folder = write_published(tmp_path / "in", "arr_0", 1, noise_first=True)
    with pytest.raises(DataError, match="order: .*noise-first or sample-first"):
        open_source(folder)
    check(imported(open_source(folder, order="noise-first"), tmp_path / "out"), labelled=False)
    with pytest.raises(DataError, match=r"^order: .*kurtosis"):
        plan_import(open_source(folder, order="sample-first"), CONFIG)


def test_published_points(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    states = rng.standard_normal((10, 400, 2)).astype(np.float32)
    states[-1] = rng.uniform(-4, 4, (400, 2))
    np.save(tmp_path / "points.npy", states)
    config = CONFIG.model_copy(update={"shard": 100, "chunk": 50, "noise_dtype": "float32"})
    store = imported(open_source(tmp_path / "points.npy"), tmp_path / "out", config)
    block = store.read(range(400))
    np.testing.assert_array_equal(block.noise, states[0])
    np.testing.assert_array_equal(block.sample, states[-1])
    assert store.spec.samples.kind == "points"
    assert store.spec.samples.shape == [2]
    assert store.spec.sample_dtype == "float32"
    assert store.spec.noise_scale == 1
    with pytest.raises(DataError, match="uint8 is for images"):
        plan_import(open_source(tmp_path / "points.npy"),
                    config.model_copy(update={"sample_dtype": "uint8"}))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fid_npz(tmp_path: Path, compressed: bool, channels_last: bool) -> None:
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "in.npz", arr_0=np.moveaxis(MADE.images, 1, -1), arr_1=MADE.labels)
    noise = MADE.noise.astype(np.float32) * 80
    np.save(tmp_path / "noise.npy", np.moveaxis(noise, 1, -1) if channels_last else noise)
    with pytest.raises(DataError, match=r"^noise: .*holds none: give its file"):
        open_source(tmp_path / "in.npz")
    source = open_source(tmp_path / "in.npz", noise=tmp_path / "noise.npy")
    check(imported(source, tmp_path / "out"), scale=80)


def test_npz_with_noise_and_names(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat", "dog", "emu", "fox"]
    np.savez(tmp_path / "in.npz", sample=MADE.floats, label=MADE.labels, noise=MADE.noise,
             label_names=np.array(names))
    store = imported(open_source(tmp_path / "in.npz"), tmp_path / "out")
    check(store)
    assert store.spec.samples.label_names == names
    np.savez(tmp_path / "noise.npz", noise=MADE.noise)
    np.savez(tmp_path / "bare.npz", arr_0=MADE.images)  # (N, C, H, W) is told by its channels
    check(imported(open_source(tmp_path / "bare.npz", noise=tmp_path / "noise.npz"),
                   tmp_path / "bare"), labelled=False)
    with pytest.warns(Adapted, match="noise.npz is taken, and not the file's own"):
        open_source(tmp_path / "in.npz", noise=tmp_path / "noise.npz")


@pytest.mark.parametrize("arrays", [
    lambda images, labels: {"arr_0": images, "arr_1": labels},
    lambda images, labels: {"images": images, "labels": labels},
    lambda images, labels: {"samples": np.moveaxis(images, 1, -1), "y": labels},
    lambda images, labels: {"sample": np.moveaxis(images, 1, -1), "label": labels},
])
def test_one_reader_for_data_and_for_pairs(
    tmp_path: Path, arrays: Callable[..., dict[str, Any]]
) -> None:
    """The same file gives both the same images and labels, whatever the arrays are called."""
    np.savez(tmp_path / "in.npz", **arrays(MADE.images, MADE.labels))
    np.save(tmp_path / "noise.npy", MADE.noise)
    check(imported(open_source(tmp_path / "in.npz", noise=tmp_path / "noise.npy"),
                   tmp_path / "out"))
    images, labels, names = read_npz(NpzConfig(source="npz", path=str(tmp_path / "in.npz")))
    np.testing.assert_array_equal(images, MADE.images)
    np.testing.assert_array_equal(labels, MADE.labels)
    assert names == list("01234")


@pytest.mark.parametrize("labels, message", [
    (MADE.labels * 1.0, "save labels.ravel"), (np.eye(5)[MADE.labels], "save labels.argmax"),
    (MADE.labels[:, None], "save labels.ravel"), (MADE.labels.astype(str), "numpy.unique"),
    (MADE.noise, "name the arrays"), (MADE.labels[:3], "expected a label for each sample"),
    (MADE.labels - 1, "label -1 is none of the"),
])
def test_labels_that_both_readers_refuse(
    tmp_path: Path, labels: NDArray[Any], message: str
) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, MADE.images, labels, noise=MADE.noise)
    with pytest.raises(DataError, match=rf"in\.npz: .*{message}"):
        open_source(path)
    with pytest.raises(DataError, match=rf"in\.npz: .*{message}"):
        read_npz(NpzConfig(source="npz", path=str(path)))


@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 32, 3), (1, 8, 3), (3, 1, 1)])
def test_channels_of_both_readers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A shape that fits both is refused; what the message says to give is believed."""
    made, path = Made(shape), tmp_path / "in.npz"
    np.savez(path, images=made.images, noise=made.noise)
    with pytest.raises(DataError, match="may have the channels first or last: say first"):
        open_source(path)
    with pytest.raises(DataError, match=r"^channels: .*say first or last"):
        read_npz(NpzConfig(source="npz", path=str(path)))
    for channels, expected in (("first", made.images), ("last", np.moveaxis(made.images, -1, 1))):
        config = NpzConfig.model_validate({"source": "npz", "path": str(path),
                                           "channels": channels})
        np.testing.assert_array_equal(read_npz(config).images, expected)
        np.savez(tmp_path / "pairs.npz", images=made.images,
                 noise=made.noise if channels == "first" else np.moveaxis(made.noise, -1, 1))
        raw = open_source(tmp_path / "pairs.npz", channels=config.channels).read(np.arange(COUNT))
        np.testing.assert_array_equal(raw.sample, expected)


def test_channels_of_latents_are_told_by_square_images(tmp_path: Path) -> None:
    for shape, found in [((4, 8, 8), (4, 8, 8)), ((8, 8, 4), (4, 8, 8)), ((2, 5, 5), (2, 5, 5))]:
        made = Made(shape)
        np.savez(tmp_path / "in.npz", arr_0=made.floats, noise=made.noise)
        assert open_source(tmp_path / "in.npz").shape == found
    made = Made((4, 8, 6))
    np.savez(tmp_path / "in.npz", arr_0=made.floats, noise=made.noise)
    with pytest.raises(DataError, match="^channels: "):
        open_source(tmp_path / "in.npz")
    assert open_source(tmp_path / "in.npz", channels="first").shape == (4, 8, 6)
    with pytest.raises(DataError, match="expected uint8 .* with C = 1 or 3"):
        read_npz(NpzConfig(source="npz", path=str(tmp_path / "in.npz")))


def test_arrays_that_nobody_reads_are_told_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", images=MADE.images, targets=MADE.labels, noise=MADE.noise)
    with pytest.warns(Adapted, match="not read: targets; there are no labels, which"):
        open_source(tmp_path / "in.npz")
    with pytest.warns(Adapted, match="not read: noise, targets; there"):
        read_npz(NpzConfig(source="npz", path=str(tmp_path / "in.npz")))


def test_layouts_whose_channels_are_first_refuse_others(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(COUNT):
        ends = np.stack([MADE.floats[i], MADE.noise[i] * np.float32(80)])
        np.savez(folder / f"{i}.npz", endpoints=np.moveaxis(ends, 1, -1))
    with pytest.raises(DataError, match=r"shape \(8, 8, 3\).* numpy\.moveaxis\(…, -1, -3\)"):
        open_source(folder)
    for path in folder.iterdir():
        np.savez(path, endpoints=np.moveaxis(np.load(path)["endpoints"], -1, -3))
    check(imported(open_source(folder), tmp_path / "out"), labelled=False, scale=80)
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name, values in (("0.npy", np.moveaxis(MADE.floats[0], 0, -1)),
                             ("0.noise.npy", MADE.noise[0])):
            stream = io.BytesIO()
            np.save(stream, values)
            entry = tarfile.TarInfo(name)
            entry.size = stream.tell()
            stream.seek(0)
            archive.addfile(entry, stream)
    with pytest.raises(DataError, match=r"in\.tar: 0: .*numpy\.moveaxis"):
        open_source(tmp_path / "in.tar")


def test_flat_images_are_no_points(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", images=MADE.images.reshape(COUNT, -1),
             noise=MADE.noise.reshape(COUNT, -1))
    with pytest.raises(DataError, match=r"type uint8, expected floats: if they are flat images"):
        open_source(tmp_path / "in.npz")


def test_classes_that_only_the_teacher_knows(tmp_path: Path) -> None:
    """The ways out of labels 1 … 5: other numbers, or a teacher of six classes."""
    points = np.random.default_rng(2).normal(size=(COUNT, 2)).astype(np.float32)
    noise = np.random.default_rng(3).standard_normal((COUNT, 2)).astype(np.float32)
    np.savez(tmp_path / "in.npz", points, MADE.labels + 1, noise=noise)
    source = open_source(tmp_path / "in.npz")
    with pytest.raises(DataError, match="class 0 has no pairs: number the classes.*or give the te"):
        plan_import(source, CONFIG)
    teacher = gaussian(PLANE.model_copy(update={"label_names": [*"abcdef"]}), 0)
    with pytest.warns(Adapted, match=r"class 0 \(a\) has no pairs"):
        plan = plan_import(source, CONFIG, KnownTeacher(teacher, "f" * 64))
    assert plan.spec.samples.label_names == [*"abcdef"]


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_in_lists_begin_with_0(tmp_path: Path, first: int) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"{i:02}.png")
    (folder / "dataset.json").write_text(json.dumps(
        {"labels": [[f"{i:02}.png", int(MADE.labels[i]) + first] for i in range(COUNT)]}))
    source = open_source(folder)
    if first:
        with pytest.raises(DataError, match="class 0 has no pairs: number the classes"):
            plan_import(source, CONFIG)
    else:
        check(imported(source, tmp_path / "out"))


def test_channels_and_range_on_the_command_line(tmp_path: Path) -> None:
    made = Made((3, 16, 3))
    np.savez(tmp_path / "in.npz", images=(made.floats + 1) / 2, noise=made.noise)
    arguments = ["import", tmp_path / "in.npz", tmp_path / "out", "--test", 4, "--validation", 3,
                 "--shard", 8, "--chunk", 4]
    for option in (["--channels", "first"], ["--sample-range", "unit"]):
        result = kdm(*arguments)
        assert result.exit_code == 1 and f"{option[0]}: " in result.stderr
        arguments += option
    result = kdm(*arguments)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(
        PairStore.open(tmp_path / "out").read(range(COUNT)).sample, made.images)


def test_every_class_has_pairs_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"

    def plan(labels: NDArray[np.int64], config: ImportConfig = CONFIG, **arrays: Any) -> Any:
        np.savez(path, MADE.images, labels, noise=MADE.noise, **arrays)
        return plan_import(open_source(path), config).spec.samples.label_names

    with pytest.raises(DataError, match=r"in\.npz.*class 0 has no pairs: number the classes"):
        plan(MADE.labels + 1)
    assert plan(np.unique(MADE.labels + 1, return_inverse=True)[1]) == list("01234")
    with pytest.raises(DataError, match=r"classes 0, 2, 4, … \(5 in all\) have no pairs"):
        plan(MADE.labels * 2 + 1)
    with pytest.warns(Adapted, match=r"class 0 \(none\) has no pairs"):
        names = np.array(["none", *"abcde"])
        assert plan(MADE.labels + 1, label_names=names) == names.tolist()
    # Sorted by class, the test pairs take all of the first one.
    ordered = np.sort(np.arange(COUNT) % 4)
    with pytest.raises(DataError, match=r"class 0 has no pairs to train on.* 5 together at most"):
        plan(ordered)
    assert plan(ordered, CONFIG.model_copy(update={"validation": 2, "test": 3})) == list("0123")


def write_pngs(folder: Path, name: Callable[[int], str], noise: str = ".npy") -> Path:
    for i, image in enumerate(MADE.images):
        path = folder / name(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
        if noise:
            np.save(path.with_suffix(noise), MADE.noise[i])
    return folder


@pytest.mark.parametrize("noise", [".npy", ".noise.npy", ""])
def test_png_folder(tmp_path: Path, noise: str) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"{i:06}.png", noise)
    if not noise:
        with pytest.raises(DataError, match=r"^noise: .*000000\.png has none: put it beside"):
            open_source(folder)
        np.save(folder / "noise.npy", MADE.noise)
    check(imported(open_source(folder), tmp_path / "out"), labelled=False)


def sorted_pngs(folder: Path, names: list[str]) -> np.ndarray:
    """PNGs under these names, with noise that is 2 where its image is bright; the noise, in order.

    So noise and image of a pair correlate to 1, and those of others hardly.
    """
    folder.mkdir(parents=True)
    bright = np.random.default_rng(1).random((len(names), *SHAPE)) < 0.5
    for name, image in zip(names, bright, strict=True):
        pixels = (image * 255).astype(np.uint8).transpose(1, 2, 0)
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return np.where(bright, 1.0, -1.0).astype(np.float32)


def correlations(source: PairSource) -> np.ndarray:
    """Of noise and image of each pair."""
    pairs = source.read(np.arange(source.count))
    return np.array([np.corrcoef(noise.ravel(), sample.ravel())[0, 1]
                     for noise, sample in zip(pairs.noise, pairs.sample, strict=True)])


@pytest.mark.parametrize("names", [
    [f"{kind}_{i:03}.png" for kind in ("airplane", "bird", "cat", "dog") for i in range(20)],
    [f"{number}.png" for number in range(80)],
    [f"img{number}.PNG" for number in range(95, 105)],
    [f"s{number}_t{step}.png" for number in (1, 2, 10) for step in (1, 9, 10, 11)],
    ["a.b.png", "a.c.png", "b.png", "noisy.png"],
])
@pytest.mark.parametrize("given", [False, True])
def test_noise_in_one_file_is_joined_in_natural_order(
    tmp_path: Path, names: list[str], given: bool
) -> None:
    noise = sorted_pngs(tmp_path / "in", names)
    path = tmp_path / "z.npy" if given else tmp_path / "in/noise.npy"
    np.save(path, noise)
    with pytest.warns(Adapted, match=rf"joined by position, in natural order of the names: the "
                                     rf"first noise is that of {names[0]}, the last.*{names[-1]}"):
        source = open_source(tmp_path / "in", "png", noise=path if given else None)
    assert source.layout.endswith("in one file, joined by position in natural order of the names")
    np.testing.assert_allclose(correlations(source), 1)


@pytest.mark.parametrize(("names", "problem"), [
    (["a/0.png", "b/0.png"], "the images lie in several folders"),
    (["a/0.png", "a/1.png", "b/2.png"], "the images lie in several folders"),
    (["01.png", "1.png", "2.png"], "01.png and 1.png have the same number"),
])
def test_an_order_that_is_not_sure_is_refused(
    tmp_path: Path, names: list[str], problem: str
) -> None:
    noise = sorted_pngs(tmp_path / "in", names)
    np.save(tmp_path / "in/noise.npy", noise)
    with pytest.raises(DataError, match=rf"{problem}.*put the noise of each image beside it"):
        open_source(tmp_path / "in")
    (tmp_path / "in/noise.npy").unlink()  # the advice is followed
    for name, one in zip(names, noise, strict=True):
        np.save((tmp_path / "in" / name).with_suffix(".npy"), one)
    np.testing.assert_allclose(correlations(open_source(tmp_path / "in")), 1)


def test_two_noises_of_one_image_are_refused(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"{i}.png")
    np.save(folder / "3.noise.npy", MADE.noise[3])
    with pytest.raises(DataError, match=r"3\.npy and 3\.noise\.npy are both noise of 3\.png"):
        open_source(folder)
    (folder / "3.noise.npy").unlink()
    np.save(folder / "noise.npy", MADE.noise)
    with pytest.raises(DataError, match=r"in/noise\.npy and .*/0\.npy both hold some"):
        open_source(folder)
    with pytest.warns(Adapted, match=r"24 other files are passed over \(24 \.npy\)"):
        open_source(folder, noise=folder / "noise.npy")
    (folder / "noise.npy").unlink()
    (folder / "23.npy").unlink()
    with pytest.raises(DataError, match=r"23\.png has none"):
        open_source(folder)  # and not after 22 pairs


def test_classes_without_test_pairs_are_said(tmp_path: Path) -> None:
    """Splits are cut from the front, and names may begin with the class."""
    names = [f"{kind}{number}" for kind in ("ant", "bee", "cat") for number in range(8)]
    folder = write_pngs(tmp_path / "in", lambda i: f"{names[i]}.png")
    (folder / "dataset.json").write_text(json.dumps(
        {"labels": [[f"{name}.png", "abc".index(name[0])] for name in names]}))
    sizes = ("--validation", 3, "--shard", 8, "--chunk", 4)
    result = kdm("import", folder, tmp_path / "out", "--test", 4, *sizes)
    assert result.exit_code == 0
    assert "note: 2 of 3 classes have no test pairs (1, 2)" in result.stderr
    result = kdm("import", folder, tmp_path / "more", "--test", 17, *sizes)  # as advised
    assert "no test pairs" not in result.stderr


def test_folders_that_are_numbers_are_classes_of_these_numbers(tmp_path: Path) -> None:
    names = [f"{number}/0.png" for number in range(12)]
    for name, noise in zip(names, sorted_pngs(tmp_path / "in", names), strict=True):
        np.save((tmp_path / "in" / name).with_suffix(".npy"), noise)
    source = open_source(tmp_path / "in")
    assert source.label_names == [str(number) for number in range(12)]
    found = source.read(np.arange(12))
    assert [source.where(row).split("/")[-2] for row in range(12)] == [str(i) for i in found.label]
    (tmp_path / "in/0").rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"class 0 has none: rename them 0 to 10.*dataset\.json"):
        open_source(tmp_path / "in")
    (tmp_path / "in/dataset.json").write_text(json.dumps(
        {"labels": [[name, int(name.split("/")[0])] for name in names[1:]]}))
    assert open_source(tmp_path / "in").read(np.arange(11)).label.tolist() == list(range(1, 12))


@pytest.mark.parametrize("kind", ["dataset.json", "labels.json", "folders"])
def test_png_labels(tmp_path: Path, kind: str) -> None:
    folders = kind == "folders"
    folder = write_pngs(
        tmp_path / "in", lambda i: f"{f'c{MADE.labels[i]}/' if folders else ''}{i}.png")
    classes = {f"{i}.png": int(MADE.labels[i]) for i in range(COUNT)}
    if kind == "dataset.json":
        (folder / kind).write_text(json.dumps({"labels": list(classes.items())}))
    elif kind == "labels.json":
        (folder / kind).write_text(json.dumps(
            {"labels": {name: {"label": label, "name": "x"} for name, label in classes.items()}}))
    store = imported(open_source(folder), tmp_path / "out")
    check(store)  # in the order of the numbers, not of the letters or classes
    assert store.spec.samples.label_names == [f"c{i}" if folders else str(i) for i in range(5)]


def test_label_lists_must_fit(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"{i}.png")
    (folder / "dataset.json").write_text('{"labels": [["0.png", 1]]}')
    with pytest.raises(DataError, match=r"1\.png has no label"):
        open_source(folder)
    (folder / "dataset.json").write_text('{"labels": [["0.png", -1]]}')
    with pytest.raises(DataError, match="-1 is no class"):
        open_source(folder)
    (folder / "dataset.json").write_text('{"labels": [["0.png", 1], ["0.png", 2]]}')
    with pytest.raises(DataError, match=r"it has 0\.png twice"):
        open_source(folder)
    (folder / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"dataset\.json is no readable"):
        open_source(folder)
    (folder / "dataset.json").unlink()
    (folder / "more").mkdir()
    (folder / "0.png").rename(folder / "more/0.png")
    (folder / "0.npy").rename(folder / "more/0.npy")
    with pytest.raises(DataError, match="beside folders of images"):
        open_source(folder)


def test_bad_pairs_are_named_and_complete_shards_kept(tmp_path: Path) -> None:
    """The bad file is in the last shard; put right, the import goes on to the same store."""
    folder = write_published(tmp_path / "in", "endpoints", 80, False, labelled=True)
    whole = imported(open_source(folder), tmp_path / "whole").content_hash()
    bad, good = folder / "22.npz", (folder / "22.npz").read_bytes()
    store = open_or_create(tmp_path / "out", plan_import(open_source(folder), CONFIG).spec, {})
    ends = np.stack([MADE.floats[22], MADE.noise[22].astype(np.float32) * 80])
    label = np.eye(5)[0]
    damages: list[tuple[dict[str, Any] | None, str]] = [
        (None, "no readable file of plain arrays"),
        ({"arr_0": ends}, "unlike the first file, 0.npz"),
        ({"endpoints": ends}, "without label, unlike the first"),
        ({"endpoints": ends[:, :, :4], "label": label}, "unlike the first"),
        ({"endpoints": ends, "label": np.eye(6)[0]}, "no one-hot vector of 5"),
        ({"endpoints": ends, "label": np.full(5, 0.2)}, "no one-hot vector of 5"),
        ({"endpoints": ends * [[[[1]]], [[[0.1]]]], "label": label}, "no pair of the same teacher"),
        ({"endpoints": ends * [[[[np.nan]]], [[[1]]]], "label": label}, "not finite"),
        ({"endpoints": ends * [[[[127]]], [[[1]]]], "label": label}, r"must lie in \[-1, 1\]"),
        ({"endpoints": np.array([{}, 1], object), "label": label}, "expected numbers"),
        ({"endpoints": ends.astype(np.int8), "label": label}, "noise of type int8"),
    ]
    for arrays, message in damages:
        if arrays is None:
            bad.write_bytes(good[: len(good) // 2])
        else:
            np.savez(bad, **arrays)
        with pytest.raises(DataError, match=rf"22\.npz.*{message}"):
            import_pairs(open_source(folder), store, 80)
        assert store.missing_shards() == [2]
    bad.unlink()
    source = open_source(folder)
    assert source.count == COUNT - 1
    with pytest.raises(MismatchError, match="holds other pairs: "):
        open_or_create(tmp_path / "out", plan_import(source, CONFIG).spec, {})
    bad.write_bytes(good)
    assert imported(open_source(folder), tmp_path / "out").content_hash() == whole


def test_noise_must_come_out_with_variance_1(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "in", "arr_0", 80, noise_first=True)
    config = CONFIG.model_copy(update={"noise_scale": 40.0})
    with pytest.raises(DataError, match=r"standard deviation 79\.906, and not 40"):
        plan_import(open_source(folder), config)
    other = write_published(tmp_path / "other", "endpoints", 52.5, noise_first=False)
    spec, scale, measured = plan_import(open_source(other), CONFIG)
    assert scale == spec.noise_scale
    assert spec.noise_scale == pytest.approx(52.5, rel=0.03)
    assert spec.noise_scale == pytest.approx(measured.deviation, rel=1e-5)
    exact = CONFIG.model_copy(update={"noise_scale": 52.5})
    check(imported(open_source(other), tmp_path / "out", exact), labelled=False, scale=52.5)


@pytest.mark.parametrize("change", [lambda x: (x + 1) / 2, lambda x: x * 127.5, lambda x: x * 1.5])
def test_images_must_be_in_range(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    np.savez(tmp_path / "in.npz", sample=change(MADE.floats), noise=MADE.noise)
    with pytest.raises(DataError, match=r"must lie in \[-1, 1\]"):
        plan_import(open_source(tmp_path / "in.npz"), CONFIG)


UNIT = (MADE.floats + 1) / 2
BYTES = MADE.images.astype(np.float32)


def planned(path: Path, samples: NDArray[Any], given: SampleRange | None = None) -> PairStore:
    np.savez(path / "in.npz", sample=samples, noise=MADE.noise)
    return imported(open_source(path / "in.npz", sample_range=given), path / f"{given}")


@pytest.mark.parametrize("samples", [
    UNIT, UNIT * 1.02 - 0.01, UNIT * 1.1 - 0.09, UNIT * 1.35 - 0.3,
    np.where(np.arange(8) == 0, -0.01, UNIT),
    np.where(np.arange(UNIT.size).reshape(UNIT.shape) % 150 == 0, -1.0, UNIT), UNIT * 0.01,
    BYTES, BYTES.astype(np.float64), BYTES * 1.001 - 0.1, BYTES * 0.004, np.abs(MADE.floats),
])
def test_a_range_that_is_not_clear_is_refused(tmp_path: Path, samples: NDArray[Any]) -> None:
    """A few values below zero do not make samples of [0, 1] such of [-1, 1]."""
    with pytest.raises(DataError, match=r"^sample_range: .*must lie in \[-1, 1\], .* say unit"):
        planned(tmp_path, samples)


def test_a_range_that_is_said_is_believed(tmp_path: Path) -> None:
    check(planned(tmp_path, UNIT, "unit"), labelled=False)
    (tmp_path / "bytes").mkdir()
    store = planned(tmp_path / "bytes", BYTES, "bytes")
    check(store, labelled=False)
    assert store.spec.imported is not None and "bytes samples" in store.spec.imported
    (tmp_path / "bright").mkdir()
    block = planned(tmp_path / "bright", np.abs(MADE.floats), "signed").read(range(COUNT))
    assert block.sample.min() == 128
    (tmp_path / "over").mkdir()
    with pytest.warns(Adapted, match=r"from -0\.01 to 1\.01 are taken as in \[0, 1\]"):
        block = planned(tmp_path / "over", UNIT * 1.02 - 0.01, "unit").read(range(COUNT))
    assert np.abs(block.sample - MADE.images.astype(float)).max() <= 3
    for samples, given, message in [(MADE.floats, "unit", r"not in \[0, 1\], which is unit"),
                                    (BYTES, "unit", r"not in \[0, 1\]"),
                                    (BYTES, "signed", r"not in \[-1, 1\]"),
                                    (BYTES * 2, "bytes", r"not in \[0, 255\]"),
                                    (MADE.images, "bytes", "are uint8 and not floats")]:
        with pytest.raises(DataError, match=message):
            planned(tmp_path, samples, given)  # type: ignore[arg-type]


def test_samples_that_leave_the_range_are_told_of(tmp_path: Path) -> None:
    with pytest.warns(Adapted, match=r"from -1\.02 to 1\.02 are taken as in \[-1, 1\]"):
        planned(tmp_path, MADE.floats * 1.02)
    with pytest.raises(DataError, match="not finite"):
        planned(tmp_path, np.where(MADE.floats > 0.99, np.nan, MADE.floats))
    far = MADE.floats.copy()
    far[7, 0, 0, 0] = 300
    with pytest.raises(DataError, match="pair 7: its sample has values beyond 2"):
        planned(tmp_path, far)


def test_dark_bytes_are_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", images=MADE.images // 255, noise=MADE.noise)
    with pytest.warns(Adapted, match=r"no value above 1, and are taken as nearly black"):
        store = imported(open_source(tmp_path / "in.npz"), tmp_path / "out")
    block = store.read(range(COUNT))
    np.testing.assert_array_equal(block.sample, MADE.images // 255)


def test_samples_that_leave_the_range_a_little_are_clipped(tmp_path: Path) -> None:
    samples = MADE.floats.copy()
    samples[0, 0, 0, 0], samples[1, 0, 0, 0] = 1.4, -1.2
    np.savez(tmp_path / "in.npz", sample=samples, noise=MADE.noise)
    block = imported(open_source(tmp_path / "in.npz"), tmp_path / "out").read(range(2))
    assert block.sample[:, 0, 0, 0].tolist() == [255, 0]
    kept = CONFIG.model_copy(update={"sample_dtype": "float32"})
    block = imported(open_source(tmp_path / "in.npz"), tmp_path / "floats", kept).read(range(2))
    np.testing.assert_array_equal(block.sample, samples[:2])


def npy_claiming(shape: tuple[int, ...], content: bytes = b"", dtype: str = "<f4") -> bytes:
    """An .npy file whose header tells lies."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue() + content


def test_sizes_are_compared_before_anything_is_allocated(tmp_path: Path) -> None:
    for shape in ((2**40,), (2**31, 2**31, 2**31), (-1,)):
        with pytest.raises(ValueError, match="claims|shape|negative"):
            parse_npy(npy_claiming(shape, b"1234"))
    folder = tmp_path / "in"
    folder.mkdir()
    with zipfile.ZipFile(folder / "0.npz", "w") as archive:
        archive.writestr("endpoints.npy", npy_claiming((2, 2**38, 3, 3)))
    with pytest.raises(DataError, match=r"0\.npz.*its header claims"):
        open_source(folder)
    # Zeros that really are there, once unpacked: 256 MB of them.
    with zipfile.ZipFile(folder / "0.npz", "w", zipfile.ZIP_DEFLATED) as archive, \
            archive.open("endpoints.npy", "w", force_zip64=True) as member:
        member.write(npy_claiming((2, 2**25)))
        for _ in range(64):
            member.write(bytes(2**22))
    with pytest.raises(DataError, match=r"0\.npz.*at most \d+ are allowed"):
        open_source(folder)
    (tmp_path / "big.npy").write_bytes(npy_claiming((10, 2**40, 2), bytes(100)))
    with pytest.raises(DataError, match=r"big\.npy.*its header claims"):
        open_source(tmp_path / "big.npy")


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    header = npy_claiming((2**33, 1, 8, 8), dtype="|u1")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header)
        archive.writestr("noise.npy", npy_claiming((1,), bytes(4)))
        archive.getinfo("arr_0.npy").file_size = len(header) + 2**39
    with pytest.raises(DataError, match=r"claims 549755814016 bytes, which \d+ packed"):
        open_source(path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    np.save(tmp_path / "points.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez(tmp_path / "in.npz", sample=np.array([Bomb()], object), noise=MADE.noise)
    folder = write_pngs(tmp_path / "png", lambda i: f"{i}.png")
    np.save(folder / "0.npy", np.array([Bomb()], object), allow_pickle=True)
    for path in (tmp_path / "points.npy", tmp_path / "in.npz", folder):
        with pytest.raises(DataError, match=f"{path.name}.*expected numbers"):
            plan_import(open_source(path), CONFIG)
    assert not (tmp_path / "executed").exists()


def test_contradictions_in_one_npz(tmp_path: Path) -> None:
    path, images, noise = tmp_path / "in.npz", MADE.images, MADE.noise
    for arrays, message in [
        ({"noise": noise}, "no array 'images'"),
        ({"arr_0": images, "images": images, "noise": noise}, "which mean the same"),
        ({"arr_0": images, "noise": noise[:-1]}, "24 samples and noise of shape"),
        ({"arr_0": images, "noise": noise[:, :2]}, "does not fit samples of shape"),
        ({"arr_0": images, "noise": images}, "noise of type uint8"),
        ({"arr_0": images.astype(np.int32), "noise": noise}, r"expected uint8 \(0 to 255\) or fl"),
        ({"arr_0": images, "noise": noise, "arr_1": MADE.labels[:3]}, "a label for each sample"),
        ({"arr_0": images, "noise": noise, "arr_1": MADE.labels * 1.0}, "expected integers"),
        ({"arr_0": images, "noise": noise, "arr_1": MADE.labels - 1}, "label -1 is none"),
        ({"arr_0": np.asfortranarray(images), "noise": noise}, "Fortran order"),
    ]:
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message):
            open_source(path)


def test_layouts_that_cannot_be_told(tmp_path: Path) -> None:
    for name, message in [("missing", "does not exist"), ("empty", "of no known layout")]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            open_source(tmp_path / name)
    folder = write_pngs(tmp_path / "in", lambda i: f"{i}.png")
    np.savez(folder / "x.npz", noise=MADE.noise)
    with pytest.raises(DataError, match="^layout: .*published and png: say"):
        open_source(folder)
    assert open_source(folder, "png").count == COUNT
    with pytest.raises(DataError, match="order: the layout png"):
        open_source(folder, "png", order="noise-first")
    with pytest.raises(DataError, match=r"x\.npz is no folder"):
        open_source(folder / "x.npz", "published")


def test_damaged_tars(tmp_path: Path) -> None:
    def write(members: dict[str, bytes]) -> Path:
        with tarfile.open(tmp_path / "in.tar", "w") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return tmp_path / "in.tar"

    stream = io.BytesIO()
    np.save(stream, MADE.noise[0])
    noise = stream.getvalue()
    for members, message in [
        ({}, "holds no pairs"),
        ({"0.npy": noise}, r"no 0\.noise\.npy"),
        ({"0.noise.npy": noise}, "neither of"),
        ({"0.npy": noise, "0.noise.npy": noise, "0.cls": b"x"}, "invalid literal"),
        ({"0.npy": noise, "0.noise.npy": noise, "0.cls": b"-3"}, "label -3 is none"),
        ({"0.png": noise, "0.noise.npy": noise}, "not a readable PNG"),
        ({"0.npy": noise[:-4], "0.noise.npy": noise}, "its header claims"),
    ]:
        with pytest.raises(DataError, match=message):
            open_source(write(members))
    stream = io.BytesIO()
    np.save(stream, MADE.images[0].astype(np.uint16))
    with pytest.raises(DataError, match="a sample of type uint16, expected uint8 or floats"):
        open_source(write({"0.npy": stream.getvalue(), "0.noise.npy": noise}))
    path = write({"0.npy": noise, "0.noise.npy": noise})
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=r"in\.tar is no readable"):
        open_source(path)


def test_tars_as_others_pack_them(tmp_path: Path) -> None:
    """With folders in the names, as `tar cf x.tar ./v1.2` has them, and files of the system's."""
    folder = write_pngs(tmp_path / "in/v1.2", lambda i: f"{i}.png", ".noise.npy")
    for name in ("._0.png", ".DS_Store", "0.jpg", "README.md"):
        (folder / name).write_bytes(b"")
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for path in sorted(folder.iterdir(), key=lambda path: (len(path.name), path.name)):
            archive.add(path, f"./v1.2/{path.name}")
        archive.add(folder, "./v1.2/more", recursive=False)
    with pytest.warns(Adapted, match=r"in\.tar: 24 pairs are used, 4 other files are passed over"):
        source = open_source(tmp_path / "in.tar")
    assert source.where(3).endswith("in.tar: ./v1.2/3")
    check(imported(source, tmp_path / "out"), labelled=False)


def test_two_tars_with_other_names_of_a_class_are_refused(tmp_path: Path) -> None:
    """Such are two exports whose classes are in another order."""
    stream = io.BytesIO()
    np.save(stream, MADE.noise[0])
    for tar, names in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        with tarfile.open(tmp_path / f"{tar}.tar", "w") as archive:
            for label, name in enumerate(names):
                for ending, content in (
                        ("npy", stream.getvalue()), ("noise.npy", stream.getvalue()),
                        ("cls", str(label).encode()),
                        ("json", json.dumps({"label_name": name}).encode())):
                    entry = tarfile.TarInfo(f"{label}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match=r"b\.tar .* calls class 0 dog, another tar file cat"):
        open_source(tmp_path)
    assert open_source(tmp_path / "b.tar").label_names == ["dog", "cat"]


def test_a_png_of_16_bits_is_refused_in_pairs(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"{i}.png")
    (folder / "5.png").write_bytes(raw_png(8, 8, 16, 2, bytes(8 * (1 + 48))))
    with pytest.raises(DataError, match=r"5\.png has 16 bits a channel"):
        plan_import(open_source(folder), CONFIG)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """They are taken, and stand in messages with their bytes escaped."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in\xe9"))
    write_pngs(folder, lambda i: f"{i}.png")
    for ending in (".png", ".npy"):
        (folder / f"0{ending}").rename(folder / os.fsdecode(b"0\xff" + ending.encode()))
    arguments = ("import", folder, tmp_path / "out", "--test", 4, "--validation", 3, "--shard", 8,
                 "--chunk", 4)
    result = kdm(*arguments)
    assert result.exit_code == 0, result.output
    listed = kdm("info", tmp_path / "out")
    assert r"imported_from in\xe9" in listed.stdout
    broken = next(path for path in folder.iterdir() if not path.name.isascii())
    broken.with_suffix(".png").write_bytes(b"broken")
    result = kdm(*arguments)
    assert result.exit_code == 1
    assert r"in\xe9/0\xff.png is not a readable PNG image" in result.stderr


def killed_import(folder: Path, out: Path) -> None:
    source = open_source(folder)
    done = []

    def on_pairs(pairs: int) -> None:
        done.append(pairs)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    store = open_or_create(out, plan_import(source, CONFIG).spec, {})
    import_pairs(source, store, 80, on_pairs)


def test_a_killed_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_published(tmp_path / "in", "endpoints", 80, False, labelled=True)
    process = multiprocessing.get_context("spawn").Process(
        target=killed_import, args=(folder, tmp_path / "out"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    source = open_source(folder)
    store = open_or_create(tmp_path / "out", plan_import(source, CONFIG).spec, {})
    assert store.missing_shards() == [2]
    read: list[int] = []

    def note(rows: Any) -> RawPairs:
        read.extend(rows.tolist())
        return type(source).read(source, rows)

    monkeypatch.setattr(source, "read", note)
    import_pairs(source, store, 80)
    assert read == list(range(16, 24))
    check(store, scale=80)


PLANE = SampleSpec(kind="points", shape=[2], sigma_data=0.9)


def gaussian(spec: SampleSpec, shift: float) -> GaussianMixture:
    points = torch.randn(100, *spec.shape, generator=torch.Generator().manual_seed(1)) + shift
    return fit_mixture(spec, points, torch.arange(100) % max(spec.num_classes, 1))


def teacher_and_points(path: Path) -> tuple[GaussianMixture, Path]:
    teacher = gaussian(PLANE, 0)
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    solver = FixedSolver(kind="heun", steps=6)
    made = teacher.sample(noise, None, solver, "fp32").state
    np.save(path, np.stack([noise * teacher.noise_scale(teacher.times(solver)[0]).float(), made]))
    return teacher, path


def test_a_known_teacher_and_solver(tmp_path: Path) -> None:
    teacher, path = teacher_and_points(tmp_path / "points.npy")
    known = KnownTeacher(teacher, "f" * 64)
    config = CONFIG.model_copy(update={"solver": FixedSolver(kind="heun", steps=6)})
    source = open_source(path)
    plan = plan_import(source, config, known)
    spec, start = plan.spec, float(teacher.noise_scale(teacher.times(config.solver)[0]))
    assert plan.scale == start == 80
    assert spec.teacher == "f" * 64
    assert spec.samples == teacher.spec
    assert spec.nfe == 11
    assert spec.times == teacher.times(config.solver).tolist()
    assert spec.noise_scale == start
    assert compare_with_teacher(source, plan, known, CPU) < 0.01
    # The same in a file whose noise has variance 1.
    states = np.load(path)
    np.savez(tmp_path / "unit.npz", sample=states[1], noise=states[0] / 80)
    unit = plan_import(open_source(tmp_path / "unit.npz"), config, known)
    assert (unit.scale, unit.spec.noise_scale) == (1, start)
    assert compare_with_teacher(open_source(tmp_path / "unit.npz"), unit, known, CPU) < 0.01
    with pytest.raises(MismatchError, match="not the teacher of these pairs"):
        compare_with_teacher(source, plan, KnownTeacher(gaussian(PLANE, 5), "e" * 64), CPU)
    for changed, message in [({"shape": [3]}, r"shape \[3\]"),
                             ({"label_names": ["a", "b"]}, "takes 2 labels, the pairs have 0")]:
        wrong = gaussian(PLANE.model_copy(update=changed), 0)
        with pytest.raises(MismatchError, match=message):
            plan_import(source, config, KnownTeacher(wrong, "d" * 64))


def test_command(tmp_path: Path) -> None:
    teacher, path = teacher_and_points(tmp_path / "points.npy")
    save_teacher(tmp_path / "teacher", teacher)
    arguments = ("import", path, tmp_path / "out", "--teacher", tmp_path / "teacher", "--steps", 6,
                 "--test", 4, "--validation", 4, "--shard", 100, "--chunk", 50, "--device", "cpu")
    result = kdm(*arguments)
    assert result.exit_code == 1
    assert "--solver: give it and --steps" in result.stderr
    result = kdm(*arguments, "--solver", "heun")
    assert result.exit_code == 0, result.output
    assert "300 pairs, points of shape (2,), no labels" in result.stdout
    assert "makes these samples again to" in result.stdout
    assert PairStore.open(tmp_path / "out").missing_shards() == []
    assert "going on after 300 pairs" in kdm(*arguments, "--solver", "heun").stderr
    result = kdm(*arguments, "--solver", "euler")
    assert result.exit_code == 1
    assert "not the teacher of these pairs" in result.stderr or "holds other pairs" in result.stderr
    assert result.stderr.count("\n") <= 2
    result = kdm("import", path, tmp_path / "new")
    assert result.exit_code == 1
    assert "too few for 1000 test" in result.stderr


def test_shard_must_hold_whole_chunks(tmp_path: Path) -> None:
    _, path = teacher_and_points(tmp_path / "points.npy")
    result = kdm("import", path, tmp_path / "out", "--test", 4, "--validation", 4, "--shard", 30,
                 "--chunk", 20)
    assert result.exit_code == 1
    assert "shard: 30 is no multiple of chunk: 20" in result.stderr
    assert not (tmp_path / "out").exists()


def test_names_of_classes_in_a_list_are_kept(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"{i}.png")
    names = ["cat", "dog", "frog", "bird", "deer"]

    def listed(names: list[str]) -> list[str]:
        (folder / "labels.json").write_text(json.dumps({"labels": {
            f"{i}.png": {"label": int(MADE.labels[i]), "name": names[MADE.labels[i]]}
            for i in range(COUNT)}}))
        return open_source(folder).label_names

    assert listed(names) == names
    with pytest.warns(Adapted, match=r"labels\.json: its names of classes are not used"):
        assert listed(["x"] * 5) == list("01234")


def test_folders_of_classes_may_lie_in_one_folder_but_not_deeper(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"top/{i % 11}/{i}.png")
    with pytest.warns(Adapted, match=r"the folders in .*top are taken for the classes"):
        source = open_source(folder)
    assert source.label_names == [str(number) for number in range(11)]
    assert source.read(np.arange(COUNT)).label.tolist() == [i % 11 for i in range(COUNT)]
    (folder / "top/0").rename(folder / "top/11")
    with pytest.raises(DataError, match="class 0 has none"):
        open_source(folder)
    split = write_pngs(tmp_path / "split", lambda i: f"{'ab'[i % 2]}/{i % 3}/{i}.png")
    with pytest.raises(DataError, match=r"a/0 is a folder inside a class"):
        open_source(split)


def test_classes_may_be_links(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"{'ab'[i % 2]}/{i}.png")
    (folder / "b").rename(tmp_path / "elsewhere")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    source = open_source(folder)
    assert (source.count, source.label_names) == (COUNT, ["a", "b"])
    (folder / "a/again").symlink_to(folder)
    with pytest.raises(DataError, match="by a link, a folder that was read already"):
        open_source(folder)


def test_noise_that_two_images_could_have_is_refused(tmp_path: Path) -> None:
    folder = write_pngs(tmp_path / "in", lambda i: f"{i}.png")
    (folder / "4.png").rename(folder / "3.PNG")
    with pytest.raises(DataError, match=r"3\.npy may be the noise of 3\.PNG and of 3\.png"):
        open_source(folder)


def test_files_beside_tars_are_said(tmp_path: Path) -> None:
    pngs = write_pngs(tmp_path / "pngs", lambda i: f"{i}.png", ".noise.npy")
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/a.tar", "w") as archive:
        archive.add(pngs, ".")
    (tmp_path / "in/b.tar.gz").write_bytes(b"")
    with pytest.warns(Adapted, match=r"1 other file is passed over \(1 \.gz\): b\.tar\.gz"):
        assert open_source(tmp_path / "in").count == COUNT


@pytest.mark.parametrize("spread", [0.01, 0.02])
def test_half_of_the_range_that_was_left_a_little_is_refused(
    spread: float, tmp_path: Path
) -> None:
    halves = np.where(MADE.floats > 0, 0.5, -0.5) + spread * MADE.noise / MADE.noise.std()
    np.savez(tmp_path / "in.npz", sample=halves.astype(np.float32), noise=MADE.noise)
    with pytest.raises(DataError, match="may be in another range"):
        plan_import(open_source(tmp_path / "in.npz"), CONFIG)


def test_a_range_that_is_hardly_used_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", sample=MADE.images / np.float32(255), noise=MADE.noise)
    with pytest.raises(DataError, match=r"^sample_range: .* bytes is \[0, 255\], of which these"):
        plan_import(open_source(tmp_path / "in.npz", sample_range="bytes"), CONFIG)
    plan_import(open_source(tmp_path / "in.npz", sample_range="unit"), CONFIG)


def test_classes_of_published_pairs_that_none_has_are_said(tmp_path: Path) -> None:
    """Their labels are read with the pairs only, long after the import was planned."""
    folder = write_published(tmp_path / "in", "endpoints", 80, False, labelled=True)
    for path in folder.iterdir():
        arrays = dict(np.load(path))
        np.savez(path, endpoints=arrays["endpoints"], label=np.append(arrays["label"], 0))
    source = open_source(folder)
    store = imported(source, tmp_path / "out")
    with pytest.warns(Adapted, match=r"class 5 has no training pairs"):
        say_missing_classes(store, labels_known=source.labels is not None)
