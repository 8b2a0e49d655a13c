"""dvc.yaml: each stage depends on its plan, and on nothing of an installation."""

import pytest
from ruamel.yaml import YAML

from pipeline.params.run import Params
from pipeline.runtime.plan.sections import PER_STUDENT, READS
from tests.support.project import ROOT

DOCUMENT = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = DOCUMENT["stages"]
# Sections of params.yaml that say where to compute and not what.
UNTRACKED = {"compute", "execution"}


def body(stage: str) -> dict[str, list[str]]:
    return STAGES[stage].get("do", STAGES[stage])  # type: ignore[no-any-return]


def test_there_is_a_plan_of_every_stage() -> None:
    assert ["plan", *READS] == list(STAGES)
    assert {stage for stage in STAGES if "foreach" in STAGES[stage]} == set(PER_STUDENT)


@pytest.mark.parametrize("stage", READS)
def test_a_stage_depends_on_its_plan_and_on_results(stage: str) -> None:
    name = f"{stage}@${{key}}" if stage in PER_STUDENT else stage
    first, *others = body(stage)["deps"]
    assert first == f"data/plan/{name}.json"
    assert all(dep.split("/")[0] in ("data", "reports") and "plan" not in dep for dep in others)
    assert body(stage)["cmd"].startswith(f"python -m stages.{stage}")
    assert "params" not in body(stage)


def test_upstream_stages_read_nothing_of_students() -> None:
    for stage in ("prepare_data", "reference", "autoencoder", "teacher", "sample_pairs",
                  "filter_pairs"):
        assert not [name for name in READS[stage].values + READS[stage].kinds if "student" in name]


def test_every_section_of_the_parameters_decides_a_stage() -> None:
    read = {name.split(".")[0] for reads in READS.values() for name in reads.values}
    assert read == set(Params.model_fields) - UNTRACKED


def test_columns_of_experiments_are_the_parameters() -> None:
    assert DOCUMENT["params"] == ["params.yaml"]


def test_it_can_be_read_from_top_to_bottom() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 200
    assert len((ROOT / "dvc.lock").read_text().splitlines()) <= 1000
