"""Which sections of params.yaml each stage reads."""

from typing import NamedTuple


class Reads(NamedTuple):
    """What a stage takes from params.yaml; `{key}` stands for a student's name.

    Attributes:
        values: sections whose values decide its result.
        kinds: sections that say of what kind the components are that it loads from others' results.
        shows: whether it only shows what it reads, in templates, which no module imports.
    """

    values: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    shows: bool = False


STUDENT = "students.{key}"
READS: dict[str, Reads] = {
    "prepare_data": Reads(("seed", "data")),
    "reference": Reads(("seed", "reference")),
    "autoencoder": Reads(("seed", "autoencoder")),
    "teacher": Reads(("seed", "teacher")),
    "sample_pairs": Reads(("seed", "pairs"), ("teacher",)),
    "filter_pairs": Reads(("seed", "filter", "weights")),
    "train_student": Reads(("seed", STUDENT), ("teacher", "autoencoder")),
    "evaluate": Reads(("seed", "evaluation", "reference", "weights"),
                      ("teacher", "autoencoder", STUDENT)),
    "study": Reads(("seed", "studies", "reference"), ("teacher", "autoencoder", STUDENT)),
    "report": Reads(("seed", "data", "reference", "autoencoder", "teacher", "pairs", "filter",
                     "students", "evaluation", "weights", "studies", "report"), shows=True),
}
PER_STUDENT = ("train_student", "evaluate", "study")
COLOURED = ("study",)
"""Stages whose pictures have the colour of their student, which follows from its place of all."""


def stages_of(students: list[str]) -> list[str]:
    """The names of all stages of a run, as DVC has them, but for the plan."""
    return [stage for name in READS
            for stage in ([f"{name}@{key}" for key in students] if name in PER_STUDENT else [name])]


def reads_of(stage: str) -> Reads:
    """What a stage reads, by its name in DVC: `train_student@kdm`."""
    name, _, key = stage.partition("@")
    reads = READS[name]
    return reads._replace(values=tuple(one.format(key=key) for one in reads.values),
                          kinds=tuple(one.format(key=key) for one in reads.kinds))


def values_of(stage: str, data: str) -> tuple[str, ...]:
    """The sections whose values decide a stage's result.

    Args:
        data: their source; where there are none, the pairs stand in for them.
    """
    stands_in = stage == "prepare_data" and data == "none"
    return (*reads_of(stage).values, *(["pairs"] if stands_in else []))
