"""The presets with the paper's numbers, and the sweeps over them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dvc.utils.hydra import apply_overrides

from kdm_core.datasets.cifar10 import CLASSES
from kdm_core.datasets.idx import FASHION, IdxConfig
from kdm_core.losses.distances import LPIPSConfig
from kdm_core.samples import SampleSpec
from kdm_core.students.kdm import KDM
from pipeline.params.fitting import check_against
from pipeline.params.run import Params, load_params
from pipeline.params.student import StudentParams
from pipeline.project.files import PRESETS

CIFAR = SampleSpec(kind="image", shape=[3, 32, 32])
CONDITIONAL = CIFAR.model_copy(update={"label_names": CLASSES})
FACES = SampleSpec(kind="image", shape=[3, 64, 64])
POINTS = SampleSpec(kind="points", shape=[2])
SPECS = {"cifar10": CIFAR, "cifar10-cond": CONDITIONAL, "cifar10-fm": CIFAR,
         "ffhq64": FACES, "afhqv2": FACES, "checkerboard-paper": POINTS}
IMAGES = [name for name, spec in SPECS.items() if spec.kind == "image"]
VGG16 = 14_714_688  # parameters of its convolutions, which the published code counts as its own


def preset(name: str) -> Params:
    return load_params(PRESETS / f"{name}.yaml")


def millions(student: StudentParams, spec: SampleSpec) -> float:
    """Trained parameters of a student."""
    with torch.device("meta"):
        return sum(p.numel() for p in KDM(student.model, spec).parameters()) / 1e6


@pytest.mark.parametrize("name", SPECS)
def test_every_model_can_be_built(name: str) -> None:
    check_against(preset(name), SPECS[name])


@pytest.mark.parametrize("name", SPECS)
def test_students(name: str) -> None:
    students = preset(name).students
    expected = {"paper", "fast"} | ({"paper-f"} if name.startswith("cifar10") else set())
    assert set(students) == expected


@pytest.mark.parametrize("name", IMAGES)
def test_the_papers_numbers(name: str) -> None:
    """Table 7 and appendix E."""
    params = preset(name)
    large = name in ("ffhq64", "afhqv2")
    for key in params.students.keys() - {"fast"}:
        student = params.students[key]
        training, losses = student.training, student.losses
        assert training.batch == (64 if large else 128)
        assert (training.lr, training.steps, training.ema) == (3e-4, 800_000, 0.9999)
        assert (training.schedule, training.warmup, training.clip) == ("constant", 0, 0.0)
        assert (training.optimizer, training.weight_decay) == ("adam", 0.0)
        assert (training.precision, training.nonfinite) == ("fp32", "zero")
        weights = losses.reconstruction, losses.latent, losses.prediction, losses.adversarial
        assert weights == (1, 1, 1, 0.01) and losses.latent_noise == 0.4
        assert isinstance(losses.distance, LPIPSConfig)
        assert (losses.distance.net, losses.distance.pooling, losses.distance.resolution,
                losses.distance.mse) == ("vgg", "average", 0, 0)
        assert student.model.latent == (512 if large else 1024)
        assert student.model.projected_channels == (1 if large else None)
        assert student.model.encoder.channels == (32 if large else 64)  # type: ignore[union-attr]
        assert student.model.decoder == student.model.encoder
    assert params.pairs.train == (250_000 if name == "afhqv2" else 1_000_000)
    assert params.pairs.test == 50_000
    if name != "cifar10-fm":
        solver = params.pairs.solver
        assert solver.kind == "heun" and 2 * solver.steps - 1 == (79 if large else 35)


def test_sizes_are_those_of_table_4() -> None:
    """62 million parameters of KDM and 65 of KDM-F, the perceptual network's among them."""
    students = preset("cifar10").students
    assert millions(students["paper"], CIFAR) + VGG16 / 1e6 == pytest.approx(62, abs=0.5)
    assert millions(students["paper-f"], CIFAR) + VGG16 / 1e6 == pytest.approx(65, abs=0.5)


def test_control_only_where_there_are_classes() -> None:
    for name, spec in SPECS.items():
        for student in preset(name).students.values():
            assert student.model.control == bool(spec.num_classes)
    assert preset("cifar10-cond").data.conditional  # type: ignore[union-attr]


class Sweep:
    """A project folder with a preset as params.yaml and a `dvc` that records its arguments."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.record = folder, folder / "record"
        shutil.copy(PRESETS / f"{name}.yaml", folder / "params.yaml")
        stub = folder / "bin" / "dvc"
        stub.parent.mkdir()
        stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$RECORD"\necho -- >> "$RECORD"\n')
        stub.chmod(0o755)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["sh", str(PRESETS / "sweeps" / f"{script}.sh"), *arguments], cwd=self.folder,
            env={**os.environ, "PATH": path, "RECORD": str(self.record)}, text=True,
            capture_output=True)

    def experiments(self, script: str, student: str) -> Iterator[tuple[str, Params]]:
        """Name and parameters of each experiment that a sweep queues, as DVC applies them."""
        done = self.run(script, student)
        assert done.returncode == 0, done.stderr
        for call in self.record.read_text().removesuffix("--\n").split("--\n"):
            arguments = call.splitlines()
            assert arguments[:4] == ["exp", "run", "--queue", "--name"]
            changed = self.folder / "changed.yaml"
            shutil.copy(self.folder / "params.yaml", changed)
            assert set(arguments[5::2]) == {"-S"}
            apply_overrides(changed, arguments[6::2])
            yield arguments[4], load_params(changed)


@pytest.fixture(params=[("smoke", "kdm-f"), ("cifar10", "paper")], ids=lambda pair: pair[0])
def swept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Sweep, str]:
    name, student = request.param
    return Sweep(tmp_path, name), student


def test_table_5(swept: tuple[Sweep, str]) -> None:
    sweep, student = swept
    found = {}
    for name, params in sweep.experiments("table5", student):
        losses = params.students[student].losses
        found[name.removeprefix(f"table5-{student}-")] = (
            losses.reconstruction, losses.latent, losses.prediction, losses.adversarial)
    assert found == {
        "lat": (0, 1, 0, 0), "pred": (0, 0, 1, 0), "rec": (1, 0, 0, 0),
        "lat-pred": (0, 1, 1, 0), "rec-pred": (1, 0, 1, 0), "rec-lat": (1, 1, 0, 0),
        "koopman": (1, 1, 1, 0), "all": (1, 1, 1, 0.01)}


def test_table_6(swept: tuple[Sweep, str]) -> None:
    sweep, student = swept
    experiments = dict(sweep.experiments("table6", student))
    assert list(experiments) == [f"table6-{student}-{size}" for size in (1024, 4096, 9216)]
    assert [params.students[student].model.latent for params in experiments.values()] == [
        1024, 4096, 9216]
    if student == "paper":
        for params in experiments.values():
            assert millions(params.students["paper"], CIFAR) > 47


def test_table_9(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, "cifar10")
    sizes = {name: millions(params.students["paper"], CIFAR) + VGG16 / 1e6
             for name, params in sweep.experiments("table9", "paper")}
    assert list(sizes) == ["table9-paper-20M", "table9-paper-38M", "table9-paper-84M"]
    assert list(sizes.values()) == pytest.approx([20, 38, 84], abs=0.6)


def test_figure_5(swept: tuple[Sweep, str]) -> None:
    sweep, student = swept
    experiments = dict(sweep.experiments("figure5", student))
    assert [params.pairs.train for params in experiments.values()] == [250_000, 500_000, 1_000_000]
    assert len(experiments) == 3


@pytest.mark.parametrize("script", ["table5", "table6", "table9", "figure5"])
def test_a_student_that_is_not_there(script: str, tmp_path: Path) -> None:
    """Nothing is queued; the default is `paper`, which the smoke preset has not."""
    sweep = Sweep(tmp_path, "smoke")
    for arguments in ([], ["nobody"]):
        done = sweep.run(script, *arguments)
        assert done.returncode == 1
        assert f"no student '{(arguments or ['paper'])[0]}'" in done.stderr
    assert not sweep.record.exists()


@pytest.mark.parametrize(("name", "average"), [("fashion", 1), ("fashion-small", 2)])
def test_fashion_has_a_student_of_every_kind(name: str, average: int) -> None:
    params = preset(name)
    side = 28 // average
    spec = SampleSpec(kind="image", shape=[1, side, side], label_names=FASHION)
    check_against(params, spec)
    assert isinstance(params.data, IdxConfig) and params.data.average == average
    assert {student.model.kind for student in params.students.values()} == {
        "kdm", "direct", "hierarchical", "rectified_flow"}
    assert params.evaluation.reference == "test"  # some have the training images as real ones
