"""Intermediate states of the teacher's ODE, of which a student may learn.

They lie at positions between noise (1) and samples (0), which `kdm_core.pairs.spec.KeptState`
explains. An operator with a C_t for every t has a latent for each of them, on C's path where
z_u = C_{1−u} z_1. The term `trajectory` pulls the latents of the teacher's states onto that path
and has the decoder give the states back; `endpoint` has every state lead to the sample. A student
that has learned of states can stop on its way, look at the state it has reached, and go on.

The paper names such supervision as future work; the form it has here is this project's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kdm_core.errors import KDMError
from kdm_core.pairs.reading.whole import Pairs


class State(NamedTuple):
    """A state of each pair, of unit variance: (B, *shape) float32 at positions (B,) in [0, 1]."""

    state: Tensor
    position: Tensor


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
    places, device = require_states(pairs, "trajectory") + 2, generator.device
    first = torch.randint(places, (count,), generator=generator, device=device)
    other = torch.randint(places - 1, (count,), generator=generator, device=device)
    other = other + (other >= first)
    return torch.stack([torch.minimum(first, other), torch.maximum(first, other)], dim=1)


def states_at(pairs: Pairs, places: Tensor, sigma_data: float) -> States:
    """The states of the B pairs of a batch at `places` (B, 2), which `draw_places` gave."""
    start, end = (state_at(pairs, place, sigma_data) for place in places.unbind(1))
    return States(start.state, end.state, start.position, end.position)


def draw_inner(count: int, pairs: Pairs, generator: torch.Generator) -> Tensor:
    """For each of `count` pairs one of the k states between noise and sample: (count,) int64 in
    [1, k], uniform. Arguments and errors as of `draw_places`."""
    return torch.randint(1, require_states(pairs, "endpoint") + 1, (count,), generator=generator,
                         device=generator.device)


def require_states(pairs: Pairs, term: str) -> int:
    """The number of states that were read with the pairs, for a term of the objective.

    Raises:
        KDMError: there are none.
    """
    if pairs.trajectory is None:
        raise KDMError(f"losses.{term}: the pairs hold no states between noise and sample; sample "
                       "them with states (4, say), or set the weight to 0")
    return pairs.trajectory.shape[1]


def state_at(pairs: Pairs, places: Tensor, sigma_data: float) -> State:
    """The states of the B pairs of a batch at `places` (B,)."""
    trajectory, inner = pairs.trajectory, pairs.positions
    assert trajectory is not None
    assert inner is not None
    count, rows = len(inner), torch.arange(len(places), device=places.device)
    positions = torch.cat([inner.new_ones(1), inner, inner.new_zeros(1)])[places]
    # Gathered before the conversion to float32: a batch of it, not all states of its pairs.
    between = trajectory[rows, (places - 1).clamp(0, count - 1)].to(torch.float32)
    places = places.reshape(-1, *[1] * (between.ndim - 1))
    state = torch.where(places == 0, pairs.noise, between)
    return State(torch.where(places == count + 1, pairs.samples / sigma_data, state), positions)
