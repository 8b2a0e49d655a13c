"""The drifting loss."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdm_core.losses.drifting import (
    PLACES,
    Drift,
    Drifting,
    DriftingConfig,
    build_drifting,
    described,
    drift,
    grouped,
)
from kdm_core.losses.features import FeatureNetwork, Frozen
from kdm_core.metrics.estimate import resampling
from kdm_core.metrics.points import energy_distance
from kdm_core.samples import SampleSpec

CPU = torch.device("cpu")
PUBLISHED = [0.02, 0.05, 0.2]
Array = NDArray[np.float64]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def classes(count: int, of: int, seed: int) -> Tensor:
    return torch.randint(of, (count,), generator=torch.Generator().manual_seed(seed))


def one_class(generated: Tensor, real: Tensor, temperatures: list[float]) -> Drift:
    groups = grouped(*(torch.zeros(each.shape[-2], dtype=torch.int64)
                       for each in (generated, real)))
    return drift(generated, real, groups, temperatures)


def plainly(
    generated: Array, real: Array, labels: Array, real_labels: Array, temperatures: list[float]
) -> tuple[float, float, Array]:
    """Loss, force and the loss's gradient: one location, class, sample and pair at a time.

    Of generated (L, B, S) and real samples (L, R, S).
    """
    places, count, width = generated.shape
    partners = {i: ([j for j in range(count) if j != i and labels[j] == labels[i]],
                    [j for j in range(len(real_labels)) if real_labels[j] == labels[i]])
                for i in range(count)}
    between = [math.dist(generated[place, i], side[place, j])
               for place in range(places) for i, both in partners.items()
               for side, found in zip((generated, real), both, strict=True) for j in found]
    scale = max(sum(between) / max(len(between), 1), 1e-3)
    unit = scale / math.sqrt(width)
    total, sizes = np.zeros_like(generated), []
    for temperature in temperatures:
        field = np.zeros_like(generated)
        for place in range(places):
            for value in set(labels.tolist()):
                field[place] += of_class(generated[place], real[place], labels == value,
                                         real_labels == value, scale, unit, temperature)
        sizes.append(math.sqrt((field**2).mean()))
        total += field / sizes[-1]
    return (float((total**2).mean()), float(np.mean(sizes)),
            -2 * total / (total.size * unit))


def of_class(
    generated: Array, real: Array, ours: Array, theirs: Array, scale: float, unit: float,
    temperature: float,
) -> Array:
    made, there = np.flatnonzero(ours), np.flatnonzero(theirs)
    everyone = [("made", j) for j in made] + [("real", j) for j in there]

    def place(kind: str, j: int) -> Array:
        vector: Array = (generated if kind == "made" else real)[j]
        return vector

    def kernel(i: int, kind: str, j: int) -> float:
        if kind == "made" and i == j:
            return 0.0
        return math.exp(-math.dist(generated[i], place(kind, j)) / scale / temperature)

    field = np.zeros_like(generated)
    for i in made:
        weights = {}
        row = sum(kernel(i, *other) for other in everyone)
        for other in everyone:
            if other == ("made", i):
                continue
            column = sum(kernel(k, *other) for k in made)
            own = kernel(i, *other)
            weights[other] = math.sqrt(own / row * own / column)
        drawn = sum(weight for (kind, _), weight in weights.items() if kind == "real")
        driven = sum(weight for (kind, _), weight in weights.items() if kind == "made")
        for (kind, j), weight in weights.items():
            share = driven if kind == "real" else -drawn
            field[i] += weight * share * (place(kind, j) - generated[i]) / unit
    return field


@pytest.mark.parametrize("seed", range(4))
def test_against_loops(seed: int) -> None:
    """Three classes of unequal size, two locations that share their normalisation."""
    generated, real = normal(2, 13, 4, seed=seed), 0.5 * normal(2, 17, 4, seed=10 + seed) + 1
    generated, real = generated.double().requires_grad_(), real.double()
    labels, real_labels = classes(13, 3, seed), classes(17, 3, seed + 1)
    found = drift(generated, real, grouped(labels, real_labels), PUBLISHED)
    found.loss.backward()
    loss, force, gradient = plainly(
        *(each.detach().numpy() for each in (generated, real, labels, real_labels)), PUBLISHED)
    assert found.loss.item() == pytest.approx(loss, rel=1e-9)
    assert float(found.force) == pytest.approx(force, rel=1e-9)
    assert generated.grad is not None
    np.testing.assert_allclose(generated.grad.numpy(), gradient, rtol=1e-7, atol=1e-12)


def test_float32_under_autocast() -> None:
    """An offset takes digits away, and autocast would take the rest."""
    generated, real = normal(40, 6, seed=0) + 30, normal(40, 6, seed=1) + 30
    exact = one_class(generated.double(), real.double(), PUBLISHED)
    with torch.autocast("cpu", torch.bfloat16):
        found = one_class(generated, real, PUBLISHED)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(float(exact.loss), rel=1e-3)
    assert float(found.force) == pytest.approx(float(exact.force), rel=1e-3)


# Properties


def gradient_of(generated: Tensor, real: Tensor, labels: Tensor, real_labels: Tensor,
                temperatures: list[float] = PUBLISHED) -> Tensor:
    generated = generated.detach().requires_grad_()
    drift(generated, real, grouped(labels, real_labels), temperatures).loss.backward()
    assert generated.grad is not None
    return generated.grad


def test_the_order_does_not_matter() -> None:
    generated, real = normal(20, 3, seed=0).double(), normal(25, 3, seed=1).double()
    labels, real_labels = classes(20, 3, 2), classes(25, 3, 3)
    ours, theirs = torch.randperm(20), torch.randperm(25)
    torch.testing.assert_close(
        gradient_of(generated[ours], real[theirs], labels[ours], real_labels[theirs]),
        gradient_of(generated, real, labels, real_labels)[ours])


def test_neither_scale_nor_place_matter() -> None:
    generated, real = normal(20, 3, seed=0).double(), normal(25, 3, seed=1).double()
    found, moved = (one_class(factor * generated + offset, factor * real + offset, PUBLISHED)
                    for factor, offset in ((1, 0), (50, -7)))
    torch.testing.assert_close(found, moved)


def test_classes_do_not_see_each_other() -> None:
    """Two far classes, both alike: each is moved as it would be alone."""
    generated, real = normal(15, 3, seed=0).double(), normal(15, 3, seed=1).double()
    same = torch.zeros(15, dtype=torch.int64)
    alone = gradient_of(generated, real, same, same)
    offset, both = torch.tensor([1e3, 0, 0]).double(), torch.cat([same, same + 4])
    together = gradient_of(torch.cat([generated, generated + offset]),
                           torch.cat([real, real + offset]), both, both)
    torch.testing.assert_close(together, torch.cat([alone, alone]) / 2)


def test_no_force_on_who_is_alone() -> None:
    """Neither on the only sample of a class nor on classes without real samples."""
    generated, real = normal(9, 3, seed=0), normal(8, 3, seed=1)
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 3])
    real_labels = torch.tensor([0, 0, 0, 1, 1, 1, 5, 5])
    gradient = gradient_of(generated, real, labels, real_labels)
    assert gradient[:4].abs().min() > 0
    assert not gradient[4:].any()
    # Nobody has anyone: no force, no loss, nothing undefined.
    alone = drift(generated[4:6].requires_grad_(), real, grouped(labels[4:6], real_labels),
                  PUBLISHED)
    alone.loss.backward()
    assert alone.loss.item() == alone.force.item() == 0


def test_nothing_flows_into_real_samples() -> None:
    generated, real = (normal(10, 3, seed=seed).requires_grad_() for seed in (0, 1))
    one_class(generated, real, PUBLISHED).loss.backward()
    assert generated.grad is not None
    assert real.grad is None


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e6])
def test_any_temperature_is_finite(temperature: float) -> None:
    generated, real, same = normal(10, 3, seed=0), normal(12, 3, seed=1), classes(12, 1, 0)
    assert gradient_of(generated, real, same[:10], same, [temperature]).isfinite().all()


def test_identical_samples_are_finite() -> None:
    """All in one place, and with real samples there: no distance to divide by."""
    same = torch.zeros(6, dtype=torch.int64)
    gradient = gradient_of(torch.ones(6, 3), torch.ones(6, 3), same, same)
    assert not gradient.any()


def test_a_high_temperature_compares_means() -> None:
    """That of the real samples with that of the other generated ones."""
    generated, real = normal(8, 3, seed=0).double(), normal(6, 3, seed=1).double() + 1
    same = torch.zeros(8, dtype=torch.int64)
    found = -gradient_of(generated, real, same, same[:6], [1e6])
    wanted = real.mean(dim=0) - (generated.sum(dim=0) - generated) / 7
    torch.testing.assert_close(found / found.norm(), wanted / wanted.norm(), rtol=1e-5, atol=1e-6)


def test_the_force_of_equal_sets() -> None:
    """It does not vanish (a sample's own copy holds it, and those of others push), but falls.

    Nor does that of two draws from one distribution; both fall as more samples are there. A shift
    of the distribution does not fall with it.
    """
    def mean_force(count: int, other: Callable[[Tensor, Tensor], Tensor]) -> float:
        found = []
        for seed in range(5):
            ours, theirs = normal(count, 2, seed=seed), normal(count, 2, seed=50 + seed)
            found.append(float(one_class(ours, other(ours, theirs), [0.2]).force))
        return float(np.mean(found))

    equal, drawn, shifted = (
        [mean_force(count, other) for count in (32, 512)] for other in (
            lambda ours, theirs: ours, lambda ours, theirs: theirs,
            lambda ours, theirs: theirs + 1))
    assert 0 < equal[1] < equal[0] / 4
    assert drawn[1] < drawn[0] / 2
    assert drawn[1] < shifted[1] / 4
    assert shifted[1] > shifted[0] / 2


# As a module


class Fake(FeatureNetwork):
    """Maps of two sizes, whose first channel is the label, and one vector."""

    def __init__(self) -> None:
        super().__init__()
        weight = normal(5, 1, 3, 3, seed=7)
        self.register_buffer("weight", weight, persistent=False)
        self.told: list[Tensor | None] = []

    def forward(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        self.told.append(labels)
        maps = torch.conv2d(samples, self.get_buffer("weight"), padding=1).relu()
        return [maps, nn.functional.avg_pool2d(maps, 3, stride=3), maps.mean(dim=(2, 3))]


def module(*networks: FeatureNetwork) -> Drifting:
    return Drifting(DriftingConfig(), networks)


def test_vectors_of_a_map() -> None:
    """Locations, moments of all and of patches; the last row and column are in no patch."""
    layer = normal(3, 2, 5, 5, seed=0).requires_grad_()
    locations, mean, deviation, patch_means, patch_deviations = described(layer)
    assert locations.shape == patch_means.shape == (PLACES, 3, 2)
    torch.testing.assert_close(mean[0], layer.mean(dim=(2, 3)))
    torch.testing.assert_close(deviation[0], layer.std(dim=(2, 3), correction=0),
                               rtol=1e-4, atol=1e-5)
    every = layer[:, :, :4, :4].reshape(3, 2, 2, 2, 2, 2).transpose(3, 4).flatten(4)
    for found, wanted in ((patch_means, every.mean(-1)),
                          (patch_deviations, every.std(-1, correction=0))):
        wanted = wanted.flatten(2).permute(2, 0, 1)
        torch.testing.assert_close(found.sum(dim=0), wanted.sum(dim=0), rtol=1e-4, atol=1e-5)
    columns = layer.flatten(2).permute(2, 0, 1)
    for vector in locations:
        assert (vector == columns).all(dim=(1, 2)).sum() == 1
    assert [each.shape[0] for each in described(normal(3, 2, 2, 2, seed=1))] == [4, 1, 1]
    for shape in ((3, 9), (3, 9, 1, 1)):
        assert [each.shape for each in described(normal(*shape, seed=1))] == [(1, 3, 9)]


def test_a_flat_map_has_a_gradient() -> None:
    layer = torch.zeros(4, 2, 4, 4, requires_grad=True)
    torch.stack([each.sum() for each in described(layer)]).sum().backward()
    assert layer.grad is not None
    assert layer.grad.isfinite().all()


def test_the_module_averages_over_features() -> None:
    """Raw values alone are one feature; a network's labels are those of its samples."""
    predicted, real = normal(12, 1, 6, 6, seed=0), normal(10, 1, 6, 6, seed=1)
    labels, real_labels = classes(12, 2, 2), classes(10, 2, 3)
    raw = drift(predicted.flatten(1), real.flatten(1), grouped(labels, real_labels), PUBLISHED)
    found = module()(predicted, real, labels, real_labels)
    assert found == {"drifting": raw.loss, "drift_force": raw.force}
    network = Fake()
    torch.manual_seed(0)
    found = module(network)(predicted, real, labels, real_labels)
    assert network.told[0] is real_labels
    assert network.told[1] is labels
    torch.manual_seed(0)
    forces = [drift(*vectors.split([12, 10], dim=1), grouped(labels, real_labels), PUBLISHED).force
              for layer in network(torch.cat([predicted, real])) for vectors in described(layer)]
    assert len(forces) == 5 + 3 + 1
    torch.testing.assert_close(found["drift_force"],
                               torch.stack([raw.force, *forces]).mean())


def test_the_module_is_repeatable_and_has_no_state() -> None:
    predicted, real = normal(12, 1, 6, 6, seed=0).requires_grad_(), normal(10, 1, 6, 6, seed=1)
    loss = module(Fake())
    assert not loss.state_dict()
    assert not list(loss.parameters())
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(predicted, real, None, None)["drifting"]
        found.append(torch.autograd.grad(value, predicted)[0])
    assert found[0].isfinite().all()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_points_by_their_values_alone() -> None:
    spec = SampleSpec(kind="points", shape=[2])
    loss = build_drifting(DriftingConfig(features=[]), spec, CPU, Frozen())
    found = loss(normal(8, 2, seed=0), normal(8, 2, seed=1), None, None)
    assert float(found["drifting"]) > 0


# Training


def eight_gaussians(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (count, 2) on a circle, and which of the eight each is of."""
    of = classes(count, 8, seed)
    angle = of * (math.pi / 4)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * normal(count, 2, seed=seed), of


@pytest.mark.parametrize("conditional", [False, True])
def test_a_generator_is_drawn_onto_the_data(conditional: bool) -> None:
    """From noise and, with classes, a label; no pair is ever seen."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(),
                        nn.Linear(64, 2))
    steps, loss = 400, Drifting(DriftingConfig(), [])

    def generate(count: int, seed: int, labels: Tensor) -> Tensor:
        told = nn.functional.one_hot(labels, 8) * conditional
        made: Tensor = net(torch.cat([normal(count, 2, seed=seed), told], dim=1))
        return made

    def distance() -> float:
        points, labels = eight_gaussians(1000, seed=10**6)
        with torch.no_grad():
            made = generate(1000, 10**6 + 1, labels)
        if conditional:  # classes far apart, so that a point of another class counts
            made, points = (torch.cat([each, 3.0 * labels[:, None]], 1) for each in (made, points))
        return energy_distance(made.numpy(), points.numpy(), resampling(1000, 0, seed=0)).value

    before = distance()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        real, real_labels = eight_gaussians(128, seed=step)
        labels = classes(128, 8, seed=10**5 + step)
        given = (labels, real_labels) if conditional else (None, None)
        value = loss(generate(128, 2 * 10**5 + step, labels), real, *given)["drifting"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    assert distance() < before / 20
