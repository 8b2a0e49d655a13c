"""What students minimise is one graph for torch.compile, and the same when it is compiled."""

import pytest
import torch

from kdm_core.losses.distances import MSEConfig, build_distance
from kdm_core.students.objective import Objective, total
from tests.gpu.models import STUDENTS, batch, deviation, losses, student
from tests.gpu.test_models import gradient

QUICK = "direct"
ROUNDING = 1e-4


# To trace a student takes many seconds: the others are for GPUs and for `make test-slow`.
@pytest.mark.gpu
@pytest.mark.parametrize("name", [
    QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in STUDENTS if name != QUICK)])
def test_compiled_students_learn_the_same(name: str, device: torch.device) -> None:
    """By the compiler on a GPU. On a CPU, where it takes minutes, by its graph alone."""
    backend = "inductor" if device.type == "cuda" else "eager"
    weights, found = losses(name), []
    torch.compiler.reset()
    for compiled in (False, True):
        model = student(name).to(device)
        objective = Objective(model, weights, build_distance(MSEConfig(kind="mse"), device))
        # Without `fullgraph` whatever breaks the graph would go unseen.
        run = torch.compile(objective, backend=backend, fullgraph=True) if compiled else objective
        loss = total(weights, run(batch(4, max(model.latent, 1), device, torch.float32))[0])
        loss.backward()
        found.append((loss, gradient(model)))
    # A finite difference over a step of 1e-3 has lost three digits of seven.
    allowed = 1e-2 if name == "mean_flow" else ROUNDING
    assert deviation(found[1][0], found[0][0]) < allowed
    assert deviation(found[1][1], found[0][1]) < 10 * allowed
