"""Writes folders as diffusers does."""

import json
from pathlib import Path
from typing import Any

import torch

from kdm_core.importers.diffusers import DiffusersSource
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


def dit(classes: int = 10, **fields: Any) -> Any:
    """With weights everywhere: half of diffusers' own are zero."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"sample_size": 16, "num_layers": 2, "num_attention_heads": 2,
                             "attention_head_dim": 8, "patch_size": 2, "out_channels": 8}
    model = diffusers.DiTTransformer2DModel(num_embeds_ada_norm=classes, **sizes | fields)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)


def dit_pipeline(scheduler: Any, model: Any = None) -> Any:
    torch.manual_seed(1)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    return diffusers.DiTPipeline(model or dit(), vae.eval().requires_grad_(False), scheduler)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def source(folder: Path, **fields: Any) -> DiffusersSource:
    return DiffusersSource(source="diffusers", folder=str(folder), **fields)
