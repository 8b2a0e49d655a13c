"""Folders of diffusers against its own schedulers, with a tiny U-Net."""

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.importers.diffusers import DiffusersSource, import_diffusers
from kdm_core.samples import SampleSpec
from kdm_core.serialization import file_sha256
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import load_teacher, save_teacher
from kdm_core.vision import import_torchvision
from tests.support.diffusers_writer import unet, write

import_torchvision()  # before diffusers, which does it itself, but not beside every build of torch
import diffusers  # noqa: E402
from diffusers import (  # noqa: E402
    DDIMScheduler,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
)

IMAGES = SampleSpec(kind="image", shape=[3, 16, 16], sigma_data=0.4)
def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def source(folder: Path, **fields: Any) -> DiffusersSource:
    return DiffusersSource(source="diffusers", folder=str(folder), **fields)


def latents(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def ddim(model: Any, scheduler: Any, x: Tensor, steps: int) -> Tensor:
    """The loop of `DDIMPipeline`, eta 0."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t).sample, t, x, eta=0.0,
                           use_clipped_model_output=True).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("options", [
    {"clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 0.9, "timestep_spacing": "trailing"},
    {"clip_sample": False, "set_alpha_to_one": False, "beta_schedule": "scaled_linear",
     "beta_start": 0.001},
    {"clip_sample": True, "steps_offset": 1, "beta_schedule": "squaredcos_cap_v2"},
], ids=["plain", "trailing", "alpha", "offset"])
def test_euler_is_ddim(tmp_path: Path, prediction: str, options: dict[str, Any]) -> None:
    model, scheduler = unet(), DDIMScheduler(prediction_type=prediction, **options)
    teacher = import_diffusers(source(write(tmp_path, scheduler, model)), IMAGES)
    x = latents()
    assert teacher.spec == IMAGES and not teacher.training
    found = teacher.sample(x, None, FixedSolver(kind="euler", steps=20), "fp32")
    # Where its path does not end at alpha = 1, diffusers returns alpha x₀ + sigma ε.
    expected = ddim(model, scheduler, x, 20) / scheduler.final_alpha_cumprod.sqrt()
    # A path that ends at the level of its last step has nothing to do there.
    assert found.nfe == (20 if options.get("set_alpha_to_one", True) else 19)
    assert (expected - x).abs().max() > 0.1
    torch.testing.assert_close(found.state, expected, rtol=1e-4, atol=1e-4)


def test_linspace_visits_the_levels_of_diffusers(tmp_path: Path) -> None:
    scheduler = DDIMScheduler(timestep_spacing="linspace")
    teacher = import_diffusers(source(write(tmp_path, scheduler)), IMAGES)
    scheduler.set_timesteps(7)
    alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()
    times = teacher.times(FixedSolver(kind="euler", steps=7))
    torch.testing.assert_close(times[:-1], ((1 - alphas) / alphas).sqrt())
    assert times[-1] == 0


def test_ddpm_has_the_same_ode(tmp_path: Path) -> None:
    model = unet()
    write(tmp_path, DDPMScheduler(clip_sample=True), model)
    teacher = import_diffusers(source(tmp_path), IMAGES)
    x = latents()
    found = teacher.sample(x, None, FixedSolver(kind="euler", steps=10), "fp32")
    torch.testing.assert_close(found.state, ddim(model, DDIMScheduler(clip_sample=True), x, 10),
                               rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", [
    EDMEulerScheduler(sigma_min=0.01, sigma_max=40.0, sigma_data=0.7, rho=5.0),
    EDMEulerScheduler(sigma_schedule="exponential")], ids=["karras", "exponential"])
def test_edm_is_the_euler_scheduler_of_edm(tmp_path: Path, scheduler: Any) -> None:
    model = unet()
    teacher = import_diffusers(source(write(tmp_path, scheduler, model)), IMAGES)
    assert teacher.spec.sigma_data == scheduler.config.sigma_data
    noise = latents()
    found = teacher.sample(noise, None, FixedSolver(kind="euler", steps=12), "fp32")
    scheduler.set_timesteps(12)
    x = noise * scheduler.config.sigma_max
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    torch.testing.assert_close(found.state, x, rtol=1e-4, atol=1e-4)


def test_the_grid_of_the_other_edm_scheduler(tmp_path: Path) -> None:
    scheduler = EDMDPMSolverMultistepScheduler(sigma_max=60.0)
    teacher = import_diffusers(source(write(tmp_path, scheduler)), IMAGES)
    scheduler.set_timesteps(9)
    torch.testing.assert_close(teacher.times(FixedSolver(kind="dpmpp_2m", steps=9)).float(),
                               scheduler.sigmas)


def test_the_network_is_the_same_to_the_bit_also_when_saved(tmp_path: Path) -> None:
    model = unet()
    teacher = import_diffusers(source(write(tmp_path / "a", DDPMScheduler(), model)), IMAGES)
    x, time = latents(), torch.tensor([3.0, 700.0])
    save_teacher(tmp_path / "b", teacher)
    for found in (teacher, load_teacher(tmp_path / "b")[0]):
        assert torch.equal(found.get_submodule("network")(x, time), model(x, time.long()).sample)


def test_autocast(tmp_path: Path) -> None:
    teacher = import_diffusers(source(write(tmp_path, DDIMScheduler())), IMAGES)
    x, time = latents(), torch.tensor([3.0, 700.0])
    network = teacher.get_submodule("network")
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, time)
    full = network(x, time)
    assert 0 < (full - half).abs().max() < 0.1 < full.std()


def test_classes(tmp_path: Path) -> None:
    model = unet(num_class_embeds=2)
    folder = write(tmp_path, DDPMScheduler(), model)
    data = IMAGES.model_copy(update={"label_names": ["cat", "dog"]})
    teacher = import_diffusers(source(folder), data)
    assert teacher.spec.label_names == ["cat", "dog"]
    assert import_diffusers(source(folder), IMAGES).spec.label_names == ["0", "1"]
    x, time, labels = latents(), torch.tensor([3.0, 700.0]), torch.tensor([1, 0])
    network = teacher.get_submodule("network")
    assert torch.equal(network(x, time, labels), model(x, time.long(), labels).sample)
    for none in (None, torch.tensor([0, -1])):
        with pytest.raises(KDMError, match="trained with labels only"):
            network(x, time, none)


def test_older_layout_and_older_names_of_attention(tmp_path: Path) -> None:
    """Files side by side, and q, k, v, out as `query`, `key`, `value`, `proj_attn`."""
    from safetensors.torch import load_file, save_file

    model = unet()
    write(tmp_path, DDPMScheduler(), model)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, tensor in load_file(weights).items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"),
                         ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, tmp_path / weights.name)
    weights.unlink()
    (tmp_path / "unet" / "config.json").rename(tmp_path / "config.json")
    (tmp_path / "scheduler" / "scheduler_config.json").rename(tmp_path / "scheduler_config.json")
    teacher = import_diffusers(source(tmp_path), IMAGES)
    x, time = latents(), torch.tensor([3.0, 700.0])
    assert torch.equal(teacher.get_submodule("network")(x, time), model(x, time.long()).sample)


def test_half_precision_weights_and_their_sum(tmp_path: Path) -> None:
    folder = write(tmp_path, DDPMScheduler(), unet().half())
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    teacher = import_diffusers(source(folder, sha256=file_sha256(weights)), IMAGES)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    with pytest.raises(MismatchError, match=r"^sha256: .*diffusion_pytorch_model"):
        import_diffusers(source(folder, sha256="0" * 64), IMAGES)


@pytest.mark.parametrize("scheduler, saying", [
    (DDIMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr: True is not supported"),
    (DDPMScheduler(thresholding=True), "thresholding: True is not supported"),
    (EDMEulerScheduler(prediction_type="v_prediction"), "prediction_type: v_prediction is not"),
    (EDMEulerScheduler(final_sigmas_type="sigma_min"), "final_sigmas_type: sigma_min is not"),
    (DDIMScheduler(trained_betas=[0.0, 0.1]), "make no sense.*alphas_cumprod"),
])
def test_schedulers_that_are_refused(tmp_path: Path, scheduler: Any, saying: str) -> None:
    with pytest.raises(DataError, match=rf"scheduler_config\.json.*{saying}"):
        import_diffusers(source(write(tmp_path, scheduler)), IMAGES)


@pytest.mark.parametrize("file, values, saying", [
    ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"},
     r"describes PNDMScheduler; supported: DDPMScheduler.*DDIMScheduler\.from_config"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "my own"}, "builds no DDPMScheduler"),
    ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "make no sense"),
    ("unet/config.json", {"_class_name": "UNet2DConditionModel"},
     "describes UNet2DConditionModel; supported: UNet2DModel"),
    ("unet/config.json", {"invented": 3}, "knows no invented"),
    ("unet/config.json", {"layers_per_block": 2}, "diffusers cannot load.*size mismatch"),
    ("unet/config.json", {"add_attention": False}, r"unexpected keys \(mid_block\.attentions"),
    ("unet/config.json", {"num_class_embeds": 5}, r"1 missing keys \(class_embedding\.weight\)"),
    ("unet/config.json", {"block_out_channels": "wide"}, "diffusers cannot load"),
    ("unet/config.json", {"sample_size": "large"}, "sizes make no sense"),
    ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}, "has a vqvae: latent and text"),
])
def test_configurations_that_are_refused(
    tmp_path: Path, file: str, values: dict[str, Any], saying: str
) -> None:
    edit(write(tmp_path, DDPMScheduler()) / file, **values)
    with pytest.raises(DataError, match=saying):
        import_diffusers(source(tmp_path), IMAGES)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither unet/config\.json nor config\.json"):
        import_diffusers(source(tmp_path), IMAGES)
    folder = write(tmp_path, DDPMScheduler(), unet(out_channels=6))
    with pytest.raises(DataError, match="3 channels in and 6 out"):
        import_diffusers(source(folder), IMAGES)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(DataError, match="diffusers cannot load"):
        import_diffusers(source(folder), IMAGES)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DataError, match=r"\.bin is a pickle"):
        import_diffusers(source(folder), IMAGES)
    (folder / "vae").mkdir()
    with pytest.raises(DataError, match="has a vae"):
        import_diffusers(source(folder), IMAGES)


SAME_LEVELS: list[Any] = [
    diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.001, steps_offset=1),
    diffusers.PNDMScheduler(prediction_type="v_prediction", set_alpha_to_one=True),
    diffusers.EulerDiscreteScheduler(beta_end=0.012, use_karras_sigmas=True),
    diffusers.EulerAncestralDiscreteScheduler(num_train_timesteps=500),
    diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2"),
    diffusers.HeunDiscreteScheduler(), diffusers.LMSDiscreteScheduler(),
    diffusers.UniPCMultistepScheduler(prediction_type="sample"),
    diffusers.DDIMParallelScheduler(clip_sample_range=0.8)]


@pytest.mark.parametrize("scheduler", SAME_LEVELS, ids=lambda found: type(found).__name__)
def test_a_scheduler_that_is_replaced_as_advised_has_the_same_levels(
    tmp_path: Path, scheduler: Any
) -> None:
    """And samples are clipped only where they were: a new DDIM scheduler would."""
    folder = write(tmp_path, scheduler)
    with pytest.raises(DataError, match=r"DDIMScheduler\.from_config") as refused:
        import_diffusers(source(folder), IMAGES)
    advised = re.search(r"DDIMScheduler\.from_config\(.*?\)", str(refused.value))
    assert advised is not None
    pipeline = SimpleNamespace(scheduler=scheduler)
    call = ast.parse(advised[0], mode="eval").body
    assert isinstance(call, ast.Call) and ast.unparse(call.args) == "pipeline.scheduler.config"
    changes = {key.arg: ast.literal_eval(key.value) for key in call.keywords}
    DDIMScheduler.from_config(pipeline.scheduler.config, **changes).save_pretrained(
        folder / "scheduler")
    teacher = import_diffusers(source(folder), IMAGES)
    alphas = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(teacher.levels(), ((1 - alphas) / alphas).sqrt())
    preconditioning = teacher.config.preconditioning
    assert preconditioning.prediction == scheduler.config.prediction_type
    assert teacher.config.grid.spacing == scheduler.config.timestep_spacing
    clipped = scheduler.config.get("clip_sample", False)
    assert preconditioning.clip == (scheduler.config.clip_sample_range if clipped else None)


@pytest.mark.parametrize("scheduler", [
    diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.LCMScheduler(),
    diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
    diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    diffusers.CMStochasticIterativeScheduler(), diffusers.IPNDMScheduler(),
], ids=lambda found: type(found).__name__)
def test_no_scheduler_is_advised_for_networks_of_other_levels(
    tmp_path: Path, scheduler: Any
) -> None:
    """DDIM's from_config takes anything, and makes DDPM's default levels of it."""
    with pytest.raises(DataError, match="choose another model") as refused:
        import_diffusers(source(write(tmp_path, scheduler)), IMAGES)
    assert "from_config" not in str(refused.value)
