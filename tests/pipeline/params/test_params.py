"""params.yaml: what is wrong, where, and what is allowed."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from kdm_core.samples import SampleSpec
from pipeline.params.fitting import check_against
from pipeline.params.reading import ParamsError
from pipeline.params.run import Params, load_params, parse_params
from pipeline.project.files import PRESETS
from tests.support.imports import ROOT

ALL_PRESETS = sorted(PRESETS.glob("*.yaml"))


def preset(name: str = "digits") -> Any:
    return copy.deepcopy(YAML(typ="safe").load(PRESETS / f"{name}.yaml"))


@pytest.mark.parametrize("path", ALL_PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_and_complete(path: Path) -> None:
    params = load_params(path)
    written = YAML(typ="safe").load(path)
    missing = set(Params.model_fields) - set(written)
    assert not missing
    assert params.model_dump(exclude_unset=True).keys() == params.model_dump().keys()


def test_the_default_is_the_digits_preset() -> None:
    assert load_params(ROOT / "params.yaml") == load_params(PRESETS / "digits.yaml")


def problem(change: str, value: Any, name: str = "digits") -> str:
    """Set `a.b.c` in a preset and return the error."""
    values = preset(name)
    *path, last = change.split(".")
    place = values
    for key in path:
        place = place[key]
    place[last] = value
    with pytest.raises(ParamsError) as caught:
        parse_params(values)
    return str(caught.value)


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("evaluation.extractors", [{"kind": "vgg"}], "evaluation.extractors.0.kind: 'vgg' is none of "
     "classifier, vgg16, inception, dinov2, clip; did you mean vgg16?"),
    ("evaluation.extractors", [{"kind": "vgg16"}, {"kind": "vgg16"}], "vgg16 stands there twice"),
    ("evaluation.statistics", {"vgg": "x.npz"}, "no extractor vgg; extractors has classifier"),
    ("reference.classifier", None, "evaluation.extractors: there is no classifier"),
    ("weights", {"inceptoin": {"path": "x"}}, "weights: inceptoin"),
    ("pairs.test", 1, "pairs.test: must be greater than or equal to 2 (found 1)"),
    ("execution.sampling", {"engine": "dask", "address": None}, "execution.sampling: address is "
     "missing: give that of a Dask scheduler that runs (tcp://HOST:8786), or use engine: local"),
    ("studies.vicinty", {}, "studies.vicinty: unknown key; did you mean vicinity?"),
    ("students.kdm.training.lrr", 1.0, "students.kdm.training.lrr: unknown key; did you mean lr?"),
    ("tacher", 1, "tacher: unknown key; did you mean teacher?"),
    ("teacher.model.network.widht", 3, "teacher.model.network.widht: unknown key; "
                                       "did you mean width?"),
    ("teacher.model.network.zzz", 3, "allowed are: blocks, kind, width"),
    ("teacher.training.steps", "many", "teacher.training.steps: must be a valid integer "
                                       "(found 'many')"),
    ("teacher.training.steps", 0, "greater than or equal to 1 (found 0)"),
    ("teacher.training.batch", True, "teacher.training.batch: must be a valid integer"),
    ("pairs.solver.kind", "hean", "pairs.solver.kind: 'hean' is none of euler, heun, midpoint, "
                                  "rk4, dpmpp_2m, dopri5; did you mean heun?"),
    ("pairs.solver.grid", {"kind": "karras", "rho": -1}, "pairs.solver.grid.rho: "),
    ("pairs.solver.grid", {"kind": "karras", "sigma_max": float("inf")},
     "pairs.solver.grid.sigma_max: "),
    ("pairs.guidance", {"kind": "autoguidance", "scale": 2.0}, "describe one under teacher.guide"),
    ("pairs.guidance", {"kind": "classifier_free", "scale": 2.0},
     "set teacher.label_dropout: 0.1"),
    ("teacher", {"source": "emd", "file": "x.pkl"}, "teacher.source: 'emd' is none of "),
    ("teacher", {"source": "edm"}, "teacher.file: is missing"),
    ("teacher", {"source": "edm", "file": "x.pkl", "sha256": "abc"}, "teacher.sha256: "),
    ("teacher", {"source": "edm", "file": "ftp://host/x.pkl"}, "ftp:// is not supported"),
    ("teacher", {"source": "module", "factory": "mine:build", "model": {"kind": "flow_matching"}},
     "teacher.trust_code: "),
    ("teacher.model.preconditioning", {"kind": "ve"},
     "teacher.model.preconditioning.kind: ve is for models that are imported; use edm"),
    ("teacher.model.network", {"kind": "module", "factory": "mine:build"},
     "teacher.model.network.kind: a module of your own is imported with teacher.source: module"),
    ("students.kdm.model.operator.kind", "dens", "students.kdm.model.operator.kind: "),
    ("pairs.shard", 1999, "pairs: shard: 1999 is no multiple of batch: 500"),
    ("pairs", {"solver": {"kind": "heun", "steps": 3}}, "pairs.source: is missing"),
    ("pairs", {"source": "store"}, "pairs.location: is missing"),
    ("pairs", {"source": "store", "location": "x.zarr", "content": "abc"}, "pairs.content: "),
    ("students", {}, "students: "),
    ("data.source", "digit", "did you mean digits?"),
    ("seed", -1, "seed: "),
    ("teacher", {"source": "module", "factory": "mine.build", "model": {"kind": "flow_matching"}},
     "teacher.factory: 'mine.build' is not an import path, package.module:callable"),
    ("filter", {"rules": ["mine.py"], "trust_code": True},
     "filter.rules.0: 'mine.py' is not an import path"),
    ("data", {"sorce": "digits"}, "data.source: is missing; did you mean it by sorce?"),
])
def test_one_clear_line(key: str, value: Any, expected: str) -> None:
    assert expected in problem(key, value)


# What it is called elsewhere, or nearly so.
@pytest.mark.parametrize(("key", "value", "meant"), [
    ("pairs.solver.kind", "ddim", "euler"),
    ("pairs.solver.kind", "DDPM", "euler"),
    ("pairs.solver.kind", "heun2", "heun"),
    ("pairs.solver.kind", "Heun", "heun"),
    ("pairs.solver.kind", "dpm++", "dpmpp_2m"),
    ("pairs.solver.kind", "DPM-Solver++", "dpmpp_2m"),
    ("pairs.solver.kind", "dpmpp-2m", "dpmpp_2m"),
    ("pairs.solver.kind", "rk45", "dopri5"),
    ("pairs.precision", "fp16", "bf16"),
    ("pairs.precision", "float16", "bf16"),
    ("pairs.precision", "float32", "fp32"),
    ("pairs.noise_dtype", "fp16", "float16"),
    ("pairs.sample_dtype", "uint16", "uint8"),
    ("teacher.training.optimizer", "Adam", "adam"),
    ("teacher.training.optimizer", "AdamW", "adamw"),
    ("teacher.training.schedule", "cosin", "cosine"),
    ("teacher.training.schedule", "CosineAnnealing", "cosine"),
    ("teacher.model.network.kind", "UNet", "unet"),
    ("teacher.model.network.kind", "ddpm++", "song_unet"),
    ("teacher.model.network.kind", "DiT", "transformer"),
    ("teacher.model.kind", "rectified_flow", "flow_matching"),
    ("students.kdm.losses.distance.kind", "l2", "mse"),
    ("students.kdm.model.operator.kind", "factorized", "factorised"),
    ("data.source", "cifar-10", "cifar10"),
    ("compute.device", "gpu", "cuda"),
    ("pairs.solver.kind", "UniPC", "dpmpp_2m"),
    ("pairs.labels", "empirical", "data"),
    ("pairs.labels", "balanced", "uniform"),
    ("compute.device", "CUDA", "cuda"),
    ("compute.device", "metal", "mps"),
])
def test_names_of_others_hint_at_ours(key: str, value: str, meant: str) -> None:
    message = problem(key, value)
    assert f"{key}: '{value}' is no" in message
    assert message.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize(("kind", "meant"), [("fid", "inception"), ("InceptionV3", "inception"),
                                             ("dino", "dinov2"), ("vgg", "vgg16")])
def test_extractors_by_the_names_of_their_figures(kind: str, meant: str) -> None:
    assert problem("evaluation.extractors", [{"kind": kind}]).endswith(f"did you mean {meant}?")


@pytest.mark.parametrize("name", ["../evil", "", "-x", "a b", "ä", "--", "a" * 101, "teacher"])
def test_a_students_name_must_fit_file_names(name: str) -> None:
    values = preset()
    values["students"][name] = values["students"]["kdm"]
    with pytest.raises(ParamsError, match=f"students: '{re.escape(name)}' is no name"):
        parse_params(values)


def test_a_students_name_is_text() -> None:
    values = preset()
    values["students"] = {1: values["students"]["kdm"]}
    with pytest.raises(ParamsError, match="students: the key 1 is no text to YAML: .* '1'"):
        parse_params(values)


@pytest.mark.parametrize("section", sorted(Params.model_fields.keys() - {"compute", "execution"}))
def test_what_dvc_asks_for_is_asked_for_with_the_line_to_add(section: str) -> None:
    values = preset()
    del values[section]
    with pytest.raises(ParamsError, match=f"  {section}: is missing; ") as caught:
        parse_params(values)
    # Added as the message says, it is there.
    if found := re.search("add the line `(.+)`", str(caught.value)):
        line = YAML(typ="safe").load(found[1])
        left = {"reference": {"evaluation": {}}}.get(section, {})  # what needs the classifier
        parse_params({**values, **left, **line})
    with pytest.raises(ParamsError, match=f"  {section}: is empty; "):
        parse_params({**values, section: None})


@pytest.mark.parametrize("section", ["compute", "execution"])
def test_where_to_compute_may_be_left_out(section: str) -> None:
    values = preset()
    del values[section]
    parse_params(values)
    with pytest.raises(ParamsError, match=f"  {section}: is empty; leave it out"):
        parse_params({**values, section: None})


def test_a_key_that_stands_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = (PRESETS / "smoke.yaml").read_text()
    path.write_text(f"{text}\nseed: 3\n")
    line = len(text.splitlines()) + 2
    with pytest.raises(ParamsError, match=f"line {line} is no valid YAML: .*duplicate") as caught:
        load_params(path)
    assert "suppress" not in str(caught.value)


def test_all_problems_are_shown_at_once() -> None:
    values = preset()
    values["teacher"]["training"]["lr"] = -1
    values["students"]["kdm"]["model"]["latent"] = 0
    del values["pairs"]["solver"]
    with pytest.raises(ParamsError) as caught:
        parse_params(values)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "  pairs.solver: is missing" in lines


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("pairs.sample_dtype", "uint8", "pairs.sample_dtype: uint8 is for images"),
    ("students.kdm.losses.adversarial", 0.1, "students.kdm.losses.adversary.network: the paper's"),
    ("students.kdm.losses.distance", {"kind": "lpips"}, "LPIPS is for images"),
    ("teacher.model.network", {"kind": "unet"}, "teacher.model.network.kind: unet is for images"),
])
def test_impossible_combinations_for_points(key: str, value: Any, expected: str) -> None:
    assert expected in problem(key, value, "checkerboard")


SAMPLED = {"source": "sample", "solver": {"kind": "heun", "steps": 2}, "train": 8,
           "validation": 2, "test": 2}
EXACT = {"source": "exact", "kind": "finite_data"}


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("pairs", SAMPLED, "teacher.source: without a teacher nothing can sample pairs"),
    ("pairs", SAMPLED, "data.source: without data the pairs must be there already"),
    ("teacher", EXACT, "teacher.source: exact takes data"),
    ("evaluation.reference", "train", "evaluation.reference: without data"),
    ("filter.copies", [{"threshold": 1.0}], "filter.copies: without data"),
    ("students.student", {"init": "teacher", "training": {"steps": 1, "batch": 1}, "model": {
        "encoder": {"kind": "mlp"}, "decoder": {"kind": "mlp"}, "latent": 8, "timed": True,
        "operator": {"kind": "dense"}}}, "students.student.init: there is no teacher"),
    ("students.student.losses", {"adversarial": 0.1, "adversary": {"real": "data"}},
     "students.student.losses: there are no data; set real to pairs"),
    ("students.student.losses", {"adversarial": 0.1, "adversary": {
        "real": "pairs", "network": "features", "features": [{"kind": "teacher"}]}},
     "students.student.losses: there is no teacher"),
    ("students.student", {"model": {"kind": "direct"}, "training": {"steps": 1, "batch": 1}},
     "students.student.model.denoiser: "),
])
def test_what_pairs_alone_do_not_give(key: str, value: Any, expected: str) -> None:
    assert expected in problem(key, value, "pairs")


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("students.kdm.init", "teacher", "model.timed: true"),
    ("students.kdm.losses.trajectory", 1.0, "model.encoders: shared"),
    ("students.kdm.model.encoders", "noise", "losses.reconstruction"),
    ("students.kdm.model.encoders", "both", "'both' is none of separate, shared, noise"),
    ("students.kdm.model.projected_channels", 1, "the encoder is no network of images"),
    ("students.kdm.model.operator", {"kind": "dense", "spectrum": {"kind": "round"}},
     "students.kdm.model.operator.spectrum.kind: "),
    ("students.kdm.losses.adversary", {"loss": "wgan"}, "students.kdm.losses.adversary.loss: "),
    ("students.kdm.losses.adversary", {"network": "convolutions"},
     "students.kdm.losses.adversary.network: 'convolutions' is none of paper, features; did you "
     "mean paper?"),
    ("students.kdm.losses.adversary", {"loss": "non-saturating"}, "did you mean bce?"),
    ("students.kdm.training.post_hoc", None, "students.kdm.training.post_hoc: unknown key; "),
])
def test_impossible_students(key: str, value: Any, expected: str) -> None:
    message = problem(key, value)
    assert expected in message
    assert "students.kdm" in message


def test_trajectory_supervision_needs_states_in_the_pairs() -> None:
    values = preset()
    student = values["students"]["kdm"]
    student["model"] |= {"encoders": "shared", "operator": {"kind": "continuous"}}
    student["losses"]["trajectory"] = 1.0
    with pytest.raises(ParamsError, match=r"set pairs\.states"):
        parse_params(values)
    values["pairs"]["states"] = 4
    parse_params(values)


@pytest.mark.parametrize(("losses", "expected"), [
    ({"distance": {"kind": "lpips", "resolution": 0}}, "losses.distance.resolution"),
    ({"adversarial": 0.1, "distance": {"kind": "mse"}}, "at least 8×8"),
])
def test_losses_that_do_not_fit_the_images_are_found_before_any_training(
    losses: dict[str, Any], expected: str
) -> None:
    values = preset()
    values["students"]["kdm"]["losses"] |= losses
    params = parse_params(values)
    check_against(params, SampleSpec(kind="image", shape=[1, 32, 32]))
    with pytest.raises(ParamsError, match=r"students\.kdm\.losses\.\w+") as caught:
        check_against(params, SampleSpec(kind="image", shape=[1, 4, 4]))
    assert expected in str(caught.value)


def test_losses_of_later_phases_are_checked_where_they_stand() -> None:
    values = preset()
    student = values["students"]["kdm"]
    student["then"] = [{"steps": 10, "lr": 1e-4}, {"steps": 10, "lr": 1e-4, "losses": {
        "adversarial": 0.0, "trajectory": 1.0}}]
    with pytest.raises(ParamsError, match=r"then\.1\.losses\.trajectory"):
        parse_params(values)
    student["then"][1]["losses"] = {"adversarial": 0.01}
    check_against(parse_params(values), SampleSpec(kind="image", shape=[1, 8, 8]))
    with pytest.raises(ParamsError, match=r"students\.kdm\.then\.1\.losses"):
        check_against(parse_params(values), SampleSpec(kind="image", shape=[1, 4, 4]))
    student["then"][1]["losses"]["adversary"] = {
        "network": "features", "features": [{"kind": "classifier"}]}
    values["reference"]["classifier"] = None
    values["evaluation"]["extractors"] = []
    with pytest.raises(ParamsError, match=r"then\.1\.losses: there is no classifier"):
        parse_params(values)


def test_models_that_do_not_fit_the_data_are_found_before_any_training() -> None:
    values = preset()
    values["students"]["kdm"]["model"]["encoder"] = {"kind": "unet", "multipliers": [1, 1]}
    values["students"]["kdm"]["model"]["latent"] = 100
    params = parse_params(values)
    spec = SampleSpec(kind="image", shape=[1, 8, 8])
    with pytest.raises(ParamsError, match=r"students\.kdm\.model\.latent: 100 is no multiple"):
        check_against(params, spec)
    values = preset()
    values["teacher"]["model"]["network"] = {"kind": "unet", "multipliers": [1, 2]}
    with pytest.raises(ParamsError, match=r"teacher\.model.*divisible by 2"):
        check_against(parse_params(values), SampleSpec(kind="image", shape=[1, 9, 9]))


def test_missing_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ParamsError, match="kdm preset use digits"):
        load_params(path)
    path.write_text("a: [1, 2")
    with pytest.raises(ParamsError, match="no valid YAML"):
        load_params(path)
    path.write_text("!!python/object/apply:os.system ['touch /tmp/owned']")
    with pytest.raises(ParamsError):
        load_params(path)
    path.write_text("")
    with pytest.raises(ParamsError):
        load_params(path)
