"""train_student NAME: distils the pairs into the student that params.yaml calls NAME."""

import os
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from kdm_core.compute import is_worker, seeded
from kdm_core.errors import MismatchError
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.reading.batches import PairReader
from kdm_core.pairs.reading.readers import open_reader
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.store import PairStore
from kdm_core.samples import Source
from kdm_core.serialization import write_json
from kdm_core.students.initialise import start_at_student, start_at_teacher
from kdm_core.students.model import KDM, save_student
from kdm_core.students.training import StudentTask
from kdm_core.training.distributed import (
    check_batch,
    check_devices,
    is_main,
    one_failure,
    process_group,
    world_size,
)
from kdm_core.training.launcher import launch
from kdm_core.training.loop import Record, fit
from kdm_core.training.meeting import Machines
from kdm_core.training.waiting import Waiting
from pipeline.execution import TorchrunTraining
from pipeline.params import StudentParams
from stages import paths
from stages.curves import Curves
from stages.figures import comparison, render
from stages.progress import Progress
from stages.runner import Stage, run

PROGRAM = "stages.train_student"
PREFIX = "kdm-"
PICTURE_EVERY_S = 20.0


def main(stage: Stage, name: str) -> None:
    engine = stage.params.execution.training
    if (isinstance(engine, TorchrunTraining) and not is_worker()
            and (engine.nodes != (1, 1) or processes(stage, engine) > 1)):
        start(stage, name, engine)
        return
    with process_group(stage.device) as stage.device:
        if is_worker():
            require_same_training(stage, name)
        distil(stage, name)


def processes(stage: Stage, engine: TorchrunTraining) -> int:
    """How many are to train on this machine."""
    every_gpu = stage.device.type == "cuda" and stage.device.index is None
    return engine.nproc_per_node or (torch.cuda.device_count() if every_gpu else 1)


def start(stage: Stage, name: str, engine: TorchrunTraining) -> None:
    """Have this stage done by processes, here and on the machines on which a person starts some.

    Raises:
        KDMError: they cannot work as params.yaml says; nothing has been started.
    """
    count, (least, most) = processes(stage, engine), engine.nodes
    config = stage.params.students[name].training
    check_devices(stage.device, count)
    check_batch(config.batch, config.accumulate,
                *(machines * count for machines in range(least, most + 1)))
    meeting = None
    if engine.rdzv_endpoint is not None and most > 1:
        meeting = Machines(least, most, engine.rdzv_endpoint, identity(stage, name),
                           engine.patience_s)
    code = launch(PROGRAM, [name], count, engine.max_restarts, meeting, stage.say)
    if code:
        sys.exit(code)


def identity(stage: Stage, name: str) -> str:
    """The same wherever this student is trained with the same parameters, code and torch."""
    student = stage.params.students[name].model_dump()
    return f"{PREFIX}{stage.key(stage.params.seed, student, torch.__version__)[:16]}"


def require_same_training(stage: Stage, name: str) -> None:
    """Make sure that this process has the parameters and the code of the one that started it all.

    Raises:
        MismatchError: it has not.
    """
    started = os.environ["TORCHELASTIC_RUN_ID"]
    if started.startswith(PREFIX) and started != identity(stage, name):
        raise MismatchError("this machine has other parameters of this student, other code or "
                            "another torch than the one that started the training: work in the "
                            "same folder, with the same environment")


def distil(stage: Stage, name: str) -> None:
    config = stage.params.students[name]
    mask = KeepMask.load(paths.KEEP)
    store = PairStore.open(paths.PAIRS).masked(mask)
    spec = store.spec
    stage.params.check_against(spec.samples)
    with seeded(stage.seed("weights")):
        student = KDM(config.model, spec.samples)
    start = initialise(stage, student, config)
    folder, key = stage.work_folder(spec.fingerprint, sha256(mask.reasons.tobytes()).hexdigest(),
                                    config.model_dump(), start, stage.device.type)
    if is_main():
        parameters = sum(p.numel() for p in student.parameters())
        stage.say(f"{config.model.operator.kind} operator on {config.model.latent} dimensions, "
                  f"{parameters:,} parameters, on {world_size()} × {stage.device.type}")
    checkpoint = folder / "checkpoint.safetensors"
    with open_pairs(stage, name, store) as reader:
        task = StudentTask(student.to(stage.device), config.losses, config.training, reader,
                           read_split(store, "validation", stage.device), stage.seed("training"))
        if not is_main():
            fit(task, checkpoint, key, say=lambda message: None)
            return
        waiting = Waiting(stage.device)
        last = train(stage, task, name, checkpoint, key, waiting, spec.source)
    law = {} if spec.label_weights is None else {"label_weights": spec.label_weights}
    fingerprint = save_student(folder / "result", task.ema.shadow, {
        "pairs": spec.fingerprint, "pairs_read": reader.order.count, "teacher": spec.teacher,
        "losses": config.losses.model_dump(), "training": config.training.model_dump(),
        **law, **start})
    stage.finish(folder / "result", paths.STUDENTS / name)
    write_json(paths.METRICS / "train_student" / f"{name}.json",
               {key: value for key, value in last.items() if key != "step"})
    stage.write_timing(processes=world_size(), waiting_share=round(waiting.share, 4))
    stage.say(f"student {fingerprint[:12]}")


def open_pairs(stage: Stage, name: str, store: PairStore) -> PairReader:
    """What the student is trained on; shows how reading them into memory gets on."""
    config = stage.params.students[name]
    every = len(store.kept_rows("train"))
    if is_main() and every < len(store.spec.split_range("train")):
        stage.say(f"reads {every:,} of {len(store.spec.split_range('train')):,} pairs")
    with Progress(f"{name}, pairs", every, "pair") as progress:
        return open_reader(
            store, "train", config.training.batch, stage.seed("training"), stage.device,
            config.shuffle_buffer, bool(config.losses.trajectory),
            progress.update if is_main() else lambda pairs: None)


def initialise(stage: Stage, student: KDM, config: StudentParams) -> dict[str, Any]:
    """Give the student the weights that it starts with; returns their origin's fingerprint."""
    if config.init == "random":
        return {}
    if config.init == "teacher":
        taken, mark = start_at_teacher(student, paths.TEACHER)
        if is_main():
            stage.say(f"{taken:,} parameters are the teacher's")
        return {"init": mark}
    return {"init": start_at_student(student, KDM.from_pretrained(config.init), config.init)}


def train(
    stage: Stage, task: StudentTask, name: str, checkpoint: Path, key: str, waiting: Waiting,
    source: Source,
) -> Record:
    """Run the loop with progress, curves and, now and then, a grid of held-out samples.

    Returns:
        The last point of the curves.
    """
    curves = Curves(name)
    steps, batch = task.config.steps, task.reader.batch
    noise, samples, labels = (part[:64] for part in task.validation[:3])
    shown = time.monotonic()

    def show_samples(step: int) -> None:
        nonlocal shown
        if step < steps and time.monotonic() - shown < PICTURE_EVERY_S:
            return
        shown = time.monotonic()
        best = task.ema.shadow
        made = best.generate(noise, task.labels(labels), task.config.precision)
        curves.picture("samples.png", render(comparison(best.spec, samples, made, source)))

    with Progress(name, steps * batch, "pair") as progress:

        def on_start(done: int) -> None:
            progress.resume(done * batch)

        def on_step(done: int) -> None:
            progress.reach(done * batch)

        def on_record(record: Record) -> None:
            progress.note = f"held-out MSE {record['validation_mse_ratio']:.3f} of permuted"
            curves(record)

        records = fit(task, checkpoint, key, on_step, on_record, show_samples, stage.say, waiting,
                      on_start)
    show_samples(steps)
    curves.end()
    return records[-1]


if __name__ == "__main__":
    name = sys.argv[1]
    relief = (f"raise students.{name}.training.accumulate, or make its batch or its model smaller, "
              "in params.yaml")
    with one_failure():
        run(f"train_student@{name}", lambda stage: main(stage, name), relief)
