"""Solvers against closed forms and against each other, in float64.

The order of convergence is the slope of log error over log step. It is defined for grids that are
refined as one smooth map of [0, 1], away from points where the velocity has no value: here grids
that end at a positive noise level, or that run evenly over flow matching's path, which has no such
point. (The step that EDM takes from there to no noise does not shrink with the others.)
"""

import builtins
from math import exp, log, log2
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdm_core.errors import DivergedError, KDMError
from kdm_core.networks import MLPConfig
from kdm_core.samples import SampleSpec
from kdm_core.solvers import AdaptiveSolver, FixedSolver, Path, adaptive, solve
from kdm_core.solvers.grids import KarrasGrid
from kdm_core.teachers import Teacher
from kdm_core.teachers.base import Bound
from kdm_core.teachers.denoiser import Denoiser, DenoiserConfig
from kdm_core.teachers.exact import GaussianMixture, GaussianMixtureConfig

KINDS = ["euler", "heun", "midpoint", "rk4", "dpmpp_2m"]
ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "dpmpp_2m": 2}
PLANE = SampleSpec(kind="points", shape=[2], sigma_data=1.0)
PRECISE = AdaptiveSolver(kind="dopri5", tolerance=1e-12)


def exact(components: int) -> GaussianMixture:
    """One tilted Gaussian, or two that overlap."""
    config = GaussianMixtureConfig(kind="gaussian_mixture", components=components)
    teacher = GaussianMixture(config, PLANE)
    covariances = torch.tensor([[[1.0, 0.6], [0.6, 0.8]], [[0.5, 0.0], [0.0, 0.9]]])
    teacher.describe(torch.ones(components), torch.tensor([[1.0, -0.5], [-1.0, 0.5]])[:components],
                     covariances[:components])
    return teacher


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Regular(Bound):
    """A teacher's ODE on a stretch that does not end where its velocity has no value."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(teacher, None, "fp32")
        self.ends_singular = False


class MixtureFlow:
    """The exact flow-matching ODE, x = (1 − t) ε + t x₀, of Gaussians N(m_k, s_k I) of one weight.

    E[x₀ | x] = Σ r_k (m_k + t s_k / total_k (x − t m_k)), total_k = t² s_k + (1 − t)²; in the
    velocity E[x₀ − ε | x] the factor is (t s_k − (1 − t)) / total_k.
    """

    ends_singular = False

    def __init__(self, *components: tuple[float, float, float]) -> None:
        table = torch.tensor(components, dtype=torch.float64)
        self.means, self.variances = table[:, :2], table[:, 2]

    def shares(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centred = x[:, None] - t * self.means
        total = t**2 * self.variances + (1 - t) ** 2
        score = -(centred**2).sum(-1) / (2 * total) - total.log()  # two dimensions
        return score.softmax(1)[..., None], centred, total

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        shares, centred, total = self.shares(x, t)
        return (shares * (self.means + (t * self.variances / total)[:, None] * centred)).sum(1)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        shares, centred, total = self.shares(x, t)
        factor = ((t * self.variances - (1 - t)) / total)[:, None]
        return (shares * (self.means + factor * centred)).sum(1)

    def path(self, t: Tensor) -> Path:
        return Path(t, 1 - t)


ONE_FLOW = MixtureFlow((0.7, -0.4, 0.6))
TWO_FLOW = MixtureFlow((0.8, 0.0, 0.5), (-0.8, 0.3, 0.3))


def falling(steps: int, start: float = 10.0, end: float = 0.1) -> Tensor:
    """Noise levels whose root falls evenly, as in EDM."""
    return torch.linspace(start ** (1 / 7), end ** (1 / 7), steps + 1, dtype=torch.float64) ** 7


def order(kind: str, ode: Any, state: Tensor, grid: Any, truth: Tensor, steps: int) -> float:
    """log2 of the ratio of the errors with `steps` and twice as many."""
    errors = []
    for n in (steps, 2 * steps):
        found = solve(FixedSolver(kind=kind, steps=n), ode, state, grid(n)).state
        errors.append(float((found - truth).norm()))
    return log2(errors[0] / errors[1])


@pytest.mark.parametrize("kind", KINDS)
def test_order_on_a_gaussian(kind: str) -> None:
    """The midpoint method gains an order, since the squared distance from the mean is a quadratic
    function of time: in each axis x' = a x, a = sigma / (s + sigma²), and a step's error of third
    order, a''/24 + a a'/4 + a³/6, is 0."""
    teacher, state = exact(1), 10 * noise(32, 2)
    truth = teacher.flow_map(state, 10.0, 0.1)
    observed = order(kind, Regular(teacher), state, falling, truth, 64)
    assert observed == pytest.approx({**ORDERS, "midpoint": 3}[kind], rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_order_on_a_mixture(kind: str) -> None:
    ode, state = Regular(exact(2)), 10 * noise(32, 2)
    truth = solve(PRECISE, ode, state, falling(2)).state
    assert order(kind, ode, state, falling, truth, 128) == pytest.approx(ORDERS[kind], rel=0.1)


def even(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["euler", "heun", "midpoint", "rk4"])
def test_order_on_the_whole_path_of_flow_matching(kind: str) -> None:
    """From pure noise to none. Heun's last step, an Euler step, costs it no order: its error is
    of second order and it is one step."""
    state = noise(32, 2)
    truth = solve(PRECISE, TWO_FLOW, state, even(2)).state
    assert order(kind, TWO_FLOW, state, even, truth, 32) == pytest.approx(ORDERS[kind], rel=0.1)


@pytest.mark.parametrize("kind", ["euler", "heun", "midpoint", "rk4"])
def test_order_on_the_flow_of_a_gaussian(kind: str) -> None:
    """x₁ = mean + sqrt(s) x₀; the midpoint method gains an order here, too."""
    state = noise(32, 2)
    truth = ONE_FLOW.means + ONE_FLOW.variances.sqrt() * state
    expected = {**ORDERS, "midpoint": 3}[kind]
    assert order(kind, ONE_FLOW, state, even, truth, 32) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("steps", [64, 512])
@pytest.mark.parametrize("ode", [ONE_FLOW, TWO_FLOW], ids=["gaussian", "mixture"])
def test_order_of_dpm_solver_from_pure_noise(ode: MixtureFlow, steps: int) -> None:
    """Its steps in log SNR do not shrink next to the ends of the path, where it is infinite: the
    step i from an end has length log(i + 1) − log(i). Their errors, h² / i, sum to h² log n."""
    state = noise(32, 2)
    truth = solve(PRECISE, ode, state, even(2)).state
    observed = order("dpmpp_2m", ode, state, even, truth, steps)
    assert observed + log2(log(2 * steps) / log(steps)) == pytest.approx(2, abs=0.06)


@pytest.mark.parametrize("ode", [ONE_FLOW, TWO_FLOW], ids=["gaussian", "mixture"])
def test_order_of_dpm_solver_inside_the_path(ode: MixtureFlow) -> None:

    def inside(steps: int) -> Tensor:
        return 0.1 + 0.8 * even(steps)

    state = noise(32, 2)
    truth = solve(PRECISE, ode, state, inside(2)).state
    assert order("dpmpp_2m", ode, state, inside, truth, 64) == pytest.approx(2, rel=0.05)


def test_dopri5_keeps_its_tolerance() -> None:
    """Also at times of the grid in between, where it interpolates."""
    teacher, state = exact(1), 10 * noise(32, 2)
    times = falling(5)
    evaluations = []
    for tolerance in (1e-4, 1e-7, 1e-10):
        found = solve(AdaptiveSolver(kind="dopri5", tolerance=tolerance), Regular(teacher), state,
                      times, keep_states=True)
        assert found.states is not None
        assert len(found.states) == 6
        for time, at in zip(times, found.states, strict=True):
            truth = teacher.flow_map(state, 10.0, float(time))
            assert float((at - truth).abs().max()) < 100 * tolerance
        evaluations.append(found.nfe)
    assert evaluations == sorted(set(evaluations))
    assert evaluations[0] < 100


def test_dopri5_solves_the_gaussian_flow_to_no_noise() -> None:
    """All of a teacher's way, with the single step at its end: relative error sigma_min² / 2s."""
    teacher = exact(1)
    grid = KarrasGrid(kind="karras", sigma_min=1e-4)
    solver = AdaptiveSolver(kind="dopri5", tolerance=1e-9, grid=grid)
    found = teacher.sample(noise(32, 2).float(), None, solver, "fp32")
    truth = teacher.flow_map(80 * noise(32, 2), 80.0)
    torch.testing.assert_close(found.state, truth.float(), rtol=1e-5, atol=1e-5)


@given(steps=st.integers(2, 8), rising=st.booleans())
@settings(max_examples=20)
def test_dopri5_never_leaves_the_grid(steps: int, rising: bool) -> None:
    """Past its end a network has never been trained, or sigma is negative."""
    seen = []

    class Recorded(MixtureFlow):
        def velocity(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(float(t))
            return super().velocity(x, t)

    ends = (0.1, 0.9) if rising else (0.9, 0.1)
    times = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    solve(AdaptiveSolver(kind="dopri5"), Recorded((0.7, -0.4, 0.6)), noise(4, 2), times)
    assert min(seen) >= 0.1 - 1e-12
    assert max(seen) <= 0.9 + 1e-12


@pytest.mark.parametrize("kind", [*KINDS, "dopri5"])
@pytest.mark.parametrize("levels", [[10.0, 4.0, 4.0, 1.0, 0.0], [10.0, 10.0, 4.0, 4.0, 4.0, 0.0],
                                    [10.0, 4.0, 1.0, 0.0, 0.0], [10.0, 10.0, 4.0, 1.0, 1.0],
                                    [10.0, 10.0, 0.0], [4.0, 4.0]])
def test_times_that_coincide_are_one(kind: str, levels: list[float]) -> None:
    """As rounding to discrete noise levels makes them."""
    times = torch.tensor(levels, dtype=torch.float64)
    ode, place = Bound(exact(1), None, "fp32"), [sorted(set(levels))[::-1].index(t) for t in levels]
    solver = PRECISE if kind == "dopri5" else FixedSolver(kind=kind, steps=len(levels) - 1)
    found = solve(solver, ode, noise(4, 2), times, keep_states=True)
    once = solve(solver, ode, noise(4, 2), times.unique().flip(0), keep_states=True)
    assert found.states is not None
    assert once.states is not None
    assert found.states.isfinite().all()
    assert torch.equal(found.states, once.states[place])
    assert torch.equal(found.state, once.state)
    assert found.nfe == once.nfe


class Blowup:
    """x' = x², which from 1 is infinite at t = 1."""

    ends_singular = False

    def velocity(self, state: Tensor, time: Tensor) -> Tensor:
        return state**2

    denoise = velocity

    def path(self, time: Tensor) -> Path:
        return Path(time, 1 - time)


class Undefined(Blowup):
    def velocity(self, state: Tensor, time: Tensor) -> Tensor:
        return state / 0

    denoise = velocity


class Jagged(Blowup):
    """A velocity that no step but the shortest makes smooth."""

    def __init__(self) -> None:
        self.sign = 1

    def velocity(self, state: Tensor, time: Tensor) -> Tensor:
        self.sign = -self.sign
        return torch.full_like(state, self.sign * 1e12)

    denoise = velocity


@pytest.mark.parametrize(("ode", "start", "message"), [
    (Blowup(), 0.0, "no step short enough|not finite"),
    (Undefined(), 0.0, "not finite at time 0:"),
    (Jagged(), 0.0, "after 1000 steps"),
    (Jagged(), 1e6, r"no step short enough at time 1e\+06"),  # where numbers are farther apart
])
def test_dopri5_says_that_it_cannot_go_on(
    monkeypatch: pytest.MonkeyPatch, ode: Blowup, start: float, message: str
) -> None:
    monkeypatch.setattr(adaptive, "MAX_STEPS", 1000)
    times = start + torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    with pytest.raises(DivergedError, match=message) as raised:
        solve(AdaptiveSolver(kind="dopri5"), ode, torch.ones(3, 2, dtype=torch.float64), times)
    assert "solver: " in str(raised.value)


def test_dopri5_without_torchdiffeq(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name == "torchdiffeq":
            raise ImportError(name)
        return load(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(KDMError, match="pip install torchdiffeq"):
        solve(AdaptiveSolver(kind="dopri5"), ONE_FLOW, noise(4, 2), torch.linspace(0, 1, 3))


class CountedFlow(MixtureFlow):
    calls = 0

    def shares(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.calls += 1
        return super().shares(x, t)


NFE = {  # of n steps, where the velocity has a value at the end and where it has none
    "euler": (lambda n: n, lambda n: n),
    "heun": (lambda n: 2 * n - 1, lambda n: 2 * n - 1),
    "midpoint": (lambda n: 2 * n, lambda n: 2 * n - 1),
    "rk4": (lambda n: 4 * n, lambda n: 4 * n - 3),
    "dpmpp_2m": (lambda n: n, lambda n: n),
}


@given(kind=st.sampled_from([*KINDS, "dopri5"]), steps=st.integers(2, 12), singular=st.booleans())
def test_reported_evaluations_are_those_made(kind: str, steps: int, singular: bool) -> None:
    ode = CountedFlow((0.7, -0.4, 0.6))
    ode.ends_singular = singular
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if kind == "dopri5":
        assert solve(AdaptiveSolver(kind="dopri5"), ode, noise(2, 2), times).nfe == ode.calls
    else:
        assert solve(FixedSolver(kind=kind, steps=steps), ode, noise(2, 2), times).nfe == ode.calls
        assert ode.calls == NFE[kind][singular](steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_states_are_those_at_all_times(kind: str, steps: int) -> None:
    times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    solver, state = FixedSolver(kind=kind, steps=steps), noise(3, 2)
    bare = solve(solver, TWO_FLOW, state, times)
    kept = solve(solver, TWO_FLOW, state, times, keep_states=True)
    assert bare.states is None
    assert kept.states is not None
    assert kept.states.shape == (steps + 1, 3, 2)
    assert torch.equal(kept.states[0], state)
    assert torch.equal(kept.states[-1], bare.state)
    assert torch.equal(kept.state, bare.state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype(kind: str, dtype: torch.dtype) -> None:
    times = torch.tensor([4.0, 2.0, 1.0, 0.0], dtype=dtype)
    found = solve(FixedSolver(kind=kind, steps=3), Bound(exact(2), None, "fp32"),
                  noise(3, 2).to(dtype), times).state
    assert found.dtype == dtype
    assert found.isfinite().all()  # the velocity is 0/0 at the end


def test_dpm_solver_against_the_algorithm_as_it_is_written() -> None:
    """Algorithm 2 of the paper, in numbers, with the data prediction of the exact flow."""
    steps, x = 6, noise(4, 2)
    times = [0.1 + 0.8 * i / steps for i in range(steps + 1)]
    found = solve(FixedSolver(kind="dpmpp_2m", steps=steps), TWO_FLOW, x,
                  torch.tensor(times, dtype=torch.float64)).state
    lam = [log(t / (1 - t)) for t in times]
    q: list[Tensor] = []
    for i in range(1, steps + 1):
        q.append(TWO_FLOW.denoise(x, torch.tensor(times[i - 1], dtype=torch.float64)))
        h = lam[i] - lam[i - 1]
        d = q[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        x = (1 - times[i]) / (1 - times[i - 1]) * x - times[i] * (exp(-h) - 1) * d
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


def test_dpm_solver_is_of_first_order_where_log_snr_is_infinite() -> None:
    """From pure noise a step goes to sigma' x + alpha' D, to no noise it goes to D itself, and the
    step after the first extrapolates nothing."""
    times = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    found = solve(FixedSolver(kind="dpmpp_2m", steps=3), TWO_FLOW, noise(4, 2), times,
                  keep_states=True).states
    assert found is not None
    x, _, second, last = found
    first = 0.75 * x + 0.25 * TWO_FLOW.denoise(x, times[0])
    torch.testing.assert_close(found[1], first, rtol=1e-12, atol=1e-12)
    ratio = 0.5 / 0.75
    plain = ratio * first + (0.5 - ratio * 0.25) * TWO_FLOW.denoise(first, times[1])
    torch.testing.assert_close(second, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, TWO_FLOW.denoise(second, times[2]), rtol=1e-12, atol=1e-12)


@given(shift=st.floats(-3, 3), scale=st.floats(0.2, 5), kind=st.sampled_from(KINDS))
def test_solvers_commute_with_affine_maps_of_the_data(
    shift: float, scale: float, kind: str
) -> None:
    """Data scaled and shifted, noise levels scaled: the solution is scaled and shifted."""
    plain, moved = exact(2), exact(2)
    moved.means.copy_(scale * plain.means + shift)
    moved.variances.copy_(scale**2 * plain.variances)
    x, times = 10 * noise(4, 2), falling(6)
    solver = FixedSolver(kind=kind, steps=6)
    expected = scale * solve(solver, Regular(plain), x, times).state + shift
    found = solve(solver, Regular(moved), scale * x + shift, scale * times).state
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_heun_on_a_denoiser_is_algorithm_1_of_edm() -> None:
    """The deterministic sampler (S_churn = 0), as the paper writes it down, in NumPy."""
    torch.manual_seed(0)
    spec = SampleSpec(kind="points", shape=[2], label_names=["a", "b"], sigma_data=0.5)
    network = MLPConfig(kind="mlp", width=16, blocks=1)
    teacher = Denoiser(DenoiserConfig(kind="denoiser", network=network), spec)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    labels = torch.tensor([0, 1, 1, 0, -1])
    start = noise(5, 2).float()

    @torch.inference_mode()
    def denoiser(x: Any, sigma: float) -> Any:
        return teacher.denoise(torch.from_numpy(x), torch.tensor(sigma), labels).numpy()

    n, low, high, rho = 18, 0.002, 80.0, 7.0
    t = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
         for i in range(n)] + [0.0]
    x = start.double().numpy() * t[0]
    for i in range(n):
        d = (x - denoiser(x, t[i])) / t[i]
        x_next = x + (t[i + 1] - t[i]) * d
        if t[i + 1] != 0:
            d_prime = (x_next - denoiser(x_next, t[i + 1])) / t[i + 1]
            x_next = x + (t[i + 1] - t[i]) * (d / 2 + d_prime / 2)
        x = x_next
    found = teacher.sample(start, labels, FixedSolver(kind="heun", steps=n), "fp32", True)
    assert found.nfe == 35
    assert found.states is not None
    np.testing.assert_allclose(found.states[-1].numpy(), x, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.state.numpy(), found.states[-1].numpy().astype("float32"))


@pytest.mark.parametrize("config", [{"kind": "heun", "steps": 0}, {"kind": "heun"},
                                    {"kind": "dopri5", "tolerance": 0.0},
                                    {"kind": "dopri5", "steps": 1}, {"kind": "leapfrog"}])
def test_solvers_that_make_no_sense_are_refused(config: dict[str, Any]) -> None:
    from pydantic import TypeAdapter, ValidationError

    from kdm_core.solvers import SolverConfig
    with pytest.raises(ValidationError):
        TypeAdapter(SolverConfig).validate_python(config)
