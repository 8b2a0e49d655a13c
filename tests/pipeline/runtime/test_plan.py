"""What a stage depends on: edits of a copy of the code, and which plans are others then."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdm_core.errors import DataError
from pipeline.params.reading import read_values
from pipeline.params.run import load_params, parse_params
from pipeline.project.files import PRESETS
from pipeline.runtime.plan import code, plans
from pipeline.runtime.plan.code import own_code
from pipeline.runtime.plan.plans import current_plans, write_plans, written
from pipeline.runtime.plan.resolving import chosen_by, components, plan_all, section
from pipeline.runtime.plan.sections import reads_of, stages_of
from tests.support.project import ROOT, python

SMOKE = PRESETS / "smoke.yaml"
STUDENTS = ("kdm", "kdm-f")
EVERY = set(stages_of(list(STUDENTS)))
OF_TEACHER = {"teacher", "sample_pairs"} | {
    f"{stage}@{name}" for stage in ("train_student", "evaluate", "study") for name in STUDENTS}


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A copy of the code."""
    for package in code.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / "code" / package,
                        ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "code"


def plans_with(installation: Path, params: Path) -> dict[str, str]:
    """The plans of a project, by a program that has the code of `installation`."""
    project = installation.parent / "project"
    project.mkdir(exist_ok=True)
    shutil.copy(params, project / "params.yaml")
    done = python(project, "stages.plan", PYTHONPATH=str(installation))
    assert done.returncode == 0, done.stderr
    return {path.stem: path.read_text() for path in (project / "data/plan").iterdir()}


def replaced(before: str, after: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert before in text
        return text.replace(before, after)

    return edit


# Of what, and what stages run again.
EDITS: dict[str, tuple[str, Callable[[str], str], set[str]]] = {
    "docstring": ("kdm_core/networks/mlp.py", replaced('"""A residual', '"""Now a residual'),
                  set()),
    "comment": ("kdm_core/solvers/fixed.py", lambda text: "# a remark\n" + text + "\n# another\n",
                set()),
    "error": ("kdm_core/pairs/sampling.py", replaced("is no multiple of", "must be a multiple of"),
              set()),
    "message": ("stages/sample_pairs/stage.py", replaced("pairs are those of", "pairs were in"),
                set()),
    "log": ("pipeline/runtime/log.py", replaced("def say(", "LATER = 1\n\n\ndef say("), set()),
    "engine": ("pipeline/workers/processes.py", lambda text: text + "\nLATER = 1\n", set()),
    "command": ("pipeline/kdm/cli.py", lambda text: text + "\nLATER = 1\n", set()),
    "network that nobody uses": ("kdm_core/networks/edm2_unet.py",
                                 lambda text: text + "\nLATER = 1\n", set()),
    "network": ("kdm_core/networks/mlp.py", lambda text: text + "\nLATER = 1\n", OF_TEACHER),
    "loss that nobody uses": ("kdm_core/losses/drifting.py", lambda text: text + "\nLATER = 1\n",
                              set()),
    "loss": ("kdm_core/losses/adversary.py", lambda text: text + "\nLATER = 1\n",
             {"train_student@kdm", "train_student@kdm-f"}),
    "study": ("kdm_core/studies/grids.py", lambda text: text + "\nLATER = 1\n",
              {"study@kdm", "study@kdm-f"}),
    "template": ("pipeline/reporting/templates/page.css",
                 lambda text: text + "\n/* later */\n", {"report"}),
    "default of a student": ("kdm_core/students/objective.py",
                             replaced("reconstruction: float = Field(1.0",
                                      "reconstruction: float = Field(1.1"),
                             {"train_student@kdm", "train_student@kdm-f", "report"}),
    "default that is set": ("pipeline/params/evaluation.py",
                            replaced("timing_images: int = Field(1000",
                                     "timing_images: int = Field(999"),
                            set()),
    "default of the evaluation": ("pipeline/params/evaluation.py",
                                  replaced("projections: int = Field(128",
                                           "projections: int = Field(64"),
                                  {"evaluate@kdm", "evaluate@kdm-f", "report"}),
}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("before")
    for package in code.PACKAGES:
        (folder / package).symlink_to(ROOT / package)
    return plans_with(folder, SMOKE)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_reruns_what_uses_it(
    installation: Path, before: dict[str, str], name: str
) -> None:
    file, edit, expected = EDITS[name]
    path = installation / file
    path.write_text(edit(path.read_text()))
    after = plans_with(installation, SMOKE)
    assert {stage for stage in EVERY if after[stage] != before[stage]} == expected


def test_defaults_are_written_down() -> None:
    """A parameter that is set to its default is no other parameter."""
    values = read_values(SMOKE)
    bare, _ = plan_all(parse_params(values), ROOT, "2")
    values["students"]["kdm"]["losses"]["reconstruction"] = 1.0
    values["evaluation"]["projections"] = 128
    assert plan_all(parse_params(values), ROOT, "2")[0] == bare
    values["evaluation"]["projections"] = 127
    changed, _ = plan_all(parse_params(values), ROOT, "2")
    assert {stage for stage in bare if bare[stage] != changed[stage]} == {
        "evaluate@kdm", "evaluate@kdm-f", "report"}
    other, _ = plan_all(parse_params(values), ROOT, "3")
    assert all(other[stage] != changed[stage] for stage in EVERY)


def test_where_to_compute_is_in_no_plan() -> None:
    values = read_values(SMOKE)
    plan, _ = plan_all(parse_params(values), ROOT, "2")
    values["compute"] = {"device": "cpu", "threads": 1}
    values["execution"] = {"sampling": {"engine": "local", "workers": 2}}
    assert plan_all(parse_params(values), ROOT, "2")[0] == plan


def test_a_study_is_drawn_anew_where_its_student_takes_another_place() -> None:
    """Its colour follows from that; nothing else does."""
    values = read_values(SMOKE)
    plan, _ = plan_all(parse_params(values), ROOT, "2")
    del values["students"]["kdm"]
    first, _ = plan_all(parse_params(values), ROOT, "2")
    assert {stage for stage in first if first[stage] != plan[stage]} == {"study@kdm-f", "report"}
    values["students"]["another"] = values["students"]["kdm-f"]
    more, _ = plan_all(parse_params(values), ROOT, "2")
    assert {stage for stage in first if first[stage] != more[stage]} == {"report"}


def modules(stage: str, params: Path = SMOKE) -> set[str]:
    return set(plan_all(load_params(params), ROOT, "2")[0][stage]["code"])


def test_the_kinds_of_a_run_are_its_code() -> None:
    found = modules("train_student@kdm")
    assert {"kdm_core.networks.mlp", "kdm_core.teachers.denoiser", "kdm_core.students.objective",
            "kdm_core.training.loop", "kdm_core.pairs.store", "stages.train_student"} <= found
    assert not found & {"kdm_core.networks.unet", "kdm_core.networks.edm2_unet",
                        "kdm_core.losses.drifting", "kdm_core.metrics.frechet",
                        "pipeline.runtime.log"}
    assert "kdm_core.networks.song_unet" in modules("teacher", PRESETS / "cifar10.yaml")
    # Of an imported teacher nobody knows yet what it is made of.
    name, *_ = load_params(PRESETS / "ffhq64.yaml").students
    assert {"kdm_core.networks.edm2_unet", "kdm_core.networks.song_unet",
            "kdm_core.teachers.flow_matching"} <= modules(f"evaluate@{name}",
                                                          PRESETS / "ffhq64.yaml")


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")),
                         ids=lambda path: path.stem)
def test_what_a_program_imports_is_its_code_or_plumbing(preset: Path) -> None:
    """Each module that defines a component of the run is in the plan of those who read it."""
    params = load_params(preset)
    made, _ = plan_all(params, ROOT, "2")
    for stage, plan in made.items():
        reads = reads_of(stage)
        used = [one for name in (*reads.values, *reads.kinds)
                for one in components(section(params, name))]
        kinds = {name for name in chosen_by(used) if name.startswith("kdm_core.networks.")}
        if stage.partition("@")[0] in ("teacher", "sample_pairs", "train_student", "evaluate"):
            assert kinds <= plan["code"].keys(), stage


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SMOKE, "params.yaml")
    return tmp_path


def test_plans_are_written_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_plans() == []  # there were none before
    dates = {path: path.stat().st_mtime_ns for path in plans.FOLDER.iterdir()}
    # Nothing has to be imported to see that nothing has changed.
    with monkeypatch.context() as without:
        without.setattr(plans, "make_plans", None)
        assert write_plans() == []
        assert current_plans() == {stage: written(stage) for stage in EVERY}
    os.utime("params.yaml")
    values = Path("params.yaml").read_text()
    Path("params.yaml").write_text(values.replace("seed: 0", "seed: 0  # a remark"))
    assert write_plans() == []
    assert {path: path.stat().st_mtime_ns for path in plans.FOLDER.iterdir()} == dates


@pytest.mark.parametrize("damage", ["cut", "edited", "removed", "added", "state", "folder"])
def test_damaged_plans_are_written_again(project: Path, damage: str) -> None:
    write_plans()
    before = {path.name: path.read_bytes() for path in plans.FOLDER.iterdir()}
    victim = plans.FOLDER / "teacher.json"
    if damage == "cut":
        victim.write_bytes(b"{")
    elif damage == "edited":
        victim.write_bytes(victim.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    elif damage == "removed":
        victim.unlink()
    elif damage == "added":
        (plans.FOLDER / "train_student@gone.json").write_text("{}")
    elif damage == "state":
        plans.STATE.write_text("[]")
    else:
        shutil.rmtree(plans.FOLDER)
    write_plans()
    assert {path.name: path.read_bytes() for path in plans.FOLDER.iterdir()} == before


def test_modules_of_the_users_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("from mine.parts import part\nimport torch\n")
    (tmp_path / "mine/parts.py").write_text("import helper\npart = 1\n")
    (tmp_path / "mine/unused.py").write_text("part = 1\n")
    (tmp_path / "helper.py").write_text("raise RuntimeError('imported')\n")
    found = own_code(["mine"], tmp_path)
    assert {name: file for name, (file, _) in found.items()} == {
        "mine": "mine/__init__.py", "mine.parts": "mine/parts.py", "helper": "helper.py"}
    (tmp_path / "helper.py").write_text("# said otherwise\nraise RuntimeError('was imported')\n")
    assert own_code(["mine"], tmp_path) == found
    (tmp_path / "helper.py").write_text("value = 2\n")
    changed = own_code(["mine"], tmp_path)
    assert {name for name in found if found[name] != changed[name]} == {"helper"}
    (tmp_path / "helper.py").write_text("value =\n")
    with pytest.raises(DataError, match=r"helper.py, line 1, is no valid Python"):
        own_code(["mine"], tmp_path)


def test_a_rule_of_the_users_is_code_of_the_filter(project: Path) -> None:
    Path("rules.py").write_text("def bright(samples, labels): return samples.mean((1, 2, 3)) > 0\n")
    text = Path("params.yaml").read_text()
    assert "filter: {}" in text
    Path("params.yaml").write_text(text.replace(
        "filter: {}", "filter: {rules: ['rules:bright'], trust_code: true}"))
    write_plans()
    before = {stage: written(stage) for stage in EVERY}
    assert "rules" in json.loads(before["filter_pairs"] or "")["code"]
    Path("rules.py").write_text("def bright(samples, labels): return samples.mean((1, 2, 3)) > 1\n")
    assert write_plans() == ["filter_pairs"]
