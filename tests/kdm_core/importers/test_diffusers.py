"""Folders of diffusers with a tiny U-Net, and what is refused of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.importers.diffusers import import_diffusers
from kdm_core.samples import SampleSpec
from kdm_core.serialization import file_sha256
from kdm_core.teachers import load_teacher, save_teacher
from tests.support.diffusers_writer import diffusers, edit, source, unet, write

DDIMScheduler, DDPMScheduler = diffusers.DDIMScheduler, diffusers.DDPMScheduler
IMAGES = SampleSpec(kind="image", shape=[3, 16, 16], sigma_data=0.4)


def latents(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


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
    ("model_index.json", {"vqvae": ["diffusers", "VQModel"]},
     "has a vqvae: text-conditional.*latents of a codebook"),
])
def test_configurations_that_are_refused(
    tmp_path: Path, file: str, values: dict[str, Any], saying: str
) -> None:
    edit(write(tmp_path, DDPMScheduler()) / file, **values)
    with pytest.raises(DataError, match=saying):
        import_diffusers(source(tmp_path), IMAGES)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither unet/config\.json, transformer/config\.json nor"):
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
    (folder / "text_encoder").mkdir()
    with pytest.raises(DataError, match=r"^folder: .* has a text_encoder: text-conditional"):
        import_diffusers(source(folder), IMAGES)
