"""What the schedulers of diffusers say of a network: its noise levels, and how to step over them.

Read is the schedule, not the sampler, which the solver is chosen in place of. With a DDPM or DDIM
scheduler, the teacher's Euler steps on its own grid are DDIM's (eta 0) with
`use_clipped_model_output=True`: a clipped sample and its noise fit each other. Diffusers' default
keeps the noise of the unclipped sample, which is no ODE. With DDIM's `linspace` spacing, or steps
that do not divide the training steps, diffusers steps to a level beside its grid; here steps end on
it. Where the last step does not end at zero noise (`set_alpha_to_one`, `final_sigmas_type`), DDIM's
and DPM-Solver's samples are those here times alpha of the lowest level (5e-5 off 1 for DDPM's
linear schedule). EDM schedulers of diffusers begin with noise of sqrt(sigma_max² + 1), here it is
sigma_max.
"""

import inspect
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from kdm_core.errors import DataError
from kdm_core.importers.diffusers.folders import SCHEDULER, read_config
from kdm_core.solvers.grids import KarrasGrid, LogSNRGrid, TimestepGrid
from kdm_core.teachers.preconditioning import (
    DiscretePreconditioning,
    EDMPreconditioning,
    PreconditioningConfig,
)

DDIM = ("DDPMScheduler", "DDIMScheduler")
EULER = ("EulerDiscreteScheduler",)
DPM = ("DPMSolverMultistepScheduler",)
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
# Other samplers of networks that were trained on DDPM's levels, with the same arguments for them.
SAMPLERS = {
    "DDIMParallelScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# What a network was trained with, by the one value that is supported.
TRAINED: dict[str, object] = {
    "rescale_betas_zero_snr": False, "timestep_type": "discrete", "use_flow_sigmas": False,
    "use_dynamic_shifting": False}
# How it is sampled, likewise: another grid can be chosen.
SAMPLED: dict[str, object] = {
    "thresholding": False, "use_karras_sigmas": False, "use_exponential_sigmas": False,
    "use_beta_sigmas": False, "use_lu_lambdas": False, "interpolation_type": "linear",
    "lambda_min_clipped": -inf}
OF_EDM: dict[str, object] = {"prediction_type": "epsilon", "final_sigmas_type": "zero"}


class Schedule(NamedTuple):
    """What a teacher takes of a scheduler.

    Attributes:
        grid: where nothing else is said.
        sigma_data: standard deviation of the data; None if it does not say.
    """

    preconditioning: PreconditioningConfig
    grid: KarrasGrid | LogSNRGrid | TimestepGrid
    sigma_data: float | None


def read_schedule(diffusers: Any, path: Path) -> Schedule:
    """The schedule in a scheduler's configuration.

    Raises:
        DataError: the scheduler is of a kind, or has an option, that is not supported.
    """
    described = read_config(path, DDIM + EULER + DPM + EDM, partial(replaced_scheduler, diffusers))
    name = described["_class_name"]
    kind = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    try:
        scheduler = kind(**{key: value for key, value in described.items() if key in known})
    except Exception as error:  # whatever the values make it fail with
        raise DataError(f"{path}: diffusers builds no {name} of it ({error}): fetch it again"
                        ) from error
    require_options(scheduler, name, path)
    try:
        return continuous(scheduler.config) if name in EDM else discrete(scheduler, name)
    except (ValueError, TypeError) as error:
        raise DataError(f"the values in {SCHEDULER} make no sense, or are of a kind that is not "
                        f"supported ({reason(error)}): fetch it again, or choose another model",
                        field="folder") from error


def require_options(scheduler: Any, name: str, path: Path) -> None:
    """Refuse what neither a preconditioning nor a grid expresses.

    Raises:
        DataError: there is some.
    """
    for options, way_out in (
            (TRAINED | (OF_EDM if name in EDM else {}), "choose another model"),
            (SAMPLED, "save the scheduler with that, the network is the same, and choose solver "
                      "and grid where it is sampled")):
        for option, value in options.items():
            found = scheduler.config.get(option, value)
            if (found or False) != (value or False):
                raise DataError(f"{path}: {option}: {str(found)[:100]} is not supported for {name}"
                                f", only {value}; {way_out}")


def continuous(config: Any) -> Schedule:
    """That of an EDM scheduler."""
    low, high = float(config.sigma_min), float(config.sigma_max)
    grid: KarrasGrid | LogSNRGrid
    if config.sigma_schedule == "exponential":
        grid = LogSNRGrid(kind="log_snr", sigma_min=low, sigma_max=high)
    else:
        grid = KarrasGrid(kind="karras", sigma_min=low, sigma_max=high, rho=float(config.rho))
    return Schedule(EDMPreconditioning(), grid, config.sigma_data)


def discrete(scheduler: Any, name: str) -> Schedule:
    """That of a scheduler over DDPM's levels."""
    found = scheduler.config
    spacing = found.timestep_spacing
    # What the pipeline's noise is multiplied with, as the scheduler has it.
    start: Literal["path", "noise"] = (
        "noise" if name in EULER and spacing in ("linspace", "trailing") else "path")
    preconditioning = DiscretePreconditioning(
        kind="discrete", prediction=found.prediction_type, start=start,
        alphas_cumprod=scheduler.alphas_cumprod.tolist(),
        clip=float(found.clip_sample_range) if found.get("clip_sample") else None)
    whole = found.get("set_alpha_to_one", True) and found.get("final_sigmas_type") != "sigma_min"
    grid = TimestepGrid.model_validate({
        "kind": "timesteps", "spacing": f"{spacing}{family(spacing, name)}",
        "offset": found.steps_offset, "end": "zero" if whole else "lowest"})
    return Schedule(preconditioning, grid, None)


def family(spacing: Any, name: str) -> str:
    """What our name of a scheduler's spacing ends in, where it is not that of DDIM."""
    if name in DPM and spacing in ("linspace", "leading"):
        return "_dpm"
    return "_euler" if name in EULER and spacing == "linspace" else ""


def replaced_scheduler(diffusers: Any, described: dict[str, Any]) -> str:
    """What to do about a scheduler of another class.

    It may be replaced where it is but another way to sample what a DDPM has learned. Others' levels
    are not in the configuration that a DDIM scheduler would be made of.
    """
    ddpm = (described.get("_class_name") in SAMPLERS and not described.get("use_flow_sigmas")
            and described.get("timestep_type", "discrete") == "discrete"
            and described.get("prediction_type", "epsilon") in PREDICTIONS)
    if not ddpm:
        return ("Its network was trained on other noise levels than theirs, so that no scheduler "
                "can be put in its place: choose another model")
    # from_config puts DDIM's defaults in the place of the other's, and DDIM clips by default.
    parameters = inspect.signature(diffusers.DDIMScheduler.__init__).parameters
    given = {"clip_sample": False, **described}
    told = "".join(f", {name}={given[name]!r}" for name, parameter in parameters.items()
                   if isinstance(given.get(name), bool | int | float | str)
                   and given[name] != parameter.default)
    return ("Its network has the same noise levels: set pipeline.scheduler to "
            f"DDIMScheduler.from_config(pipeline.scheduler.config{told}) and save the pipeline "
            "again")


def reason(error: Exception) -> str:
    """What a validation found, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(str(part) for part in found['loc'])} {found['msg']}".strip()
                         for found in error.errors()[:3])
    return str(error)
