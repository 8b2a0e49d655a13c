"""A whole run: all sections of params.yaml."""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from kdm_core.config import Config
from kdm_core.datasets import DataConfig
from kdm_core.decoders import AutoencoderSource
from kdm_core.pairs.filtering.config import FilterConfig
from kdm_core.pairs.spec import StoreSpec
from kdm_core.samples import Source
from kdm_core.studies import StudiesConfig
from kdm_core.weights import WeightsSources
from pipeline.params.combinations import require_all
from pipeline.params.compute import ComputeParams
from pipeline.params.evaluation import EvaluationParams
from pipeline.params.execution import ExecutionParams
from pipeline.params.pairs import PairsParams
from pipeline.params.reading import FILE, parse, read_values
from pipeline.params.reference import ReferenceParams
from pipeline.params.report import ReportParams
from pipeline.params.student import StudentParams
from pipeline.params.teacher import NoTeacher, TeacherParams

STUDENT_NAME = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9_][A-Za-z0-9_-]{0,99}", re.ASCII)

RESERVED = {"teacher": "the teacher's", "pairs": "the pairs'", "report": "the whole report"}
"""Of whom else there are figures beside the students'."""


class Params(Config):
    """A whole run, as params.yaml describes it.

    All sections must be there but `autoencoder` and those that say where to compute; the example is
    the least that may stand in one.

    Attributes:
        seed: of everything that is drawn: weights, batches, noise, splits.
        data: the real samples, on which a teacher is trained and against which all are measured.
        autoencoder: whose latents models learn in place of the data themselves; unset for none.
        teacher: the model that is distilled: trained here, imported, in closed form, or none.
        pairs: noise with what the teacher makes of it: sampled here, or taken from a store.
        weights: files of extractors' weights that lie somewhere else than where `kdm weights`
            keeps them, by the names that `kdm weights list` gives.
    """

    seed: int = Field(ge=0, lt=2**31, examples=["0"])
    compute: ComputeParams = ComputeParams()
    execution: ExecutionParams = ExecutionParams()
    data: DataConfig
    reference: ReferenceParams = Field(examples=["{classifier: null}"])
    autoencoder: AutoencoderSource | None = Field(None, discriminator="source")
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
            if name in RESERVED:
                raise ValueError(f"'{name}' is no name for a student: reports/{name}.json is "
                                 f"{RESERVED[name]}; take another")
        return students

    @model_validator(mode="after")
    def _combinations(self) -> "Params":
        require_all(self)
        return self

    def source(self, pairs: StoreSpec) -> Source:
        """What students stand beside: the teacher, if it is there and known to have made the
        pairs."""
        return "pairs" if isinstance(self.teacher, NoTeacher) else pairs.source

    @property
    def trusts_code(self) -> bool:
        """Whether a module of the user's may be imported and run."""
        return bool(getattr(self.teacher, "trust_code", False))


def load_params(path: Path = FILE) -> Params:
    """Read and validate a parameter file.

    Raises:
        ParamsError: it is missing, no YAML, or not what the schema allows. The message has, for
            every problem, the path of the key, what was found and what is allowed.
    """
    return parse_params(read_values(path), str(path))


def parse_params(values: Any, name: str = str(FILE)) -> Params:
    """Validate parameters that were read from the file `name`."""
    return parse(Params, values, name)  # type: ignore[no-any-return]
