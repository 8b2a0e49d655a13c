"""Losses on the distribution side by side: the same student, pairs and CPU time.

    OMP_NUM_THREADS=1 python -m benchmarks.distribution [--student NAME] [--cpu-seconds 60]
        [--seeds 3] [--only ROW …] [--start-steps N] [--samples N] [--weight 0.01] [--channels 32]

A student of params.yaml is trained on the pairs of the last run as its first phase says, but
without a loss on the distribution. From these weights it goes on with each of the losses for as
many steps as fit the CPU time, at half the rate, which falls to 0, and with none. Each figure is a
mean over the seeds with its range. All rows are about the same noise, that of the test pairs.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.compute import resolve_device, seeded
from kdm_core.datasets import Dataset, open_dataset
from kdm_core.errors import MismatchError
from kdm_core.losses.features import Frozen
from kdm_core.metrics.classifier import load_classifier
from kdm_core.metrics.extractors import ExtractorConfig, ReferenceConfig, build_extractor
from kdm_core.metrics.extractors.vgg16 import VGG16Config
from kdm_core.metrics.features import Extractor, extract
from kdm_core.metrics.frechet import Gaussian, fit_gaussian, frechet_distance
from kdm_core.metrics.manifold import Neighbourhoods, indicators, neighbourhoods
from kdm_core.metrics.neighbours import nearest
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs, read_split
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import CONFIG, read_json
from kdm_core.students.base import Student
from kdm_core.students.given import Given
from kdm_core.students.initialise import start_at_teacher
from kdm_core.students.objective import LossConfig
from kdm_core.students.phases import Phase
from kdm_core.students.training import StudentTask
from kdm_core.teachers import load_teacher
from kdm_core.training.loop import fit
from kdm_core.values import to_uint8
from pipeline.params.run import Params, load_params
from pipeline.runtime import paths
from stages.train_student import real_samples

ADVERSARIAL, DRIFTING, CHANNELS = 0.01, 0.1, 32
EXTRACTORS: list[ExtractorConfig] = [
    ReferenceConfig(kind="classifier"), VGG16Config(kind="vgg16", resolution=32)]
COMPARED = 1000
"""Samples whose nearest training images are looked for."""


def adversary(**settings: Any) -> dict[str, Any]:
    return {"adversarial": ADVERSARIAL, "adversary": {"channels": CHANNELS, **settings}}


def drifting(*kinds: str) -> dict[str, Any]:
    return {"drifting": DRIFTING, "drift": {"features": [{"kind": kind} for kind in kinds]}}


LOSSES: dict[str, dict[str, Any]] = {
    "paper": adversary(),
    "hinge, R1": adversary(loss="hinge", normalise=False, r1=0.1, r1_every=4),
    "r3gan": adversary(recipe="r3gan"),
    **{f"d2o on {kind}": adversary(recipe="d2o", features=[{"kind": kind}])
       for kind in ("teacher", "vgg16", "classifier")},
    "drifting": drifting(),
    "drifting on teacher": drifting("teacher"),
}


def with_real(losses: dict[str, Any], real: str) -> dict[str, Any]:
    """The same with what is real."""
    section = "adversary" if "adversary" in losses else "drift"
    return losses | {section: losses[section] | {"real": real}}


ROWS: dict[str, dict[str, Any]] = {"none": {}} | {
    f"{name}, {real}": with_real(losses, real)
    for name, losses in LOSSES.items() for real in ("pairs", "data")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", help="the first one of params.yaml if not given")
    parser.add_argument("--cpu-seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS), metavar="ROW",
                        help="; ".join(ROWS))
    parser.add_argument("--start-steps", type=int,
                        help="of the regression; as in params.yaml if not given")
    parser.add_argument("--samples", type=int,
                        help="that are made to be judged; one for each test pair if not given")
    parser.add_argument("--weight", type=float, default=ADVERSARIAL, help="of adversaries")
    parser.add_argument("--channels", type=int, default=CHANNELS, help="of adversaries")
    arguments = parser.parse_args()
    for losses in ROWS.values():
        if "adversary" in losses:
            losses["adversarial"] = arguments.weight
            losses["adversary"]["channels"] = arguments.channels
    bench = Bench(load_params(), arguments.student, arguments.start_steps, arguments.samples)
    judge = Judge(bench.dataset, bench.test)
    print(f"held-out images: {judge.held_out}; a † marks features that the loss has seen\n")
    print(f"| loss | steps | CPU s | a step | {' | '.join(judge.columns)} |\n"
          f"|{'---|' * (4 + len(judge.columns))}")
    show("teacher", ["", "", ""], judge.columns, [judge(bench.test.samples)], set())
    show("before", ["", "", ""], judge.columns, [judge(bench.made(bench.start))], set())
    for row in arguments.only:
        losses = bench.losses(row)
        pace, ratio = bench.pace(losses)
        steps = max(1, round(arguments.cpu_seconds / pace))
        runs = [bench.run(bench.phase(losses, steps), seed)
                for seed in range(1, arguments.seeds + 1)]
        seconds = statistics.mean(seconds for _, seconds in runs)
        show(row, [str(steps), f"{seconds:.0f}", f"{ratio:.2f}×"], judge.columns,
             [judge(bench.made(student)) for student, _ in runs], losses.asked_networks)


def show(
    row: str, costs: list[str], columns: list[str], runs: list[list[float]], seen: set[str]
) -> None:
    cells = []
    for column, values in zip(columns, zip(*runs, strict=True), strict=True):
        mean = f"{statistics.mean(values):.3f}"
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        cells.append(mean + spread + " †" * (column.split(":")[0] in seen))
    print(f"| {' | '.join([row, *costs, *cells])} |", flush=True)


class Bench:
    """The pairs and the data of the last run, and the student that all losses start with."""

    def __init__(
        self, params: Params, name: str | None, start_steps: int | None, samples: int | None
    ) -> None:
        self.config = params.students[name or next(iter(params.students))]
        self.device = resolve_device(params.compute.device)
        store = PairStore.open(paths.PAIRS)
        self.train, self.validation, self.test = (
            read_split(store, split, self.device) for split in ("train", "validation", "test"))
        self.test = Pairs(*(part[:samples] for part in self.test[:3]))
        self.dataset = open_dataset(paths.DATASET)[0]
        self.given = Given(
            real_samples(self.dataset, store.spec.samples, self.device),
            Frozen(lambda: load_teacher(paths.TEACHER, params.trusts_code)[0].to(self.device),
                   lambda: load_classifier(paths.REFERENCE)[0].to(self.device)))
        with seeded(0):
            model = self.config.model.completed(read_json(paths.TEACHER / CONFIG)["teacher"])
            student = model.build(store.spec.samples).to(self.device)
        if self.config.init != "random":
            try:
                start_at_teacher(student, paths.TEACHER)
            except MismatchError:
                if self.config.init == "teacher":
                    raise
        self.start, first = student, self.config.phases[0]
        steps = start_steps or first.training.steps
        plain = first.training.model_copy(update={"compile": "off", "log_every": steps,
                                                  "checkpoint_every": steps, "steps": steps})
        self.start, seconds = self.run(Phase(self.losses("none"), plain), seed=0)
        print(f"regression: {steps} steps, {seconds:.0f} CPU s; {len(self.train.noise)} pairs, "
              f"{len(self.dataset.train_samples)} training and {len(self.dataset.test_samples)} "
              f"held-out images, {len(self.test.noise)} test pairs", flush=True)

    def losses(self, row: str) -> LossConfig:
        """Those of the student's first phase with what a row adds."""
        values = self.config.phases[0].losses.model_dump()
        return LossConfig.model_validate(
            values | {"adversarial": 0.0, "drifting": 0.0} | ROWS[row])

    def phase(self, losses: LossConfig, steps: int) -> Phase:
        first = self.config.phases[0].training
        return Phase(losses, first.model_copy(update={
            "steps": steps, "lr": first.lr / 2, "warmup": min(50, steps // 4),
            "schedule": "cosine", "ema": 0.99, "compile": "off", "log_every": steps,
            "checkpoint_every": steps}))

    def task(self, phase: Phase, seed: int) -> StudentTask:
        student = copy.deepcopy(self.start).requires_grad_(True)
        reader = ResidentReader.of(self.train, phase.training.batch, seed)
        return StudentTask(student, phase.losses, phase.training, reader, self.validation, seed,
                           self.given)

    def pace(self, losses: LossConfig, rounds: int = 5, steps: int = 4) -> tuple[float, float]:
        """CPU seconds of a step, and how often those of one with regression alone.

        Both in turn, since clocks and neighbours on the machine change.
        """
        plain, task = (self.task(self.phase(each, (rounds + 1) * steps), seed=0)
                       for each in (self.losses("none"), losses))
        counts = {each: iter(range((rounds + 1) * steps)) for each in (plain, task)}

        def seconds(each: StudentTask) -> float:
            began = time.process_time()
            for _ in range(steps):
                each.seeded_step(next(counts[each]))
            return (time.process_time() - began) / steps

        found = [(seconds(plain), seconds(task)) for _ in range(rounds + 1)][1:]
        return (statistics.median(own for _, own in found),
                statistics.median(own / base for base, own in found))

    def run(self, phase: Phase, seed: int) -> tuple[Student, float]:
        """The start after a phase, and the CPU seconds that it took."""
        task = self.task(phase, seed)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            fit(task, Path(folder) / "checkpoint.safetensors", "distribution")
        student: Student = task.ema.shadow
        return student, time.process_time() - began

    def made(self, student: Student) -> Tensor:
        """The student's samples of the noise of the test pairs."""
        labels = self.test.labels.split(500) if student.spec.num_classes else None
        return torch.cat([student.generate(noise, labels[index] if labels else None)
                          for index, noise in enumerate(self.test.noise.split(500))])


class Space(NamedTuple):
    """A network's features, and what the images of the data set are in them."""

    extractor: Extractor
    held_out: Gaussian
    training: Gaussian
    neighbourhoods: Neighbourhoods

    @classmethod
    def of(cls, extractor: Extractor, held_out: Tensor, training: Tensor) -> "Space":
        features = extract(extractor, training).features
        return cls(extractor, fit_gaussian(extract(extractor, held_out).features),
                   fit_gaussian(features), neighbourhoods(features))

    def figures(self, images: Tensor) -> list[float]:
        """Distances to held-out and to training images, and the share of the latter covered."""
        features = extract(self.extractor, images).features
        made = fit_gaussian(features)
        covered = indicators(neighbourhoods(features), self.neighbourhoods).recall
        return [frechet_distance(made, self.held_out), frechet_distance(made, self.training),
                float(covered.mean())]


class Judge:
    """Figures of samples (n, C, H, W) of the noise of the test pairs."""

    def __init__(
        self, dataset: Dataset, test: Pairs, extractors: Sequence[ExtractorConfig] = EXTRACTORS
    ) -> None:
        held_out, self.training = (np.array(samples) for samples in (
            dataset.test_samples, dataset.train_samples))
        self.spaces = [
            Space.of(build_extractor(config, {}, test.noise.device, paths.REFERENCE),
                     *map(torch.from_numpy, (held_out, self.training)))
            for config in extractors]
        self.teacher = test.samples
        self.columns = [f"{config.name}: {figure}" for config in extractors
                        for figure in ("FD to held-out", "FD to training", "recall")]
        self.columns += ["MSE, % of permuted", "nearest training image"]
        own = [f"{config.name}: FD to training {frechet_distance(*space[1:3]):.3f}"
               for config, space in zip(extractors, self.spaces, strict=True)]
        self.held_out = "; ".join([*own, f"nearest training image {self.nearest(held_out):.3f}"])

    def __call__(self, made: Tensor) -> list[float]:
        images = to_uint8(made.cpu())
        matched, permuted = (float((self.teacher - other).square().mean())
                             for other in (made, made.roll(1, dims=0)))
        return [*(figure for space in self.spaces for figure in space.figures(images)),
                100 * matched / permuted, self.nearest(images.numpy())]

    def nearest(self, images: NDArray[np.uint8]) -> float:
        """Median distance to the nearest training image, root mean squared over values."""
        return float(np.median(nearest(images[:COMPARED], self.training).distance))


if __name__ == "__main__":
    main()
