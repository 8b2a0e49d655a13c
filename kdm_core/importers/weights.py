"""Tensors from a file, put into a network of ours."""

from collections.abc import Mapping

from torch import Tensor, nn

from kdm_core.errors import DataError, KDMError, MismatchError

SHOWN = 3


def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], place: str, assign: bool = False
) -> None:
    """Give a module the weights in `tensors`, every one of them, in the module's own dtypes.

    Args:
        place: the file they come from, for messages.
        assign: put them in the place of its own as they lie in memory, where all have its dtypes,
            so that there is no second copy.

    Raises:
        MismatchError: tensors are missing, left over or of another shape; some are named.
        DataError: a tensor has values that are not finite.
    """
    try:
        check_weights(module, tensors)
    except KDMError as error:
        raise type(error)(f"{place} does not hold the weights of this network: {error}") from error
    same = all(tensors[name].dtype == own.dtype for name, own in module.state_dict().items())
    module.load_state_dict(tensors, assign=assign and same)


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Compare tensors with those that a module has, which may be one without memory (meta).

    Raises: as `load_weights`.
    """
    check_layout(module, tensors)
    for name, own in module.state_dict().items():
        if own.is_floating_point() and not (
                tensors[name].is_floating_point() and tensors[name].isfinite().all()):
            raise DataError(f"{name} has values that are not finite numbers; fetch the file again")


def check_layout(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """As `check_weights`, of names and shapes alone.

    Raises:
        MismatchError: as `load_weights`.
    """
    own = module.state_dict()
    shared = sorted(own.keys() & tensors.keys())
    problems = {
        "are missing": sorted(own.keys() - tensors.keys()),
        "are unknown": sorted(tensors.keys() - own.keys()),
        "have another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
            for name in shared if tensors[name].shape != own[name].shape],
    }
    found = [f"{len(names)} tensors {what} ({enumerated(names)})"
             for what, names in problems.items() if names]
    if found:
        raise MismatchError("; ".join(found))


def enumerated(names: list[str]) -> str:
    """The first of some names, which may hold anything."""
    shown = ", ".join(names[:SHOWN] + ["…"] * (len(names) > SHOWN))
    return "".join(letter if letter.isprintable() else "?" for letter in shown[:500])
