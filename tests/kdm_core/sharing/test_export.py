"""Exported students give the student's own samples, for batches of any size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from kdm_core.errors import KDMError, MismatchError
from kdm_core.networks import (
    DhariwalUNetConfig,
    EDM2UNetConfig,
    MLPConfig,
    NetworkConfig,
    SongUNetConfig,
    TransformerConfig,
    UNetConfig,
)
from kdm_core.operators import ContinuousConfig, DenseConfig, FactorisedConfig, OperatorConfig
from kdm_core.samples import SampleSpec
from kdm_core.sharing import export
from kdm_core.sharing.export import TOLERANCE, Sampler, export_student
from tests.support.students import IMAGES, POINTS, make_student

SMALL: dict[str, Any] = {"multipliers": [1], "blocks": 1, "attention": [8]}
TALL: dict[str, Any] = {"multipliers": [1, 2], "blocks": 1, "attention": [4]}
PLAIN = SampleSpec(kind="image", shape=[1, 8, 8])
MLP = MLPConfig(kind="mlp", width=16, blocks=2)
DENSE, FACTORISED = DenseConfig(kind="dense"), FactorisedConfig(kind="factorised")
STUDENTS: dict[str, tuple[NetworkConfig, OperatorConfig, SampleSpec, dict[str, Any]]] = {
    "mlp dense": (MLP, DENSE, IMAGES, {}),
    "mlp factorised points": (MLP, FACTORISED, POINTS, {"encoders": "shared"}),
    "mlp continuous": (MLP, ContinuousConfig(kind="continuous"), PLAIN, {"timed": True}),
    "unet": (UNetConfig(kind="unet", channels=8, **SMALL), FACTORISED, IMAGES,
             {"encoders": "noise"}),
    "song_unet": (SongUNetConfig(kind="song_unet", channels=8, **SMALL), DENSE, PLAIN,
                  {"projected_channels": 1, "timed": True, "encoders": "noise"}),
    "transformer": (TransformerConfig(kind="transformer", width=16, blocks=1, heads=2),
                    FACTORISED, IMAGES, {"encoders": "noise"}),
    "tall unet": (UNetConfig(kind="unet", channels=8, **TALL), DENSE, IMAGES, {}),
    "tall song_unet": (SongUNetConfig(kind="song_unet", channels=8, **TALL), FACTORISED, IMAGES,
                       {"encoders": "shared"}),
    "dhariwal_unet": (DhariwalUNetConfig(kind="dhariwal_unet", channels=32, **TALL), DENSE,
                      IMAGES, {}),
    "edm2_unet": (EDM2UNetConfig(kind="edm2_unet", channels=8, **TALL), DENSE, IMAGES, {}),
}


def expected(student: torch.nn.Module, noise: torch.Tensor, labels: torch.Tensor | None) -> Any:
    with torch.no_grad():
        made = student(noise, labels)
    return made.clamp(-1, 1) if student.spec.kind == "image" else made


def given(spec: SampleSpec, n: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(n, *spec.shape, generator=generator)
    classes = spec.num_classes
    return noise, torch.randint(classes, (n,), generator=generator) if classes else None


# To convert a U-Net takes most of a minute, and as a graph each level is like the others.
SLOW = ("tall unet", "tall song_unet", "dhariwal_unet", "edm2_unet")


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in STUDENTS])
def test_onnx_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    network, operator, spec, options = STUDENTS[name]
    student = make_student(network, operator, spec, **options)
    file = tmp_path / "new" / "student.onnx"
    made = export_student(student, file, "onnx", "f" * 64)
    assert made.deviation <= TOLERANCE and list(file.parent.iterdir()) == [file]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for n in (1, 4, 11):
        noise, labels = given(spec, n)
        feed = {"noise": noise.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        (samples,) = session.run(["samples"], feed)
        assert samples.dtype == np.float32
        wanted = expected(student, noise, labels)
        assert wanted.std() > 1e-3
        np.testing.assert_allclose(samples, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["mlp dense", "mlp factorised points", "unet"])
def test_torch_export_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    network, operator, spec, options = STUDENTS[name]
    student = make_student(network, operator, spec, **options)
    file = tmp_path / "student.pt2"
    export_student(student, file, "torch-export", "f" * 64)
    extra = {"metadata.json": ""}
    module = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra["metadata.json"])["fingerprint"] == "f" * 64
    for n in (1, 4, 11):
        noise, labels = given(spec, n)
        samples = module(noise) if labels is None else module(noise, labels)
        torch.testing.assert_close(samples, expected(student, noise, labels), rtol=0,
                                   atol=TOLERANCE)


def test_an_onnx_file_says_what_it_is_and_keeps_to_it(tmp_path: Path) -> None:
    student = make_student(spec=IMAGES.model_copy(update={"sigma_data": 5.0}))
    export_student(student, tmp_path / "s.onnx", "onnx", "f" * 64)
    model = onnx.load(tmp_path / "s.onnx")
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["fingerprint"] == "f" * 64 and metadata["value_range"] == "[-1, 1]"
    assert json.loads(metadata["label_names"]) == ["a", "b", "c"]
    shapes = {entry.name: [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
              for entry in [*model.graph.input, *model.graph.output]}
    batch = shapes["labels"][0]
    assert isinstance(batch, str)
    assert shapes == {"noise": [batch, 1, 8, 8], "labels": [batch], "samples": [batch, 1, 8, 8]}
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"))
    noise, labels = given(IMAGES, 20)
    assert labels is not None
    (samples,) = session.run(None, {"noise": noise.numpy(), "labels": labels.numpy()})
    assert samples.min() == -1 and samples.max() == 1


def test_a_file_that_deviates_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = export.open_onnx
    monkeypatch.setattr(export, "open_onnx", lambda file: (
        lambda *values: right(file)(*values) + 2 * TOLERANCE))
    with pytest.raises(MismatchError, match=r"differ from its own by 0\.0002"):
        export_student(make_student(spec=POINTS), tmp_path / "s.onnx", "onnx", "f" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("spoil", "deviation"), [
    (lambda x: x, 0), (lambda x: x + 0.25, 0.25), (lambda x: x * torch.nan, torch.nan),
    (lambda x: torch.cat([x[:-1], x[-1:] / 0]), torch.inf), (lambda x: x[:, :1], torch.inf),
    (lambda x: x.double(), torch.inf),
])
def test_what_counts_as_a_deviation(spoil: Any, deviation: float) -> None:
    sampler = Sampler(make_student(spec=POINTS))
    found = export.largest_deviation(sampler, lambda noise: spoil(sampler(noise)))
    assert found == pytest.approx(deviation, nan_ok=True)


def test_a_student_too_large_for_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "ONNX_LIMIT", 1000)
    with pytest.raises(KDMError, match="use torch-export"):
        export_student(make_student(), tmp_path / "s.onnx", "onnx", "f" * 64)


def test_the_student_is_left_as_it_is(tmp_path: Path) -> None:
    student = make_student().train().requires_grad_(True)
    export_student(student, tmp_path / "s.pt2", "torch-export", "f" * 64)
    assert student.training and all(p.requires_grad for p in student.parameters())
