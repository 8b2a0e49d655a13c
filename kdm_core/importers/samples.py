"""Whether what an imported teacher makes is what the data set holds."""

from kdm_core.classes import match_classes, shown
from kdm_core.errors import KDMError, MismatchError, adapted, called
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Teacher


def label_names(count: int, data: SampleSpec) -> list[str]:
    """Names for a model's classes: those of the data set if it has as many, numbers otherwise."""
    return data.label_names if len(data.label_names) == count else [str(i) for i in range(count)]


def require_same_samples(teacher: SampleSpec, data: SampleSpec) -> None:
    """Make sure that a model's samples can be compared with the data set's.

    Raises:
        MismatchError: shape or number of labels differ; the message names the parameter.
    """
    if teacher.kind != data.kind or teacher.shape != data.shape:
        raise MismatchError(
            f"this model makes samples of kind {teacher.kind} and shape {teacher.shape}, the data "
            f"set holds {data.kind} of shape {data.shape}: choose a data set of the model's "
            "resolution and channels, or another model", field="")
    if teacher.num_classes != data.num_classes:
        hint = ("leave out the data's (conditional: false)" if not teacher.num_classes else
                "use the data with theirs (conditional: true), or data with the model's classes")
        raise MismatchError(f"this model takes {teacher.num_classes} labels, the data set gives "
                            f"{data.num_classes}: {hint}", field="")


def align_classes(teacher: Teacher, data: SampleSpec, named: bool) -> None:
    """Number a teacher's classes as the data set's: by name where both have names.

    Everything after it then knows one order, the data's; a teacher whose order that is already is
    left as it is, and so is one whose classes have mere numbers.

    Args:
        named: whether its file says what its classes are called, or they were given the data's
            names by their order.

    Raises:
        MismatchError: it is not sure which class is which; the message shows both lists.
    """
    names = data.label_names
    if not named:
        if names != [str(number) for number in range(len(names))]:
            adapted(f"the file does not say what its {len(names)} classes are; they are taken in "
                    f"the order of the data set's {shown(names)}", field="")
        return
    order = match_classes(names, teacher.spec.label_names, called("") or "teacher",
                          "the data set")
    if order == sorted(order):
        return
    try:
        teacher.renumber(order, names)
    except KDMError as error:
        raise MismatchError(
            f"its classes are {shown(teacher.spec.label_names)}, those of the data set "
            f"{shown(names)}, and {error}: give the data set's classes its order", field=""
        ) from error
