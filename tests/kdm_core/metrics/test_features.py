"""Features: streamed in batches, computed once a set and extractor, safe on disk."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdm_core.errors import DivergedError, KDMError
from kdm_core.metrics.classifier import (
    Classifier,
    ClassifierConfig,
    ClassifierExtractor,
    load_classifier,
    save_classifier,
)
from kdm_core.metrics.features import FeatureCache, Features, extract, named_after
from kdm_core.samples import SampleSpec
from kdm_core.values import from_uint8


class Sums:
    """Per-channel sums as features, and as probabilities the share of each channel."""

    name, text, dim, batch = "sums", "Sums.", 3, 4
    metric_names: Mapping[str, str] = named_after("sums")

    def __init__(self, fingerprint: str = "a", scale: float = 1.0) -> None:
        self.fingerprint, self.scale, self.batches = fingerprint, scale, list[int]()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        self.batches.append(len(images))
        sums = images.float().sum(dim=(2, 3)) * self.scale
        return sums, sums / sums.sum(dim=1, keepdim=True)


def images(n: int = 10, seed: int = 0, channels: int = 3, side: int = 5) -> Tensor:
    values = np.random.default_rng(seed).integers(1, 256, (n, channels, side, side))
    return torch.from_numpy(values.astype(np.uint8))


def same(a: Features, b: Features) -> bool:
    assert a.probabilities is not None and b.probabilities is not None
    return bool((a.features == b.features).all() and (a.probabilities == b.probabilities).all())


def test_a_set_is_streamed() -> None:
    extractor, seen = Sums(), list[int]()
    found = extract(extractor, images(10), on_images=seen.append)
    assert extractor.batches == seen == [4, 4, 2]
    assert np.array_equal(found.features, images(10).float().sum(dim=(2, 3)).numpy())
    assert same(found, extract(Sums(), images(10), batch=3))


@pytest.mark.parametrize(("wrong", "message"), [
    (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "empty"),
    (torch.zeros(2, 3, 4, 4), "float32"),
    (torch.zeros(2, 4, 4, 4, dtype=torch.uint8), r"\(2, 4, 4, 4\)"),
    (torch.zeros(3, 4, 4, dtype=torch.uint8), r"\(3, 4, 4\)")])
def test_what_is_no_set_of_images_is_refused(wrong: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(KDMError, match=message):
        extract(Sums(), wrong)
    with pytest.raises(KDMError, match=message):
        FeatureCache(tmp_path).get(Sums(), wrong)
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_finite_are_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="sums are not finite"):
        FeatureCache(tmp_path).get(Sums(scale=float("nan")), images())
    assert not list(tmp_path.iterdir())


def test_students_share_the_features_of_their_teacher(tmp_path: Path) -> None:
    teacher, extractor = images(seed=1), Sums()
    found = []
    for student in (images(seed=2), images(seed=3)):
        cache = FeatureCache(tmp_path)  # each student is evaluated by a process of its own
        found.append(cache.get(extractor, teacher))
        cache.get(extractor, student)
    assert sum(extractor.batches) == 30
    assert same(*found)
    progress: list[int] = []
    FeatureCache(tmp_path).get(extractor, teacher, on_images=progress.append)
    assert not progress  # there was nothing to wait for


def test_no_key_fits_two_sets_or_extractors(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.get(Sums("a"), images())
    for extractor, wanted in (
        (Sums("b", 2.0), images()), (Sums("a"), images(seed=1)), (Sums("a"), images().flip(0)),
        (Sums("a"), images().reshape(30, 1, 5, 5).expand(-1, 3, -1, -1)),
    ):
        assert same(cache.get(extractor, wanted), extract(extractor, wanted))
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[: len(content) // 2],
    lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda content: b"x" * 100])
def test_a_damaged_file_is_computed_again_and_said_so(damage: object, tmp_path: Path) -> None:
    cache, extractor = FeatureCache(tmp_path), Sums()
    first = cache.get(extractor, images())
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        assert same(cache.get(extractor, images()), first)
    assert sum(extractor.batches) == 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.get(extractor, images())
    assert sum(extractor.batches) == 20


def test_a_killed_write_leaves_nothing_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    cache = FeatureCache(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", killed)
        cache.get(Sums(), images())
    assert not list(tmp_path.glob("*.safetensors"))
    again = Sums()
    assert same(cache.get(again, images()), extract(Sums(), images()))
    assert sum(again.batches) == 10


def test_the_classifier_as_an_extractor(tmp_path: Path) -> None:
    spec = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b"])
    mark = save_classifier(tmp_path, Classifier(ClassifierConfig(channels=8, features=4), spec))
    model, read = load_classifier(tmp_path)
    extractor = ClassifierExtractor(model, read)
    assert (extractor.fingerprint, extractor.dim) == (mark, 4)
    pictures = images(6, channels=1, side=8)
    found = extract(extractor, pictures, batch=4)
    with torch.inference_mode():
        features, logits = model(from_uint8(pictures))
    assert found.probabilities is not None
    np.testing.assert_allclose(found.features, features, atol=1e-6)
    np.testing.assert_allclose(found.probabilities, logits.softmax(1), atol=1e-6)
    with pytest.raises(KDMError, match=r"\(1, 8, 8\), found \(3, 8, 8\)"):
        extract(extractor, images(2, side=8))
