"""Networks of the user's own, by import path: only with their trust."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from kdm_core.errors import KDMError, MismatchError
from kdm_core.importers.module import ModuleSource, import_module
from kdm_core.networks import AnyNetworkConfig, build_network
from kdm_core.networks.module import ModuleNetworkConfig, trusting_code
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import Denoiser, FlowMatching, load_teacher, save_teacher

CODE = """
from pathlib import Path
import torch
from torch import nn

Path(__file__).with_name("canary").touch()

class Scale(nn.Module):
    '''x times a number, plus the label.'''
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
    def forward(self, x, time, labels=None):
        self.seen = time, labels
        return x * self.factor + (0 if labels is None else labels[:, None])

class Gaussian(nn.Module):
    '''The denoiser of N(0, 4).'''
    def forward(self, x, sigma):
        return x * 4 / (4 + sigma[:, None] ** 2)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
    def forward(self, x, time):
        return self.second(self.first(x))

class Nested:
    make = Scale

class Wrong(nn.Module):
    def forward(self, x, time):
        return x[:, :1]

class Failing(nn.Module):
    def forward(self, x, time):
        return x @ torch.zeros(7, 7)

def failing():
    raise RuntimeError("out of luck")

def number():
    return 3
"""
POINTS = SampleSpec(kind="points", shape=[2], sigma_data=2.0)
LABELLED = POINTS.model_copy(update={"label_names": ["a", "b"]})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a module `mine` in it that leaves a mark when it is imported."""
    import sys

    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield tmp_path  # type: ignore[misc]
    sys.modules.pop("mine", None)


def source(factory: str = "mine:Scale", **fields: Any) -> ModuleSource:
    return ModuleSource(**{"source": "module", "factory": factory, "trust_code": True,
                           "model": {"kind": "flow_matching"}, **fields})


def test_without_trust_nothing_is_imported(folder: Path) -> None:
    for fields in ({}, {"trust_code": False}):
        with pytest.raises(ValidationError, match=r"trust_code[\s\S]*runs its code"):
            ModuleSource(**{"source": "module", "factory": "mine:Scale",
                            "model": {"kind": "flow_matching"}, **fields})
    network = TypeAdapter(AnyNetworkConfig).validate_python(
        {"kind": "module", "factory": "mine:Scale"})
    with pytest.raises(KDMError, match=r"^trust_code: mine:Scale"):
        build_network(network, (2,), (2,), timed=True)
    assert not (folder / "canary").exists()
    import_module(source(), POINTS)
    assert (folder / "canary").exists()


def test_a_saved_teacher_is_loaded_with_trust_only(folder: Path) -> None:
    saved = import_module(source(arguments={"factor": 3.0}), POINTS)
    save_teacher(folder / "teacher", saved)
    (folder / "canary").unlink()
    with pytest.raises(KDMError, match="^trust_code: "):
        load_teacher(folder / "teacher")
    assert not (folder / "canary").exists()
    teacher, _ = load_teacher(folder / "teacher", trust_code=True)
    x = torch.randn(3, 2)
    assert torch.equal(teacher.velocity(x, torch.tensor(0.5), None), 3 * x)


def test_tied_weights_are_saved(folder: Path) -> None:
    saved = import_module(source("mine:Tied"), POINTS)
    save_teacher(folder / "teacher", saved)
    teacher, _ = load_teacher(folder / "teacher", trust_code=True)
    x = torch.randn(3, 2)
    time = torch.tensor(0.5)
    assert torch.equal(teacher.velocity(x, time, None), saved.velocity(x, time, None))


def test_what_a_module_is_called_with(folder: Path) -> None:
    teacher = import_module(source("mine:Nested.make", model={"kind": "denoiser"}), LABELLED)
    assert isinstance(teacher, Denoiser)
    module = teacher.network.module
    labels = torch.tensor([1, -1, 0])
    teacher.denoise(torch.zeros(3, 2), torch.tensor(2.0), labels)
    time, given = module.seen  # type: ignore[union-attr,misc]
    assert torch.equal(given, labels)  # type: ignore[has-type]
    torch.testing.assert_close(time, torch.full((3,), 2.0).log() / 4)  # type: ignore[has-type]
    teacher.denoise(torch.zeros(3, 2), torch.tensor(2.0), None)
    assert module.seen[1].tolist() == [-1, -1, -1]  # type: ignore[union-attr,index]
    free = import_module(source(), POINTS)
    assert isinstance(free, FlowMatching) and not free.config.normalised
    free.velocity(torch.zeros(3, 2), torch.tensor(0.25), None)
    assert free.network.module.seen[1] is None  # type: ignore[union-attr,index]


def test_a_denoiser_as_it_is(folder: Path) -> None:
    """With preconditioning `none`, a module that is D(x; sigma) carries noise to its data."""
    teacher = import_module(source("mine:Gaussian", model={
        "kind": "denoiser", "preconditioning": {"kind": "none"},
        "grid": {"kind": "karras", "sigma_max": 50.0}}), POINTS)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    found = teacher.sample(noise, None, FixedSolver(kind="heun", steps=128), "fp32")
    exact = noise * 50 * 2 / (2**2 + 50**2) ** 0.5
    torch.testing.assert_close(found.state, exact, rtol=2e-3, atol=1e-3)


def test_weights_from_a_file(folder: Path) -> None:
    torch.save({"ema": {"module.factor": torch.tensor(5.0)}}, folder / "w.pt")
    described = source(file="w.pt", key="ema", prefix="module.", sigma_data=3.0)
    teacher = import_module(described, POINTS)
    assert torch.equal(teacher.velocity(torch.ones(1, 2), torch.tensor(0.5), None),
                       torch.full((1, 2), 5.0))
    assert teacher.spec.sigma_data == 3.0 and not teacher.training
    torch.save({"other": torch.tensor(5.0)}, folder / "w.pt")
    with pytest.raises(MismatchError, match=r"missing \(factor\); 1 tensors are unknown \(other\)"):
        import_module(source(file="w.pt"), POINTS)


@pytest.mark.parametrize("factory, fields, saying", [
    ("missing.module:make", {}, r"importing missing\.module from .* failed \(ModuleNotFoundError"),
    ("mine:missing", {}, "mine has no missing"),
    ("mine:Scale", {"arguments": {"size": 3}}, "failed when called with the arguments.*'size'"),
    ("mine:failing", {}, r"failed when called.*RuntimeError: out of luck"),
    ("mine:number", {}, r"returned int, not a torch\.nn\.Module"),
    ("mine:Wrong", {}, r"returned \(1, 1\), not a tensor of shape \(1, 2\)"),
    ("mine:Failing", {}, r"failed when called with x of shape \(1, 2\).*RuntimeError"),
])
def test_what_goes_wrong_is_one_message(
    folder: Path, factory: str, fields: dict[str, Any], saying: str
) -> None:
    with pytest.raises(KDMError, match=rf"^factory: .*{saying}"):
        import_module(source(factory, **fields), POINTS)


@pytest.mark.parametrize("factory", ["mine", "mine.Scale", "../mine:x", "mine:x()", ":x", "a b:c"])
def test_import_paths(factory: str) -> None:
    with pytest.raises(ValidationError, match="factory"):
        source(factory)


def test_a_module_is_no_part_of_a_student() -> None:
    config = ModuleNetworkConfig(kind="module", factory="mine:Scale")
    with trusting_code(), pytest.raises(KDMError, match="only be part of a teacher"):
        build_network(config, (2,), (2,))
