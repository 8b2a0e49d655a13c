"""teacher: the model that is distilled, trained here on the data of the run."""

import numpy as np
import torch

from kdm_core.compute import fresh_weights
from kdm_core.datasets import open_dataset
from kdm_core.serialization import write_json
from kdm_core.teachers import build_teacher, save_teacher
from kdm_core.teachers.training import TeacherTask
from kdm_core.training.loop import fit
from kdm_core.values import as_float
from stages import paths
from stages.curves import Curves
from stages.progress import Progress
from stages.runner import Stage, run


def main(stage: Stage) -> None:
    dataset, mark = open_dataset(paths.DATASET)
    config = stage.params.teacher
    spec = dataset.info.samples
    stage.params.check_against(spec)
    folder, key = stage.work_folder(mark, config.model_dump(), stage.device.type)
    with fresh_weights(stage.seed("weights")):
        teacher = build_teacher(config.model, spec).to(stage.device)
    parameters = sum(p.numel() for p in teacher.parameters())
    stage.say(f"{config.model.kind}, {config.model.network.kind} of {parameters:,} parameters "
              f"on {stage.device}")
    samples = as_float(dataset.train_samples).to(stage.device)
    labels = torch.from_numpy(np.array(dataset.train_labels)).to(stage.device)
    task = TeacherTask(teacher, config.training, samples, labels, stage.seed("training"))
    curves = Curves("teacher")
    with Progress("teacher", config.training.steps, "step") as progress:

        def on_step(done: int) -> None:
            progress.update(done - progress.done)

        def on_record(record: dict[str, float]) -> None:
            progress.note = f"loss {record['loss']:.4f}"
            curves(record)

        records = fit(task, folder / "checkpoint.safetensors", key, on_step, on_record)
    curves.end()
    fingerprint = save_teacher(folder / "result", task.ema.shadow)
    stage.finish(folder / "result", paths.TEACHER)
    write_json(paths.METRICS / "teacher.json", {"loss": records[-1]["loss"],
                                                "parameters": parameters})
    stage.write_timing()
    stage.say(f"teacher {fingerprint[:12]}")


if __name__ == "__main__":
    run("teacher", main)
