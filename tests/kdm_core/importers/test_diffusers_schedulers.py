"""What is read of diffusers' schedulers, against those schedulers, with a tiny U-Net."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdm_core.errors import DataError, KDMError
from kdm_core.importers.diffusers import import_diffusers
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import load_teacher, save_teacher
from tests.support.diffusers_writer import diffusers, source, unet, write

IMAGES = SampleSpec(kind="image", shape=[3, 16, 16], sigma_data=0.4)


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
    model, scheduler = unet(), diffusers.DDIMScheduler(prediction_type=prediction, **options)
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
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace")
    teacher = import_diffusers(source(write(tmp_path, scheduler)), IMAGES)
    scheduler.set_timesteps(7)
    alphas = scheduler.alphas_cumprod[scheduler.timesteps].double()
    times = teacher.times(FixedSolver(kind="euler", steps=7))
    torch.testing.assert_close(times[:-1], ((1 - alphas) / alphas).sqrt())
    assert times[-1] == 0


def test_ddpm_has_the_same_ode(tmp_path: Path) -> None:
    model = unet()
    write(tmp_path, diffusers.DDPMScheduler(clip_sample=True), model)
    teacher = import_diffusers(source(tmp_path), IMAGES)
    x = latents()
    found = teacher.sample(x, None, FixedSolver(kind="euler", steps=10), "fp32")
    expected = ddim(model, diffusers.DDIMScheduler(clip_sample=True), x, 10)
    torch.testing.assert_close(found.state, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", [
    diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=40.0, sigma_data=0.7, rho=5.0),
    diffusers.EDMEulerScheduler(sigma_schedule="exponential")], ids=["karras", "exponential"])
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
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_max=60.0)
    teacher = import_diffusers(source(write(tmp_path, scheduler)), IMAGES)
    scheduler.set_timesteps(9)
    torch.testing.assert_close(teacher.times(FixedSolver(kind="dpmpp_2m", steps=9)).float(),
                               scheduler.sigmas)


def sampled(model: Any, scheduler: Any, noise: Tensor, steps: int) -> Tensor:
    """The loop of pipelines that take any scheduler."""
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


def deviation(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("options", [
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing", "beta_schedule": "scaled_linear", "beta_start": 0.001},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
], ids=["leading", "trailing", "linspace", "sigma_min"])
def test_euler_is_the_euler_scheduler(
    tmp_path: Path, prediction: str, options: dict[str, Any]
) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=prediction, **options)
    model, x = unet(), latents()
    teacher = import_diffusers(source(write(tmp_path, scheduler, model)), IMAGES)
    found = teacher.sample(x, None, FixedSolver(kind="euler", steps=10), "fp32").state
    expected = sampled(model, scheduler, x, 10)
    assert expected.std() > 0.1
    assert deviation(found, expected) < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("options", [
    {"timestep_spacing": "linspace"}, {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing", "algorithm_type": "dpmsolver++"},
], ids=["linspace", "leading", "trailing"])
def test_dpmpp_2m_is_the_multistep_scheduler(
    tmp_path: Path, prediction: str, steps: int, options: dict[str, Any]
) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type=prediction, **options)
    model, x = unet(), latents()
    teacher = import_diffusers(source(write(tmp_path, scheduler, model)), IMAGES)
    found = teacher.sample(x, None, FixedSolver(kind="dpmpp_2m", steps=steps), "fp32").state
    assert deviation(found, sampled(model, scheduler, x, steps)) < 1e-5


def test_a_last_step_of_dpm_solver_that_ends_above_zero_noise(tmp_path: Path) -> None:
    """Its state is alpha x₀ + sigma ε there, ours x₀ + sigma / alpha ε."""
    scheduler = diffusers.DPMSolverMultistepScheduler(final_sigmas_type="sigma_min",
                                                      beta_start=0.01)
    model, x = unet(), latents()
    teacher = import_diffusers(source(write(tmp_path, scheduler, model)), IMAGES)
    solver = FixedSolver(kind="dpmpp_2m", steps=20)
    assert float(teacher.times(solver)[-1]) == teacher.lowest
    found = teacher.sample(x, None, solver, "fp32").state * scheduler.alphas_cumprod[0].sqrt()
    assert deviation(found, sampled(model, scheduler, x, 20)) < 1e-5


def test_eulers_even_steps_between_levels_are_refused_where_they_are_taken(tmp_path: Path) -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    teacher = import_diffusers(source(write(tmp_path, scheduler)), IMAGES)
    for steps in (2, 4, 10, 28, 38, 112):
        scheduler.set_timesteps(steps)
        times = teacher.times(FixedSolver(kind="euler", steps=steps))
        torch.testing.assert_close(times.float(), scheduler.sigmas)
    with pytest.raises(KDMError, match=r"^solver\.steps: 50 even steps .*take 2, 4, 10, 28"):
        teacher.times(FixedSolver(kind="euler", steps=50))
    advised = FixedSolver(kind="euler", steps=50, grid=teacher.default_grid.model_copy(
        update={"spacing": "linspace"}))
    assert len(teacher.times(advised)) == 51
    save_teacher(tmp_path / "saved", teacher)  # for which it is asked for levels of its own grid
    assert load_teacher(tmp_path / "saved")[0].noise_scale(times[0]) == times[0]


@pytest.mark.parametrize("scheduler, saying", [
    (diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr: True"),
    (diffusers.DDPMScheduler(thresholding=True), "thresholding: True"),
    (diffusers.EDMEulerScheduler(prediction_type="v_prediction"), "prediction_type: v_prediction"),
    (diffusers.EDMEulerScheduler(final_sigmas_type="sigma_min"), "final_sigmas_type: sigma_min"),
    *((kind(**{option: True}), f"{option}: True is not supported")
      for kind in (diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler)
      for option in ("rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas",
                     "use_beta_sigmas")),
    *((diffusers.DPMSolverMultistepScheduler(**{option: True}), f"{option}: True is not supported")
      for option in ("thresholding", "use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting")),
    (diffusers.DPMSolverMultistepScheduler(lambda_min_clipped=-5.1), "lambda_min_clipped: -5.1"),
    (diffusers.EulerDiscreteScheduler(interpolation_type="log_linear"),
     "interpolation_type: log_linear .*, only linear; save the scheduler with that"),
    (diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
     "timestep_type: continuous .*choose another model"),
    (diffusers.DDIMScheduler(trained_betas=[0.0, 0.1]), "make no sense.*alphas_cumprod"),
])
def test_schedulers_that_are_refused(tmp_path: Path, scheduler: Any, saying: str) -> None:
    with pytest.raises(DataError, match=rf"scheduler_config\.json.*{saying}"):
        import_diffusers(source(write(tmp_path, scheduler)), IMAGES)


def test_a_way_to_sample_can_be_given_up_as_advised(tmp_path: Path) -> None:
    scheduler = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    write(tmp_path, scheduler)
    with pytest.raises(DataError, match="only False; save the scheduler with that"):
        import_diffusers(source(tmp_path), IMAGES)
    write(tmp_path, diffusers.EulerDiscreteScheduler.from_config(
        scheduler.config, use_karras_sigmas=False))
    assert import_diffusers(source(tmp_path), IMAGES).levels() is not None


SAME_LEVELS: list[Any] = [
    diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.001, steps_offset=1),
    diffusers.PNDMScheduler(prediction_type="v_prediction", set_alpha_to_one=True),
    diffusers.EulerAncestralDiscreteScheduler(num_train_timesteps=500),
    diffusers.DEISMultistepScheduler(beta_schedule="squaredcos_cap_v2"),
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
    diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, **changes).save_pretrained(
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
    diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    diffusers.CMStochasticIterativeScheduler(), diffusers.IPNDMScheduler(),
], ids=lambda found: type(found).__name__)
def test_no_scheduler_is_advised_for_networks_of_other_levels(
    tmp_path: Path, scheduler: Any
) -> None:
    """DDIM's from_config takes anything, and makes DDPM's default levels of it."""
    with pytest.raises(DataError, match="choose another model") as refused:
        import_diffusers(source(write(tmp_path, scheduler)), IMAGES)
    assert "from_config" not in str(refused.value)
