"""Latents as samples: what describes them, stores of them, and pairs of others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdm_core.errors import DataError, KDMError
from kdm_core.networks import MLPConfig
from kdm_core.pairs.importing import ImportConfig, import_pairs, open_source, plan_import
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.sampling import plan_store, sample_pairs
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Denoiser, DenoiserConfig
from tests.support.pairs import CPU, config, plan

DECODED = SampleSpec(kind="latent", shape=[2, 4, 4], decoder="d" * 64, picture=[1, 16, 16])


def latent_teacher(spec: SampleSpec = DECODED) -> Denoiser:
    torch.manual_seed(0)
    network = MLPConfig(kind="mlp", width=16, blocks=1)
    return Denoiser(DenoiserConfig(kind="denoiser", network=network),
                    spec).eval().requires_grad_(False)


def sampled(path: Path, dtype: str) -> PairStore:
    teacher = latent_teacher()
    spec = plan_store(config(sample_dtype=dtype), teacher, "f" * 64, None, 0, CPU)
    store = PairStore.create(path, spec, {})
    sample_pairs(store, teacher, CPU)
    return store


def test_descriptions_without_latents_are_as_they_were() -> None:
    image = SampleSpec(kind="image", shape=[1, 4, 4])
    assert set(image.model_dump()) == {"kind", "shape", "label_names", "sigma_data"}
    assert plan().schema_version == 1
    assert SampleSpec.model_validate(DECODED.model_dump()) == DECODED
    assert SampleSpec.model_validate_json(DECODED.model_dump_json()) == DECODED


def test_what_is_asked_of_samples() -> None:
    image = SampleSpec(kind="image", shape=[1, 4, 4])
    points = SampleSpec(kind="points", shape=[2])
    bare = SampleSpec(kind="latent", shape=[2, 4, 4])
    assert [one.bounded for one in (image, points, DECODED)] == [True, False, False]
    assert [one.spatial for one in (image, points, DECODED)] == [True, False, True]
    assert [one.pictured for one in (image, points, DECODED, bare)] == [True, False, True, False]
    assert DECODED.as_picture == SampleSpec(kind="image", shape=[1, 16, 16])
    assert bare.as_picture is bare and image.as_picture is image


@pytest.mark.parametrize(("values", "text"), [
    ({"kind": "image", "shape": [1, 4, 4], "decoder": "d", "picture": [1, 8, 8]}, "only latents"),
    ({"kind": "latent", "shape": [2, 4, 4], "decoder": "d"}, "belong together"),
    ({"kind": "latent", "shape": [2]}, r"latents are \(C, H, W\)"),
])
def test_contradictory_descriptions(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        SampleSpec.model_validate(values)


def test_stores_keep_latents_in_half_precision(tmp_path: Path) -> None:
    half, whole = sampled(tmp_path / "half", "float16"), sampled(tmp_path / "whole", "float32")
    assert half.arrays["sample"].dtype == np.float16
    assert half.spec.schema_version == whole.spec.schema_version == 2
    assert PairStore.open(tmp_path / "half").spec.samples == DECODED
    ours, theirs = (read_split(store, "train", CPU).samples for store in (half, whole))
    assert ours.dtype == torch.float32
    assert theirs.abs().max() > 1  # no range that they could be cut to
    assert torch.equal(ours, theirs.to(torch.float16).to(torch.float32))


@pytest.mark.parametrize(("spec", "dtype", "way_out"), [
    (DECODED, "uint8", "uint8 does not suit latents; use float16 or float32"),
    (SampleSpec(kind="image", shape=[1, 4, 4]), "float16", "use uint8 or float32"),
    (SampleSpec(kind="points", shape=[2]), "float16", "use float32"),
])
def test_types_that_do_harm_are_refused(spec: SampleSpec, dtype: str, way_out: str) -> None:
    with pytest.raises(KDMError, match=f"^sample_dtype: .*{way_out}"):
        plan_store(config(sample_dtype=dtype), latent_teacher(spec), "f" * 64, None, 0, CPU)


def test_the_first_version_has_no_latents(tmp_path: Path) -> None:
    spec = sampled(tmp_path / "p", "float16").spec
    with pytest.raises(ValidationError, match="schema_version: 1 has neither latents"):
        StoreSpec.model_validate({**spec.model_dump(), "schema_version": 1})


def others(path: Path, **arrays: Any) -> Path:
    """An .npz of pairs as others may hand them over."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((60, 4, 8, 8)).astype(np.float32)
    np.savez(path, **{"samples": 3 * np.tanh(noise) + 1, "noise": noise, **arrays})
    return path


def test_latents_of_others(tmp_path: Path) -> None:
    """They leave every range of images, and nothing but the user tells what they are."""
    file = others(tmp_path / "pairs.npz")
    with pytest.raises(DataError, match=r"must lie in \[-1, 1\]"):
        plan_import(open_source(file), ImportConfig(test=10, validation=5, shard=20, chunk=5))
    source = open_source(file, latents=True)
    planned = plan_import(source, ImportConfig(test=10, validation=5, shard=20, chunk=5))
    assert (planned.spec.samples.kind, planned.spec.sample_dtype) == ("latent", "float16")
    store = PairStore.create(tmp_path / "p", planned.spec, {})
    import_pairs(source, store, planned.scale)
    with np.load(file) as arrays:
        expected = arrays["samples"].astype(np.float16)
    assert np.array_equal(store.read_arrays(range(60), ["sample"])["sample"], expected)


def test_what_cannot_be_latents(tmp_path: Path) -> None:
    points = tmp_path / "points.npz"
    np.savez(points, samples=np.zeros((20, 2), np.float32), noise=np.zeros((20, 2), np.float32))
    with pytest.raises(DataError, match="^latents: points are none"):
        open_source(points, latents=True)
    whole = others(tmp_path / "whole.npz", samples=np.zeros((60, 4, 8, 8), np.uint8))
    with pytest.raises(DataError, match="expected floats, as an autoencoder gives them"):
        plan_import(open_source(whole, latents=True), ImportConfig(test=10, validation=5))
    with pytest.raises(DataError, match="^sample_range: latents have none"):
        open_source(whole, sample_range="unit", latents=True)
