"""Overrides of params.yaml: the form, merging, and what becomes of the file."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from pydantic import TypeAdapter, ValidationError

from pipeline.flow.flow import distill
from pipeline.params.overrides import MISSING, Change, merge, override, partial
from pipeline.params.reading import ParamsError, read_values
from pipeline.params.run import Params, load_params
from pipeline.project.files import PRESETS
from tests.support.project import ROOT

ALL_PRESETS = sorted(PRESETS.glob("*.yaml"))
PARTIAL = TypeAdapter(partial(Params))


def some_of(values: Any, draw: random.Random) -> Any:
    """A part of nested mappings: some of the keys, at every depth."""
    if not isinstance(values, dict):
        return values
    return {key: some_of(value, draw) for key, value in values.items() if draw.random() < 0.6}


@given(st.sampled_from(ALL_PRESETS), st.integers(0, 2**31))
@settings(max_examples=60)
def test_any_part_of_a_file_is_an_override(preset: Path, seed: int) -> None:
    """One that the form's schema takes, and that changes nothing in the file it is from."""
    values = read_values(preset)
    part = some_of(values, random.Random(seed))
    PARTIAL.validate_python(part)
    assert merge(values, part) == values


@pytest.mark.parametrize("wrong", [
    {"pears": {}}, {"pairs": {"trian": 3}}, {"pairs": {"train": 0}}, {"pairs": {"train": "many"}},
    {"students": {"kdm": {"training": {"steps": -1}}}}, {"pairs": {"source": "nowhere"}},
    {"execution": {"sampling": {"engine": "spark"}}}, {"students": {"kdm": None}},
    {"compute": {"deterministic": 1}},
])
def test_what_the_server_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PARTIAL.validate_python(wrong)
    schema = parameter_schema(distill).model_dump_for_openapi()
    assert validate({"overrides": wrong}, schema)
    assert not validate({"overrides": {}}, schema) and not validate({}, schema)


def test_form() -> None:
    """Nothing is sent that nobody chose, and every kind of section can be chosen."""
    schema = parameter_schema(distill).model_dump_for_openapi()
    parts = list(walk(schema["definitions"]))
    assert not [part for part in parts if "const" in part or part.get("type") == "boolean"
                or "default" in part]
    engines = [part["properties"]["engine"]["enum"] for part in parts
               if "engine" in part.get("properties", {})
               and "enum" in part["properties"]["engine"]]
    assert ["dask"] in engines and ["torchrun"] in engines
    params = schema["definitions"]["Params"]["properties"]
    assert set(params) == set(Params.model_fields)
    assert set(params["students"]["properties"]) == set(load_params(ROOT / "params.yaml").students)
    assert "CPU threads" in schema["definitions"]["ComputeParams"]["properties"]["threads"][
        "description"]


@pytest.mark.parametrize("text", ["", "students: [", "- 1", "students: 3", "\0"])
def test_the_form_without_parameters(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow can be imported whatever params.yaml holds; its run says what is wrong."""
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    schema = parameter_schema(distill).model_dump_for_openapi()
    assert schema["definitions"]["Params"]["properties"]["students"]["properties"] == {}


def walk(schema: Any) -> Any:
    """All objects within a schema."""
    if isinstance(schema, dict):
        yield schema
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            yield from walk(part)


def test_merging() -> None:
    values = {"pairs": {"source": "sample", "train": 5, "solver": {"kind": "heun", "steps": 3}},
              "teacher": {"source": "exact", "kind": "finite_data"}, "list": [1, 2]}
    assert merge(values, {"pairs": {"solver": {"steps": 4}}})["pairs"] == {
        "source": "sample", "train": 5, "solver": {"kind": "heun", "steps": 4}}
    # Another solver of the same section, and another section.
    assert merge(values, {"pairs": {"solver": {"kind": "euler"}}})["pairs"]["solver"] == {
        "kind": "euler", "steps": 3}
    assert merge(values, {"pairs": {"solver": {"kind": "dopri5"}}})["pairs"]["solver"] == {
        "kind": "dopri5"}
    assert merge(values, {"pairs": {"source": "sample", "train": 6}})["pairs"]["train"] == 6
    assert merge(values, {"pairs": {"source": "store", "location": "x"}})["pairs"] == {
        "source": "store", "location": "x"}
    # The teachers' tag is their source.
    assert merge(values, {"teacher": {"kind": "gaussian_mixture"}})["teacher"]["source"] == "exact"
    student = {"model": {"operator": {"kind": "dense", "spectrum": {"kind": "circle",
                                                                    "weight": 0.5}}}}
    merged = merge({"students": {"s": student}}, {"students": {"s": {"model": {
        "operator": {"spectrum": {"kind": "uniform"}}}}}})
    assert merged["students"]["s"]["model"]["operator"]["spectrum"] == {
        "kind": "uniform", "weight": 0.5}
    assert merge(values, {"list": [3], "pairs": None}) == {
        "pairs": None, "teacher": values["teacher"], "list": [3]}


@pytest.mark.parametrize("preset", ALL_PRESETS, ids=lambda path: path.stem)
def test_a_file_keeps_its_comments(preset: Path, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(preset.read_text())
    before = read_values(file)
    assert override(file, {"seed": 77}) == [Change("seed", before["seed"], 77)]
    assert read_values(file) == {**before, "seed": 77}
    assert comments(file) == comments(preset)


def comments(file: Path) -> list[str]:
    return [line.split("#", 1)[1] for line in file.read_text().splitlines() if "#" in line]


def test_only_what_is_overridden_changes(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    original = (ROOT / "params.yaml").read_text()
    file.write_text(original)
    changes = override(file, {
        "students": {"kdm": {"training": {"steps": 60}}},
        "execution": {"sampling": {"engine": "dask", "address": "tcp://h:1"}}})
    assert changes == [
        Change("execution.sampling.engine", "local", "dask"),
        Change("execution.sampling.address", MISSING, "tcp://h:1"),
        Change("students.kdm.training.steps", 1400, 60)]
    new = file.read_text().splitlines()
    differing = [(a, b) for a, b in zip(original.splitlines(), new, strict=True) if a != b]
    assert [now.split("#")[0].strip() for _, now in differing] == [
        "sampling: {engine: dask, address: tcp://h:1}", "steps: 60"]
    written = file.stat().st_mtime_ns
    assert override(file, {"students": {"kdm": {"training": {"steps": 60}}}}) == []
    assert file.stat().st_mtime_ns == written
    assert override(file, {"studies": {"vicinity": None}}) == [
        Change("studies.vicinity", MISSING, None)]
    assert load_params(file).studies.vicinity is None


def test_overrides_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    original = (ROOT / "params.yaml").read_text()
    file.write_text(original)
    for wrong, message in (
        ({"pairs": {"trian": 3}}, "pairs.trian: unknown key; did you mean train"),
        ({"weights": None}, "weights: is empty; write `weights: {}`"),
        ({"students": {"kdm": None}}, "students.kdm: is empty"),
        ({"students": {"new": {"init": "random"}}}, "students.new.model: is missing"),
        ({"studies": {"semantics": {"least": 9}}}, "studies.semantics.least"),
        # Valid as parts, and not together.
        ({"teacher": {"label_dropout": 0.1}, "data": {"conditional": False}},
         "teacher.label_dropout"),
    ):
        with pytest.raises(ParamsError, match=message):
            override(file, wrong)
        assert file.read_text() == original
    with pytest.raises(ParamsError, match="is missing"):
        override(tmp_path / "none.yaml", {})


def test_shared_parts_are_not_overridden_together(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    head, _, tail = text.partition("  kdm-f:\n")
    shared = head.replace("  kdm:\n", "  kdm: &first\n") + "  kdm-f: *first\n" + tail[
        tail.index("\nevaluation:"):]
    file.write_text(shared)
    with pytest.raises(ParamsError, match="share values"):
        override(file, {"students": {"kdm-f": {"training": {"steps": 60}}}})
    assert file.read_text() == shared
    override(file, {"seed": 5})
    assert "kdm-f: *first" in file.read_text()
