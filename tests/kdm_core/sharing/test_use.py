"""Students as folders and on the hub: saving, loading, sampling, and what is refused."""

import base64
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kdm_core
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.networks import NetworkConfig, UNetConfig
from kdm_core.noise import draw
from kdm_core.operators import DenseConfig, FactorisedConfig, OperatorConfig
from kdm_core.pairs.spec import StoreSpec
from kdm_core.samples import SampleSpec
from kdm_core.serialization import fingerprint
from kdm_core.sharing.card import model_card
from kdm_core.sharing.folder import load_student, save_student
from kdm_core.solvers import FixedSolver
from kdm_core.students.direct import Direct
from tests.support.hub import COMMIT, HubHandler, serving
from tests.support.project import ROOT
from tests.support.students import EVALUATION, IMAGES, MLP, POINTS, PROVENANCE, figure, make_student

UNET = UNetConfig(kind="unet", channels=8, multipliers=[1, 2], blocks=1, attention=[4])
@pytest.mark.parametrize(("network", "operator", "spec", "encoders"), [
    (MLP, DenseConfig(kind="dense"), IMAGES, "separate"),
    (UNET, FactorisedConfig(kind="factorised"), IMAGES, "shared"),
    (MLP, FactorisedConfig(kind="factorised"), POINTS, "noise"),
])
def test_a_student_survives_its_folder_bit_for_bit(
    tmp_path: Path, network: NetworkConfig, operator: OperatorConfig, spec: SampleSpec,
    encoders: str,
) -> None:
    student = make_student(network, operator, spec, encoders=encoders)
    student.provenance = PROVENANCE
    mark = kdm_core.save_pretrained(student, tmp_path / "new" / "folder")
    state = torch.get_rng_state()
    loaded = kdm_core.from_pretrained(tmp_path / "new" / "folder")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loaded.sample(9, seed=3), student.sample(9, seed=3))
    assert loaded.provenance == PROVENANCE and not loaded.training
    assert kdm_core.save_pretrained(loaded, tmp_path / "again") == mark
    for name in ("config.json", "weights.safetensors", "README.md"):
        assert ((tmp_path / "again" / name).read_bytes()
                == (tmp_path / "new" / "folder" / name).read_bytes())
    assert {file.name for file in (tmp_path / "again").iterdir()} == {
        "config.json", "weights.safetensors", "README.md"}


def test_the_folder_of_a_run_is_one(tmp_path: Path) -> None:
    student = make_student()
    mark = save_student(tmp_path, student, PROVENANCE)
    loaded = kdm_core.from_pretrained(str(tmp_path))
    assert torch.equal(loaded.sample(4), student.sample(4))
    assert loaded.provenance == PROVENANCE
    again, found = load_student(tmp_path)
    assert found == mark and again.provenance == PROVENANCE


def test_saving_again_replaces_the_older_student(tmp_path: Path) -> None:
    kdm_core.save_pretrained(make_student(), tmp_path)
    other = make_student(UNET)
    kdm_core.save_pretrained(other, tmp_path, card="mine\n")
    assert torch.equal(kdm_core.from_pretrained(tmp_path).sample(3), other.sample(3))
    assert (tmp_path / "README.md").read_text() == "mine\n"


@pytest.mark.parametrize("network", [MLP, UNET])
def test_samples_do_not_depend_on_the_batch(network: NetworkConfig) -> None:
    student = make_student(network)
    whole = student.sample(64, seed=0, precision="fp32")
    assert whole.shape == (64, 1, 8, 8) and whole.dtype == torch.float32
    for batch in (1, 7, 64):
        parts = student.sample(64, seed=0, precision="fp32", batch=batch)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(student.sample(5, precision="fp32"), whole[:5], rtol=0, atol=1e-5)
    assert not torch.equal(student.sample(64, seed=1, precision="fp32"), whole)


def test_the_noise_of_samples_is_that_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(student, "generate", lambda noise, labels, *_: (
        seen.append((noise, labels)), noise)[1])
    for batch in (3, 10):
        seen.clear()
        student.sample(10, seed=5, batch=batch)
        noise, labels = draw(5, range(10), (1, 8, 8), "float32", 3)
        assert torch.cat([x for x, _ in seen]).numpy().tobytes() == noise.tobytes()
        assert np.array_equal(torch.cat([y for _, y in seen]), labels)


def test_labels_are_heeded() -> None:
    student = make_student()
    ones = student.sample(4, labels=[1] * 4)
    assert torch.equal(ones, student.sample(4, labels=torch.ones(4, dtype=torch.int64)))
    assert not torch.allclose(ones, student.sample(4, labels=[2] * 4), atol=1e-3)


@pytest.mark.parametrize(("options", "saying"), [
    ({"n": 0}, "n ≥ 1"), ({"n": -3}, "n ≥ 1"), ({"n": 2, "seed": -1}, "seed ≥ 0"),
    ({"n": 4, "labels": [0, 1]}, r"labels: \(2,\) were given for 4 samples"),
    ({"n": 2, "labels": [0, 3]}, "labels: this student's are 0 to 2, found 0 to 3"),
    ({"n": 1, "labels": [-1]}, "labels: this student's are 0 to 2"),
])
def test_samples_that_cannot_be_made(options: dict[str, Any], saying: str) -> None:
    with pytest.raises(KDMError, match=saying):
        make_student().sample(**options)


def test_labels_for_a_student_that_takes_none() -> None:
    with pytest.raises(KDMError, match="labels: this student takes none"):
        make_student(spec=POINTS).sample(2, labels=[0, 0])


@pytest.mark.parametrize(("noise", "saying"), [
    (torch.zeros(2), r"\(2,\) was given; this student takes a tensor of the shape \(B, 2\)"),
    (torch.zeros(3, 5), r"\(3, 5\) was given"),
    (np.zeros((3, 2), np.float32), "ndarray was given"),
])
def test_noise_that_is_none(noise: Any, saying: str) -> None:
    with pytest.raises(KDMError, match=f"noise: {saying}"):
        make_student(spec=POINTS).generate(noise)


# Folders that hold something else


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kdm_core.save_pretrained(make_student(), tmp_path / "student")
    return tmp_path / "student"


def rewrite(folder: Path, change: Any) -> None:
    """Change the configuration, and sign it as a forger would."""
    content = json.loads((folder / "config.json").read_text())
    change(content)
    content.pop("fingerprint", None)
    weights = load_file(folder / "weights.safetensors")
    mark = fingerprint(content, weights)
    save_file(weights, folder / "weights.safetensors", {"fingerprint": mark})
    (folder / "config.json").write_text(json.dumps(content | {"fingerprint": mark}))


def put(path: str, value: Any) -> Any:
    """A change that puts a value at a place such as student.latent."""
    *parents, last = path.split(".")

    def change(content: Any) -> None:
        for name in parents:
            content = content[name]
        content[last] = value

    return change


@pytest.mark.parametrize(("path", "value", "saying"), [
    ("student.latent", 32, r"another architecture.*: .*operator \(operator\.bias is \(64,\) but "
                           r"should be \(32,\)\)"),
    ("student.encoder.width", 32, r"another architecture.*: encoder \(.*\) but should be"),
    ("student.decoder.blocks", 1, r"decoder \(decoder\.network\.blocks\.1.* should be absent\)"),
    ("student.operator", {"kind": "factorised"}, r"operator \(operator\.bias .*absent"),
    ("student.encoders", "noise", r"encoder \(data_encoder.* should be absent"),
    ("student.timed", True, "timed .time_of_ends is absent"),
    ("student.control", False, r"control \(control\.weight"),
    ("samples.shape", [1, 4, 4], r"encoder \(.*decoder \("),
    ("samples.shape", [1, 10**12, 10**12], "shape 1000000000000 does not fit"),
    ("student.decoder.blocks", 10**9, "blocks 1000000000 does not fit"),
    ("student.latent", 10**15, "latent 1000000000000000 does not fit"),
    ("student.encoder.kind", "module", r"student\.encoder.*'module'"),
    ("student.encoder.kid", 3, r"student\.encoder\.mlp\.kid: Extra inputs"),
    ("student.latent", "64", r"student\.latent: Input should be a valid integer"),
    ("student", [], r"student: Input should be a valid dict"),
    ("samples.sigma_data", -1, r"samples\.sigma_data"),
    ("provenance", "me", "provenance: is no object"),
    ("teacher", {}, "is not the configuration of a student"),
    ("provenance", {"x": "y" * 2**20}, "bytes, which no student's has"),
])
def test_forged_configurations(folder: Path, path: str, value: Any, saying: str) -> None:
    rewrite(folder, put(path, value))
    with pytest.raises((DataError, MismatchError), match=saying):
        kdm_core.from_pretrained(folder)


def test_a_network_that_cannot_be(folder: Path) -> None:
    rewrite(folder, put("student.decoder", UNET.model_dump() | {"multipliers": [1, 1, 1, 1, 1]}))
    with pytest.raises(DataError, match=r"config\.json: .*levels need a height and width"):
        kdm_core.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"{", b"\xff\xfe", b"null"])
def test_configurations_that_are_none(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(DataError, match=r"config\.json"):
        kdm_core.from_pretrained(folder)


def test_a_file_that_is_missing(folder: Path, tmp_path: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(DataError, match=r"weights\.safetensors is missing"):
        kdm_core.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        kdm_core.from_pretrained(folder)
    for source in (tmp_path / "nowhere", "./nowhere", "nowhere", "a/b/c"):
        with pytest.raises(DataError, match=r"student: .*nowhere|a/b/c is no folder"):
            kdm_core.from_pretrained(source)


def test_weights_that_are_damaged(folder: Path) -> None:
    file = folder / "weights.safetensors"
    content = file.read_bytes()
    for cut in (0, 5, 8, 100, len(content) - 1):
        file.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"weights\.safetensors is damaged"):
            kdm_core.from_pretrained(folder)
    for header in (b"{}", b"[1]", b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'):
        file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
        with pytest.raises((DataError, MismatchError), match=r"weights\.safetensors"):
            kdm_core.from_pretrained(folder)
    file.write_bytes(struct.pack("<Q", 2**62) + content[8:])
    with pytest.raises(DataError, match=r"weights\.safetensors is damaged"):
        kdm_core.from_pretrained(folder)


def test_a_pickle_is_not_opened(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"weights\.safetensors is missing"):
        kdm_core.from_pretrained(folder)


def test_altered_weights(folder: Path) -> None:
    weights = load_file(folder / "weights.safetensors")
    weights["operator.matrix"][0, 0] += 1
    mark = json.loads((folder / "config.json").read_text())["fingerprint"]
    save_file(weights, folder / "weights.safetensors", {"fingerprint": mark})
    with pytest.raises(MismatchError, match="do not belong together or were altered"):
        kdm_core.from_pretrained(folder)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((DataError, OSError)):
        kdm_core.save_pretrained(make_student(), tmp_path / "file")


# The hub


class Hub(HubHandler):
    """Takes uploads, too."""

    asked: list[tuple[str, Any]] = []

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).decode().splitlines()
        path = self.path.split("?")[0]
        self.asked.append((path, json.loads(lines[0])))
        if path == "/api/repos/create":
            return self.reply({"url": f"http://{self.headers['Host']}/someone/model",
                               "id": "someone/model", "name": "someone/model"})
        if path.startswith("/api/models/someone/model/preupload/"):
            return self.reply({"files": [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(lines[0])["files"]]})
        if path.startswith("/api/models/someone/model/commit/"):
            for line in map(json.loads, lines[1:]):
                Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.reply({"success": True, "commitOid": COMMIT,
                               "commitUrl": f"http://{self.headers['Host']}/someone/model/commit/"
                                            f"{COMMIT}",
                               "hookOutput": ""})
        return self.reply({})

    def reply(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def ask(address: str, home: Path, script: str) -> list[str]:
    """What a script prints in a Python for which the hub is at `address`.

    Another process, since huggingface_hub reads the address when it is imported.
    """
    environment = os.environ | {
        "HF_ENDPOINT": f"http://{address}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_student_goes_to_the_hub_and_comes_back(tmp_path: Path) -> None:
    student = make_student()
    student.provenance = PROVENANCE
    kdm_core.save_pretrained(student, tmp_path / "here")
    Hub.files, Hub.asked = {}, []
    with serving(Hub) as address:
        printed = ask(address, tmp_path / "home", f"""
import kdm_core
from kdm_core.errors import KDMError
student = kdm_core.from_pretrained({str(tmp_path / 'here')!r})
print(kdm_core.push_to_hub(student, 'someone/model', private=True, message='first'))
loaded = kdm_core.from_pretrained('someone/model', revision='v2')
kdm_core.save_pretrained(loaded, {str(tmp_path / 'back')!r})
try:
    kdm_core.from_pretrained('someone/else')
except KDMError as error:
    print('refused:', error)
try:
    kdm_core.push_to_hub(student, 'no such/name')
except KDMError as error:
    print('refused:', error)
""")
    assert printed[0].endswith(f"/commit/{COMMIT}")
    assert [line.split(":")[0] for line in printed[1:]] == ["refused"] * 2
    assert "someone/else is no folder here and could not be fetched" in printed[1]
    assert "no such/name could not be pushed" in printed[2]
    assert set(Hub.files) == {"config.json", "weights.safetensors", "README.md"}
    created = next(body for path, body in Hub.asked if path == "/api/repos/create")
    assert created["name"] == "model" and created["visibility"] == "private"
    commit = next(body for path, body in Hub.asked if "/commit/main" in path)
    assert commit["value"]["summary"] == "first"
    back = kdm_core.from_pretrained(tmp_path / "back")
    assert torch.equal(back.sample(5), student.sample(5))
    assert back.provenance == PROVENANCE


# Model cards


def test_a_card_says_what_is_known_and_no_more() -> None:
    from ruamel.yaml import YAML

    student = make_student()
    student.provenance = PROVENANCE
    bare = model_card(student, "f" * 64)
    assert "license" not in bare and "Evaluation" not in bare and "Limitations" not in bare
    _, head, body = bare.split("---\n", 2)
    assert YAML(typ="safe").load(head) == {
        "library_name": "kdm-distill", "pipeline_tag": "unconditional-image-generation",
        "tags": ["koopman-distillation", "one-step-generation", "diffusion-distillation"]}
    assert "f" * 64 in body and "t" * 64 in body and "labels: a, b, c" in body
    full = model_card(student, "f" * 64, evaluation=EVALUATION, name="me/digits",
                      license="apache-2.0")
    assert YAML(typ="safe").load(full.split("---\n")[1])["license"] == "apache-2.0"
    assert "| fd\\_classifier | 0.2 (0.19 to 0.21) | 0.3 (0.28 to 0.32) |" in full
    assert "| parameters | 4,800,064 | 1 |" in full
    assert "| mse |  | 0.01 |" in full and "- n: 5000" in full
    assert "fd\\_classifier, a distance, is 1.50 times its teacher's" in full
    assert "5,000 samples are fewer" in full
    assert "2.0 % of that of samples of different noise" in full and "In 1.0 % of cases" in full


def test_a_card_marks_what_flatters() -> None:
    def card(**seen: dict[str, list[str]]) -> str:
        return model_card(make_student(), "f" * 64, evaluation=EVALUATION | {"seen": seen})

    assert "†" not in card() and "‡" not in card(network={}, images={})
    both = card(network={"label_agreement": ["adversary"]}, images={"fd_classifier": ["drifting"]})
    assert "| fd\\_classifier | 0.2 (0.19 to 0.21) | 0.3 (0.28 to 0.32) ‡ |" in both
    assert "| label\\_agreement |  | 0.99 † |" in both and "| mse |  | 0.01 |" in both
    assert "\n\n† Its loss has seen this network, which flatters it.\n" in both
    assert "\n\n‡ Its loss took as real the images" in both


def test_a_card_of_samples_that_are_all_alike_has_no_share_of_nothing() -> None:
    alike = EVALUATION["student"] | {"mse": figure(0.0), "mse_permuted": figure(0.0)}
    card = model_card(make_student(), "f" * 64, evaluation=EVALUATION | {"student": alike})
    assert "| mse\\_permuted |  | 0 |" in card and "of different noise" not in card


VERDICT = {"word": "failed", "why": ["its MSE is 100.0 % of that of permuted pairs"],
           "unknown": ["its recall, for want of features"]}


def test_a_card_opens_with_the_verdict() -> None:
    student = make_student()
    card = model_card(student, "f" * 64, evaluation=EVALUATION | {"verdicts": {"student": VERDICT}})
    opening = card[card.index("# One-step student"):card.index("## Use")]
    assert opening.index("**Verdict: failed**") < opening.index("A one-step student")
    assert "- its MSE is 100.0 % of that of permuted pairs" in opening
    assert "- could not be judged: its recall, for want of features" in opening
    assert "Verdict" not in model_card(student, "f" * 64, evaluation=EVALUATION)


def test_a_card_of_pairs_of_unknown_origin_tells_nothing_of_a_teacher() -> None:
    student = make_student()
    student.provenance = {**PROVENANCE, "teacher": None}
    spec = StoreSpec(
        samples=IMAGES, teacher=None, noise_seed=None, noise_dtype="float16", noise_scale=80.0,
        sample_dtype="uint8", solver=FixedSolver(kind="heun", steps=18), times=[], nfe=None,
        compute_batch=4, precision="fp32", splits={"test": 2, "validation": 2, "train": 4321},
        chunk=4, shard=8)
    evaluation = {key: value for key, value in EVALUATION.items() if key != "teacher"} | {
        "pairs": {"fd_classifier": figure(0.2), "on_support": figure(0.9)}, "ratios": {},
        "student": EVALUATION["student"] | {"on_support": figure(0.8)},
        "absent": ["nobody wrote down who made these pairs"]}
    card = model_card(student, "f" * 64, spec, evaluation)
    assert re.findall("[^\n]*eacher[^\n]*", card) == ["- teacher: unknown"]
    assert "heun" not in card and "adaptive" not in card and "4,321" in card
    assert "distilled from pairs of noise and samples of which nobody wrote down" in card
    assert "| | stored pairs | student |" in card and "(stored pairs: 10.0 %)" in card
    assert "- nobody wrote down who made these pairs" in card


@pytest.mark.parametrize("kind", ["image", "points"])
@pytest.mark.parametrize("names", [[], ["one", "two"], ["a`b", "c"]], ids=str)
def test_the_code_of_a_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["image", "points"],
    names: list[str],
) -> None:
    """As it stands, block by block: from the folder to samples of an ONNX runtime."""
    monkeypatch.chdir(tmp_path)
    shape = [3, 4, 4] if kind == "image" else [5]
    # Of a large deviation, so that some values of images have to be cut.
    student = make_student(spec=SampleSpec(kind=kind, shape=shape, label_names=names,
                                           sigma_data=3.0))
    kdm_core.save_pretrained(student, "path/to/this/folder")
    card = Path("path/to/this/folder/README.md").read_text()
    found: dict[str, Any] = {}
    blocks = re.findall("```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 3
    exec(blocks[0], found)
    labels = 0 if names else None
    assert torch.equal(found["samples"], student.sample(64, labels=labels))
    assert f"{tuple(found['samples'].shape)} float32" in blocks[0]
    for block in blocks[1:]:
        exec(block, found)
    noise, samples = found["noise"], found["samples"]
    assert samples.shape == noise.shape == (16, *shape) and samples.dtype == np.float32
    given = torch.arange(16) % len(names) if names else None
    made = student.generate(torch.from_numpy(noise), given, "fp32")
    expected = made.clamp(-1, 1) if kind == "image" else made
    assert not torch.equal(made, made.clamp(-1, 1))
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-4)
    assert "values from -1 to 1" in card if kind == "image" else "values of any size" in card
    if kind == "image":
        assert found["pixels"].dtype == np.uint8 and found["pixels"].max() == 255


def test_a_verdict_stays_with_a_student(tmp_path: Path) -> None:
    student = make_student()
    mark = kdm_core.save_pretrained(student, tmp_path / "before")
    student.verdict = VERDICT
    assert kdm_core.save_pretrained(student, tmp_path / "after") == mark
    loaded = kdm_core.from_pretrained(tmp_path / "after")
    assert loaded.verdict == VERDICT
    assert "**Verdict: failed**" in (tmp_path / "after/README.md").read_text()
    assert "verdict: failed\n  its MSE is 100.0 %" in loaded.describe()
    assert "verdict" not in kdm_core.from_pretrained(tmp_path / "before").describe()
    rewritten = json.loads((tmp_path / "after/config.json").read_text())
    rewritten["remarks"]["verdict"]["word"] = 5
    (tmp_path / "after/config.json").write_text(json.dumps(rewritten))
    with pytest.raises(DataError, match=r"remarks\.verdict\.word"):
        kdm_core.from_pretrained(tmp_path / "after")


def test_what_a_student_says_of_itself() -> None:
    student = make_student(operator=FactorisedConfig(kind="factorised"), encoders="shared")
    lines = student.describe().splitlines()
    assert lines[0].startswith("KDM: factorised Koopman operator on 64 dimensions, eigenvalues of")
    assert lines[1] == "makes image samples of shape (1, 8, 8) in 1 evaluation, or in more steps"
    assert lines[2:] == ["3 classes: [a, b, c]",
                         f"{sum(p.numel() for p in student.parameters()):,} parameters",
                         "nobody wrote down what it was distilled from"]
    student.provenance = {"pairs": "p" * 64, "pairs_read": 75000, "teacher": "t" * 64}
    assert (f"distilled from 75,000 of the pairs {'p' * 12} of the teacher {'t' * 12}"
            in student.describe())
    student.provenance["teacher"] = None
    assert "of an unknown teacher" in student.describe()
    assert "no classes" in make_student(spec=POINTS).describe()


def test_a_student_is_loaded_as_what_it_is(tmp_path: Path) -> None:
    student = make_student()
    mark = student.save(tmp_path / "kdm")
    assert json.loads((tmp_path / "kdm/config.json").read_text())["fingerprint"] == mark
    for kind in (kdm_core.KDM, kdm_core.Student):
        assert torch.equal(kind.load(tmp_path / "kdm").sample(3), student.sample(3))
    with pytest.raises(MismatchError, match="is of another kind .dense Koopman.*Student.load"):
        Direct.load(tmp_path / "kdm")


def test_hostile_names_stay_text_in_a_card() -> None:
    student = make_student(spec=IMAGES.model_copy(
        update={"label_names": ["<script>x</script>", "[a](b)\n# c", "`d`"]}))
    student.provenance = {"<img>\n## x": "|"}
    card = model_card(student, "f" * 64)
    assert r"labels: \<script\>x\</script\>, \[a\](b) \# c, \`d\`" in card
    assert r"- \<img\> \#\# x: \|" in card
