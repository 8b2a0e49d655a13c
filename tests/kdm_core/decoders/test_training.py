"""Training of an autoencoder: resumption to the bit, what it learns, what it refuses."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from kdm_core.compute import seeded, step_generator
from kdm_core.datasets.digits import read_digits
from kdm_core.decoders import (
    AutoencoderTask,
    ConvAutoencoder,
    ConvAutoencoderConfig,
    decode_all,
    encode_all,
    normalise,
)
from kdm_core.errors import KDMError
from kdm_core.losses.perceptual import LPIPS
from kdm_core.training.loop import fit
from kdm_core.values import from_uint8
from tests.support.training import Killed, assert_same, config, killed_at

CPU = torch.device("cpu")
TINY = ConvAutoencoderConfig(kind="conv", channels=8, multipliers=[1, 2, 2])


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images to train on, and 297 others."""
    images = torch.from_numpy(read_digits().images)
    return images[:1500], images[1500:]


def task(perceptual: float = 0.0, kl: float = 1e-3, **changes: Any) -> AutoencoderTask:
    with seeded(0):
        model = ConvAutoencoder(TINY, [1, 8, 8])
    return AutoencoderTask(model, config(**changes), *digits(), seed=0, kl=kl,
                           perceptual=perceptual)


@pytest.mark.parametrize("fields", [{}, {"accumulate": 2, "perceptual": 0.1}])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, fields: dict[str, Any]) -> None:
    whole = task(**fields)
    records = fit(whole, tmp_path / "a.safetensors", "run")
    with pytest.raises(Killed):
        fit(task(**fields), tmp_path / "b.safetensors", "run", on_step=killed_at(13))
    resumed = task(**fields)
    assert fit(resumed, tmp_path / "b.safetensors", "run") == records
    assert_same(whole, resumed)
    assert {"loss", "mse", "kl", "validation_mse", "validation_kl"} <= records[-1].keys()
    assert ("lpips" in records[-1]) == ("perceptual" in fields)


def test_micro_batches_change_rounding_alone() -> None:
    one, two = task(), task(accumulate=4)
    for step in range(3):
        found, other = one.seeded_step(step), two.seeded_step(step)
        for name in ("loss", "mse", "kl", "gradient_norm"):
            torch.testing.assert_close(found[name], other[name], rtol=1e-4, atol=1e-6)


def test_it_learns_digits(tmp_path: Path) -> None:
    """16 numbers a digit leave less than a quarter of the error that the mean of all leaves."""
    trained = task(steps=250, batch=64, lr=4e-3, ema=0.98, checkpoint_every=1000, log_every=100)
    records = fit(trained, tmp_path / "c.safetensors", "run")
    model = trained.ema.shadow
    train, held_out = digits()
    normalise(model, train.numpy(), CPU)
    latents = torch.from_numpy(encode_all(model, held_out.numpy(), CPU))
    assert latents.shape == (297, 4, 2, 2)
    error = (decode_all(model, latents, CPU) - from_uint8(held_out)).square().mean()
    mean = (from_uint8(held_out) - from_uint8(train).mean(dim=0)).square().mean()
    assert error < mean / 4
    assert records[-1]["validation_mse"] == pytest.approx(float(error), rel=0.01)
    # Of the held-out digits, too, channels are as normalised, and near to normal.
    assert latents.float().mean(dim=(0, 2, 3)).abs().max() < 0.1
    assert (latents.float().std(dim=(0, 2, 3)) - 0.5).abs().max() < 0.05
    kurtosis = (2 * latents.float()).pow(4).mean(dim=(0, 2, 3))
    assert kurtosis.max() < 5  # 3 of a normal distribution


def test_the_loss_is_the_sum_of_its_terms() -> None:
    found = task(kl=0.5, perceptual=0.25).seeded_step(0)
    torch.testing.assert_close(
        found["loss"], found["mse"] + 0.5 * found["kl"] + 0.25 * found["lpips"])
    same = task()
    images = from_uint8(digits()[0][same.order(0)])
    noise = torch.randn(8, 4, 2, 2, generator=step_generator(CPU, 0, 0))
    with torch.no_grad():
        decoded, mean, log_variance = same.model(images, noise)
        posterior = Normal(mean, (log_variance / 2).exp())
        for name, wanted in {
                "mse": (decoded - images).square().mean(),
                "kl": kl_divergence(posterior, Normal(0.0, 1.0)).mean(),
                "lpips": LPIPS(32, "alex")(decoded, images).mean()}.items():
            assert wanted > 0.01
            torch.testing.assert_close(found[name], wanted, msg=name)


def test_latents_are_drawn_as_the_posterior_says() -> None:
    model = task().model
    with torch.no_grad():
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        image, noise = from_uint8(digits()[0][:1]), torch.randn(1, 4, 2, 2)
        decoded, mean, log_variance = model(image, noise)
        assert log_variance.std() > 0.01
        drawn = mean + log_variance.mul(0.5).exp() * noise
        torch.testing.assert_close(decoded, model.raw_decode(drawn))
        torch.testing.assert_close(mean, model.raw_encode(image))


def test_images_that_are_refused() -> None:
    train, held_out = digits()
    model = ConvAutoencoder(TINY, [1, 8, 8])
    for images, others, saying in (
            (train[..., :4], held_out, r"shape \[1, 8, 8\], found .* of shape \[1, 8, 4\]"),
            (train, from_uint8(held_out), "found torch.float32")):
        with pytest.raises(KDMError, match=saying):
            AutoencoderTask(model, config(), images, others, seed=0)
    with pytest.raises(KDMError, match="^batch: 8 samples cannot be shared equally"):
        task(accumulate=3)


def test_without_held_out_images_there_are_no_such_curves() -> None:
    train, held_out = digits()
    found = AutoencoderTask(ConvAutoencoder(TINY, [1, 8, 8]), config(), train, held_out[:0], seed=0)
    assert found.validate() == {}
