"""The pipeline on latents: an autoencoder before the teacher, pictures wherever samples are shown.

Models are as good as untrained here; what counts is which samples go where.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

import kdm_core
from kdm_core.datasets import open_dataset
from kdm_core.decoders import decode_all, load_autoencoder
from kdm_core.errors import KDMError, MismatchError
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.store import PairStore
from kdm_core.sharing.export import export_student
from pipeline.kdm.cli import app
from pipeline.params.fitting import check_against
from pipeline.params.reading import ParamsError, read_values
from pipeline.params.run import load_params, parse_params
from pipeline.project.distil import parameters
from pipeline.runtime import paths
from tests.support.project import copy_project, edit, make_project, python, repro

TRAINING = {"steps": 20, "batch": 32, "lr": 0.001, "precision": "fp32"}
NETWORK = {"kind": "mlp", "width": 32, "blocks": 1}
RUNNER = CliRunner()


def of_latents(values: Any) -> None:
    """The smoke preset's digits, learned as latents of 4×4×4 values."""
    values["autoencoder"] = {
        "source": "train", "training": {**TRAINING, "steps": 60},
        "model": {"kind": "conv", "channels": 8, "multipliers": [1, 2], "latent_channels": 4}}
    values["teacher"]["model"]["network"] = NETWORK
    values["teacher"]["training"] = TRAINING
    values["pairs"].update(train=96, validation=32, test=64, sample_dtype="float16", states=2,
                           shard=96, chunk=32, batch=32, solver={"kind": "heun", "steps": 4})
    kdm = {"model": {"encoder": NETWORK, "decoder": NETWORK, "latent": 8,
                     "operator": {"kind": "dense"}}, "init": "random",
           "losses": {"adversarial": 0.0}, "training": TRAINING}
    hierarchical = {
        "model": {"kind": "hierarchical"}, "training": {**TRAINING, "steps": 10},
        "losses": {"endpoint": 0.5, "adversarial": 0.0},
        "then": [{"steps": 10, "lr": 0.001, "losses": {
            "adversarial": 0.1, "adversary": {
                "real": "data", "network": "features", "channels": 8,
                "features": [{"kind": "teacher", "level": 0.2}]}}}]}
    values["students"] = {"kdm": kdm, "hierarchical": hierarchical}
    values["evaluation"].update(timing_images=32, lpips_pairs=8, bootstrap=50)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of latents whose whole pipeline has run."""
    project = make_project(tmp_path_factory.mktemp("latents") / "project")
    edit(project, of_latents)
    done = python(project, "dvc", "repro")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return project


@pytest.fixture
def project(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copied = copy_project(run, tmp_path / "project")
    monkeypatch.chdir(copied)
    return copied


def test_models_learn_the_latents_of_the_data(project: Path) -> None:
    images, _ = open_dataset(paths.DATASET)
    latents, _ = open_dataset(paths.LATENTS)
    model, mark = load_autoencoder(paths.AUTOENCODER)
    spec = latents.info.samples
    assert (spec.kind, spec.shape, spec.decoder, spec.picture) == (
        "latent", [4, 4, 4], mark, [1, 8, 8])
    assert latents.train_samples.dtype == np.float16
    assert np.array_equal(latents.train_labels, images.train_labels)
    assert np.allclose(latents.train_samples.astype(np.float32).std((0, 2, 3)), 0.5, atol=0.01)
    with torch.inference_mode():
        again = model.encode(torch.from_numpy(images.test_samples / 127.5 - 1).float())
    assert np.allclose(again.numpy(), latents.test_samples, atol=2e-3)
    store = PairStore.open(paths.PAIRS)
    assert store.spec.samples == spec and store.spec.sample_dtype == "float16"
    student = kdm_core.from_pretrained(paths.STUDENTS / "kdm")
    assert student.spec == spec


def test_pictures_are_measured_and_errors_are_of_latents(project: Path) -> None:
    found = json.loads((paths.EVALUATION / "kdm/evaluation.json").read_text())
    model, _ = load_autoencoder(paths.AUTOENCODER)
    test = read_split(PairStore.open(paths.PAIRS), "test", torch.device("cpu"))
    student = kdm_core.from_pretrained(paths.STUDENTS / "kdm")
    made = student.generate(test.noise, test.labels, "fp32")
    mse = float((made - test.samples).square().mean())
    assert found["student"]["mse"]["value"] == pytest.approx(mse, rel=1e-2)
    assert found["conditions"]["mse_of"].startswith("latents")
    # Real images through the autoencoder stand beside them as they are.
    assert set(found["at_equal_n"].get("autoencoded", found["autoencoded"])) >= {"fd_classifier"}
    with np.load(paths.EVALUATION / "kdm/samples.npz") as kept:
        assert kept["noise"].shape[1:] == (4, 4, 4) and kept["student"].shape[1:] == (1, 8, 8)
        pictures = decode_all(model, test.samples[:64], torch.device("cpu"))
        assert np.abs(kept["teacher"] - pictures.numpy()).max() <= 1 / 127.5
    report = (project / "reports/report.html").read_text()
    assert "through the autoencoder" in report and "Squared errors are of" in report
    findings = {name: {one["name"] for one in json.loads(
        (paths.STUDIES / name / "findings.json").read_text())} for name in ("kdm", "hierarchical")}
    assert "memorisation" in findings["hierarchical"]  # it was shown the data
    assert "path" not in findings["hierarchical"]  # states are noisy latents


def test_a_student_carries_what_decodes_it(project: Path, tmp_path: Path) -> None:
    student = kdm_core.from_pretrained(paths.STUDENTS / "kdm")
    latents, pictures = student.sample(6, seed=1), student.sample(6, seed=1, decode=True)
    model, _ = load_autoencoder(paths.AUTOENCODER)
    assert latents.shape == (6, 4, 4, 4) and pictures.shape == (6, 1, 8, 8)
    with torch.inference_mode():
        assert torch.equal(pictures, model.decode(latents))
    assert not any(name.startswith("autoencoder") for name in student.state_dict())
    shared = tmp_path / "shared"
    student.save(shared)
    assert torch.equal(kdm_core.from_pretrained(shared).sample(6, seed=1, decode=True), pictures)
    card = (shared / "README.md").read_text()
    assert "decode=True)  # (64, 1, 8, 8) float32" in card and "latents of 4 × 4 × 4" in card
    assert "which its decoder of" in student.describe()


def test_a_decoder_of_others_is_refused(project: Path, tmp_path: Path) -> None:
    student = kdm_core.from_pretrained(paths.STUDENTS / "kdm")
    student.save(tmp_path / "bare")
    own = tmp_path / "bare/autoencoder/config.json"
    document = json.loads(own.read_text())
    weights = tmp_path / "bare/autoencoder/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(KDMError, match="were altered|do not belong together"):
        kdm_core.from_pretrained(tmp_path / "bare")
    assert document  # the configuration itself was left alone
    student.attach(None)
    student.save(tmp_path / "bare")
    found = kdm_core.from_pretrained(tmp_path / "bare")
    with pytest.raises(KDMError, match="came without the autoencoder"):
        found.sample(1, decode=True)


@pytest.mark.parametrize("decode", [False, True])
def test_exports_give_latents_or_pictures(decode: bool, project: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    student = kdm_core.from_pretrained(paths.STUDENTS / "kdm")
    made = export_student(student, tmp_path / "s.onnx", "onnx", "f", decode)
    assert made.deviation < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "s.onnx"))
    noise = np.random.default_rng(0).standard_normal((3, 4, 4, 4), dtype=np.float32)
    given = {"noise": noise, "labels": np.arange(3)}
    [samples] = session.run(["samples"], given)
    assert samples.shape == ((3, 1, 8, 8) if decode else (3, 4, 4, 4))
    assert session.get_modelmeta().custom_metadata_map["kind"] == ("image" if decode else "latent")


def test_commands_show_pictures(project: Path, tmp_path: Path) -> None:
    def succeeds(*arguments: str) -> str:
        done = RUNNER.invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    kdm = str(paths.STUDENTS / "kdm")
    succeeds("sample", kdm, "--out", str(tmp_path / "s.png"), "--n", "4")
    assert is_of_digits(tmp_path / "s.png")
    succeeds("sample", kdm, "--out", str(tmp_path / "s.npz"), "--n", "4", "--no-decode")
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["samples"].shape == (4, 4, 4, 4)
    refused = RUNNER.invoke(app, ["teacher", "sample", str(paths.TEACHER), "--out",
                                  str(tmp_path / "t.png")])
    assert refused.exit_code == 1 and "--autoencoder: this teacher makes latents" in refused.output
    succeeds("teacher", "sample", str(paths.TEACHER), "--out", str(tmp_path / "t.png"),
             "--autoencoder", str(paths.AUTOENCODER), "--n", "4", "--steps", "2")
    assert is_of_digits(tmp_path / "t.png")


def test_a_page_to_touch_shows_pictures(project: Path) -> None:
    pytest.importorskip("gradio")
    from pipeline.play.drawing import Wish, draw_student, draw_teacher
    from pipeline.play.finding import PlayError, find_players, require_pictures

    player, _ = find_players([], torch.device("cpu"))
    model, _ = load_autoencoder(paths.AUTOENCODER)
    drawn = draw_student(player, Wish(n=3, seed=1))
    with torch.inference_mode():
        assert torch.equal(drawn.images, model.decode(player.student.sample(
            3, seed=1, precision=player.precision)))
    assert draw_teacher(player, Wish(n=2)).images.shape == (2, 1, 8, 8)
    player.student.attach(None)
    with pytest.raises(PlayError, match="came without their decoder"):
        require_pictures("kdm", player.student)


def test_one_command_distils_latents(project: Path) -> None:
    """Whose decoder it cannot know: it asks for nothing of pictures."""
    spec = PairStore.open(paths.PAIRS).spec
    params = parse_params(YAML(typ="safe").load(parameters("pairs.zarr", spec, 10)))
    assert params.evaluation.extractors == [] and params.reference.classifier is None
    check_against(params, spec.samples)


def is_of_digits(path: Path) -> bool:
    """Whether a picture shows gray images of 8×8 pixels, and not the channels of latents."""
    with Image.open(path) as picture:
        values = np.asarray(picture.convert("RGB"))
    return min(values.shape[:2]) >= 16 and bool((values[..., :1] == values).all())


def latents_alone(values: Any) -> None:
    """Pairs of latents, without data and teacher."""
    values["data"] = {"source": "none"}
    values["teacher"] = {"source": "none"}
    values["pairs"] = {"source": "store", "location": "given.zarr"}
    values["reference"] = {"classifier": None}
    values["evaluation"].update(extractors=[{"kind": "vgg16", "resolution": 32}],
                                reference="test")
    values["students"] = {"kdm": values["students"]["kdm"]}


@pytest.mark.parametrize("decoded", [True, False])
def test_pairs_alone(decoded: bool, project: Path) -> None:
    """With the autoencoder pictures are measured; without, the error of latents alone."""
    (project / "given.zarr").symlink_to(Path(paths.PAIRS).resolve())
    location = Path(paths.PAIRS).resolve().rename(project / "moved.zarr")
    (project / "given.zarr").unlink()
    (project / "given.zarr").symlink_to(location)
    paths.AUTOENCODER.resolve().rename(project / "own")

    def change(values: Any) -> None:
        latents_alone(values)
        values.pop("autoencoder")
        if decoded:
            values["autoencoder"] = {"source": "folder", "folder": "own"}

    edit(project, change)
    repro(project)
    found = json.loads((paths.EVALUATION / "kdm/evaluation.json").read_text())
    report = (project / "reports/report.html").read_text()
    assert found["student"]["mse"]["value"] > 0
    assert ("fd_vgg16" in found["student"]) is decoded
    assert any("nothing makes pictures of these latents" in line
               for line in found["absent"]) is not decoded
    assert ('class="first"' in report) is decoded


@pytest.mark.parametrize(("path", "value", "text"), [
    ("pairs.sample_dtype", "uint8", "latents need float16"),
    ("students.kdm.losses.distance", {"kind": "lpips"}, "gradients do not pass through a decoder"),
    ("filter.saturated", 0.5, "latents have no ends of a range"),
])
def test_what_does_not_go_with_latents(path: str, value: Any, text: str, run: Path) -> None:
    values = read_values(run / "params.yaml")
    *inner, last = path.split(".")
    place = values
    for name in inner:
        place = place[name]
    place[last] = value
    with pytest.raises(ParamsError, match=text):
        parse_params(values)


def test_images_that_cannot_be_halved(project: Path) -> None:
    edit(project, lambda values: values["autoencoder"]["model"].update(multipliers=[1, 1, 1, 1, 1]))
    done = python(project, "stages.prepare_data")
    assert done.returncode == 1
    assert "autoencoder.model.multipliers" in done.stderr and "divisible by 16" in done.stderr


def test_pairs_of_another_autoencoder(project: Path) -> None:
    from pipeline.runtime.latents import Pictures

    spec = PairStore.open(paths.PAIRS).spec.samples.model_copy(update={"decoder": "0" * 64})
    with pytest.raises(MismatchError, match="of the decoder 000000000000"):
        Pictures(load_params(), spec, torch.device("cpu"))


@pytest.mark.parametrize(("change", "text"), [
    (lambda saved: saved["autoencoder"].update(channels=10**9), "does not fit"),
    (lambda saved: saved["autoencoder"].update(kind="pickle"), "describes no autoencoder"),
    (lambda saved: saved["autoencoder"].update(latent_channels=8), "another architecture"),
    (lambda saved: saved.update(picture=[1, 7, 7]), "divisible by 2"),
])
def test_hostile_autoencoders_are_refused_before_they_are_built(
    change: Any, text: str, project: Path, tmp_path: Path
) -> None:
    kdm_core.from_pretrained(paths.STUDENTS / "kdm").save(tmp_path / "shared")
    path = tmp_path / "shared/autoencoder/config.json"
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(KDMError, match=text):
        kdm_core.from_pretrained(tmp_path / "shared")
