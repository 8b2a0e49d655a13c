"""Whether what an imported teacher makes is what the data set holds."""

from kdm_core.errors import MismatchError
from kdm_core.samples import SampleSpec


def label_names(count: int, data: SampleSpec) -> list[str]:
    """Names for a model's classes: those of the data set if it has as many, numbers otherwise."""
    return data.label_names if len(data.label_names) == count else [str(i) for i in range(count)]


def require_same_samples(teacher: SampleSpec, data: SampleSpec, who: str = "teacher") -> None:
    """Make sure that a model's samples can be compared with the data set's.

    Raises:
        MismatchError: shape or number of labels differ; the message names the parameter.
    """
    if teacher.kind != data.kind or teacher.shape != data.shape:
        raise MismatchError(
            f"{who}: this model makes samples of kind {teacher.kind} and shape {teacher.shape}, "
            f"the data set holds {data.kind} of shape {data.shape}: choose a data set of the "
            "model's resolution and channels (data.resolution), or another model")
    if teacher.num_classes != data.num_classes:
        hint = ("set data.conditional: false" if not teacher.num_classes else
                "set data.conditional: true, or choose a data set with the model's classes")
        raise MismatchError(
            f"{who}: this model takes {teacher.num_classes} labels, the data set gives "
            f"{data.num_classes}: {hint}")
