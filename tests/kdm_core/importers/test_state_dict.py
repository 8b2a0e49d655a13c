"""State dicts of our own networks, from files of any training loop."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from kdm_core.errors import DataError, MismatchError
from kdm_core.importers import import_guide
from kdm_core.importers.state_dict import StateDictSource, import_state_dict
from kdm_core.networks import MLPConfig, UNetConfig
from kdm_core.samples import SampleSpec
from kdm_core.serialization import file_sha256
from kdm_core.teachers import DenoiserConfig, FlowMatchingConfig, build_teacher
from kdm_core.teachers.base import Teacher

POINTS = SampleSpec(kind="points", shape=[2], label_names=["a", "b"], sigma_data=2.0)
IMAGES = SampleSpec(kind="image", shape=[3, 8, 8])
MLP = {"kind": "mlp", "width": 16, "blocks": 1}
FLOW = FlowMatchingConfig(kind="flow_matching", network=MLPConfig(**MLP))  # type: ignore[arg-type]


def source(file: Path, **fields: Any) -> StateDictSource:
    return StateDictSource(**{"source": "state_dict", "file": str(file), "model": FLOW, **fields})


def trained(config: Any = FLOW, spec: SampleSpec = POINTS) -> Teacher:
    """A teacher with random weights, also where layers begin as zero."""
    generator = torch.Generator().manual_seed(1)
    teacher = build_teacher(config, spec).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return teacher


def weights(teacher: Teacher) -> dict[str, Tensor]:
    network = teacher.network
    assert isinstance(network, torch.nn.Module)
    return dict(network.state_dict())


def same(found: Teacher, teacher: Teacher) -> bool:
    x = torch.randn(5, *teacher.spec.shape, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, -1, 0, 1]) if teacher.spec.num_classes else None
    time = torch.tensor(0.4)
    return torch.equal(found.velocity(x, time, labels), teacher.velocity(x, time, labels))


def test_safetensors_and_torch_files_of_any_network(tmp_path: Path) -> None:
    unet = DenoiserConfig(kind="denoiser", network=UNetConfig(
        kind="unet", channels=8, multipliers=[1, 1], blocks=1, attention=[4]))
    for config, spec in ((FLOW, POINTS), (unet, IMAGES)):
        teacher = trained(config, spec)
        safe, pickled, legacy = (tmp_path / name for name in ("w.safetensors", "w.pt", "old.pth"))
        save_file({name: t.contiguous() for name, t in weights(teacher).items()}, safe)
        torch.save(weights(teacher), pickled)
        torch.save(weights(teacher), legacy, _use_new_zipfile_serialization=False)
        for file in (safe, pickled, legacy):
            found = import_state_dict(source(file, model=config, sha256=file_sha256(file)), spec)
            assert same(found, teacher) and found.spec == spec and not found.training
            assert not any(parameter.requires_grad for parameter in found.parameters())


def test_nested_prefixed_half_precision_and_a_whole_teacher(tmp_path: Path) -> None:
    teacher, file = trained(), tmp_path / "w.pt"
    half = {f"module.{name}": tensor.bfloat16() for name, tensor in weights(teacher).items()}
    torch.save({"step": 7, "state": OrderedDict(ema=half | {"n_averaged": torch.tensor(7)})}, file)
    described = source(file, key="state.ema", prefix="module.", sigma_data=3.0)
    found = import_state_dict(described, POINTS)
    for name, tensor in weights(found).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights(teacher)[name].bfloat16().float())
    assert found.spec.sigma_data == 3.0
    torch.save(teacher.state_dict(), file)  # every name begins with "network."
    assert same(import_state_dict(source(file), POINTS), teacher)


def test_a_guide_is_read_through_the_same_source(tmp_path: Path) -> None:
    torch.save(weights(trained()), tmp_path / "w.pt")
    weak = trained()
    torch.nn.init.ones_(weak.get_parameter("network.leave.bias"))
    torch.save(weights(weak), tmp_path / "weak.pt")
    described = source(tmp_path / "w.pt", guide={"file": str(tmp_path / "weak.pt")})
    guide = import_guide(described, POINTS)
    assert guide is not None and same(guide, weak)
    lost = source(tmp_path / "w.pt", guide={"file": str(tmp_path / "lost.pt")})
    with pytest.raises(DataError, match=r"^guide\.file: .*lost\.pt does not exist"):
        import_guide(lost, POINTS)


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run_but_named(tmp_path: Path, zipped: bool) -> None:
    file, canary = tmp_path / "w.pt", tmp_path / "canary"
    torch.save({"a": Payload(canary)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"w\.pt.*(posix|nt)\.system"):
        import_state_dict(source(file), POINTS)
    assert not canary.exists()
    torch.load(file, weights_only=False)
    assert canary.exists()  # so that it would have shown


def test_whole_modules_are_not_unpickled(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pt")
    saying = r"asks for torch\.nn\.modules\.linear\.Linear, .*state_dict\(\)"
    with pytest.raises(DataError, match=saying):
        import_state_dict(source(tmp_path / "w.pt"), POINTS)


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04 no zip", b"12345678{not json",
                                     b"\xff" * 8 + b"{}", bytes(100), b"hello"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"w\.pt.*damaged.*fetch it again"):
        import_state_dict(source(file), POINTS)


@pytest.mark.parametrize("fields, saying", [
    ({}, r"key.*'step' is no tensor but int.*there are step, ema, optimizer"),
    ({"key": "emma"}, r"key.*no 'emma'; there are step, ema"),
    ({"key": "ema.x"}, r"key.*no 'ema\.x'"),
    ({"key": "step"}, r"key.*there is a int"),
    ({"key": "optimizer"}, r"key.*there are no entries"),
    ({"key": "ema", "prefix": "model."}, r"prefix.*begins with 'model\.'"),
    ({"sha256": "0" * 64}, r"sha256"),
])
def test_the_parameter_at_fault_is_named(
    tmp_path: Path, fields: dict[str, Any], saying: str
) -> None:
    file = tmp_path / "w.pt"
    torch.save({"step": 1, "ema": weights(trained()), "optimizer": {}}, file)
    with pytest.raises((DataError, MismatchError), match=saying):
        import_state_dict(source(file, **fields), POINTS)


def test_missing_extra_misshapen_and_infinite_tensors_are_named(tmp_path: Path) -> None:
    file, tensors = tmp_path / "w.pt", weights(trained())
    first = next(iter(tensors))
    others = {"extra": torch.zeros(1), **{name: t for name, t in tensors.items() if name != first},
              "leave.bias": torch.zeros(7)}
    torch.save(others, file)
    with pytest.raises(MismatchError) as caught:
        import_state_dict(source(file), POINTS)
    for part in (first, "1 tensors are unknown (extra)", "leave.bias (7,) instead of (2,)"):
        assert part in str(caught.value)
    tensors["leave.bias"] = torch.tensor([0.0, float("inf")])
    torch.save(tensors, file)
    with pytest.raises(DataError, match=r"leave\.bias has values that are not finite"):
        import_state_dict(source(file), POINTS)


def test_bad_sources_are_refused_when_they_are_parsed() -> None:
    with pytest.raises(ValidationError, match="sha256"):
        source(Path("w.pt"), sha256="xyz")
    with pytest.raises(ValidationError, match="http://"):
        StateDictSource(source="state_dict", file="http://x.org/w.pt", model=FLOW)


@pytest.mark.parametrize("share", [None, 0.0, 0.1])
def test_the_share_of_dropped_labels_is_what_the_user_says(
    tmp_path: Path, share: float | None
) -> None:
    torch.save(weights(trained()), tmp_path / "w.pt")
    assert import_state_dict(source(tmp_path / "w.pt", label_dropout=share), POINTS
                             ).label_dropout == share


DOTTED = ["ema_0.999", "model.ema_0.9999", "ema.0.999"]


@pytest.mark.parametrize("key", DOTTED)
def test_a_key_may_have_dots(tmp_path: Path, key: str) -> None:
    """It is the path of nested dictionaries whatever their names are made of."""
    teacher = trained()
    for nested in (weights(teacher), {"params": weights(teacher)}):
        document: dict[str, Any] = {key: nested, "step": 1000}
        torch.save(document, tmp_path / "w.pt")
        asked = key if "params" not in nested else f"{key}.params"
        assert same(import_state_dict(source(tmp_path / "w.pt", key=asked), POINTS), teacher)
    torch.save({"a.b": {"ema_0.999": weights(teacher)}, "a": {"b": 3}}, tmp_path / "w.pt")
    assert same(import_state_dict(source(tmp_path / "w.pt", key="a.b.ema_0.999"), POINTS), teacher)


@pytest.mark.parametrize(("document", "key"), [
    (lambda own: {0.999: own, 0.9999: {}}, "0.999"),
    (lambda own: {"ema": {1000: own}}, "ema.1000"),
    (lambda own: {"averages": [{}, own]}, "averages.1"),
])
def test_a_key_may_be_a_number(tmp_path: Path, document: Any, key: str) -> None:
    teacher = trained()
    torch.save(document(weights(teacher)), tmp_path / "w.pt")
    assert same(import_state_dict(source(tmp_path / "w.pt", key=key), POINTS), teacher)


def test_a_prefix_without_its_dot_is_no_beginning_of_another_name(tmp_path: Path) -> None:
    teacher = trained()
    document = {f"{name}.{part}": tensor * factor for part, tensor in weights(teacher).items()
                for name, factor in (("model", 1), ("model_ema", 2))}
    torch.save(document, tmp_path / "w.pt")
    assert same(import_state_dict(source(tmp_path / "w.pt", prefix="model"), POINTS), teacher)


@pytest.mark.parametrize("prefix", ["ema_0.999.", "net.", "ema.0.9."])
def test_a_prefix_leaves_out_what_else_is_there(tmp_path: Path, prefix: str) -> None:
    """Numbers, other networks, anything: only what begins with it is looked at."""
    teacher = trained()
    document: dict[Any, Any] = {prefix + name: tensor for name, tensor in weights(teacher).items()}
    document |= {"step": 1000, "lr": 1e-3, "other.weight": torch.zeros(3), "name": "run", 5: [1],
                 "optimizer": {"state": {0: torch.zeros(2)}}}
    torch.save(document, tmp_path / "w.pt")
    assert same(import_state_dict(source(tmp_path / "w.pt", prefix=prefix), POINTS), teacher)
    assert same(import_state_dict(source(tmp_path / "w.pt", prefix=prefix[:-1]), POINTS), teacher)
    torch.save({"state": document}, tmp_path / "w.pt")
    assert same(import_state_dict(source(tmp_path / "w.pt", key="state", prefix=prefix), POINTS),
                teacher)


def test_a_number_within_the_prefix_is_named(tmp_path: Path) -> None:
    document = {**weights(trained()), "step": 1000}
    torch.save(document, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"'step' is no tensor but int"):
        import_state_dict(source(tmp_path / "w.pt"), POINTS)
