"""Files by path, URL and hub address, over real HTTP servers on this machine."""

import hashlib
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from pydantic import ValidationError

from kdm_core.errors import DataError, MismatchError
from kdm_core.importers.files import Weights, fetch, fetch_folder
from kdm_core.serialization import file_sha256
from tests.support.hub import HubHandler, serving
from tests.support.project import ROOT

CONTENT = bytes(range(256)) * 300
SHA256 = hashlib.sha256(CONTENT).hexdigest()
class Handler(BaseHTTPRequestHandler):
    """`/weights.pt`, `/cut.pt` (half of what it announces), `/plain` (redirects to http)."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/plain":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/weights.pt")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path not in ("/weights.pt", "/cut.pt"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/weights.pt" else CONTENT[: len(CONTENT) // 2])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Handler.requests = []
    return tmp_path / "cache" / "downloads"


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    with serving(Handler) as address:
        yield f"http://{address}"


def ask_hub(address: str, home: Path, *calls: str, offline: bool = False) -> list[str]:
    """What calls return or refuse in a Python for which the hub is at `address`.

    Another process, since huggingface_hub reads the address when it is imported.
    """
    environment = os.environ | {"HF_ENDPOINT": f"http://{address}", "HF_HOME": str(home),
                                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "1" if offline else "0"
    script = ("import sys\n"
              "from kdm_core.importers.files import fetch, fetch_folder\n"
              "from kdm_core.errors import KDMError\n"
              "for call in sys.argv[1:]:\n"
              "    try:\n        print(eval(call))\n"
              "    except KDMError as error:\n        print('refused:', error)\n")
    done = subprocess.run([sys.executable, "-c", script, *calls], cwd=ROOT, env=environment,
                          text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_local_file_and_its_sum(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(CONTENT)
    assert fetch(str(file), None) == file
    assert fetch(str(file), SHA256.upper()) == file
    assert file_sha256(file) == SHA256
    with pytest.raises(MismatchError, match=rf"sha256.*{SHA256}, not {'0' * 64}"):
        fetch(str(file), "0" * 64)


@pytest.mark.parametrize("name", ["missing.pt", "."])
def test_no_such_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"file.*does not exist or is not a file"):
        fetch(str(tmp_path / name), None)


def test_a_download_is_kept_and_shows_its_progress(
    http: str, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = fetch(f"{http}/weights.pt", SHA256)
    assert path.read_bytes() == CONTENT and path.parent == cache
    assert "B/s" in capfd.readouterr().err
    assert fetch(f"{http}/weights.pt", SHA256) == path
    assert Handler.requests == ["/weights.pt"]


def test_a_kept_file_of_another_sum_is_fetched_anew(http: str) -> None:
    path = fetch(f"{http}/weights.pt", SHA256)
    path.write_bytes(b"what was published before")
    assert fetch(f"{http}/weights.pt", SHA256).read_bytes() == CONTENT


def test_a_download_of_another_sum_is_refused(http: str) -> None:
    with pytest.raises(MismatchError, match=rf"sha256.*{SHA256}, not {'0' * 64}"):
        fetch(f"{http}/weights.pt", "0" * 64)


@pytest.mark.parametrize("name", ["missing.pt", "cut.pt"])
def test_a_failed_download_is_one_message_and_leaves_nothing(
    http: str, cache: Path, name: str
) -> None:
    with pytest.raises(DataError, match=rf"file: {http}/{name} could not be downloaded"):
        fetch(f"{http}/{name}", SHA256)
    assert not list(cache.iterdir())


def test_a_host_that_does_not_answer() -> None:
    with pytest.raises(DataError, match=r"downloaded \(.*[Cc]onnection refused\): check the"):
        fetch("http://127.0.0.1:9/weights.pt", SHA256)


@pytest.mark.parametrize("url", ["https://", "https://[", "https://a\0b/c", "https://é..x/"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(DataError, match=r"file"):
        fetch(url, None)


@pytest.mark.parametrize("file", ["http://x.org/a.pt", "ftp://x.org/a.pt", "file:///etc/passwd",
                                  "hf://owner/name", "hf://owner//x", ""])
def test_what_may_not_be_named(file: str) -> None:
    with pytest.raises(ValidationError, match="file"):
        Weights(file=file)
    assert Weights(file="http://x.org/a.pt", sha256=SHA256).sha256 == SHA256
    with pytest.raises(ValidationError, match="sha256"):
        Weights(file="a.pt", sha256="abc")


def certificate(folder: Path) -> Path:
    """A key and a certificate of its own for 127.0.0.1, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name)
            .public_key(key.public_key()).serial_number(1)
            .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
                           critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256()))
    file = folder / "server.pem"
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM,
                                       serialization.PrivateFormat.PKCS8,
                                       serialization.NoEncryption())
                     + made.public_bytes(serialization.Encoding.PEM))
    return file


def test_https_unpinned_but_never_on_to_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = certificate(tmp_path)

    def encrypt(server: ThreadingHTTPServer) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        server.socket = context.wrap_socket(server.socket, server_side=True)

    with serving(Handler, encrypt) as address:
        with pytest.raises(DataError, match="could not be downloaded"):  # nobody vouches for it
            fetch(f"https://{address}/weights.pt", None)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
        assert file_sha256(fetch(f"https://{address}/weights.pt", None)) == SHA256
        with pytest.raises(DataError, match="redirects to http://"):
            fetch(f"https://{address}/plain", None)


def test_the_hub(tmp_path: Path) -> None:
    HubHandler.files = {"sub/weights.pt": CONTENT, "config.json": b"{}", "notes.txt": b"x"}
    with serving(HubHandler) as address:
        main, revision, folder, missing, altered, nobody = ask_hub(
            address, tmp_path,
            f"fetch('hf://someone/model/sub/weights.pt', '{SHA256}')",
            f"fetch('hf://someone/model/sub/weights.pt@v2', '{SHA256}')",
            "fetch_folder('someone/model', None, ['*.json'])",
            "fetch('hf://someone/model/other.pt', None)",
            f"fetch('hf://someone/model/config.json', '{SHA256}')",
            "fetch_folder('no/body', None, ['*'])")
    for found in (main, revision):
        assert Path(found).read_bytes() == CONTENT and tmp_path in Path(found).parents
    assert [file.name for file in Path(folder).glob("*") if file.is_file()] == ["config.json"]
    assert missing.startswith("refused: file: hf://someone/model/other.pt could not be")
    assert altered.startswith("refused: sha256: hf://someone/model/config.json")
    assert nobody.startswith("refused: folder: no/body could not be fetched")


def test_a_hub_that_cannot_be_asked(tmp_path: Path) -> None:
    """Offline, since the library spends half a minute on hosts that do not answer."""
    file, folder = ask_hub("127.0.0.1:9", tmp_path, "fetch('hf://someone/model/weights.pt', None)",
                           "fetch_folder('someone/model', None, ['*'])", offline=True)
    assert file.startswith("refused: file: hf://someone/model/weights.pt could not be")
    assert folder.startswith("refused: folder: someone/model could not be fetched")


def test_a_folder_that_is_neither_here_nor_on_the_hub(tmp_path: Path) -> None:
    assert fetch_folder(str(tmp_path), None, []) == tmp_path
    with pytest.raises(DataError, match=r"folder.*does not exist"):
        fetch_folder(str(tmp_path / "missing"), None, [])
