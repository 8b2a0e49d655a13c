"""`kdm student info`, `kdm sample|export|card|push`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import kdm_core
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.serialization import write_json
from kdm_core.sharing.folder import save_student
from kdm_core.solvers import FixedSolver
from kdm_core.students.rectified_flow import RectifiedFlow
from kdm_core.values import to_uint8
from pipeline.kdm.cli import app
from tests.support import family
from tests.support.project import ROOT
from tests.support.students import EVALUATION, IMAGES, POINTS, PROVENANCE, make_student


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_student(tmp_path / "mine", make_student(), PROVENANCE)
    save_student(tmp_path / "points", make_student(spec=POINTS), {})
    return tmp_path


def kdm(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def done(*arguments: str) -> str:
    result = kdm(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_info() -> None:
    shown = done("student", "info", "mine")
    assert "dense Koopman operator on 64 dimensions, eigenvalues of modulus" in shown
    assert "image samples of shape (1, 8, 8)" in shown and "3 classes: [a, b, c]" in shown
    assert f"pairs: {'p' * 64}" in shown and "kind: mlp" in shown
    assert json.loads(Path("mine/config.json").read_text())["fingerprint"] in shown


def test_arrays_are_those_of_the_library() -> None:
    assert "10 samples of seed 4, on cpu" in done(
        "sample", "mine", "--n", "10", "--seed", "4", "--out", "x.npz", "--labels", "0,2",
        "--batch", "3", "--device", "cpu", "--precision", "fp32")
    with np.load("x.npz") as file:
        assert set(file) == {"samples", "labels", "seed"}
        assert file["samples"].dtype == np.float32 and file["seed"] == 4
        assert file["labels"].tolist() == [0, 2] * 5
        wanted = kdm_core.from_pretrained("mine").sample(10, 4, [0, 2] * 5, "fp32", batch=3)
        assert np.array_equal(file["samples"], wanted)


def test_classes_are_called_by_their_names() -> None:
    for labels, out in (("c,a", "names.npz"), ("2,0", "numbers.npz")):
        done("sample", "mine", "--n", "4", "--out", out, "--labels", labels, "--device", "cpu")
    with np.load("names.npz") as names, np.load("numbers.npz") as numbers:
        assert names["labels"].tolist() == [2, 0, 2, 0]
        assert np.array_equal(names["samples"], numbers["samples"])


def test_arrays_without_labels() -> None:
    done("sample", "points", "--n", "5", "--out", "x.npz")
    with np.load("x.npz") as file:
        assert set(file) == {"samples", "seed"} and file["samples"].shape == (5, 2)
    done("sample", "mine", "--n", "5", "--out", "x.npz")
    with np.load("x.npz") as file:
        assert file["labels"].tolist() != [0] * 5 and set(file["labels"]) <= {0, 1, 2}


def test_a_grid() -> None:
    done("sample", "mine", "--n", "6", "--out", "grid.png")
    with Image.open("grid.png") as picture:
        # 8 pixels are shown twelvefold, three to a row, with two pixels between them.
        assert picture.mode == "RGB" and picture.size == (3 * 98 - 2, 2 * 98 - 2)
        pixels = np.asarray(picture)
    assert pixels.std() > 5
    first = to_uint8(kdm_core.from_pretrained("mine").sample(6)[0, 0]).numpy()
    assert np.array_equal(pixels[0:96:12, 0:96:12, 0], first)


def test_a_scatter_of_points() -> None:
    done("sample", "points", "--n", "50", "--out", "cloud.png")
    with Image.open("cloud.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    assert 50 < (pixels == (0x11, 0x80, 0xC4)).all(axis=2).sum() < pixels.size / 10


def test_a_folder_of_pictures() -> None:
    done("sample", "mine", "--n", "5", "--labels", "1", "--out", "pictures", "--batch", "2",
         "--precision", "fp32")
    files = sorted(path.name for path in Path("pictures").iterdir())
    assert files == [f"00000{i}.png" for i in range(5)] + ["labels.json"]
    table = json.loads(Path("pictures/labels.json").read_text())
    assert table["seed"] == 0
    assert table["labels"]["000004.png"] == {"label": 1, "name": "b"}
    wanted = to_uint8(kdm_core.from_pretrained("mine").sample(5, 0, [1] * 5, "fp32", batch=2))
    for index, image in enumerate(wanted):
        with Image.open(f"pictures/00000{index}.png") as picture:
            assert picture.mode == "L" and np.array_equal(np.asarray(picture), image[0])


def test_export() -> None:
    said = done("export", "points", "--format", "onnx", "--out", "s.onnx")
    assert "s.onnx:" in said and "the student's to within" in said
    session = onnxruntime.InferenceSession("s.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["noise"]
    refused = kdm("export", "points", "--format", "onnx", "--out", "s.onnx")
    assert refused.exit_code == 1 and "s.onnx exists already" in refused.stderr


@pytest.mark.parametrize(("arguments", "saying"), [
    (["sample", "nowhere", "--out", "x.png"], "nowhere is no folder"),
    (["sample", "mine", "--out", "x.jpg"], "neither .png nor .npz nor a folder"),
    (["sample", "mine", "--out", "mine"], "mine exists and is no empty folder"),
    (["sample", "mine", "--out", "x.npz", "--labels", "d"],
     "no class 'd'; the classes are [a, b, c], or 0 to 2"),
    (["sample", "mine", "--out", "x.npz", "--labels", "0,3"],
     "no class '3'; the classes are [a, b, c], or 0 to 2"),
    (["sample", "mine", "--out", "x.npz", "--labels", "0,1,2", "--n", "2"],
     "3 labels for 2 samples"),
    (["sample", "mine", "--out", "x.npz", "--device", "abacus"], "'abacus' is no device"),
    (["sample", "mine", "--out", "x.png", "--n", "10001"], "too many for one picture"),
    (["sample", "points", "--out", "x.npz", "--labels", "0"], "takes none"),
    (["sample", "points", "--out", "pictures"], "points do not go into a folder"),
    (["sample", "mine", "--out", "missing/x.npz", "--steps", "2"], ""),
    (["student", "info", "cut"], "weights.safetensors is damaged"),
    (["card", "unknown"], "data/students/unknown is no folder"),
    (["push", "nowhere", "a/b"], "nowhere is no folder"),
    (["push", "mine", "a/b", "--card", "none.md"], "none.md: No such file"),
])
def test_what_is_wrong_is_one_message(arguments: list[str], saying: str, folder: Path) -> None:
    shutil.copytree("mine", "cut")
    weights = Path("cut/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-7])
    before = sorted(folder.rglob("*"))
    result = kdm(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ") and saying in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--seed", "-1"], ["--steps", "0"]])
def test_numbers_that_cannot_be(arguments: list[str]) -> None:
    assert kdm("sample", "mine", "--out", "x.npz", *arguments).exit_code == 2


def test_two_channels_are_no_picture(folder: Path) -> None:
    spec = SampleSpec(kind="image", shape=[2, 8, 8])
    save_student(folder / "two", make_student(spec=spec), {})
    result = kdm("sample", "two", "--out", "x.png")
    assert result.exit_code == 1 and "images of 2 channels are no pictures" in result.stderr
    done("sample", "two", "--out", "x.npz")


def make_run(folder: Path) -> str:
    """A store, a student of it and its evaluation; returns the student's fingerprint."""
    spec = StoreSpec(
        samples=IMAGES, teacher="t" * 64, noise_seed=1, noise_dtype="float16", noise_scale=80.0,
        sample_dtype="uint8", solver=FixedSolver(kind="heun", steps=18), times=[1.0, 0.0], nfe=35,
        compute_batch=4, precision="fp32", splits={"test": 2, "validation": 2, "train": 4321},
        chunk=4, shard=8)
    PairStore.create(folder / "data/pairs/pairs.zarr", spec, {})
    mark = save_student(folder / "data/students/kdm", make_student(),
                        PROVENANCE | {"pairs": spec.fingerprint})
    evaluation = EVALUATION | {"conditions": {"student": mark, "n": 5000}}
    write_json(folder / "data/evaluation/kdm/evaluation.json", evaluation)
    return mark


def test_a_card_of_a_run(folder: Path) -> None:
    mark = make_run(folder)
    card = done("card", "kdm", "--title", "me/digits", "--license", "mit")
    for part in ('license: "mit"', "# me/digits", "4,321", "kind heun, steps 18", "pair: 35",
                 mark, "1.50 times its teacher's", 'kdm_core.from_pretrained("me/digits")'):
        assert part in card
    done("card", "kdm", "--out", "README.md", "--title", "me/digits", "--license", "mit")
    assert Path("README.md").read_text() == card
    assert "README.md exists already" in kdm("card", "kdm", "--out", "README.md").stderr


def test_the_verdict_of_a_run_is_told(folder: Path) -> None:
    """Of the student that it is on, and by its card as well."""
    make_run(folder)
    assert "verdict" not in done("student", "info", "data/students/kdm")
    file = folder / "data/evaluation/kdm/evaluation.json"
    verdict = {"word": "on par", "why": ["its FD is its teacher's"], "unknown": []}
    write_json(file, json.loads(file.read_text()) | {"verdicts": {"student": verdict}})
    assert ("verdict: on par\n  its FD is its teacher's\n"
            in done("student", "info", "data/students/kdm"))
    assert "**Verdict: on par**" in done("card", "kdm")
    assert "verdict" not in done("student", "info", "mine")


def test_figures_of_another_student_are_not_this_ones(folder: Path) -> None:
    make_run(folder)
    save_student(folder / "data/students/kdm", make_student(), {"pairs": "x" * 64})
    card = done("card", "kdm")
    assert "## Evaluation" not in card and "4,321" not in card and "Limitations" not in card


def test_help_does_not_wait_for_torch() -> None:
    script = ("import sys; from pipeline.kdm.cli import app; "
              "sys.exit(' '.join(n for n in ('torch', 'numpy', 'onnx') if n in sys.modules))")
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert shown.stderr.strip() == ""


def test_samples_are_led_back_to_their_noise(tmp_path: Path) -> None:
    """Those of the finely solved ODE of a flow; by another kind, another file or shape: refused."""
    made = family.student("rectified_flow", family.teacher("edm"))
    assert isinstance(made, RectifiedFlow)
    save_student(tmp_path / "flow", made, {})
    noise, labels = family.noise_and_labels()
    samples = made.follow(noise, labels, 100, "fp32")
    np.savez(tmp_path / "samples.npz", samples=samples.numpy(), labels=labels.numpy())
    given = ("sample", "flow", "--out", "noise.npz", "--precision", "fp32", "--invert")
    said = done(*given, "samples.npz", "--steps", "100")
    found = np.load("noise.npz")
    np.testing.assert_allclose(found["noise"], noise.numpy(), atol=5e-3)
    assert found["labels"].tolist() == labels.tolist() and "5 noises of standard deviation" in said
    np.savez(tmp_path / "bare.npz", samples=samples.numpy())
    assert "has no labels" in kdm(*given, "bare.npz").stderr
    np.savez(tmp_path / "other.npz", samples=samples.numpy()[..., :4], labels=labels.numpy())
    assert "this student makes (1, 8, 8)" in kdm(*given, "other.npz").stderr
    save_student(tmp_path / "direct", family.student("direct", family.teacher("edm")), {})
    assert "use a rectified_flow" in kdm(
        "sample", "direct", "--out", "noise.npz", "--invert", "samples.npz").stderr
