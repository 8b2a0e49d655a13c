"""reference: the classifier in whose features image sets are compared, trained once a data set."""

from pathlib import Path

import numpy as np
import torch

from kdm_core.compute import seeded
from kdm_core.datasets import Dataset, open_dataset
from kdm_core.errors import placed
from kdm_core.metrics.classifier import (
    Classifier,
    ClassifierExtractor,
    ClassifierTask,
    save_classifier,
)
from kdm_core.metrics.features import extract
from kdm_core.serialization import write_json
from kdm_core.training.loop import fit
from kdm_core.values import as_float, to_uint8
from pipeline.params.reading import ParamsError
from pipeline.params.reference import ClassifierParams
from pipeline.runtime import paths
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage, run


def main(stage: Stage) -> None:
    dataset, mark = open_dataset(paths.DATASET)
    config = stage.params.reference.classifier
    metrics: dict[str, float] = {}
    folder, key = stage.work_folder(mark, stage.params.reference.model_dump())
    result = folder / "result"
    result.mkdir(exist_ok=True)
    if config is None:
        stage.say("no classifier is asked for (reference.classifier: null)")
    else:
        with placed("reference.classifier.training"):
            metrics = train_classifier(stage, config, dataset, folder, key)
    write_json(result / "reference.json", {"dataset": mark, **metrics})
    stage.finish(result, paths.REFERENCE)
    write_json(paths.DETAILS / "reference.json", metrics)
    stage.write_timing()


def train_classifier(
    stage: Stage, config: ClassifierParams, dataset: Dataset, folder: Path, key: str
) -> dict[str, float]:
    """Train on the train split and measure on the test split."""
    names = dataset.info.class_names
    if not names:
        raise ParamsError("params.yaml: reference.classifier: these data have no classes to tell "
                          "apart; set it to null")
    spec = dataset.info.samples.model_copy(update={"label_names": names})
    with seeded(stage.seed("weights")):
        model = Classifier(config.model, spec).to(stage.device)
    images = as_float(dataset.train_samples).to(stage.device)
    labels = torch.from_numpy(np.array(dataset.train_labels)).to(stage.device)
    task = ClassifierTask(model, config.training, images, labels, stage.seed("training"))
    with Progress("classifier", config.training.steps, "step") as progress:
        fit(task, folder / "checkpoint.safetensors", key,
            on_step=progress.reach, on_start=progress.resume)
    best = task.ema.shadow
    fingerprint = save_classifier(folder / "result", best)
    classes = extract(ClassifierExtractor(best, fingerprint),
                      to_uint8(as_float(dataset.test_samples))).probabilities
    assert classes is not None
    accuracy = float((classes.argmax(1) == dataset.test_labels).mean())
    stage.say(f"held-out accuracy {accuracy:.2%} on {len(dataset.test_labels)} images")
    return {"accuracy": accuracy, "accuracy_n": len(dataset.test_labels)}


if __name__ == "__main__":
    run("reference", main)
