"""autoencoder: what turns images into latents and back, and the latents of the data."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdm_core.compute import seeded
from kdm_core.datasets import Dataset, NoDataConfig, open_dataset, save_dataset
from kdm_core.datasets.base import standard_deviation
from kdm_core.decoders import (
    Autoencoder,
    AutoencoderTask,
    ConvAutoencoder,
    ForeignAutoencoderSource,
    TrainedAutoencoder,
    encode_all,
    import_autoencoder,
    normalise,
    picture_shape,
    save_autoencoder,
)
from kdm_core.errors import placed
from kdm_core.samples import SampleSpec
from kdm_core.serialization import write_json
from kdm_core.training.loop import Record, fit
from pipeline.runtime import paths
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage, run


def main(stage: Stage) -> None:
    config = stage.params.autoencoder
    if config is None:
        leave_out(stage)
        return
    dataset, mark = open_dataset(paths.DATASET)
    folder, key = stage.work_folder(mark, config.model_dump(), stage.device.type)
    figures: dict[str, Any] = {}
    if isinstance(config, TrainedAutoencoder):
        with placed("autoencoder.training"):
            model, figures = train(stage, config, dataset, folder, key)
    else:
        with placed("autoencoder"):
            model = imported(config, dataset.info.samples)
    result = folder / "result"
    shutil.rmtree(result, ignore_errors=True)
    fingerprint = save_autoencoder(result, model)
    if not isinstance(stage.params.data, NoDataConfig):
        with placed("autoencoder"):
            encoded = latents_of(stage, model.to(stage.device), fingerprint, dataset)
        save_dataset(result / paths.LATENTS.name, encoded)
        figures["sigma_data"] = encoded.info.samples.sigma_data
    stage.finish(result, paths.AUTOENCODER)
    parameters = sum(weight.numel() for weight in model.parameters())
    write_json(paths.DETAILS / "autoencoder.json", {**figures, "parameters": parameters})
    stage.write_timing()
    stage.say(f"autoencoder {fingerprint[:12]}, {parameters:,} parameters: images of shape "
              f"{model.picture}, latents of shape {model.shape}")


def leave_out(stage: Stage) -> None:
    """A result that says so: DVC expects its folder."""
    folder, _ = stage.work_folder(None)
    write_json(folder / "result" / "none.json", {"autoencoder": None})
    stage.finish(folder / "result", paths.AUTOENCODER)
    write_json(paths.DETAILS / "autoencoder.json", {})
    stage.write_timing()
    stage.say("models learn the data themselves (there is no section autoencoder)")


def train(
    stage: Stage, config: TrainedAutoencoder, dataset: Dataset, folder: Path, key: str
) -> tuple[Autoencoder, dict[str, float]]:
    """Train on the training images; returns the averaged weights, and figures of held-out images.
    """
    with seeded(stage.seed("weights")):
        model = ConvAutoencoder(config.model, dataset.info.samples.shape).to(stage.device)
    parameters = sum(weight.numel() for weight in model.parameters())
    stage.say(f"latents of shape {model.shape}, {parameters:,} parameters on {stage.device}")
    images, held_out = (torch.from_numpy(np.array(samples)).to(stage.device)
                        for samples in (dataset.train_samples, dataset.test_samples))
    task = AutoencoderTask(model, config.training, images, held_out, stage.seed("training"),
                           config.kl, config.perceptual)
    with Progress("autoencoder", config.training.steps, "step") as progress:

        def on_record(record: Record) -> None:
            progress.note = f"loss {record['loss']:.4f}"

        records = fit(task, folder / "checkpoint.safetensors", key, progress.reach, on_record,
                      on_start=progress.resume)
    best = task.ema.shadow
    normalise(best, dataset.train_samples, stage.device)
    last = {name: value for name, value in records[-1].items() if name != "step"}
    return best, last


def imported(config: ForeignAutoencoderSource, samples: SampleSpec) -> Autoencoder:
    """The autoencoder of others, for the images that there are, or for the latents.

    Raises:
        KDMError: there is none, or it is for others.
    """
    if samples.kind != "latent":
        return import_autoencoder(config, samples.shape)
    return import_autoencoder(config, picture_shape(config, samples.shape), samples.shape)


def latents_of(
    stage: Stage, model: Autoencoder, fingerprint: str, dataset: Dataset
) -> Dataset:
    """The data set, its images encoded.

    Raises:
        KDMError: the images are of another shape, or cannot be encoded.
    """
    splits = {"train": dataset.train_samples, "test": dataset.test_samples}
    encoded = {}
    for split, images in splits.items():
        with Progress(f"latents, {split}", len(images), "image") as progress:
            encoded[split] = encode_all(model, images, stage.device, on_images=progress.update)
    samples = model.samples(fingerprint, standard_deviation(encoded["train"]),
                            dataset.info.samples.label_names)
    info = dataset.info.model_copy(update={"samples": samples})
    return Dataset(encoded["train"], np.array(dataset.train_labels), encoded["test"],
                   np.array(dataset.test_labels), info)


if __name__ == "__main__":
    run("autoencoder", main)
