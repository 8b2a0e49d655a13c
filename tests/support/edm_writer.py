"""Writes checkpoints as EDM does, from our networks: what the importers are tested with.

Tensors, storages and ModuleDict are pickled by torch itself. The rest is what NVlabs' modules
record of themselves, with the globals of their packages, which need not be installed.
"""

import math
import pickle
import random
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdm_core.networks.base import Network
from kdm_core.networks.dhariwal_unet import DhariwalUNetConfig
from kdm_core.networks.edm_blocks import (
    FourierEmbedding,
    PositionalEmbedding,
    Resample,
    ShrinkingConv,
    UNetBlock,
)
from kdm_core.networks.song_unet import SongUNetConfig
from kdm_core.solvers.grids import iddpm_levels

SOURCE = "raise SystemExit('the source in a checkpoint was executed')\n"
FILTERS = {"box": [1, 1], "binomial": [1, 3, 3, 1]}


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("the name is only written, never called")


class EasyDict(dict[str, Any]):
    """Stands for dnnlib's class of that name."""


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"
EasyDict.__qualname__ = "EasyDict"


class Recorded:
    """An object of a persistent class."""

    def __init__(self, class_name: str, kwargs: dict[str, Any] | None = None, /,
                 **attributes: Any) -> None:
        self.class_name, self.source, self.version = class_name, SOURCE, 6
        self.parameters: dict[str, Tensor | None] = {}
        self.buffers: dict[str, Tensor | None] = {}
        self.modules: dict[str, Any] = {}
        self.args: tuple[Any, ...] = ()
        self.kwargs = kwargs or {}
        self.attributes = attributes

    def __getitem__(self, path: str) -> "Recorded":
        """The module of that dotted path."""
        found = self
        for name in path.split("."):
            children = found._modules if isinstance(found, nn.ModuleDict) else found.modules
            found = children[name]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        state = {
            "training": False, "_parameters": self.parameters, "_buffers": self.buffers,
            "_non_persistent_buffers_set": set(), "_backward_hooks": OrderedDict(),
            "_is_full_backward_hook": None, "_forward_hooks": OrderedDict(),
            "_modules": self.modules, **self.attributes,
            "_init_args": self.args, "_init_kwargs": self.kwargs,
        }
        return _reconstruct_persistent_obj, (
            {"type": "class", "version": self.version, "module_src": self.source,
             "class_name": self.class_name, "state": state},), None


@contextmanager
def published_modules() -> Iterator[None]:
    """A context in which the names of NVlabs' packages can be pickled."""
    names = {"torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib"),
             "torch_utils.persistence": types.ModuleType("persistence"),
             "dnnlib.util": types.ModuleType("util")}
    vars(names["torch_utils.persistence"])["_reconstruct_persistent_obj"] = (
        _reconstruct_persistent_obj)
    vars(names["dnnlib.util"])["EasyDict"] = EasyDict
    saved = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in saved.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def dump(document: Any, protocol: int = 4) -> bytes:
    """Pickle a tree of `Recorded` objects."""
    with published_modules():
        return pickle.dumps(document, protocol)


def snapshot(top: Recorded, protocol: int = 4) -> bytes:
    """The file that EDM's training saves: the network, and what it was trained with."""
    return dump({
        "ema": top,
        "loss_fn": Recorded("EDMLoss", P_mean=-1.2, P_std=1.2, sigma_data=0.5),
        "augment_pipe": Recorded("AugmentPipe", p=0.12, xflip=1e8, scale=np.float64(0.2)),
        "dataset_kwargs": {"path": "images.zip", "options": EasyDict(use_labels=True)},
    }, protocol)


def edm_pickle(
    network: Network,
    shape: tuple[int, int, int],
    preconditioning: str = "EDMPrecond",
    classes: int = 0,
    dtype: torch.dtype = torch.float32,
    protocol: int = 4,
) -> bytes:
    """The file of a network that maps images of `shape` (or twice as many channels, for iDDPM)."""
    return snapshot(record(network, shape, preconditioning, classes, dtype), protocol)


def record(
    network: Network,
    shape: tuple[int, int, int],
    preconditioning: str = "EDMPrecond",
    classes: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Recorded:
    """The network under a preconditioning with its default constants."""
    channels, resolution, _ = shape
    outputs = channels * (2 if preconditioning == "iDDPMPrecond" else 1)
    sizes = {"img_resolution": resolution, "img_channels": channels, "label_dim": classes}
    kwargs = network_kwargs(network.config)  # type: ignore[arg-type]
    model = record_module(network, dtype)
    model.class_name = kwargs.pop("model_type")
    model.kwargs = {"img_resolution": resolution, "in_channels": channels,
                    "out_channels": outputs, "label_dim": classes, **kwargs}
    constants = {
        "EDMPrecond": {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5},
        "VPPrecond": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
        "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
        "iDDPMPrecond": {"C_1": 0.001, "C_2": 0.008, "M": 1000},
    }[preconditioning]
    top = Recorded(preconditioning, {**sizes, "model_type": model.class_name, **kwargs},
                   **sizes, use_fp16=False, **constants)
    top.modules["model"] = model
    if preconditioning == "iDDPMPrecond":
        top.buffers["u"] = iddpm_levels(1000, 0.001, 0.008, torch.float32).to(dtype)
    return top


def network_kwargs(config: SongUNetConfig | DhariwalUNetConfig) -> dict[str, Any]:
    """The arguments with which EDM builds such a network."""
    kwargs: dict[str, Any] = {
        "model_type": "SongUNet" if isinstance(config, SongUNetConfig) else "DhariwalUNet",
        "model_channels": config.channels, "channel_mult": config.multipliers,
        "channel_mult_emb": config.embedding, "num_blocks": config.blocks,
        "attn_resolutions": config.attention, "dropout": config.dropout, "label_dropout": 0,
        "augment_dim": config.augment_dim}
    if isinstance(config, SongUNetConfig):
        kwargs |= {
            "embedding_type": config.time_embedding, "channel_mult_noise": config.time_width,
            "encoder_type": config.encoder, "decoder_type": config.decoder,
            "resample_filter": FILTERS[config.resample]}
    return kwargs


def record_module(module: nn.Module, dtype: torch.dtype) -> Any:
    """A module of ours as the published one of the same task."""
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        for name, child in module.items():
            container._modules[name] = record_module(child, dtype)
        return container
    if isinstance(module, UNetBlock):
        return record_block(module, dtype)
    made = Recorded(type(module).__name__)
    for name, parameter in module.named_parameters(recurse=False):
        made.parameters[name] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    for name, child in module.named_children():
        if not isinstance(child, Resample):
            made.modules[name] = record_module(child, dtype)
    match module:
        case nn.GroupNorm():
            made.attributes = {"num_groups": module.num_groups, "eps": module.eps}
        case PositionalEmbedding():
            made.attributes = {"endpoint": module.endpoint, "max_positions": 10000}
        case FourierEmbedding():
            made.buffers["freqs"] = module.freqs.to(dtype)
        case ShrinkingConv():
            made.class_name = "Conv2d"
            made.buffers["resample_filter"] = kernel(module.resample, dtype)
        case Resample():
            made.class_name = "Conv2d"
            made.parameters = {"weight": None, "bias": None}
            made.buffers["resample_filter"] = kernel(module, dtype)
        case nn.Conv2d():
            made.buffers["resample_filter"] = None
    return made


def record_block(block: UNetBlock, dtype: torch.dtype) -> Recorded:
    made = Recorded("UNetBlock", skip_scale=np.float64(block.style.skip_scale),
                    adaptive_scale=block.style.scaled, num_heads=block.heads, dropout=0.1)
    for name, child in block.named_children():
        if not isinstance(child, Resample | nn.Identity):
            made.modules[name] = record_module(child, dtype)
    if isinstance(block.resample, Resample):
        made.modules.setdefault("skip", Recorded("Conv2d"))
        for name in ("conv0", "skip"):
            made.modules[name].buffers["resample_filter"] = kernel(block.resample, dtype)
    made.modules.setdefault("skip", None)
    return made


def kernel(resample: Resample, dtype: torch.dtype) -> Tensor:
    taps = torch.tensor(FILTERS[resample.filter], dtype=torch.float32)
    return (torch.outer(taps, taps)[None, None] / taps.sum() ** 2).to(dtype)


def mutate(content: bytes, source: random.Random) -> bytes:
    """One of: changed bytes, a cut, a part moved elsewhere, a call of os.system spliced in."""
    changed = bytearray(content)
    where = source.randrange(len(changed))
    match source.randrange(5):
        case 0:
            for _ in range(source.randint(1, 4)):
                changed[source.randrange(len(changed))] = source.randrange(256)
        case 1:
            del changed[where:where + source.choice([1, 4, 10_000])]
        case 2:
            begin = source.randrange(len(changed))
            changed[where:where] = changed[begin:begin + source.randint(1, 60)]
        case 3:
            changed[where:where] = source.choice([
                b"cos\nsystem\n", b"\x8c\x02os\x8c\x06system\x93", b"R", b"\x81", b"b", b"Q", b"2",
                b"(", b"t", b"0", b"\x94", b"h\x00", b"s", b"\x93"])
        case _:
            changed[where:where] = b"cos\nsystem\nX\x0e\x00\x00\x00touch ./canary\x85R"
    return bytes(changed)
