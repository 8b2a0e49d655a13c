"""Nothing from outside is executed, nothing leaves its place, and secrets stay where they are."""

import ast
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from kdm_core.errors import DataError, KDMError
from kdm_core.importers import StateDictSource
from kdm_core.importers.files import fetch
from kdm_core.pairs.importing import open_source
from pipeline.flow import deploy
from pipeline.params.execution import ExecutionParams
from pipeline.params.pairs import StoredPairs
from pipeline.params.reading import ParamsError, parse
from tests.support.project import ROOT, copy_project, environment, python
from tests.support.unsafe import unsafe_calls

FOLDERS = ("kdm_core", "stages", "pipeline", "benchmarks", "requirements", "tests")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS
               for path in (ROOT / folder).rglob("*.py"))
SHIPPED = [path for path in FILES if path.parts[0] in ("kdm_core", "stages", "pipeline")]

# Where it has to be, and why; all of it in tests.
EXPLOIT = "shows that the file in question does run something when it is unpickled"
OWN = "runs what the test, or the library, has written itself"
ALLOWED = {
    ("tests/kdm_core/datasets/test_datasets.py", "os.system"): EXPLOIT,
    ("tests/kdm_core/datasets/test_datasets.py", "pickle.loads"): EXPLOIT,
    ("tests/kdm_core/importers/test_state_dict.py", "os.system"): EXPLOIT,
    ("tests/kdm_core/importers/test_state_dict.py",
     "torch.load without weights_only=True"): EXPLOIT,
    ("tests/kdm_core/importers/test_persistent.py", "os.system"): EXPLOIT,
    ("tests/kdm_core/importers/test_persistent.py", "pickle.loads"): EXPLOIT,
    ("tests/kdm_core/importers/test_persistent.py", "exec"): OWN,
    ("tests/kdm_core/sharing/test_use.py", "exec"): OWN,
    ("tests/kdm_core/students/test_train.py", "exec"): "runs what a page of the docs says",
    ("tests/support/forks.py", "runpy.run_module"): OWN,
    ("tests/kdm_core/solvers/test_solvers.py", "builtins.__import__"):
        "makes the import of a package fail",
    ("tests/docs/test_examples.py", "exec"): "the notebook of this repository",
    ("tests/docs/test_examples.py", "runpy.run_path"): "the example of this repository",
    ("tests/docs/test_snippets.py", "exec"): "the documentation of this repository",
}


def test_no_code_runs_what_it_reads() -> None:
    found = {(path.as_posix(), finding.name): finding.line for path in FILES
             for finding in unsafe_calls((ROOT / path).read_text(encoding="utf-8"))}
    assert {where: line for where, line in found.items() if where not in ALLOWED} == {}
    assert set(ALLOWED) == set(found)  # no exception outlives its reason


@pytest.mark.parametrize(("code", "name"), [
    ("import pickle\npickle.load(f)", "pickle.load"),
    ("import pickle as p\ndef f(x): return p.loads(x)", "pickle.loads"),
    ("def f(x): return loads(x)\nfrom pickle import loads", "pickle.loads"),
    ("import pickle\nclass Mine(pickle.Unpickler): pass", "pickle.Unpickler"),
    ("from pickle import *\nload(f)", "import *"),
    ("import pickle\nrun = map(pickle.loads, parts)", "pickle.loads"),
    ("import torch\ntorch.load(p)", "torch.load without weights_only=True"),
    ("import torch\ntorch.load(p, weights_only=safe)", "torch.load without weights_only=True"),
    ("from torch import load\nload(p, weights_only=False)", "torch.load without weights_only=True"),
    ("import torch\ntorch.serialization.load(p)", "torch.load without weights_only=True"),
    ("from torch.serialization import load as read\nread(p)",
     "torch.load without weights_only=True"),
    ("from ruamel import yaml\nyaml.load(t)", "ruamel.yaml.load"),
    ("import runpy\nrunpy.run_path(p)", "runpy.run_path"),
    ("import yaml\nyaml.load(t, Loader=yaml.Loader)", "yaml.load"),
    ("from ruamel.yaml import YAML\nYAML(typ='unsafe').load(p)", "YAML that is not safe"),
    ("import ruamel.yaml\nruamel.yaml.YAML(typ=kind)", "YAML that is not safe"),
    ("eval(text)", "eval"),
    ("f = exec", "exec"),
    ("__import__(name)", "__import__"),
    ("import subprocess\nsubprocess.run(c, shell=True)", "a shell"),
    ("import subprocess as s\ns.Popen(c, shell=needed)", "a shell"),
    ("import os\nos.system(c)", "os.system"),
    ("from os import popen as run\nrun(c)", "os.popen"),
    ("import numpy as np\nnp.load(p, allow_pickle=True)", "numpy.load with allow_pickle"),
    ("from numpy import load\nload(p, allow_pickle=x)", "numpy.load with allow_pickle"),
    ("from numpy.lib import format as npy\nnpy.read_array(f, allow_pickle=True)",
     "numpy.load with allow_pickle"),
    ("import tarfile\nwith tarfile.open(p) as t: t.extractall(d)", "archive.extractall"),
    ("import zipfile\nzipfile.ZipFile(p).extract(m, d)", "archive.extract"),
    ("import shutil\nshutil.unpack_archive(p)", "shutil.unpack_archive"),
    ("from transformers import AutoModel\nAutoModel.from_pretrained(n, trust_remote_code=True)",
     "trust_remote_code"),
])
def test_the_search_finds(code: str, name: str) -> None:
    assert name in {finding.name for finding in unsafe_calls(code)}


def test_the_search_leaves_alone_what_is_safe() -> None:
    assert list(unsafe_calls(
        "import numpy as np, pickle, subprocess, torch\nfrom ruamel.yaml import YAML\n"
        "np.load(p); np.load(p, allow_pickle=False); pickle.dumps(x); model.eval()\n"
        "torch.load(p, weights_only=True); YAML(typ='safe').load(p); YAML().dump(x, f)\n"
        "subprocess.run(c); extract(features); yaml = YAML(); text = 'pickle.load(f)'\n"
        "yaml.load(p); torch.serialization.load(p, weights_only=True)")) == []


def test_no_server_listens_to_everyone() -> None:
    """Addresses that mean all interfaces stand nowhere; the only host is the loopback."""
    everyone = {"0.0.0.0", "::", "[::]"}
    for path in SHIPPED:
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Constant) and node.value in everyone), path
    assert deploy.HOST == "127.0.0.1"


@pytest.mark.parametrize("name", ["../../evil", "/root/evil"])
def test_members_of_a_tar_stay_in_it(tmp_path: Path, name: str) -> None:
    """Their names only say which belong together; those of zips are refused (test_datasets.py)."""
    folder, stream = tmp_path / "a/b/in", io.BytesIO()
    folder.mkdir(parents=True)
    np.save(stream, np.zeros(2, np.float32))
    with tarfile.open(folder / "00.tar", "w") as archive:
        for ending in (".npy", ".noise.npy"):
            entry = tarfile.TarInfo(name.replace("/root", str(tmp_path)) + ending)
            entry.size = len(stream.getvalue())
            archive.addfile(entry, io.BytesIO(stream.getvalue()))
    before = sorted(tmp_path.rglob("*"))
    with suppress(DataError):
        assert open_source(folder).read(np.arange(1)).noise.shape == (1, 2)
    assert sorted(tmp_path.rglob("*")) == before


def lock_entries(path: Path) -> list[str]:
    """The requirements of a lock file, each with its hashes."""
    return re.split(r"\n(?=\S)", path.read_text().strip())


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.lock")),
                         ids=lambda path: path.name)
def test_all_dependencies_are_pinned_with_hashes(path: Path) -> None:
    entry = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[\w,-]+\])?==\S+( ;[^\\\n]*)?"
                       r"( \\\n    --hash=sha256:[0-9a-f]{64})+")
    entries = lock_entries(path)
    assert entries
    assert [text for text in entries if not entry.fullmatch(text)] == []


class Database(BaseHTTPRequestHandler):
    """A database of vulnerabilities as OSV's, which knows of one."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(500 if self.path == "/broken" else 200)
        self.end_headers()
        known = asked == {"package": {"name": "left", "ecosystem": "PyPI"}, "version": "1.0"}
        self.wfile.write(json.dumps({"vulns": [{
            "id": "PYSEC-2026-1", "summary": "bad", "affected": [{
                "package": {"name": "left", "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "1.1"}]}]}],
        }]} if known else {}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URL of a database of vulnerabilities."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("package", "path", "code", "said"), [
    ("left==1.0", "/", 1, ["left 1.0: PYSEC-2026-1, fixed in 1.1"]),
    ("left==1.1", "/", 0, ["mine.lock: looked up, of unknown age"]),
    ("left==1.0", "/broken", 0, ["mine.lock: not looked up", "did not answer", "unknown age"]),
    ("<<<<<<< left", "/", 1, ["mine.lock: could not be looked up"]),
])
def test_the_audit_fails_on_what_it_finds_or_cannot_read(
    database: str, tmp_path: Path, package: str, path: str, code: int, said: list[str]
) -> None:
    (tmp_path / "mine.lock").write_text(f"{package} \\\n    --hash=sha256:{'0' * 64}\n")
    done = subprocess.run(
        [sys.executable, ROOT / "requirements/audit.py", tmp_path / "mine.lock", "--osv-url",
         database + path], env=environment(NO_PROXY="127.0.0.1"), text=True, capture_output=True)
    assert done.returncode == code, done.stderr
    assert all(text in done.stdout for text in said), done.stdout


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "kdm-secret-1", "AWS_SESSION_TOKEN": "kdm-secret-2",
    "PREFECT_API_KEY": "kdm-secret-3", "PREFECT_API_AUTH_STRING": "user:kdm-secret-4",
    "HF_TOKEN": "kdm-secret-5", "HTTPS_PROXY": "http://user:kdm-secret-6@127.0.0.1:9",
}
SECRET = b"kdm-secret-"


def test_secrets_in_the_environment_go_nowhere(finished: Path, tmp_path: Path) -> None:
    """Not into what a stage writes or says, nor into what it says where it fails."""
    project = copy_project(finished, tmp_path / "project")
    done = python(project, "dvc", "repro", "--force", "--single-item", "report", **SECRETS)
    assert done.returncode == 0, done.stderr
    (project / "data/teacher/config.json").write_text("{")
    failed = python(project, "stages.sample_pairs", **SECRETS, KDM_LOG="json")
    assert failed.returncode == 1
    assert SECRET.decode() not in done.stdout + done.stderr + failed.stdout + failed.stderr
    written = [path for path in project.rglob("*") if path.is_file()]
    assert len(written) > 100
    assert [path for path in written if SECRET in path.read_bytes()] == []


@pytest.mark.parametrize(("annotation", "values"), [
    (ExecutionParams,
     {"sampling": {"engine": "dask", "address": "tcp://u:kdm-secret-7@host:8786"}}),
    (ExecutionParams,
     {"training": {"engine": "torchrun", "rdzv_endpoint": "u:kdm-secret-7@host:1"}}),
    (StoredPairs, {"source": "store", "location": "s3://u:kdm-secret-7@bucket/pairs.zarr"}),
    (StateDictSource, {"source": "state_dict",
                       "file": "https://u:kdm-secret-7@host/w.pt"}),
])
def test_passwords_in_params_are_refused_and_not_repeated(
    annotation: Any, values: dict[str, Any]
) -> None:
    with pytest.raises(ParamsError) as caught:
        parse(annotation, values, "params.yaml")
    assert "cannot be used" in str(caught.value) and "kdm-secret" not in str(caught.value)


def test_a_password_in_a_url_of_weights_is_refused() -> None:
    with pytest.raises(KDMError, match=r"password in it.*netrc") as caught:
        fetch("https://u:kdm-secret-7@host/w.pt", None)
    assert "kdm-secret" not in str(caught.value)
