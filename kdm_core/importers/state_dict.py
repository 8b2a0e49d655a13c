"""Teachers from state dicts of our own networks, saved by anyone's training loop."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdm_core.errors import DataError
from kdm_core.importers.files import Weights, fetch
from kdm_core.importers.weights import load_weights
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Denoiser, FlowMatching, Teacher, TrainableConfig, build_teacher

OWN_PREFIX = "network."  # of a teacher's state dict
SHOWN = 8


class StateDictSource(Weights):
    """The weights of a network of this library, as .safetensors or by `torch.save`.

    Attributes:
        key: dotted path to the state dict in a file that holds more, such as `ema`, `state.model`
            or `ema_0.999`.
        prefix: of the tensors to take, cut from their names, such as `module.`, with its dot or
            without.
        model: the teacher that the network is part of.
        sigma_data: standard deviation of the data it was trained on; None: as of the data set.
        label_dropout: share of the labels that it was not shown in training, for classifier-free
            guidance: 0 refuses it; None: nobody knows.
        guide: the weights of a weaker teacher of the same model, for autoguidance.
    """

    source: Literal["state_dict"]
    key: str | None = Field(None, min_length=1)
    prefix: str = ""
    model: TrainableConfig
    sigma_data: float | None = Field(None, gt=0)
    label_dropout: float | None = Field(None, ge=0, le=1)
    guide: Weights | None = None


def import_state_dict(source: StateDictSource, data: SampleSpec) -> Teacher:
    """The teacher that `source.model` describes for samples as of `data`, with those weights.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
        MismatchError: its tensors are not those of the network.
    """
    path = fetch(source.file, source.sha256)
    tensors = read_state_dict(path, source.key, source.prefix)
    if all(name.startswith(OWN_PREFIX) for name in tensors):
        tensors = {name.removeprefix(OWN_PREFIX): tensor for name, tensor in tensors.items()}
    spec = with_sigma_data(data, source.sigma_data)
    teacher = build_teacher(source.model, spec)
    assert isinstance(teacher, Denoiser | FlowMatching)
    load_weights(teacher.network, tensors, str(path))
    teacher.label_dropout = source.label_dropout
    return teacher.eval().requires_grad_(False)


def with_sigma_data(spec: SampleSpec, sigma_data: float | None) -> SampleSpec:
    """A spec with another standard deviation, if there is one."""
    return spec if sigma_data is None else spec.model_copy(update={"sigma_data": sigma_data})


def read_state_dict(path: Path, key: str | None, prefix: str = "") -> dict[str, Tensor]:
    """The named tensors in a file, on the CPU.

    Args:
        path: .safetensors, or written by `torch.save`; nothing in it is executed.
        key, prefix: as in `StateDictSource`.

    Raises:
        DataError: it is damaged, asks for code, or holds no tensors there.
    """
    document: Any = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    if key is not None:
        found = list(_at(document, key))
        if not found:
            raise DataError(f"{path} has no '{key}'; {_content(document)}", field="key")
        document = found[0]
    if not isinstance(document, Mapping) or not document:
        raise DataError(f"{path} holds no state dict there; {_content(document)}", field="key")
    dotted = f"{prefix}."  # so that `model` leaves out `model_ema.…`
    if prefix and any(str(name).startswith(dotted) for name in document):
        prefix = dotted
    chosen = {name: value for name, value in document.items() if str(name).startswith(prefix)}
    if not chosen:
        raise DataError(f"no tensor of {path} begins with '{prefix}'; {_content(document)}",
                        field="prefix")
    for name, value in chosen.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise DataError(f"in {path}, {str(name)[:100]!r} is no tensor but "
                            f"{type(value).__name__}; name the state dict: {_content(document)}",
                            field="key")
    return {name.removeprefix(prefix).removeprefix("."): tensor
            for name, tensor in chosen.items()}


def _at(document: object, key: str) -> Iterator[Any]:
    """All that stands at a dotted path of names, which may have dots themselves, be numbers, or
    be places in a list."""
    if isinstance(document, list | tuple):
        document = dict(enumerate(document))
    if isinstance(document, Mapping):
        named = {str(name): value for name, value in document.items()}
        if key in named:
            yield named[key]
        for place in (place for place, letter in enumerate(key) if letter == "."):
            if key[:place] in named:
                yield from _at(named[key[:place]], key[place + 1:])


def _content(document: object) -> str:
    """What a level of a file holds, for messages."""
    if not isinstance(document, Mapping):
        return f"there is a {type(document).__name__}"
    names = [str(name)[:100] for name in list(document)[:SHOWN]]
    return f"there are {', '.join(names) or 'no entries'}{', …' if len(document) > SHOWN else ''}"


def _is_safetensors(path: Path) -> bool:
    """Whether the eight bytes of a length are followed by a JSON object."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the disk and the "
                        "permissions") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError, and what torch makes of odd dtypes
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way
        if refused := re.search(r"GLOBAL (\S{1,200})", str(error)):
            raise DataError(f"{path} asks for {refused[1]}, which is no tensor and could run code: "
                            "save `model.state_dict()` alone, best as .safetensors") from error
        raise DataError(f"{path} is neither a .safetensors file nor one of torch.save, or damaged "
                        f"({type(error).__name__}): fetch it again, or choose the source that fits "
                        "it") from error
