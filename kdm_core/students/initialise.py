"""Where a student's weights start: at a teacher's, or at another student's."""

from pathlib import Path

import torch

from kdm_core.classes import match_classes, rearrange
from kdm_core.config import Config
from kdm_core.errors import MismatchError, placed
from kdm_core.serialization import fingerprint, read_model
from kdm_core.students.base import Student

NETWORK = "network."  # what a teacher's weights are called that are its network's


@torch.no_grad()
def start_at_teacher(student: Student, folder: Path) -> tuple[int, str]:
    """Give every network of the student the weights of a teacher's that fit.

    Those are the tensors of the same name and shape: all of a network of the same configuration
    but for the layers that meet a latent, which has other channels than a sample. The student
    tells its networks the times between which the teacher's works. Of the teacher only the files
    are needed, and no code of its own.

    Args:
        folder: of the teacher.

    Returns:
        The number of parameters that were taken over, and the teacher's fingerprint.

    Raises:
        MismatchError: the networks have next to nothing in common, or the weights mean something
            else to the student, which is left as it was.
        DataError: the teacher's files are missing or damaged.
    """
    config, weights, mark = read_model(folder)
    if config.get("network_times") is None:
        raise MismatchError("init: teacher: this teacher has no network whose weights could be "
                            "taken; use init: random")
    with placed("init: teacher"):
        student.check_teacher(config["teacher"])
    theirs = {name.removeprefix(NETWORK): value for name, value in weights.items()
              if name.startswith(NETWORK)}
    order = shared_classes(student, config["samples"]["label_names"], "init: teacher")
    fitting = [{name: theirs[name] for name, value in network.state_dict().items()
                if name in theirs and theirs[name].shape == value.shape}
               for network in student.networks()]
    taken = sum(value.numel() for found in fitting for value in found.values())
    total = sum(parameter.numel() for parameter in student.parameters())
    if taken < 0.1 * total:
        raise MismatchError(
            f"init: teacher: of {total:,} parameters only {taken:,} fit the teacher's network; "
            f"give the student's its kind and sizes ({config['teacher']['network']}), or use init: "
            "random")
    student.tell_times(config["network_times"])
    for network, found in zip(student.networks(), fitting, strict=True):
        network.load_state_dict(found, strict=False)
        if order != sorted(order):
            rearrange(network.class_weights(), order)
    return taken, mark


@torch.no_grad()
def start_at_student(student: Student, other: Student, place: str) -> str:
    """Give a student all weights of another one of the same architecture, read from `place`.

    Returns:
        The fingerprint of those weights: a place may hold others tomorrow.

    Raises:
        MismatchError: the architecture or the samples are others; the message names the fields.
    """
    differences = [
        f"{section}.{name} (here {getattr(mine, name)!r}, there {getattr(theirs, name)!r})"
        for section, mine, theirs in (("model", student.config, other.config),
                                      ("samples", student.spec, other.spec))
        for name in other_fields(mine, theirs)
        if name != "label_names" or student.spec.num_classes != other.spec.num_classes]
    if differences:
        raise MismatchError(f"init: {place} is a student of another architecture: "
                            + "; ".join(differences))
    order = shared_classes(student, other.spec.label_names, f"init: {place}")
    student.load_state_dict(other.state_dict())
    if order != sorted(order):
        rearrange(student.class_weights(), order)
    return fingerprint({}, other.state_dict())


def other_fields(mine: Config, theirs: Config) -> list[str]:
    """The fields in which configurations differ; of those of two kinds the kind alone.

    What one leaves to a teacher (None) is in no other way.
    """
    if getattr(mine, "kind", None) != getattr(theirs, "kind", None):
        return ["kind"]
    return [name for name, value in mine
            if value != getattr(theirs, name) and not (name == "denoiser" and value is None)]


def shared_classes(student: Student, theirs: list[str], who: str) -> list[int]:
    """The number that each of the student's classes has in another model; none if one has none.

    Raises:
        MismatchError: it is not sure which class is which.
    """
    own = student.spec.label_names
    return match_classes(own, theirs, who, "the pairs") if len(own) == len(theirs) else []
