"""Adam and AdamW with a warm-up, a schedule, clipping, and updates that are left out."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kdm_core.errors import adapted
from kdm_core.training.config import TrainingConfig

LARGEST_GRADIENT = 1e5
"""What `nonfinite: zero` puts in the place of infinities (the published code)."""

# Elsewhere (MPS) the fused kernel takes `grad_scale` and `found_inf` and ignores them.
SKIPPING_KERNELS = ("cpu", "cuda")


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of step `step` (from 0)."""
    rate = config.lr * min(1.0, (step + 1) / config.warmup) if config.warmup else config.lr
    if config.schedule == "constant" or step < config.warmup:
        return rate
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return rate * (1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)


class ScheduledOptimizer:
    """Adam or AdamW whose learning rate is a function of the step.

    Gradients are clipped, and updates with gradients that are not finite left out, inside the
    fused kernel: the device is never waited for.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: TrainingConfig) -> None:
        self.config = config
        if config.warmup >= config.steps:
            adapted(f"training.warmup: {config.warmup:,} steps of warm-up in a training of "
                    f"{config.steps:,}: the learning rate rises to "
                    f"{config.steps / config.warmup:.0%} of lr at its last step, and the schedule "
                    "has no effect")
        self.parameters = list(parameters)
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        beta1, beta2 = config.betas
        # The fused kernel updates all parameters in one call on every device it knows.
        self.adam = kind(self.parameters, lr=config.lr, betas=(beta1, beta2),
                              weight_decay=config.weight_decay, fused=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those of the step.

        Of several micro-batches, each one's mean loss is to be divided by their number.
        """
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, step: int) -> dict[str, Tensor]:
        """Move the parameters along the gradients added since the last update.

        Returns:
            Scalars for the curves: `gradient_norm` before clipping, and with `nonfinite: skip`
            `skipped`, which is 1 where the gradients were not finite and nothing was moved.
        """
        config = self.config
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if config.nonfinite == "zero":
            for gradient in gradients:
                gradient.nan_to_num_(0.0, LARGEST_GRADIENT, -LARGEST_GRADIENT)
        norm = nn.utils.get_total_norm(gradients)
        curves = {"gradient_norm": norm}
        skipped = None
        if config.nonfinite == "skip":
            curves["skipped"] = skipped = (~norm.isfinite()).to(torch.float32)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(config, step)
        scale = (norm / config.clip).clamp(min=1.0) if config.clip else None
        if norm.device.type in SKIPPING_KERNELS:
            # Adam's arguments for torch.amp.GradScaler: the gradients are divided by the one, and
            # neither parameters nor moments are touched where the other is 1.
            vars(self.adam).update(grad_scale=scale, found_inf=skipped)
            self.adam.step()
        elif skipped is None or not bool(skipped):
            if scale is not None:
                torch._foreach_div_(gradients, scale)
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return curves

    def state_tensors(self) -> dict[str, Tensor]:
        """The moments, named after the parameter's position."""
        return {f"{index}.{name}": value
                for index, state in self.adam.state_dict()["state"].items()
                for name, value in state.items()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            if value.ndim:
                # Adam's fused kernel walks a parameter and its moments in memory order, which
                # therefore has to be the same; a file has them in plain order.
                value = torch.empty_like(self.parameters[int(index)]).copy_(value)
            states.setdefault(int(index), {})[name] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": states})
