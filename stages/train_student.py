"""train_student NAME: distils the pairs into the student that params.yaml calls NAME."""

import sys
from pathlib import Path

from kdm_core.compute import seeded
from kdm_core.pairs.reading import read_split
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import write_json
from kdm_core.students.model import KDM, save_student
from kdm_core.students.training import StudentTask
from kdm_core.training.loop import Record, fit
from stages import paths
from stages.curves import Curves
from stages.figures import save_grid
from stages.progress import Progress
from stages.runner import Stage, run


def main(stage: Stage, name: str) -> None:
    config = stage.params.students[name]
    store = PairStore.open(paths.PAIRS)
    spec = store.spec
    stage.params.check_against(spec.samples)
    folder, key = stage.work_folder(spec.fingerprint, config.model_dump(), stage.device.type)
    with seeded(stage.seed("weights")):
        student = KDM(config.model, spec.samples).to(stage.device)
    parameters = sum(p.numel() for p in student.parameters())
    stage.say(f"{config.model.operator.kind} operator on {config.model.latent} dimensions, "
              f"{parameters:,} parameters, on {stage.device}")
    task = StudentTask(student, config.losses, config.training,
                       read_split(store, "train", stage.device),
                       read_split(store, "validation", stage.device), stage.seed("training"))
    records = train(task, name, folder, key)
    fingerprint = save_student(folder / "result", task.ema.shadow, {
        "pairs": spec.fingerprint, "teacher": spec.teacher, "steps": config.training.steps})
    stage.finish(folder / "result", paths.STUDENTS / name)
    write_json(paths.METRICS / "train_student" / f"{name}.json",
               {key: value for key, value in records[-1].items() if key != "step"})
    stage.write_timing()
    stage.say(f"student {fingerprint[:12]}")


def train(task: StudentTask, name: str, folder: Path, key: str) -> list[Record]:
    """Run the loop with progress and curves; ends with a grid of held-out samples."""
    curves = Curves(name)
    steps, batch = task.config.steps, task.order.batch
    with Progress(name, steps * batch, "pair") as progress:

        def on_step(done: int) -> None:
            progress.update(done * batch - progress.done)

        def on_record(record: Record) -> None:
            progress.note = f"held-out MSE {record['validation_mse_ratio']:.3f} of permuted"
            curves(record)

        records = fit(task, folder / "checkpoint.safetensors", key, on_step, on_record)
    best = task.ema.shadow
    noise, samples, labels = (part[:64] for part in task.validation)
    made = best.sample(noise, task.labels(labels), task.config.precision)
    save_grid(curves.folder / "samples.png", best.spec, samples, made)
    curves.end()
    return records


if __name__ == "__main__":
    run(f"train_student@{sys.argv[1]}", lambda stage: main(stage, sys.argv[1]))
