"""Operators, losses and metrics compute on a device what float64 says they should."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from benchmarks.gpu.weights import vgg_weights
from kdm_core.compute import seeded, state_dtype
from kdm_core.losses.perceptual import LPIPS
from kdm_core.losses.trunks import Trunk
from kdm_core.metrics.classifier import Classifier, ClassifierConfig, ClassifierExtractor
from kdm_core.metrics.features import extract
from kdm_core.metrics.frechet import fit_gaussian, frechet_distance
from kdm_core.metrics.kernel import discrepancy, polynomial, self_similarity
from kdm_core.metrics.manifold import indicators, neighbourhoods
from kdm_core.metrics.neighbours import nearest
from kdm_core.operators import OperatorConfig, build_operator
from tests.gpu.models import SPEC, deviation, exact, lively

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
ROUNDING = 1e-5
OPERATORS: dict[str, dict[str, Any]] = {
    "dense": {"spectrum": {"kind": "uniform"}},
    "factorised": {"spectrum": {"kind": "circle"}},
    "continuous": {"spectrum": {"kind": "gradual"}},
    "identity": {},
}


@pytest.mark.parametrize("kind", OPERATORS)
def test_operators_their_penalties_and_spectra(kind: str, device: torch.device) -> None:
    config: OperatorConfig = TypeAdapter(OperatorConfig).validate_python(
        {"kind": kind, **OPERATORS[kind]})
    with seeded(0):
        operator = lively(build_operator(config, 12))
        z, drive = torch.randn(2, 5, 12, dtype=torch.float64)
    reference, operator = exact(operator), operator.to(device)
    found = operator(z.float().to(device), drive.float().to(device))
    assert deviation(found, reference(z, drive)) < ROUNDING
    assert float(operator.penalty().detach()) == pytest.approx(
        float(reference.penalty().detach()), rel=1e-3, abs=1e-5)
    spectra = [torch.view_as_real(each.eigenvalues().to(torch.complex128))
               for each in (operator, reference)]
    # In no order: compared as sets, by what does not depend on it.
    assert deviation(spectra[0].sum(0), spectra[1].sum(0)) < 1e-4
    assert deviation(spectra[0].square().sum(), spectra[1].square().sum()) < 1e-4
    if operator.continuous:
        part = torch.linspace(0, 1, 5)
        moved = operator.advance(z.float().to(device), part.to(device), drive.float().to(device))
        assert deviation(moved, reference.advance(z, part.double(), drive)) < ROUNDING


@pytest.mark.parametrize("pooling", ["max", "average"])
def test_lpips(pooling: Any, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    target, prediction = torch.rand(2, 2, 3, 16, 16, generator=generator) * 2 - 1
    with vgg_weights():
        distance = LPIPS(pooling=pooling)
    reference, distance = exact(distance), distance.to(device)
    (found,) = distance.to_target(target.to(device), [prediction.to(device)])
    (expected,) = reference.to_target(target.double(), [prediction.double()])
    assert deviation(found, expected) < 1e-4


def test_features_and_distances_between_them(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    made, real = torch.randint(256, (2, 24, *SPEC.sample_shape), generator=generator,
                               dtype=torch.uint8)
    with seeded(0):
        model = Classifier(ClassifierConfig(channels=8, features=4), SPEC).eval()
    there = [extract(ClassifierExtractor(model.to(device), "f"), images).features
             for images in (made, real)]
    here = [extract(ClassifierExtractor(model.to(CPU), "f"), images).features
            for images in (made, real)]
    for found, expected in zip(there, here, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    a, b = (frechet_distance(*map(fit_gaussian, features)) for features in (there, here))
    assert a == pytest.approx(b, rel=1e-2)


def test_kernels_neighbourhoods_and_neighbours(device: torch.device) -> None:
    random = np.random.default_rng(0)
    made, real = random.standard_normal((2, 60, 8))
    counts = random.multinomial(60, np.full(60, 1 / 60), size=3)

    def kernel_distance(place: torch.device) -> np.ndarray:
        similarity = self_similarity(polynomial, real, place)
        found = discrepancy(polynomial, made, real, similarity, counts, place)
        return np.array([found.value, *found.replicates])

    narrow = state_dtype(device) == torch.float32
    np.testing.assert_allclose(kernel_distance(device), kernel_distance(CPU),
                               rtol=1e-3 if narrow else 1e-9, atol=1e-5 if narrow else 1e-12)
    shares = [indicators(neighbourhoods(made, place), neighbourhoods(real, place))
              for place in (device, CPU)]
    for found, expected in zip(*shares, strict=True):
        assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.02 if narrow else 1e-12)
    found, expected = (nearest(made.astype(np.float32), real.astype(np.float32), device=place)
                       for place in (device, CPU))
    np.testing.assert_array_equal(found.place, expected.place)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-6)
    # A second computation of it, by all differences.
    all_pairs = np.sqrt(((made[:, None] - real[None]) ** 2).mean(axis=2))
    np.testing.assert_allclose(found.distance, all_pairs.min(axis=1), rtol=1e-5)


def test_a_trunk_in_half_precision(device: torch.device) -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with vgg_weights():
        trunk = Trunk("vgg")
    expected = trunk(images)[-1]
    with torch.autocast(device.type, torch.bfloat16):
        found = trunk.to(device)(images.to(device))[-1]
    assert found.dtype == torch.bfloat16 and deviation(found, expected) < 0.05
