"""Classes are known by their names, wherever two things that have classes meet."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from kdm_core.classes import SHOWN, find_order, match_classes, rearrange, require_order
from kdm_core.compute import seeded
from kdm_core.datasets.base import DatasetInfo
from kdm_core.errors import Adapted, MismatchError
from kdm_core.importers import FolderSource, ModuleSource, import_guide, import_teacher
from kdm_core.importers.module import ModuleFlow
from kdm_core.networks import AnyNetworkConfig, build_network
from kdm_core.networks.base import Network
from kdm_core.networks.dhariwal_unet import DhariwalUNetConfig
from kdm_core.networks.diffusers_unet import DiffusersUNetConfig
from kdm_core.networks.edm2_unet import EDM2UNetConfig
from kdm_core.networks.mlp import MLPConfig
from kdm_core.networks.song_unet import SongUNetConfig
from kdm_core.networks.torchcfm_unet import TorchCFMUNetConfig
from kdm_core.networks.transformer import TransformerConfig
from kdm_core.networks.unet import UNetConfig
from kdm_core.operators import DenseConfig
from kdm_core.pairs.importing import ImportConfig, KnownTeacher, open_source, plan_import
from kdm_core.pairs.importing.converting import convert
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.students.initialise import start_at_student, start_at_teacher
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.teachers import (
    GUIDE,
    Denoiser,
    DenoiserConfig,
    FlowMatching,
    FlowMatchingConfig,
    Teacher,
    guided,
    load_teacher,
    save_teacher,
)
from kdm_core.teachers.exact import fit_data, fit_mixture
from stages.evaluate.stage import as_in_data
from stages.sample_pairs.stored_pairs import require_teacher

MLP = MLPConfig(kind="mlp", width=8, blocks=1)
NAMES = ["zero", "one", "two"]
TURNED = ["two", "zero", "one"]  # class i of these is class ORDER[i] of NAMES
ORDER = [2, 0, 1]
NUMBERS = ["0", "1", "2"]


def spec(names: list[str]) -> SampleSpec:
    return SampleSpec(kind="points", shape=[2], label_names=names, sigma_data=0.7)


# The rule


@pytest.mark.parametrize(("mine", "theirs", "order"), [
    (TURNED, NAMES, ORDER),
    (["1", "0"], ["0", "1"], [1, 0]),
    (["0", "1", "10", "2"], [*"012", "10"], [0, 1, 3, 2]),
    (["two", "one"], NAMES, [2, 1]),
    (NAMES, NUMBERS, [0, 1, 2]),
    (NUMBERS, NAMES, [0, 1, 2]),
    (["zero", "1", "two"], ["0", "one", "two"], [0, 1, 2]),
])
def test_classes_are_matched_and_it_is_said(
    mine: list[str], theirs: list[str], order: list[int]
) -> None:
    with pytest.warns(Adapted, match="teacher: its classes .* those of the data") as said:
        assert match_classes(mine, theirs, "teacher", "the data") == order
    assert ", ".join(mine) in str(said[0].message) and ", ".join(theirs) in str(said[0].message)


@pytest.mark.parametrize("names", [NAMES, NUMBERS, [], ["b", "a"]])
def test_equal_lists_need_no_word(names: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert match_classes(names, names, "a", "b") == list(range(len(names)))
        require_order(names, names, "a", "b")


@pytest.mark.parametrize(("mine", "theirs"), [
    (["cat", "dog"], ["cat", "bird"]),
    (["cat", "Dog"], ["dog", "cat"]),
    (["a", "a"], ["a", "b"]), (["a", "b"], ["b", "b"]), (["a", "a"], ["0", "1"]),
    ([*"123"], [*"012"]),  # class "1" would be class 0
    (["cat", "1"], ["dog", "cat"]),
    (NAMES, ["zero", "one"]),
])
def test_what_is_not_sure_is_refused_with_both_lists(mine: list[str], theirs: list[str]) -> None:
    with pytest.raises(MismatchError) as refused:
        match_classes(mine, theirs, "teacher", "the data")
    for names in (mine, theirs):
        assert f"[{', '.join(names)}]" in str(refused.value)


def test_where_nothing_can_be_numbered_anew_another_order_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[two, zero, one\].*\[zero, one, two\]"):
        require_order(TURNED, NAMES, "store", "teacher")
    with pytest.raises(MismatchError, match="same order"):
        require_order(["zero", "one"], NAMES, "store", "teacher")
    with pytest.warns(Adapted, match="mere numbers"):
        require_order(NUMBERS, NAMES, "store", "teacher")


def test_long_lists_are_cut() -> None:
    names = [f"c{i}" for i in range(1000)]
    with pytest.raises(MismatchError, match=r"… \(1000 in all\)") as refused:
        match_classes(names, [*names[:-1], "d"], "a", "b")
    assert len(str(refused.value)) < 20 * SHOWN
    assert find_order(names[::-1], names) == (list(range(999, -1, -1)), "name")


# Networks and teachers


NETWORKS: dict[str, AnyNetworkConfig] = {
    "mlp": MLP,
    "unet": UNetConfig(kind="unet", channels=8, multipliers=[1], blocks=1, attention=[]),
    "transformer": TransformerConfig(kind="transformer", width=16, blocks=1, heads=2),
    "song": SongUNetConfig(kind="song_unet", channels=8, multipliers=[1], blocks=1, attention=[]),
    "dhariwal": DhariwalUNetConfig(kind="dhariwal_unet", channels=32, multipliers=[1], blocks=1,
                                   attention=[]),
    "edm2": EDM2UNetConfig(kind="edm2_unet", channels=8, multipliers=[1], blocks=1, attention=[]),
    "diffusers": DiffusersUNetConfig(kind="diffusers_unet", arguments={
        "in_channels": 1, "out_channels": 1, "num_class_embeds": 3, "norm_num_groups": 4,
        "block_out_channels": [8], "layers_per_block": 1, "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"]}),
    "torchcfm": TorchCFMUNetConfig(kind="torchcfm_unet", num_channels=64, channel_mult=[1],
                                   num_res_blocks=1, attention_resolutions=[8],
                                   num_head_channels=32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_given_another_order(name: str) -> None:
    with seeded(0):
        network = build_network(NETWORKS[name], (1, 8, 8), (1, 8, 8), timed=True,
                                num_classes=3).eval().requires_grad_(False)
        stir(network)
        for weight, _ in network.class_weights():
            weight += 5 * torch.randn_like(weight)
    x, time = torch.randn(3, 1, 8, 8), torch.full((3,), 0.5)
    before = network(x, time, torch.tensor(ORDER))
    assert not torch.allclose(before, network(x, time, torch.arange(3)), atol=1e-4)
    rearrange(network.class_weights(), ORDER)
    torch.testing.assert_close(network(x, time, torch.arange(3)), before)


def stir(network: Network | Teacher | KDM) -> None:
    """No weight zero, so that labels matter."""
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)


def make_teacher(kind: str, names: list[str]) -> Teacher:
    """One that was made for classes of these names, with a behaviour of its own for each number."""
    with seeded(1):
        samples, labels = torch.randn(12, 2) + torch.arange(12)[:, None] % 3, torch.arange(12) % 3
        if kind == "mixture":
            return fit_mixture(spec(names), samples, labels).eval()
        if kind == "data":
            return fit_data(spec(names), samples, labels).eval()
        made: Teacher = (
            Denoiser(DenoiserConfig(kind="denoiser", network=MLP), spec(names))
            if kind == "denoiser" else
            FlowMatching(FlowMatchingConfig(kind="flow_matching", network=MLP), spec(names)))
        stir(made)
    return made.eval().requires_grad_(False)


def denoised(teacher: Teacher, labels: list[int]) -> Tensor:
    x = torch.linspace(-1, 1, 6).reshape(3, 2)
    return teacher.denoise(x, torch.tensor(0.6), torch.tensor(labels))


@pytest.mark.parametrize("kind", ["mixture", "data", "denoiser", "flow"])
def test_a_teacher_s_classes_get_the_data_s_order(tmp_path: Path, kind: str) -> None:
    theirs = make_teacher(kind, NAMES)
    mark = save_teacher(tmp_path, theirs)
    source = FolderSource(source="folder", folder=str(tmp_path))
    with pytest.warns(Adapted, match="matched by name"):
        found = import_teacher(source, spec(TURNED))
    assert found.spec.label_names == TURNED
    torch.testing.assert_close(denoised(found, [0, 1, 2]), denoised(theirs, ORDER))
    assert not torch.allclose(denoised(found, [0, 1, 2]), denoised(theirs, [0, 1, 2]), atol=1e-3)
    torch.testing.assert_close(denoised(found, [-1] * 3), denoised(theirs, [-1] * 3))
    # As saved, and what is equal is left bit for bit as it was.
    save_teacher(tmp_path / "mine", found)
    loaded, _ = load_teacher(tmp_path / "mine")
    assert torch.equal(denoised(loaded, [0, 1, 2]), denoised(found, [0, 1, 2]))
    same = import_teacher(source, spec(NAMES))
    assert save_teacher(tmp_path / "same", same) == mark


def test_other_names_are_refused_and_numbers_are_taken_in_order(tmp_path: Path) -> None:
    save_teacher(tmp_path, make_teacher("denoiser", NAMES))
    source = FolderSource(source="folder", folder=str(tmp_path))
    with pytest.raises(MismatchError, match=r"\[zero, one, two\].*\[zero, one, three\]"):
        import_teacher(source, spec(["zero", "one", "three"]))
    with pytest.warns(Adapted, match="taken in the order"):
        import_teacher(source, spec(NUMBERS))


def test_a_guide_is_given_its_own_numbers(tmp_path: Path) -> None:
    theirs, weak = make_teacher("denoiser", NAMES), make_teacher("mixture", TURNED)
    save_teacher(tmp_path, theirs)
    save_teacher(tmp_path / GUIDE, weak)
    source = FolderSource(source="folder", folder=str(tmp_path))
    with pytest.warns(Adapted, match=r"^guide: .*by name"):
        found = import_guide(source, spec(NAMES))
    assert found is not None
    torch.testing.assert_close(denoised(found, ORDER), denoised(weak, [0, 1, 2]))
    config = GuidanceConfig(kind="autoguidance", scale=3.0)
    with pytest.warns(Adapted, match=r"the guide.*by name"):
        both = guided(theirs, weak, config)
    wanted = torch.lerp(denoised(weak, [0, 1, 2]), denoised(theirs, ORDER), 3.0)
    torch.testing.assert_close(denoised(both, ORDER), wanted)
    torch.testing.assert_close(
        denoised(both, [-1] * 3),
        torch.lerp(denoised(weak, [-1] * 3), denoised(theirs, [-1] * 3), 3.0))
    with pytest.raises(MismatchError, match=r"the guide: .*\[x, y, z\]"):
        guided(theirs, make_teacher("mixture", [*"xyz"]), config)


class Labelled(torch.nn.Module):
    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        return x + labels[:, None]


def test_a_file_without_names_is_said_to_be_in_the_data_s_order() -> None:
    source = ModuleSource(source="module", factory="tests.kdm_core.test_classes:Labelled",
                          trust_code=True, model=ModuleFlow(kind="flow_matching"))
    with pytest.warns(Adapted, match=r"does not say what its 3 classes are.*\[zero, one, two\]"):
        assert import_teacher(source, spec(NAMES)).spec.label_names == NAMES
    with warnings.catch_warnings():
        warnings.simplefilter("error", Adapted)
        import_teacher(source, spec(NUMBERS))


def test_a_module_of_others_cannot_be_numbered_anew(tmp_path: Path) -> None:
    source = ModuleSource(source="module", factory="tests.kdm_core.test_classes:Labelled",
                          trust_code=True, model=ModuleFlow(kind="flow_matching"))
    with pytest.warns(Adapted):
        save_teacher(tmp_path, import_teacher(source, spec(NAMES)))
    folder = FolderSource(source="folder", folder=str(tmp_path), trust_code=True)
    with (pytest.warns(Adapted),
          pytest.raises(MismatchError, match=r"\[zero, one, two\].*\[two, zero, one\].*module")):
        import_teacher(folder, spec(TURNED))


# Students and pairs


def make_student(names: list[str], seed: int = 0) -> KDM:
    config = KDMConfig(encoder=MLP, decoder=MLP, latent=4, operator=DenseConfig(kind="dense"),
                           timed=True)
    with seeded(seed):
        student = KDM(config, spec(names))
        stir(student)
    return student.eval()


def test_a_student_starts_at_another_s_classes_by_name() -> None:
    other, student = make_student(NAMES), make_student(TURNED, seed=1)
    noise = torch.randn(3, 2)
    with pytest.warns(Adapted, match="init: here.*by name"):
        start_at_student(student, other, "here")
    torch.testing.assert_close(student.generate(noise, TURNED), other.generate(noise, TURNED))
    with pytest.raises(MismatchError, match=r"init: here.*\[zero, one, two\].*\[a, b, c\]"):
        start_at_student(make_student([*"abc"]), other, "here")


def test_a_student_starts_at_its_teacher_s_classes_by_name(tmp_path: Path) -> None:
    teacher = make_teacher("denoiser", NAMES)
    assert isinstance(teacher, Denoiser)
    save_teacher(tmp_path, teacher)
    student = make_student(TURNED)
    with pytest.warns(Adapted, match="init: teacher.*by name"):
        start_at_teacher(student, tmp_path)
    (theirs, _), = teacher.network.class_weights()
    (own, _), = student.noise_encoder.network.class_weights()
    assert torch.equal(own, theirs[ORDER])


def test_figures_of_labels_are_of_the_data_s_classes() -> None:
    pairs = Pairs(torch.zeros(3, 2), torch.zeros(3, 2), torch.arange(3))
    data = DatasetInfo(source="npz", samples=spec(TURNED), class_names=TURNED, train=9, test=9)
    with pytest.warns(Adapted, match="by name"):
        found = as_in_data(pairs, spec(NAMES), data)
    assert [TURNED[label] for label in found.labels] == NAMES
    assert as_in_data(pairs, spec(TURNED), data) is not None
    assert as_in_data(pairs, spec([]), data) is pairs
    with pytest.raises(MismatchError, match=r"\[two, zero, one\].*\[a, b, c\]"):
        as_in_data(pairs, spec([*"abc"]), data)


def test_imported_pairs_get_the_teacher_s_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise, labels = rng.standard_normal((40, 2)).astype(np.float32), np.arange(40) % 3
    path = tmp_path / "pairs.npz"
    np.savez(path, sample=noise / 2, noise=noise, label=labels, label_names=np.array(TURNED))
    source, config = open_source(path), ImportConfig(test=5, validation=5)
    known = KnownTeacher(make_teacher("denoiser", NAMES), "f" * 64)
    with pytest.warns(Adapted, match="^teacher: .*by name"):
        plan = plan_import(source, config, known)
    assert plan.spec.samples.label_names == NAMES
    block = convert(source, plan.spec, plan.scale, np.arange(40))
    assert block.label.tolist() == [ORDER[label] for label in labels]
    alone = plan_import(source, config)
    assert convert(source, alone.spec, alone.scale, np.arange(40)).label.tolist() == labels.tolist()
    other = KnownTeacher(make_teacher("denoiser", [*"abc"]), "f" * 64)
    with pytest.raises(MismatchError, match=r"\[a, b, c\].*\[two, zero, one\]"):
        plan_import(source, config, other)


def test_stored_pairs_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their labels follow from the seed, so another order is refused and not mapped."""
    store = SimpleNamespace(location="pairs.zarr", spec=SimpleNamespace(
        samples=spec(TURNED), guidance=None, teacher=None, states=[],
        splits={"test": 2, "validation": 2, "train": 1}, known_solver=SimpleNamespace(kind="heun")))
    stage: Any = SimpleNamespace(note=lambda message: None, params=SimpleNamespace(
        trusts_code=False, students={}, teacher=None))
    monkeypatch.setattr("stages.sample_pairs.stored_pairs.check_against", lambda *given: None)
    monkeypatch.setattr("stages.sample_pairs.stored_pairs.paths.TEACHER", tmp_path)
    save_teacher(tmp_path, make_teacher("denoiser", NAMES))
    with pytest.raises(MismatchError, match=r"\[two, zero, one\].*\[zero, one, two\]"):
        require_teacher(stage, cast(Any, store))
    store.spec.samples = spec(NUMBERS)
    with pytest.warns(Adapted, match="mere numbers"):
        require_teacher(stage, cast(Any, store))
