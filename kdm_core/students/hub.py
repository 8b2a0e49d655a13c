"""Students as folders and on the Hugging Face hub: nothing in them is executed.

A folder holds what `save_student` writes, `config.json` and `weights.safetensors`, and a model
card. So `data/students/NAME` of a run is one, too.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from kdm_core.compute import seeded
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.samples import SampleSpec
from kdm_core.serialization import CONFIG, WEIGHTS, read_json, write_atomic
from kdm_core.students.card import CARD, model_card
from kdm_core.students.model import KDM, StudentConfig, load_student, save_student

MAX_CONFIG = 2**20
"""Bytes of a config.json: some 10,000 names of labels."""

# The field of config.json that decides what a part of the student is.
FIELDS = {"noise_encoder": "encoder", "data_encoder": "encoder", "time_of_ends": "timed"}

Shapes = dict[str, tuple[int, ...]]
C = TypeVar("C", bound=BaseModel)


def from_pretrained(source: str | Path, revision: str | None = None) -> KDM:
    """A student from a folder, or from OWNER/NAME on the Hugging Face hub.

    Args:
        source: a folder that is there, or a name on the hub.
        revision: a branch, tag or commit of the hub; None for its main branch.

    Returns:
        The student, in eval mode on the CPU.

    Raises:
        DataError: there is no such student, or its files are damaged or hold something else.
        MismatchError: its weights are of another architecture than its configuration.
        KDMError: the package for the hub is not installed.
    """
    folder = find_student(source, revision)
    check_student(folder)
    # Loading draws weights before it overwrites them: no reason to disturb the caller's.
    with seeded(0):
        student, _ = load_student(folder)
    return student


def save_pretrained(student: KDM, folder: str | Path, card: str | None = None) -> str:
    """Write config.json, weights.safetensors and README.md, each of them all at once.

    Args:
        folder: made where it is missing; an older student in it is replaced.
        card: the model card; None for one that says what the student itself knows.

    Returns:
        The fingerprint.

    Raises:
        DataError: they cannot be written.
    """
    target = Path(folder)
    fingerprint = save_student(target, student, student.provenance)
    text = model_card(student, fingerprint) if card is None else card
    write_atomic(target / CARD, text.encode())
    return fingerprint


def push_to_hub(
    student: KDM,
    repo_id: str,
    card: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "A one-step student",
    token: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes to the hub, in one commit.

    Args:
        repo_id: OWNER/NAME; made where it is missing.
        card: as of `save_pretrained`.
        private: whether a new repository is; None for the owner's default.
        revision: the branch; None for the main one.
        message: of the commit.
        token: None for the one of `hf auth login`.

    Returns:
        The commit's address.

    Raises:
        DataError: it could not be uploaded.
        KDMError: the package for the hub is not installed.
    """
    with reaching_hub(f"{repo_id} could not be pushed", "check the name, the network and that you "
                      "are logged in (hf auth login)") as hub:

        # Here and not a base of KDM, which would need the package wherever a student is used.
        class Upload(hub.ModelHubMixin):  # type: ignore[misc, name-defined]
            def _save_pretrained(self, save_directory: Path) -> None:
                save_pretrained(student, save_directory, card)

        commit = Upload().push_to_hub(repo_id, private=private, branch=revision,
                                      commit_message=message, token=token)
    return str(commit)


def find_student(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a student, downloaded if need be.

    Raises:
        DataError: there is no such folder, or it could not be downloaded.
        KDMError: the package for the hub is not installed.
    """
    name = str(source)
    if Path(source).is_dir():
        return Path(source)
    if not isinstance(source, str) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise DataError(f"student: {name} is no folder: correct it to one, or to OWNER/NAME on the "
                        "hub")
    with reaching_hub(f"{name} is no folder here and could not be fetched from the hub",
                      "check the name, the revision and the network") as hub:
        return Path(hub.snapshot_download(name, revision=revision,
                                          allow_patterns=[CONFIG, WEIGHTS]))


@contextmanager
def reaching_hub(failure: str, remedy: str) -> Iterator[Any]:
    """The hub's library, with one clear message for whatever goes wrong in it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise KDMError("student: the hub needs the package huggingface_hub: "
                       "pip install 'kdm-distill[hub]'") from error
    try:
        yield huggingface_hub
    except KDMError:
        raise
    except Exception as error:  # its own, those of its HTTP client, and those of the file system
        text = " ".join(str(error).split())[:300]
        raise DataError(f"student: {failure} ({type(error).__name__}: {text}): {remedy}") from error


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
    if not isinstance(content, dict) or set(content) != fields:
        raise DataError(f"{path} is not the configuration of a student, which has the fields "
                        f"{', '.join(sorted(fields))}")
    if not isinstance(content["provenance"], dict):
        raise DataError(f"{path}: provenance: is no object")
    config = parse(StudentConfig, content["student"], f"{path}: student")
    spec = parse(SampleSpec, content["samples"], f"{path}: samples")
    found = stored_shapes(folder / WEIGHTS)
    limit_sizes([content["student"], spec.shape], found, path)
    compare(expected_shapes(config, spec, path), found, folder)
    check_law(content["provenance"].get("label_weights"), spec.num_classes, path)


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


def parse(kind: type[C], content: Any, place: str) -> C:
    """A part of a configuration.

    Raises:
        DataError: it is none; all fields that are wrong are named.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join([place, *map(str, problem['loc'])])}: {problem['msg']}"
                    for problem in error.errors(include_url=False)]
        raise DataError("; ".join(problems) + ": it was written by another version, or "
                        "altered") from error


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
            student = KDM(config, spec)
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
