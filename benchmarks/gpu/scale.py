"""How large everything is that is measured: CIFAR-10's size, or a trial of the code on any machine.
"""

from typing import Any, NamedTuple

from kdm_core.samples import SampleSpec


class Scale(NamedTuple):
    """Sizes of networks, batches and data.

    Attributes:
        trial: whether it is there to try the code, so that its figures say nothing.
        side: pixels of an image's side.
        teacher, student: U-Nets of the teacher and of each half of KDM.
        latent: numbers of KDM's latent.
        equilibrium: the generative equilibrium transformer.
        batch: pairs a training step.
        pairs: that a training sees; their content is of no matter to the time.
        sampled: pairs that go through the teacher together.
        solver_steps: of Heun's method.
        resident, streamed, window: pairs of the readers.
        generated: images that a student makes together.
        judged: images that an extractor sees.
        seconds: that each measurement takes, after the first run.
        matrix: rows of the matrices by whose product the peak is measured.
    """

    trial: bool
    side: int
    teacher: dict[str, Any]
    student: dict[str, Any]
    latent: int
    equilibrium: dict[str, Any]
    batch: int
    pairs: int
    sampled: tuple[int, ...]
    solver_steps: int
    resident: int
    streamed: int
    window: int
    generated: tuple[int, ...]
    judged: int
    seconds: float
    matrix: int

    @property
    def spec(self) -> SampleSpec:
        return SampleSpec(kind="image", shape=[3, self.side, self.side], sigma_data=0.5)


FULL = Scale(
    trial=False, side=32,
    # EDM's DDPM++ for CIFAR-10, 55.7 M parameters.
    teacher={"kind": "song_unet", "channels": 128, "multipliers": [2, 2, 2], "blocks": 4,
             "attention": [16], "dropout": 0.13},
    # The preset cifar10's.
    student={"kind": "song_unet", "channels": 64, "multipliers": [1, 2, 2, 2], "blocks": 4,
             "attention": [16], "dropout": 0.1},
    latent=1024, equilibrium={"kind": "get"}, batch=128, pairs=20_000, sampled=(500, 2000),
    solver_steps=18, resident=1_000_000, streamed=40_000, window=10_000,
    generated=(1, 16, 128, 500, 2000), judged=10_000, seconds=8.0, matrix=16_384)

TRIAL = Scale(
    trial=True, side=16,
    teacher={"kind": "song_unet", "channels": 8, "multipliers": [1, 1], "blocks": 1,
             "attention": [8], "dropout": 0.1},
    student={"kind": "song_unet", "channels": 8, "multipliers": [1, 1], "blocks": 1,
             "attention": [8], "dropout": 0.1},
    latent=256, equilibrium={"kind": "get", "width": 16, "heads": 2, "injection": 1,
                             "mlp_ratio": 2, "iterations": 2},
    batch=2, pairs=8, sampled=(2,), solver_steps=2, resident=64, streamed=64, window=32,
    generated=(1, 4), judged=4, seconds=0.0, matrix=64)
