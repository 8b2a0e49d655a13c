"""Evolution of levels: matrix exponentials, their gradients, and which level has which modes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdm_core.operators.levels import SPEED, LevelsConfig, LevelsOperator

SHAPES = [torch.Size(shape) for shape in ((4, 2, 3), (5, 2, 3), (4, 2, 3), (6,), (4, 7))]


def operator(kind: str = "skips", per_pixel: bool = True) -> LevelsOperator:
    config = LevelsConfig.model_validate({"kind": kind, "per_pixel": per_pixel})
    found = LevelsOperator(config, SHAPES).double()
    generator = torch.Generator().manual_seed(0)
    for value in found.parameters():
        value.data = torch.randn(value.shape, generator=generator, dtype=torch.float64) / SPEED
    return found


def levels(batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
            for shape in SHAPES]


def by_matrix_exp(found: LevelsOperator, level: Tensor, number: int, tau: Tensor) -> Tensor:
    """exp(τA) z with A written out as a matrix for every pixel."""
    group = found.groups[number]
    alpha, beta = (found.of_operators(value[None])[group][0].expand(
        found.modes[group][-1], *level.shape[2:]) for value in (found.decay, found.rotation))
    half = len(alpha)
    pixels = level.flatten(2) if level.ndim > 2 else level[:, :, None]
    out = []
    for pixel in range(pixels.shape[2]):
        a, b = (value.reshape(half, -1)[:, pixel].diag_embed() for value in (alpha, beta))
        matrix = torch.cat([torch.cat([a, b], 1), torch.cat([-b, a], 1)])
        powers = torch.linalg.matrix_exp(tau[:, None, None] * matrix)
        evolved = (powers @ pixels[:, : 2 * half, pixel, None])[..., 0]
        out.append(torch.cat([evolved, pixels[:, 2 * half :, pixel]], 1))
    return torch.stack(out, 2).reshape(level.shape)


@pytest.mark.parametrize("per_pixel", [True, False])
@pytest.mark.parametrize("kind", ["skips", "resolutions"])
def test_blocks_and_their_gradients_are_those_of_matrix_exp(kind: str, per_pixel: bool) -> None:
    found, given_levels = operator(kind, per_pixel), levels()
    tau = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    own = found(given_levels, tau)
    exact = [by_matrix_exp(found, level, number, tau)
             for number, level in enumerate(given_levels)]
    for level, expected in zip(own, exact, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(sum(level.sin().sum() for level in each),
                                     list(found.parameters())) for each in (own, exact)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@given(st.floats(0, 1), st.floats(0, 1))
def test_parts_of_the_way_add_up(first: float, second: float) -> None:
    found, given_levels = operator(), levels(1)
    twice = found(found(given_levels, first), second)
    for level, expected in zip(twice, found(given_levels, first + second), strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-10, atol=1e-10)


def test_it_starts_as_the_identity_and_none_stays_it() -> None:
    for kind in ("skips", "none"):
        fresh = LevelsOperator(LevelsConfig.model_validate({"kind": kind}), SHAPES).double()
        for level, same in zip(levels(), fresh(levels(), 1.0), strict=True):
            assert torch.equal(level, same)
    assert not any(value.requires_grad for value in fresh.parameters())
    assert sum(value.numel() for value in fresh.parameters()) == 0


def test_numbers_of_modes() -> None:
    """C/2 a pixel: 12 + 12 + 12 + 3 + 14; shared by equal shapes; or by all pixels."""
    assert operator().decay.numel() == 53
    assert operator("resolutions").decay.numel() == 41
    assert operator("resolutions").groups == [0, 1, 0, 2, 3]
    assert operator(per_pixel=False).decay.numel() == 2 + 2 + 2 + 3 + 2


def test_eigenvalues_are_those_of_one_unit_of_time() -> None:
    found = operator("skips", per_pixel=False)
    alpha, beta = (float(value.detach()[0]) for value in (found.decay, found.rotation))
    matrix = torch.tensor([[alpha, beta], [-beta, alpha]], dtype=torch.float64)
    expected = torch.linalg.eigvals(torch.linalg.matrix_exp(matrix)).to(torch.complex64)
    values = found.eigenvalues()
    assert len(values) == 22
    for value in expected:
        assert float((values - value).abs().min()) < 1e-6
