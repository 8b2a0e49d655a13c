"""The JSON schema of params.yaml, by which editors complete and check."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.protocols import Validator
from typer.testing import CliRunner

from pipeline.kdm.cli import PRESETS, app, description
from pipeline.params.page import references, tag
from pipeline.params.reading import read_values
from pipeline.params.run import Params, parse_params
from pipeline.params.schema import objects, schema_text
from pipeline.project.files import SCHEMA
from tests.support.imports import ROOT

FILES = [ROOT / "params.yaml", *sorted(PRESETS.glob("*.yaml"))]
LINE = f"# yaml-language-server: $schema={SCHEMA}"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(schema_text())
    return found


@pytest.fixture(params=[Draft7Validator, Draft202012Validator])
def validator(request: pytest.FixtureRequest, schema: dict[str, Any]) -> Validator:
    """Editors differ in the dialect that they read."""
    found: Validator = request.param(schema)
    return found


def test_the_file_is_that_of_the_code() -> None:
    assert (PRESETS / SCHEMA).read_text() == schema_text(), (
        "the schema of params.yaml has changed; renew its file: "
        f"kdm params schema --out {(PRESETS / SCHEMA).relative_to(ROOT)}")


def test_it_is_a_schema(schema: dict[str, Any]) -> None:
    Draft7Validator.check_schema(schema)
    Draft202012Validator.check_schema({**schema, "$schema": "https://json-schema.org/draft/2020-12/"
                                                            "schema"})
    assert len(schema_text()) < 150_000


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_presets_are_valid(file: Path, validator: Validator) -> None:
    assert [error.message for error in validator.iter_errors(read_values(file))] == []


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_files_name_it(file: Path) -> None:
    assert file.read_text().splitlines()[0] == LINE
    assert "yaml-language-server" not in description(file) and description(file)


def put(path: str, value: Any) -> Callable[[Any], None]:
    """A change of one value."""
    *sections, last = path.split(".")

    def change(values: Any) -> None:
        for section in sections:
            values = values[section]
        values[last] = value
    return change


@pytest.mark.parametrize(("change", "right"), [
    (put("pairs.trian", 3), False), (put("sed", 3), False), (put("seed", "0"), False),
    (put("seed", -1), False), (put("students", {}), False),
    (put("students.kdm.training.steps", 1.5), False),
    (put("students.kdm.training.schedule", "quadratic"), False),
    (put("teacher.model.network.kind", "unet"), False),  # whose keys are others
    (put("teacher.model.network.kind", "nothing"), False),
    (put("teacher.model.network", {"width": 64, "blocks": 2}), False),
    (put("execution.sampling", {"workers": 2}), False),  # which has to be said
    (put("execution.sampling", {"engine": "dask", "workers": 2}), False),
    (put("execution.sampling", {"engine": "dask", "address": "tcp://h:1"}), True),
    (put("pairs", {"source": "store", "location": "p.zarr"}), True),
    (put("reference.classifier", None), True), (put("compute.threads", 3), True),
    (put("studies", {"vicinity": None}), True),
    (put("teacher.model.network", {"kind": "unet", "channels": 8, "multipliers": [1]}), True),
])
def test_what_is_refused(
    change: Callable[[Any], None], right: bool, validator: Validator
) -> None:
    values = copy.deepcopy(read_values(PRESETS / "smoke.yaml"))
    change(values)
    assert validator.is_valid(values) == right


def test_all_that_the_parameters_hold_is_valid(validator: Validator) -> None:
    """Defaults written out are as valid as left out."""
    for file in FILES:
        resolved = parse_params(read_values(file)).model_dump(mode="json")
        assert [error.message for error in validator.iter_errors(resolved)] == []


def test_what_editors_show(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == set(Params.model_fields)
    compute = schema["$defs"]["ComputeParams"]
    assert compute["description"].startswith("Where to compute.")
    assert "Attributes" not in json.dumps(schema)
    assert compute["properties"]["threads"] == {
        "default": 0, "minimum": 0, "type": "integer",
        "description": compute["properties"]["threads"]["description"]}
    assert compute["properties"]["threads"]["description"].startswith("CPU threads; 0 leaves")
    assert schema["properties"]["compute"]["default"] == {}
    assert schema["properties"]["reference"]["examples"] == [{"classifier": None}]
    kinds = {part["properties"]["kind"].get("const") for part in objects(schema)
             if isinstance(part.get("properties"), dict) and "kind" in part["properties"]}
    assert {"mlp", "unet", "dopri5", "dense"} <= kinds


def test_every_field_says_what_it_means(schema: dict[str, Any]) -> None:
    """In the words of its class's docstring; what chooses a kind is said by that kind's. Of a
    section of the file its class may say it."""
    silent = [f"{part['title']}.{name}" for part in schema["$defs"].values()
              if "properties" in part for name, field in part["properties"].items()
              if name != tag(part) and not field.get("description", "").strip()]
    sections = {name: [field, *(schema["$defs"][used] for used in references(field))]
                for name, field in schema["properties"].items()}
    silent += [name for name, (field, *kinds) in sections.items() if "description" not in field
               and (len(kinds) != 1 or "description" not in kinds[0])]
    assert not silent, f"add to the Attributes of their class's docstring: {', '.join(silent)}"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = CliRunner().invoke(app, ["params", "schema"])
    assert printed.exit_code == 0 and printed.stdout == schema_text()
    written = CliRunner().invoke(app, ["params", "schema", "--out", "s.json"])
    assert written.stdout == "wrote s.json\n" and Path("s.json").read_text() == schema_text()
    # A preset comes with it, also where there is an older one.
    Path(SCHEMA).write_text("{}")
    assert CliRunner().invoke(app, ["preset", "use", "smoke"]).exit_code == 0
    assert Path(SCHEMA).read_text() == schema_text()
