"""Where results lie: pairs and reports in buckets and folders, DVC's remotes; bad networks."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import fsspec
import fsspec.config
import numpy as np
import pytest
from s3fs import S3FileSystem
from typer.testing import CliRunner

from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.noise import draw
from kdm_core.pairs.location import options
from kdm_core.pairs.opening import open_or_create
from kdm_core.pairs.reference import FILE
from kdm_core.pairs.sampling import sample_pairs
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import write_json
from kdm_core.sharing.folder import load_student
from pipeline.kdm.cli import app
from pipeline.pairs.kept import keep, link_anew
from pipeline.params.reading import ParamsError, read_values
from pipeline.params.run import parse_params
from pipeline.project.files import PRESETS
from pipeline.reporting.publishing import publish
from pipeline.runtime import paths
from stages.sample_pairs.elsewhere import place_of, refer, stores_there
from stages.sample_pairs.growing import adopt
from tests.support.faulty_s3 import Proxy, faulty
from tests.support.pairs import CPU, Counted, files, plan, sampled, teacher
from tests.support.project import STUDIES, copy_project, dvc, edit, git, python, repro, succeeds
from tests.support.s3_server import S3

CONFIG = """
[core]
    analytics = false
    no_scm = true
    remote = bucket
    site_cache_dir = {site}
['remote "bucket"']
    url = {bucket}/dvc
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refer_to(store: PairStore) -> Path:
    """A reference to a store, in the place of a project's pairs."""
    refer(store, store.content_hash(), paths.PAIRS)
    return paths.PAIRS


# References


@pytest.mark.parametrize("place", ["stores/p.zarr", "../p.zarr", "file", "bucket"])
def test_a_reference_is_read_as_its_store(
    project: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    place = {"bucket": f"{bucket}/p.zarr", "file": f"file://{project}/p.zarr"}.get(place, place)
    made = PairStore.create(place, plan(), {})
    sample_pairs(made, teacher(), CPU)
    content = made.content_hash()
    refer_to(made)
    assert [file.name for file in paths.PAIRS.iterdir()] == [FILE]
    monkeypatch.chdir(project.parent.parent)  # it is no matter from where
    store = PairStore.open(project / paths.PAIRS)
    assert store.spec == plan()
    assert store.content_hash() == content == store.expected_content
    with pytest.raises(DataError, match="only says where the pairs lie.*name that to change"):
        PairStore.open(project / paths.PAIRS, writable=True)


def test_a_reference_moves_with_its_project(project: Path) -> None:
    refer_to(sampled(Path("stores/p.zarr")))
    moved = project.rename(project.with_name("moved"))
    assert PairStore.open(moved / paths.PAIRS).missing_shards() == []


def test_a_reference_to_what_is_gone_or_another(
    project: Path, bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = refer_to(sampled(Path("p.zarr")))
    shutil.rmtree("p.zarr")
    with pytest.raises(DataError, match="no Zarr group.*gone for good, force whatever samples"):
        PairStore.open(path)
    sampled(Path("p.zarr"), train=71)
    with pytest.raises(MismatchError, match="names the pairs .*bring those back, or force"):
        PairStore.open(path)
    remote = open_or_create(f"{bucket}/p.zarr", plan(), {})
    refer(remote, "0" * 64, path)
    monkeypatch.setattr(s3, "broken", True)
    with pytest.raises(DataError, match="Internal Server Error.*check the address, the network"):
        PairStore.open(path)


@pytest.mark.parametrize("change", [
    {"location": ""}, {"location": 1}, {"fingerprint": "x"}, {"pairs": 0}, {"other": 1}])
def test_a_damaged_reference(project: Path, change: dict[str, object]) -> None:
    path = refer_to(sampled(Path("p.zarr")))
    write_json(path / FILE, json.loads((path / FILE).read_text()) | change)
    with pytest.raises(DataError, match=f"{FILE} is no reference.*{next(iter(change))}"):
        PairStore.open(path)
    (path / FILE).write_text("{")
    with pytest.raises(DataError, match="no valid JSON|not valid JSON"):
        PairStore.open(path)


def test_references_that_lead_nowhere(project: Path) -> None:
    """To themselves, that is, or past a password."""
    path = refer_to(sampled(Path("p.zarr")))
    written = json.loads((path / FILE).read_text())
    write_json(path / FILE, written | {"location": "../pairs.zarr"})
    with pytest.raises(DataError, match="no Zarr group"):
        PairStore.open(path)
    write_json(path / FILE, written | {"location": "s3://user:hunter2@bucket/p.zarr"})
    with pytest.raises(DataError, match="has a password") as caught:
        PairStore.open(path)
    assert "hunter2" not in str(caught.value)


def test_exchanged_pairs_are_found_by_verifying(project: Path) -> None:
    store = sampled(Path("p.zarr"))
    path = refer_to(store)
    assert CliRunner().invoke(app, ["pairs", "verify", str(path)]).exit_code == 0
    block = store.read(range(16, 32))
    store.write_shard(1, block._replace(sample=255 - block.sample))
    found = CliRunner().invoke(app, ["pairs", "verify", str(path)])
    assert isinstance(found.exception, KDMError) or found.exit_code == 1
    assert "these are others" in found.output + str(found.exception)


def test_kept_pairs_know_nothing_of_references(project: Path) -> None:
    said: list[str] = []
    keep(Path(sampled(Path("a")).location), "key", said.append)
    before = [file.stat().st_ino for file in sorted(Path("data/work/kept_pairs").rglob("0"))]
    link_anew(PairStore.open(refer_to(sampled(Path("b")))), said.append)
    after = [file.stat().st_ino for file in sorted(Path("data/work/kept_pairs").rglob("0"))]
    assert before == after and not said
    assert {one.spec.fingerprint for one in stores_there(None, said.append)} == {
        plan().fingerprint}


# Stores elsewhere


@pytest.mark.parametrize("location", ["stores", "bucket"])
def test_growing_elsewhere_samples_the_rest_only(
    project: Path, bucket: str, location: str
) -> None:
    location = bucket if location == "bucket" else location
    said: list[str] = []
    fresh = sampled(Path("fresh"), train=120)
    assert not list(stores_there(location, said.append))
    for train in (20, 70):
        store = PairStore.create(place_of(location, plan(train=train)), plan(train=train), {})
        sample_pairs(store, teacher(), CPU)
    # As an earlier release called the place of one that was killed.
    PairStore.create(f"{location}/pairs-{'k' * 16}-{'0' * 16}.zarr", plan(train=500), {})
    PairStore.create(place_of(location, plan(chunk=8)), plan(chunk=8), {})
    store = open_or_create(place_of(location, fresh.spec), fresh.spec, {})
    former = [one for one in stores_there(location, said.append)
              if one.spec.stream == fresh.spec.stream and one.spec != fresh.spec]
    assert sorted(one.spec.count for one in former) == [35, 85, 515]
    counted = Counted()
    for one in former:
        adopt(store, one, counted, CPU, said.append)  # type: ignore[arg-type]
    sample_pairs(store, counted, CPU)  # type: ignore[arg-type]
    assert counted.batches <= len(range(32 // 8, -(-135 // 8)))
    assert store.content_hash() == fresh.content_hash()
    assert not said


def test_the_bytes_there_are_those_of_a_disk(project: Path, bucket: str) -> None:
    """Whether they were sampled there or taken over."""
    sampled(Path("small"), train=66)
    former = PairStore.open("small")
    store = PairStore.create(f"{bucket}/p.zarr", plan(), {})
    assert adopt(store, former, teacher(), CPU, print) == 81
    sample_pairs(store, teacher(), CPU)
    sampled(Path("p.zarr"))
    there = fsspec.filesystem("s3")
    root = f"{bucket.removeprefix('s3://')}/p.zarr"
    assert {name.removeprefix(f"{root}/"): there.cat(name) for name in there.find(root)} \
        == {str(name): content for name, content in files(Path("p.zarr")).items()}


def test_a_half_made_store_is_made_again(bucket: str) -> None:
    """As a kill leaves it, of whatever instant; and nothing else is written over."""
    url = f"{bucket}/p.zarr"
    made = PairStore.create(url, plan(states=1), {})
    there, root = fsspec.filesystem("s3"), url.removeprefix("s3://")
    names = sorted(there.find(root), key=lambda name: (name == f"{root}/zarr.json", name))
    for count in range(len(names)):
        for name in names[count:]:
            there.rm(name)
        made = open_or_create(url, plan(states=1), {})
    sample_pairs(made, teacher(), CPU)
    there.rm(f"{root}/zarr.json")
    with pytest.raises(DataError, match="holds something already"):
        open_or_create(url, plan(states=1), {})


# Published reports


@pytest.fixture
def report(project: Path) -> Path:
    for name in ("report.html", "report.json", "figures/samples.png", "figures/curves.png"):
        path = paths.REPORTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return paths.REPORTS


def test_reports_are_published(report: Path, bucket: str) -> None:
    for target in (bucket, f"{bucket}/below/", "elsewhere/report"):
        publish(target)
        publish(target)
        where = fsspec.get_mapper(target)
        assert {name: where[name] for name in where} == {
            name: name.encode() for name in ("report.html", "report.json", "figures/samples.png",
                                             "figures/curves.png")}
    [name, key] = f"{bucket.removeprefix('s3://')}/report.html".split("/", 1)
    found = boto3.client("s3").head_object(Bucket=name, Key=key)
    assert found["ContentType"] == "text/html"  # else browsers download it


def test_a_report_that_cannot_be_published(
    report: Path, bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KDMError, match="is complete, but was not published.*no-such-bucket"):
        publish("s3://no-such-bucket/report")
    Path("file").touch()
    with pytest.raises(KDMError, match="is complete, but was not published.*file"):
        publish("file/report")
    monkeypatch.setattr(s3, "broken", True)
    with pytest.raises(KDMError, match="is complete, but was not published.*Internal Server"):
        publish(bucket)


@pytest.mark.parametrize(("location", "problem"), [
    ("s3://user:hunter2@bucket/x", "has a password or a query"),
    ("s3://bucket/x?key=hunter2", "has a password or a query"),
    ("https://host/x", "for reading only")])
@pytest.mark.parametrize("field", ["pairs.location", "report.publish"])
def test_places_that_are_refused_before_any_work(
    field: str, location: str, problem: str
) -> None:
    values = read_values(PRESETS / "smoke.yaml")
    section, _, name = field.partition(".")
    values[section][name] = location
    with pytest.raises(ParamsError, match=f"{field}: .*{problem}") as caught:
        parse_params(values)
    assert "hunter2" not in str(caught.value)


# Bad networks


def test_a_store_through_a_bad_network(bucket: str, tmp_path: Path) -> None:
    with faulty(seed=2, rate=0.2) as network:
        store = PairStore.create(f"{bucket}/p.zarr", plan(train=30), {})
        sample_pairs(store, teacher(), CPU)
        found = PairStore.open(f"{bucket}/p.zarr").content_hash()
    assert len(network.faults) > 3
    assert found == sampled(tmp_path / "p.zarr", train=30).content_hash()


def test_a_network_that_stays_bad_loses_nothing(bucket: str, tmp_path: Path) -> None:
    url, expected = f"{bucket}/p.zarr", sampled(tmp_path / "p.zarr", train=30).content_hash()
    failed, done = 0, False
    with faulty(0, 0.08, ("500", "503"), in_a_row=None, attempts=1) as network:
        while not done:
            try:
                sample_pairs(open_or_create(url, plan(train=30), {}), teacher(), CPU)
                done = True
            except DataError as error:
                assert re.search("network is bad.*run again", str(error))
                failed += 1
    assert 1 < failed <= len(network.faults)  # of several requests at once, more may fail
    assert PairStore.open(url).content_hash() == expected


def test_wrong_credentials_are_asked_once(bucket: str, report: Path) -> None:
    started = time.monotonic()
    with faulty(0, 1.0, ("403",), in_a_row=None) as network:
        for work in (lambda: PairStore.open(f"{bucket}/p.zarr"), lambda: publish(bucket)):
            before = network.requests
            with pytest.raises(KDMError, match="check the address, the network, the credentials"):
                work()
            assert network.requests == before + 1
    assert time.monotonic() - started < 10


def test_a_server_that_stays_down_is_given_up(bucket: str) -> None:
    with faulty(0, 1.0, ("500",), in_a_row=None, attempts=3) as network:
        with pytest.raises(DataError, match="network is bad: 500"):
            PairStore.open(f"{bucket}/p.zarr")
        assert network.requests == 3


def test_a_server_that_never_answers_is_given_up(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many tries as s3fs makes twice over, which are five each by default."""
    monkeypatch.setattr(S3FileSystem, "retries", 2)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.2}})
    with faulty(0, 1.0, ("no answer",), in_a_row=None, attempts=1) as network:
        with pytest.raises(DataError, match="Read timeout on endpoint.*check the address"):
            PairStore.open(f"{bucket}/p.zarr")
        assert network.requests == 2 * 2


def test_the_users_own_configuration_wins(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> object:
        return options("s3://bucket/p.zarr")["config_kwargs"]["retries"]

    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert found() == {"mode": "standard", "total_max_attempts": 6}
    (tmp_path / "config").write_text("[default]\nretry_mode = adaptive\nmax_attempts = 3\n")
    assert found() == {"mode": "adaptive", "total_max_attempts": 3}
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    assert found() == {"mode": "legacy", "total_max_attempts": 9}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 3}})
    assert "config_kwargs" not in options("s3://bucket/p.zarr")


# DVC's remotes


def clone_of(project: Path, folder: Path) -> Path:
    """What another machine has of a project: what git and the remotes have, and no cache."""
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=run")
    git(project, "clone", "--quiet", str(project), str(folder))
    dvc(folder, "config", "--local", "core.site_cache_dir", str(folder.with_suffix(".cache")))
    return folder


def require_usable(clone: Path, original: Path) -> None:
    """The student makes the same samples, and the report is the same."""
    samples = [load_student(project / "data/students/kdm")[0].sample(4, precision="fp32")
               for project in (clone, original)]
    assert samples[0].equal(samples[1])
    for name in ("report.html", "report.json"):
        assert (clone / "reports" / name).read_bytes() == (original / "reports" / name).read_bytes()


def test_a_run_goes_to_another_machine_by_a_folder(finished: Path, tmp_path: Path) -> None:
    project = copy_project(finished, tmp_path / "project")
    dvc(project, "remote", "add", "--default", "folder", str(tmp_path / "remote"))
    clone = clone_of(project, tmp_path / "clone")
    dvc(project, "push", "--quiet")
    dvc(clone, "pull", "--quiet")
    assert repro(clone) == set()
    require_usable(clone, project)
    assert (PairStore.open(clone / paths.PAIRS).content_hash()
            == PairStore.open(project / paths.PAIRS).content_hash())


def in_a_bucket(bucket: str) -> Callable[[dict], None]:  # type: ignore[type-arg]
    """Less of everything, and what may lie in a bucket there."""

    def change(values: dict) -> None:  # type: ignore[type-arg]
        values["pairs"].update(train=400, location=f"{bucket}/pairs")
        values["students"] = {"kdm": values["students"]["kdm"]}
        values["students"]["kdm"]["training"].update(steps=20)
        values["students"]["kdm"]["shuffle_buffer"] = 160  # streams
        values["evaluation"].update(extractors=[], lpips=[], bootstrap=0)
        values["studies"] = dict.fromkeys(STUDIES)
        values["report"]["publish"] = f"{bucket}/report"

    return change


def forget(project: Path, student: str) -> None:
    """Remove what a student left that is no longer in params.yaml: the report depends on folders
    in which it lies."""
    for path in (*project.glob(f"data/*/{student}"), *project.glob(f"reports/*/*{student}*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_in_a_bucket_goes_to_another_machine(
    finished: Path, bucket: str, tmp_path: Path
) -> None:
    project = copy_project(finished, tmp_path / "project")
    edit(project, in_a_bucket(bucket))
    forget(project, "kdm-f")
    ran = repro(project)
    assert ran == {"sample_pairs", "filter_pairs", "train_student@kdm", "evaluate@kdm",
                   "study@kdm", "report"}
    assert [file.name for file in (project / paths.PAIRS).iterdir()] == [FILE]
    dvc(project, "remote", "add", "--default", "bucket", f"{bucket}/dvc")
    clone = clone_of(project, tmp_path / "clone")
    dvc(project, "push", "--quiet")
    dvc(clone, "pull", "--quiet")
    assert repro(clone) == set()
    require_usable(clone, project)
    store, alone = PairStore.open(clone / paths.PAIRS), PairStore.open(finished / paths.PAIRS)
    assert str(store.location).startswith(f"{bucket}/pairs/pairs-")
    assert store.content_hash() == store.expected_content
    rows = range(0, store.spec.count)
    np.testing.assert_array_equal(store.read(rows).sample, alone.read(rows).sample)
    assert fsspec.filesystem("s3").cat(f"{bucket}/report/report.html") \
        == (project / "reports/report.html").read_bytes()
    # Forgotten here, they are found there, and none is sampled again.
    shutil.rmtree(project / "data/work")
    assert "going on after 720 pairs" in succeeds(project, "stages.sample_pairs")


def test_dvc_through_a_bad_network(bucket: str, tmp_path: Path) -> None:
    """What is pushed and pulled is there and whole, or the command fails and goes on when asked."""
    dvc(tmp_path, "init", "--quiet", "--no-scm")
    (tmp_path / ".dvc/config").write_text(CONFIG.format(site=tmp_path / "site", bucket=bucket))
    folder = tmp_path / "data"
    folder.mkdir()
    contents = {str(n): draw(n, np.arange(4), (50,), "float32")[0].tobytes() for n in range(8)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    dvc(tmp_path, "add", "--quiet", "data")
    with faulty(seed=1, rate=0.15) as network:
        until_it_succeeds(tmp_path, "push", network)
        for path in (folder, tmp_path / "site", tmp_path / ".dvc/cache"):
            shutil.rmtree(path)
        until_it_succeeds(tmp_path, "pull", network)
    assert network.faults
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents


def until_it_succeeds(folder: Path, command: str, network: Proxy, times: int = 4) -> None:
    """Run a DVC command again and again."""
    for _ in range(times):
        done = python(folder, "dvc", command, AWS_MAX_ATTEMPTS="8")
        if done.returncode == 0:
            return
        assert "ERROR: " in done.stderr
    raise AssertionError(f"{command}: {done.stderr[-1000:]} after {network.faults}")
