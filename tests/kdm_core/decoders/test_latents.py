"""What all autoencoders share: shift and scale and their inversion, statistics, whole sets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kdm_core.decoders import (
    Autoencoder,
    ChannelStatistics,
    ConvAutoencoder,
    ConvAutoencoderConfig,
    decode_all,
    encode_all,
    load_autoencoder,
    measure_statistics,
    normalise,
    save_autoencoder,
    set_statistics,
)
from kdm_core.errors import DataError, DivergedError, KDMError, MismatchError
from kdm_core.samples import SampleSpec
from kdm_core.values import from_uint8

CPU = torch.device("cpu")
PICTURE = [1, 8, 12]
SMALL = ConvAutoencoderConfig(kind="conv", channels=8, multipliers=[1, 2], latent_channels=3)


class Halved(Autoencoder):
    """Squares of 2×2 pixels as four channels, times a power of ten: what it loses is rounding."""

    def __init__(self, factor: float = 1.0, can_encode: bool = True) -> None:
        super().__init__([1, 4, 4], [4, 2, 2], can_encode)
        self.factor = factor

    def raw_encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(images, 2) * self.factor

    def raw_decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(latents, 2) / self.factor


def conv() -> ConvAutoencoder:
    torch.manual_seed(0)
    model = ConvAutoencoder(SMALL, PICTURE)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval().requires_grad_(False)


def images(count: int, picture: list[int] = PICTURE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *picture), np.uint8)


# Shift and scale

numbers = st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4)
factors = st.lists(st.floats(2**-6, 64, width=32), min_size=4, max_size=4)


@given(shift=numbers, scale=factors, seed=st.integers(0, 9))
def test_decoding_undoes_encoding(shift: list[float], scale: list[float], seed: int) -> None:
    model = Halved()
    model.rescale(torch.tensor(shift), torch.tensor(scale))
    given = from_uint8(torch.from_numpy(images(3, [1, 4, 4], seed)))
    latents = model.encode(given)
    wanted = (model.raw_encode(given).double().movedim(1, -1) - torch.tensor(shift).double()
              ) * torch.tensor(scale).double()
    torch.testing.assert_close(latents.double(), wanted.movedim(-1, 1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.decode(latents), given, rtol=0, atol=1e-5)


@given(means=numbers, stds=factors, sigma=st.floats(0.1, 2))
def test_statistics_bring_channels_to_mean_0_and_that_deviation(
    means: list[float], stds: list[float], sigma: float
) -> None:
    model = Halved()
    set_statistics(model, ChannelStatistics(mean=means, std=stds, sigma=sigma))
    # Channels with these statistics exactly: two values, at mean ± std.
    raw = torch.tensor([[mean - std, mean + std] for mean, std in zip(means, stds, strict=True)])
    latents = (raw - model.shift[:, None]) * model.scale[:, None]
    wanted = torch.tensor([-sigma, sigma]).expand(4, 2)
    torch.testing.assert_close(latents, wanted, rtol=1e-3, atol=1e-3)


def test_latents_of_the_images_that_it_was_normalised_with() -> None:
    model, data = conv(), images(50)
    found = normalise(model, data, CPU, batch=7, sigma=0.5)
    latents = encode_all(model, data, CPU).astype(np.float64)
    np.testing.assert_allclose(latents.mean(axis=(0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std(axis=(0, 2, 3)), 0.5, rtol=1e-3)
    raw = model.raw_encode(from_uint8(torch.from_numpy(data))).double()
    np.testing.assert_allclose(found.mean, raw.mean(dim=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found.std, raw.std(dim=(0, 2, 3), correction=0), rtol=1e-4)


def test_a_channel_that_says_nothing_is_refused() -> None:
    model = conv()
    model.encoder.leave.weight[1] = 0
    with pytest.raises(KDMError, match=r"one says nothing.*\(kl\)"):
        measure_statistics(model, images(5), CPU)


@pytest.mark.parametrize("shift, scale, saying", [
    ([0.0], [1.0], r"shift: \[0.0\], but latents have 4 channels"),
    ([0.0] * 4, [1.0, 1.0, 1.0, float("nan")], "scale: .*give a finite number"),
    ([0.0] * 4, [1.0, 0.0, 1.0, 1.0], "cannot be undone"),
])
def test_scales_that_are_refused(shift: list[float], scale: list[float], saying: str) -> None:
    with pytest.raises(KDMError, match=saying):
        Halved().rescale(torch.tensor(shift), torch.tensor(scale))


def test_statistics_that_are_refused() -> None:
    with pytest.raises(ValidationError, match="2 means and 1 standard"):
        ChannelStatistics(mean=[0.0, 1.0], std=[1.0])
    with pytest.raises(ValidationError, match="greater than 0"):
        ChannelStatistics(mean=[0.0], std=[0.0])
    with pytest.raises(KDMError, match="^statistics: 2 channels, but the latents have 4"):
        set_statistics(Halved(), ChannelStatistics(mean=[0.0, 1.0], std=[1.0, 2.0]))


# Shapes, and what is not finite


def test_shapes_that_are_refused() -> None:
    with pytest.raises(KDMError, match=r"images of shape \[1, 4, 4\], found \[1, 4, 6\]"):
        Halved().encode(torch.zeros(2, 1, 4, 6))
    with pytest.raises(KDMError, match=r"latents of shape \[4, 2, 2\], found \[4, 4\]"):
        Halved().decode(torch.zeros(2, 4, 4))
    with pytest.raises(KDMError, match="without its encoder"):
        Halved(can_encode=False).encode(torch.zeros(2, 1, 4, 4))
    with pytest.raises(KDMError, match=r"^multipliers: 2 levels .* divisible by 2, .*\[1, 8, 9\]"):
        ConvAutoencoder(SMALL, [1, 8, 9])


def test_whole_sets_are_what_batches_are() -> None:
    model, data = conv(), images(10)
    told: list[int] = []
    latents = encode_all(model, data, CPU, batch=4, on_images=told.append)
    assert (told, latents.dtype, latents.shape) == ([4, 4, 2], np.float16, (10, *model.shape))
    whole = model.encode(from_uint8(torch.from_numpy(data)))
    np.testing.assert_allclose(latents, whole, rtol=2e-3, atol=2e-3)
    decoded = decode_all(model, torch.from_numpy(latents), CPU, batch=3)
    assert decoded.dtype == torch.float32 and decoded.std() > 0.1
    torch.testing.assert_close(decoded, model.decode(torch.from_numpy(latents).float()),
                               rtol=1e-4, atol=1e-4)


def test_latents_of_a_memory_mapped_file(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images(6))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.array_equal(encode_all(conv(), mapped, CPU), encode_all(conv(), images(6), CPU))


def test_values_that_are_not_finite_are_named() -> None:
    with pytest.raises(DivergedError, match=r"latents that are not finite \(number 0"):
        encode_all(Halved(factor=1e6), images(3, [1, 4, 4]), CPU)  # too large for float16
    latents = torch.zeros(9, 4, 2, 2)
    latents[7, 2, 1, 0] = torch.inf  # clamped, it would look like a white pixel
    with pytest.raises(DivergedError, match=r"images that are not finite \(number 7"):
        decode_all(Halved(), latents, CPU, batch=4)


def test_what_latents_are() -> None:
    assert conv().samples("mark", 0.4, ["a", "b"]) == SampleSpec(
        kind="latent", shape=[3, 4, 6], sigma_data=0.4, label_names=["a", "b"], decoder="mark",
        picture=PICTURE)


# On disk


def test_a_saved_one_is_the_same_to_the_byte(tmp_path: Path) -> None:
    model = conv()
    normalise(model, images(8), CPU)
    mark = save_autoencoder(tmp_path / "a", model)
    again, found = load_autoencoder(tmp_path / "a")
    assert found == mark == save_autoencoder(tmp_path / "b", again) and not again.training
    for name in ("weights.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert np.array_equal(encode_all(again, images(4), CPU), encode_all(model, images(4), CPU))
    latents = torch.randn(4, *model.shape)
    assert torch.equal(again.decode(latents), model.decode(latents))
    model.rescale(model.shift, 2 * model.scale)
    assert save_autoencoder(tmp_path / "c", model) != mark  # it makes other latents


def test_folders_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json is missing"):
        load_autoencoder(tmp_path)
    save_autoencoder(tmp_path, conv())
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"channels": 8', '"channels": 16'))
    with pytest.raises(MismatchError, match="do not belong together"):
        load_autoencoder(tmp_path)
