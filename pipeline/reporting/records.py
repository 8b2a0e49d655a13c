"""The files that the report reads, as the stages before it write them."""

import re
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from kdm_core.metrics.denoising.record import DenoisingCheck

Number = int | float
PICTURES = "pictures"
"""The folder of a study's pictures, beside its findings.json; DVC shows them as plots."""


class Record(BaseModel):
    """A part of a JSON file; what a later version adds to it is no error."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Measured(Record):
    """A figure.

    Attributes:
        value: as it was measured.
        interval: within which it lies with 95 % confidence; None where that was not asked for.
        n: samples from which it comes.
    """

    value: Number
    interval: tuple[Number, Number] | None = None
    n: int | None = None


Figures = dict[str, Measured]


class Extrapolation(Record):
    """Fréchet distances (k,) at several numbers of samples (k,), and their limit."""

    n: list[int]
    fd: list[float]
    infinite: float

    @model_validator(mode="after")
    def _same_length(self) -> "Extrapolation":
        if len(self.n) != len(self.fd) or not self.n or min(self.n) < 1:
            raise ValueError("n and fd: there must be one distance for every number of samples")
        return self


class ExtractorRecord(Record):
    """The features in which sets of images were compared.

    Attributes:
        fingerprint: of the weights and of all that changes the features.
        dim: how many features.
        reference: the real samples that were compared with, and `reference_n` how many.
        metrics: the key of each metric in these features.
        text: what the extractor is, in a sentence.
        accuracy: of a classifier, on `accuracy_n` held-out images.
    """

    fingerprint: str
    dim: int
    reference: str
    reference_n: int
    metrics: dict[str, str]
    text: str
    accuracy: float | None = None
    accuracy_n: int | None = None


class SeenRecord(Record):
    """Figures that flatter a student, by their keys, with the terms of its losses.

    Attributes:
        network: in features of a network that its losses have seen.
        images: of a comparison with images that its losses took as real.
    """

    network: dict[str, list[str]] = {}
    images: dict[str, list[str]] = {}

    def flatters(self, key: str) -> bool:
        return key in self.network or key in self.images


class VerdictRecord(Record):
    """What a model's figures come to, as `kdm_core.metrics.verdict` has it.

    Attributes:
        word: "failed", "poor", "close", …
        why: the figures that decided it.
        unknown: what could not be judged.
    """

    word: str
    why: list[str] = []
    unknown: list[str] = []


class Evaluation(Record):
    """evaluation.json: a student beside its teacher and other real samples.

    Attributes:
        teacher: its figures; none where nobody knows which teacher made the pairs, and then
        pairs: those of the pairs' samples.
        real: of as many real samples as `conditions.n`; none where there are fewer.
        autoencoded: of other real samples as an autoencoder gives them back, where latents are
            learned.
        at_equal_n: by teacher, pairs, student, real and autoencoded, what is measured of as many
            samples as there are real ones (`conditions.real_n`).
        verdicts: by teacher, pairs and student.
        seen: which of the student's figures flatter it.
    """

    teacher: Figures = {}
    pairs: Figures = {}
    student: Figures
    real: Figures = {}
    autoencoded: Figures = {}
    at_equal_n: dict[str, Figures] = {}
    verdicts: dict[str, VerdictRecord] = {}
    seen: SeenRecord = SeenRecord()
    ratios: Figures = {}
    extrapolation: dict[str, dict[str, Extrapolation]] = {}
    extractors: dict[str, ExtractorRecord] = {}
    absent: list[str] = []
    warnings: list[str] = []
    conditions: dict[str, Any]

    @model_validator(mode="after")
    def _has_a_source(self) -> "Evaluation":
        if bool(self.teacher) == bool(self.pairs):
            raise ValueError("teacher and pairs: there must be figures of one of them")
        return self


class FindingRecord(Record):
    """One entry of findings.json; `warnings` are for the head of the report."""

    name: str
    title: str
    alt: str
    caption: str
    numbers: dict[str, Any]
    warnings: list[str] = []

    @model_validator(mode="after")
    def _plain_name(self) -> "FindingRecord":
        # The name is that of a file.
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(f"'{self.name}' is no name for a finding")
        return self


class FilterRecord(Record):
    """filtered.json: which pairs students are not shown.

    Attributes:
        pairs: that could be left out, those of the train and validation splits.
        kept: of them.
        reasons: in words, and how many pairs each speaks against; several can speak against one.
        findings: one for each space in which copies were looked for, with a picture.
    """

    pairs: int
    kept: int
    reasons: list[tuple[str, int]]
    findings: list[FindingRecord]


class TeacherRecord(Record):
    """details/teacher.json: of figures of the teacher's training, the report shows its check."""

    check: DenoisingCheck | None = None


class Counted(Record):
    """What a stage counted, and in how many seconds."""

    name: str
    unit: str
    done: int
    seconds: Number = Field(ge=0)


class Timing(Record):
    """timings/STAGE.json: how long a stage took, and on what.

    Attributes:
        seconds: of all runs that went into the result; `earlier_seconds` of those that were
            stopped.
        finished: when it came to its end.
        throughput: of the run that came to its end.
        notes: what the stage adapted, in words.
    """

    seconds: Number = Field(ge=0)
    earlier_seconds: Number = 0.0
    finished: AwareDatetime | None = None
    throughput: list[Counted] = []
    device: str
    hardware: str | None = None
    threads: int | None = None
    torch: str | None = None
    notes: list[str] = []
