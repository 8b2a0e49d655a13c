"""`kdm doctor`: what would stop a run is found before it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from prefect.settings import PREFECT_API_URL, temporary_settings
from ruamel.yaml import YAML
from typer.testing import CliRunner

from kdm_core.compute import resolve_device
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from pipeline.flow.addresses import without_password
from pipeline.kdm.checks import inputs, machine, services, storage, versions
from pipeline.kdm.checks.finding import Finding, within
from pipeline.kdm.cli import PRESETS, app
from pipeline.kdm.doctor import findings_of
from pipeline.params.run import Params, load_params, parse_params
from pipeline.project.dvc_records import CUT_LOCK
from pipeline.runtime import paths
from tests.support.project import ROOT, dvc, environment

SECRET = "hunter2"
DIGITS = SampleSpec(kind="image", shape=[1, 8, 8])


@pytest.fixture
def project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project in which all is well, entered."""
    monkeypatch.chdir(project)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield project


def params(**sections: Any) -> Params:
    """Those of the preset `smoke`, with values changed by section."""
    values = YAML(typ="safe").load(PRESETS / "smoke.yaml")
    for section, changed in sections.items():
        values[section] = {**values.get(section, {}), **changed}
    return parse_params(values)


def examine(code: int) -> dict[str, dict[str, Any]]:
    """The findings of `kdm doctor --json` by name."""
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout)
    assert document["problem"] == sum(one["level"] == "problem" for one in document["checks"])
    return {one["check"]: one for one in document["checks"]}


@contextmanager
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def closed() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def levels(findings: list[Finding]) -> list[str]:
    return [one.level for one in findings]


def test_all_is_well(project: Path) -> None:
    found = examine(0)
    assert {one["level"] for name, one in found.items() if name != "cores"} == {"ok"}
    assert torch.__version__ in found["versions"]["text"]
    text = CliRunner().invoke(app, ["doctor"]).stdout
    assert "ok       locks: files under data can be locked\n" in text
    assert text.splitlines()[-1].startswith("0 problems, ")


def test_outside_of_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = examine(1)
    assert found["params.yaml"]["level"] == "problem"
    assert "params.yaml is missing" in found["params.yaml"]["text"]
    assert found["DVC's records"]["level"] == "problem"
    assert "kdm new DIR" in found["DVC's records"]["text"]


@pytest.mark.parametrize("cut", ["stages:\n  teach", "stages:\n  report:\n    cmd: python\n   "])
def test_a_lock_file_that_is_cut(project: Path, cut: str) -> None:
    """As by a DVC that is killed while it writes it: the advice brings all back."""
    lock = project / "dvc.lock"
    whole = lock.read_bytes()
    lock.write_text(cut)
    found = examine(1)["DVC's records"]
    assert found["level"] == "problem"
    assert "dvc.lock" in found["text"]
    assert CUT_LOCK in found["text"]
    status = CliRunner().invoke(app, ["status"])
    assert status.exit_code == 1
    assert CUT_LOCK in status.stderr
    lock.unlink()
    dvc(project, "repro")
    assert YAML(typ="safe").load(lock) == YAML(typ="safe").load(whole)


def test_notes_of_dvc_that_are_cut(project: Path) -> None:
    notes = project / ".dvc/tmp/rwlock"
    notes.write_text('{"read": {')
    found = examine(1)[".dvc/tmp/rwlock"]
    assert (found["level"], "remove it when no DVC runs" in found["advice"]) == ("problem", True)
    notes.unlink()
    assert examine(0)["DVC's records"]["text"] == "13 stages"


def test_a_run_that_was_not_noted(project: Path) -> None:
    folder = project / ".dvc/cache/runs/aa/aabb"
    folder.mkdir(parents=True)
    found = examine(1)["DVC's cache of runs"]
    assert str(folder) in found["text"]
    assert "-empty -delete" in found["advice"]
    folder.rmdir()
    assert examine(0)["DVC's records"]["text"] == "13 stages"


def test_what_cannot_be_reached(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that lies elsewhere is silent or gone; no password is shown."""
    monkeypatch.setattr(services, "PATIENCE_S", 0.5)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with silent() as address:
        (project / ".dvc/config").write_text(
            "[core]\n    remote = bucket\n"
            f"['remote \"bucket\"']\n    url = s3://bucket/x\n    endpointurl = http://{address}\n"
            f"['remote \"folder\"']\n    url = {project / 'remote'}\n"
            f"['remote \"web\"']\n    url = http://me:{SECRET}@{closed()}/x\n")
        values = YAML(typ="safe").load(project / "params.yaml")
        values["execution"]["sampling"] = {"engine": "dask", "address": f"tcp://{closed()}"}
        values["report"]["publish"] = "/proc/reports"
        YAML().dump(values, project / "params.yaml")
        begun = time.monotonic()
        with temporary_settings({PREFECT_API_URL: f"http://me:{SECRET}@{closed()}/api"}):
            found = examine(1)
        assert time.monotonic() - begun < 10
    assert found["DVC remote bucket"]["text"] == "s3://bucket/x: no answer within 0.5 s"
    assert found["DVC remote folder"]["level"] == "ok"
    assert found["DVC remote web"]["level"] == "problem"
    assert "refused" in found["Dask scheduler"]["text"]
    assert found["Prefect server"]["level"] == "problem"
    assert found["report.publish"]["level"] == "problem"
    assert SECRET not in json.dumps(found)


def test_a_location_that_can_be_written(tmp_path: Path) -> None:
    values = params(pairs={"location": str(tmp_path / "not" / "yet")},
                    report={"publish": "memory://reports"})
    assert levels(services.check_locations(values)) == ["ok", "ok"]
    assert list(tmp_path.iterdir()) == []  # nothing is left there


def test_waiting_has_a_limit() -> None:
    assert within(0.1, lambda: str(time.sleep(5))) == "no answer within 0.1 s"
    assert within(5, lambda: "refused") == "refused"


@pytest.mark.parametrize("text, bare", [
    ("see s3://user:hunter2@bucket/x?key=hunter2 there", "see s3://bucket/x there"),
    ("https://h:1/a", "https://h:1/a"), ("nothing", "nothing"),
    ('endpoint URL: "http://me:hunter2@h:1/b?k=hunter2#hunter2"', 'endpoint URL: "http://h:1/b"'),
    ("(s3://me:hun@'ter2@[::1/x)", "(s3://[::1/x)"),
])
def test_passwords_are_left_out(text: str, bare: str) -> None:
    assert without_password(text) == bare


def test_a_password_is_left_out_before_the_text_is_cut() -> None:
    def fail() -> str:
        raise ConnectionError("x" * 180 + f" http://me:{SECRET}{'x' * 30}@h/")

    found = services.judge("bucket", "s3://bucket", fail, "")
    assert found.level == "problem" and SECRET not in found.text


@pytest.mark.parametrize("file, content", [
    ("data/dataset/dataset.json", "{"), ("data/dataset/dataset.json", "[]"),
    ("data/pairs/pairs.zarr/reference.json", '{"pairs": "many"}'),
])
def test_what_is_damaged_is_a_finding(
    file: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(file).parent.mkdir(parents=True)
    Path(file).write_text(content)
    (found,) = findings_of(storage.check_space, params())
    assert found.level == "problem" and file in found.text


def test_data_that_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").touch()
    (found,) = findings_of(storage.check_file_system)
    assert found.level == "problem" and "data cannot be written" in found.text


def test_an_address_that_is_none() -> None:
    with temporary_settings({PREFECT_API_URL: f"http://me:{SECRET}@host:x/api"}):
        (found,) = findings_of(services.check_prefect)
    assert found.level == "problem" and "no URL" in found.text and SECRET not in found.text
    # Prefect cannot even be imported without a complaint.
    code = ("from pipeline.kdm.checks import services\n"
            "from pipeline.kdm.doctor import findings_of\n"
            "print(findings_of(services.check_prefect))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env=environment(PREFECT_API_URL=f"http://me:{SECRET}@[::1/api"))
    assert "level='problem', text=\"Prefect's settings cannot be used" in done.stdout, done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_packages_that_do_not_fit() -> None:
    assert "needed is <0.1" in versions.misfit(Requirement("zarr<0.1"))
    assert versions.misfit(Requirement("no-such-thing")) == "no-such-thing is missing"
    assert versions.misfit(Requirement('no-such-thing; extra == "x"')) == ""
    assert versions.misfit(Requirement("torch>=2.11")) == ""


def test_gpus_and_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    (found,) = machine.check_gpu()
    assert found.level == "warning" and "build for CPUs" in found.text
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (found,) = machine.check_gpu()
    assert found.level == "warning" and "driver" in found.advice
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H200")
    assert machine.check_gpu() == [Finding("GPU", "ok", "2 × H200, CUDA 13.0")]

    monkeypatch.setattr("pipeline.params.compute.resolve_device", torch.device)
    values = params(compute={"device": "cuda"}, execution={
        "sampling": {"engine": "local", "workers": 4},
        "training": {"engine": "torchrun", "nproc_per_node": 2}})
    (found,) = machine.check_processes(values)
    assert (found.check, found.level) == ("execution.sampling", "problem")
    one = params(compute={"device": "cuda:1"}, execution={
        "training": {"engine": "torchrun", "nproc_per_node": 2}})
    assert levels(machine.check_processes(one)) == ["problem"]


def test_devices_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda: 4)
    crowded = params(compute={"threads": 3}, execution={"sampling": {"engine": "local",
                                                                     "workers": 2}})
    assert levels(machine.check_cores(crowded)) == ["warning"]
    assert levels(machine.check_cores(params(compute={"threads": 4}))) == ["ok"]
    absent = params(compute={"device": "xpu:7"})
    assert levels(machine.check_device(absent)) == ["problem"]
    assert machine.check_processes(absent) == []
    (found,) = machine.check_device(params())
    assert str(resolve_device("cpu")) in found.text and "bf16" in found.text


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDM_CACHE", str(tmp_path))
    gone = {"source": "npz", "path": "gone.npz", "conditional": True}
    values = params(data=gone, evaluation={"extractors": [{"kind": "inception"}]},
                    filter={"copies": [{"features": {"kind": "dinov2"}, "threshold": 0.5}]})
    assert [one.check for one in inputs.check_sources(values)] == ["data.path"]
    found = {one.check: one for one in inputs.check_weights(values)}
    assert {name: one.level for name, one in found.items()} == {
        "weights inception": "warning", "weights dinov2_vitl14": "problem"}
    assert "kdm weights fetch inception" in found["weights inception"].advice
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / inputs.REGISTRY["inception"].file).write_bytes(b"half of it")
    (damaged, _) = inputs.check_weights(values)
    assert "of another size" in damaged.text


def test_space_for_pairs_is_what_a_store_takes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PairStore.open(paths.PAIRS)
    stored = sum(array.nbytes for array in store.arrays.values())
    assert storage.pair_bytes(load_params(), DIGITS) == 0  # they are there
    monkeypatch.chdir(tmp_path)
    assert storage.pair_bytes(params(), DIGITS) == stored
    images = 2320 * 64
    seeded = params(pairs={"noise": "seeded", "states": 2, "sample_dtype": "float32"})
    assert storage.pair_bytes(seeded, DIGITS) == images * (2 * 2 + 4) + 2320 * 16
    assert storage.pair_bytes(params(pairs={"location": "s3://bucket/pairs"}), DIGITS) == 0


def test_a_disk_that_is_too_small(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "all results are there" in storage.check_space(load_params())[0].text
    monkeypatch.chdir(tmp_path)
    (found,) = storage.check_space(params())
    assert found.level == "ok" and "copies in the cache of DVC" in found.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert levels(storage.check_space(params())) == ["problem"]
    unknown = params(data={"source": "npz", "path": "x.npz"})
    assert levels(storage.check_space(unknown)) == ["warning"]


def test_file_systems_and_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert levels(storage.check_file_system()) == ["ok"] * 3
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.setattr(storage.fcntl, "flock", lambda file, how: None)
    locks, _, _ = storage.check_file_system()
    assert locks.level == "problem" and "locked again" in locks.text
    assert storage.check_clock(-30).level == "warning"
    timing = tmp_path / paths.TIMINGS / "teacher.json"
    timing.parent.mkdir(parents=True)
    timing.touch()
    os.utime(timing, (time.time() + 3600,) * 2)
    assert "written in the future" in storage.check_clock(0).text
