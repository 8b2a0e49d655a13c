"""Trainings on a device go on where they were and do not wait for it."""

from pathlib import Path

import pytest
import torch

from kdm_core.students.training import StudentTask
from kdm_core.teachers.training import TeacherTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import fit
from tests.gpu.models import STUDENTS, deviation, pairs, task, teacher
from tests.gpu.waits import not_waiting

pytestmark = pytest.mark.gpu

ROUNDING = 1e-4
"""Of a few steps in float32: on GPUs sums are taken in an order that differs from run to run."""


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["kdm", "rectified_flow"])
def test_a_killed_training_goes_on(name: str, device: torch.device, tmp_path: Path) -> None:
    whole, first, second = (task(name, device) for _ in range(3))
    records = fit(whole, tmp_path / "whole.checkpoint", "key")

    def kill(step: int) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(first, tmp_path / "killed.checkpoint", "key", kill)
    started: list[int] = []
    again = fit(second, tmp_path / "killed.checkpoint", "key", on_start=started.append)
    assert started == [4] and [r["step"] for r in again] == [r["step"] for r in records]
    assert all(tensor.device.type == device.type for tensor in second.student.parameters())
    allowed = 0 if device.type == "cpu" else ROUNDING
    assert deviation(weights(second), weights(whole)) <= allowed


@pytest.mark.parametrize("name", STUDENTS)
def test_a_step_waits_for_nothing(name: str, device: torch.device) -> None:
    made = task(name, device)
    made.seeded_step(0)  # the first one fetches the order of an epoch, and makes the moments
    with not_waiting(device):
        made.seeded_step(1)


def test_a_step_with_an_adversary_waits_for_nothing(device: torch.device) -> None:
    made = task("kdm", device, losses={"adversarial": 0.1})
    made.seeded_step(0)
    with not_waiting(device):
        made.seeded_step(1)


def test_a_teachers_step_waits_for_nothing(device: torch.device) -> None:
    data = pairs(32, device)
    config = TrainingConfig(steps=4, batch=8, clip=1.0, precision="fp32", compile="off")
    made = TeacherTask(teacher("denoiser").to(device), config, data.samples / 127.5 - 1,
                       data.labels, seed=0)
    made.seeded_step(0)
    with not_waiting(device):
        made.seeded_step(1)


def test_a_step_that_looks_at_a_value_is_found(device: torch.device) -> None:
    x = torch.ones(2, device=device)
    with pytest.raises((AssertionError, RuntimeError)), not_waiting(device):
        float(x.sum())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_in_each_precision_learns(precision: str, device: torch.device) -> None:
    made = task("direct", device, steps=12, precision=precision)
    found = [float(made.seeded_step(step)["loss"]) for step in range(12)]
    assert all(parameter.isfinite().all() for parameter in made.student.parameters())
    assert sum(found[-4:]) < sum(found[:4])


def weights(made: StudentTask) -> torch.Tensor:
    return torch.cat([p.detach().cpu().flatten() for p in made.ema.shadow.parameters()])
