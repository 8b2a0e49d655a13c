"""Intermediate states of the teacher's ODE: learning from them, sampling through them.

An operator with a C_t for every t has a latent for every state between noise and sample: a state
at position u (1 for noise, 0 for samples; `kdm_core.pairs.spec.KeptState` says what a position
is) lies on C's path where z_u = C_{1−u} z_1. Trajectory supervision pulls the latents of the
teacher's states onto that path and has the decoder give the states back. A student that has
learned this can stop on its way, look at the state it has reached, and go on from there.

The paper names such supervision as future work; the form it has here is this project's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kdm_core.errors import KDMError
from kdm_core.losses.distances import Distance
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.students.model import KDM


class States(NamedTuple):
    """Two states of each pair, of unit variance, with the batch first.

    Attributes:
        start, end: (B, *shape) float32; `start` is the noisier one.
        start_position, end_position: (B,) in [0, 1], the first larger.
    """

    start: Tensor
    end: Tensor
    start_position: Tensor
    end_position: Tensor


def draw_places(count: int, pairs: Pairs, generator: torch.Generator) -> Tensor:
    """For each of `count` pairs two places on its path, uniform among all that differ.

    Place 0 is the noise, 1 to k are the k states of the trajectory, k + 1 is the sample.

    Args:
        pairs: any that were read as those are.

    Returns:
        (count, 2) int64 on the generator's device, ascending in each row.

    Raises:
        KDMError: no states were read with the pairs.
    """
    if pairs.trajectory is None:
        raise KDMError("losses.trajectory: the pairs hold no states between noise and sample; "
                       "sample them with states (4, say), or set the weight to 0")
    places, device = pairs.trajectory.shape[1] + 2, generator.device
    first = torch.randint(places, (count,), generator=generator, device=device)
    other = torch.randint(places - 1, (count,), generator=generator, device=device)
    other = other + (other >= first)
    return torch.stack([torch.minimum(first, other), torch.maximum(first, other)], dim=1)


def states_at(pairs: Pairs, places: Tensor, sigma_data: float) -> States:
    """The states of the B pairs of a batch at `places` (B, 2), which `draw_places` gave."""
    trajectory, inner = pairs.trajectory, pairs.positions
    assert trajectory is not None
    assert inner is not None
    count, rows = len(inner), torch.arange(len(places), device=places.device)
    positions = torch.cat([inner.new_ones(1), inner, inner.new_zeros(1)])

    def state(place: Tensor) -> Tensor:
        # Gathered before the conversion to float32: a batch of it, not all states of its pairs.
        between = trajectory[rows, (place - 1).clamp(0, count - 1)].to(torch.float32)
        place = place.reshape(-1, *[1] * (between.ndim - 1))
        between = torch.where(place == 0, pairs.noise, between)
        return torch.where(place == count + 1, pairs.samples / sigma_data, between)

    first, second = places.unbind(1)
    return States(state(first), state(second), positions[first], positions[second])


def trajectory_terms(
    student: KDM, states: States, labels: Tensor | None, distance: Distance
) -> Tensor:
    """‖C_{u−v} E(x_u, u) − E(x_v, v)‖² + d(x_v, D(C_{u−v} E(x_u, u), v)), u > v: a scalar.

    The first term is averaged over all values of the latents. The second compares states in the
    range of samples (times sigma_data), where d knows how large a difference is. Both encodings
    are one call of the encoder.

    Args:
        labels: (B,) int64, or None for a student without.
        distance: d of the student's other terms.

    Raises:
        KDMError: the student's encoders are not shared, or its operator is not continuous.
    """
    twice = None if labels is None else labels.repeat(2)
    z_start, z_end = student.encode(
        torch.cat([states.start, states.end]),
        torch.cat([states.start_position, states.end_position]), twice).chunk(2)
    duration = states.start_position - states.end_position
    pushed = student.operator.advance(z_start, duration, student.drive(labels))
    latent = (z_end.float() - pushed.float()).square().mean()
    scale = student.spec.sigma_data
    decoded = student.decode_state(pushed, states.end_position, labels)
    (prediction,) = distance(scale * states.end, [scale * decoded])
    return latent + prediction
