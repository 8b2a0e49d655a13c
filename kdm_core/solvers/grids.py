"""Time grids: the noise levels between which a solver steps.

A noise level is sigma / alpha of the teacher's path (EDM's sigma), so one grid serves every
teacher. All functions return (steps,) float64, descending and positive, some of them equal where
there are fewer discrete levels; the step to zero noise is the teacher's (`Teacher.times`).
"""

from math import exp, log, pi, sqrt
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import KDMError


class KarrasGrid(Config):
    """sigma^(1/rho) falls linearly (EDM, eq. 5)."""

    kind: Literal["karras"]
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)
    rho: float = Field(7.0, gt=0)


class LogSNRGrid(Config):
    """log sigma falls linearly."""

    kind: Literal["log_snr"]
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)


class VEGrid(Config):
    """The VE discretisation (EDM, table 1): sigma² falls geometrically."""

    kind: Literal["ve"]
    sigma_min: float = Field(0.02, gt=0)
    sigma_max: float = Field(100.0, gt=0)


class VPGrid(Config):
    """The VP discretisation (EDM, table 1): time falls linearly from 1 to `epsilon`.

    Without limits of its own the range is that of beta_d = 19.9 and beta_min = 0.1; with others,
    the two betas follow from the range.
    """

    kind: Literal["vp"]
    sigma_min: float = Field(sqrt(exp(0.5 * 19.9e-6 + 0.1e-3) - 1), gt=0)
    sigma_max: float = Field(sqrt(exp(0.5 * 19.9 + 0.1) - 1), gt=0)
    epsilon: float = Field(1e-3, gt=0, lt=1)


class IDDPMGrid(Config):
    """The iDDPM discretisation (EDM, table 1): evenly spaced of `levels` levels."""

    kind: Literal["iddpm"]
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(81.0, gt=0)
    c_1: float = Field(0.001, gt=0)
    c_2: float = Field(0.008, gt=0)
    levels: int = Field(1000, ge=2)


class UniformGrid(Config):
    """The teacher's own time runs evenly."""

    kind: Literal["uniform"]


Spacing = Literal["leading", "trailing", "linspace", "leading_dpm", "linspace_dpm",
                  "linspace_euler"]
DPM = "_dpm"


class TimestepGrid(Config):
    """Evenly spaced training steps of a teacher with discrete noise levels (DDIM, diffusers).

    Attributes:
        spacing: `leading` starts below the noisiest level, `trailing` and `linspace` at it. Where
            that is too far below, `Teacher.times` takes `trailing` instead. `leading_dpm` and
            `linspace_dpm` are those of one step more without its last (DPM-Solver of diffusers);
            `linspace_euler` is `linspace` that refuses numbers of steps which it would have to
            round (Euler of diffusers steps between the levels there).
        offset: added to the steps of `leading` (diffusers' steps_offset).
        end: the last step goes to zero noise, or to the teacher's `lowest` level and no further
            (diffusers' set_alpha_to_one).
    """

    kind: Literal["timesteps"]
    spacing: Spacing = "leading"
    offset: int = Field(0, ge=0)
    end: Literal["zero", "lowest"] = "zero"


SigmaGrid = KarrasGrid | LogSNRGrid | VEGrid | VPGrid | IDDPMGrid
GridConfig = Annotated[SigmaGrid | UniformGrid | TimestepGrid, Field(discriminator="kind")]


def noise_levels(grid: SigmaGrid, steps: int, lowest: float, highest: float) -> Tensor:
    """The levels of a grid, its range cut to what a teacher knows (`lowest` to `highest`).

    Raises:
        KDMError: the range is empty, or not one for a grid of this kind.
    """
    low, high = max(grid.sigma_min, lowest), min(grid.sigma_max, highest)
    if low > high:
        raise KDMError(f"its noise levels end at {low:g}, above {high:g} where they begin; "
                       "sigma_min and sigma_max must leave some of the teacher's levels, "
                       f"{lowest:g} to {highest:g}", field="solver.grid")
    index = torch.arange(steps, dtype=torch.float64)
    ramp = index / max(steps - 1, 1)
    if isinstance(grid, KarrasGrid):
        first, last = (float(level ** (1 / grid.rho)) for level in (high, low))
        return (first + ramp * (last - first)) ** grid.rho
    if isinstance(grid, LogSNRGrid | VEGrid):
        return (log(high) + ramp * (log(low) - log(high))).exp()
    if isinstance(grid, VPGrid):
        beta_d = 2 * (log(low**2 + 1) / grid.epsilon - log(high**2 + 1)) / (grid.epsilon - 1)
        beta_min = log(high**2 + 1) - 0.5 * beta_d
        if min(beta_min + beta_d, beta_min + beta_d * grid.epsilon) < 0:
            raise KDMError(f"no vp schedule falls from {high:g} at time 1 to {low:g} at time "
                           f"{grid.epsilon:g}; lower sigma_min, raise epsilon, or use karras",
                           field="solver.grid")
        time = 1 + ramp * (grid.epsilon - 1)
        return (0.5 * beta_d * time**2 + beta_min * time).expm1().sqrt()
    table = iddpm_levels(grid.levels, grid.c_1, grid.c_2, torch.float64)
    # A teacher's own limits come of float32, and must not cut off its first or last level.
    table = table[(table >= low * (1 - 1e-4)) & (table <= high * (1 + 1e-4))].clamp(low, high)
    if not len(table):
        raise KDMError(f"no iddpm level lies between {low:g} and {high:g}; set sigma_min and "
                       "sigma_max farther apart", field="solver.grid")
    # In EDM's order of operations, which decides where halves are rounded to.
    return table[((len(table) - 1) / max(steps - 1, 1) * index).round().long()]


def iddpm_levels(levels: int, c_1: float, c_2: float, dtype: torch.dtype) -> Tensor:
    """The noise levels u_0 > … > u_levels = 0 of iDDPM (EDM, table 1, note)."""
    bars = (0.5 * pi * torch.arange(levels + 1) / levels / (c_2 + 1)).sin() ** 2
    table = torch.zeros(levels + 1, dtype=dtype)
    for j in range(levels, 0, -1):
        ratio = (bars[j - 1] / bars[j]).clip(min=c_1)
        table[j - 1] = ((table[j] ** 2 + 1) / ratio - 1).sqrt()
    return table


def timestep_indices(grid: TimestepGrid, steps: int, count: int) -> Tensor:
    """(steps,) int64, descending: the training steps of `count` that a grid visits.

    As diffusers' schedulers compute them, in NumPy, down to the rounding of halves.
    """
    if grid.spacing.endswith(DPM):
        longer = grid.model_copy(update={"spacing": grid.spacing.removesuffix(DPM)})
        return timestep_indices(longer, steps + 1, count)[:-1]
    if grid.spacing == "leading":
        return torch.arange(steps - 1, -1, -1) * (count // steps) + grid.offset
    if grid.spacing == "trailing":
        # Rounding can leave a step too many.
        down = np.arange(count, 0, -count / steps)[:steps].round() - 1
    else:
        lowest = 0 if steps > 1 else count - 1  # a single step starts at the noisiest level, too
        down = np.linspace(lowest, count - 1, steps)[::-1].round()
    return torch.from_numpy(down.astype(np.int64))


def require_whole(grid: TimestepGrid, steps: int, count: int) -> None:
    """Refuse steps that would end between two of a teacher's `count` noise levels.

    Raises:
        KDMError: a grid that does not round would have to.
    """
    if grid.spacing != "linspace_euler" or steps == 1 or (count - 1) % (steps - 1) == 0:
        return
    whole = [str(n + 1) for n in range(1, count) if (count - 1) % n == 0]
    raise KDMError(f"{steps} even steps end between the teacher's {count} noise levels, where its "
                   f"scheduler would ask for what lies between; take {', '.join(whole)} steps, or "
                   "a grid whose spacing is linspace, which takes the nearest levels",
                   field="solver.steps")
