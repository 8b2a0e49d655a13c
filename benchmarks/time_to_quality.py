"""Time to the same quality on the checkerboard: the paper's recipe the published way, and ours.

    python -m benchmarks.time_to_quality [--pairs STORE] [--iterations 1000] [--student kdm]

Both are distilled from the same pairs of a flow-matching teacher, which is trained first after
the preset checkerboard unless a store is given. The paper's recipe has the published networks,
batches of 4096, Adam at 3e-4 and latent noise of 0.4, and minimises all three terms (the published
code trains the reconstruction and latent terms alone). Ours is a student of the preset. They take
turns in slices of the run, so that drift of the machine hits both; measuring is not timed.

What counts is the mean squared error to the teacher's samples on held-out pairs: that of the
paper's recipe after its last iteration, of its weights or of their average, whichever is lower, and
how long ours takes to get there. An average of decay 0.9999 is of no use after 1,000 iterations.
"""

import argparse
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.published_student import PublishedStep, PublishedStudent
from kdm_core.compute import resolve_device, seeded
from kdm_core.datasets.checkerboard import CheckerboardConfig, on_board, sample_board
from kdm_core.noise import draw
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs, read_split
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.students.training import StudentTask
from kdm_core.teachers import build_teacher
from kdm_core.teachers.training import TeacherTask
from kdm_core.training.batches import BatchOrder
from pipeline.params.run import Params, load_params
from pipeline.params.teacher import TrainedTeacher
from pipeline.project.files import PRESETS

PRESET = PRESETS / "checkerboard.yaml"
BATCH, SLICES = 4096, 40


class Data(NamedTuple):
    """Pairs to train on, and pairs that are held out."""

    spec: SampleSpec
    train: Pairs
    test: Pairs


class Point(NamedTuple):
    """Seconds of training, and the mean squared error that they lead to."""

    seconds: float
    error: float


def stored_pairs(path: Path, device: torch.device) -> Data:
    store = PairStore.open(path)
    return Data(store.spec.samples, read_split(store, "train", device),
                read_split(store, "test", device))


def sampled_pairs(params: Params, device: torch.device) -> Data:
    """Train the preset's teacher and sample the preset's pairs."""
    assert isinstance(params.data, CheckerboardConfig)
    assert isinstance(params.teacher, TrainedTeacher)
    points = torch.from_numpy(sample_board(params.data.train, params.seed, 0)).to(device)
    spec = SampleSpec(kind="points", shape=[2], sigma_data=float(points.std()))
    with seeded(params.seed):
        teacher = build_teacher(params.teacher.model, spec).to(device)
    task = TeacherTask(teacher, params.teacher.training, points,
                       torch.full((len(points),), -1, device=device), params.seed)
    for step in range(task.config.steps):
        task.seeded_step(step)
    total = params.pairs.test + params.pairs.train
    noise = torch.from_numpy(draw(params.seed, range(total), (2,))[0]).to(device, torch.float32)
    samples = torch.cat([
        task.ema.shadow.sample(x, None, params.pairs.solver, params.pairs.precision).state.float()
        for x in noise.split(params.pairs.batch)])
    labels = torch.full((total,), -1, device=device)
    pairs, cut = Pairs(noise, samples, labels), params.pairs.test
    return Data(spec, Pairs(*(part[cut:] for part in pairs[:3])),
                Pairs(*(part[:cut] for part in pairs[:3])))


def error(made: Tensor, pairs: Pairs) -> float:
    return float((made - pairs.samples).square().mean())


def off_board(points: Tensor) -> float:
    """The share of points that are on no dark cell."""
    return 1 - float(on_board(points.cpu().numpy()).mean())


class Runner:
    """Trains by slices and keeps its own time."""

    def __init__(self, step: Callable[[], object], steps: int, sample: Callable[[], Tensor],
                 test: Pairs) -> None:
        """`sample`: what the model makes of the held-out noise."""
        self.step, self.steps, self.sample, self.test = step, steps, sample, test
        self.done, self.seconds = 0, 0.0
        self.curve: list[Point] = []

    def advance(self, share: float) -> None:
        """Go on to that share of the run, and measure."""
        start = time.perf_counter()
        while self.done < round(share * self.steps):
            self.step()
            self.done += 1
        if self.test.noise.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        self.curve.append(Point(self.seconds, error(self.sample(), self.test)))

    def time_to(self, wanted: float) -> float | None:
        """Seconds to the first measurement that is as good."""
        return next((point.seconds for point in self.curve if point.error <= wanted), None)


def published_runner(data: Data, iterations: int, device: torch.device) -> Runner:
    with seeded(0):
        student = PublishedStudent.for_points(2, 256).to(device)
    trainer, order = PublishedStep(student), BatchOrder(len(data.train.noise), BATCH, 0)
    steps = count()

    def step() -> None:
        rows = order(next(steps)).to(device)
        trainer.step(data.train.noise[rows], data.train.samples[rows])

    def sample() -> Tensor:
        return min((made(model, data.test.noise) for model in (student, trainer.average)),
                   key=lambda points: error(points, data.test))

    return Runner(step, iterations, sample, data.test)


def made(model: nn.Module, noise: Tensor) -> Tensor:
    with torch.no_grad():
        points: Tensor = model(noise)
    return points


def our_runner(params: Params, name: str, data: Data, device: torch.device) -> Runner:
    config = params.students[name]
    with seeded(params.seed):
        student = config.model.build(data.spec).to(device)
    reader = ResidentReader.of(data.train, config.training.batch, params.seed)
    task = StudentTask(student, config.losses, config.training, reader, data.test, params.seed)
    steps = count()
    return Runner(lambda: task.seeded_step(next(steps)), config.training.steps,
                  lambda: task.ema.shadow.generate(data.test.noise, precision="fp32"), data.test)


def report(theirs: Runner, ours: Runner, data: Data) -> None:
    wanted = theirs.curve[-1].error
    print(f"{'share of both runs':>20} {'paper: s':>10} {'MSE':>9} {'ours: s':>10} {'MSE':>9}")
    for index in range(SLICES // 8 - 1, SLICES, SLICES // 8):
        first, second = theirs.curve[index], ours.curve[index]
        print(f"{(index + 1) / SLICES:20.0%} {first.seconds:10.1f} {first.error:9.5f} "
              f"{second.seconds:10.1f} {second.error:9.5f}")
    reached = ours.time_to(wanted)
    if reached is None:
        print(f"ours does not reach {wanted:.5f}")
    else:
        print(f"MSE of the paper's recipe after {theirs.done} iterations ({wanted:.5f}): reached "
              f"in 1/{theirs.seconds / reached:.1f} of its wall time")
    shares = [off_board(points) for points in (data.test.samples, theirs.sample(), ours.sample())]
    print("off the board: teacher {:.2%}, paper's recipe {:.2%}, ours {:.2%}".format(*shares))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to quality on the checkerboard.")
    parser.add_argument("--pairs", type=Path, help="store of checkerboard pairs")
    parser.add_argument("--iterations", type=int, default=1000, help="of the paper's recipe")
    parser.add_argument("--student", default="kdm", help="of the preset checkerboard")
    arguments = parser.parse_args()
    device, params = resolve_device(), load_params(PRESET)
    data = (stored_pairs(arguments.pairs, device) if arguments.pairs
            else sampled_pairs(params, device))
    theirs = published_runner(data, arguments.iterations, device)
    ours = our_runner(params, arguments.student, data, device)
    for index in range(SLICES):
        for runner in (theirs, ours):
            runner.advance((index + 1) / SLICES)
    report(theirs, ours, data)


if __name__ == "__main__":
    main()
