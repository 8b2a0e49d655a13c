"""KDM against what shares everything but one part of it: the same pairs, the same wall time.

    python -m benchmarks.baselines STUDENT [--minutes 8] [--only NAME …]

On the pairs of the last run, with the networks and losses of params.yaml's STUDENT: KDM as it is
and without the adversary, plain knowledge distillation (no operator, the prediction term alone) in
both ways, and KDM that starts at the teacher's weights. Seconds a step are measured first, all in
turn, and each gets the steps that fit the time, so that it does not matter how busy the machine is
later. Figures are those of the `evaluate` stage, on the test pairs.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.judging import Judge
from benchmarks.timing import rounds
from kdm_core.compute import resolve_device, seeded
from kdm_core.losses.perceptual import LPIPS
from kdm_core.metrics.estimate import resampling
from kdm_core.metrics.paired import label_agreement, paired_lpips, paired_mse
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs, read_split
from kdm_core.pairs.store import PairStore
from kdm_core.sharing.folder import save_student
from kdm_core.students.initialise import start_at_teacher
from kdm_core.students.model import KDM, StudentConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import fit
from pipeline.params.run import load_params
from pipeline.params.student import StudentParams
from pipeline.runtime import paths
from pipeline.runtime.progress import Progress

TERMS: dict[str, Any] = {"reconstruction": 0.0, "latent": 0.0, "latent_noise": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "KDM": {},
    "KDM without the adversary": {"losses": {"adversarial": 0.0}},
    "knowledge distillation": {
        "model": {"encoders": "noise", "operator": {"kind": "identity"}}, "losses": TERMS},
    "knowledge distillation without the adversary": {
        "model": {"encoders": "noise", "operator": {"kind": "identity"}},
        "losses": TERMS | {"adversarial": 0.0}},
    "KDM from the teacher's weights": {"model": {"timed": True}, "init": "teacher"},
}
Splits = dict[str, Pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seconds-a-step", type=float, nargs="*", help="instead of measuring")
    parser.add_argument("--keep", type=Path, help="a folder for the students")
    arguments = parser.parse_args()
    params = load_params()
    base = params.students[arguments.student]
    store, device = PairStore.open(paths.PAIRS), resolve_device(params.compute.device)
    splits = {split: read_split(store, split, device) for split in ("train", "validation", "test")}
    pace = arguments.seconds_a_step or [
        min(seconds) for seconds in rounds(
            {name: stepper(variant(base, name), store, splits) for name in arguments.only},
            4).values()]
    print("| student | parameters | steps | s a step | FD | LPIPS | MSE | same class |\n"
          "|---|---|---|---|---|---|---|---|", flush=True)
    judge = judged_by(store, splits["test"])
    for name, seconds in zip(arguments.only, pace, strict=True):
        steps = max(1, int(60 * arguments.minutes / seconds))
        student = train(name, variant(base, name), steps, store, splits)
        parameters = sum(value.numel() for value in student.parameters())
        print(f"| {name} | {parameters / 1e6:.1f} M | {steps} | {seconds:.3f} | {judge(student)} |",
              flush=True)
        if arguments.keep:
            save_student(arguments.keep / name.replace(" ", "-"), student, {})


def variant(base: StudentParams, name: str) -> StudentParams:
    """The parameters of a student with what a variant changes."""
    values, changes = base.model_dump(), VARIANTS[name]
    for section in ("model", "losses"):
        values[section] |= changes.get(section, {})
    return StudentParams.model_validate(values | {"init": changes.get("init", values["init"])})


def build(config: StudentParams, steps: int, store: PairStore, splits: Splits) -> StudentTask:
    with seeded(0):
        student = KDM(StudentConfig.model_validate(config.model), store.spec.samples)
    if config.init == "teacher":
        start_at_teacher(student, paths.TEACHER)
    training = TrainingConfig.model_validate(config.training.model_dump() | {
        "steps": steps, "log_every": max(1, steps // 20), "checkpoint_every": steps})
    reader = ResidentReader.of(splits["train"], training.batch, seed=0)
    return StudentTask(student.to(reader.device), LossConfig.model_validate(config.losses),
                       training, reader, splits["validation"], seed=0)


def stepper(config: StudentParams, store: PairStore, splits: Splits) -> Callable[[], object]:
    task = build(config, 100, store, splits)
    done = iter(range(100))
    return lambda: task.seeded_step(next(done))


def train(
    name: str, config: StudentParams, steps: int, store: PairStore, splits: Splits
) -> KDM:
    task = build(config, steps, store, splits)
    with tempfile.TemporaryDirectory() as folder, Progress(name, steps, "step") as progress:
        fit(task, Path(folder) / "checkpoint.safetensors", "baselines",
            lambda done: progress.update(1), lambda record: setattr(
                progress, "note", f"held-out {record['validation_mse_ratio']:.4f}"))
    result: KDM = task.ema.shadow
    return result


def judged_by(store: PairStore, test: Pairs) -> Callable[[KDM], str]:
    """What measures a student on the test pairs, as cells of a table."""
    judge = Judge(test.noise.device)
    theirs = judge.features(test.samples)
    print(f"teacher's FD {judge.to_real(theirs):.3f}, n = {len(test.noise)}\n", flush=True)
    lpips = LPIPS(64).to(test.noise.device)
    counts = resampling(len(test.noise), 0, seed=0)  # no intervals

    def line(student: KDM) -> str:
        made = torch.cat([student.generate(noise, student.spec.told(labels))
                          for noise, labels in zip(test.noise.split(250), test.labels.split(250),
                                                   strict=True)])
        found = judge.features(made)
        same = label_agreement(found.probabilities, theirs.probabilities, counts).value
        perceptual = paired_lpips(lpips, test.samples[:500], made[:500], counts[:, :500])
        mse = paired_mse(test.samples, made, counts)
        share = 100 * mse.matched.value / mse.permuted.value
        return (f"{judge.to_real(found):.2f} | {perceptual.matched.value:.3f} | "
                f"{mse.matched.value:.4f} ({share:.1f} %) | {100 * same:.1f} %")

    return line


if __name__ == "__main__":
    main()
