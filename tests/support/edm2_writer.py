"""Writes checkpoints as EDM2 does, from our networks."""

import pickle
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from torch import nn

from kdm_core.networks.edm2_unet import Block, EDM2UNet, EDM2UNetConfig, MPConv, MPFourier

TINY = EDM2UNetConfig(kind="edm2_unet", channels=16, multipliers=[1, 2], blocks=1, attention=[4],
                      channels_per_head=16, label_balance=0.4, concat_balance=0.6)


class Recorded:
    """An object that is pickled as `torch_utils.persistence` would."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, ({
            "type": "class", "version": 6, "module_src": "raise SystemError('was executed')",
            "class_name": self.class_name, "state": self.state},)


def _reconstruct_persistent_obj(meta: object) -> None:
    raise AssertionError("a checkpoint is to be read without its own loader")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


def record(module: nn.Module) -> Any:
    """One of our modules as the original would keep it in a file."""
    children = {name: record(child) for name, child in module.named_children()}
    if isinstance(module, nn.ModuleDict):
        made = nn.ModuleDict()
        made._modules = children
        return made
    state: dict[str, Any] = {"training": False, "_parameters": dict(module._parameters),
                             "_buffers": dict(module._buffers), "_modules": children}
    if isinstance(module, EDM2UNet):
        state |= {"label_balance": module.config.label_balance,
                  "concat_balance": module.config.concat_balance}
    if isinstance(module, Block):
        state |= {"flavor": "dec" if module.decoder else "enc", "resample_mode": module.mode,
                  "resample_filter": [1, 1], "num_heads": module.heads, "dropout": 0,
                  "res_balance": module.config.res_balance, "clip_act": module.config.clip_act,
                  "attn_balance": module.config.attn_balance}
    return Recorded({EDM2UNet: "UNet"}.get(type(module), type(module).__name__), **state)


def record_precond(network: EDM2UNet, channels: int = 3) -> Recorded:
    head = {"logvar_fourier": MPFourier(4), "logvar_linear": MPConv(4, 1)}
    arguments = {"img_resolution": 8, "img_channels": channels, "label_dim": network.num_classes,
                 "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1,
                 "attn_resolutions": [4], "channels_per_head": 16, "label_balance": 0.4,
                 "concat_balance": 0.6, "sigma_data": 0.7, "logvar_channels": 4, "dropout": 0}
    return Recorded("Precond", _init_args=(), _init_kwargs=arguments, _parameters={}, _buffers={},
                    _modules={"unet": record(network)}
                    | {name: record(module) for name, module in head.items()},
                    sigma_data=0.7, use_fp16=True, label_dim=network.num_classes)


def write(document: object, monkeypatch: pytest.MonkeyPatch) -> bytes:
    stand_in = ModuleType("torch_utils.persistence")
    stand_in._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_utils", ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", stand_in)
    return pickle.dumps(document)


RGB = Recorded("StandardRGBEncoder")
RAW_STD = np.float32([4.17, 4.62, 3.71, 3.28])
VAE = Recorded("StabilityVAEEncoder", vae_name="stabilityai/sd-vae-ft-mse", batch_size=8, _vae=None,
               scale=np.float32(0.5) / RAW_STD, bias=-np.float32([5.81, 3.25, 0.12, -2.15]) / 2,
               _init_args=(), _init_kwargs={})
