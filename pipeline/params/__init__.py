"""The only reader of params.yaml: a strict schema, and errors that a person can act on."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdm_core.classes import require_order
from kdm_core.compute import names_device
from kdm_core.config import Config
from kdm_core.datasets import DataConfig, DatasetInfo
from kdm_core.datasets.checkerboard import CheckerboardConfig
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.importers import FolderSource, ForeignSource, import_guide, import_teacher
from kdm_core.losses.adversary import check_adversary
from kdm_core.losses.distances import LPIPSConfig, check_distance
from kdm_core.losses.features import check_features
from kdm_core.losses.trunks import Net, check_images
from kdm_core.metrics.classifier import ClassifierConfig
from kdm_core.metrics.extractors import ExtractorConfig, check_extractor
from kdm_core.networks import is_spatial
from kdm_core.networks.module import ModuleNetworkConfig
from kdm_core.pairs.filtering.config import FilterConfig
from kdm_core.pairs.filtering.rules import load_rules
from kdm_core.pairs.location import check_url, local_path, writable_location
from kdm_core.pairs.reading.order import BlockOrder
from kdm_core.pairs.sampling import PairsConfig, check_plan
from kdm_core.pairs.spec import Split, StoreSpec
from kdm_core.samples import SampleSpec
from kdm_core.students.model import KDM, StudentConfig
from kdm_core.students.objective import LossConfig, check_losses
from kdm_core.students.phases import NextPhase, Phase, phases
from kdm_core.studies import StudiesConfig
from kdm_core.teachers import TrainableConfig, build_teacher
from kdm_core.teachers.augmentation import AugmentationConfig, check_augmentation
from kdm_core.teachers.guidance import guided
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import check_batch
from kdm_core.weights import WeightsSources
from pipeline.params.execution import ExecutionParams, TorchrunTraining, TrainingEngine
from pipeline.params.other_names import hint
from pipeline.params.schema_errors import describe

FILE = Path("params.yaml")
STUDENT_NAME = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", re.ASCII)


class ParamsError(KDMError):
    """params.yaml cannot be used; the message has one line a problem."""


class ComputeParams(Config):
    """Where to compute. No stage depends on this section: changing it reruns nothing.

    Attributes:
        device: `auto` (the best there is), `cpu`, `cuda`, `cuda:1`, `mps`, …
        threads: CPU threads; 0 leaves the choice to torch. Results on a CPU are reproducible to
            the bit only for the same number of threads.
        deterministic: use only kernels that give the same bits every time, where torch has them;
            on GPUs others are faster.
    """

    device: str = "auto"
    threads: int = Field(0, ge=0)
    deterministic: bool = True

    @field_validator("device")
    @classmethod
    def _named(cls, device: str) -> str:
        if not names_device(device):
            meant = hint(device.partition(":")[0], ["auto", "cpu", "cuda", "mps"])
            raise ValueError(f"'{device}' is no device; it may be auto, cpu, cuda, cuda:1 or mps"
                             f"{'; ' if meant else ''}{meant}")
        return device


class WeakerTeacher(Config):
    """A second teacher, smaller or less trained, that autoguidance pushes away from."""

    model: TrainableConfig
    training: TrainingConfig


class TrainedTeacher(Config):
    """A teacher that is trained here, on the data of the run.

    Attributes:
        label_dropout: share of the labels that it is not shown; classifier-free guidance needs
            some (0.1).
        augmentation: of the images; None for none.
        guide: the weaker teacher of autoguidance, trained on the same data.
    """

    source: Literal["train"]
    model: TrainableConfig
    training: TrainingConfig
    label_dropout: float = Field(0.0, ge=0, lt=1)
    augmentation: AugmentationConfig | None = None
    guide: WeakerTeacher | None = None

    def models(self) -> dict[str, TrainableConfig]:
        """What is trained, by its place in the file."""
        guide = {"teacher.guide.model": self.guide.model} if self.guide is not None else {}
        return {"teacher.model": self.model, **guide}

    @model_validator(mode="after")
    def _trainable(self) -> "TrainedTeacher":
        for name, model in self.models().items():
            if isinstance(model.network, ModuleNetworkConfig):
                raise ValueError(f"{name}.network.kind: a module of your own is imported with "
                                 "teacher.source: module")
            kind = getattr(getattr(model, "preconditioning", None), "kind", "edm")
            if kind != "edm":
                raise ValueError(f"{name}.preconditioning.kind: {kind} is for models that are "
                                 "imported; use edm")
        return self


class ExactTeacher(Config):
    """A teacher in closed form, of the training data: for studies, and to check what is exact.

    Attributes:
        kind: the normal distribution of the data (of each class, if there are labels), or the
            data themselves.
    """

    source: Literal["exact"]
    kind: Literal["gaussian_mixture", "finite_data"]


SourceParams = Annotated[ForeignSource, Field(discriminator="source")]
TeacherParams = Annotated[TrainedTeacher | ExactTeacher | ForeignSource,
                          Field(discriminator="source")]


class StoredPairs(Config):
    """Pairs that have been sampled already, by another project or by others.

    Attributes:
        location: their store, a folder or a URL (s3://, gs://, https://).
        content: the content hash that `kdm pairs verify` prints: other pairs stop the run.
    """

    source: Literal["store"]
    location: str = Field(min_length=1)
    content: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @field_validator("location")
    @classmethod
    def _without_secrets(cls, location: str) -> str:
        try:
            if local_path(location) is None:
                check_url(location, read_only=True)
        except DataError as error:
            raise ValueError(str(error)) from error
        return location


PairsParams = Annotated[PairsConfig | StoredPairs, Field(discriminator="source")]


class StudentParams(Config):
    """One student: architecture, objective, optimisation.

    Attributes:
        shuffle_buffer: pairs that are mixed at a time; twice as many are held in the host's memory,
            read in the background. At least a batch and a file (`pairs.shard`) less one pair; null,
            or as many as there are, mixes all pairs, which then lie on the device as stored.
        init: where the weights start: `random`, at the `teacher`'s as far as they fit, or at those
            of a student of the same architecture, which is a folder or OWNER/NAME on the hub.
        losses, training: of the first phase.
        then: further phases, each of which starts where the one before ended.
    """

    model: StudentConfig
    init: str = Field("random", min_length=1)
    shuffle_buffer: int | None = Field(None, ge=1)
    losses: LossConfig = LossConfig()
    training: TrainingConfig
    then: list[NextPhase] = []

    @property
    def phases(self) -> list[Phase]:
        """All of them, in order."""
        return phases(Phase(self.losses, self.training), self.then)

    def placed_losses(self) -> list[tuple[str, LossConfig]]:
        """The losses of all phases that have their own, with their place in a student's section."""
        return [("", self.losses), *((f"then.{number}.", phase.losses)
                                     for number, phase in enumerate(self.then) if phase.losses)]

    @model_validator(mode="after")
    def _consistent(self) -> "StudentParams":
        for where, losses in self.placed_losses():
            try:
                check_losses(losses, self.model)
            except ValueError as error:
                raise ValueError(f"{where}{error}") from error
        if self.init == "teacher" and not self.model.takes_time:
            raise ValueError("init: the teacher's network takes a time, and so has a student that "
                             "starts at its weights; set model.timed: true")
        return self


class ClassifierParams(Config):
    """The classifier in whose features image sets are compared."""

    model: ClassifierConfig = ClassifierConfig()
    training: TrainingConfig


class ReferenceParams(Config):
    """What samples are measured against, besides the data: null for points and unlabelled data."""

    classifier: ClassifierParams | None


class EvaluationParams(Config):
    """What is measured, and at what cost; all pairs of the test split are used.

    Attributes:
        extractors: in whose features sets of images are compared.
        reference: the split of the data that they are compared with; the other one is measured
            beside the models, as far as it goes.
        statistics: by an extractor's name, a file with published mean and covariance (npz with mu
            and sigma) to measure against in place of the data.
        bootstrap: resamples behind every confidence interval; 0 leaves the intervals out.
        lpips: networks of LPIPS.
        lpips_pairs: pairs on which LPIPS is measured; 0 leaves it out.
        lpips_resolution: smaller images are enlarged to this many pixels for LPIPS.
        timing_images: images generated to measure the speed of teacher and student.
        projections: directions of the sliced Wasserstein distance (points).
    """

    extractors: list[ExtractorConfig] = []
    reference: Literal["train", "test"] = "train"
    statistics: dict[str, str] = {}
    bootstrap: int = Field(200, ge=0)
    lpips: list[Net] = ["vgg"]
    lpips_pairs: int = Field(1000, ge=0)
    lpips_resolution: int = Field(64, ge=32)
    timing_images: int = Field(1000, ge=1)
    projections: int = Field(128, ge=1)

    @field_validator("lpips_pairs")
    @classmethod
    def _permutable(cls, pairs: int) -> int:
        if pairs == 1:
            raise ValueError("a single pair cannot be permuted; use 2 or more, or 0 for none")
        return pairs

    @model_validator(mode="after")
    def _names(self) -> "EvaluationParams":
        names = [config.name for config in self.extractors]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"extractors: {', '.join(twice)} stands there twice")
        if unknown := sorted(set(self.statistics) - set(names)):
            raise ValueError(f"statistics: there is no extractor {', '.join(unknown)}; extractors "
                             f"has {', '.join(names) or 'none'}")
        return self


class ReportParams(Config):
    """What the report is called, and where else it goes.

    Attributes:
        publish: a folder or a URL (s3://, gs://) to which report and figures are copied as well.
    """

    title: str = "One-step distillation"
    publish: str | None = Field(None, min_length=1)

    @field_validator("publish")
    @classmethod
    def _writable(cls, publish: str | None) -> str | None:
        return publish if publish is None else writable_location(publish)


class Params(Config):
    """A whole run, as params.yaml describes it.

    All sections must be there but those that say where to compute; the example is the least that
    may stand in one.

    Attributes:
        weights: files of extractors' weights that lie somewhere else than where `kdm weights`
            keeps them, by the names that `kdm weights list` gives.
    """

    seed: int = Field(ge=0, lt=2**31, examples=["0"])
    compute: ComputeParams = ComputeParams()
    execution: ExecutionParams = ExecutionParams()
    data: DataConfig
    reference: ReferenceParams = Field(examples=["{classifier: null}"])
    teacher: TeacherParams
    pairs: PairsParams
    filter: FilterConfig = Field(examples=["{}"])
    students: dict[str, StudentParams] = Field(min_length=1)
    evaluation: EvaluationParams = Field(examples=["{}"])
    weights: WeightsSources = Field(examples=["{}"])
    studies: StudiesConfig = Field(examples=["{}"])
    report: ReportParams = Field(examples=["{}"])

    @field_validator("students")
    @classmethod
    def _names(cls, students: dict[str, StudentParams]) -> dict[str, StudentParams]:
        for name in students:
            # The name becomes part of file names and of DVC's stage names.
            if not STUDENT_NAME.fullmatch(name):
                raise ValueError(f"'{name}' is no name for a student: use up to 100 letters, "
                                 "digits, - and _, no - first")
            if name == "teacher":
                raise ValueError("'teacher' is no name for a student: it is the teacher's own, "
                                 "whose curves would lie in the same folder; take another")
        return students

    @model_validator(mode="after")
    def _combinations(self) -> "Params":
        if isinstance(self.data, CheckerboardConfig):
            self._require_points()
        self._require_labels()
        self._require_guidance()
        self._require_states()
        self._require_classifier()
        return self

    def _require_classifier(self) -> None:
        asked = {"evaluation.extractors": any(config.kind == "classifier"
                                              for config in self.evaluation.extractors),
                 "filter.copies": self.filter.needs_classifier,
                 **{f"students.{name}.{where}losses": "classifier" in losses.asked_networks
                    for name, student in self.students.items()
                    for where, losses in student.placed_losses()}}
        for where, needed in asked.items():
            if needed and self.reference.classifier is None:
                raise ValueError(f"{where}: there is no classifier; describe one under "
                                 "reference.classifier, or take it out of the list")

    def _require_labels(self) -> None:
        if getattr(self.teacher, "label_dropout", 0) and not getattr(
                self.data, "conditional", False):
            raise ValueError("teacher.label_dropout: this teacher takes no labels; set it to 0, or "
                             "data.conditional to true")

    def _require_states(self) -> None:
        for name, student in self.students.items():
            for where, losses in student.placed_losses():
                if losses.trajectory and getattr(self.pairs, "states", None) == 0:
                    raise ValueError(f"students.{name}.{where}losses.trajectory: there are no "
                                     "intermediate states in the pairs; set pairs.states (4, say), "
                                     "or the weight to 0")

    def _require_guidance(self) -> None:
        guidance = getattr(self.pairs, "guidance", None)
        if guidance is None:
            return
        guides = isinstance(self.teacher, FolderSource) or getattr(self.teacher, "guide", None)
        if guidance.kind == "autoguidance" and not guides:
            raise ValueError("pairs.guidance.kind: autoguidance needs a second, weaker teacher; "
                             + self._way_to_a_guide())
        if guidance.kind == "classifier_free" and not getattr(
                self.data, "conditional", False):
            raise ValueError("pairs.guidance.kind: classifier_free needs a teacher that takes "
                             "labels; set data.conditional: true, or use autoguidance")
        if (guidance.kind == "classifier_free" and isinstance(self.teacher, TrainedTeacher)
                and not self.teacher.label_dropout):
            raise ValueError("pairs.guidance.kind: classifier_free needs a teacher that has also "
                             "learned to do without labels; set teacher.label_dropout: 0.1")

    def _way_to_a_guide(self) -> str:
        if "guide" in type(self.teacher).model_fields:
            return "describe one under teacher.guide"
        return (f"teacher.source: {self.teacher.source} has none: make a folder of both with kdm "
                "teacher import, the weaker one in its subfolder guide, for teacher.source: folder")

    def _require_points(self) -> None:
        problems = []
        if getattr(self.pairs, "sample_dtype", None) == "uint8":
            problems.append("pairs.sample_dtype: uint8 is for images; points need float32")
        if self.reference.classifier is not None:
            problems.append("reference.classifier: points have no classifier; set it to null")
        if self.evaluation.extractors:
            problems.append("evaluation.extractors: they are for images; leave them out")
        problems += self.filter.problems_with_points()
        if isinstance(self.teacher, TrainedTeacher):
            network = self.teacher.model.network
            if is_spatial(network):
                problems.append(f"teacher.model.network.kind: {network.kind} is for images; "
                                "use mlp")
        for name, student in self.students.items():
            for part in ("encoder", "decoder"):
                network = getattr(student.model, part)
                if is_spatial(network):
                    problems.append(f"students.{name}.model.{part}.kind: {network.kind} is for "
                                    "images; use mlp")
            for where, losses in student.placed_losses():
                if isinstance(losses.distance, LPIPSConfig):
                    problems.append(f"students.{name}.{where}losses.distance.kind: LPIPS is for "
                                    "images; use mse or pseudo_huber")
                if losses.adversarial and losses.adversary.network == "paper":
                    problems.append(f"students.{name}.{where}losses.adversary.network: the paper's "
                                    "discriminator is for images; use features, with those of the "
                                    "teacher, or set adversarial to 0")
        if problems:
            raise ValueError("data.source is checkerboard, whose samples are points:\n  "
                             + "\n  ".join(problems))

    def check_against(self, spec: SampleSpec, info: DatasetInfo | None = None) -> None:
        """Make sure that every model can be built for samples of this kind and shape, and that all
        that is done with them can be done.

        Called as soon as the data are known, so that a student that does not fit is found before
        a teacher is trained and not after.

        Args:
            info: of the data set, for what the samples alone do not tell.

        Raises:
            ParamsError: something does not fit; the message has a line a problem, which names the
                parameter.
        """
        if problems := self.problems_with(spec, info):
            raise ParamsError("\n".join(f"{FILE}: {text}" for text in problems))

    def problems_with(self, spec: SampleSpec, info: DatasetInfo | None = None) -> list[str]:
        """What does not fit samples of this kind and shape; arguments as of `check_against`."""
        found = []
        for where, check in self._checks(spec, info):
            try:
                check()
            except (KDMError, ValueError) as error:
                found.append(f"{where}{error}")
        return found

    def _checks(
        self, spec: SampleSpec, info: DatasetInfo | None
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        """What must come off, each with what its error's message lacks of the parameter's path."""
        if isinstance(self.teacher, TrainedTeacher):
            yield from self._teacher_checks(self.teacher, spec, info)
        for name, student in self.students.items():
            yield from self._student_checks(f"students.{name}.", student, spec)
        classifier = self.reference.classifier
        if classifier is not None and info is not None:
            if not info.class_names:
                yield "", partial(refuse, "reference.classifier: these data have no classes to "
                                  "tell apart; set it to null")
            yield "reference.classifier.", partial(
                check_batch_of, info.train, classifier.training)
        for config in self.evaluation.extractors:
            yield "evaluation.extractors: ", partial(check_extractor, config, spec)
        for copies in self.filter.copies:
            if copies.features is not None:
                yield "filter.copies: ", partial(check_extractor, copies.features, spec)
        if spec.kind == "image" and self.evaluation.lpips_pairs:
            for net in self.evaluation.lpips:
                yield "evaluation.lpips_resolution: ", partial(
                    check_images, net, self.evaluation.lpips_resolution, spec.sample_shape)

    def _teacher_checks(
        self, teacher: TrainedTeacher, spec: SampleSpec, info: DatasetInfo | None
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        for name, model in teacher.models().items():
            yield f"{name}.", partial(on_meta, build_teacher, model, spec)
            if teacher.augmentation is not None:
                yield "", partial(check_augmentation, teacher.augmentation, spec, model.network)
        if isinstance(self.pairs, PairsConfig):
            yield "", partial(check_plan_of, self.pairs, teacher.model, spec)
        if info is not None:
            yield "teacher.", partial(check_batch_of, info.train, teacher.training)
            if teacher.guide is not None:
                yield "teacher.guide.", partial(check_batch_of, info.train, teacher.guide.training)

    def _student_checks(
        self, where: str, student: StudentParams, spec: SampleSpec
    ) -> Iterator[tuple[str, Callable[[], object]]]:
        yield f"{where}model.", partial(on_meta, KDM, student.model, spec)
        for place, losses in student.placed_losses():
            yield f"{where}{place}", partial(check_distance, losses.distance, spec)
            if losses.adversarial:
                yield f"{where}{place}", partial(check_adversary, losses.adversary, spec)
            if losses.drifting:
                for features in losses.drift.features:
                    yield f"{where}{place}", partial(check_features, features, spec,
                                                     "losses.drift.features")
        if isinstance(self.pairs, PairsConfig):
            for phase in student.phases:
                yield where, partial(check_batch_of, self.pairs.train, phase.training,
                                     *processes_of(self.execution.training))
                if student.shuffle_buffer is not None:
                    yield where, partial(check_window, self.pairs, student.shuffle_buffer,
                                         phase.training.batch)

    @property
    def trusts_code(self) -> bool:
        """Whether a module of the user's may be imported and run."""
        return bool(getattr(self.teacher, "trust_code", False))

    def check_source(self, spec: SampleSpec) -> None:
        """Make sure that a teacher of others can be imported, makes samples like the data's and
        can be guided as the pairs are, and that the user's rules for pairs can be called.

        Raises:
            KDMError: one cannot, or does not; the message names the parameter.
        """
        self.check_rules(spec)
        self.check_teacher(spec)

    def check_rules(self, spec: SampleSpec) -> None:
        """Make sure that the user's rules for pairs can be called. Raises as `check_source`."""
        load_rules(self.filter, spec)

    def check_teacher(self, spec: SampleSpec) -> None:
        """Make sure that a teacher of others can be imported and sampled. Raises as
        `check_source`."""
        if isinstance(self.teacher, TrainedTeacher | ExactTeacher):
            return
        teacher, guide = import_teacher(self.teacher, spec), import_guide(self.teacher, spec)
        if isinstance(self.pairs, PairsConfig):
            try:
                check_plan(self.pairs, guided(teacher, guide, self.pairs.guidance))
            except ValueError as error:
                raise ParamsError(f"{FILE}: {error}") from error

    def check_stored(self, stored: StoreSpec, samples: SampleSpec) -> None:
        """Make sure that pairs that are taken over are such samples, and suffice for all that is
        wanted of them.

        Raises:
            MismatchError: they are of others.
            ParamsError: they do not.
        """
        where = f"{FILE}: pairs.location: the store there has"
        for name in ("kind", "shape"):
            theirs, ours = getattr(stored.samples, name), getattr(samples, name)
            if theirs != ours:
                raise MismatchError(f"{where} samples of {name} {theirs}, and the teacher of "
                                    f"{ours}: choose other pairs or another teacher")
        require_order(stored.samples.label_names, samples.label_names,
                      f"{FILE}: pairs.location", "the teacher")
        needed: dict[Split, int] = {"test": 2, "validation": 2, "train": 1}
        for split, least in needed.items():
            if (count := stored.splits.get(split, 0)) < least:
                raise ParamsError(f"{where} {count} {split} pairs, {least} are needed: choose "
                                  "another one")
        for name, student in self.students.items():
            if (any(losses.trajectory for _, losses in student.placed_losses())
                    and not stored.states):
                raise ParamsError(f"{where} no intermediate states, which students.{name}.losses."
                                  "trajectory needs: set that weight to 0, or choose another one")


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


def load_params(path: Path = FILE) -> Params:
    """Read and validate a parameter file.

    Raises:
        ParamsError: it is missing, no YAML, or not what the schema allows. The message has, for
            every problem, the path of the key, what was found and what is allowed.
    """
    return parse_params(read_values(path), str(path))


def read_file(path: Path = FILE) -> bytes:
    """A parameter file as it is.

    Raises:
        ParamsError: it is missing.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ParamsError(f"{path} is missing: run this in a project's folder (`kdm new DIR` "
                          "makes one), or let `kdm preset use digits` write it") from error


def read_values(path: Path = FILE) -> Any:
    """What stands in a parameter file, valid or not.

    Raises:
        ParamsError: it is missing, or no YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(read_file(path).decode("utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ParamsError(f"{path}{where} is no valid YAML: {error.problem or error}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is no valid YAML: {error}") from error


def parse_params(values: Any, name: str = str(FILE)) -> Params:
    """Validate parameters that were read from the file `name`."""
    return parse(Params, values, name)  # type: ignore[no-any-return]


def parse(annotation: Any, values: Any, name: str) -> Any:
    """Validate what was read from `name`: all of a file, or one section of it.

    Raises:
        ParamsError: it is not what the schema allows.
    """
    try:
        return TypeAdapter(annotation).validate_python(values)
    except ValidationError as error:
        raise ParamsError(f"{name} cannot be used:\n{describe(error, annotation)}") from error
