"""Whether what params.yaml describes fits the samples, the teacher and the pairs that there are."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdm_core.classes import require_order
from kdm_core.datasets import DatasetInfo
from kdm_core.decoders import TrainedAutoencoder, latent_shape
from kdm_core.errors import KDMError, MismatchError, placed
from kdm_core.importers import import_guide, import_teacher
from kdm_core.losses.adversary import check_adversary
from kdm_core.losses.distances import check_distance
from kdm_core.losses.features import check_features
from kdm_core.losses.trunks import check_images
from kdm_core.metrics.extractors import check_extractor
from kdm_core.pairs.filtering.rules import load_rules
from kdm_core.pairs.reading.order import BlockOrder
from kdm_core.pairs.sampling import PairsConfig, check_plan
from kdm_core.pairs.spec import Split, StoreSpec
from kdm_core.samples import SampleSpec
from kdm_core.students import StudentConfig
from kdm_core.teachers import TrainableConfig, build_teacher
from kdm_core.teachers.augmentation import check_augmentation
from kdm_core.teachers.guidance import guided
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import check_batch
from pipeline.params.execution import TorchrunTraining, TrainingEngine
from pipeline.params.reading import FILE, ParamsError
from pipeline.params.student import StudentParams
from pipeline.params.teacher import ExactTeacher, NoTeacher, TrainedTeacher

if TYPE_CHECKING:
    from pipeline.params.run import Params


def check_against(params: "Params", spec: SampleSpec, info: DatasetInfo | None = None) -> None:
    """Make sure that every model can be built for samples of this kind and shape, and that all
    that is done with them can be done.

    Called as soon as the data are known, so that a student that does not fit is found before
    a teacher is trained and not after.

    Args:
        spec: of the data, or of what models learn of them.
        info: of the data set, for what the samples alone do not tell.

    Raises:
        ParamsError: something does not fit; the message has a line a problem, which names the
            parameter.
    """
    if problems := problems_with(params, spec, info):
        raise ParamsError("\n".join(f"{FILE}: {text}" for text in problems))


def problems_with(params: "Params", spec: SampleSpec, info: DatasetInfo | None = None) -> list[str]:
    """What does not fit samples of this kind and shape; arguments as of `check_against`."""
    found = []
    for where, check in checks(params, spec, info):
        try:
            check()
        except (KDMError, ValueError) as error:
            found.append(f"{where}{error}")
    return found


def checks(
    params: "Params", spec: SampleSpec, info: DatasetInfo | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What must come off, each with what its error's message lacks of the parameter's path."""
    try:
        spec, shown = learned(params, spec), spec.as_picture
    except KDMError as error:
        yield "autoencoder.", partial(refuse, str(error))
        return
    if isinstance(params.teacher, TrainedTeacher):
        yield from teacher_checks(params, params.teacher, spec, info)
    for name, student in params.students.items():
        yield from student_checks(params, f"students.{name}.", student, spec)
    classifier = params.reference.classifier
    if classifier is not None and info is not None:
        if not info.class_names:
            yield "", partial(refuse, "reference.classifier: these data have no classes to "
                              "tell apart; set it to null")
        yield "reference.classifier.training.", partial(
            check_batch_of, info.train, classifier.training)
    if isinstance(params.autoencoder, TrainedAutoencoder) and info is not None:
        yield "autoencoder.training.", partial(check_batch_of, info.train,
                                               params.autoencoder.training)
    if shown.kind == "latent" and params.autoencoder is None:
        return  # nothing is measured of pictures then
    for config in params.evaluation.extractors:
        yield "evaluation.extractors: ", partial(check_extractor, config, shown)
    for copies in params.filter.copies:
        if copies.features is not None:
            yield "filter.copies: ", partial(check_extractor, copies.features, shown)
    if shown.kind == "image" and params.evaluation.lpips_pairs:
        for net in params.evaluation.lpips:
            yield "evaluation.lpips_resolution: ", partial(
                check_images, net, params.evaluation.lpips_resolution, shown.sample_shape)


def learned(params: "Params", spec: SampleSpec) -> SampleSpec:
    """What models learn of such data: themselves, or their latents, whose autoencoder need not be
    there yet.

    Raises:
        KDMError: there is no autoencoder for such images.
    """
    if params.autoencoder is None or spec.kind == "latent":
        return spec
    shape = latent_shape(params.autoencoder, spec.shape)
    return SampleSpec(kind="latent", shape=shape, label_names=spec.label_names,
                      decoder="not made yet", picture=spec.shape)


def teacher_checks(
    params: "Params", teacher: TrainedTeacher, spec: SampleSpec, info: DatasetInfo | None
) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, model in teacher.models().items():
        yield f"{name}.", partial(on_meta, build_teacher, model, spec)
        if teacher.augmentation is not None:
            yield "teacher.", partial(check_augmentation, teacher.augmentation, spec,
                                      model.network)
    if isinstance(params.pairs, PairsConfig):
        yield "pairs.", partial(check_plan_of, params.pairs, teacher.model, spec)
    if info is not None:
        yield "teacher.training.", partial(check_batch_of, info.train, teacher.training)
        if teacher.guide is not None:
            yield "teacher.guide.training.", partial(check_batch_of, info.train,
                                                     teacher.guide.training)


def student_checks(
    params: "Params", where: str, student: StudentParams, spec: SampleSpec
) -> Iterator[tuple[str, Callable[[], object]]]:
    if has_own_network(params, student):
        yield f"{where}model.", partial(on_meta, completed(params, student).build, spec)
    for place, losses in student.placed_losses():
        yield f"{where}{place}", partial(check_distance, losses.distance, spec)
        if losses.adversarial:
            yield f"{where}{place}", partial(check_adversary, losses.adversary, spec)
        if losses.drifting:
            for features in losses.drift.features:
                yield f"{where}{place}", partial(check_features, features, spec,
                                                 "losses.drift.features")
    if isinstance(params.pairs, PairsConfig):
        for number, phase in enumerate(student.phases):
            place = f"{where}then.{number - 1}." if number else f"{where}training."
            yield place, partial(check_batch_of, params.pairs.train, phase.training,
                                 *processes_of(params.execution.training))
            if student.shuffle_buffer is not None:
                yield where, partial(check_window, params.pairs, student.shuffle_buffer,
                                     phase.training.batch)


def has_own_network(params: "Params", student: StudentParams) -> bool:
    """Whether it is known what a student is made of before its teacher is there."""
    return bool(student.model.networks()) or isinstance(params.teacher, TrainedTeacher)


def completed(params: "Params", student: StudentParams) -> StudentConfig:
    """A student's model with what it leaves to the teacher of the parameters.

    Raises:
        MismatchError: that is known when the teacher is there, or there is none.
    """
    teacher = params.teacher
    model: StudentConfig = student.model.completed(
        teacher.model.model_dump() if isinstance(teacher, TrainedTeacher) else None)
    return model


def check_source(params: "Params", spec: SampleSpec) -> None:
    """Make sure that a teacher of others can be imported, makes samples like the data's and
    can be guided as the pairs are, and that the user's rules for pairs can be called.

    Raises:
        KDMError: one cannot, or does not; the message names the parameter.
    """
    found = learned(params, spec)
    check_rules(params, found)
    check_teacher(params, found)


def check_rules(params: "Params", spec: SampleSpec) -> None:
    """Make sure that the user's rules for pairs can be called. Raises as `check_source`."""
    with placed("filter"):
        load_rules(params.filter, spec)


def check_teacher(params: "Params", spec: SampleSpec) -> None:
    """Make sure that a teacher of others can be imported and sampled. Raises as
    `check_source`."""
    if isinstance(params.teacher, TrainedTeacher | ExactTeacher | NoTeacher):
        return
    with placed("teacher"):
        teacher, guide = import_teacher(params.teacher, spec), import_guide(params.teacher, spec)
    for name, student in params.students.items():
        if student.model.networks():
            continue  # which `check_against` has built
        with placed(f"students.{name}.model"):
            on_meta(student.model.completed(teacher.config.model_dump()).build, spec)
    if isinstance(params.pairs, PairsConfig):
        with placed("pairs"):
            check_plan(params.pairs, guided(teacher, guide, params.pairs.guidance))


def check_stored(
    params: "Params", stored: StoreSpec, samples: SampleSpec, others: str = "the teacher makes"
) -> None:
    """Make sure that pairs that are taken over are such samples, and suffice for all that is
    wanted of them.

    Args:
        others: whose samples these are, with a verb.

    Raises:
        MismatchError: they are of others.
        ParamsError: they do not.
    """
    where = f"{FILE}: pairs.location: the store there has"
    for name in ("kind", "shape"):
        theirs, ours = getattr(stored.samples, name), getattr(samples, name)
        if theirs != ours:
            raise MismatchError(f"{where} samples of {name} {theirs}, and {others} of {name} "
                                f"{ours}: choose other pairs, or what goes with them")
    # Of data the classes are matched by name wherever they are used.
    if not isinstance(params.teacher, NoTeacher):
        require_order(stored.samples.label_names, samples.label_names,
                      f"{FILE}: pairs.location", "the teacher")
    needed: dict[Split, int] = {"test": 2, "validation": 2, "train": 1}
    for split, least in needed.items():
        if (count := stored.splits.get(split, 0)) < least:
            raise ParamsError(f"{where} {count} {split} pairs, {least} are needed: choose "
                              "another one")
    for name, student in params.students.items():
        terms = [f"{place}losses.{term}" for place, losses in student.placed_losses()
                 for term in losses.takes_states]
        if terms and not stored.states:
            raise ParamsError(f"{where} no intermediate states, which students.{name}.{terms[0]} "
                              "needs: set that weight to 0, or choose another one")
        if params.source(stored) == "pairs":
            with placed(f"students.{name}.model"):
                student.model.completed(None)


def on_meta(build: Callable[..., object], *arguments: object) -> object:
    """Build something without memory or time for its weights."""
    with torch.device("meta"):
        return build(*arguments)


def refuse(message: str) -> None:
    raise ParamsError(message)


def check_plan_of(pairs: PairsConfig, model: TrainableConfig, spec: SampleSpec) -> None:
    """As `check_plan`, of a teacher that there is not yet."""
    try:
        with torch.device("meta"):
            teacher = build_teacher(model, spec)
    except (KDMError, ValueError):
        return  # that is said of the model
    check_plan(pairs, teacher)


def processes_of(engine: TrainingEngine) -> list[int]:
    """How many processes may train a student, as far as the parameters tell."""
    if not isinstance(engine, TorchrunTraining) or engine.nproc_per_node is None:
        return [1]
    least, most = engine.nodes
    return [engine.nproc_per_node * machines for machines in range(least, most + 1)]


def check_batch_of(count: int, training: TrainingConfig, *processes: int) -> None:
    """Make sure that batches of so many samples can be cut as a training asks for."""
    check_batch(min(training.batch, count), training.accumulate, *processes or (1,), most=count)


def check_window(pairs: PairsConfig, window: int, batch: int) -> None:
    """Make sure that a window of training pairs suffices to mix them."""
    if window < pairs.train:
        rows = np.arange(pairs.test + pairs.validation, pairs.test + pairs.validation + pairs.train)
        sizes = np.unique(rows // pairs.shard, return_counts=True)[1]
        BlockOrder(sizes, window, min(batch, pairs.train), seed=0)
