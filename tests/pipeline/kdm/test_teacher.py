"""`kdm teacher import|info|sample`."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from kdm_core.compute import seeded
from kdm_core.networks import MLPConfig, SongUNetConfig, build_network
from kdm_core.samples import SampleSpec
from kdm_core.solvers.grids import TimestepGrid
from kdm_core.teachers import (
    Denoiser,
    FlowMatching,
    FlowMatchingConfig,
    load_teacher,
    save_teacher,
)
from pipeline.kdm.cli import app
from tests.support.edm_writer import edm_pickle, record, snapshot
from tests.support.teachers import PLANE, discrete

SONG = SongUNetConfig(kind="song_unet", channels=16, multipliers=[1, 2], blocks=1, attention=[4])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kdm(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["teacher", *arguments])


def test_import_look_and_sample_an_edm_pickle(folder: Path) -> None:
    shape = (3, 8, 8)
    with seeded(0):
        network = build_network(SONG, shape, shape, timed=True, num_classes=2).eval()
    Path("plain.pkl").write_bytes(edm_pickle(network, shape, classes=2))
    assert kdm("import", "plain.pkl", "--kind", "edm", "--out", "plain").exit_code == 0
    refused = kdm("sample", "plain", "--n", "4", "--out", "grid.png", "--guidance", "2")
    assert refused.exit_code == 1
    assert "--guidance" in refused.stderr and "label_dropout 0" in refused.stderr
    assert kdm("sample", "plain", "--n", "4", "--steps", "1", "--out", "a.png").exit_code == 0
    top = record(network, shape, classes=2)
    top["model"].kwargs["label_dropout"] = 0.1
    Path("net.pkl").write_bytes(snapshot(top))
    made = kdm("import", "net.pkl", "--kind", "edm", "--out", "mine")
    assert made.exit_code == 0, made.output
    assert "denoiser of a song_unet" in made.stdout
    assert "image of shape (3, 8, 8), 2 labels" in made.stdout
    shown = kdm("info", "mine")
    assert shown.stdout.startswith(made.stdout.split(": ", 1)[1])
    assert "preconditioning:" in shown.stdout
    again = kdm("import", "net.pkl", "--kind", "edm", "--out", "mine")
    assert again.exit_code == 1
    assert "mine exists already" in again.stderr
    drawn = kdm("sample", "mine", "--n", "4", "--out", "grid.png", "--steps", "3",
                "--guidance", "2")
    assert drawn.exit_code == 0, drawn.output
    assert "4 samples, 10 evaluations each" in drawn.stdout
    with Image.open("grid.png") as picture:
        assert picture.size == (2 * 96 + 2, 2 * 96 + 2)  # two rows of two, twelve times as large


def test_classes_are_named_and_called_by_name(folder: Path) -> None:
    shape = (3, 8, 8)
    with seeded(0):
        network = build_network(SONG, shape, shape, timed=True, num_classes=2).eval()
        for parameter in network.parameters():  # some are zero at first
            parameter.data += 0.1 * torch.randn_like(parameter)
    Path("net.pkl").write_bytes(edm_pickle(network, shape, classes=2))
    made = kdm("import", "net.pkl", "--kind", "edm", "--out", "mine", "--labels", "cat,dog")
    assert made.exit_code == 0 and "2 labels [cat, dog]" in made.stdout
    for labels, out in (("dog,cat", "names.png"), ("1,0", "numbers.png"), ("cat", "cats.png")):
        drawn = kdm("sample", "mine", "--n", "2", "--out", out, "--steps", "2", "--labels", labels)
        assert drawn.exit_code == 0, drawn.output
    pictures = [Path(f"{name}.png").read_bytes() for name in ("names", "numbers", "cats")]
    assert pictures[0] == pictures[1] != pictures[2]
    refused = kdm("sample", "mine", "--n", "2", "--out", "x.png", "--labels", "dig")
    assert refused.exit_code == 1 and "near are dog" in refused.stderr
    refused = kdm("import", "net.pkl", "--kind", "edm", "--out", "x", "--labels", "a,b,c")
    assert refused.exit_code == 1 and "3 names, and the model takes 2" in refused.stderr


def test_what_the_file_does_not_say_is_given(folder: Path) -> None:
    with seeded(0):
        network = build_network(MLPConfig(kind="mlp", width=16, blocks=1), (2,), (2,), timed=True)
    save_file(network.state_dict(), "points.safetensors")
    block = "model={kind: flow_matching, network: {kind: mlp, width: 16, blocks: 1}}"
    made = kdm("import", "points.safetensors", "--kind", "state-dict", "--out", "mine",
               "--set", block, "--shape", "2", "--sigma-data", "2.5")
    assert made.exit_code == 0, made.output
    teacher, _ = load_teacher(Path("mine"))
    assert teacher.spec == SampleSpec(kind="points", shape=[2], sigma_data=2.5)
    assert torch.equal(teacher.state_dict()["network.enter.weight"], network.enter.weight)
    assert kdm("sample", "mine", "--n", "50", "--out", "cloud.png", "--solver", "dopri5",
               "--steps", "2").exit_code == 0


@pytest.mark.parametrize(("arguments", "saying"), [
    ([__file__, "--kind", "edm"], "test_teacher.py is no pickle of a network"),
    (["missing.pkl", "--kind", "edm"], "error: missing.pkl does not exist"),
    (["x", "--kind", "state-dict", "--set", "model"], "--set: 'model' is not KEY=VALUE"),
    (["x", "--kind", "state-dict"], "model: is missing\n"),
    (["x", "--kind", "edm", "--set", "kye=ema"], "kye: unknown key; did you mean key?"),
    (["x", "--kind", "edm", "--shape", "3,x"], "--shape: '3,x' is no list of sizes"),
    (["mine:build", "--kind", "module", "--shape", "1,8,8", "--set", "model={kind: flow_matching}"],
     "trust_code"),
])
def test_what_is_wrong_is_one_message(arguments: list[str], saying: str) -> None:
    result = kdm("import", *arguments, "--out", "mine")
    assert result.exit_code == 1
    assert saying in result.stderr
    assert not Path("mine").exists()


def test_a_folder_that_names_code_needs_trust(folder: Path) -> None:
    Path("trusted_net.py").write_text(
        "open('ran', 'w')\nfrom torch import nn\nclass Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 2)\n"
        "    def forward(self, x, time): return super().forward(x)\n")
    made = kdm("import", "trusted_net:Net", "--kind", "module", "--shape", "2",
               "--out", "mine-saved", "--set", "model={kind: flow_matching}",
               "--set", "trust_code=true")
    assert made.exit_code == 0, made.output
    Path("ran").unlink()
    refused = kdm("info", "mine-saved")
    assert refused.exit_code == 1
    assert "--trust-code: trusted_net:Net is code that this would run" in refused.stderr
    assert "teacher." not in refused.stderr
    assert not Path("ran").exists()
    assert kdm("info", "mine-saved", "--trust-code").exit_code == 0
    drawing = ["sample", "mine-saved", "--out", "a.png"]
    assert "--trust-code: " in kdm(*drawing).stderr
    assert kdm(*drawing, "--trust-code").exit_code == 0


def test_altered_weights_are_refused(folder: Path) -> None:
    spec = SampleSpec(kind="points", shape=[2])
    save_teacher(Path("mine"), FlowMatching(FlowMatchingConfig(
        kind="flow_matching", network=MLPConfig(kind="mlp", width=8, blocks=1)), spec))
    other = Path("mine/config.json")
    other.write_text(other.read_text().replace('"width": 8', '"width": 16'))
    result = kdm("info", "mine")
    assert result.exit_code == 1
    assert "do not belong together" in result.stderr


@pytest.mark.parametrize(("arguments", "saying"), [
    (["--device", "gpu"], "--device: 'gpu' is no device"),
    (["--steps", "2000"], "--steps: 2000 steps with offset 0 leave the teacher's 1000"),
    (["--solver", "dopri5"], "--solver: the teacher's velocity is not finite"),
    (["--guidance", "2"], "--guidance: classifier_free needs a teacher that takes labels; use"),
])
def test_what_cannot_be_sampled_names_the_flags_of_the_command(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], saying: str
) -> None:
    """And no key of a params.yaml that the command does not read."""
    grid = TimestepGrid(kind="timesteps")
    teacher = discrete()
    save_teacher(Path("mine"), Denoiser(teacher.config.model_copy(update={"grid": grid}), PLANE))
    if "dopri5" in arguments:
        monkeypatch.setattr(Denoiser, "velocity", lambda self, x, time, labels: x / 0)
    refused = kdm("sample", "mine", "--out", "a.png", *arguments)
    assert refused.exit_code == 1
    assert saying in refused.stderr
    assert not re.search(r"\b(pairs|teacher|compute)\.[a-z]", refused.stderr), refused.stderr


def test_guidance_that_is_refused_has_ways_out_of_this_command(folder: Path) -> None:
    shape = (3, 8, 8)
    with seeded(0):
        network = build_network(SONG, shape, shape, timed=True, num_classes=2).eval()
    Path("net.pkl").write_bytes(edm_pickle(network, shape, classes=2))
    kdm("import", "net.pkl", "--kind", "edm", "--out", "mine")
    refused = kdm("sample", "mine", "--out", "a.png", "--guidance", "2")
    assert refused.exit_code == 1 and "Sample it without guidance" in refused.stderr
    assert "autoguidance" not in refused.stderr


def test_a_command_that_imports_a_module_says_how_to_trust_it(folder: Path) -> None:
    refused = kdm("import", "mine:Net", "--kind", "module", "--shape", "2", "--out", "saved",
                  "--set", "model={kind: flow_matching}")
    assert "(--set KEY=VALUE) cannot be used:\n  trust_code: " in refused.stderr
    assert "set this to true" in refused.stderr


def test_steps_that_are_left_out_are_said_once(folder: Path) -> None:
    save_teacher(Path("mine"), discrete())
    drawn = kdm("sample", "mine", "--out", "a.png", "--solver", "dpmpp_2m", "--steps", "100")
    assert drawn.exit_code == 0, drawn.output
    assert "98 evaluations each" in drawn.stdout
    assert drawn.stderr.count("note: ") == 1
    assert "of the 100 steps of the grid karras, 2 begin and end at the same" in drawn.stderr
