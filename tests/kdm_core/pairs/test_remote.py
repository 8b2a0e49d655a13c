"""Pair stores behind URLs: a real S3 interface, HTTP, memory; their failures; copies of stores."""

import json
import multiprocessing
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import fsspec
import moto.settings
import numpy as np
import pytest

from kdm_core.errors import DataError, MismatchError
from kdm_core.pairs.copying import copy_store
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.location import writable_location
from kdm_core.pairs.opening import open_unfinished
from kdm_core.pairs.sampling import sample_shard
from kdm_core.pairs.store import PairStore
from tests.support.pairs import CPU, plan, sampled, teacher
from tests.support.s3_server import S3, forget_connections

READ_ONLY = {"Version": "2012-10-17", "Statement": [{
    "Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}]}


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/p.zarr"


def fill(url: str, shards: list[int]) -> None:
    store = PairStore.open(url, writable=True)
    for shard in shards:
        store.write_shard(shard, sample_shard(store.spec, teacher(), shard, CPU)[0])


def objects(url: str) -> Any:
    return fsspec.filesystem("s3"), url.removeprefix("s3://")


def sampled_at(url: str, **changes: object) -> PairStore:
    store = PairStore.create(url, plan(**changes), {"numpy": "x"})
    fill(url, list(range(store.spec.num_shards)))
    return PairStore.open(url)


def test_two_processes_fill_a_bucket(url: str, tmp_path: Path) -> None:
    store = PairStore.create(url, plan(), {})
    assert store.missing_shards() == [0, 1, 2, 3, 4, 5]
    fill(url, [1])
    assert store.missing_shards() == [0, 2, 3, 4, 5]
    with pytest.raises(DataError, match="pairs 16 to 33 are not complete"):
        store.read(range(16, 33))
    other = multiprocessing.get_context("spawn").Process(target=fill, args=(url, [3, 5]))
    other.start()
    fill(url, [0, 2, 4])
    other.join()
    assert other.exitcode == 0
    local = sampled(tmp_path / "p.zarr")
    remote = PairStore.open(url)
    assert remote.missing_shards() == []
    assert remote.content_hash() == local.content_hash()
    np.testing.assert_array_equal(remote.read(range(13, 50)).sample,
                                  local.read(range(13, 50)).sample)


def test_a_store_takes_few_requests(s3: S3, url: str) -> None:
    """Each costs a way to the bucket and back."""
    assert s3.count(lambda: PairStore.create(url, plan(), {})) == 12
    assert s3.count(partial(fill, url, [0, 1])) == 5 + 2 * 12
    assert s3.count(lambda: PairStore.open(url)) == 5
    store = PairStore.open(url)
    assert s3.count(lambda: store.read(range(0, 16))) == 4
    assert s3.count(lambda: store.read(range(0, 32))) == 8
    assert s3.count(lambda: store.is_complete(0)) == 1


def test_a_seeded_store_with_states(url: str, tmp_path: Path) -> None:
    changes: dict[str, object] = {"noise": "seeded", "states": 1}
    remote, local = sampled_at(url, **changes), sampled(tmp_path / "p.zarr", **changes)
    assert remote.content_hash() == local.content_hash()
    np.testing.assert_array_equal(remote.read(range(20)).noise, local.read(range(20)).noise)


def test_masks_lie_in_buckets_too(url: str) -> None:
    store = sampled_at(url)
    reasons = np.zeros(store.spec.count, np.uint16)
    reasons[[20, 30]] = 1
    mask = KeepMask(store.spec.fingerprint, ["copies"], reasons)
    beside = f"{url}.keep"
    mask.save(beside)
    mask.save(beside)
    assert KeepMask.load(beside).counts() == {"copies": 2}
    assert len(store.masked(KeepMask.load(beside)).kept_rows("train")) == 68
    mask.write(PairStore.open(url, writable=True).group)
    assert len(PairStore.open(url).kept_rows("train")) == 68
    with pytest.raises(DataError, match="is no Zarr group"):
        KeepMask.load(f"{url}.none")


def test_lost_and_altered_objects_are_damage(url: str) -> None:
    """A lost sample would else be an image of zeros."""
    store = sampled_at(url)
    whole = store.read(range(0, 85))
    files, path = objects(url)
    files.rm(f"{path}/sample/c/1/0/0/0")
    truncated = files.cat(f"{path}/noise/c/2/0/0/0")
    files.pipe(f"{path}/noise/c/2/0/0/0", truncated[:50])
    flipped = bytearray(files.cat(f"{path}/sample/c/3/0/0/0"))
    flipped[5] ^= 1
    files.pipe(f"{path}/sample/c/3/0/0/0", bytes(flipped))
    files.pipe(f"{path}/index/c/4", b"")
    for shard in (1, 2, 3, 4):
        with pytest.raises(DataError, match="are damaged|are not complete"):
            store.read(store.spec.shard_range(shard))
    assert [shard for shard in range(6) if not store.is_complete(shard)] == [4]
    np.testing.assert_array_equal(store.read(range(0, 16)).sample, whole.sample[:16])
    fill(url, [1, 2, 3, 4])
    np.testing.assert_array_equal(store.read(range(0, 85)).sample, whole.sample)


def test_black_images_are_no_damage(url: str) -> None:
    store = PairStore.create(url, plan(), {})
    block = sample_shard(store.spec, teacher(), 0, CPU)[0]
    store.write_shard(0, block._replace(sample=np.zeros_like(block.sample)))
    assert not store.read(range(16)).sample.any()


def test_nothing_is_overwritten(url: str) -> None:
    sampled_at(url)
    with pytest.raises(DataError, match="holds something already"):
        PairStore.create(url, plan(), {})
    with pytest.raises(DataError, match="holds something already"):
        PairStore.create(url.rpartition("/")[0], plan(), {})


def test_places_without_a_store(s3: S3, url: str) -> None:
    for missing in (url, "s3://no-such-bucket/p.zarr"):
        with pytest.raises(DataError, match=f"{missing} is no Zarr group.*check the address"):
            PairStore.open(missing)
    with pytest.raises(DataError, match="no-such-bucket.*bucket does not exist"):
        PairStore.create("s3://no-such-bucket/p.zarr", plan(), {})


def test_a_half_made_store_is_none(url: str) -> None:
    """The group's own document, which makes it one, is written last."""
    sampled_at(url)
    files, path = objects(url)
    files.rm(f"{path}/zarr.json")
    with pytest.raises(DataError, match="is no Zarr group"):
        PairStore.open(url)


@pytest.fixture
def guarded(s3: S3, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store in a bucket that the credentials in the environment may read and not write."""
    PairStore.create(url, plan(), {})
    fill(url, [0])
    iam = boto3.client("iam")
    name = uuid.uuid4().hex
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="read", PolicyDocument=json.dumps(READ_ONLY))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    # The server asks for permissions after so many requests.
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    forget_connections()
    yield url
    forget_connections()


def test_no_permission_to_write(guarded: str) -> None:
    store = PairStore.open(guarded, writable=True)
    block = store.read(range(0, 16))
    with pytest.raises(DataError, match="(?s)Access Denied.*what they permit"):
        store.write_shard(1, block)
    with pytest.raises(DataError, match="Access Denied"):
        PairStore.create(f"{guarded}.other", plan(), {})
    np.testing.assert_array_equal(store.read(range(0, 16)).sample, block.sample)


def test_wrong_credentials(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    forget_connections()
    with pytest.raises(DataError, match="credentials") as caught:
        PairStore.open(guarded)
    assert "not-the-secret" not in str(caught.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    forget_connections()
    with pytest.raises(DataError, match="Unable to locate credentials"):
        PairStore.open(guarded)


def test_an_unreachable_endpoint(url: str, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    forget_connections()
    started = time.monotonic()
    with pytest.raises(DataError, match="(?i)could not connect.*network"):
        PairStore.open(url)
    assert time.monotonic() - started < 10
    forget_connections()


def test_a_broken_server_is_no_damage(url: str, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all pairs would be sampled again."""
    store = sampled_at(url)
    monkeypatch.setattr(s3, "broken", True)
    for work in (lambda: store.is_complete(0), lambda: store.read(range(3)),
                 lambda: fill(url, [0])):
        with pytest.raises(DataError, match="Internal Server Error.*network"):
            work()
    monkeypatch.setattr(s3, "broken", False)
    assert store.missing_shards() == []


class Handler(SimpleHTTPRequestHandler):
    """A folder over HTTP."""

    ranges = broken = locked = False

    def do_GET(self) -> None:
        path, asked = Path(self.translate_path(self.path)), self.headers["Range"]
        if type(self).broken:
            self.send_error(503)
        elif type(self).locked and self.headers["Authorization"] != "Basic dXNlcjpodW50ZXIy":
            self.send_error(401)
        elif not self.ranges or asked is None or not path.is_file():
            super().do_GET()
        else:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            content = path.read_bytes()
            part = content[int(first) : int(last) + 1] if first else content[-int(last) :]
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "whole files"])
def http(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, type[Handler]]]:
    kind = type("Kind", (Handler,), {"ranges": request.param})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind
    server.shutdown()
    server.server_close()


def test_reading_over_http(http: tuple[str, type[Handler]], tmp_path: Path) -> None:
    address, kind = http
    local = sampled(tmp_path / "p.zarr")
    store = PairStore.open(f"{address}/p.zarr")
    assert store.missing_shards() == []
    assert store.content_hash() == local.content_hash()
    np.testing.assert_array_equal(store.read(range(3, 21)).sample, local.read(range(3, 21)).sample)
    (tmp_path / "p.zarr/sample/c/1/0/0/0").unlink()
    (tmp_path / "p.zarr/index/c/2").unlink()
    for rows, state in ((range(16, 32), "damaged"), (range(20, 22), "damaged"),
                        (range(32, 48), "not complete")):
        with pytest.raises(DataError, match=f"are {state}"):
            store.read(rows)
    assert store.missing_shards() == [2]
    with pytest.raises(DataError, match="is for reading only"):
        PairStore.open(f"{address}/p.zarr", writable=True)
    with pytest.raises(DataError, match="is for reading only"):
        PairStore.create(f"{address}/q.zarr", plan(), {})
    kind.broken = True
    for work in (lambda: store.missing_shards(), lambda: store.read(range(3)),
                 lambda: PairStore.open(f"{address}/p.zarr")):
        with pytest.raises(DataError, match="503.*network"):
            work()


def test_passwords_come_from_netrc(
    http: tuple[str, type[Handler]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, kind = http
    local = sampled(tmp_path / "p.zarr")
    kind.locked = True
    netrc = tmp_path / "netrc"
    netrc.write_text("")
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(DataError, match="401.*credentials"):
        PairStore.open(f"{address}/p.zarr")
    netrc.write_text("machine 127.0.0.1 login user password hunter2")
    assert PairStore.open(f"{address}/p.zarr").content_hash() == local.content_hash()


def test_memory_and_file_urls(tmp_path: Path) -> None:
    local = sampled(tmp_path / "p.zarr")
    for url in (f"memory://{uuid.uuid4().hex}/p.zarr", f"file://{tmp_path}/q.zarr"):
        store = sampled_at(url)
        assert store.content_hash() == local.content_hash()
        assert store.missing_shards() == []
        with pytest.raises(DataError, match="already"):
            PairStore.create(url, plan(), {})
    assert PairStore.open(tmp_path / "q.zarr").content_hash() == local.content_hash()


def test_urls_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"pip install 'kdm-distill\[cloud\]'"):
        PairStore.open("gs://bucket/p.zarr")
    with pytest.raises(DataError, match="nonsense"):
        PairStore.open("nonsense://bucket/p.zarr")
    for url, message in (("s3://[x/p.zarr", "cannot be read"), ("s3://", "names no bucket"),
                         ("s3:///p.zarr", "names no bucket")):
        with pytest.raises(DataError, match=message):
            PairStore.open(url)
        with pytest.raises(ValueError, match=message):
            writable_location(url)
    for secret in ("https://user:hunter2@host/p.zarr", "https://host/p.zarr?token=hunter2"):
        with pytest.raises(DataError, match="environment") as caught:
            PairStore.open(secret)
        assert "hunter2" not in str(caught.value)


def test_copies_between_disk_and_bucket(url: str, tmp_path: Path) -> None:
    store = sampled(tmp_path / "p.zarr")
    reasons = np.zeros(store.spec.count, np.uint16)
    reasons[20] = 1
    KeepMask(store.spec.fingerprint, ["copies"], reasons).write(
        PairStore.open(tmp_path / "p.zarr", writable=True).group)
    store = PairStore.open(tmp_path / "p.zarr")
    told: list[int] = []
    up = copy_store(store, url, on_pairs=told.append)
    assert sum(told) == 85
    assert up.content_hash() == store.content_hash()
    down = copy_store(up, tmp_path / "q.zarr")
    assert down.content_hash() == store.content_hash()
    assert down.mask is not None and down.mask.counts() == {"copies": 1}
    assert down.provenance == store.provenance


def test_a_copy_is_gone_on_with(url: str, s3: S3, tmp_path: Path) -> None:
    """Only what is missing is fetched."""
    store = sampled_at(url)
    copy = PairStore.create(tmp_path / "q.zarr", store.spec, store.provenance)
    for shard in (0, 1, 2, 4):
        copy.copy_shard(store, shard)
    assert s3.count(lambda: copy_store(store, tmp_path / "q.zarr")) == 2 * 4
    assert PairStore.open(tmp_path / "q.zarr").content_hash() == store.content_hash()


def test_what_is_copied_stays_when_the_source_fails(url: str, s3: S3, tmp_path: Path) -> None:
    store, path = sampled_at(url), tmp_path / "q.zarr"
    there: list[int] = []

    def fail(pairs: int) -> None:
        s3.broken = True

    for _ in range(2):
        open_unfinished(path, store.spec, pytest.fail)
        with pytest.raises(DataError):
            copy_store(store, path, on_pairs=fail, on_start=there.append)
        s3.broken = False
    open_unfinished(path, store.spec, pytest.fail)
    copy = copy_store(store, path, on_start=there.append)
    assert there == [0, 16, 32]
    assert copy.content_hash() == store.content_hash()


def test_copies_of_damage_are_refused(tmp_path: Path) -> None:
    store = sampled(tmp_path / "p.zarr")
    file = tmp_path / "p.zarr/sample/c/3/0/0/0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(bytes(content))
    for link in (False, True):
        target = tmp_path / f"q{link}.zarr"
        with pytest.raises(DataError, match="p.zarr: pairs 48 to 64 are damaged"):
            copy_store(store, target, link=link)
        assert PairStore.open(target).missing_shards() == [3, 4, 5]
    with pytest.raises(MismatchError, match="holds other pairs"):
        copy_store(store, sampled(tmp_path / "r.zarr", batch=16).location)


def test_links_on_one_disk(tmp_path: Path) -> None:
    store = sampled(tmp_path / "p.zarr")
    before = store.content_hash()
    copy = copy_store(store, tmp_path / "q.zarr", link=True)
    files = [path for path in (tmp_path / "p.zarr").rglob("c/**/*") if path.is_file()]
    assert len(files) == 24
    assert all(file.samefile(tmp_path / "q.zarr" / file.relative_to(tmp_path / "p.zarr"))
               for file in files)
    assert copy.content_hash() == before
    # Neither is changed by work on the other.
    changed = sample_shard(store.spec, teacher(), 0, CPU)[0]
    PairStore.open(tmp_path / "q.zarr", writable=True).write_shard(
        0, changed._replace(sample=255 - changed.sample))
    assert PairStore.open(tmp_path / "p.zarr").content_hash() == before
