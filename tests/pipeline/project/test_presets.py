"""The presets with the paper's numbers."""

import pytest
import torch

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
