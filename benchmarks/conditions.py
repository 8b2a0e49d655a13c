"""A condition for each class against one for each sample, in the networks of params.yaml.

    python -m benchmarks.conditions [--rounds 10]

The teacher's samples and a training step of each student, in turn: where samples of a class share a
condition, and where each has its own. Checked first: in bfloat16 both give the same samples to the
bit, and both train alike. CPU time, since machines are shared. Weights and pairs are random, which
costs the same as others.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.timing import ratio, rounds
from kdm_core.compute import resolve_device, seeded
from kdm_core.networks.mlp import MLP
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.pairs.sampling import PairsConfig
from kdm_core.samples import SampleSpec
from kdm_core.students.training import StudentTask
from kdm_core.teachers import build_teacher
from pipeline.params.run import load_params
from pipeline.params.student import StudentParams
from pipeline.params.teacher import TrainedTeacher

N = TypeVar("N", bound=nn.Module)

DIGITS = SampleSpec(kind="image", shape=[1, 8, 8], label_names=list("0123456789"), sigma_data=0.5)
BATCHES = 4
"""How many batches of pairs there are; each is seen again in the next epoch."""


@contextmanager
def own_conditions() -> Iterator[None]:
    """A context in which each sample has a condition of its own."""
    conditions = MLP.conditions

    def own(self: MLP, time: Tensor | None, labels: Tensor | None, sharing: bool
            ) -> tuple[Tensor | None, Tensor | None]:
        return conditions(self, time, labels, sharing=False)

    MLP.conditions = own  # type: ignore[method-assign]
    try:
        yield
    finally:
        MLP.conditions = conditions  # type: ignore[method-assign]


def measure(label: str, make: Callable[[], Callable[[], Tensor]], tolerance: float, count: int
            ) -> None:
    """Compare what both forms give, then their time; `make` has the same start each time."""
    shared, plain = make(), make()

    def own() -> Tensor:
        with own_conditions():
            return plain()

    torch.testing.assert_close(shared(), own(), rtol=tolerance, atol=0)
    seconds = rounds({"own": own, "shared": shared}, count, time.process_time)
    own_ms, shared_ms = (1000 * statistics.median(times) for times in seconds.values())
    print(f"{label}: {own_ms:.1f} ms, shared {shared_ms:.1f} ms, "
          f"{ratio(seconds['own'], seconds['shared'])}")


def step_of(params: StudentParams, device: torch.device) -> Callable[[], Tensor]:
    """A function that trains a student by one step and gives the loss."""
    count = BATCHES * params.training.batch
    with seeded(0):
        student = with_weights(params.model.build(DIGITS)).to(device)
        pairs = Pairs(torch.randn(count, *DIGITS.sample_shape, device=device),
                      2 * torch.rand(count, *DIGITS.sample_shape, device=device) - 1,
                      torch.randint(DIGITS.num_classes, (count,), device=device))
    reader = ResidentReader.of(pairs, params.training.batch, seed=0)
    task = StudentTask(student, params.losses, params.training, reader, pairs, seed=0)
    steps = iter(range(params.training.steps))
    return lambda: task.seeded_step(next(steps))["loss"].cpu()


def sampling(device: torch.device) -> Callable[[], Tensor]:
    """A function that makes a batch of samples with the teacher."""
    params = load_params()
    assert isinstance(params.teacher, TrainedTeacher)
    assert isinstance(params.pairs, PairsConfig)
    batch, solver = params.pairs.batch, params.pairs.solver
    with seeded(0):
        teacher = with_weights(build_teacher(params.teacher.model, DIGITS)).eval().to(device)
        noise = torch.randn(batch, *DIGITS.sample_shape, device=device)
        labels = torch.randint(DIGITS.num_classes, (batch,), device=device)
    return lambda: teacher.sample(noise, labels, solver).state.cpu()


def with_weights(network: N) -> N:
    """The network, without the zeros that layers start at which end a branch."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    device, params = resolve_device(), load_params()
    print(f"{device}, {torch.get_num_threads()} threads")
    measure("a batch of the teacher's samples", partial(sampling, device), 0.0, arguments.rounds)
    for name, student in params.students.items():
        measure(f"a step of {name}", partial(step_of, student, device), 1e-3, arguments.rounds)


if __name__ == "__main__":
    main()
