"""Preconditionings against the formulas of their papers, coded anew, and against each other."""

from math import exp, log, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from kdm_core.networks import MLPConfig
from kdm_core.samples import SampleSpec
from kdm_core.teachers.denoiser import Denoiser, DenoiserConfig
from kdm_core.teachers.preconditioning import (
    DiscretePreconditioning,
    EDMPreconditioning,
    IDDPMPreconditioning,
    Preconditioning,
    PreconditioningConfig,
    VEPreconditioning,
    VPPreconditioning,
    build_preconditioning,
)

SIGMA_DATA = 0.7
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # DDPM's linear schedule
TABLE = np.sqrt((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD)
SIGMAS = np.geomspace(0.05, 60, 50)
LEVELS = st.floats(0.01, 80)


def discrete(prediction: Any = "epsilon", clip: float | None = None) -> DiscretePreconditioning:
    return DiscretePreconditioning(kind="discrete", prediction=prediction, clip=clip,
                                   alphas_cumprod=ALPHAS_CUMPROD.tolist())


CONFIGS: dict[str, PreconditioningConfig] = {
    "edm": EDMPreconditioning(), "vp": VPPreconditioning(kind="vp"),
    "ve": VEPreconditioning(kind="ve"), "iddpm": IDDPMPreconditioning(kind="iddpm"),
    "discrete": discrete(),
}
BUILT = {kind: build_preconditioning(config, SIGMA_DATA) for kind, config in CONFIGS.items()}


def check(made: Preconditioning, *expected: Any) -> None:
    """c_skip, c_out, c_in, c_noise at SIGMAS."""
    found = made.coefficients(torch.from_numpy(SIGMAS).float())
    for name, ours, wanted in zip(found._fields, found, expected, strict=True):
        full = np.broadcast_to(wanted, SIGMAS.shape)
        np.testing.assert_allclose(ours.numpy(), full, rtol=2e-5, atol=1e-6, err_msg=name)


@given(sigma=LEVELS)
def test_edm_keeps_all_at_unit_variance(sigma: float) -> None:
    """The requirements from which EDM derives its coefficients (appendix B.6): input and target
    have variance 1, and no other c_skip with them has a smaller c_out."""
    c = BUILT["edm"].coefficients(torch.tensor(sigma, dtype=torch.float64))
    data = SIGMA_DATA**2
    assert float(c.input**2) * (sigma**2 + data) == pytest.approx(1)

    def out_squared(skip: float) -> float:
        return (1 - skip) ** 2 * data + skip**2 * sigma**2

    skip = float(c.skip)
    assert float(c.out**2) == pytest.approx(out_squared(skip))
    assert out_squared(skip) <= min(out_squared(skip - 1e-3), out_squared(skip + 1e-3))
    assert float(c.noise) == pytest.approx(log(sigma) / 4)


def test_vp() -> None:
    """A noise predictor of x / sqrt(1 + sigma²) at time t, where sigma² + 1 = exp(∫ beta), beta
    from 0.1 to 20; the time found by bisection."""
    def time(sigma: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            reached = exp(0.1 * middle + 19.9 * middle**2 / 2) - 1 >= sigma**2
            low, high = (low, middle) if reached else (middle, high)
        return low

    check(BUILT["vp"], 1, -SIGMAS, 1 / np.sqrt(1 + SIGMAS**2),
          [999 * time(sigma) for sigma in SIGMAS])
    assert BUILT["vp"].highest == pytest.approx(sqrt(exp(10.05) - 1))
    assert BUILT["vp"].lowest == pytest.approx(sqrt(exp(1e-6 + 9.95e-10) - 1), rel=1e-6)


def test_ve() -> None:
    check(BUILT["ve"], 1, SIGMAS, 1, np.log(SIGMAS / 2))
    assert (BUILT["ve"].lowest, BUILT["ve"].highest) == (0.02, 100)


def test_iddpm() -> None:
    """A noise predictor at the index of the nearest level, counted from the least noise."""
    bars = np.sin(np.pi / 2 * np.arange(1001) / 1000 / 1.008) ** 2
    u = [0.0]
    for j in range(1000, 0, -1):
        u.append(sqrt((u[-1] ** 2 + 1) / max(bars[j - 1] / bars[j], 0.001) - 1))
    table = np.array(u[1:])
    steps = [np.abs(table - sigma).argmin() for sigma in SIGMAS]
    check(BUILT["iddpm"], 1, -SIGMAS, 1 / np.sqrt(1 + SIGMAS**2), steps)
    levels = BUILT["iddpm"].levels()
    assert levels is not None
    np.testing.assert_allclose(levels.numpy(), table, rtol=1e-3)  # it computes in single precision
    assert BUILT["iddpm"].extra_outputs == 2


def test_discrete() -> None:
    """The noise of the nearest level, given the state of variance-preserving diffusion."""
    steps = [np.abs(TABLE - sigma).argmin() for sigma in SIGMAS]
    check(BUILT["discrete"], 1, -SIGMAS, 1 / np.sqrt(1 + SIGMAS**2), steps)
    levels = BUILT["discrete"].levels()
    assert levels is not None
    np.testing.assert_allclose(levels.numpy(), TABLE, rtol=1e-12)
    assert BUILT["discrete"].lowest == pytest.approx(TABLE[0])
    assert BUILT["discrete"].highest == pytest.approx(TABLE[-1])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@given(step=st.integers(0, 999))
def test_predictions_of_one_denoiser_agree(prediction: str, step: int) -> None:
    """Of x_vp = alpha x₀ + sigma ε with known x₀ and ε, each output gives back x₀."""
    alpha = sqrt(ALPHAS_CUMPROD[step])
    sigma = sqrt(1 - ALPHAS_CUMPROD[step])
    clean, noise = torch.tensor([0.3, -1.2, 0.8]), torch.tensor([-0.5, 1.5, 0.1])
    output = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean,
              "sample": clean}[prediction]
    made = build_preconditioning(discrete(prediction), SIGMA_DATA)
    level = torch.tensor(TABLE[step], dtype=torch.float64)
    c = made.coefficients(level)
    state = alpha * clean + sigma * noise
    torch.testing.assert_close(c.input * (state / alpha), state, check_dtype=False)
    found = c.skip * (state / alpha) + c.out * output
    torch.testing.assert_close(found, clean, rtol=1e-3, atol=1e-4, check_dtype=False)
    assert int(c.noise) == step


@pytest.mark.parametrize("kind", list(CONFIGS))
@given(sigma=LEVELS)
def test_rounding_is_to_the_nearest_level_and_idempotent(kind: str, sigma: float) -> None:
    made = BUILT[kind]
    once = made.round(torch.tensor(sigma, dtype=torch.float64))
    assert once.dtype == torch.float64
    assert torch.equal(made.round(once), once)
    levels = made.levels()
    if levels is None:
        assert float(once) == sigma
    else:
        assert once in levels
        # In float32, in which two levels may be equally near.
        assert float((once - sigma).abs()) <= float((levels - sigma).abs().min()) + 1e-5
        assert torch.equal(made.round(levels), levels)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_coefficients_take_any_shape(kind: str) -> None:
    single = BUILT[kind].coefficients(torch.tensor(0.5))
    many = BUILT[kind].coefficients(torch.full((3, 1, 1, 1), 0.5))
    for one, all_ in zip(single, many, strict=True):
        assert torch.equal(all_, one.expand(3, 1, 1, 1))


def denoiser(config: PreconditioningConfig, output: Any) -> Denoiser:
    """A denoiser whose network is a function of what it is given."""
    network = MLPConfig(kind="mlp", width=8, blocks=1)
    teacher = Denoiser(DenoiserConfig(kind="denoiser", network=network, preconditioning=config),
                       SampleSpec(kind="points", shape=[2], sigma_data=SIGMA_DATA))

    def forward(x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        result: Tensor = output(x, time)
        return result

    teacher.network.forward = forward  # type: ignore[method-assign, assignment]
    return teacher


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_denoiser_is_made_of_its_network(kind: str) -> None:
    """D = c_skip x + c_out F(c_in x; c_noise), with a variance head that is left out."""
    seen = []

    def output(x: Tensor, time: Tensor) -> Tensor:
        seen.append((x, time))
        return torch.cat([x.cos(), 1e6 * x], dim=1)

    x, sigma = torch.tensor([[1.0, -2.0], [0.5, 0.1]]), torch.tensor([0.3, 4.0])
    found = denoiser(CONFIGS[kind], output).denoise(x.double(), sigma, None)
    c = BUILT[kind].coefficients(sigma[:, None])
    torch.testing.assert_close(found, (c.skip * x + c.out * (c.input * x).cos()).double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(seen[0][0], c.input * x)
    torch.testing.assert_close(seen[0][1], c.noise.flatten())


def test_clip() -> None:
    x = torch.tensor([[3.0, -0.2], [-2.0, 0.9]])
    free = denoiser(discrete("sample"), lambda x, time: 2 * x)
    clipped = denoiser(discrete("sample", 1.0), lambda x, time: 2 * x)
    level = torch.tensor(TABLE[100], dtype=torch.float32)
    assert float(free.denoise(x, level, None).abs().max()) > 1
    assert torch.equal(clipped.denoise(x, level, None),
                       free.denoise(x, level, None).clamp(-1, 1))


def test_noise_scale() -> None:
    """A variance-preserving state of unit variance, divided by alpha; elsewhere sigma."""
    plain = denoiser(EDMPreconditioning(), lambda x, time: x)
    preserving = denoiser(discrete(), lambda x, time: x)
    sigma = torch.tensor(TABLE[-1])
    assert torch.equal(plain.noise_scale(sigma), sigma)
    assert float(preserving.noise_scale(sigma)) == pytest.approx(1 / sqrt(ALPHAS_CUMPROD[-1]))


def test_a_discrete_teacher_may_start_with_the_noise_alone() -> None:
    """Descriptions that do not say it are as they were before there was a choice."""
    plain = discrete()
    assert set(plain.model_dump()) == {"kind", "prediction", "alphas_cumprod", "clip"}
    told = DiscretePreconditioning.model_validate({**plain.model_dump(), "start": "noise"})
    assert DiscretePreconditioning.model_validate(told.model_dump()) == told != plain
    assert DiscretePreconditioning.model_validate_json(told.model_dump_json()) == told
    sigma = torch.tensor([0.3, 40.0])
    spec = SampleSpec(kind="points", shape=[2])
    for preconditioning, expected in ((plain, (1 + sigma**2).sqrt()), (told, sigma)):
        config = DenoiserConfig(kind="denoiser", preconditioning=preconditioning,
                                network=MLPConfig(kind="mlp", width=8, blocks=1))
        torch.testing.assert_close(Denoiser(config, spec).noise_scale(sigma), expected)


@pytest.mark.parametrize("alphas", [[0.9], [0.9, 0.9], [0.5, 0.9], [1.0, 0.5], [0.5, 0.0],
                                    [0.5, float("nan")]])
def test_noise_levels_that_do_not_rise_are_refused(alphas: list[float]) -> None:
    with pytest.raises(ValidationError, match="alphas_cumprod"):
        DiscretePreconditioning(kind="discrete", prediction="epsilon", alphas_cumprod=alphas)


@pytest.mark.parametrize("config", [{"kind": "vp", "epsilon": 0.0},
                                    {"kind": "ve", "sigma_min": -1.0},
                                    {"kind": "iddpm", "timesteps": 1}, {"kind": "ddpm"},
                                    {"kind": "edm", "sigma_data": 0.5}])
def test_preconditionings_that_make_no_sense_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(PreconditioningConfig).validate_python(config)
