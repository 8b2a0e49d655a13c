"""`kdm_core.train`: the lines of the docs, defaults for pairs of any shape, resuming, refusals."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import kdm_core
from kdm_core import KDM, PairStore, train
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.noise import draw
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block
from kdm_core.samples import SampleSpec
from kdm_core.students import StudentConfig
from kdm_core.students import train as train_module
from kdm_core.students.defaults import default_losses, default_student, default_training
from kdm_core.students.phases import NextPhase, Reports
from kdm_core.teachers import save_teacher
from kdm_core.values import to_uint8
from tests.support.imports import ROOT
from tests.support.pairs import sampled, teacher
from tests.support.training import Killed, killed_at

TINY = {"encoder": {"kind": "mlp", "width": 16, "blocks": 1},
        "decoder": {"kind": "mlp", "width": 16, "blocks": 1},
        "latent": 8, "operator": {"kind": "dense"}}
SILENT = Reports()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """Images of 1 × 4 × 4 in two classes."""
    return sampled(tmp_path_factory.mktemp("pairs") / "pairs.zarr")


def store_of(path: Path, kind: Literal["image", "points"], names: list[str]) -> PairStore:
    """Pairs whose samples are a simple function of noise and label, so that any student learns."""
    shape = [1, 4, 4] if kind == "image" else [2]
    spec = StoreSpec(
        samples=SampleSpec(kind=kind, shape=shape, label_names=names), teacher=None,
        noise_seed=None, noise_dtype="float32", noise_scale=80.0,
        sample_dtype="uint8" if kind == "image" else "float32", solver=None, times=[], nfe=None,
        compute_batch=8, precision="fp32", splits={"test": 64, "validation": 64, "train": 896},
        chunk=64, shard=1024)
    noise, labels = draw(0, range(1024), tuple(shape), "float32", len(names))
    x = torch.from_numpy(noise)
    samples = (x.roll(1, -1) + torch.from_numpy(labels).reshape(-1, *[1] * len(shape))).tanh() / 2
    store = PairStore.create(path, spec, {})
    store.write_shard(0, Block(noise, (to_uint8(samples) if kind == "image" else samples).numpy(),
                               labels, torch.arange(1024).numpy()))
    return store


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(value, second.state_dict()[name])
               for name, value in first.state_dict().items())


def test_the_lines_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand in docs/using.md, with a smaller student by default."""
    monkeypatch.chdir(tmp_path)
    store_of(tmp_path / "pairs.zarr", "image", ["cat", "dog"])
    small = kdm_core.students.KDMConfig.model_validate(TINY)
    monkeypatch.setattr(train_module, "default_student", lambda samples: small)
    code = re.findall("```python\n(.*?)```", (ROOT / "docs/using.md").read_text(), re.DOTALL)[0]
    assert "train(" in code and len(code.splitlines()) <= 10
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["images"].shape == (16, 1, 4, 4)
    assert torch.equal(found["images"], found["again"].sample(16, labels=[0] * 16, seed=0))
    assert found["again"].provenance["pairs"] == found["pairs"].spec.fingerprint


def test_what_the_package_offers_is_listed() -> None:
    assert {"KDM", "PairStore", "train", "from_pretrained", "Student"} <= set(dir(kdm_core))
    assert all(getattr(kdm_core, name) is not None for name in dir(kdm_core))


@pytest.mark.parametrize("kind", ["image", "points"])
@pytest.mark.parametrize("names", [[], ["cat", "dog"]], ids=["plain", "conditional"])
def test_defaults_learn(
    tmp_path: Path, kind: Literal["image", "points"], names: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    student = train(store_of(tmp_path / "pairs.zarr", kind, names), steps=40)
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("40 of 40 steps (100%)")
    # What it makes of held-out noise has something to do with the pairs' samples.
    assert float(shown[-1].rpartition("MSE ")[2].split()[0]) < 0.5
    assert not student.training and student.sample(2).isfinite().all()


@pytest.mark.parametrize(("kind", "shape"), [
    ("points", [2]), ("points", [1000]), ("image", [1, 8, 8]), ("image", [1, 28, 28]),
    ("image", [3, 32, 32]), ("image", [3, 17, 17]), ("image", [3, 64, 64]), ("image", [3, 24, 40]),
    ("image", [4, 30, 45]), ("image", [3, 128, 128])])
def test_every_shape_has_a_student(kind: Literal["image", "points"], shape: list[int]) -> None:
    samples = SampleSpec(kind=kind, shape=shape, label_names=["a", "b"])
    config = default_student(samples)
    config.check(default_losses(config, samples))
    with torch.device("meta"):
        student = config.build(samples)
        made = student(torch.zeros(2, *shape), torch.zeros(2, dtype=torch.int64))
    assert made.shape == (2, *shape)
    assert 1e5 < sum(weight.numel() for weight in student.parameters()) < 1e8


@pytest.mark.parametrize(("count", "batch", "steps"), [
    (1, 1, 2000), (100, 64, 2000), (75_000, 256, 2929), (10**9, 256, 100_000)])
def test_a_training_follows_from_the_number_of_pairs(count: int, batch: int, steps: int) -> None:
    found = default_training(count)
    assert (found.batch, found.steps) == (batch, steps) and found.warmup < steps
    assert default_training(count, 7).steps == 7


@pytest.mark.parametrize("kill_at", [3, 14, 20, 26])
def test_a_killed_training_goes_on(tmp_path: Path, pairs: PairStore, kill_at: int) -> None:
    def trained(reports: Reports = SILENT, **more: Any) -> KDM:
        return train(pairs, TINY, 20, training={"checkpoint_every": 5},  # type: ignore[return-value]
                     then=[NextPhase(steps=10, lr=1e-4)], reports=reports, **more)

    with pytest.raises(Killed):
        trained(Reports(on_step=killed_at(kill_at)), resume=tmp_path)
    starts: list[int] = []
    resumed = trained(Reports(on_start=starts.append), resume=tmp_path)
    undisturbed = trained()
    assert same(resumed, undisturbed) and resumed.provenance == undisturbed.provenance
    done = kill_at - kill_at % 5 if kill_at < 20 else 20
    assert starts[0] == (done if done < 20 or kill_at > 20 else 15)
    other: list[int] = []
    trained(Reports(on_start=other.append), resume=tmp_path, seed=1)
    assert other[0] == 0  # of other arguments nothing is gone on with


def test_arguments_are_heeded(tmp_path: Path, pairs: PairStore) -> None:
    def trained(model: Any = TINY, **more: Any) -> Any:
        return train(pairs, model, 3, reports=SILENT, **more)

    plain = trained()
    assert same(plain, trained())
    assert same(plain, trained(kdm_core.students.KDMConfig.model_validate(TINY)))
    others: list[Callable[[], Any]] = [
        lambda: trained(seed=1), lambda: trained(training={"lr": 0.1}),
        lambda: trained(losses={"latent": 0.0}),
        lambda: trained(then=[NextPhase(steps=1, lr=0.1)])]
    assert not any(same(plain, other()) for other in others)
    assert trained(training={"lr": 0.1}).provenance["training"]["lr"] == 0.1
    half = KeepMask(pairs.spec.fingerprint, ["odd"],
                    (torch.arange(pairs.spec.count) % 2).numpy().astype("uint16"))
    assert train(pairs.masked(half), TINY, 3, reports=SILENT).provenance["pairs_read"] == 35


def test_a_teacher_s_weights_are_a_start(tmp_path: Path, pairs: PairStore) -> None:
    mark = save_teacher(tmp_path / "teacher", teacher())
    student = train(pairs, {"kind": "direct"}, 1, teacher=tmp_path / "teacher",
                    training={"lr": 1e-12}, reports=SILENT)
    assert student.provenance["init"] == mark
    for name, value in teacher().network.state_dict().items():
        torch.testing.assert_close(student.networks()[0].state_dict()[name], value)
    with pytest.raises(MismatchError, match=r"model\.denoiser: nobody knows the teacher"):
        train(pairs, {"kind": "direct"}, 1)
    with pytest.raises(MismatchError, match="takes a time"):
        train(pairs, TINY, 1, teacher=tmp_path / "teacher")


@pytest.mark.parametrize(("arguments", "saying"), [
    ({"model": {**TINY, "latent": 0}}, r"^model: kdm\.latent: "),
    ({"model": {"kind": "kdn"}}, "^model: .*kdm"),
    ({"training": {"lr": -1.0}}, "^training: lr: "),
    ({"training": {"rate": 1.0}}, "^training: rate: "),
    ({"losses": {"reconstruction": 0.0, "latent": 0.0, "prediction": 0.0}}, "^losses: .*all 0"),
    ({"device": "abacus"}, "'abacus' is no device"),
    ({"training": {"batch": 8, "accumulate": 3}}, "accumulate"),
    ({"window": 3}, "do not surely hold a batch"),
])
def test_what_makes_no_sense(pairs: PairStore, arguments: dict[str, Any], saying: str) -> None:
    with pytest.raises(KDMError, match=saying):
        train(pairs, **{"model": TINY, "steps": 2, "reports": SILENT, **arguments})


def test_no_pairs(tmp_path: Path, pairs: PairStore) -> None:
    nothing = KeepMask(pairs.spec.fingerprint, ["all"],
                       torch.ones(pairs.spec.count).numpy().astype("uint16"))
    with pytest.raises(DataError, match="has no pairs to train on"):
        train(pairs.masked(nothing), TINY, 1)


def test_a_configuration_of_any_kind_has_its_losses() -> None:
    samples = SampleSpec(kind="points", shape=[2])
    for kind in ("kdm", "direct", "hierarchical"):
        config: StudentConfig = kdm_core.students.KINDS[kind].model_validate(
            TINY if kind == "kdm" else {})
        config.check(default_losses(config, samples))
