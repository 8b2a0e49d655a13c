"""Offline students side by side: the same pairs, distance, CPU time, size and tuning.

    OMP_NUM_THREADS=1 python -m benchmarks.offline --out FILE.json [--cpu-seconds 300] [--seeds 2]
        [--batch 128] [--only ROW …]

On the pairs of the last run, whose store has states. All students minimise the mean squared error,
flows that of a velocity; what they use to make a sample has the teacher's size, within a tenth.
Seconds of a step are measured in turn with those of `direct`, and each gets the steps that fit the
CPU time. Each has the same short runs, with another seed, to choose its rate by the validation
pairs; then it is trained with every seed and judged on the test pairs, which no choice has seen.
What is finished is kept in FILE, from which another call goes on; with `--only` nothing of others
is lost. Samples stay beside it, so that each row's distance is compared with that of `direct` by
resampling the same noises. `benchmarks.offline_table` makes a table and a picture of FILE.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.distribution import EXTRACTORS, Judge
from kdm_core.compute import resolve_device, seeded
from kdm_core.datasets import open_dataset
from kdm_core.losses.perceptual import LPIPS
from kdm_core.metrics.estimate import Estimate, ratio, resampling
from kdm_core.metrics.features import extract
from kdm_core.metrics.frechet import factor, frechet_estimate
from kdm_core.metrics.paired import paired_lpips
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import CONFIG, read_json, write_json
from kdm_core.students import Student, StudentConfig
from kdm_core.students.hierarchical import Hierarchical
from kdm_core.students.initialise import start_at_teacher
from kdm_core.students.kdm import KDM
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import fit
from kdm_core.values import to_uint8
from pipeline.params.run import load_params
from pipeline.runtime import paths
from pipeline.runtime.runner import hardware

STUDENT: TypeAdapter[StudentConfig] = TypeAdapter(StudentConfig)
RATES = [0.0005, 0.001, 0.002]
TUNING_SEED, TUNING_SHARE = 100, 0.25
STEPS = (2, 4)
BESIDE = "direct"
"""The row that the others are compared with."""
REPLICATES = 500
FLOWS = ("rectified_flow", "mean_flow")
"""Kinds that take several steps with no term of their own for it."""
DENOISING = {"reconstruction": 0.0, "latent": 0.0, "latent_noise": 0.0}
STATES = {"endpoint": 1.0}
SHARED = {"encoders": "shared"}


def kdm(operator: str, losses: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    return {"model": {"kind": "kdm", "operator": {"kind": operator}, **model}, "init": "random",
            "losses": {"latent_noise": 0.1, **(losses or {})}}


def denoising(
    kind: str, losses: dict[str, Any] | None = None, init: str = "teacher", **model: Any
) -> dict[str, Any]:
    return {"model": {"kind": kind, **model}, "init": init,
            "losses": {**DENOISING, **(losses or {})}}


NONE = {"operator": {"kind": "none"}}
ROWS: dict[str, dict[str, Any]] = {
    "kdm": kdm("dense"),
    "kdm-f": kdm("factorised"),
    "direct, fresh": denoising("direct", init="random"),
    "direct": denoising("direct"),
    "hierarchical": denoising("hierarchical"),
    "hierarchical, A = 0": denoising("hierarchical", **NONE),
    "kdm, states": kdm("continuous", STATES, **SHARED),
    "kdm-f, states": kdm("factorised", STATES, **SHARED),
    "direct, fresh, states": denoising("direct", STATES, init="random"),
    "direct, states": denoising("direct", STATES),
    "hierarchical, states": denoising("hierarchical", STATES),
    "hierarchical, A = 0, states": denoising("hierarchical", STATES, **NONE),
    "rectified flow": denoising("rectified_flow"),
    "mean flow": denoising("mean_flow"),
    "direct, GET": denoising("direct", init="random", denoiser={
        "kind": "denoiser", "network": {"kind": "get", "width": 96, "injection": 2, "heads": 4,
                                        "mlp_ratio": 6}}),
    # Choices that the paper leaves open, and others.
    "kdm, trajectory": kdm("continuous", {"trajectory": 1.0}, **SHARED),
    "hierarchical, decoder told the target's time": denoising(
        "hierarchical", decoder_time="target"),
    "hierarchical, an operator a resolution": denoising(
        "hierarchical", operator={"kind": "resolutions"}),
    "hierarchical, modes shared by pixels": denoising(
        "hierarchical", operator={"per_pixel": False}),
    "hierarchical, states, decoder told the target's time": denoising(
        "hierarchical", STATES, decoder_time="target"),
    "hierarchical, states, modes shared by pixels": denoising(
        "hierarchical", STATES, operator={"per_pixel": False}),
    "hierarchical, states of a tenth": denoising("hierarchical", {"endpoint": 0.1}),
    "hierarchical, states and trajectory": denoising(
        "hierarchical", {"endpoint": 0.1, "trajectory": 0.1}),
    "hierarchical, states and trajectory, decoder told the target's time": denoising(
        "hierarchical", {"endpoint": 0.1, "trajectory": 0.1}, decoder_time="target"),
    "hierarchical, A = 0, states and trajectory, decoder told the target's time": denoising(
        "hierarchical", {"endpoint": 0.1, "trajectory": 0.1}, decoder_time="target", **NONE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu-seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--latent", type=int, default=128, help="of kdm")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS)[:15],
                        metavar="ROW", help="; ".join(ROWS))
    arguments = parser.parse_args()
    bench = Bench(arguments.batch, arguments.latent)
    found: dict[str, Any] = read_json(arguments.out) if arguments.out.exists() else {
        "conditions": bench.conditions(),
        "cpu_seconds": arguments.cpu_seconds, "batch": arguments.batch, "rows": {},
        "teacher": bench.judge(bench.test.samples), "direct_step_s": bench.pace(BESIDE, None)}
    samples = arguments.out.with_suffix("")
    samples.mkdir(exist_ok=True)
    for row in arguments.only:
        one = found["rows"].setdefault(row, {"rates": {}, "runs": {}})
        if "step" not in one:
            one |= {"step": bench.pace(row, BESIDE), "parameters": bench.size(row)}
        steps = round(found["cpu_seconds"] / found["direct_step_s"] / one["step"])
        for rate in RATES:
            if str(rate) not in one["rates"]:
                _, error, _ = bench.run(row, rate, round(TUNING_SHARE * steps), TUNING_SEED)
                one["rates"][str(rate)] = error
                write_json(arguments.out, found)
        rate = min(RATES, key=lambda rate: one["rates"][str(rate)])
        for seed in range(1, arguments.seeds + 1):
            if str(seed) not in one["runs"]:
                student, _, seconds = bench.run(row, rate, steps, seed)
                terms, kind = set(ROWS[row]["losses"]), ROWS[row]["model"]["kind"]
                several = STEPS if {"endpoint", "trajectory"} & terms or kind in FLOWS else ()
                one["runs"][str(seed)] = {"steps": steps, "cpu_s": seconds, "rate": rate,
                                          **bench.figures(student, several)}
                if "trajectory" in terms:
                    one["runs"][str(seed)]["path, % of permuted"] = bench.path_error(student)
                np.save(samples / f"{row}-{seed}.npy", to_uint8(bench.made(student).cpu()).numpy())
                write_json(arguments.out, found)
        show(row, one)
    compare(bench, found["rows"], samples)
    write_json(arguments.out, found)


def compare(bench: "Bench", rows: dict[str, Any], samples: Path) -> None:
    """Set each row beside `BESIDE`, where the samples of both are still there."""
    files = {row: [samples / f"{row}-{seed}.npy" for seed in one["runs"]]
             for row, one in rows.items() if one["runs"]}
    for row, own in files.items():
        if gone := [file for file in own + files.get(BESIDE, []) if not file.exists()]:
            print(f"{row}: not compared again, since {gone[0]} is gone", flush=True)
        elif BESIDE in files:
            rows[row]["beside direct"] = bench.compared(own, files[BESIDE])


def show(row: str, one: dict[str, Any]) -> None:
    """A line of a table: means over the seeds with their range."""
    cells = []
    for name in next(iter(one["runs"].values())):
        values = [run[name] for run in one["runs"].values()]
        spread = f" ({min(values):.4g} to {max(values):.4g})" if min(values) < max(values) else ""
        cells.append(f"{name} {statistics.mean(values):.4g}{spread}")
    print(f"{row}: step {one['step']:.2f}×, {one['parameters']:,} parameters; {'; '.join(cells)}",
          flush=True)


class Bench:
    """The pairs and the teacher of the last run."""

    def __init__(self, batch: int, latent: int) -> None:
        params = load_params()
        self.batch, self.latent, self.device = batch, latent, resolve_device(params.compute.device)
        store = PairStore.open(paths.PAIRS)
        self.spec = store.spec.samples
        self.train, self.validation, self.test = (
            read_split(store, split, self.device, states=split != "validation")
            for split in ("train", "validation", "test"))
        self.teacher = read_json(paths.TEACHER / CONFIG)["teacher"]
        dataset = open_dataset(paths.DATASET)[0]
        self.judged = Judge(dataset, self.test)
        self.briefly = Judge(dataset, self.test, EXTRACTORS[:1])
        self.spaces = {config.name: (space, factor(space.held_out.covariance))
                       for config, space in zip(EXTRACTORS, self.judged.spaces, strict=True)}
        self.lpips = LPIPS(64).to(self.device)

    def judge(self, made: Tensor, briefly: bool = False) -> dict[str, float]:
        by = self.briefly if briefly else self.judged
        return dict(zip(by.columns, by(made), strict=True))

    def conditions(self) -> dict[str, Any]:
        """What all rows share."""
        params = load_params()
        return {"data": params.data.model_dump(exclude_defaults=True), "teacher": self.teacher,
                "pairs": {"train": len(self.train.noise), "test": len(self.test.noise),
                          **params.pairs.model_dump(include={"solver", "states"})},
                "hardware": f"{hardware(self.device)}, {torch.get_num_threads()} threads",
                "torch": torch.__version__, "held out": self.judged.held_out}

    def compared(self, own: list[Path], beside: list[Path]) -> dict[str, list[float]]:
        """By feature space: the distance to held-out images over that of other runs, with its
        95 % interval; a mean over the seeds on both sides, resampled by the same noises."""
        found = {}
        for name in self.spaces:
            quotient = ratio(*(mean_of([self.distance(name, file) for file in files])
                               for files in (own, beside)))
            if quotient is not None:
                found[name] = [quotient.value, *(quotient.interval() or ())]
        return found

    @cache  # noqa: B019 - the one bench lives as long as the program
    def distance(self, name: str, file: Path) -> Estimate:
        """Of a file of samples, in a feature space."""
        space, root = self.spaces[name]
        features = extract(space.extractor, torch.from_numpy(np.load(file))).features
        counts = resampling(len(features), REPLICATES, 0)
        return frechet_estimate(features, space.held_out, root, counts)

    def model(self, row: str) -> StudentConfig:
        """A row's student, which uses as many parameters as the teacher for a sample."""
        given = ROWS[row]["model"]
        if given["kind"] != "kdm":
            return STUDENT.validate_python(given).completed(self.teacher)
        size = self.size("direct")
        network = self.teacher["network"]
        width = "width" if "width" in network else "channels"

        def sized(value: int) -> StudentConfig:
            own = {**network, width: value}
            return STUDENT.validate_python({"latent": self.latent, "encoder": own, "decoder": own,
                                            **given})

        return min(map(sized, range(8, network[width] + 1, 4 if network["kind"] == "song_unet"
                                    else 8)),
                   key=lambda model: abs(used(model.build(self.spec)) - size))

    def size(self, row: str) -> int:
        return used(self.model(row).build(self.spec))

    def task(self, row: str, rate: float, steps: int, seed: int) -> StudentTask:
        with seeded(seed):
            student = self.model(row).build(self.spec)
        if ROWS[row]["init"] == "teacher":
            start_at_teacher(student, paths.TEACHER)
        training = TrainingConfig(
            steps=steps, batch=self.batch, lr=rate, warmup=min(100, steps // 10),
            schedule="cosine", ema=0.995, precision="auto", compile="off", log_every=steps,
            checkpoint_every=steps)
        reader = ResidentReader.of(self.train, self.batch, seed)
        losses = LossConfig.model_validate({"adversarial": 0.0, **ROWS[row]["losses"]})
        return StudentTask(student.to(self.device), losses, training, reader, self.validation, seed)

    def pace(self, row: str, beside: str | None, rounds: int = 5, steps: int = 4) -> float:
        """CPU seconds of a step, as a multiple of another row's if one is named."""
        tasks = [self.task(name, RATES[0], 1000, 0) for name in (row, beside) if name]
        counts = [iter(range(1000)) for _ in tasks]

        def seconds(number: int) -> float:
            began = time.process_time()
            for _ in range(steps):
                tasks[number].seeded_step(next(counts[number]))
            return (time.process_time() - began) / steps

        found = [[seconds(number) for number in range(len(tasks))] for _ in range(rounds + 1)][1:]
        return statistics.median(each[0] / (each[1] if beside else 1) for each in found)

    def run(self, row: str, rate: float, steps: int, seed: int) -> tuple[Student, float, float]:
        """The student, its error on validation pairs, and the CPU seconds that it took."""
        task = self.task(row, rate, steps, seed)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            records = fit(task, Path(folder) / "checkpoint.safetensors", "offline")
        student: Student = task.ema.shadow
        return student, records[-1]["validation_mse_ratio"], time.process_time() - began

    def figures(self, student: Student, several: Sequence[int]) -> dict[str, float]:
        test, made = self.test, self.made(student)
        shown = min(300, len(made))
        found = self.judge(made) | {"LPIPS": paired_lpips(
            self.lpips, test.samples[:shown], made[:shown], resampling(shown, 0, 0)).matched.value}
        began = time.process_time()
        student.generate(test.noise[:500], self.told(test.labels[:500]))
        found["images_per_s"] = 500 / (time.process_time() - began)
        for steps in several:
            refined = self.judge(self.sampled(
                lambda x, y, steps=steps: student.generate(x, y, steps=steps)), briefly=True)
            found |= {f"{steps} steps, {name}": value for name, value in refined.items()}
        return found

    def made(self, student: Student) -> Tensor:
        return self.sampled(lambda x, y: student.generate(x, y))

    def path_error(self, student: Student) -> float:
        """Of states decoded on the way from one encoding, beside the teacher's, % of permuted."""
        test = self.test
        assert test.trajectory is not None
        assert test.positions is not None
        positions = test.positions.tolist()

        def path(noise: Tensor, labels: Tensor | None) -> Tensor:
            if isinstance(student, Hierarchical):  # also one whose operator is none
                start = torch.ones(len(noise), device=noise.device)
                return torch.stack([student.reach(noise, start, position * start, labels)
                                    for position in positions], dim=1)
            return student.states(noise, positions, labels)

        with torch.inference_mode():
            made, theirs = self.sampled(path), test.trajectory.to(torch.float32)
        matched, permuted = (float((theirs - other).square().mean())
                             for other in (made, made.roll(1, 0)))
        return 100 * matched / permuted

    def sampled(self, sample: Callable[..., Tensor]) -> Tensor:
        return torch.cat([sample(noise, self.told(labels)) for noise, labels in zip(
            self.test.noise.split(500), self.test.labels.split(500), strict=True)])

    def told(self, labels: Tensor) -> Tensor | None:
        return self.spec.told(labels)


def mean_of(runs: list[Estimate]) -> Estimate:
    """Over the seeds, whose replicates share their resamples."""
    return Estimate(float(np.mean([run.value for run in runs])),
                    np.mean([run.replicates for run in runs], axis=0), runs[0].n)


def used(student: Student) -> int:
    """Parameters that a sample takes."""
    unused = student.data_encoder if isinstance(student, KDM) else None
    return sum(p.numel() for p in student.parameters()) - (
        sum(p.numel() for p in unused.parameters()) if unused is not None else 0)


if __name__ == "__main__":
    main()
