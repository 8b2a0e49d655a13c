"""What a page asks for, drawn, and how long that took."""

from base64 import b64encode
from collections.abc import Callable
from math import ceil, sqrt
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from kdm_core.compute import autocast
from kdm_core.errors import KDMError
from kdm_core.figures.tiles import mosaic
from kdm_core.students.hierarchical import Band, Bands
from pipeline.kdm.student import png
from pipeline.play.finding import Player
from pipeline.play.noises import Noises, draw_noises

WIDTH = 720  # about so many pixels wide are the grids of small images
GAP = 6


class Wish(NamedTuple):
    """What is to be drawn.

    Attributes:
        n: images.
        label: a class's number; None for those that the seed draws.
        weight: of the other seed's noises, in [0, 1].
        order, first, last: a band of modes, for students that have them.
        modes: what becomes of the band: `keep`, `exchange` for the other seed's, or `drop`.
        position: on the way from noise (1) to samples (0), for students that have states.
    """

    n: int = 16
    seed: int = 0
    label: int | None = None
    other_seed: int = 1000
    weight: float = 0.0
    order: Bands = "decay"
    first: float = 0.5
    last: float = 1.0
    modes: str = "keep"
    position: float = 0.0


class Drawing(NamedTuple):
    """Images (n, C, H, W) in about [-1, 1] on the CPU, and what they took.

    Attributes:
        seconds: without the drawing of noise.
        evaluations: of a network, an image.
    """

    images: Tensor
    seconds: float
    evaluations: int


def draw_student(player: Player, wish: Wish) -> Drawing:
    """What the student makes of a wish.

    Raises:
        KDMError: there is no such seed or band.
    """
    noises = wished(player, wish)
    return timed(lambda: (player.student.pictures(make(player, wish, noises)), 1))


def draw_teacher(player: Player, wish: Wish) -> Drawing:
    """What the teacher makes of the same noise; it has no modes, and only the end of the way."""
    assert player.teacher is not None
    model, solver, precision = player.teacher
    noises = wished(player, wish)

    def sample() -> tuple[Tensor, int]:
        found = model.sample(noises.own, noises.labels, solver, precision)
        return player.student.pictures(found.state), found.nfe

    return timed(sample)


def wished(player: Player, wish: Wish) -> Noises:
    """The noises of a wish.

    Raises:
        KDMError: the seeds are none.
    """
    for field, seed in (("seed", wish.seed), ("second seed", wish.other_seed)):
        if not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise KDMError("give a whole number from 0", field=field)
    return draw_noises(player.student, wish.n, wish.seed, wish.other_seed, wish.weight, wish.label)


def make(player: Player, wish: Wish, noises: Noises) -> Tensor:
    """Samples (n, *shape), with a band of modes changed, or states on the way to them."""
    student, device = player.student, noises.own.device
    if wish.position > 0 and student.has_states:
        with autocast(player.precision, device):
            states = student.states(noises.own, [wish.position], noises.labels)[:, 0]
        return states.float() * student.spec.sigma_data
    if wish.modes != "keep" and student.has_modes:
        if not wish.first < wish.last:
            raise KDMError("From must be below To", field="band")
        other = noises.other if wish.modes == "exchange" else None
        with autocast(player.precision, device):
            return student.edit(noises.own, Band(wish.order, wish.first, wish.last),
                                noises.labels, other)
    return student.generate(noises.own, noises.labels, player.precision)


def timed(sample: Callable[[], tuple[Tensor, int]]) -> Drawing:
    """Samples and their evaluations, with the time until they are on the CPU."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    start = perf_counter()
    made, evaluations = sample()
    images = made.cpu()
    return Drawing(images, perf_counter() - start, evaluations)


def warm_up(player: Player, wish: Wish) -> float:
    """Run the models, since the first two runs take longer.

    Returns:
        Seconds of the teacher for one image, 0 without a teacher.
    """
    for _ in range(2):
        draw_student(player, wish)
    if player.teacher is None:
        return 0.0
    return draw_teacher(player, wish._replace(n=1)).seconds


def address(images: Tensor) -> str:
    """A grid of images (n, C, H, W) as a data: URL of a PNG.

    Raises:
        KDMError: there are values that are not finite.
    """
    if not torch.isfinite(images).all():
        raise KDMError("these samples have values that are not finite: the model is damaged or "
                       "diverged in training; train it again")
    columns = ceil(sqrt(len(images)))
    factor = max(1, round(WIDTH / columns / images.shape[-1]))
    large = images.numpy().repeat(factor, axis=2).repeat(factor, axis=3)
    picture = png(mosaic(large, columns, GAP)[:-GAP, :-GAP])
    return f"data:image/png;base64,{b64encode(picture).decode()}"


def stopwatch(seconds: float) -> str:
    """A time as it is read: "3.1 ms", "1.24 s"."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
