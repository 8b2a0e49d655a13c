"""Writes checkpoints as torchcfm's example does."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

SIZES: dict[str, Any] = {"num_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2],
                         "num_heads": 2, "num_head_channels": 16, "attention_resolutions": [8]}


def checkpoint(model: nn.Module, file: Path) -> Path:
    """A file as the CIFAR-10 example writes it."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=lambda step: 1.0)
    torch.save({"net_model": {"x": torch.zeros(1)}, "ema_model": model.state_dict(),
                "sched": schedule.state_dict(), "optim": optimizer.state_dict(), "step": 400_000},
               file)
    return file
