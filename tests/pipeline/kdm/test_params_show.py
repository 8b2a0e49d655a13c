"""`kdm params show`: the resolved parameters and where each comes from."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline.kdm.cli import PRESETS, app
from pipeline.params.origins import (
    MISSING,
    NOTHING,
    Entries,
    Entry,
    Given,
    entries,
    nearest,
    of_stage,
    read_given,
)
from pipeline.params.reading import read_values
from pipeline.params.run import load_params, parse_params
from pipeline.runtime.plan.resolving import parameters_of
from pipeline.runtime.plan.sections import stages_of, values_of

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
GIVEN = {name: read_given(PRESETS / f"{name}.yaml") for name in NAMES}


def changed(change: Callable[[Any], object], name: str = "digits") -> Given:
    """A preset that somebody has changed."""
    values = copy.deepcopy(GIVEN[name].written)
    change(values)
    return Given(parse_params(values), values)


def compared(change: Callable[[Any], object], name: str = "digits") -> Entries:
    """The entries of a changed preset beside it, which must be found to be the nearest."""
    found, made = nearest(changed(change, name), GIVEN.items())
    assert found == name
    return made


def yours(made: Entries) -> dict[str, Any]:
    return {path: entry.value for path, entry in made.items() if entry.origin == "yours"}


@pytest.mark.parametrize("name", NAMES)
def test_presets_are_their_own(name: str) -> None:
    found, made = nearest(GIVEN[name], GIVEN.items())
    assert found == name
    assert {entry.origin for entry in made.values()} == {"preset", "default"}
    assert all(entry.preset is MISSING for entry in made.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_values_are_those_of_the_plans(name: str) -> None:
    """Every one that decides a stage's result, and no other."""
    params = load_params(PRESETS / f"{name}.yaml")
    made = entries(GIVEN[name], NOTHING)
    for stage in stages_of(list(params.students)):
        chosen = of_stage(made, stage, list(params.students))
        planned = parameters_of(stage, params)
        assert {path.partition(".")[0] for path in chosen} <= {
            section.partition(".")[0] for section in values_of(stage, params.data.source)}
        for section, value in planned.items():
            below = {path.removeprefix(section).removeprefix("."): entry.value
                     for path, entry in chosen.items()
                     if path == section or path.startswith(f"{section}.")}
            assert nested(below) == value


def nested(flat: dict[str, Any]) -> Any:
    """Values by dotted paths as sections; numbers are those of lists."""
    if set(flat) == {""}:
        return flat[""]
    below: dict[str, dict[str, Any]] = {}
    for path, value in flat.items():
        key, _, rest = path.partition(".")
        below.setdefault(key, {})[rest] = value
    if all(key.isdigit() for key in below):
        return [nested(part) for part in below.values()]
    return {key: nested(part) for key, part in below.items()}


def test_a_changed_value() -> None:
    made = compared(lambda values: values["students"]["kdm"]["training"].update(steps=60, clip=1.0))
    assert made["students.kdm.training.steps"] == Entry(60, "yours", 1400)
    assert made["students.kdm.training.clip"] == Entry(1.0, "yours", MISSING)
    assert made["students.kdm.training.batch"] == Entry(256, "preset", MISSING)
    assert made["students.kdm.training.accumulate"] == Entry(1, "default", MISSING)
    assert len(yours(made)) == 2


def test_a_value_that_was_left_out() -> None:
    made = compared(lambda values: values["students"]["kdm"]["training"].pop("warmup"))
    assert made["students.kdm.training.warmup"] == Entry(0, "default", 100)
    assert not yours(made)


def test_the_same_number_otherwise_written() -> None:
    assert not yours(compared(lambda values: values["teacher"]["model"]["grid"].update(rho=7)))


def test_another_kind_shares_nothing() -> None:
    """Although both have `blocks: 4`."""
    made = compared(lambda values: values["teacher"]["model"].update(network={
        "kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 4}))
    assert yours(made) == {"teacher.model.network.kind": "unet",
                           "teacher.model.network.channels": 16,
                           "teacher.model.network.multipliers": [1, 2],
                           "teacher.model.network.blocks": 4}
    assert made["teacher.model.network.attention"].origin == "default"


def test_sections_that_come_and_go() -> None:
    made = compared(lambda values: values["reference"].update(classifier=None), "checkerboard")
    assert not yours(made)  # the preset has none either

    def without(values: Any) -> None:
        values["reference"]["classifier"] = None
        values["evaluation"]["extractors"] = []
    made = compared(without)
    assert yours(made) == {"reference.classifier": None, "evaluation.extractors": []}
    assert made["reference.classifier"].preset["training"]["steps"] == 800


def test_lists() -> None:
    """One of sections is compared section by section, one of names as a whole."""
    def change(values: Any) -> None:
        values["evaluation"]["extractors"].insert(0, {"kind": "inception"})
        values["evaluation"]["lpips"] = ["vgg"]
        values["students"]["kdm"]["then"][0]["steps"] = 10
    made = compared(change)
    assert yours(made) == {"evaluation.extractors.0.kind": "inception",
                           "evaluation.lpips": ["vgg"], "students.kdm.then.0.steps": 10}
    assert made["evaluation.lpips"].preset == ["vgg", "alex"]
    assert made["evaluation.extractors.2.resolution"] == Entry(32, "preset", MISSING)


def test_what_a_recipe_fills_in_is_not_in_the_file() -> None:
    made = compared(lambda values: values["students"]["kdm"]["then"][0]["losses"].update(
        adversary={"recipe": "r3gan"}))
    path = "students.kdm.then.0.losses.adversary"
    assert made[f"{path}.recipe"].origin == "yours"
    assert made[f"{path}.loss"] == Entry("relativistic", "default", MISSING)


def test_students_of_other_names() -> None:
    """They are yours, and do not hide from which preset the rest is."""
    def rename(values: Any) -> None:
        values["students"] = {f"mine-{number}": student for number in range(9)
                              for student in [values["students"]["kdm"]]}
    made = compared(rename)
    assert {path.split(".")[0] for path in yours(made)} == {"students"}
    assert made["students.mine-3.training.steps"] == Entry(1400, "yours", MISSING)


def test_data_of_your_own() -> None:
    made = compared(lambda values: values.update(
        data={"source": "folder", "path": "photos", "resolution": 32}), "cifar10")
    assert yours(made) == {"data.source": "folder", "data.path": "photos", "data.resolution": 32}


def test_a_file_of_its_own() -> None:
    network = {"kind": "mlp", "width": 11, "blocks": 7}
    training = {"steps": 7, "batch": 7}
    values = {
        "seed": 7, "data": {"source": "npz", "path": "a.npz"}, "reference": {"classifier": None},
        "teacher": {"source": "exact", "kind": "finite_data"}, "filter": {}, "evaluation": {},
        "pairs": {"source": "store", "location": "p.zarr"}, "weights": {}, "studies": {},
        "report": {}, "students": {"s": {"model": {
            "encoder": network, "decoder": network, "latent": 7, "operator": {"kind": "dense"}},
            "training": training}}}
    name, made = nearest(Given(parse_params(values), values), GIVEN.items())
    assert name is None
    assert {entry.origin for entry in made.values()} == {"yours", "default"}


# The command.

@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = read_values(PRESETS / "smoke.yaml")
    values["students"]["kdm"]["training"]["steps"] = 7
    values["report"]["title"] = "a\tb"
    del values["compute"]["threads"]
    with Path("params.yaml").open("w") as stream:
        YAML().dump(values, stream)
    return tmp_path / "params.yaml"


def show(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["params", "show", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table(file: Path) -> None:
    lines = show().splitlines()
    assert lines[0] == "params.yaml: preset smoke, 2 values changed, 1 left out"
    rows = [line for line in lines[1:] if line]
    assert len(rows) == len(json.loads(show("--json")))
    ends = [re.search(r"  (default|preset|yours)( \(preset: .+\))?$", line) for line in rows]
    starts = [end.start() for end in ends if end]
    # The last column is aligned, but for values that are much longer than others.
    assert len(starts) == len(rows) and sum(start != starts[0] for start in starts) < 3
    words = [line.split(maxsplit=3) for line in rows]
    assert ["compute.threads", "0", "default", "(preset: 1)"] in words
    assert ["students.kdm.training.steps", "7", "yours", "(preset: 200)"] in words
    assert ["report.title", '"a\\tb"', "yours", "(preset: Smoke test)"] in words
    assert ["execution.sampling.engine", "local", "preset"] in words


def test_a_stage(file: Path) -> None:
    made = json.loads(show("train_student@kdm", "--json"))
    assert {path.partition(".")[0] for path in made} == {"seed", "students"}
    assert not [path for path in made if path.startswith("students.kdm-f.")]
    assert made["students.kdm.training.steps"] == {"value": 7, "origin": "yours"}
    both = json.loads(show("train_student", "--json"))
    assert made.items() < both.items()
    assert both["students.kdm-f.training.steps"] == {"value": 200, "origin": "preset"}
    assert {path.partition(".")[0] for path in json.loads(show("evaluate", "--json"))} == {
        "seed", "evaluation", "reference", "weights"}
    assert "teacher" not in show("sample_pairs")


def test_another_file(file: Path, tmp_path: Path) -> None:
    file.rename(tmp_path / "other.yaml")
    assert show("teacher", "--file", "other.yaml").startswith("other.yaml: preset smoke, 2 values")
    result = CliRunner().invoke(app, ["params", "show"])
    assert result.exit_code == 1 and "params.yaml is missing" in result.stderr


@pytest.mark.parametrize(("stage", "advice"), [
    ("train_studnt", "; did you mean train_student?"), ("train_student@nobody", ""),
    ("students", ""), ("", ""), ("@kdm", "")])
def test_unknown_stages(stage: str, advice: str, file: Path) -> None:
    result = CliRunner().invoke(app, ["params", "show", stage])
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert f"there is no stage '{stage}'; there are prepare_data, reference" in result.stderr
    assert "train_student@kdm-f" in result.stderr and advice in result.stderr
