"""Data sets: every source, what it refuses, how sets are split and kept."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from kdm_core.datasets import (
    DataConfig,
    Dataset,
    load_dataset,
    on_board,
    open_dataset,
    save_dataset,
)
from kdm_core.datasets.base import standard_deviation
from kdm_core.datasets.edm_zip import EdmZipConfig, read_edm_zip
from kdm_core.datasets.folder import FolderConfig, read_folder
from kdm_core.datasets.splitting import split_rows
from kdm_core.errors import Adapted, DataError
from kdm_core.pickles import Call, as_uint8, read_pickle
from kdm_core.values import as_float
from tests.support.pictures import raw_png

BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def load(seed: int = 0, **config: Any) -> Dataset:
    return load_dataset(TypeAdapter(DataConfig).validate_python(config), seed)


def random_images(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def rows(images: NDArray[Any]) -> list[bytes]:
    """Images as hashable values, for comparing sets of them."""
    return sorted(image.tobytes() for image in images)


def encoded(pixels: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    return encoded(pixels, "PNG", **options)


# Configuration


@pytest.mark.parametrize("config, part", [
    ({"source": "imagenet"}, "source"),
    ({"source": "digits", "test_fraction": 0.0}, "test_fraction"),
    ({"source": "digits", "test_fraction": 1.0}, "test_fraction"),
    ({"source": "digits", "conditonal": True}, "conditonal"),
    ({"source": "checkerboard", "conditional": True}, "conditional"),
    ({"source": "checkerboard", "test": 1}, "test"),
    ({"source": "cifar10", "path": "x", "test_fraction": 0.2}, "test_fraction"),
    ({"source": "npz"}, "path"),
])
def test_a_wrong_field_is_named(config: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        TypeAdapter(DataConfig).validate_python(config)


@pytest.mark.parametrize("source", ["npz", "folder", "edm_zip", "cifar10"])
def test_a_missing_path_is_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^path: .*nowhere does not exist"):
        load(source=source, path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("source, other", [("npz", "folder"), ("edm_zip", "folder"),
                                           ("folder", "file")])
def test_a_folder_for_a_file_is_refused(source: str, other: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="^path: "):
        load(source=source, path=str(tmp_path / other))


# Digits


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    data = load(source="digits")
    scans = load_digits()
    expected = np.clip(np.floor(scans.images / 16 * 255 + 0.5), 0, 255).astype(np.uint8)
    got = np.concatenate([data.train_samples, data.test_samples])
    labels = np.concatenate([data.train_labels, data.test_labels])
    assert got.shape == (1797, 1, 8, 8) and got.dtype == np.uint8
    assert sorted(zip(rows_in_order(got), labels, strict=True)) \
        == sorted(zip(rows_in_order(expected), scans.target, strict=True))
    assert data.info.class_names == list("0123456789")
    assert data.info.samples.label_names == []
    assert data.info.samples.shape == [1, 8, 8] and data.info.samples.kind == "image"
    assert (data.info.train, data.info.test) == (len(data.train_samples), len(data.test_samples))


def rows_in_order(images: NDArray[Any]) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_digits_at_rest_are_close_to_their_exact_values() -> None:
    from sklearn.datasets import load_digits

    data = load(source="digits")
    exact = {round(value / 8 - 1, 3) for value in np.unique(load_digits().images)}
    stored = np.unique(as_float(data.train_samples).numpy())
    assert len(stored) == len(exact) == 17
    assert np.abs(stored - np.array(sorted(exact))).max() <= 1 / 255 + 1e-3


def test_conditional_names_the_classes_and_changes_nothing_else() -> None:
    plain, conditional = load(source="digits"), load(source="digits", conditional=True)
    assert conditional.info.samples.label_names == list("0123456789")
    assert conditional.info.class_names == plain.info.class_names
    assert np.array_equal(conditional.train_labels, plain.train_labels)


def test_sigma_data_is_the_deviation_of_the_training_values() -> None:
    data = load(source="digits")
    expected = float(as_float(data.train_samples).double().std(correction=0))
    assert data.info.samples.sigma_data == pytest.approx(expected, rel=1e-6)


def test_deviation_over_many_blocks() -> None:
    images = random_images(9000, 1, 2, 2)
    images[:4096] //= 8
    assert standard_deviation(images) == pytest.approx((images / 127.5).std(), rel=1e-12)
    points = np.random.default_rng(0).normal(3, 2, size=(500, 2)).astype(np.float32)
    assert standard_deviation(points) == pytest.approx(points.astype(float).std(), rel=1e-12)


# Splitting


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0.05, 0.95),
       st.integers(0, 2**32))
def test_splits_are_a_stratified_partition(values: list[int], fraction: float, seed: int) -> None:
    labels = np.array(values, dtype=np.int64)
    train, test = split_rows(labels, fraction, seed)
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert set(labels[train]) == set(values)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        held_out = int((labels[test] == label).sum())
        assert min(1, count - 1) <= held_out < count
        assert abs(held_out - fraction * count) <= 1
    again = split_rows(labels, fraction, seed)
    assert np.array_equal(train, again[0]) and np.array_equal(test, again[1])


def test_a_split_is_a_function_of_the_seed_and_shuffled() -> None:
    first, same, other = (load(seed=seed, source="digits") for seed in (3, 3, 4))
    assert np.array_equal(first.test_samples, same.test_samples)
    assert np.array_equal(first.train_labels, same.train_labels)
    assert rows(first.test_samples) != rows(other.test_samples)
    assert len(first.test_samples) == pytest.approx(0.2 * 1797, abs=5)
    # Sorted by class, the first hundred would hold one or two classes.
    assert len(np.unique(first.test_labels[:100])) == 10


def test_the_only_image_of_a_class_is_trained_on(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [50, 50, 1])
    np.savez(tmp_path / "x.npz", images=random_images(101, 8, 8), labels=labels)
    for seed in range(20):
        with pytest.warns(Adapted, match=r"class 2 has no test samples"):
            data = load(seed, source="npz", path=str(tmp_path / "x.npz"), conditional=True)
        assert np.bincount(data.train_labels).tolist() == [40, 40, 1]
        assert np.bincount(data.test_labels).tolist() == [10, 10]


def test_splits_stay_as_they_were(tmp_path: Path) -> None:
    """Stores and students of earlier versions were made from them."""
    assert save_dataset(tmp_path, load(source="digits")) == (
        "0d9d811a82bbdb2523f152cda9a9cd3b17ddda6b8288d0010246fa2230cd2708")
    digest = hashlib.sha256()
    for seed in range(20):
        for labels in (np.arange(1000) % 7, np.full(50, -1), np.repeat([0, 1, 5], [2, 90, 3])):
            for part in split_rows(labels, 0.3, seed):
                digest.update(part.tobytes())
    assert digest.hexdigest().startswith("2d3de1de65bb10317b6dda4f")


@pytest.mark.parametrize("labels, message", [
    (np.arange(101) % 10 + 1, "class 0 has no training"),
    (np.arange(101) % 2 * 2, "class 1 has no training"),
    (np.arange(101) % 2 * 5 + 1, r"classes 0, 2, 3, … \(5 in all\) have no training"),
])
def test_classes_without_images_are_refused(
    labels: NDArray[np.int64], message: str, tmp_path: Path
) -> None:
    """The advice, followed, works."""
    path = tmp_path / "x.npz"
    np.savez(path, images=random_images(101, 8, 8), labels=labels)
    with pytest.raises(DataError, match=rf"{message}.*numpy\.unique"):
        load(source="npz", path=str(path))
    labels = np.unique(labels, return_inverse=True)[1]
    np.savez(path, images=random_images(101, 8, 8), labels=labels)
    data = load(source="npz", path=str(path), conditional=True)
    assert data.info.samples.num_classes == len(set(labels)) == len(set(data.train_labels))


@pytest.mark.parametrize("written, advice", [
    (lambda labels: labels.astype(float), lambda given: given.ravel().astype(int)),
    (lambda labels: labels[:, None], lambda given: given.ravel().astype(int)),
    (lambda labels: labels > 0, lambda given: given.ravel().astype(int)),
    (lambda labels: np.eye(3)[labels], lambda given: given.argmax(1)),
    (lambda labels: np.array(["ant", "bee", "cat"])[labels],
     lambda given: np.unique(given.ravel().astype(str), return_inverse=True)[1]),
])
def test_labels_of_other_forms_say_how_to_convert_them(
    written: Callable[..., Any], advice: Callable[..., Any], tmp_path: Path
) -> None:
    labels, path = np.arange(30) % 3, tmp_path / "x.npz"
    np.savez(path, images=random_images(30, 8, 8), labels=written(labels))
    with pytest.raises(DataError, match=r"x\.npz: labels of type .* save "):
        load(source="npz", path=str(path))
    np.savez(path, images=random_images(30, 8, 8), labels=advice(written(labels)))
    data = load(source="npz", path=str(path))
    assert sorted([*data.train_labels, *data.test_labels]) == sorted(advice(written(labels)))


def test_samples_keep_their_labels(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None], (40, 5, 5))
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    data = load(source="npz", path=str(tmp_path / "x.npz"))
    assert np.array_equal(data.train_samples[:, 0, 0, 0], data.train_labels)
    assert np.array_equal(data.test_samples[:, 0, 2, 3], data.test_labels)
    assert data.info.class_names == ["0", "1", "2", "3"]
    assert np.bincount(data.test_labels).tolist() == [2, 2, 2, 2]


# Checkerboard


def test_checkerboard_points_are_all_on_the_board_and_uniform() -> None:
    from scipy.stats import chisquare, kstest  # type: ignore[import-untyped]

    data = load(source="checkerboard", train=40_000, test=1000)
    points = data.train_samples
    assert points.dtype == np.float32 and points.shape == (40_000, 2)
    assert on_board(points).mean() == 1.0 and on_board(data.test_samples).mean() == 1.0
    cells = np.floor(points / 2).astype(int) + 2
    counts = np.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    assert (counts > 0).sum() == 8
    assert chisquare(counts[counts > 0]).pvalue > 1e-3
    for inside in (points[:, 0] % 2, points[:, 1] % 2):  # the place within a cell
        assert kstest(inside / 2, "uniform").pvalue > 1e-3
    assert (data.train_labels == -1).all() and data.info.class_names == []
    assert data.info.samples.kind == "points" and data.info.samples.shape == [2]
    assert data.info.samples.sigma_data == pytest.approx(4 / 3**0.5, rel=0.02)


def test_checkerboard_splits_differ_and_follow_the_seed() -> None:
    first, same, other = (load(seed=seed, source="checkerboard", train=50, test=50)
                          for seed in (1, 1, 2))
    assert np.array_equal(first.train_samples, same.train_samples)
    assert not np.array_equal(first.train_samples, other.train_samples)
    assert not np.array_equal(first.train_samples, first.test_samples)
    longer = load(seed=1, source="checkerboard", train=99, test=50)
    assert np.array_equal(longer.test_samples, first.test_samples)


near_edges = st.sampled_from([-4.0, -2.0, 0.0, 2.0, 4.0]).flatmap(
    lambda edge: st.sampled_from([edge, np.nextafter(edge, -9), np.nextafter(edge, 9)]))


@given(st.one_of(near_edges, st.floats(-6, 6)), st.one_of(near_edges, st.floats(-6, 6)))
def test_on_board_is_exact(x: float, y: float) -> None:
    column, row = (floor(Fraction(value) / 2) for value in (x, y))
    expected = all(-2 <= cell < 2 for cell in (column, row)) and (column + row) % 2 == 0
    assert on_board(np.array([[x, y]])).tolist() == [expected]


def test_nan_and_infinity_are_off_the_board() -> None:
    points = np.array([[np.nan, 1], [1, np.nan], [np.inf, 1], [-np.inf, -1], [1, 1]], np.float32)
    assert on_board(points).tolist() == [False, False, False, False, True]


# npz


@pytest.mark.parametrize("shape, stored", [
    ((12, 5, 7), (1, 5, 7)), ((12, 5, 7, 3), (3, 5, 7)), ((12, 3, 5, 7), (3, 5, 7)),
    ((12, 5, 7, 1), (1, 5, 7)), ((12, 1, 5, 7), (1, 5, 7)),
])
@pytest.mark.parametrize("key", ["images", "samples", "arr_0"])
def test_npz_layouts(shape: tuple[int, ...], stored: tuple[int, ...], key: str,
                     tmp_path: Path) -> None:
    images = random_images(*shape)
    arrays: dict[str, Any] = {key: images}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    data = load(source="npz", path=str(tmp_path / "x.npz"))
    channels_last = len(shape) == 4 and shape[3] != 7
    expected = images.transpose(0, 3, 1, 2) if channels_last else images
    assert data.train_samples.shape[1:] == stored
    assert rows(np.concatenate([data.train_samples, data.test_samples])) == rows(expected)
    assert (data.train_labels == -1).all() and data.info.class_names == []


@pytest.mark.parametrize("arrays, message", [
    ({"images": random_images(9, 3, 8, 3)}, "^channels: .*first or last: say"),
    ({"images": random_images(9, 4, 8, 8)}, "with C = 1 or 3"),
    ({"images": random_images(9, 8)}, "shape"),
    ({"images": random_images(9, 8, 8).astype(np.float32)}, "float32"),
    ({"pictures": random_images(9, 8, 8)}, "no array 'images'"),
    ({"images": random_images(9, 8, 8), "arr_0": random_images(9, 8, 8)}, "'images' and 'arr_0'"),
    ({"images": random_images(9, 8, 8), "labels": np.zeros(8, int)}, r"expected .* shape \(9,\)"),
    ({"images": random_images(9, 8, 8), "y": np.zeros(9)}, "float64"),
    ({"images": random_images(9, 8, 8), "labels": np.full(9, -1)}, "label -1"),
    ({"images": random_images(9, 8, 8), "y": np.full(9, 10**9)}, "label 1000000000"),
    ({"images": random_images(9, 8, 8), "y": np.full(9, 2), "names": np.array(["a", "b"])},
     "label 2 is none of the 2"),
    ({"images": random_images(9, 8, 8), "y": np.zeros(9, int), "names": np.array([1, 2])},
     "label_names"),
    ({"images": random_images(9, 8, 8), "y": np.zeros(9, int), "names": np.array(["a", "a"])},
     "same name"),
    ({"images": random_images(9, 8, 8), "y": np.zeros(9, int), "names": np.array(["a\x1b[2J"])},
     "not printable"),
    ({"images": random_images(9, 8, 8), "names": np.array(["a"])}, "no labels"),
    ({"images": random_images(0, 8, 8)}, "0 samples"),
    ({"images": random_images(0, 8, 8), "labels": np.zeros(0, np.uint8)}, "0 samples"),
    ({"images": random_images(2, 8, 8)}, "test_fraction"),
    ({"images": np.zeros((9, 8, 8), np.uint8)}, "the same"),
    ({"images": random_images(9, 0, 8)}, "empty"),
])
def test_unfit_npz_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load(source="npz", path=str(tmp_path / "x.npz"))


def test_arrays_in_column_order_are_read(tmp_path: Path) -> None:
    images = random_images(20, 3, 8, 8)
    np.savez(tmp_path / "x.npz", np.asfortranarray(np.moveaxis(images, 1, -1)), np.arange(20) % 2)
    data = load(source="npz", path=str(tmp_path / "x.npz"))
    assert rows(np.concatenate([data.train_samples, data.test_samples])) == rows(images)
    assert data.info.class_names == ["0", "1"]


def test_unsigned_labels_without_names_are_numbered(tmp_path: Path) -> None:
    labels = np.arange(20, dtype=np.uint8) % 2
    np.savez(tmp_path / "x.npz", images=random_images(20, 8, 8), y=labels)
    data = load(source="npz", path=str(tmp_path / "x.npz"), conditional=True)
    assert data.info.samples.label_names == ["0", "1"] and data.train_labels.dtype == np.int64


def test_conditional_without_labels_names_the_field(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=random_images(20, 8, 8))
    with pytest.raises(DataError, match="^conditional: "):
        load(source="npz", path=str(tmp_path / "x.npz"), conditional=True)


class Exploit:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.command = f"touch {target}"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("key", ["images", "labels", "names"])
def test_objects_in_npz_are_refused_and_not_run(key: str, tmp_path: Path) -> None:
    target = tmp_path / "run"
    arrays: dict[str, Any] = {"images": random_images(9, 8, 8), "labels": np.zeros(9, int)}
    arrays[key] = np.array([Exploit(target)] * 9, dtype=object)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=r"x\.npz.*plain arrays .*type object"):
        load(source="npz", path=str(tmp_path / "x.npz"))
    (tmp_path / "x.npz").write_bytes(pickle.dumps(Exploit(target)))
    with pytest.raises(DataError, match=r"x\.npz is not an"):
        load(source="npz", path=str(tmp_path / "x.npz"))
    assert not target.exists()


@settings(max_examples=40)
@given(cut=st.integers(0, 900), flip=st.integers(0, 899))
def test_damaged_npz_raises_nothing_but_data_errors(
    cut: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=random_images(9, 8, 8))
    whole = buffer.getvalue()
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(DataError, match=r"x\.npz"):
        load(source="npz", path=str(path))
    damaged = bytearray(whole)
    damaged[flip % len(damaged)] ^= 0x55
    path.write_bytes(bytes(damaged))
    try:
        load(source="npz", path=str(path))
    except DataError as error:
        assert "x.npz" in str(error)


def test_npz_header_with_an_absurd_shape_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 64, 64)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(100))
    with pytest.raises(DataError, match=r"x\.npz"):
        load(source="npz", path=str(tmp_path / "x.npz"))


# Folder


def fill(folder: Path, count: int = 6, shape: tuple[int, ...] = (6, 8, 3), seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(random_images(count, *shape, seed=seed)):
        (folder / f"{number}.png").write_bytes(png(pixels))


def test_folder_of_classes(tmp_path: Path) -> None:
    fill(tmp_path / "b", seed=1)
    fill(tmp_path / "a", seed=2)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.txt").write_text("no image")
    data = load(source="folder", path=str(tmp_path), conditional=True, test_fraction=0.5)
    assert data.info.class_names == data.info.samples.label_names == ["a", "b"]
    assert data.info.samples.shape == [3, 6, 8]
    samples = np.concatenate([data.train_samples, data.test_samples])
    labels = np.concatenate([data.train_labels, data.test_labels])
    for label, seed in enumerate((2, 1)):
        expected = random_images(6, 6, 8, 3, seed=seed).transpose(0, 3, 1, 2)
        assert rows(samples[labels == label]) == rows(expected)


def as_read(path: Path, **config: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Images and labels as their source has them, before they are split."""
    images, labels, names = read_folder(FolderConfig(source="folder", path=str(path), **config))
    return images, labels, names


@pytest.mark.parametrize("names", [
    [str(number) for number in range(12)],
    [f"{number:03}" for number in range(12)],
    ["0", "01", "2", "003", "4", "5"],
    [str(number).translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")) for number in range(12)],
])
def test_class_k_is_folder_k(names: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(np.full((4, 4), 10 * number, np.uint8)))
    images, labels, found = as_read(tmp_path)
    assert found == names
    assert labels.tolist() == list(range(len(names)))
    assert (images[:, 0, 0, 0] == 10 * labels).all()


@pytest.mark.parametrize("names, problem", [
    ([str(number) for number in range(1, 11)], "1, 2, 3, …, and class 0 has none: rename them 0 "
                                               "to 9"),
    (["0", "2", "3"], "class 1 has none"),
    (["-1", "0", "1"], "and -1 is no class"),
    (["0", "1", "01"], "01 and 1 are one class|1 and 01 are one class"),
    (["0", "99999999999999999999999"], "class 1 has none"),
])
def test_numbers_of_classes_have_no_gaps(names: list[str], problem: str, tmp_path: Path) -> None:
    for name in names:
        fill(tmp_path / name)
    with pytest.raises(DataError, match=problem):
        as_read(tmp_path)
    for name in names:  # the advice is followed
        (tmp_path / name).rename(tmp_path / f"class_{name}")
    found = as_read(tmp_path)[2]
    assert found == [f"class_{name}" for name in sorted(names, key=lambda name: (int(name), name))
                     ] or "-1" in names


def test_names_are_in_natural_order(tmp_path: Path) -> None:
    for name in ("a10", "a9", "²", "b"):
        fill(tmp_path / name, count=1)
    for number in (10, 9, 1):
        (tmp_path / "b" / f"{number}.png").write_bytes(png(np.full((6, 8), number, np.uint8)))
    (tmp_path / "b/0.png").unlink()
    images, labels, names = as_read(tmp_path)
    assert names == ["a9", "a10", "b", "²"]
    assert images[labels == 2][:, 0, 0, 0].tolist() == [1, 9, 10]


def test_a_folder_around_all_classes_is_entered(tmp_path: Path) -> None:
    for number in range(3):
        fill(tmp_path / "top" / str(number))
    (tmp_path / "__MACOSX/top/0").mkdir(parents=True)
    (tmp_path / "__MACOSX/top/0/._0.png").write_bytes(b"Mac OS X")
    (tmp_path / "top/1/._0.png").write_bytes(b"Mac OS X")
    (tmp_path / "top/2/Thumbs.db").write_bytes(b"")
    with pytest.warns(Adapted) as said:
        images, labels, names = as_read(tmp_path)
    assert names == ["0", "1", "2"] and np.bincount(labels).tolist() == [6, 6, 6]
    assert len(images) == 18
    assert [str(one.message) for one in said] == [
        f"path: the folders in {tmp_path / 'top'} are taken for the classes, since "
        f"{tmp_path.name} holds nothing else",
        f"{tmp_path / 'top'}: 18 images are used, 2 other files are passed over (1 .png, 1 .db): "
        "1/._0.png, 2/Thumbs.db"]


def test_files_of_other_kinds_are_said(tmp_path: Path) -> None:
    fill(tmp_path, count=10)
    for number in range(90):
        (tmp_path / f"{number}.tif").write_bytes(b"")
    with pytest.warns(Adapted, match=r"10 images are used, 90 other files are passed over "
                                     r"\(90 \.tif\): 0\.tif, 1\.tif, 2\.tif, …"):
        load(source="folder", path=str(tmp_path))


def test_resized_images_are_said(tmp_path: Path) -> None:
    fill(tmp_path, count=8, shape=(8, 8))
    (tmp_path / "wide.png").write_bytes(png(random_images(30, 40, 3)))
    (tmp_path / "small.png").write_bytes(png(random_images(4, 4, 3)))
    with pytest.warns(Adapted) as said:
        load(source="folder", path=str(tmp_path), resolution=8)
    assert [str(one.message) for one in said] == [
        "2 of 10 images have another size than 8 x 8 (from 4 x 4 to 40 x 30): they are cropped to "
        "their middle square and resized",
        "8 of 10 images are gray and become RGB, as the others are"]


@pytest.mark.parametrize("folder", [b"", b"caf\xe9"])
def test_a_name_that_is_no_utf8_is_escaped(folder: bytes, tmp_path: Path) -> None:
    """Such a name can be neither printed nor written into a status file as it is."""
    fill(tmp_path)
    place = os.path.join(os.fsencode(tmp_path), folder)
    os.makedirs(place, exist_ok=True)
    if folder:
        for number in range(6):
            (tmp_path / f"{number}.png").unlink()
    with open(os.path.join(place, b"b\xff\x1b[2J\n.png"), "wb") as file:
        file.write(b"broken")
    with pytest.raises(DataError) as error:
        load(source="folder", path=str(tmp_path))
    message = str(error.value)
    assert message.encode().isascii() and message.isprintable()
    assert (r"'caf\xe9' is" if folder else r"b\xff\x1b[2J\n.png is not a rea") in message


def test_folder_without_classes_and_gray(tmp_path: Path) -> None:
    fill(tmp_path, shape=(6, 8))
    data = load(source="folder", path=str(tmp_path), test_fraction=0.4)
    samples = np.concatenate([data.train_samples, data.test_samples])
    assert rows(samples) == rows(random_images(6, 6, 8)) and samples.shape == (6, 1, 6, 8)
    assert data.info.class_names == [] and (data.test_labels == -1).all()
    for name in ("-first.png", "last.png"):
        fill(tmp_path / name, count=3, shape=(6, 8))
        (tmp_path / name / name).write_bytes(png(random_images(6, 8, 3)))
        mixed = load(source="folder", path=str(tmp_path / name), test_fraction=0.5)
        assert mixed.train_samples.shape[1:] == (3, 6, 8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "bmp"])
def test_folder_formats(suffix: str, tmp_path: Path) -> None:
    for number in range(5):
        pixels = np.full((8, 8, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.{suffix}")
    data = load(source="folder", path=str(tmp_path), test_fraction=0.4)
    means = np.concatenate([data.train_samples, data.test_samples]).mean(axis=(1, 2, 3))
    assert np.allclose(np.sort(means), 40 * np.arange(5), atol=3)


def test_folder_crops_the_centre_and_resizes(tmp_path: Path) -> None:
    for number in range(5):
        pixels = np.zeros((8, 20), np.uint8)
        pixels[:, 6:14] = 100 + number  # the centre square
        (tmp_path / f"{number}.png").write_bytes(png(pixels))
    (tmp_path / "tall.png").write_bytes(png(np.full((9, 4), 7, np.uint8)))
    data = load(source="folder", path=str(tmp_path), resolution=4, test_fraction=0.4)
    samples = np.concatenate([data.train_samples, data.test_samples])
    assert samples.shape == (6, 1, 4, 4)
    assert sorted(set(samples.ravel())) == [7, 100, 101, 102, 103, 104]


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path) -> None:
    fill(tmp_path, shape=(6, 8, 3))
    opaque = np.dstack([random_images(6, 8, 3, seed=9), np.full((6, 8), 255, np.uint8)])
    (tmp_path / "alpha.png").write_bytes(png(opaque))
    data = load(source="folder", path=str(tmp_path), test_fraction=0.4)
    samples = np.concatenate([data.train_samples, data.test_samples])
    assert opaque[..., :3].transpose(2, 0, 1).tobytes() in rows(samples)
    opaque[2, 2, 3] = 254
    (tmp_path / "alpha.png").write_bytes(png(opaque))
    with pytest.raises(DataError, match=r"alpha\.png has transparent pixels"):
        load(source="folder", path=str(tmp_path))
    gray = random_images(6, 8)
    (tmp_path / "alpha.png").write_bytes(png(gray, transparency=int(gray[0, 0])))
    with pytest.raises(DataError, match=r"alpha\.png has transparent pixels"):
        load(source="folder", path=str(tmp_path))


def claims(width: int, height: int) -> bytes:
    """A tiny PNG that claims a size."""
    return raw_png(width, height, 8, 0, bytes(1000))


@pytest.mark.parametrize("colour, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_more_than_8_bits_are_refused(colour: int, channels: int, tmp_path: Path) -> None:
    """Pillow calls a PNG of 16 bits a channel RGB and cuts the low byte."""
    values = np.full((8, 1 + 8 * channels * 2), 0xFF, np.uint8)
    values[:, 0] = 0  # each row's filter
    fill(tmp_path, shape=(8, 8, 3))
    (tmp_path / "deep.png").write_bytes(raw_png(8, 8, 16, colour, values.tobytes()))
    with pytest.raises(DataError, match=r"deep\.png has 16 bits a channel.*save it with 8"):
        load(source="folder", path=str(tmp_path))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_fewer_bits_are_spread_over_8(depth: int, tmp_path: Path) -> None:
    row = bytes([0]) + bytes([0b11100100] * depth)  # 8 pixels
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(raw_png(8, 8, depth, 0, row * 8))
    data = load(source="folder", path=str(tmp_path), test_fraction=0.4)
    bits = np.unpackbits(np.full(depth, 0b11100100, np.uint8)).reshape(8, depth)
    expected = bits @ (1 << np.arange(depth)[::-1]) * 255 // (2**depth - 1)
    assert (data.train_samples == expected).all()


def test_palettes_keep_their_colours_and_other_spaces_are_refused(tmp_path: Path) -> None:
    colours = random_images(8, 8, 3) // 128 * 255
    for number in range(5):
        Image.fromarray(colours).quantize(8).save(tmp_path / f"{number}.png")
    data = load(source="folder", path=str(tmp_path), test_fraction=0.4)
    assert (data.train_samples == colours.transpose(2, 0, 1)).all()
    Image.new("CMYK", (8, 8)).save(tmp_path / "print.jpg")
    with pytest.raises(DataError, match=r"print\.jpg has mode CMYK"):
        load(source="folder", path=str(tmp_path))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_is_refused(suffix: str, tmp_path: Path) -> None:
    fill(tmp_path)
    frames = [Image.fromarray(pixels) for pixels in random_images(3, 6, 8, 3)]
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"moving\.{suffix} is an animation of 3 frames"):
        load(source="folder", path=str(tmp_path))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("content, message", [
    (b"", "not a readable"), (b"GIF89a", "not a readable"), (b"%!PS-Adobe-3.0 EPSF", "not a read"),
    (png(random_images(6, 8, 3))[:-40], "not a readable"),
    (png(random_images(7, 8, 3)), "8 x 7 pixels"),
    (claims(9000, 9000), "at most"), (claims(2**30, 2**30), "not a readable"),
])
def test_a_bad_image_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "3.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"3\.png.*{message}"):
        load(source="folder", path=str(tmp_path))


def test_ambiguous_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        load(source="folder", path=str(tmp_path))
    fill(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="b is a class without images"):
        load(source="folder", path=str(tmp_path))
    fill(tmp_path / "b" / "deeper")
    with pytest.raises(DataError, match="deeper is a folder inside"):
        load(source="folder", path=str(tmp_path))
    fill(tmp_path, count=1)
    with pytest.raises(DataError, match=r"0\.png lies beside"):
        load(source="folder", path=str(tmp_path))


def test_a_file_that_is_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    monkeypatch.setattr("kdm_core.datasets.folder.MAX_FILE", 50)
    with pytest.raises(DataError, match=r"0\.png is larger than 50 bytes"):
        load(source="folder", path=str(tmp_path))


def test_more_pixels_than_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    monkeypatch.setattr("kdm_core.datasets.images.MAX_VALUES", 6 * 6 * 8 * 3 - 1)
    with pytest.raises(DataError, match="too many"):
        load(source="folder", path=str(tmp_path))


# EDM zip


def names_of(count: int) -> list[str]:
    return [f"00000/img{number:08d}.png" for number in range(count)]


def make_zip(path: Path, labels: Any = None, more: dict[str, bytes] | None = None) -> None:
    """An EDM-style zip of ten images, and `more` members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, pixels in zip(names_of(10), random_images(10, 6, 6, 3), strict=True):
            archive.writestr(name, png(pixels))
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
        for name, content in (more or {}).items():
            archive.writestr(name, content)


def test_edm_zip_with_and_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    expected = random_images(10, 6, 6, 3).transpose(0, 3, 1, 2)
    make_zip(path)
    data = load(source="edm_zip", path=str(path))
    assert rows(np.concatenate([data.train_samples, data.test_samples])) == rows(expected)
    assert data.info.class_names == []
    # The labels' order in the file is not that of the images.
    make_zip(path, labels=[[name, number % 2] for number, name in enumerate(names_of(10))][::-1])
    data = load(source="edm_zip", path=str(path), conditional=True)
    assert data.info.samples.label_names == ["0", "1"]
    samples = np.concatenate([data.train_samples, data.test_samples])
    labels = np.concatenate([data.train_labels, data.test_labels])
    assert rows(samples[labels == 1]) == rows(expected[1::2])
    assert list(tmp_path.iterdir()) == [path]


def rezip(path: Path, place: Callable[[str], str], more: dict[str, bytes]) -> None:
    """Write a zip anew, with its members at other places and `more` members."""
    with zipfile.ZipFile(path) as archive:
        members = {place(name): archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, **more}.items():
            archive.writestr(name, content)


JUNK = {"__MACOSX/._x.png": b"Mac OS X", "__MACOSX/top/._dataset.json": b"Mac OS X",
        "00000/._img00000000.png": b"Mac OS X", ".DS_Store": b"\0\0\0\1Bud1", "Icon\r": b"",
        "Thumbs.db": b"", "README.md": b"text", "empty/": b""}


@pytest.mark.parametrize("place, listed", [
    ("{}", "{}"), ("top/{}", "{}"), ("top/{}", "top/{}"), ("./{}", "{}"), ("a/b/{}", "./{}")])
def test_a_zip_as_others_pack_it(place: str, listed: str, tmp_path: Path) -> None:
    """With a folder around all, and with what systems leave beside the images."""
    path, labels = tmp_path / "x.zip", [number % 3 for number in range(10)]
    make_zip(path, [[listed.format(name), label]
                    for name, label in zip(names_of(10), labels, strict=True)])
    rezip(path, place.format, {})
    clean = read_edm_zip(EdmZipConfig(source="edm_zip", path=str(path)))
    rezip(path, str, JUNK)
    with pytest.warns(Adapted, match=r"x\.zip: 10 images are used, 7 other files are passed over "
                                     r"\(2 \.png, 2 without ending, .*__MACOSX/\._x\.png"):
        found = read_edm_zip(EdmZipConfig(source="edm_zip", path=str(path)))
    assert found.labels.tolist() == labels
    assert (found.images == random_images(10, 6, 6, 3).transpose(0, 3, 1, 2)).all()
    assert (clean.images == found.images).all() and clean.class_names == ["0", "1", "2"]


def test_other_formats_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    files = {f"img{number}.{suffix}": encoded(np.full((8, 8, 3), 20 * number, np.uint8), kind)
             for number, (suffix, kind) in enumerate(
                 [("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WEBP"), ("bmp", "BMP")])}
    files["img10.png"] = png(np.full((8, 8, 3), 200, np.uint8))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in reversed(files.items()):
            archive.writestr(name, content)
    with pytest.warns(Adapted, match=r"x\.zip holds no dataset\.json: its images have no labels"):
        images = read_edm_zip(EdmZipConfig(source="edm_zip", path=str(path))).images
    assert np.allclose(images[:, 0].mean((1, 2)), [0, 20, 40, 60, 200], atol=3)  # img10 is last


def test_labels_and_images_in_different_places(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    make_zip(path, [[name, 0] for name in names_of(10)])
    rezip(path, lambda name: f"a/{name}" if name == "dataset.json" else name, {})
    with pytest.raises(DataError, match=r"00000/img00000000\.png does not lie beside a/dataset"):
        load(source="edm_zip", path=str(path))
    rezip(path, str, {"b/dataset.json": b"{}"})
    with pytest.raises(DataError, match=r"holds a/dataset\.json and b/dataset\.json: remove one"):
        load(source="edm_zip", path=str(path))


def test_no_message_tells_an_address(tmp_path: Path) -> None:
    make_zip(tmp_path / "x.zip", more={"text.png": b"no image at all"})
    with pytest.raises(DataError, match=r"text\.png is not a readable PNG") as error:
        load(source="edm_zip", path=str(tmp_path / "x.zip"))
    assert " object" not in str(error.value)
    assert str(DataError(f"{io.BytesIO()!r} is odd")) == "<_io.BytesIO object> is odd"


@pytest.mark.parametrize("labels, message", [
    ([[name, 0] for name in names_of(9)], "has no label .*9 labels, 10 images"),
    ([[name, 0] for name in names_of(11)], "has a label but is not in the zip"),
    ([[name, 0] for name in [*names_of(10), names_of(1)[0]]], "two labels"),
    ([[name, -1] for name in names_of(10)], "label -1"),
    ([[name, True] for name in names_of(10)], "is not \\[name, class\\]"),
    ([[name, 0.5] for name in names_of(10)], "is not \\[name, class\\]"),
    ([[name, 2**70] for name in names_of(10)], "is not \\[name, class\\]"),
    ([[name, 10**6] for name in names_of(10)], "label 1000000"),
    ({"a": 1}, "must be null or a list"),
])
def test_bad_zip_labels_are_refused(labels: Any, message: str, tmp_path: Path) -> None:
    make_zip(tmp_path / "x.zip", labels=labels)
    with pytest.raises(DataError, match=rf"dataset\.json.*{message}"):
        load(source="edm_zip", path=str(tmp_path / "x.zip"))


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png",
                                  "a\\evil.png", "evil\n.png"])
def test_unsafe_zip_names_are_refused(name: str, tmp_path: Path) -> None:
    make_zip(tmp_path / "x.zip", more={name: png(random_images(6, 6, 3))})
    with pytest.raises(DataError, match="evil.*is unsafe"):
        load(source="edm_zip", path=str(tmp_path / "x.zip"))


@pytest.mark.parametrize("name, content, message", [
    ("broken.png", b"\x89PNG\r\n\x1a\n", r"broken\.png is not a readable"),
    ("other.png", png(random_images(5, 6, 3)), r"other\.png has 6 x 5"),
    ("jpeg.png", b"\xff\xd8\xff\xe0", r"jpeg\.png is not a readable"),
])
def test_foreign_zip_members_are_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    make_zip(tmp_path / "x.zip", more={name: content})
    with pytest.raises(DataError, match=message):
        load(source="edm_zip", path=str(tmp_path / "x.zip"))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with (zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive,
          archive.open("a.png", "w") as member):
        for _ in range(65):
            member.write(bytes(2**20))
    assert (tmp_path / "x.zip").stat().st_size < 10**5
    with pytest.raises(DataError, match=r"a\.png unpacks to 68157440 bytes"):
        load(source="edm_zip", path=str(tmp_path / "x.zip"))


def test_broken_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    make_zip(path)
    whole = path.read_bytes()
    for content in (b"", whole[:500], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.zip is not a readable zip"):
            load(source="edm_zip", path=str(path))
    damaged = bytearray(whole)
    damaged[80:90] = bytes(10)  # inside the first image, which is stored as it is
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"img00000000\.png is damaged"):
        load(source="edm_zip", path=str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dataset.json", "[" * 100_000)
        archive.writestr("a.png", b"")
    with pytest.raises(DataError, match=r"dataset\.json is not valid JSON"):
        load(source="edm_zip", path=str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", b"x")
    with pytest.raises(DataError, match="method 14"):
        load(source="edm_zip", path=str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dataset.json", "{}")
    with pytest.raises(DataError, match="no PNG"):
        load(source="edm_zip", path=str(path))


def test_zip_labels_that_begin_with_1_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    make_zip(path, labels=[[name, number % 2 + 1] for number, name in enumerate(names_of(10))])
    with pytest.raises(DataError, match="class 0 has no training samples.*number the classes"):
        load(source="edm_zip", path=str(path))


# CIFAR-10


def cifar_data(number: int, count: int = 4) -> tuple[NDArray[np.uint8], list[int]]:
    labels = [(4 * number + row) % 10 for row in range(count)]
    return random_images(count, 3072, seed=number), labels


def python2_batch(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """A batch as Python 2 and NumPy 1 wrote it: all strings are byte strings."""
    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = images.tobytes()
    array = (b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03"
             + text(b"b") + b"\x87Rq\x04(K\x01" + integer(images.shape[0])
             + integer(images.shape[1]) + b"\x86cnumpy\ndtype\nq\x05" + text(b"u1")
             + b"K\x00K\x01\x87Rq\x06(K\x03" + text(b"|") + b"NNN" + integer(-1) + integer(-1)
             + b"K\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb")
    return (b"\x80\x02}q\x00(" + text(b"batch_label") + text(b"training batch 1 of 5")
            + text(b"labels") + b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
            + text(b"data") + array
            + text(b"filenames") + b"](" + text(b"camion_s_000148.png") + b"eu.")


def python3_batch(protocol: int, numpy1: bool = False) -> Callable[..., bytes]:
    def write(images: NDArray[np.uint8], labels: list[int]) -> bytes:
        content = pickle.dumps({b"batch_label": b"testing batch 1 of 1", b"labels": labels,
                                b"data": images, b"filenames": [b"a.png"] * len(labels)}, protocol)
        return content.replace(b"numpy._core.", b"numpy.core.") if numpy1 else content
    return write


WRITERS = {"python2": python2_batch, "protocol2": python3_batch(2),
           "protocol2, numpy1": python3_batch(2, numpy1=True), "protocol3": python3_batch(3),
           "protocol4": python3_batch(4), "protocol5": python3_batch(5)}


def make_cifar(folder: Path, write: Callable[..., bytes] = python2_batch) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(BATCHES):
        (folder / name).write_bytes(write(*cifar_data(number)))


def pack(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-py")


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(writer: str, packed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    make_cifar(folder, WRITERS[writer])
    path = tmp_path / "cifar-10-python.tar.gz" if packed else folder
    if packed:
        pack(folder, path)
    data = load(source="cifar10", path=str(path), conditional=True)
    images = np.concatenate([cifar_data(number)[0] for number in range(5)])
    assert data.train_samples.shape == (20, 3, 32, 32)
    # A row holds the red plane, then the green and the blue one, row by row.
    assert data.train_samples[7, 1, 2, 3] == images[7, 1024 + 2 * 32 + 3]
    assert np.array_equal(data.train_samples.reshape(20, -1), images)
    assert data.train_labels.tolist() == sum((cifar_data(n)[1] for n in range(5)), [])
    assert np.array_equal(data.test_samples.reshape(4, -1), cifar_data(5)[0])
    assert data.test_labels.tolist() == cifar_data(5)[1]
    assert data.info.class_names == data.info.samples.label_names
    assert data.info.class_names[0] == "airplane" and data.info.class_names[9] == "truck"


def test_the_assembled_batch_is_what_python_takes_for_one() -> None:
    images, labels = cifar_data(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy.core is deprecated
        document = pickle.loads(python2_batch(images, labels), encoding="bytes")
    assert np.array_equal(document[b"data"], images) and document[b"labels"] == labels


def test_a_class_that_cifar10_lacks_is_named(tmp_path: Path) -> None:
    make_cifar(tmp_path, lambda images, labels: python2_batch(
        images, [label if label != 3 else 4 for label in labels]))
    with pytest.raises(DataError, match=r"class 3 \(cat\) has no training samples"):
        load(source="cifar10", path=str(tmp_path))


def test_cifar10_in_column_order(tmp_path: Path) -> None:
    make_cifar(tmp_path, lambda images, labels: python3_batch(2)(np.asfortranarray(images), labels))
    assert b"numpy" in (tmp_path / "test_batch").read_bytes()
    data = load(source="cifar10", path=str(tmp_path))
    assert np.array_equal(data.test_samples.reshape(4, -1), cifar_data(5)[0])


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("packed", [False, True])
def test_malicious_pickles_are_refused_by_name_and_not_run(
    protocol: int, packed: bool, tmp_path: Path
) -> None:
    target = tmp_path / "run"
    exploit = pickle.dumps({b"data": Exploit(target)}, protocol)
    pickle.loads(exploit)
    assert target.exists()  # it does work
    target.unlink()
    folder = tmp_path / "cifar"
    make_cifar(folder)
    (folder / "data_batch_3").write_bytes(exploit)
    path = tmp_path / "cifar.tar.gz" if packed else folder
    if packed:
        pack(folder, path)
    with pytest.raises(DataError, match=r"data_batch_3: the pickle asks for (posix|nt)\.system"):
        load(source="cifar10", path=str(path))
    assert not target.exists()


@pytest.mark.parametrize("name", ["builtins\neval", "__builtin__\neval", "numpy\nload",
                                  "numpy.core.multiarray\nscalar", "_codecs\ndecode",
                                  "kdm_core.pickles\nName",
                                  "copy_reg\n_reconstructor"])
def test_other_globals_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=name.replace("\n", r"\.")):
        read_pickle(b"\x80\x02c" + name.encode() + b"\n.", "file")


@pytest.mark.parametrize("program", [
    b"\x80\x02cnumpy\nndarray\n)\x81.",  # an instance without a call
    b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 entries
    b"\x80\x02]q\x00h\x00a.",  # a list, and one that contains itself
    b"\x80\x02}K\x01K\x02s.",  # keys that are no text
    b"\x80\x02X\xff\xff\xff\x7fa.", b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\x00\x00.",
    b"", b"garbage",
    b"\x80\x02Pevil\n.", b"\x80\x02\x82\x01.",  # persistent and registered objects
])
def test_hostile_programs_are_refused(program: bytes) -> None:
    with pytest.raises(DataError, match="file"):
        read_pickle(program, "file")


def test_a_pickle_cannot_change_what_stands_for_a_global() -> None:
    name, value = b"X\x04\x00\x00\x00name", b"X\x01\x00\x00\x00x"
    with pytest.raises(DataError, match=r"file: .* tries to change numpy\.dtype"):
        read_pickle(b"\x80\x02}" + name + b"cnumpy\ndtype\n}" + name + value + b"sbs.", "file")


def test_calls_are_recorded_and_not_made() -> None:
    content = b"\x80\x02}X\x04\x00\x00\x00datacnumpy\ndtype\nX\x02\x00\x00\x00u1\x85Rs."
    document = read_pickle(content, "file")
    assert isinstance(document["data"], Call) and document["data"].arguments == ("u1",)
    with pytest.raises(DataError, match="expected an array"):
        as_uint8(document["data"], 3, "file")


@given(st.integers(1, 5), st.integers(1, 7), st.sampled_from([0, 2, 3, 4, 5]), st.booleans())
def test_recorded_arrays_are_rebuilt(count: int, columns: int, protocol: int, turned: bool) -> None:
    values = random_images(count, columns)
    if turned:
        values = np.asfortranarray(values)
    document = read_pickle(pickle.dumps({"x": values}, protocol), "file")
    assert np.array_equal(as_uint8(document["x"], columns, "file"), values)


@pytest.mark.parametrize("value", [
    random_images(4, 6).astype(np.int8), random_images(4, 6).astype(">u2"), random_images(24),
    random_images(2, 2, 6), random_images(4, 5), np.array([[None] * 6]), None, [1, 2], b"bytes",
])
@pytest.mark.parametrize("protocol", [2, 5])
def test_other_arrays_are_refused(value: Any, protocol: int) -> None:
    document = read_pickle(pickle.dumps({"x": value}, protocol), "file")
    with pytest.raises(DataError, match="expected"):
        as_uint8(document["x"], 6, "file")


def test_an_array_with_too_few_bytes_is_refused() -> None:
    content = python2_batch(random_images(4, 3072), [0] * 4)
    longer = content.replace(struct.pack("<i", 4) + b"J" + struct.pack("<i", 3072),
                             struct.pack("<i", 5) + b"J" + struct.pack("<i", 3072))
    assert longer != content
    with pytest.raises(DataError, match=r"12288 bytes for an array of shape \(5, 3072\)"):
        as_uint8(read_pickle(longer, "file")["data"], 3072, "file")


@settings(max_examples=150)
@given(st.data())
def test_damaged_batches_raise_nothing_but_data_errors(data: st.DataObject) -> None:
    content = bytearray(python2_batch(random_images(1, 12), [3]))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        as_uint8(read_pickle(bytes(content[:cut]), "file").get("data"), 12, "file")
    except DataError as error:
        assert str(error).startswith("file")


@pytest.mark.parametrize("labels, message", [
    ([0, 1, 2], r"shape \(3,\)"), ([0, 1, 2, 10], "integers from 0 to 9"),
    ([0, 1, 2, -1], "integers from 0 to 9"), ([0, 1, 2, True], "integers from 0 to 9"),
    ((0, 1, 2, 3), "integers from 0 to 9"), ([0, 1, 2, "3"], "integers from 0 to 9"),
])
def test_bad_cifar_labels_are_refused(labels: Any, message: str, tmp_path: Path) -> None:
    make_cifar(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(python3_batch(2)(random_images(4, 3072), labels))
    with pytest.raises(DataError, match=f"data_batch_2.*{message}"):
        load(source="cifar10", path=str(tmp_path))


def test_missing_and_broken_cifar_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, path = tmp_path / "cifar", tmp_path / "cifar.tar.gz"
    make_cifar(folder)
    pack(folder, path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], gzip.compress(b"x" * 2000)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cifar\.tar\.gz"):
            load(source="cifar10", path=str(path))
    path.write_bytes(whole)
    monkeypatch.setattr("kdm_core.datasets.cifar10.MAX_ARCHIVE", len(whole) + 1)
    with pytest.raises(DataError, match="unpacks to more than"):
        load(source="cifar10", path=str(path))
    monkeypatch.undo()
    monkeypatch.setattr("kdm_core.datasets.cifar10.MAX_BATCH", 100)
    for place in (path, folder):
        with pytest.raises(DataError, match="data_batch_1 is"):
            load(source="cifar10", path=str(place))
    monkeypatch.undo()
    (folder / "data_batch_4").unlink()
    pack(folder, path)
    for place in (path, folder):
        with pytest.raises(DataError, match="data_batch_4"):
            load(source="cifar10", path=str(place))
    (folder / "data_batch_4").symlink_to("/dev/zero")
    for place in (path, folder):
        with pytest.raises(DataError, match="data_batch_4"):
            load(source="cifar10", path=str(place))


# Storage


@pytest.mark.parametrize("config", [{"source": "digits", "conditional": True},
                                    {"source": "checkerboard", "train": 50, "test": 20}])
def test_saved_sets_are_opened_again(config: dict[str, Any], tmp_path: Path) -> None:
    data = load(**config)
    mark = save_dataset(tmp_path / "data", data)
    opened, opened_mark = open_dataset(tmp_path / "data")
    assert opened_mark == mark and len(mark) == 64 and opened.info == data.info
    for saved, original in zip(opened[:-1], data[:-1], strict=True):
        assert isinstance(saved, np.memmap)
        assert saved.dtype == original.dtype and np.array_equal(saved, original)
    assert save_dataset(tmp_path / "copy", opened) == mark
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["fingerprint"] == mark


def test_the_fingerprint_follows_every_part(tmp_path: Path) -> None:
    data = load(source="digits")
    marks = {save_dataset(tmp_path, data)}
    for field in Dataset._fields[:-1]:
        changed = getattr(data, field).copy()
        changed.flat[0] = changed.flat[0] ^ 1
        marks.add(save_dataset(tmp_path, data._replace(**{field: changed})))
    marks.add(save_dataset(tmp_path, load(source="digits", conditional=True)))
    assert len(marks) == 6
    assert save_dataset(tmp_path, data) in marks


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_dataset(tmp_path, load(source="digits"))
    return tmp_path


@pytest.mark.parametrize("name", ["train_samples", "train_labels", "test_samples", "test_labels"])
def test_missing_and_damaged_arrays_are_named(name: str, stored: Path) -> None:
    path = stored / f"{name}.npy"
    whole = path.read_bytes()
    array = np.load(path)
    objects = io.BytesIO()
    np.save(objects, np.array([None] * len(array), dtype=object), allow_pickle=True)
    for content in (b"", whole[:40], whole[:-1], b"garbage" * 100, objects.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.npy is damaged"):
            open_dataset(stored)
    for other in (array[:-1], array.astype(np.int16), array[..., None]):
        np.save(path, other)
        with pytest.raises(DataError, match=rf"{name}\.npy holds"):
            open_dataset(stored)
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}\.npy is missing"):
        open_dataset(stored)


def test_labels_out_of_range_are_found_on_opening(stored: Path) -> None:
    labels = np.load(stored / "test_labels.npy")
    labels[5] = 10
    np.save(stored / "test_labels.npy", labels)
    with pytest.raises(DataError, match=r"test_labels\.npy: label 10"):
        open_dataset(stored)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b'{"fingerprint": "x"}'])
def test_a_damaged_description_is_named(content: bytes, stored: Path) -> None:
    (stored / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        open_dataset(stored)


def test_an_interrupted_save_leaves_no_set(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdm_core.datasets.storage.write_atomic", fail)
    with pytest.raises(KeyboardInterrupt):
        save_dataset(stored, load(source="digits", seed=1))
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        open_dataset(stored)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot replace .*file"):
        save_dataset(tmp_path / "file", load(source="digits"))


def test_labels_of_a_zip_may_be_of_names_in_the_folder_of_all_images(tmp_path: Path) -> None:
    path, labels = tmp_path / "x.zip", [number % 3 for number in range(10)]
    make_zip(path, list(zip(names_of(10), labels, strict=True)))
    rezip(path, lambda name: name if name == "dataset.json" else f"images/{name}", {})
    found = read_edm_zip(EdmZipConfig(source="edm_zip", path=str(path)))
    assert found.labels.tolist() == labels


def test_bytes_that_seem_to_be_of_another_range_are_said(tmp_path: Path) -> None:
    """Values from 0 to 16, as those of scikit-learn's digits; drawings are mostly 0 as well."""
    sparse = np.zeros((40, 20, 20), np.uint8)
    sparse[:, 3, 3] = 16
    np.savez(tmp_path / "x.npz", images=sparse)
    with pytest.warns(Adapted, match=r"no value above 16, .*save \(images \* \(255 / 16\)\)"):
        load(source="npz", path=str(tmp_path / "x.npz"))
    np.savez(tmp_path / "x.npz", images=sparse * 15)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Adapted)
        load(source="npz", path=str(tmp_path / "x.npz"))


def test_labels_below_0_have_both_ways_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=random_images(9, 4, 4), labels=np.arange(9) % 3 - 1)
    with pytest.raises(DataError, match=r"label -1 is none.*number the classes.*leave these out"):
        load(source="npz", path=str(tmp_path / "x.npz"))


def test_a_file_without_samples_says_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_train=random_images(9, 4, 4), y_train=np.arange(9))
    with pytest.raises(DataError, match=r"no array 'images'.*, but x_train, y_train: name the"):
        load(source="npz", path=str(tmp_path / "x.npz"))


@pytest.mark.parametrize("text", [
    "<f at 0x7f12ab34>", "<code object f at 0x7f12ab34cd56, file x>", "<r at 0x7f12ab34; to y>"])
def test_addresses_are_left_out(text: str) -> None:
    assert "0x" not in str(DataError(text)) and "at 0x10, 3" in str(DataError(f"{text} at 0x10, 3"))
