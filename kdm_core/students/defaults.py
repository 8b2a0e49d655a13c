"""A student, its losses and its training for those who say nothing of them: pairs are enough.

Sizes are those of the presets of this project, which were measured; what is between them is a guess
that trains.
"""

from math import prod

from kdm_core.networks import MLPConfig, SongUNetConfig, UNetConfig
from kdm_core.operators import FactorisedConfig
from kdm_core.samples import SampleSpec
from kdm_core.students.base import StudentKind
from kdm_core.students.kdm import KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.training.config import TrainingConfig

MOST_VALUES = 256
"""Of an image that a perceptron takes as a vector."""
MOST_PIXELS = 1024
"""Of an image that is a latent by itself; larger ones are projected."""
BATCH = 256
EPOCHS = 10
FEWEST_STEPS, MOST_STEPS = 2_000, 100_000


def default_student(samples: SampleSpec) -> KDMConfig:
    """A student whose size follows from what one sample is: the paper's kind, which needs no
    teacher, with the factorised operator, which learns best in the same steps.

    Points and small images get perceptrons, others U-Nets.
    """
    operator = FactorisedConfig(kind="factorised", estimate=True)
    if samples.kind == "points":
        mlp = MLPConfig(kind="mlp", width=256, blocks=3)
        return KDMConfig(encoder=mlp, decoder=mlp, latent=256, operator=operator)
    if prod(samples.shape) <= MOST_VALUES:
        mlp = MLPConfig(kind="mlp", width=384, blocks=4)
        return KDMConfig(encoder=mlp, decoder=mlp, latent=128, operator=operator)
    unet = default_unet(*samples.shape[1:])
    pixels = prod(samples.shape[1:])
    if pixels <= MOST_PIXELS:
        return KDMConfig(encoder=unet, decoder=unet, latent=pixels, operator=operator)
    return KDMConfig(encoder=unet, decoder=unet, latent=512, projected_channels=1,
                     operator=operator)


def default_unet(height: int, width: int) -> SongUNetConfig | UNetConfig:
    """A U-Net that halves images as often as they can be, down to 4 to 7 pixels."""
    sizes = [(height, width)]
    while not any(side % 2 for side in sizes[-1]) and min(sizes[-1]) >= 8:
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    multipliers = [1, *[2] * (len(sizes) - 1)]
    attention = [side for side, _ in sizes if 8 <= side <= 16]
    if height != width:  # of which the other one takes none
        return UNetConfig(kind="unet", channels=64, multipliers=multipliers, blocks=2,
                          attention=attention)
    return SongUNetConfig(kind="song_unet", channels=64, multipliers=multipliers, blocks=2,
                          attention=attention)


def default_losses(model: StudentKind, samples: SampleSpec) -> LossConfig:
    """The regression on pairs alone, with the terms that the kind of student has."""
    noise = 0.1 if samples.spatial else 0.01
    return LossConfig.model_validate(
        {"adversarial": 0.0, "latent_noise": noise, **dict.fromkeys(model.unused, 0.0)})


def default_training(count: int, steps: int | None = None) -> TrainingConfig:
    """How to train on so many pairs: ten times through them, in no less than 2,000 steps.

    Args:
        count: pairs for training.
        steps: None for those; warm-up and average follow from them.
    """
    batch = min(BATCH, 1 << count.bit_length() - 1)
    if steps is None:
        steps = min(max(EPOCHS * count // batch, FEWEST_STEPS), MOST_STEPS)
    return TrainingConfig(
        steps=steps, batch=batch, lr=1e-3, warmup=min(steps // 10, 500), schedule="cosine",
        clip=1.0, ema=round(max(1 - 10 / steps, 0.0), 5), checkpoint_every=max(steps // 10, 100))
