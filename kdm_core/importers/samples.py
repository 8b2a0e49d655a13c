"""Whether what an imported teacher makes is what the data set holds."""

from kdm_core.classes import match_classes, shown
from kdm_core.errors import KDMError, MismatchError, adapted, called
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Teacher


def label_names(count: int, data: SampleSpec) -> list[str]:
    """Names for a model's classes: those of the data set if it has as many, numbers otherwise."""
    return data.label_names if len(data.label_names) == count else [str(i) for i in range(count)]


def samples_like(
    data: SampleSpec,
    shape: list[int],
    names: list[str],
    *,
    latent: bool | None = None,
    sigma_data: float | None = None,
) -> SampleSpec:
    """What a model makes, where `data` says what its file does not.

    Args:
        data: what it is to be used with.
        shape, names: of what it makes, and of its classes.
        latent: whether these are latents and not images; None where its file does not say, for as
            the data are.
        sigma_data: as its file says; None for as the data have it.
    """
    latent = data.kind == "latent" if latent is None else latent
    known = latent and data.kind == "latent"
    return SampleSpec(
        kind="latent" if latent else "image", shape=shape, label_names=names,
        sigma_data=data.sigma_data if sigma_data is None else sigma_data,
        decoder=data.decoder if known else None, picture=data.picture if known else None)


def require_same_samples(teacher: SampleSpec, data: SampleSpec) -> None:
    """Make sure that a model's samples can be compared with the data set's.

    Raises:
        MismatchError: kind, shape, autoencoder or number of labels differ; the message says how.
    """
    if {teacher.kind, data.kind} == {"image", "latent"}:
        raise MismatchError(one_latent(teacher), field="")
    if teacher.decoder and data.decoder and teacher.decoder != data.decoder:
        raise MismatchError(
            f"this model makes latents of the autoencoder {teacher.decoder[:12]}, the data set "
            f"holds those of {data.decoder[:12]}: make the data latents of the model's "
            "autoencoder, or choose another model", field="")
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


def one_latent(teacher: SampleSpec) -> str:
    """What to do where a model makes latents and the data are images, or the other way around."""
    if teacher.kind == "latent":
        return (f"this model makes latents of shape {teacher.shape}, which an autoencoder turns "
                "into images, and the data set holds images: have them made latents by that "
                "autoencoder first, or choose a model of images")
    return ("this model makes images, and the data set holds latents of an autoencoder: leave the "
            "autoencoder out, or choose a model of such latents")


def align_classes(teacher: Teacher, data: SampleSpec) -> None:
    """Number a teacher's classes as the data set's: by name where both have names.

    Everything after it then knows one order, the data's; a teacher whose order that is already is
    left as it is, and so is one whose classes have mere numbers.

    Raises:
        MismatchError: it is not sure which class is which; the message shows both lists.
    """
    names = data.label_names
    if not teacher.named:
        if names != [str(number) for number in range(len(names))]:
            adapted(f"the file does not say what its {len(names)} classes are, or in other words; "
                    f"they are taken in the order of the data set's {shown(names)}", field="")
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
