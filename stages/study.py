"""study NAME: what a student has learned of its teacher, in pictures and numbers."""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.datasets import open_dataset
from kdm_core.errors import adapted, placed
from kdm_core.figures.files import save_figure
from kdm_core.figures.style import drawn_in
from kdm_core.metrics.extractors import ReferenceConfig, VGG16Config, build_extractor
from kdm_core.metrics.features import Extractor, FeatureCache
from kdm_core.serialization import write_json
from kdm_core.solvers import AdaptiveSolver, Solution
from kdm_core.students.seen import seen, trains_states
from kdm_core.studies import StudiesConfig, run_studies
from kdm_core.studies.base import Subject
from kdm_core.studies.memorisation import MemorisationConfig
from kdm_core.values import to_uint8
from pipeline.reporting.records import PICTURES
from pipeline.runtime import paths
from pipeline.runtime.latents import Pictures
from pipeline.runtime.models import Models, open_models
from pipeline.runtime.runner import Stage, run


def main(stage: Stage, name: str) -> None:
    models = open_models(stage, name, states=True)
    subject = describe(stage, name, models)
    folder, _ = stage.work_folder(models.teacher_mark, models.student_mark,
                                  models.store.fingerprint)
    result = folder / "result"
    # DVC expects both outputs, also where there is nothing to see.
    (result / PICTURES).mkdir(parents=True, exist_ok=True)
    findings = []
    with placed("studies"), drawn_in(stage.plan["place"]):
        found = list(run_studies(subject, asked_for(stage, subject), stage.say))
    for finding in found:
        save_figure(result / PICTURES / f"{finding.name}.png", finding.figure)
        findings.append({key: value for key, value in finding._asdict().items()
                         if key != "figure"})
        for warning in finding.warnings:
            stage.warn(warning)
    write_json(result / "findings.json", findings)
    stage.finish(result, paths.STUDIES / name)
    stage.write_timing()


def asked_for(stage: Stage, subject: Subject) -> StudiesConfig:
    """The studies of the parameters, and of a student that was shown the data that of its memory.
    """
    config = stage.params.studies
    if not subject.shown_data or not subject.spec.bounded or config.memorisation is not None:
        return config
    adapted("null, but the losses of this student took the training images as real, and then it "
            "is made", field="memorisation")
    return config.model_copy(update={"memorisation": MemorisationConfig()})


def describe(stage: Stage, name: str, models: Models) -> Subject:
    """Both models as studies see them: functions and samples on the CPU."""
    dataset, _ = open_dataset(paths.DATASET)
    test, student, spectrum = models.test, models.student, models.student.eigenvalues()
    shown, latent = models.pictures, models.pictures.autoencoder is not None
    adaptive = isinstance(models.store.solver, AdaptiveSolver)
    return Subject(
        spec=shown.shown, label_names=models.store.samples.label_names,
        noise=test.noise, labels=test.labels, teacher=shown(test.samples),
        student=shown(models.sample_student(test.noise, test.labels)),
        train_samples=dataset.train_samples, held_out_samples=dataset.test_samples,
        sample_teacher=pictured(models.sample_teacher, shown),
        sample_student=pictured(models.sample_student, shown),
        features=features(stage, models),
        eigenvalues=None if spectrum is None else spectrum.numpy(),
        seed=stage.shared_seed("studies"), name=name,
        sample_latent=pictured(models.sample_latent, shown) if student.has_latents else None,
        source=models.source, real_data=dataset.info.real,
        shown_data=bool(seen(student.provenance).real),
        sample_steps=pictured(models.sample_steps, shown) if student.can_refine() else None,
        sample_teacher_steps=None if adaptive else solved(models.sample_teacher_steps, shown),
        # States are noisy latents, of which nobody knows what a decoder makes.
        stored_states=None if latent else test.trajectory,
        positions=[] if test.positions is None or latent else test.positions.tolist(),
        sample_states=models.sample_states if student.has_states and not latent else None,
        states_trained=trains_states(student.provenance),
        edit=pictured(models.edit, shown) if student.has_modes else None)


def pictured(sample: Callable[..., Tensor], pictures: Pictures) -> Callable[..., Tensor]:
    """The samples of a function as studies look at them: of latents, the images."""
    return lambda *given: pictures(sample(*given))


def solved(sample: Callable[..., Solution], pictures: Pictures) -> Callable[..., Solution]:
    """As `pictured`, of what a solver gives."""

    def shown(*given: Any) -> Solution:
        found = sample(*given)
        return found._replace(state=pictures(found.state))

    return shown


def features(stage: Stage, models: Models) -> Callable[[Tensor], NDArray[np.float32]] | None:
    """Samples → features of the run's classifier, or of VGG16 where there is none."""
    if models.pictures.shown.kind != "image":
        return None
    trained = stage.params.reference.classifier is not None
    config = ReferenceConfig(kind="classifier") if trained else VGG16Config(kind="vgg16")
    stored = FeatureCache(paths.FEATURES)

    @cache  # when a study asks for it first: without any, no weights are needed
    def extractor() -> Extractor:
        return build_extractor(config, {}, stage.device, paths.REFERENCE)

    return lambda images: stored.get(extractor(), to_uint8(images)).features


if __name__ == "__main__":
    run(f"study@{sys.argv[1]}", lambda stage: main(stage, sys.argv[1]))
