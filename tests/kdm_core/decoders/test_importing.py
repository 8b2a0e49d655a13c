"""Autoencoders of diffusers against that package itself, and every input that is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdm_core.decoders import (
    STABILITY_VAE,
    ChannelStatistics,
    ConvAutoencoder,
    ConvAutoencoderConfig,
    DiffusersAutoencoderSource,
    FolderAutoencoderSource,
    TrainedAutoencoder,
    decode_all,
    encode_all,
    import_autoencoder,
    latent_shape,
    load_autoencoder,
    save_autoencoder,
)
from kdm_core.errors import DataError, DivergedError, KDMError, MismatchError
from kdm_core.serialization import file_sha256
from kdm_core.training.config import TrainingConfig
from kdm_core.values import from_uint8, to_uint8
from tests.support.diffusers_writer import diffusers, vae, write_vae

CPU = torch.device("cpu")
PICTURE, SHAPE = [3, 16, 24], [4, 8, 12]
CONFIG, WEIGHTS = "vae/config.json", "vae/diffusion_pytorch_model.safetensors"


def source(folder: Path, **fields: Any) -> DiffusersAutoencoderSource:
    return DiffusersAutoencoderSource(source="diffusers", folder=str(folder), **fields)


def edit(folder: Path, *removed: str, **values: Any) -> Path:
    path = folder / CONFIG
    described = {key: value for key, value in json.loads(path.read_text()).items()
                 if key not in removed}
    path.write_text(json.dumps(described | values))
    return folder


def bytes_of(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *PICTURE), np.uint8)


def images(count: int = 2) -> Tensor:
    return from_uint8(torch.from_numpy(bytes_of(count)))


def latents() -> Tensor:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))


# What pipelines do


@pytest.mark.parametrize("fields", [
    {}, {"scaling_factor": 1.5305, "shift_factor": 0.0609},
    {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False}],
    ids=["Stable Diffusion", "shifted", "without"])
def test_latents_and_images_are_those_of_pipelines(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The lines around the autoencoder in diffusers' StableDiffusion3Img2ImgPipeline."""
    theirs = vae(**fields)
    model = import_autoencoder(source(write_vae(tmp_path, theirs)), PICTURE, SHAPE)
    factor, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
    encoded = (theirs.encode(images()).latent_dist.mode() - shift) * factor
    assert torch.equal(model.encode(images()), encoded)
    decoded = theirs.decode(latents() / factor + shift).sample
    assert torch.equal(model.decode(latents()), decoded.clamp(-1, 1))
    assert encoded.std() > 0.01 and 0.1 < decoded.std() < 10 and not model.training


def test_statistics_of_a_configuration_are_those_of_sdxl(tmp_path: Path) -> None:
    """The lines around the autoencoder in diffusers' StableDiffusionXLImg2ImgPipeline."""
    theirs = vae(latents_mean=[0.3, -1.0, 0.0, 2.0], latents_std=[1.5, 0.7, 3.0, 1.0])
    model = import_autoencoder(source(write_vae(tmp_path, theirs)), PICTURE)
    mean, std = (torch.tensor(theirs.config[f"latents_{name}"]).view(1, 4, 1, 1)
                 for name in ("mean", "std"))
    factor = theirs.config.scaling_factor
    encoded = (theirs.encode(images()).latent_dist.mode() - mean) * factor / std
    torch.testing.assert_close(model.encode(images()), encoded, rtol=1e-6, atol=1e-6)
    decoded = theirs.decode(latents() * std / factor + mean).sample.clamp(-1, 1)
    torch.testing.assert_close(model.decode(latents()), decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_tiny_ones_are_those_of_pipelines(tmp_path: Path, factor: float) -> None:
    """No pipeline uses their `scale_latents`."""
    theirs = vae("AutoencoderTiny", scaling_factor=factor)
    model = import_autoencoder(source(write_vae(tmp_path, theirs)), PICTURE, SHAPE)
    assert torch.equal(model.encode(images()), theirs.encode(images()).latents * factor)
    assert torch.equal(model.decode(latents()),
                       theirs.decode(latents() / factor).sample.clamp(-1, 1))


def test_statistics_are_those_of_edm2(tmp_path: Path) -> None:
    """The formulas of `StabilityVAEEncoder` in NVlabs/edm2 (training/encoders.py, commit 52b98e1):
    images in [0, 1], and latents · (0.5 / std) + (0 − mean · 0.5 / std) in float32."""
    theirs = vae()
    folder = edit(write_vae(tmp_path, theirs), "scaling_factor")  # as in sd-vae-ft-mse's
    model = import_autoencoder(
        source(folder, statistics=STABILITY_VAE, image_range="unit"), PICTURE)
    factor = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    bias = np.float32(0) - np.float32([5.81, 3.25, 0.12, -2.15]) * factor
    factor, bias = (torch.from_numpy(each).reshape(1, -1, 1, 1) for each in (factor, bias))
    given = bytes_of()
    raw = theirs.encode(torch.from_numpy(given).to(torch.float32) / 255).latent_dist.mean
    torch.testing.assert_close(
        torch.from_numpy(encode_all(model, given, CPU)).float(), raw * factor + bias,
        rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.encode(from_uint8(torch.from_numpy(given))),
                               raw * factor + bias, rtol=1e-5, atol=1e-5)
    decoded = theirs.decode((latents() - bias) / factor).sample.clamp(0, 1) * 255
    ours = to_uint8(decode_all(model, latents(), CPU)).float()
    # They cut what is behind the point, here it is rounded.
    assert (ours - decoded).abs().max() <= 0.501 and decoded.std() > 5


def test_it_is_saved_as_ours(tmp_path: Path) -> None:
    statistics = ChannelStatistics(mean=[0.1, 0.2, 0.3, 0.4], std=[1.0, 2.0, 3.0, 4.0])
    for name in ("AutoencoderKL", "AutoencoderTiny"):
        folder = write_vae(tmp_path / name, vae(name))
        model = import_autoencoder(
            source(folder, statistics=statistics, image_range="unit"), PICTURE)
        mark = save_autoencoder(tmp_path / "saved", model)
        again, found = load_autoencoder(tmp_path / "saved")
        assert found == mark == save_autoencoder(tmp_path / "again", again)
        assert torch.equal(again.encode(images()), model.encode(images()))
        assert torch.equal(again.decode(latents()), model.decode(latents()))
        ours = FolderAutoencoderSource(source="folder", folder=str(tmp_path / "saved"))
        assert torch.equal(import_autoencoder(ours, PICTURE, SHAPE).encode(images()),
                           model.encode(images()))


def test_the_autoencoder_alone_and_half_precision_and_the_sum(tmp_path: Path) -> None:
    write_vae(tmp_path, vae().half())
    mark = file_sha256(tmp_path / WEIGHTS)
    model = import_autoencoder(source(tmp_path / "vae", sha256=mark), PICTURE)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    with pytest.raises(MismatchError, match=r"^sha256: .*diffusion_pytorch_model"):
        import_autoencoder(source(tmp_path, sha256="0" * 64), PICTURE)


def test_weights_that_overflow(tmp_path: Path) -> None:
    theirs = vae()
    theirs.decoder.conv_out.weight *= 1e38
    model = import_autoencoder(source(write_vae(tmp_path, theirs)), PICTURE)
    with pytest.raises(DivergedError, match="images that are not finite"):
        decode_all(model, 100 * latents(), CPU)


# Shapes from configurations alone


def test_shapes_are_known_without_weights(tmp_path: Path) -> None:
    for name in ("AutoencoderKL", "AutoencoderTiny"):
        write_vae(tmp_path / name, vae(name))
        (tmp_path / name / WEIGHTS).unlink()
        assert latent_shape(source(tmp_path / name), [3, 64, 32]) == [4, 32, 16]
    save_autoencoder(tmp_path / "ours", ConvAutoencoder(ConvAutoencoderConfig(kind="conv"),
                                                        [1, 28, 28]))
    (tmp_path / "ours" / "weights.safetensors").unlink()
    ours = FolderAutoencoderSource(source="folder", folder=str(tmp_path / "ours"))
    assert latent_shape(ours, [1, 28, 28]) == [4, 7, 7]
    trained = TrainedAutoencoder(
        source="train", model=ConvAutoencoderConfig(kind="conv", multipliers=[1] * 4),
        training=TrainingConfig(steps=1, batch=1))
    assert latent_shape(trained, [3, 64, 32]) == [4, 8, 4]
    with pytest.raises(KDMError, match=r"^model\.multipliers: 4 levels .* divisible by 8"):
        latent_shape(trained, [1, 28, 28])


def test_latents_of_another_shape_than_expected(tmp_path: Path) -> None:
    write_vae(tmp_path, vae(latent_channels=16))
    with pytest.raises(MismatchError, match=r"shape \[16, 8, 12\] of images.*not \[4, 8, 12\]"):
        import_autoencoder(source(tmp_path), PICTURE, SHAPE)


# What is refused


@pytest.mark.parametrize("picture, saying", [
    ([1, 16, 16], r"takes images of 3 channels .* of shape \[1, 16, 16\]"),
    ([3, 16, 15], r"divisible by 2, found \[16, 15\]"), ([3], "takes images of 3 channels")])
def test_pictures_that_are_refused(tmp_path: Path, picture: list[int], saying: str) -> None:
    folder = write_vae(tmp_path)
    for ask in (latent_shape, import_autoencoder):
        with pytest.raises(MismatchError, match=saying):
            ask(source(folder), picture)


@pytest.mark.parametrize("values, saying", [
    ({"_class_name": "VQModel"}, "describes VQModel.*quantises its latents"),
    ({"_class_name": "AsymmetricAutoencoderKL"}, "supported: AutoencoderKL, AutoencoderTiny"),
    ({"_class_name": None}, "describes None; supported"),
    ({"invented": 3}, "knows no invented"),
    ({"block_out_channels": "wide"}, r"config\.json: arguments: .*block_out_channels"),
    ({"block_out_channels": []}, "block_out_channels"),
    ({"latent_channels": 0}, "latent_channels"),
    ({"scaling_factor": 0}, "scaling_factor Input should be greater than 0"),
    ({"scaling_factor": "0,18"}, "scaling_factor Input should be a valid number"),
    ({"latents_mean": [0.0] * 4}, "latents_mean and latents_std belong together"),
    ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "latents have 4 channels"),
    ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "both"),
    ({"latent_channels": 5}, "diffusers cannot load.*size mismatch"),
    ({"norm_num_groups": 3}, "diffusers cannot load"),
    ({"use_quant_conv": False}, r"unexpected keys \(quant_conv"),
])
def test_configurations_that_are_refused(
    tmp_path: Path, values: dict[str, Any], saying: str
) -> None:
    with pytest.raises(DataError, match=saying):
        import_autoencoder(source(edit(write_vae(tmp_path), **values)), PICTURE)


def test_a_missing_scaling_factor_is_asked_for(tmp_path: Path) -> None:
    for name, default in (("AutoencoderKL", "0.18215"), ("AutoencoderTiny", "1.0")):
        folder = edit(write_vae(tmp_path / name, vae(name)), "scaling_factor")
        for ask in (latent_shape, import_autoencoder):
            with pytest.raises(DataError, match=rf'^statistics: .*"scaling_factor": {default} '):
                ask(source(folder), PICTURE)
        assert latent_shape(source(folder, statistics=STABILITY_VAE), PICTURE) == SHAPE


def test_statistics_of_other_latents(tmp_path: Path) -> None:
    statistics = ChannelStatistics(mean=[0.0] * 16, std=[1.0] * 16)
    with pytest.raises(KDMError, match="^statistics: 16 channels, but the latents have 4"):
        import_autoencoder(source(write_vae(tmp_path), statistics=statistics), PICTURE)


def test_upsampling_that_is_not_the_mirror_image(tmp_path: Path) -> None:
    folder = write_vae(tmp_path, vae("AutoencoderTiny", upsampling_scaling_factor=4))
    with pytest.raises(DataError, match=r"images of shape \[3, 32, 48\] of latents of shape"):
        import_autoencoder(source(folder), PICTURE)
    deeper = vae(down_block_types=("DownEncoderBlock2D",))
    with pytest.raises(DataError, match="do not pass through|makes latents of shape"):
        import_autoencoder(source(write_vae(tmp_path / "b", deeper)), PICTURE)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither vae/config\.json nor config\.json"):
        import_autoencoder(source(tmp_path), PICTURE)
    folder = write_vae(tmp_path)
    weights = folder / WEIGHTS
    whole = weights.read_bytes()
    for damaged in (whole[:500], whole[:-8], b""):
        weights.write_bytes(damaged)
        with pytest.raises(DataError, match="diffusers cannot load"):
            import_autoencoder(source(folder), PICTURE)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DataError, match=r"\.bin is a pickle"):
        import_autoencoder(source(folder), PICTURE)
    weights.with_suffix(".bin").unlink()
    with pytest.raises(DataError, match="incomplete, fetch it again"):
        import_autoencoder(source(folder), PICTURE)
    (folder / CONFIG).write_text("{")
    with pytest.raises(DataError, match=r"config\.json is not readable JSON"):
        latent_shape(source(folder), PICTURE)
    (folder / "model_index.json").write_text("[[]]")
    with pytest.raises(DataError, match=r"model_index\.json is not readable JSON"):
        latent_shape(source(folder), PICTURE)


def test_weights_with_nan(tmp_path: Path) -> None:
    theirs = vae()
    theirs.decoder.conv_out.bias[0] = torch.nan
    with pytest.raises(DataError, match=r"decoder\.conv_out\.bias has values that are not finite"):
        import_autoencoder(source(write_vae(tmp_path, theirs)), PICTURE)


@pytest.mark.parametrize("parts, saying", [
    ({"unet": [], "scheduler": []}, "a pipeline without a vae, which makes its images without"),
    ({"unet": [], "text_encoder": []}, "a pipeline without a vae"),
    ({"unet": [], "vqvae": []}, "has a vqvae: it quantises"),
    ({"unet": [], "movq": [], "text_encoder": []}, "has a movq: it quantises"),
])
def test_pipelines_without_such_an_autoencoder(
    tmp_path: Path, parts: dict[str, Any], saying: str
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(parts))
    for ask in (latent_shape, import_autoencoder):
        with pytest.raises(DataError, match=f"^folder: .*{saying}"):
            ask(source(tmp_path), PICTURE)


def test_a_real_model_that_quantises(tmp_path: Path) -> None:
    torch.manual_seed(0)
    diffusers.VQModel(block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="describes VQModel.*A VQModel: it quantises its latents"):
        import_autoencoder(source(tmp_path), PICTURE)


def test_saved_ones_that_are_refused(tmp_path: Path) -> None:
    def ask(folder: Path, picture: list[int]) -> None:
        import_autoencoder(FolderAutoencoderSource(source="folder", folder=str(folder)), picture)

    save_autoencoder(tmp_path / "ours", ConvAutoencoder(
        ConvAutoencoderConfig(kind="conv", channels=8, multipliers=[1]), [1, 4, 4]))
    with pytest.raises(MismatchError, match=r"^folder: .* \[1, 4, 4\], the data .* \[1, 8, 8\]"):
        ask(tmp_path / "ours", [1, 8, 8])
    with pytest.raises(DataError, match=r"config\.json is missing"):
        ask(tmp_path / "nothing", [1, 4, 4])
    write_vae(tmp_path / "theirs")
    with pytest.raises(DataError, match=r"^folder: .*config\.json describes no autoencoder"):
        ask(tmp_path / "theirs" / "vae", PICTURE)
    weights = tmp_path / "ours" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(DataError, match="is damaged"):
        ask(tmp_path / "ours", [1, 4, 4])
