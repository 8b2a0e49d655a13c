"""The files of MNIST's family: what they hold, and what is no such file."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kdm_core.datasets import IdxConfig, load_dataset
from kdm_core.datasets import idx as module
from kdm_core.errors import DataError

GENERATOR = np.random.default_rng(0)
ARRAYS = {
    "train-images-idx3-ubyte": GENERATOR.integers(0, 256, (30, 6, 4), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.arange(30, dtype=np.uint8) % 3,
    "t10k-images-idx3-ubyte": GENERATOR.integers(0, 256, (10, 6, 4), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(10, dtype=np.uint8) % 3,
}


def content(array: NDArray[np.uint8]) -> bytes:
    """A file by the format's description: two zeros, the type, the dimensions, their sizes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, array in ARRAYS.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content(array)))
    return tmp_path


def config(folder: Path | None, **fields: object) -> IdxConfig:
    return IdxConfig.model_validate({"source": "idx", **fields} | (
        {} if folder is None else {"path": str(folder)}))


def test_images_and_labels_are_those_of_the_files(folder: Path) -> None:
    found = load_dataset(config(folder, conditional=True), seed=0)
    assert np.array_equal(found.train_samples[:, 0], ARRAYS["train-images-idx3-ubyte"])
    assert np.array_equal(found.test_samples[:, 0], ARRAYS["t10k-images-idx3-ubyte"])
    assert found.train_labels.tolist() == [i % 3 for i in range(30)]
    assert found.info.class_names == found.info.samples.label_names == ["0", "1", "2"]
    named = load_dataset(config(folder, names=["a", "b", "c", "d"][:3]), seed=0)
    assert named.info.class_names == ["a", "b", "c"] and not named.info.samples.label_names


def test_unpacked_files_will_do(folder: Path) -> None:
    packed = load_dataset(config(folder), seed=0)
    for name in ARRAYS:
        file = folder / f"{name}.gz"
        (folder / name).write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert np.array_equal(load_dataset(config(folder), seed=0).train_samples, packed.train_samples)


def test_pixels_are_averaged_in_squares(folder: Path) -> None:
    found = load_dataset(config(folder, average=2), seed=0).train_samples
    assert found.shape == (30, 1, 3, 2)
    squares = ARRAYS["train-images-idx3-ubyte"][:, 2:4, 0:2].reshape(30, 4)
    assert np.array_equal(found[:, 0, 1, 0], np.floor(squares.mean(axis=1) + 0.5))
    with pytest.raises(DataError, match="^average: squares of 4 pixels"):
        load_dataset(config(folder, average=4), seed=0)


def test_fashion_is_looked_for_where_debian_puts_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INSTALLED", folder)
    monkeypatch.setattr(module, "FASHION", ["shoe", "coat", "bag"])
    assert load_dataset(config(None), seed=0).info.class_names == ["shoe", "coat", "bag"]
    monkeypatch.setattr(module, "INSTALLED", folder / "nowhere")
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        load_dataset(config(None), seed=0)


def replaced(name: str, written: bytes, packed: bool = True) -> tuple[str, bytes]:
    return f"{name}.gz", gzip.compress(written) if packed else written


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
WHOLE = content(ARRAYS[IMAGES])


@pytest.mark.parametrize(("file", "reason"), [
    ((f"{IMAGES}.gz", None), "is missing"),
    (replaced(IMAGES, gzip.compress(WHOLE)[:-20], packed=False), "cut short"),
    (replaced(IMAGES, b"no gzip", packed=False), "no readable .gz"),
    (replaced(IMAGES, bytes([0, 0, 13, 3]) + WHOLE[4:]), r"\(00 00 0d 03\): fetch it again"),
    (replaced(IMAGES, content(ARRAYS[LABELS])), "3 dimensions"),
    (replaced(IMAGES, WHOLE[:-1]), "says that it holds 30 × 6 × 4 bytes, and has 719"),
    (replaced(IMAGES, b""), "does not begin as an IDX file"),
    (replaced(LABELS, content(ARRAYS[LABELS][:29])), "30 images in .* and 29 labels"),
    (replaced("t10k-images-idx3-ubyte", content(ARRAYS["t10k-images-idx3-ubyte"][:, :4])),
     "training images of .* and test images"),
])
def test_what_is_no_such_file_is_one_message(
    folder: Path, file: tuple[str, bytes | None], reason: str
) -> None:
    name, written = file
    (folder / name).unlink()
    if written is not None:
        (folder / name).write_bytes(written)
    with pytest.raises(DataError, match=reason):
        load_dataset(config(folder), seed=0)


def test_a_label_without_a_name_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="label 2 is none of the 2 classes"):
        load_dataset(config(folder, names=["a", "b"]), seed=0)


def test_a_bomb_is_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE", 10_000)
    name, bomb = replaced(IMAGES, bytes(100_000))
    (folder / name).write_bytes(bomb)
    with pytest.raises(DataError, match="unpacks to more than 10000 bytes"):
        load_dataset(config(folder), seed=0)
