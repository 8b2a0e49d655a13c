"""Students as folders: written, and read after all that a file says has been checked.

A folder holds `config.json` and `weights.safetensors`, and for latents the same of their
autoencoder in `autoencoder/`, where it is known. Nothing in it is executed.
"""

import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from kdm_core.config import Config
from kdm_core.decoders.base import Autoencoder
from kdm_core.decoders.storage import (
    build_autoencoder,
    load_autoencoder,
    read_saved,
    save_autoencoder,
)
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.samples import SampleSpec
from kdm_core.serialization import (
    CONFIG,
    REMARKS,
    WEIGHTS,
    load_model,
    read_json,
    read_remarks,
    save_model,
)
from kdm_core.students import KINDS, Student, StudentConfig, with_kind

MAX_CONFIG = 2**20
"""Bytes of a config.json: some 10,000 names of labels."""

# The field of config.json that decides what a part of the student is.
FIELDS = {"noise_encoder": "encoder", "data_encoder": "encoder", "time_of_ends": "timed"}

VERDICT = "verdict"  # among the remarks
AUTOENCODER = "autoencoder"


class Judged(Config):
    """As `kdm_core.metrics.verdict.Verdict`."""

    word: str
    why: list[str]
    unknown: list[str]


class Remarks(Config):
    """What is known of a student and is no part of it."""

    verdict: Judged | None = None


Shapes = dict[str, tuple[int, ...]]
C = TypeVar("C")
STUDENT: TypeAdapter[StudentConfig] = TypeAdapter(StudentConfig)


def save_student(folder: Path, student: Student, provenance: dict[str, Any]) -> str:
    """Write a student as safetensors and JSON; returns its fingerprint.

    `provenance` says what it was distilled from (e.g. the pair store's fingerprint).
    """
    shutil.rmtree(folder / AUTOENCODER, ignore_errors=True)
    if student.autoencoder is not None:
        save_autoencoder(folder / AUTOENCODER, student.autoencoder)
    return save_model(folder, student, {"student": student.config.model_dump(),
                                        "samples": student.spec.model_dump(),
                                        "provenance": provenance},
                      {VERDICT: dict(student.verdict)} if student.verdict else None)


def load_student(folder: Path) -> tuple[Student, str]:
    """Read what `save_student` wrote; returns the student in eval mode and its fingerprint."""

    def build(config: dict[str, Any]) -> Student:
        parsed: StudentConfig = STUDENT.validate_python(with_kind(config["student"]))
        student = parsed.build(SampleSpec.model_validate(config["samples"]))
        student.provenance = config["provenance"]
        student.verdict = read_remarks(folder).get(VERDICT)
        return student

    student, mark = load_model(folder, build)
    if (folder / AUTOENCODER).is_dir():
        student.attach(load_beside(folder / AUTOENCODER, student.spec))
    return student, mark


def load_beside(folder: Path, spec: SampleSpec) -> Autoencoder:
    """The decoder of a student's latents.

    Raises:
        DataError, MismatchError: it is damaged, or that of others.
    """
    decoder, mark = load_autoencoder(folder)
    if spec.kind != "latent" or decoder.shape != spec.shape or spec.decoder not in (None, mark):
        raise MismatchError(f"{folder} is not the decoder of this student's samples ({spec.kind} "
                            f"of shape {spec.shape}): fetch the student again, or remove it")
    return decoder


# Checks, before anything is built of what a file says


def check_student(folder: Path) -> None:
    """Make sure that a folder's configuration and weights are those of one student.

    Nothing larger than the weights' own file is allocated for it.

    Raises:
        DataError: a file is missing or damaged, or the configuration is not a student's.
        MismatchError: weights and configuration are of two architectures.
    """
    path = folder / CONFIG
    if path.is_file() and path.stat().st_size > MAX_CONFIG:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, which no student's has")
    content = read_json(path)
    fields = {"student", "samples", "provenance", "fingerprint"}
    if not isinstance(content, dict) or set(content) - {REMARKS} != fields:
        raise DataError(f"{path} is not the configuration of a student, which has the fields "
                        f"{', '.join(sorted(fields))}")
    if not isinstance(content["provenance"], dict):
        raise DataError(f"{path}: provenance: is no object")
    parse(TypeAdapter(Remarks), content.get(REMARKS, {}), f"{path}: {REMARKS}")
    config = parse(STUDENT, with_kind(content["student"]), f"{path}: student")
    spec = parse(TypeAdapter(SampleSpec), content["samples"], f"{path}: samples")
    found = stored_shapes(folder / WEIGHTS)
    limit_sizes([content["student"], spec.shape], found, path)
    compare(expected_shapes(config, spec, path), found, folder)
    check_law(content["provenance"].get("label_weights"), spec.num_classes, path)
    if (folder / AUTOENCODER).is_dir():
        check_beside(folder / AUTOENCODER)


def check_beside(folder: Path) -> None:
    """As `check_student`, of the autoencoder beside it. Raises as that."""
    path = folder / CONFIG
    if path.is_file() and path.stat().st_size > MAX_CONFIG:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, which no autoencoder's has")
    saved, found = read_saved(folder), stored_shapes(folder / WEIGHTS)
    limit_sizes(saved.model_dump(), found, path)
    try:
        with torch.device("meta"):
            model = build_autoencoder(saved.autoencoder, saved.picture)
    except KDMError as error:
        raise DataError(f"{path}: {error}") from error
    compare({name: tuple(value.shape) for name, value in model.state_dict().items()}, found, folder)


def check_law(weights: Any, classes: int, path: Path) -> None:
    """Make sure that labels can be drawn in the proportion that a configuration says.

    Raises:
        DataError: they cannot.
    """
    if weights is not None and not (
            isinstance(weights, list) and len(weights) == classes
            and all(type(weight) is int and 0 <= weight < 2**31 for weight in weights)
            and any(weights)):
        raise DataError(f"{path}: provenance.label_weights: {str(weights)[:100]} is no list of a "
                        f"whole number for each of {classes} classes: fetch the student again")


def parse(kind: TypeAdapter[C], content: Any, place: str) -> C:
    """A part of a configuration.

    Raises:
        DataError: it is none; all fields that are wrong are named.
    """
    try:
        return kind.validate_python(content)
    except ValidationError as error:
        problems = [f"{'.'.join([place, *fields(problem['loc'])])}: {problem['msg']}"
                    for problem in error.errors(include_url=False)]
        raise DataError("; ".join(problems) + ": it was written by another version, or "
                        "altered") from error


def fields(location: tuple[int | str, ...]) -> list[str]:
    """Where a problem is, without the kind of student, which is no part of the file's path."""
    path = list(map(str, location))
    return path[1:] if path and path[0] in KINDS else path


def stored_shapes(path: Path) -> Shapes:
    """The shapes of all tensors of a safetensors file, from its header alone.

    Raises:
        DataError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: fetch the student again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): fetch the student again") from error


def limit_sizes(value: Any, found: Shapes, path: Path, name: str = "") -> None:
    """Refuse a configuration of more blocks than there are tensors, or of larger numbers than there
    are values in them: it is of other weights, and to build it could take forever.

    Raises:
        MismatchError: it is such a one.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            limit_sizes(part, found, path, str(key))
    elif isinstance(value, list):
        for part in value:
            limit_sizes(part, found, path, name)
    elif isinstance(value, int):
        most = len(found) if name == "blocks" else sum(map(prod, found.values()))
        if value > most:
            raise MismatchError(f"{path}: {name or 'shape'} {value} does not fit {WEIGHTS}, which "
                                f"has {len(found)} tensors")


def expected_shapes(config: StudentConfig, spec: SampleSpec, path: Path) -> Shapes:
    """The shapes of all tensors of a student, of which none is allocated.

    Raises:
        DataError: there can be no such student.
    """
    try:
        with torch.device("meta"):
            student = config.build(spec)
    except (KDMError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    return {name: tuple(value.shape) for name, value in student.state_dict().items()}


def compare(expected: Shapes, found: Shapes, folder: Path) -> None:
    """Make sure that weights are of the architecture of a configuration.

    Raises:
        MismatchError: they are not; each field that differs is named with one of its tensors.
    """
    fields: dict[str, str] = {}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            part = name.split(".")[0]
            fields.setdefault(FIELDS.get(part, part), f"{name} is {shown(found.get(name))} but "
                              f"should be {shown(expected.get(name))}")
    if fields:
        differing = "; ".join(f"{field} ({example})" for field, example in fields.items())
        raise MismatchError(f"{folder / WEIGHTS} is of another architecture than "
                            f"{folder / CONFIG}: {differing}")


def shown(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(shape)
