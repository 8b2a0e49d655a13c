"""Checkpoints of torchcfm against its own U-Net under torchdiffeq."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchcfm.models.unet.unet import UNetModelWrapper
from torchdiffeq import odeint

from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.importers.torchcfm import TorchCFMSource, import_torchcfm
from kdm_core.samples import SampleSpec
from kdm_core.solvers import AdaptiveSolver, FixedSolver
from kdm_core.teachers import load_teacher, save_teacher
from tests.support.torchcfm_writer import SIZES, checkpoint

IMAGES = SampleSpec(kind="image", shape=[3, 16, 16])
CLASSES = SampleSpec(kind="image", shape=[3, 16, 16], label_names=["cat", "dog"])
def unet(num_classes: int = 0, **fields: Any) -> nn.Module:
    """The library's own, with random weights also where layers begin as zero."""
    generator = torch.Generator().manual_seed(0)
    arguments = SIZES | {"attention_resolutions": "8", "dropout": 0.1} | fields
    model = UNetModelWrapper(dim=(3, 16, 16), class_cond=num_classes > 0,
                             num_classes=num_classes or None, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                scale = 1 / parameter[0].numel() ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def source(file: Path, **fields: Any) -> TorchCFMSource:
    return TorchCFMSource(**{"source": "torchcfm", "file": str(file), **SIZES, **fields})


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def test_euler_and_dopri5_end_where_torchdiffeq_ends(tmp_path: Path) -> None:
    model = unet()
    teacher = import_torchcfm(source(checkpoint(model, tmp_path / "w.pt")), IMAGES)
    start = noise(2)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(teacher.velocity(x, torch.tensor(0.3), None), model(torch.tensor(0.3), x))
    found = teacher.sample(start, None, FixedSolver(kind="euler", steps=20), "fp32")
    expected = odeint(model, start, torch.linspace(0, 1, 21), method="euler")[-1]
    assert found.nfe == 20 and (expected - start).abs().max() > 0.5
    torch.testing.assert_close(found.state, expected, rtol=1e-4, atol=1e-4)

    def velocity(time: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Rounding would otherwise make the two choose different steps."""
        field: torch.Tensor = model(time.float(), x.float())
        return field.double()

    found = teacher.sample(start, None, AdaptiveSolver(kind="dopri5", tolerance=1e-6), "fp32")
    expected = odeint(velocity, start.double(), torch.linspace(0, 1, 2, dtype=torch.float64),
                      rtol=1e-6, atol=1e-6, method="dopri5")[-1]
    torch.testing.assert_close(found.state.double(), expected, rtol=1e-4, atol=1e-4)


def test_autocast(tmp_path: Path) -> None:
    teacher = import_torchcfm(source(checkpoint(unet(), tmp_path / "w.pt")), IMAGES)
    solver = FixedSolver(kind="euler", steps=4)
    full, half = (teacher.sample(noise(2), None, solver, precision).state
                  for precision in ("fp32", "bf16"))
    assert 0 < (full - half).abs().max() < 0.1 < full.std()


def test_classes_are_read_from_the_file(tmp_path: Path) -> None:
    model = unet(num_classes=2)
    file = checkpoint(model, tmp_path / "w.pt")
    teacher = import_torchcfm(source(file), CLASSES)
    assert teacher.spec.label_names == ["cat", "dog"]
    x, labels = noise(3), torch.tensor([0, 1, 1])
    assert torch.equal(teacher.velocity(x, torch.tensor(0.7), labels),
                       model(torch.tensor(0.7), x, labels))
    assert import_torchcfm(source(file), IMAGES).spec.label_names == ["0", "1"]
    for none in (None, torch.tensor([0, -1, 1])):
        assert teacher.label_dropout == 0
        with pytest.raises(KDMError, match="trained with labels only"):
            teacher.velocity(x, torch.tensor(0.7), none)


def test_parallel_training_other_blocks_and_a_saved_teacher(tmp_path: Path) -> None:
    model = unet(use_scale_shift_norm=True, resblock_updown=True)
    file = checkpoint(nn.DataParallel(model), tmp_path / "w.pt")
    teacher = import_torchcfm(source(file, use_scale_shift_norm=True, resblock_updown=True), IMAGES)
    x, time = noise(1), torch.tensor(0.5)
    assert torch.equal(teacher.velocity(x, time, None), model(time, x))
    save_teacher(tmp_path / "teacher", teacher)
    loaded, _ = load_teacher(tmp_path / "teacher")
    assert torch.equal(loaded.velocity(x, time, None), model(time, x))


def test_the_examples_sizes_are_the_defaults() -> None:
    found = TorchCFMSource(source="torchcfm", file="w.pt")
    example = {"num_channels": 128, "num_res_blocks": 2, "channel_mult": [1, 2, 2, 2],
               "num_heads": 4, "num_head_channels": 64, "attention_resolutions": [16],
               "dropout": 0.1}
    assert found.model_dump(include=set(example)) == example and found.key == "ema_model"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    file = checkpoint(unet(), tmp_path / "w.pt")
    with pytest.raises(MismatchError, match=r"w\.pt.*missing.*(input|middle|output)_blocks"):
        import_torchcfm(source(file, num_res_blocks=2), IMAGES)
    with pytest.raises(DataError, match=r"key.*no 'ema'; there are net_model, ema_model"):
        import_torchcfm(source(file, key="ema"), IMAGES)
    with pytest.raises(DataError, match=r"file.*no U-Net of torchcfm.*input_blocks"):
        import_torchcfm(source(file, key="net_model"), IMAGES)
    with pytest.raises(KDMError, match="divisible by 2"):
        import_torchcfm(source(file), SampleSpec(kind="image", shape=[3, 15, 15]))
    with pytest.raises(KDMError, match="builds no U-Net"):
        import_torchcfm(source(file, attention_resolutions=[0]), IMAGES)
