"""Solvers against exact solutions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdm_core.solvers import SOLVERS, SolverConfig, solve

NFE = {"euler": lambda n: n, "heun": lambda n: 2 * n - 1, "midpoint": lambda n: 2 * n}


def relax(state: Tensor, time: Tensor) -> Tensor:
    """x' = −(1 + t) x, with the solution x₀ exp(−t − t²/2)."""
    return -(1 + time) * state


def error(kind: str, steps: int) -> float:
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    state = torch.ones(1, dtype=torch.float64)
    found = solve(SolverConfig(kind=kind, steps=steps), relax, state, times).state
    return abs(float(found) - math.exp(-1.5))


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_order_of_convergence(kind: str, order: int) -> None:
    observed = math.log2(error(kind, 64) / error(kind, 128))
    assert observed == pytest.approx(order, rel=0.1)


@given(kind=st.sampled_from(sorted(SOLVERS)), steps=st.integers(1, 20))
def test_reported_evaluations_are_those_made(kind: str, steps: int) -> None:
    calls = 0

    def velocity(state: Tensor, time: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return state

    times = torch.linspace(0, 1, steps + 1)
    assert solve(SolverConfig(kind=kind, steps=steps), velocity, torch.ones(1), times).nfe == calls
    assert calls == NFE[kind](steps)


@pytest.mark.parametrize("kind", sorted(SOLVERS))
def test_the_end_of_the_grid_is_never_evaluated(kind: str) -> None:
    """EDM's velocity divides by sigma, which is 0 there."""
    times = torch.tensor([4.0, 1.0, 0.0])
    found = solve(SolverConfig(kind=kind, steps=2), lambda x, t: x / t, torch.ones(1), times)
    assert found.state.isfinite().all()
