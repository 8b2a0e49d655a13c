"""Teachers from folders of diffusers: a `UNet2DModel` with its scheduler.

Read are the U-Net's `config.json`, its weights as safetensors and `scheduler_config.json`, in
`unet/` and `scheduler/` as pipelines have them, or side by side as older ones do.

With a DDPM or DDIM scheduler, the teacher's Euler steps on its own grid are DDIM's (eta 0) with
`use_clipped_model_output=True`: a clipped sample and its noise fit each other. Diffusers' default
keeps the noise of the unclipped sample, which is no ODE. With `linspace` spacing, or steps that do
not divide the training steps, diffusers steps to a level beside its grid; here steps end on it.
Without `set_alpha_to_one` diffusers' samples are those here times alpha of the lowest level (5e-5
off 1 for DDPM's linear schedule). EDM schedulers of diffusers begin with noise of
sqrt(sigma_max² + 1), here it is sigma_max.
"""

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from kdm_core.config import Config
from kdm_core.errors import DataError
from kdm_core.importers.files import fetch_folder, require_sha256
from kdm_core.importers.samples import label_names
from kdm_core.importers.weights import load_weights
from kdm_core.networks.diffusers_unet import DiffusersUNet, DiffusersUNetConfig
from kdm_core.networks.foreign import import_diffusers_library
from kdm_core.samples import SampleSpec
from kdm_core.solvers.grids import KarrasGrid, LogSNRGrid, TimestepGrid
from kdm_core.teachers import Denoiser, DenoiserConfig
from kdm_core.teachers.preconditioning import (
    DiscretePreconditioning,
    EDMPreconditioning,
    PreconditioningConfig,
)

CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = [PIPELINE, CONFIG, f"unet/{CONFIG}", WEIGHTS, f"unet/{WEIGHTS}", SCHEDULER,
         f"scheduler/{SCHEDULER}"]
MAX_CONFIG = 2**22
DISCRETE = ("DDPMScheduler", "DDIMScheduler")
CONTINUOUS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
# Other samplers of networks that were trained on DDPM's levels, with the same arguments for them.
SAMPLERS = {
    "DDIMParallelScheduler", "DDPMParallelScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class DiffusersSource(Config):
    """A pipeline of diffusers that makes images with a `UNet2DModel`.

    Attributes:
        folder: a local folder, or OWNER/NAME on the hub.
        revision: branch, tag or commit on the hub.
        sha256: of the file with the weights.
    """

    source: Literal["diffusers"]
    folder: str = Field(min_length=1)
    revision: str | None = Field(None, min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")


def import_diffusers(source: DiffusersSource, data: SampleSpec) -> Denoiser:
    """The denoiser in a folder of diffusers; height and width are of `data` if it leaves them open.

    Raises:
        DataError: something is missing, damaged, or of a kind that is not read.
        MismatchError: the weights are others than pinned, or not those of the network.
        KDMError: diffusers is not installed.
    """
    diffusers = import_diffusers_library()
    folder = fetch_folder(source.folder, source.revision, FILES)
    require_pixels(folder)
    place = locate(folder, "unet", CONFIG).parent
    described = read_config(place / CONFIG, ("UNet2DModel",),
                            lambda _: "Choose a pipeline with such a network")
    scheduler = read_scheduler(diffusers, locate(folder, "scheduler", SCHEDULER))
    require_weights(place)
    require_sha256(place / WEIGHTS, source.sha256, str(place / WEIGHTS))
    unet = read_unet(diffusers, place)
    arguments = network_arguments(unet, described, place / CONFIG)
    sigma_data = scheduler.config.get("sigma_data", data.sigma_data)
    spec = samples_of(arguments, data, sigma_data, place / CONFIG)
    network = DiffusersUNetConfig(kind="diffusers_unet", arguments=arguments)
    teacher = Denoiser(denoiser_config(network, scheduler), spec)
    assert isinstance(teacher.network, DiffusersUNet)
    load_weights(teacher.network.unet, unet.state_dict(), str(place / WEIGHTS))
    teacher.label_dropout = 0.0  # its embedding has a row for each class and none for no label
    return teacher.eval().requires_grad_(False)


# What is in the folder


def locate(folder: Path, subfolder: str, name: str) -> Path:
    """A file in its subfolder, or in the folder itself.

    Raises:
        DataError: it is in neither.
    """
    for place in (folder / subfolder / name, folder / name):
        if place.is_file():
            return place
    raise DataError(f"{folder} holds neither {subfolder}/{name} nor {name}: name a folder that "
                    "diffusers' save_pretrained wrote for a pipeline", field="folder")


def read_config(
    path: Path, classes: tuple[str, ...], way_out: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """A configuration of diffusers that describes one of these classes.

    Args:
        way_out: what to do about a configuration of another class.

    Raises:
        DataError: it is damaged, or describes something else.
    """
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise DataError(f"{path} is larger than any configuration: fetch it again")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}): fetch it again") from error
    name = document.get("_class_name") if isinstance(document, dict) else None
    if not isinstance(document, dict) or name not in classes:
        raise DataError(f"{path} describes {str(name)[:100]}; supported: {', '.join(classes)}. "
                        f"{way_out(document if isinstance(document, dict) else {})}")
    return document


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


def require_pixels(folder: Path) -> None:
    """Refuse pipelines whose U-Net does not make the images itself.

    Raises:
        DataError: it works on latents, or on a text.
    """
    parts: set[str] = {path.name for path in folder.iterdir()}
    index = folder / PIPELINE
    if index.is_file():
        try:
            parts |= set(json.loads(index.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{index} is not readable JSON ({error}): fetch it again") from error
    if found := sorted(parts & {"vae", "vqvae", "movq", "text_encoder"}):
        raise DataError(f"{folder} has a {found[0]}: latent and text-conditional pipelines are not "
                        "supported, choose one that makes pixels from noise", field="folder")


def require_weights(place: Path) -> None:
    """Make sure that there are weights that can be read without executing anything.

    Raises:
        DataError: there are none.
    """
    if not (place / WEIGHTS).is_file():
        pickled = (place / WEIGHTS).with_suffix(".bin").is_file()
        raise DataError(
            f"{place} holds no {WEIGHTS}" + (
                "; its .bin is a pickle, which could run code and is not read: convert it with "
                "diffusers, save_pretrained(…, safe_serialization=True), on a machine that may"
                if pickled else ": it is incomplete, fetch it again"), field="folder")


def read_unet(diffusers: Any, place: Path) -> Any:
    """The U-Net, by diffusers itself, which knows the tensors' older names.

    Raises:
        DataError: the file is damaged, or not that of this U-Net.
    """
    try:
        unet, found = diffusers.UNet2DModel.from_pretrained(
            place, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
            torch_dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # of safetensors, of torch, and of what diffusers makes of a config
        text = " ".join(str(error).split())[:400]
        raise DataError(f"diffusers cannot load {place} ({text}): fetch it again",
                        field="folder") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in found[kind]):
            raise DataError(f"{place / WEIGHTS} does not fit {place / CONFIG}: {len(names)} "
                            f"{kind.replace('_', ' ')} ({', '.join(names[:3])}): fetch both again")
    return unet


# What it says


def network_arguments(unet: Any, described: dict[str, Any], path: Path) -> dict[str, Any]:
    """All arguments of the U-Net, defaults included, as JSON has them.

    Raises:
        DataError: the file has one that this version of diffusers does not know.
    """
    known = set(inspect.signature(type(unet).__init__).parameters) - {"self"}
    if unknown := sorted(name for name in described.keys() - known if not name.startswith("_")):
        raise DataError(f"{path}: this version of diffusers knows no {', '.join(unknown)}; remove "
                        "it if it means nothing, or install a newer version")
    arguments: dict[str, Any] = json.loads(json.dumps(
        {name: value for name, value in unet.config.items() if name in known}))
    return arguments


def samples_of(
    arguments: dict[str, Any], data: SampleSpec, sigma_data: float, path: Path
) -> SampleSpec:
    """What the U-Net's images are.

    Raises:
        DataError: it outputs more than an image.
    """
    channels, size = arguments["in_channels"], arguments["sample_size"]
    if arguments["out_channels"] != channels:
        raise DataError(f"{path}: {channels} channels in and {arguments['out_channels']} out: "
                        "U-Nets that predict a variance, too, are not supported")
    if arguments["class_embed_type"] is not None:
        raise DataError(f"{path}: class_embed_type {arguments['class_embed_type']} is not "
                        "supported, only num_class_embeds")
    sides = data.shape[1:] if size is None else [size, size] if isinstance(size, int) else size
    try:
        return SampleSpec(kind="image", shape=[channels, *sides], sigma_data=sigma_data,
                          label_names=label_names(arguments["num_class_embeds"] or 0, data))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: its sizes make no sense ({reason(error)}): fetch it "
                        "again") from error


def read_scheduler(diffusers: Any, path: Path) -> Any:
    """The scheduler, by diffusers.

    Raises:
        DataError: it is of a kind or has an option that is not supported.
    """
    described = read_config(path, DISCRETE + CONTINUOUS, partial(replaced_scheduler, diffusers))
    name = described["_class_name"]
    kind = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    try:
        scheduler = kind(**{key: value for key, value in described.items() if key in known})
    except Exception as error:  # whatever the values make it fail with
        raise DataError(f"{path}: diffusers builds no {name} of it ({error}): fetch it again"
                        ) from error
    supported: dict[str, object] = {"rescale_betas_zero_snr": False, "thresholding": False}
    if name in CONTINUOUS:
        supported |= {"prediction_type": "epsilon", "final_sigmas_type": "zero"}
    for option, value in supported.items():
        if (found := scheduler.config.get(option, value)) != value:
            raise DataError(f"{path}: {option}: {found} is not supported for {name}, only {value}")
    return scheduler


def denoiser_config(network: DiffusersUNetConfig, scheduler: Any) -> DenoiserConfig:
    """Preconditioning and default grid as the scheduler has them.

    Raises:
        DataError: its values make no sense.
    """
    found = scheduler.config
    preconditioning: PreconditioningConfig
    grid: KarrasGrid | LogSNRGrid | TimestepGrid
    try:
        if type(scheduler).__name__ in CONTINUOUS:
            preconditioning = EDMPreconditioning()
            low, high = float(found.sigma_min), float(found.sigma_max)
            if found.sigma_schedule == "exponential":
                grid = LogSNRGrid(kind="log_snr", sigma_min=low, sigma_max=high)
            else:
                grid = KarrasGrid(kind="karras", sigma_min=low, sigma_max=high,
                                  rho=float(found.rho))
        else:
            preconditioning = DiscretePreconditioning(
                kind="discrete", prediction=found.prediction_type,
                alphas_cumprod=scheduler.alphas_cumprod.tolist(),
                clip=float(found.clip_sample_range) if found.clip_sample else None)
            grid = TimestepGrid(kind="timesteps", spacing=found.timestep_spacing,
                                offset=found.steps_offset,
                                end="zero" if found.get("set_alpha_to_one", True) else "lowest")
        return DenoiserConfig(kind="denoiser", network=network, preconditioning=preconditioning,
                              grid=grid)
    except (ValueError, TypeError) as error:
        raise DataError(f"the values in {SCHEDULER} make no sense, or are of a kind that is not "
                        f"supported ({reason(error)}): fetch it again, or choose another model",
                        field="folder") from error


def reason(error: Exception) -> str:
    """What a validation found, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(str(part) for part in found['loc'])} {found['msg']}".strip()
                         for found in error.errors()[:3])
    return str(error)
