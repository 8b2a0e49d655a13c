"""`kdm params check` finds in seconds what a run would find later, and says it in words."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from kdm_core.datasets import FolderConfig, load_dataset
from kdm_core.errors import Adapted
from kdm_core.networks import MLPConfig
from kdm_core.pairs.sampling import PairsConfig, plan_store
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.sharing.folder import save_student
from kdm_core.students.kdm import KDM
from kdm_core.studies import StudiesConfig
from kdm_core.teachers import DenoiserConfig, build_teacher, save_teacher
from pipeline.kdm.checks import fit
from pipeline.kdm.checks.inputs import needed_weights
from pipeline.kdm.cli import app
from pipeline.params.run import parse_params
from pipeline.project.files import PRESETS

SMOKE = YAML(typ="safe").load(PRESETS / "smoke.yaml")
UNET = {"kind": "unet", "channels": 8, "multipliers": [1, 2]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(change: Callable[[Any], object]) -> tuple[int, str]:
    """The exit code of `kdm params check` on a changed preset `smoke`, and what it says."""
    values = copy.deepcopy(SMOKE)
    change(values)
    with Path("params.yaml").open("w") as file:
        YAML().dump(values, file)
    result = CliRunner().invoke(app, ["params", "check"])
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr + result.stdout


def problems(change: Callable[[Any], object]) -> str:
    code, said = check(change)
    assert code == 1, said
    return said


def put(path: str, value: Any) -> Callable[[Any], None]:
    """A change of one value."""
    *sections, last = path.split(".")

    def change(values: Any) -> None:
        for section in sections:
            values = values[section]
        values[last] = value

    return change


def npz(**arrays: Any) -> dict[str, Any]:
    """A section `data` with 30 images of 8×8 pixels in a file."""
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    np.savez("data.npz", images=images, **arrays)
    return {"source": "npz", "path": "data.npz"}


def pngs(count: int, size: int) -> dict[str, Any]:
    """A section `data` with a folder of two classes of images, of 10 pixels a side."""
    for number in range(count):
        path = Path("images", "ab"[number % 2], f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.full((10, 10, 3), number % 256, np.uint8)
        Image.fromarray(colour).save(path)
    return {"source": "folder", "path": "images", "resolution": size, "conditional": True}


def teacher(shape: list[int]) -> dict[str, Any]:
    """A section `teacher` with a folder: an untrained model of images of that shape."""
    spec = SampleSpec(kind="image", shape=shape, label_names=[str(i) for i in range(10)])
    network = MLPConfig(kind="mlp", width=8, blocks=1)
    save_teacher(Path("theirs"), build_teacher(
        DenoiserConfig(kind="denoiser", network=network), spec))
    return {"source": "folder", "folder": "theirs"}


def test_what_can_run_is_ok() -> None:
    assert check(lambda values: None) == (0, "params.yaml: ok\n")


@pytest.mark.parametrize(("path", "value", "said"), [
    ("compute.device", "gpu", "compute.device: 'gpu' is no device; it may be auto, cpu, cuda, "
                              "cuda:1 or mps; did you mean cuda?"),
    ("compute.device", "mps", "compute.device: 'mps' is not available here"),
    ("students.kdm.model.projected_channels", 3, "projected_channels"),
    ("students.kdm.model.encoder", {"kind": "unet", "multipliers": [1, 1, 1, 1, 1]},
     "parameters: students.kdm.model."),
    ("teacher.model.network", {"kind": "unet", "multipliers": [1, 1, 1, 1, 1]},
     "parameters: teacher.model."),
    ("students.kdm.losses.distance", {"kind": "lpips", "resolution": 0},
     "students.kdm.losses.distance.resolution: VGG16 needs images of at least 16×16"),
    ("evaluation.extractors", [{"kind": "vgg16", "resolution": 8}],
     "evaluation.extractors: VGG16 needs images of at least 16×16 pixels, found 8×8; set "
     "resolution to 32"),
    ("pairs.states", 9, "pairs.states: 9 states cannot be kept, the solver's grid has 4"),
    ("pairs.solver.grid", {"kind": "timesteps"}, "pairs.solver.grid.kind: timesteps is for"),
    ("students.kdm.training.accumulate", 3, "students.kdm.training.batch: 64 samples cannot be "
     "shared equally by 1 processes × 3 micro-batches (accumulate); use 63 or 66"),
    ("students.kdm.shuffle_buffer", 100, "students.kdm.shuffle_buffer: 100 pairs do not surely"),
    ("teacher.training.accumulate", 3, "teacher.training.batch: 128 samples cannot"),
    ("reference.classifier.training.accumulate", 3, "reference.classifier.training.batch: 64"),
    ("data.path", "x.npz", "data.path: unknown key"),
    ("data", {"source": "npz", "path": "gone.npz"}, "data.path: gone.npz does not exist"),
    ("data", {"source": "digits"}, "reference.classifier"),
    ("teacher", {"source": "edm", "file": "gone.pkl"}, "teacher.file: gone.pkl does not exist"),
    ("students.kdm.init", "there/is/none", "students.kdm.init: there/is/none does not exist"),
    ("evaluation.statistics", {"classifier": "gone.npz"},
     "evaluation.statistics.classifier: gone.npz does not exist"),
    ("filter.rules", ["nowhere:keep"], "filter"),
    ("evaluation.lpips_pairs", 1, "a single pair cannot be permuted; use 2 or more, or 0"),
])
def test_what_would_be_found_later_is_found(path: str, value: Any, said: str) -> None:
    if (path, value) == ("data", {"source": "digits"}):
        value, said = npz(), "reference.classifier: these data have no classes to tell apart"
    assert said in problems(put(path, value))


def test_all_is_found_at_once() -> None:
    def change(values: Any) -> None:
        values["pairs"]["states"] = 9
        values["students"]["kdm"]["training"]["accumulate"] = 3
        values["compute"]["device"] = "cuda:77"
        values["evaluation"]["statistics"] = {"classifier": "gone.npz"}

    said = problems(change)
    assert said.startswith("error: params.yaml cannot be used here:\n")
    assert len(said.splitlines()) == 5, said


def test_a_batch_of_all_there_is_has_advice_that_works() -> None:
    def change(values: Any, batch: int = 5000) -> None:
        values["students"]["kdm"]["training"] |= {"batch": batch, "accumulate": 3}

    assert "batch: 2000 samples cannot be shared equally by 1 processes × 3 micro-batches " \
        "(accumulate); use 1998\n" in problems(change)
    assert check(lambda values: change(values, 1998))[0] == 0


def test_a_batch_that_processes_cannot_share() -> None:
    def change(values: Any) -> None:
        values["execution"]["training"] = {"engine": "torchrun", "nproc_per_node": 3}

    assert "students.kdm.training.batch: 64 samples cannot be shared equally by 3 processes" \
        in problems(change)


def test_labels_that_a_teacher_does_not_take() -> None:
    def change(values: Any) -> None:
        values["data"]["conditional"] = False
        values["teacher"]["label_dropout"] = 0.1

    assert "teacher.label_dropout: this teacher takes no labels" in problems(change)


@pytest.mark.parametrize("count", [20, 1200])
def test_images_in_a_folder_are_looked_at(count: int) -> None:
    data = pngs(count, 9)
    network = put("teacher.model.network", UNET)

    def change(values: Any) -> None:
        values["data"] = data
        network(values)

    assert "teacher.model." in (said := problems(change)) and "divisible by 2" in said
    data["resolution"] = 8
    assert check(change)[0] == 0
    bad = Path("images/a/0.png")
    bad.write_bytes(b"no image")
    said = problems(change)
    assert str(bad) in said and "/tmp/tmp" not in said


def test_too_much_to_read_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fit.SECONDS_OF_BYTES, "npz", 10)
    code, said = check(put("data", npz(labels=np.arange(30) % 3)))
    assert code == 0 and "note: data: so much takes more than seconds to read" in said


def test_a_teacher_of_other_images() -> None:
    assert "the data set holds image of shape [1, 8, 8]" in problems(
        put("teacher", teacher([1, 16, 16])))
    assert check(put("teacher", teacher([1, 8, 8])))[0] == 0


def test_cifar10_without_its_batches() -> None:
    Path("batches").mkdir()
    change = put("data", {"source": "cifar10", "path": "batches", "conditional": True})
    assert "batches/data_batch_1 is missing" in problems(change)
    Path("archive").write_bytes(b"something else")
    change = put("data", {"source": "cifar10", "path": "archive", "conditional": True})
    assert "archive is not a readable .tar.gz" in problems(change)


def test_a_start_at_a_student_of_another_architecture() -> None:
    model = parse_params(SMOKE).students["kdm"].model
    save_student(Path("theirs"), KDM(model, SampleSpec(kind="image", shape=[1, 8, 8])), {})
    change = put("students.kdm.init", "theirs")
    assert check(change)[0] == 0

    def larger(values: Any) -> None:
        change(values)
        values["students"]["kdm"]["model"]["latent"] = 64

    assert "students.kdm.init: theirs is a student of another architecture (model.latent)" \
        in problems(larger)


@pytest.mark.parametrize("factory", ["nowhere:build", "mine:nothing"])
def test_a_module_that_is_not_there_is_named(factory: str) -> None:
    Path("mine.py").write_text("")
    said = problems(put("teacher", {"source": "module", "factory": factory, "trust_code": True,
                                    "model": {"kind": "flow_matching"}}))
    assert f"teacher.factory: {factory}" in said


def test_without_studies_no_weights_are_needed() -> None:
    values = copy.deepcopy(SMOKE)
    values["reference"] = {"classifier": None}
    values["evaluation"] = {"extractors": [], "lpips": []}
    assert "vgg16" in needed_weights(parse_params(values))
    values["studies"] = dict.fromkeys(StudiesConfig.model_fields)
    # A student that takes real images is studied for copies all the same.
    assert needed_weights(parse_params(values)) == {"vgg16": ("studies", True)}
    del values["students"]["kdm-f"]["then"]
    assert needed_weights(parse_params(values)) == {}


def test_statistics_of_other_features() -> None:
    np.savez("s.npz", mu=np.zeros(3), sigma=np.eye(3))
    change = put("evaluation.statistics", {"classifier": "s.npz"})
    assert "s.npz is of 3 dimensions, the extractor's features have 16" in problems(change)
    Path("s.npz").write_bytes(b"no npz")
    assert "evaluation.statistics.classifier: s.npz is missing, cut off" in problems(change)


def test_pairs_of_other_samples() -> None:
    spec = SampleSpec(kind="image", shape=[1, 4, 4])
    made = build_teacher(DenoiserConfig(
        kind="denoiser", network=MLPConfig(kind="mlp", width=8, blocks=1)), spec)
    config = PairsConfig.model_validate(SMOKE["pairs"])
    PairStore.create(Path("p.zarr"), plan_store(config, made, "0" * 64, None, 0,
                                                torch.device("cpu")), {})
    said = problems(put("pairs", {"source": "store", "location": "p.zarr"}))
    assert "pairs.location: the store there has samples of shape [1, 4, 4]" in said


def test_code_is_run_only_where_it_is_trusted() -> None:
    Path("rules_of_mine.py").write_text("open('owned', 'w')\ndef keep(samples, labels): return 3\n")
    rules = {"rules": ["rules_of_mine:keep"]}
    assert "set trust_code: true" in problems(put("filter", rules))
    assert not Path("owned").exists()
    assert "rules_of_mine:keep" in problems(put("filter", rules | {"trust_code": True}))
    assert Path("owned").exists()


def test_the_first_images_of_many_files_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the first files, of which none may be an image."""
    monkeypatch.setattr(fit, "SECONDS_OF_FILES", 12)
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "in" / name / f"a{number}.txt").write_text("beside")
            pixels = np.random.default_rng(number).integers(0, 256, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "in" / name / f"b{number}.png")
    (tmp_path / "out").mkdir()
    assert fit.link_first(tmp_path / "in", tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Adapted)
        found = load_dataset(FolderConfig(source="folder", path=str(tmp_path / "out")), seed=0)
    assert found.info.class_names == ["cat", "dog"] and found.info.train + found.info.test == 8
