"""Teachers, their solvers and students compute on a device what float64 says they should."""

import importlib.util

import pytest
import torch
from torch import Tensor

from kdm_core.compute import autocast, state_dtype
from kdm_core.losses.distances import MSEConfig, build_distance
from kdm_core.solvers import AdaptiveSolver, FixedSolver, SolverConfig
from kdm_core.students import Student
from kdm_core.students.objective import Objective, total
from tests.gpu.models import STUDENTS, TEACHERS, batch, deviation, exact, losses, student, teacher

pytestmark = pytest.mark.gpu

ROUNDING = 2e-5
"""Of float32, through some twenty layers."""
HALF = 0.05
"""Of bfloat16, likewise."""
COUNT = 4
SOLVERS: dict[str, SolverConfig] = {
    kind: FixedSolver(kind=kind, steps=3)  # type: ignore[arg-type]
    for kind in ("euler", "heun", "midpoint", "rk4", "dpmpp_2m")}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_and_their_gradients(name: str, device: torch.device) -> None:
    model = teacher(name)
    reference, model = exact(model), model.to(device)
    given = batch(COUNT, 1, device, torch.float32)
    wide = batch(COUNT, 1, torch.device("cpu"), torch.float64)
    time = torch.tensor([0.9, 0.5, 0.3, 0.1])
    for ask in ("denoise", "velocity"):
        found = getattr(model, ask)(given.noise, time.to(device), given.labels)
        expected = getattr(reference, ask)(wide.noise, time.double(), wide.labels)
        assert deviation(found, expected) < ROUNDING, ask
    found.square().mean().backward()
    expected.square().mean().backward()
    assert deviation(gradient(model), gradient(reference)) < 10 * ROUNDING


@pytest.mark.parametrize("solver", [*SOLVERS, "dopri5"])
def test_solvers(solver: str, device: torch.device) -> None:
    if solver == "dopri5" and importlib.util.find_spec("torchdiffeq") is None:
        pytest.skip("needs torchdiffeq, which is not installed")
    config = SOLVERS.get(solver, AdaptiveSolver(kind="dopri5", tolerance=1e-3))
    model = teacher("denoiser").requires_grad_(False)
    reference, model = exact(model), model.to(device)
    given = batch(COUNT, 1, device, torch.float32)
    wide = batch(COUNT, 1, torch.device("cpu"), torch.float64)
    found = model.sample(given.noise, given.labels, config, "fp32")
    expected = reference.sample(wide.noise, wide.labels, config, "fp32")
    assert found.nfe == expected.nfe
    # Where states are float32, too, errors add up over the steps.
    assert deviation(found.state, expected.state) < (
        ROUNDING if state_dtype(device) == torch.float64 else 10 * ROUNDING)


@pytest.mark.parametrize("name", STUDENTS)
def test_students_and_what_they_learn_by(name: str, device: torch.device) -> None:
    model = student(name)
    reference, model = exact(model), model.to(device)
    found, predicted = learn(name, model, device, torch.float32)
    expected, made = learn(name, reference, torch.device("cpu"), torch.float64)
    # A finite difference over a step of 1e-3 has lost three digits of seven.
    allowed = 1e-2 if name == "mean_flow" else 10 * ROUNDING
    assert deviation(predicted, made) < allowed
    assert deviation(found, expected) < allowed
    assert deviation(gradient(model), gradient(reference)) < allowed


@pytest.mark.parametrize("name", STUDENTS)
def test_samples_of_students(name: str, device: torch.device) -> None:
    model = student(name).requires_grad_(False)
    reference, model = exact(model), model.to(device)
    given = batch(COUNT, 1, device, torch.float32)
    wide = batch(COUNT, 1, torch.device("cpu"), torch.float64)
    expected = reference.generate(wide.noise, wide.labels, "fp32")
    assert deviation(model.generate(given.noise, given.labels, "fp32"), expected) < ROUNDING
    assert deviation(model.generate(given.noise, given.labels, "bf16"), expected) < HALF


def test_bfloat16_reaches_matrix_products_and_convolutions(device: torch.device) -> None:
    with autocast("bf16", device):
        a = torch.ones(4, 4, device=device)
        assert (a @ a).dtype == torch.bfloat16
        image = torch.ones(1, 1, 4, 4, device=device)
        kernel = torch.ones(1, 1, 3, 3, device=device)
        assert torch.nn.functional.conv2d(image, kernel).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["kdm", "direct"])
def test_what_is_drawn_does_not_depend_on_the_device(name: str, device: torch.device) -> None:
    model = student(name).requires_grad_(False)
    here = model.sample(3, seed=5, labels="a", precision="fp32")
    there = model.to(device).sample(3, seed=5, labels="a", precision="fp32")
    assert there.device.type == device.type
    assert deviation(there, here) < ROUNDING


def learn(
    name: str, model: Student, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, whose gradients are left on the model, and its predictions."""
    given = batch(COUNT, max(model.latent, 1), device, dtype)
    weights = losses(name, latent_noise=0.1 if name.startswith("kdm") else 0.0)
    objective = Objective(model, weights, build_distance(MSEConfig(kind="mse"), device))
    terms, predicted = objective(given)
    loss = total(weights, terms)
    loss.backward()
    return loss, predicted


def gradient(module: torch.nn.Module) -> Tensor:
    """All gradients, one after the other."""
    return torch.cat([p.grad.double().cpu().flatten() for p in module.parameters()
                      if p.grad is not None])
