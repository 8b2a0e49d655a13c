"""dvc.yaml names what its stages depend on: all of it, and nothing that is no part of it."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.imports import ROOT, closure

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
# Sections of params.yaml that say where to compute and not what.
UNTRACKED = {"compute", "execution"}


def body(stage: str) -> dict[str, list[str]]:
    return STAGES[stage].get("do", STAGES[stage])  # type: ignore[no-any-return]


def code_deps(stage: str) -> list[Path]:
    return [Path(dep) for dep in body(stage)["deps"]
            if dep.split("/")[0] in ("kdm_core", "stages", "pipeline")]


@pytest.mark.parametrize("stage", STAGES)
def test_all_code_is_a_dependency(stage: str) -> None:
    deps = code_deps(stage)
    missing = [file for file in closure(Path(f"stages/{stage}.py"))
               if not any(file == dep or dep in file.parents for dep in deps)]
    assert not missing


@pytest.mark.parametrize("stage", STAGES)
def test_no_dependency_is_idle(stage: str) -> None:
    files = closure(Path(f"stages/{stage}.py"))
    # Templates are named, not imported.
    source = "".join((ROOT / file).read_text() for file in files if file.parts[0] == "stages")
    idle = [dep for dep in code_deps(stage)
            if not any(file == dep or dep in file.parents for file in files)
            and dep.name not in source]
    assert not idle
    assert all((ROOT / dep).exists() for dep in code_deps(stage))


def test_upstream_stages_do_not_depend_on_students() -> None:
    for stage in ("prepare_data", "reference", "teacher", "sample_pairs", "filter_pairs"):
        assert not [dep for dep in code_deps(stage) if "student" in str(dep)]
        assert not [param for param in body(stage)["params"] if "student" in param]


def test_every_section_of_the_parameters_is_tracked() -> None:
    from pipeline.params import Params

    tracked = {str(param).split(".")[0] for stage in STAGES for param in body(stage)["params"]}
    assert tracked == set(Params.model_fields) - UNTRACKED
    # DVC refuses to run a stage whose section is missing, and asks for no others.
    assert tracked == {name for name, field in Params.model_fields.items() if field.is_required()}
