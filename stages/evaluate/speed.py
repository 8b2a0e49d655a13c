"""Samples a second of teacher and student: same noise, batch, device and precision."""

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdm_core.errors import adapted, at_most
from pipeline.runtime.models import Models


class Speed(NamedTuple):
    """What one sample costs.

    Attributes:
        nfe: evaluations of a network.
        images_per_s: samples a second.
    """

    nfe: float
    images_per_s: float


def measure_speed(models: Models, images: int) -> dict[Literal["teacher", "student"], Speed]:
    """The teacher's and the student's, side by side; without a known teacher the student's alone.

    Args:
        images: how many both sample, in batches of one size; latents are decoded, too.
    """
    student, store, test = models.student, models.store, models.test
    device = next(student.parameters()).device
    n = at_most("evaluation.timing_images", images, len(test.noise), "test pairs")
    batch = min(n, store.compute_batch)
    noise, labels = test.noise[:batch].to(device), models.told(test.labels[:batch].to(device))
    rounds = n // batch
    if n % batch:
        adapted(f"evaluation.timing_images: {batch * rounds:,} in place of {n:,} are timed, in "
                f"whole batches of {batch:,} (pairs.batch)")

    def rate(sample: Callable[[], object]) -> float:
        sample()  # the first call allocates
        synchronise(device)
        start = time.perf_counter()
        for _ in range(rounds):
            sample()
        synchronise(device)
        return batch * rounds / (time.perf_counter() - start)

    precision, decoder = store.precision, models.pictures.autoencoder

    @torch.inference_mode()
    def shown(samples: Tensor) -> object:
        return samples if decoder is None else decoder.to(device).decode(samples)

    own = Speed(1, rate(lambda: shown(student.generate(noise, labels, precision))))
    if models.source == "pairs":
        return {"student": own}
    solver, teacher = store.known_solver, models.known_teacher
    # Counted, since it is planned for fixed steps only.
    nfe = teacher.sample(noise, labels, solver, precision).nfe
    return {"teacher": Speed(nfe, rate(
                lambda: shown(teacher.sample(noise, labels, solver, precision).state))),
            "student": own}


def synchronise(device: torch.device) -> None:
    """Wait for work that a device does in the background."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
