"""Training of an autoencoder on images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdm_core.compute import autocast, step_generator
from kdm_core.decoders.conv import ConvAutoencoder
from kdm_core.errors import KDMError
from kdm_core.losses.perceptual import LPIPS
from kdm_core.training.batches import BatchOrder
from kdm_core.training.compilation import compiled
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import check_batch
from kdm_core.training.ema import Averages
from kdm_core.training.optimizer import ScheduledOptimizer
from kdm_core.training.task import Task
from kdm_core.values import from_uint8

KL = 1e-3
SMALLEST = 32
"""Side of the smallest image that the perceptual distance is measured at."""
HELD_OUT = 256
"""Images at a time when held-out ones are measured."""


class AutoencoderTask(Task):
    """Minimises the error of images decoded from drawn latents; `ema.shadow` is the result.

    loss = MSE + kl · KL + perceptual · LPIPS: the mean squared error of values in [-1, 1], the mean
    divergence (nats) of a latent value's distribution from the standard normal one, and LPIPS of
    AlexNet. As in latent diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.1) the
    divergence weighs little: it keeps latents together and their decoder smooth.
    """

    def __init__(
        self,
        model: ConvAutoencoder,
        config: TrainingConfig,
        images: Tensor,
        held_out: Tensor,
        seed: int,
        kl: float = KL,
        perceptual: float = 0.0,
    ) -> None:
        """Make ready to train.

        Args:
            model: with fresh weights.
            config: steps, batch, rates.
            images: (n, *picture) uint8, on the model's device.
            held_out: (m, *picture) uint8, on the model's device, for the curves alone.
            seed: of batches and of the noise of latents.
            kl, perceptual: weights; 0 leaves the term out.

        Raises:
            KDMError: images have another shape than the model's, or the batch cannot be cut into
                that many micro-batches.
            DataError, MismatchError: the weights of the perceptual distance are not there.
        """
        for given in (images, held_out):
            if list(given.shape[1:]) != model.picture or given.dtype != torch.uint8:
                raise KDMError(f"this autoencoder learns from uint8 images of shape "
                               f"{model.picture}, found {given.dtype} of shape "
                               f"{list(given.shape[1:])}")
        self.config, self.model, self.seed = config, model.train(), seed
        self.images, self.held_out = images, held_out
        self.kl, self.perceptual = kl, perceptual
        self.distance = LPIPS(SMALLEST, "alex").to(images.device) if perceptual else None
        self.order = BatchOrder(len(images), config.batch, seed, images.device)
        check_batch(self.order.batch, config.accumulate, most=self.order.count)
        self.ema = Averages(model, config)
        self.optimizer = ScheduledOptimizer(model.parameters(), config)
        self.modules = {"model": model, "ema": self.ema}
        self.optimizers = {"optimizer": self.optimizer}
        compiled(model, config, images.device)

    def step(self, step: int) -> dict[str, Tensor]:
        rows = self.order(step)
        noise = torch.randn(len(rows), *self.model.shape, device=rows.device,
                            generator=step_generator(rows.device, self.seed, step))
        parts = self.config.accumulate
        terms = [self.descend(*part) for part in
                 zip(rows.chunk(parts), noise.chunk(parts), strict=True)]
        curves = self.optimizer.update(step)
        self.ema.update(self.model, step)
        return {name: torch.stack([term[name] for term in terms]).mean()
                for name in terms[0]} | curves

    def descend(self, rows: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch; returns its terms."""
        images = from_uint8(self.images[rows])
        with autocast(self.config.precision, rows.device):
            decoded, mean, log_variance = self.model(images, noise)
            terms = {"mse": F.mse_loss(decoded, images), "kl": divergence(mean, log_variance)}
            loss = terms["mse"] + self.kl * terms["kl"]
            if self.distance is not None:
                terms["lpips"] = self.distance(decoded, images).mean()
                loss = loss + self.perceptual * terms["lpips"]
        self.optimizer.backward(loss / self.config.accumulate)
        return {name: term.detach() for name, term in {"loss": loss, **terms}.items()}

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """What held-out images lose by the averaged weights, encoded to the mean and decoded."""
        if not len(self.held_out):
            return {}
        sums = torch.zeros(2, dtype=torch.float64)
        for part in torch.split(self.held_out, HELD_OUT):
            images = from_uint8(part)
            mean, log_variance = self.ema.shadow.posterior(images)
            error = (self.ema.shadow.raw_decode(mean).clamp(-1, 1) - images).square().mean()
            found = torch.stack([error, divergence(mean, log_variance)])
            sums += found.to("cpu", torch.float64) * len(images)
        mse, kl = (sums / len(self.held_out)).tolist()
        return {"validation_mse": mse, "validation_kl": kl}


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) ‖ N(0, 1)) of one value, the mean over all: ½(μ² + σ² − 1 − log σ²)."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
