"""Quality against sampling steps, with trajectory supervision and without.

    OMP_NUM_THREADS=1 python -m benchmarks.trajectory [--states 9] [--steps 1000]

On checkerboard points: a flow-matching teacher, its pairs with intermediate states, and students
of one architecture (shared encoders, a continuous operator) that are trained without trajectory
supervision, with it for the same number of steps, and without it for the same wall time. How much
longer a step with it takes is measured first, in turn.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import rounds
from kdm_core.compute import resolve_device, seeded
from kdm_core.datasets.checkerboard import on_board, sample_board
from kdm_core.networks import MLPConfig
from kdm_core.operators import ContinuousConfig
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs, read_split
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_pairs
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers import FlowMatching, FlowMatchingConfig
from kdm_core.teachers.training import TeacherTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import Task

POINTS, TRAIN, TEST, WIDTH = 200_000, 40_000, 10_000, 128
SAMPLING_STEPS = [1, 2, 4, 8]


def training(steps: int) -> TrainingConfig:
    return TrainingConfig(steps=steps, batch=256, lr=2e-3, warmup=100, schedule="cosine",
                          ema=0.998, compile="off")


def run(task: Task) -> None:
    for step in range(task.config.steps):
        task.seeded_step(step)


def make_pairs(folder: Path, states: int, device: torch.device) -> tuple[Pairs, Pairs, float]:
    """Pairs to train on and to test with, of a teacher trained here, and its off-board share."""
    points = torch.from_numpy(sample_board(POINTS, 0, 0)).to(device)
    spec = SampleSpec(kind="points", shape=[2], sigma_data=float(points.std()))
    with seeded(0):
        teacher = FlowMatching(FlowMatchingConfig(
            kind="flow_matching", network=MLPConfig(kind="mlp", width=WIDTH, blocks=4)), spec)
    task = TeacherTask(teacher.to(device), training(4000), points,
                       torch.full((POINTS,), -1, device=device), seed=0)
    run(task)
    config = PairsConfig(solver=FixedSolver(kind="midpoint", steps=10), train=TRAIN,
                         validation=2, test=TEST, batch=2000, shard=10_000, chunk=2000,
                         noise_dtype="float32", sample_dtype="float32", states=states)
    best = task.ema.shadow
    store = PairStore.create(folder / "pairs.zarr",
                             plan_store(config, best, "-", None, 0, device), {})
    sample_pairs(store, best, device)
    test = read_split(store, "test", device)
    return read_split(store, "train", device, states=True), test, off_board(test.samples)


def off_board(points: Tensor) -> float:
    """Share of points that are on no dark cell."""
    return 1 - float(on_board(points.cpu().numpy()).mean())


def student_task(weight: float, steps: int, spec: SampleSpec, pairs: Pairs) -> StudentTask:
    network = MLPConfig(kind="mlp", width=WIDTH, blocks=3)
    with seeded(0):
        student = KDM(KDMConfig(
            encoder=network, decoder=network, encoders="shared", latent=WIDTH,
            operator=ContinuousConfig(kind="continuous")), spec)
    losses = LossConfig(adversarial=0.0, latent_noise=0.01, trajectory=weight)
    config = training(steps)
    reader = ResidentReader.of(pairs, config.batch, seed=0)
    return StudentTask(student.to(reader.device), losses, config, reader, pairs, seed=0)


def report(name: str, student: KDM, test: Pairs) -> None:
    """A row of the table: MSE to the teacher's sample, and off-board share, against steps."""
    cells = []
    for steps in SAMPLING_STEPS:
        made = student.generate(test.noise, steps=steps)
        error = float((made - test.samples).square().mean())
        cells.append(f"{error:.4f} / {100 * off_board(made):.1f} %")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=9, help="kept of each pair (at most 9)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of a student")
    parser.add_argument("--weight", type=float, default=1.0, help="losses.trajectory")
    given = parser.parse_args()
    device = resolve_device()
    with tempfile.TemporaryDirectory() as folder:
        pairs, test, stray = make_pairs(Path(folder), given.states, device)
    spec = SampleSpec(kind="points", shape=[2], sigma_data=float(pairs.samples.std()))
    make = partial(student_task, spec=spec, pairs=pairs)
    without, supervised = make(0.0, given.steps), make(given.weight, given.steps)
    seconds = rounds({"without": lambda: [without.step(i) for i in range(5)],
                      "with": lambda: [supervised.step(i) for i in range(5)]}, 10)
    slower = statistics.median(a / b for a, b in zip(seconds["with"], seconds["without"],
                                                     strict=True))
    print(f"{device}, {torch.get_num_threads()} threads; a step with trajectory supervision takes "
          f"{slower:.2f}× the time; off the board: teacher {100 * stray:.1f} %\n")
    print(f"| student | {' | '.join(f'{n} steps' for n in SAMPLING_STEPS)} |")
    print("|---|" + "---|" * len(SAMPLING_STEPS))
    longer = round(given.steps * slower)
    for name, weight, steps in ((f"without, {given.steps} training steps", 0.0, given.steps),
                                (f"with, {given.steps} training steps", given.weight, given.steps),
                                (f"without, same time: {longer} steps", 0.0, longer)):
        task = make(weight, steps)
        run(task)
        report(name, task.ema.shadow, test)


if __name__ == "__main__":
    main()
