"""Writes folders as diffusers does."""

import json
from pathlib import Path
from typing import Any

import torch

from kdm_core.vision import import_torchvision

import_torchvision()  # before diffusers, which does it itself, but not beside every build of torch
import diffusers  # noqa: E402

SIZES: dict[str, Any] = {
    "sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}


def unet(**fields: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**(SIZES | fields)).eval().requires_grad_(False)


def write(folder: Path, scheduler: Any, model: Any = None) -> Path:
    """What `DDPMPipeline.save_pretrained` writes."""
    (model or unet()).save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(
        {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", type(scheduler).__name__],
         "unet": ["diffusers", "UNet2DModel"]}))
    return folder
