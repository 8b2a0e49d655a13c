"""Adversaries side by side: the same student, start, pairs and steps, three seeds each.

    python -m benchmarks.adversaries [--steps 400] [--seeds 3]

The student `kdm` of params.yaml is trained on the pairs of the last run without an adversary. From
these weights it goes on with each of the adversaries, and with none. Shown are means over the
seeds, with their range: the Fréchet distance to the real samples and to the teacher's, both in the
run's classifier, and the pair MSE on unseen pairs; and the time of a step against that with none.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.judging import Judge
from kdm_core.compute import seeded
from kdm_core.metrics.frechet import fit_gaussian, frechet_distance
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs, read_split
from kdm_core.pairs.store import PairStore
from kdm_core.students.model import KDM
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import fit
from pipeline.params import load_params
from stages import paths

R1: dict[str, Any] = {"normalise": False, "r1": 0.1, "r1_every": 4}
ADVERSARIES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "paper": {},
    "cross-entropy, R1": R1,
    "hinge, R1": R1 | {"loss": "hinge"},
    "relativistic, R1 and R2": R1 | {"loss": "relativistic", "r2": 0.1},
}
WEIGHT, CHANNELS = 0.01, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    store, device = PairStore.open(paths.PAIRS), torch.device("cpu")
    train, test = (read_split(store, split, device) for split in ("train", "test"))
    judge = Judge(device)
    theirs = judge.features(test.samples)
    teacher = fit_gaussian(theirs.features)
    with seeded(0):
        start = KDM(load_params().students["kdm"].model, store.spec.samples)
    start, plain = run(start, None, arguments.steps, train, 0, lr=1e-3)

    def figures(student: KDM) -> tuple[float, float, float]:
        made = student.generate(test.noise, test.labels if student.spec.num_classes else None)
        found = judge.features(made)
        return (judge.to_real(found), frechet_distance(fit_gaussian(found.features), teacher),
                float((made - test.samples).square().mean()))

    print(f"teacher's FD {judge.to_real(theirs):.3f}; before: "
          + ", ".join(f"{value:.4f}" for value in figures(start)))
    print("| adversary | FD to data | FD to the teacher's | MSE | time of a step |\n"
          "|---|---|---|---|---|")
    for name, adversary in ADVERSARIES.items():
        runs = [run(start, adversary, arguments.steps, train, seed, lr=5e-4)
                for seed in range(1, arguments.seeds + 1)]
        columns = zip(*(figures(student) for student, _ in runs), strict=True)
        cells = [f"{statistics.mean(c):.4f} ({min(c):.4f} to {max(c):.4f})" for c in columns]
        cost = statistics.median(seconds for _, seconds in runs) / plain
        print(f"| {name} | {' | '.join(cells)} | {cost:.2f}× |", flush=True)


def run(
    start: KDM, adversary: dict[str, Any] | None, steps: int, train: Pairs, seed: int, lr: float
) -> tuple[KDM, float]:
    """A copy of the student after `steps` more, and the CPU seconds that they took."""
    student = copy.deepcopy(start).requires_grad_(True)
    losses = LossConfig.model_validate({
        "latent_noise": 0.1, "adversarial": 0.0 if adversary is None else WEIGHT,
        "adversary": {"channels": CHANNELS, **(adversary or {})}})
    config = TrainingConfig.model_validate({
        "steps": steps, "batch": 256, "lr": lr, "warmup": 50, "schedule": "cosine", "ema": 0.99,
        "log_every": steps, "checkpoint_every": steps})
    task = StudentTask(student, losses, config, ResidentReader.of(train, config.batch, seed),
                       Pairs(*(part[:64] for part in train[:3])), seed)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fit(task, Path(folder) / "checkpoint.safetensors", "adversaries")
    result: KDM = task.ema.shadow
    return result, time.process_time() - began


if __name__ == "__main__":
    main()
