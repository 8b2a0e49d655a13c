"""Reading the checkpoints of EDM (Karras et al. 2022, arXiv:2206.00364; NVlabs/edm).

The file says which classes its network is made of and with which arguments. Both are compared with
what the networks here are, so that a file of another version is refused and not misread.
"""

from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from kdm_core.errors import DataError, KDMError
from kdm_core.importers.persistent import PersistentObject, read_checkpoint
from kdm_core.importers.weights import check_weights, enumerated
from kdm_core.networks.base import Network
from kdm_core.networks.dhariwal_unet import DhariwalUNet, DhariwalUNetConfig
from kdm_core.networks.edm_blocks import PositionalEmbedding, Resample, UNetBlock
from kdm_core.networks.song_unet import SongUNet, SongUNetConfig
from kdm_core.solvers.grids import iddpm_levels

# Each preconditioning's constants: our names by theirs.
PRECONDITIONINGS: dict[str, tuple[str, dict[str, str]]] = {
    "EDMPrecond": ("edm", {}),
    "VPPrecond": ("vp", {"beta_d": "beta_d", "beta_min": "beta_min", "M": "timesteps",
                         "epsilon_t": "epsilon"}),
    "VEPrecond": ("ve", {"sigma_min": "sigma_min", "sigma_max": "sigma_max"}),
    "iDDPMPrecond": ("iddpm", {"C_1": "c_1", "C_2": "c_2", "M": "timesteps"}),
}
SHARED_ARGUMENTS = {
    "model_channels": "channels", "channel_mult": "multipliers", "channel_mult_emb": "embedding",
    "num_blocks": "blocks", "attn_resolutions": "attention", "dropout": "dropout",
    "augment_dim": "augment_dim",
}
SONG_ARGUMENTS = SHARED_ARGUMENTS | {
    "embedding_type": "time_embedding", "channel_mult_noise": "time_width",
    "encoder_type": "encoder", "decoder_type": "decoder", "resample_filter": "resample",
}
OWN_ARGUMENTS = {"img_resolution", "in_channels", "out_channels", "label_dim"}
LABEL_DROPOUT = "label_dropout"  # an argument for training only
PARTS = {"ModuleDict", "UNetBlock", "Conv2d", "Linear", "GroupNorm", "PositionalEmbedding",
         "FourierEmbedding"}
FILTERS = {(1, 1): "box", (1, 3, 3, 1): "binomial"}


class EDMCheckpoint(NamedTuple):
    """A denoiser's network and what it takes to build and use it.

    Attributes:
        preconditioning: one of edm, vp, ve, iddpm.
        constants: of the preconditioning, by the names of its configuration.
        sigma_data: standard deviation of the samples, in their range of [-1, 1].
        shape: of one image, (C, R, R).
        num_classes: 0 for a network that takes no labels.
        label_dropout: share of the labels that it was not shown in training.
        network: its configuration; with `iddpm` it gives twice as many channels as it takes.
        tensors: its weights by their names in our network, float32.
    """

    preconditioning: str
    constants: dict[str, float]
    sigma_data: float
    shape: tuple[int, int, int]
    num_classes: int
    label_dropout: float
    network: SongUNetConfig | DhariwalUNetConfig
    tensors: dict[str, Tensor]


def read_edm(content: bytes, place: str, key: str = "ema") -> EDMCheckpoint:
    """Read a network of an EDM checkpoint; nothing in the file is executed.

    Args:
        content: the file, a pickle.
        place: its name, for messages.
        key: which of the networks in the file.

    Raises:
        DataError: the file is damaged, or holds something else than such a network.
    """
    document = read_checkpoint(content, place)
    found = document.get(key)
    if not isinstance(found, PersistentObject):
        networks = [name[:100] for name, value in document.items()
                    if isinstance(value, PersistentObject) and "model" in value.modules]
        raise DataError(f"{place} has no network '{key}'; it has {networks or 'none'}: set key, or "
                        "choose another file")
    try:
        return _read(found)
    except KDMError as error:
        raise DataError(f"{place}: {error}") from error


def _read(top: PersistentObject) -> EDMCheckpoint:
    if top.class_name not in PRECONDITIONINGS:
        raise DataError(f"{top.class_name!a} is no preconditioning of EDM; known are "
                        f"{', '.join(PRECONDITIONINGS)} (files of EDM2 are imported as edm2)")
    kind, names = PRECONDITIONINGS[top.class_name]
    constants = {ours: _number(top, theirs) for theirs, ours in names.items()}
    if kind == "edm" and (_number(top, "sigma_min", 0), _number(top, "sigma_max")) != (0, inf):
        raise DataError("EDMPrecond is limited to some noise levels (sigma_min, sigma_max), which "
                        "is not supported here")
    resolution, channels, classes = (
        _count(top.attributes.get(name), f"{top.class_name}.{name}", low)
        for name, low in (("img_resolution", 1), ("img_channels", 1), ("label_dim", 0)))
    model = top.modules.get("model")
    if model is None:
        raise DataError(f"{top.class_name} has no model")
    outputs = 2 * channels if kind == "iddpm" else channels
    _require(model, dict(img_resolution=resolution, in_channels=channels, out_channels=outputs,
                         label_dim=classes))
    config = _network_config(model)
    network = _network(config, (channels, resolution, resolution), outputs, classes)
    tensors = top.tensors()
    if kind == "iddpm":
        _compare_levels(tensors.pop("u", None), constants)
    weights = _weights(tensors, network)
    _compare_parts(model, network)
    return EDMCheckpoint(
        preconditioning=kind,
        constants=constants,
        sigma_data=_number(top, "sigma_data") if kind == "edm" else 0.5,
        shape=(channels, resolution, resolution),
        num_classes=classes,
        label_dropout=_label_dropout(top, model),
        network=config,
        tensors=weights,
    )


# Arguments


def _number(top: PersistentObject, name: str, low: float = 1e-9) -> float:
    value = top.attributes.get(name)
    if isinstance(value, int | float) and (low <= value <= 1e9 or value == inf):
        return value
    raise DataError(f"{top.class_name}.{name} is no positive number")


def _count(value: object, name: str, low: int = 0) -> int:
    if isinstance(value, int) and low <= value <= 2**14:
        return value
    raise DataError(f"{name} is no whole number between {low} and {2**14}")


def _label_dropout(top: PersistentObject, model: PersistentObject) -> float:
    """The network's own, what it or its preconditioning was built with, or the published default.
    """
    tables = (model.attributes, model.kwargs, top.kwargs)
    value: object = next((table[LABEL_DROPOUT] for table in tables if LABEL_DROPOUT in table), 0)
    if type(value) in (int, float) and 0 <= value <= 1:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise DataError(f"{model.class_name}.{LABEL_DROPOUT} is no share between 0 and 1")


def _require(model: PersistentObject, expected: dict[str, int]) -> None:
    if model.args:
        raise DataError(f"{model.class_name} was built with arguments that have no names")
    for name, value in expected.items():
        found = _count(model.kwargs.get(name, 0), f"{model.class_name}({name})")
        if found != value:
            raise DataError(f"{model.class_name}({name}={found}) contradicts its preconditioning, "
                            f"which says {value}")


def _network_config(model: PersistentObject) -> SongUNetConfig | DhariwalUNetConfig:
    """The configuration that the recorded arguments say; what they leave out has EDM's defaults,
    which are ours too."""
    if model.class_name not in ("SongUNet", "DhariwalUNet"):
        raise DataError(f"{model.class_name!a} is no network of EDM; known are SongUNet and "
                        "DhariwalUNet")
    song = model.class_name == "SongUNet"
    known = SONG_ARGUMENTS if song else SHARED_ARGUMENTS
    values: dict[str, Any] = {"kind": "song_unet" if song else "dhariwal_unet"}
    for name, value in model.kwargs.items():
        if name in OWN_ARGUMENTS | {LABEL_DROPOUT}:
            continue
        if name not in known:
            raise DataError(f"{model.class_name} was built with {str(name)[:100]!a}, which is "
                            "unknown")
        value = list(value) if isinstance(value, tuple) else value
        values[known[name]] = _filter(value) if name == "resample_filter" else value
    kind: Any = SongUNetConfig if song else DhariwalUNetConfig
    try:
        config: SongUNetConfig | DhariwalUNetConfig = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        # Without the input, which may be of any size when written out.
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{model.class_name}: {field} as recorded: {first['msg']}") from error
    return config


def _filter(taps: object) -> str:
    if isinstance(taps, list) and all(type(tap) in (int, float) for tap in taps):
        for known, name in FILTERS.items():
            if list(known) == taps:
                return name
    raise DataError("resample_filter is neither [1, 1] nor [1, 3, 3, 1]")


def _network(
    config: SongUNetConfig | DhariwalUNetConfig,
    shape: tuple[int, int, int],
    outputs: int,
    classes: int,
) -> Network:
    """The network, without memory for its weights: a small file may claim any size."""
    out_shape = (outputs, *shape[1:])
    with torch.device("meta"):
        if isinstance(config, SongUNetConfig):
            return SongUNet(config, shape, out_shape, True, classes)
        return DhariwalUNet(config, shape, out_shape, True, classes)


# What the file's modules are


def _compare_parts(model: PersistentObject, network: nn.Module) -> None:
    """Make sure that the file's modules do what ours do, as far as their state says."""
    ours = dict(network.named_modules())
    for path, part in model.walk():
        name = path.rstrip(".")
        if name and part.class_name not in PARTS:
            raise DataError(f"{name} is of the class {part.class_name!a}, which is unknown")
        for attribute, expected in _traits(ours.get(name)):
            found = part.attributes.get(attribute, expected)
            same = isinstance(found, int | float) and abs(found - expected) <= 1e-9
            if not same:
                raise DataError(f"{name}.{attribute} is not {expected}, as it is in the published "
                                "networks of these arguments")


def _traits(module: nn.Module | None) -> Iterator[tuple[str, float]]:
    """What an attribute of the published class has to be for a module to do the same as ours."""
    match module:
        case UNetBlock():
            yield "skip_scale", module.style.skip_scale
            yield "adaptive_scale", module.style.scaled
            yield "num_heads", module.heads
        case nn.GroupNorm():
            yield "num_groups", module.num_groups
            yield "eps", module.eps
        case PositionalEmbedding():
            yield "endpoint", module.endpoint
            yield "max_positions", 10000


def _compare_levels(table: Tensor | None, constants: dict[str, float]) -> None:
    """iDDPM's noise levels against those that its constants imply."""
    count = constants["timesteps"]
    if table is None or not isinstance(count, int) or count > 10_000 or table.shape != (count + 1,):
        raise DataError("iDDPMPrecond.u is no table of M + 1 noise levels")
    expected = iddpm_levels(count, constants["c_1"], constants["c_2"], torch.float32)
    tolerance = 1e-3 if table.dtype == torch.float16 else 1e-4
    if not torch.allclose(table.float(), expected, rtol=tolerance, atol=tolerance * 1e-2):
        raise DataError("iDDPMPrecond.u are other noise levels than its constants imply")


# Tensors


def _weights(tensors: dict[str, Tensor], network: Network) -> dict[str, Tensor]:
    """The network's weights in float32, without the filters, which are constants here."""
    filters = dict(_filters(network))
    found = {}
    for name, tensor in tensors.items():
        ours = name.removeprefix("model.")
        if ours in filters:
            _compare_filter(ours, tensor, filters.pop(ours))
        else:
            found[ours] = tensor
    if filters:
        raise DataError(f"{len(filters)} tensors are missing ({enumerated(sorted(filters))})")
    check_weights(network, found)
    return {name: tensor.to(torch.float32) for name, tensor in found.items()}


def _filters(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The filters (1, 1, n, n) of resampling that the published network has, by name."""
    for name, module in network.named_modules():
        if isinstance(module, Resample):
            taps = torch.tensor([1.0, 1.0] if module.filter == "box" else [1.0, 3.0, 3.0, 1.0])
            kernel = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
            owner = name.removesuffix(".resample")
            block = isinstance(network.get_submodule(owner), UNetBlock)
            for part in (".conv0", ".skip") if block else ("",):
                yield f"{owner}{part}.resample_filter", kernel


def _compare_filter(name: str, found: Tensor, expected: Tensor) -> None:
    # In half precision too these values are exact.
    if found.shape != expected.shape or not torch.equal(found.to(torch.float32), expected):
        raise DataError(f"{name} is another filter than the arguments say")
