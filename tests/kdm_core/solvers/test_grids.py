"""Time grids against the formulas as their papers and diffusers have them, coded anew in NumPy."""

import warnings
from math import cos, exp, log, pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kdm_core.errors import Adapted, KDMError
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_batch
from kdm_core.solvers import AdaptiveSolver, FixedSolver
from kdm_core.solvers.grids import (
    GridConfig,
    IDDPMGrid,
    KarrasGrid,
    LogSNRGrid,
    SigmaGrid,
    TimestepGrid,
    UniformGrid,
    VEGrid,
    VPGrid,
    iddpm_levels,
    noise_levels,
    timestep_indices,
)
from kdm_core.teachers.denoiser import Denoiser, DenoiserConfig
from kdm_core.teachers.flow_matching import FlowMatching, FlowMatchingConfig
from tests.support.teachers import ALPHAS_CUMPROD, MLP, PLANE, discrete

INF = float("inf")
GRIDS = [KarrasGrid(kind="karras"), LogSNRGrid(kind="log_snr"), VEGrid(kind="ve"),
         VPGrid(kind="vp"), IDDPMGrid(kind="iddpm")]


@pytest.mark.parametrize("steps", [2, 18, 40])
def test_karras(steps: int) -> None:
    i = np.arange(steps)
    expected = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    found = noise_levels(KarrasGrid(kind="karras"), steps, 0, INF)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13)


def test_karras_in_numbers() -> None:
    """Three levels with rho = 1: the ends and the middle."""
    grid = KarrasGrid(kind="karras", sigma_min=1.0, sigma_max=4.0, rho=1.0)
    assert noise_levels(grid, 3, 0, INF).tolist() == pytest.approx([4, 2.5, 1])


@pytest.mark.parametrize("steps", [2, 18, 40])
def test_ve(steps: int) -> None:
    """sigma_i² = sigma_max² (sigma_min² / sigma_max²)^(i / (N − 1))."""
    i = np.arange(steps)
    expected = np.sqrt(100.0**2 * (0.02**2 / 100.0**2) ** (i / (steps - 1)))
    found = noise_levels(VEGrid(kind="ve"), steps, 0, INF)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("steps", [2, 18, 40])
def test_vp(steps: int) -> None:
    """sigma(t) = sqrt(exp(beta_d t² / 2 + beta_min t) − 1), t even from 1 to 1e-3."""
    t = 1 + np.arange(steps) / (steps - 1) * (1e-3 - 1)
    expected = np.sqrt(np.exp(19.9 / 2 * t**2 + 0.1 * t) - 1)
    found = noise_levels(VPGrid(kind="vp"), steps, 0, INF)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11)


def test_vp_of_another_range() -> None:
    """The betas that put sigma(1) and sigma(epsilon) at its ends, found by solving for them."""
    found = noise_levels(VPGrid(kind="vp", sigma_min=0.05, sigma_max=30.0), 11, 0, INF).numpy()
    system = np.array([[1 / 2, 1], [1e-6 / 2, 1e-3]])
    beta_d, beta_min = np.linalg.solve(system, np.log(np.array([30.0, 0.05]) ** 2 + 1))
    t = np.linspace(1, 1e-3, 11)
    expected = np.sqrt(np.exp(beta_d / 2 * t**2 + beta_min * t) - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("steps", [2, 18, 59, 123])
def test_iddpm(steps: int) -> None:
    """Every so many-th level; 59 and 123 steps have halves to round."""
    def bar(j: int) -> np.float32:
        return np.sin(np.float32(0.5 * pi) * np.float32(j) / np.float32(1000)
                      / np.float32(1.008)) ** 2

    u = [0.0]
    for j in range(1000, 0, -1):
        u.append(sqrt((u[-1] ** 2 + 1) / max(float(bar(j - 1) / bar(j)), 0.001) - 1))
    table = np.array([level for level in reversed(u) if 0.002 <= level <= 81])
    picked = table[((len(table) - 1) / (steps - 1) * np.arange(steps)).round().astype(int)]
    found = noise_levels(IDDPMGrid(kind="iddpm"), steps, 0, INF)
    np.testing.assert_allclose(found.numpy(), picked, rtol=1e-4)  # sines in single precision


def test_iddpm_levels_are_those_of_the_cosine_schedule() -> None:
    """1 + sigma_j² is the inverse of alpha_bar = cos²(pi/2 (t + 0.008) / 1.008), up to a factor,
    wherever no step is clipped."""
    u = iddpm_levels(1000, 0.001, 0.008, torch.float64)
    alpha_bar = [cos(pi / 2 * (j / 1000 + 0.008) / 1.008) ** 2 for j in (400, 100)]
    found = (1 + u[1000 - 400] ** 2) / (1 + u[1000 - 100] ** 2)
    assert float(found) == pytest.approx(alpha_bar[1] / alpha_bar[0], rel=1e-3)
    assert float(u[-1]) == 0
    assert (u[:-1] > u[1:]).all()


def test_log_snr() -> None:
    found = noise_levels(LogSNRGrid(kind="log_snr", sigma_min=0.01, sigma_max=100.0), 5, 0, INF)
    assert found.tolist() == pytest.approx([100, 10, 1, 0.1, 0.01])
    middle = noise_levels(LogSNRGrid(kind="log_snr"), 3, 0, INF)[1]
    assert float(middle) == pytest.approx(exp((log(0.002) + log(80)) / 2))


@given(grid=st.sampled_from(GRIDS), steps=st.integers(2, 200),
       lowest=st.floats(0, 0.5), highest=st.floats(1, 1000))
def test_levels_fall_within_the_teachers_range(
    grid: SigmaGrid, steps: int, lowest: float, highest: float
) -> None:
    if isinstance(grid, VPGrid):
        lowest, highest = lowest / 10, 10 * highest
    levels = noise_levels(grid, steps, lowest, highest)
    assert levels.shape == (steps,)
    assert levels.dtype == torch.float64
    assert (levels[:-1] >= levels[1:]).all()
    low, high = max(grid.sigma_min, lowest), min(grid.sigma_max, highest)
    assert float(levels.max()) <= high * (1 + 1e-9)
    assert float(levels.min()) >= low * (1 - 1e-9)
    if not isinstance(grid, IDDPMGrid):
        assert float(levels[0]) == pytest.approx(high)
        assert float(levels[-1]) == pytest.approx(low)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.kind)
def test_one_step_starts_at_the_noisiest_level(grid: SigmaGrid) -> None:
    most = float(noise_levels(grid, 10, 0, INF)[0])
    assert noise_levels(grid, 1, 0, INF).tolist() == pytest.approx([most])


@pytest.mark.parametrize("limits", [{"lowest": 90.0, "highest": INF},
                                    {"lowest": 0.0, "highest": 0.001}])
def test_a_range_without_levels_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(KDMError, match=r"^solver\.grid.*sigma_min"):
        noise_levels(KarrasGrid(kind="karras"), 5, **limits)


def test_a_vp_range_on_which_sigma_would_not_fall_is_refused() -> None:
    with pytest.raises(KDMError, match=r"^solver\.grid.*vp"):
        noise_levels(VPGrid(kind="vp", sigma_min=0.5, sigma_max=1.0), 5, 0, INF)


def test_a_range_upside_down_is_refused() -> None:
    with pytest.raises(KDMError, match=r"^solver\.grid"):
        noise_levels(LogSNRGrid(kind="log_snr", sigma_min=3.0, sigma_max=2.0), 5, 0, INF)
    with pytest.raises(KDMError, match="no iddpm level"):
        noise_levels(IDDPMGrid(kind="iddpm", sigma_min=0.002, sigma_max=0.003), 5, 0, INF)


def test_timesteps_in_numbers() -> None:
    def picked(spacing: str, offset: int = 0) -> list[int]:
        grid = TimestepGrid(kind="timesteps", spacing=spacing, offset=offset)
        return timestep_indices(grid, 5, 1000).tolist()

    assert picked("leading") == [800, 600, 400, 200, 0]
    assert picked("leading", 1) == [801, 601, 401, 201, 1]
    assert picked("trailing") == [999, 799, 599, 399, 199]
    assert picked("linspace") == [999, 749, 500, 250, 0]  # 749.25, 499.5, 249.75


@pytest.mark.parametrize("steps", [2, 7, 10, 48, 50, 96, 103, 112, 199, 999, 1000])
def test_timesteps_are_those_of_diffusers(steps: int) -> None:
    """Its schedulers' formulas; the numbers of steps include such with halves to round."""
    expected = {
        "leading": (np.arange(0, steps) * (1000 // steps)).round()[::-1],
        "linspace": np.linspace(0, 999, steps).round()[::-1],
        # arange(1000, 0, −1000/103) has 104 values, by rounding; diffusers then takes a step more.
        "trailing": (np.round(np.arange(1000, 0, -1000 / steps)) - 1)[:steps],
        # Of its DPM-Solver; with as many steps as levels, `leading` stays at the lowest.
        "leading_dpm": (np.arange(0, steps + 1) * (1000 // (steps + 1))).round()[::-1][:-1],
        "linspace_dpm": np.linspace(0, 999, steps + 1).round()[::-1][:-1],
    }
    for spacing, numbers in expected.items():
        found = timestep_indices(TimestepGrid(kind="timesteps", spacing=spacing), steps, 1000)
        np.testing.assert_array_equal(found.numpy(), numbers.astype(np.int64), spacing)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_one_timestep_is_the_noisiest(spacing: str) -> None:
    grid = TimestepGrid(kind="timesteps", spacing=spacing)
    assert timestep_indices(grid, 1, 1000).tolist() == [999]


@pytest.mark.parametrize("end", ["zero", "lowest"])
def test_times_of_a_discrete_teacher_are_its_own_levels(end: str) -> None:
    grid = TimestepGrid(kind="timesteps", spacing="trailing", end=end)
    times = discrete().times(FixedSolver(kind="euler", steps=4, grid=grid))
    table = np.sqrt((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD)
    last = 0.0 if end == "zero" else table[0]
    np.testing.assert_allclose(times.numpy(), [*table[[999, 749, 499, 249]], last], rtol=1e-12)


def test_sigma_grids_are_rounded_to_discrete_levels() -> None:
    times = discrete().times(FixedSolver(kind="euler", steps=7, grid=KarrasGrid(kind="karras")))
    table = np.sqrt((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD)
    wanted = noise_levels(KarrasGrid(kind="karras"), 7, float(table[0]), float(table[-1])).numpy()
    nearest = [table[np.abs(table - level).argmin()] for level in wanted]
    np.testing.assert_allclose(times.numpy(), [*nearest, 0], rtol=1e-12)


def test_times_of_flow_matching() -> None:
    """Even by default; a noise level sigma / alpha is met at t = 1 / (1 + level)."""
    teacher = FlowMatching(FlowMatchingConfig(kind="flow_matching", network=MLP), PLANE)
    even = teacher.times(FixedSolver(kind="euler", steps=4))
    assert even.tolist() == [0, 0.25, 0.5, 0.75, 1]
    grid = LogSNRGrid(kind="log_snr", sigma_min=1 / 3, sigma_max=3.0)
    times = teacher.times(FixedSolver(kind="euler", steps=3, grid=grid))
    assert times.tolist() == pytest.approx([0.25, 0.5, 0.75, 1])
    path = teacher.path(times)
    np.testing.assert_allclose((path.sigma / path.alpha)[:-1].numpy(), [3, 1, 1 / 3])


def test_even_times_of_a_denoiser_run_down_to_zero() -> None:
    teacher = Denoiser(DenoiserConfig(kind="denoiser", network=MLP), PLANE)
    times = teacher.times(FixedSolver(kind="euler", steps=4, grid=UniformGrid(kind="uniform")))
    assert times.tolist() == [80, 60, 40, 20, 0]


def test_timesteps_need_discrete_levels_and_enough_of_them() -> None:
    grid = TimestepGrid(kind="timesteps")
    plain = Denoiser(DenoiserConfig(kind="denoiser", network=MLP), PLANE)
    with pytest.raises(KDMError, match=r"^solver\.grid\.kind.*discrete"):
        plain.times(FixedSolver(kind="euler", steps=4, grid=grid))
    with pytest.raises(KDMError, match="12 steps.*take 10 steps at most"):
        discrete(ALPHAS_CUMPROD[::100]).times(FixedSolver(kind="euler", steps=12, grid=grid))
    assert len(exact(ALPHAS_CUMPROD[::100]).times(FixedSolver(kind="euler", steps=10, grid=grid)))
    far = TimestepGrid(kind="timesteps", offset=300)
    with pytest.raises(KDMError, match="offset 300.*lower offset to 249"):
        discrete().times(FixedSolver(kind="euler", steps=4, grid=far))
    advised = FixedSolver(kind="euler", steps=4, grid=far.model_copy(update={"offset": 249}))
    assert float(discrete().times(advised)[0]) == discrete().highest


@pytest.mark.parametrize("limits", [(0.5, 1.0), (0.3, 1.0), (5.0, 80.0)])
def test_what_is_advised_for_a_vp_grid_that_would_not_fall(limits: tuple[float, float]) -> None:
    low, high = limits
    grid = VPGrid(kind="vp", sigma_min=low, sigma_max=high)
    with pytest.raises(KDMError, match="lower sigma_min, raise epsilon, or use karras"):
        noise_levels(grid, 9, 0, INF)
    for other in (grid.model_copy(update={"sigma_min": low / 50}),
                  grid.model_copy(update={"epsilon": 0.9}),
                  KarrasGrid(kind="karras", sigma_min=low, sigma_max=high)):
        levels = noise_levels(other, 9, 0, INF)
        assert (levels[:-1] > levels[1:]).all()
        assert float(levels[0]) == pytest.approx(high)


@pytest.mark.parametrize("build", [
    lambda: KarrasGrid(kind="karras", sigma_min=0.0),
    lambda: KarrasGrid(kind="karras", rho=0.0),
    lambda: VPGrid(kind="vp", epsilon=1.0),
    lambda: TimestepGrid(kind="timesteps", offset=-1),
    lambda: TimestepGrid(kind="timesteps", spacing="even"),
])
def test_grids_that_make_no_sense_are_refused(build: Any) -> None:
    with pytest.raises(ValidationError):
        build()


class Exact(Denoiser):
    """A teacher with DDPM's levels and the exact denoiser of N(0.6, 0.1²)."""

    def denoise(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None
                ) -> torch.Tensor:
        return 0.6 + 0.01 / (0.01 + time.to(x.dtype) ** 2) * (x - 0.6)


def exact(alphas: Any = ALPHAS_CUMPROD) -> Exact:
    return Exact(discrete(alphas).config, PLANE)


BAR = [cos((t / 1000 + 0.008) / 1.008 * pi / 2) ** 2 for t in range(1001)]
COSINE = np.cumprod([max(b / a, 0.001) for a, b in zip(BAR, BAR[1:], strict=False)])


@pytest.mark.parametrize("alphas", [ALPHAS_CUMPROD, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "leading_dpm",
                                     "linspace_dpm"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10, 25, 50, 334, 400, 500, 501, 600, 999, 1000])
def test_every_count_of_timesteps_keeps_the_mean(alphas: Any, spacing: str, steps: int) -> None:
    """It starts where the noise is all there is: from elsewhere the mean would be drawn to 0."""
    grid = TimestepGrid(kind="timesteps", spacing=spacing)
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Adapted)
        found = exact(alphas).sample(noise, None, FixedSolver(kind="euler", steps=steps, grid=grid))
    assert float(found.state.mean()) == pytest.approx(0.6, abs=0.005)
    # 1000 of 1001 rounded levels are one too many.
    assert found.nfe == steps - ((spacing, steps) == ("linspace_dpm", 1000))


def test_timesteps_that_would_begin_below_the_noise_are_said() -> None:
    """Where those of diffusers begin with noise, they are taken as they are."""
    for steps in (501, 600, 334, 2, 1):
        with pytest.warns(Adapted, match=rf"{steps} steps of `leading` spacing.*noise level"):
            times = exact().times(FixedSolver(kind="euler", steps=steps,
                                              grid=TimestepGrid(kind="timesteps")))
        assert len(times) == steps + 1
        assert float(times[0]) == exact().highest
    grid = TimestepGrid(kind="timesteps", offset=1)
    for steps in (5, 30, 50, 103, 112, 500, 999):
        indices = timestep_indices(grid, steps, 1000)
        times = exact().times(FixedSolver(kind="euler", steps=steps, grid=grid))
        np.testing.assert_array_equal(times[:-1].numpy(), exact().levels()[indices].numpy())
        assert indices[-1] == 1


def test_even_steps_that_would_end_between_levels_are_refused_with_those_that_do_not() -> None:
    grid = TimestepGrid(kind="timesteps", spacing="linspace_euler")
    rounded = grid.model_copy(update={"spacing": "linspace"})
    teacher, whole = discrete(), []
    for steps in (*range(1, 120), 334, 999, 1000):
        solver = FixedSolver(kind="euler", steps=steps, grid=grid)
        exactly = np.linspace(0, 999, steps) if steps > 1 else np.array([999.0])
        if (exactly == exactly.round()).all():
            whole.append(str(steps))
            other = FixedSolver(kind="euler", steps=steps, grid=rounded)
            assert torch.equal(teacher.times(solver), teacher.times(other))
        else:
            with pytest.raises(KDMError, match=r"^solver\.steps: .*spacing is linspace") as refused:
                teacher.times(solver)
    assert f"take {', '.join(whole[1:])} steps" in str(refused.value)


@pytest.mark.parametrize("levels", [10, 100, 1000, 4000])
def test_a_grid_of_iddpm_begins_at_the_noisiest_level(levels: int) -> None:
    """Whatever precision a teacher's limits are known in."""
    single = iddpm_levels(levels, 0.001, 0.008, torch.float32)
    grid = IDDPMGrid(kind="iddpm", levels=levels, sigma_min=1e-6, sigma_max=1e9)
    double = noise_levels(grid, levels, 0, INF)
    for lowest, highest in ((float(single[-2]), float(single[0])),
                            (float(np.float32(double[-1] * (1 + 1e-7))),
                             float(np.float32(double[0] * (1 - 1e-7))))):
        found = noise_levels(grid, levels, lowest, highest)
        assert len(found.unique()) == levels
        assert float(found[0]) == pytest.approx(float(single[0]), rel=1e-4)


COINCIDING: list[tuple[GridConfig, int]] = [
    (KarrasGrid(kind="karras"), 100), (LogSNRGrid(kind="log_snr"), 300), (VEGrid(kind="ve"), 300),
    (VPGrid(kind="vp"), 1500), (IDDPMGrid(kind="iddpm"), 1500),
    (TimestepGrid(kind="timesteps", end="lowest"), 50),
    (KarrasGrid(kind="karras", sigma_min=5.0, sigma_max=5.0), 18)]


@pytest.mark.parametrize(("grid", "steps"), COINCIDING, ids=lambda value: str(value)[:20])
def test_levels_that_coincide_are_visited_once(grid: GridConfig, steps: int) -> None:
    with pytest.warns(Adapted, match=rf"of the {steps} steps of the grid {grid.kind}, \d+ begin"):
        times = exact().times(FixedSolver(kind="euler", steps=steps, grid=grid))
    assert len(times) < steps + 1
    assert (times[:-1] > times[1:]).all()


def test_a_teacher_of_few_levels_can_be_saved() -> None:
    """What its network is told of noise and samples is found with as many steps as there are."""
    grid = TimestepGrid(kind="timesteps", offset=1)
    for count in (4, 10, 17):
        config = discrete(ALPHAS_CUMPROD[:: 1000 // count + 1]).config
        teacher = Denoiser(config.model_copy(update={"grid": grid}), PLANE)
        samples, noise = teacher.network_times()
        assert samples < noise


@pytest.mark.parametrize("kind", ["euler", "heun", "midpoint", "rk4", "dpmpp_2m", "dopri5"])
def test_a_teacher_of_discrete_levels_is_solved_between_distinct_ones(kind: str) -> None:
    """100 Karras steps over DDPM's levels, two of which coincide; what is recorded is what ran."""
    grid, teacher = KarrasGrid(kind="karras"), exact()
    solver: Any = (AdaptiveSolver(kind="dopri5", steps=100, grid=grid) if kind == "dopri5"
                   else FixedSolver(kind=kind, steps=100, grid=grid))
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(Adapted, match="100 steps.*98 steps are taken"):
        found = teacher.sample(noise, None, solver, "fp32", keep_states=True)
        store = plan_store(PairsConfig(solver=solver, train=2, validation=2, test=2, states=97,
                                       sample_dtype="float32"), teacher, "t", None, 0,
                           torch.device("cpu"))
    assert found.states is not None and found.states.isfinite().all()
    assert len(found.states) == 99 == len(set(store.times)) == len(store.times)
    assert len({state.position for state in store.states}) == 97
    # The flow carries 0.6 + d to 0.6 + 0.1 d / √(0.01 + sigma²).
    start = store.noise_scale * noise.double()
    truth = 0.6 + (start - 0.6) * 0.1 / sqrt(0.01 + store.times[0] ** 2)
    # The last step, from the lowest level 0.01 to none, is Euler's.
    torch.testing.assert_close(found.state, truth.float(), rtol=0,
                               atol=0.02 if kind == "euler" else 0.005)
    assert store.nfe == (None if kind == "dopri5" else found.nfe)


def test_pairs_of_a_store_run_between_its_own_times() -> None:
    """Those that an earlier version chose stay the same pairs when they are repaired."""
    config = PairsConfig(solver=FixedSolver(kind="heun", steps=3, grid=KarrasGrid(kind="karras")),
                         train=2, validation=2, test=2, states=2, batch=4, shard=4, chunk=4,
                         sample_dtype="float32")
    store = plan_store(config, exact(), "t", None, 0, torch.device("cpu"))
    older = store.model_copy(update={
        "times": [5.0, 5.0, 1.0, 0.0],
        "states": [state.model_copy(update={"place": place})
                   for state, place in zip(store.states, (1, 2), strict=True)]})
    block, nfe = sample_batch(older, exact(), 0, torch.device("cpu"))
    times = torch.tensor([5.0, 1.0, 0.0], dtype=torch.float64)
    expected = exact().sample(torch.from_numpy(block.noise).float(), None, config.solver,
                              older.precision, times=times)
    assert nfe == expected.nfe == 3
    np.testing.assert_array_equal(block.sample, expected.state.numpy())
    assert block.trajectory is not None
    np.testing.assert_allclose(block.trajectory[:, 0] * store.states[0].scale,
                               expected_start(block.noise), rtol=2e-3, atol=1e-3)


def expected_start(noise: Any) -> Any:
    """The state at the noise level 5."""
    return noise.astype("float32") * sqrt(26)
