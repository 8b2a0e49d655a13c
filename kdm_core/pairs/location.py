"""Where a pair store lies: a folder, or a URL of fsspec (s3://, gs://, https://, memory://)."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from kdm_core.errors import DataError

READ_ONLY = ("http", "https")
BUCKETS = ("s3", "s3a", "gs", "gcs")
GROUP = "zarr.json"  # the document of a group, or of an array
# Packages below fsspec that raise exceptions of their own, which are no OSErrors.
CLIENTS = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "urllib3"}
CONNECT_S, READ_S = 10, 60
# Of a request to S3; the waits between them double, from half a second on average.
TRIES = 6


def local_path(location: str | Path) -> Path | None:
    """The folder, or None where it is no local one."""
    text = str(location)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(location)


@contextmanager
def failures(location: str | Path) -> Iterator[None]:
    """A context that turns errors of disks into one message.

    Raises:
        DataError: reading or writing failed.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{location}: {error.strerror or error}; free some space or check "
                        "the permissions, then run again: what is complete is kept") from error


@contextmanager
def network_failures(url: str) -> Iterator[None]:
    """A context that turns errors of networks, buckets and credentials into one message.

    Raises:
        DataError: what lies behind the URL can neither be read nor written.
    """
    try:
        yield
    except Exception as error:
        client = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and client not in CLIENTS:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{url}: {reason}; check the address, the network, the credentials and "
                        "what they permit, then run again: what is complete is kept") from error


class RemoteStore(FsspecStore):
    """Zarr's store over fsspec, whose failures are DataErrors that say what to do.

    What is not there is no failure; what cannot be asked for is. So an array behind a network
    that is down is never taken for one that is incomplete or damaged.
    """

    def url(self, key: str) -> str:
        return f"{self.fs.unstrip_protocol(self.path).rstrip('/')}/{key}"

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        with network_failures(self.url(key)):
            try:
                found = await super().get(key, prototype, byte_range)
            except Exception as error:
                if getattr(error, "status", None) != 416:  # HTTP's "range not satisfiable"
                    raise
                return prototype.buffer.from_bytes(b"")
        return found if found is None else cut(found, byte_range)

    async def exists(self, key: str) -> bool:
        # fsspec's own answer comes from a listing, or is "no" where a server fails.
        return await self.get(key, default_buffer_prototype(), RangeByteRequest(0, 1)) is not None

    async def set(
        self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None
    ) -> None:
        with network_failures(self.url(key)):
            await super().set(key, value, byte_range)

    async def delete(self, key: str) -> None:
        with network_failures(self.url(key)):
            await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        with network_failures(self.url(prefix)):
            await super().delete_dir(prefix)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with network_failures(self.url(prefix)):
            async for name in super().list_dir(prefix):
                yield name


def cut(found: Buffer, asked: ByteRequest | None) -> Buffer:
    """The part that was asked for, of what a server sent that does not know parts."""
    if isinstance(asked, RangeByteRequest) and len(found) > asked.end - asked.start:
        return found[asked.start : asked.end]
    if isinstance(asked, SuffixByteRequest) and len(found) > asked.suffix:
        return found[len(found) - asked.suffix :]
    return found


def storage(location: str | Path, read_only: bool) -> Path | RemoteStore:
    """A location as Zarr takes it; there need not be anything.

    Credentials and endpoints come from the environment and the configuration files of the
    protocol (AWS_…, FSSPEC_S3_…, ~/.netrc), never from the location.

    Raises:
        DataError: the URL cannot be used: its protocol is unknown, needs a package that is
            missing, or only reads.
    """
    if (path := local_path(location)) is not None:
        return path
    url = str(location)
    with usable(url, read_only):
        store = RemoteStore.from_url(url, options(url), read_only)
    assert isinstance(store, RemoteStore)
    return store


@contextmanager
def usable(url: str, read_only: bool = False) -> Iterator[None]:
    """A context in which fsspec is asked for what lies behind a URL.

    Raises:
        DataError: the URL cannot be used (`check_url`), its protocol is unknown or needs a package
            that is missing, or the network fails.
    """
    check_url(url, read_only)
    scheme = scheme_of(url)
    try:
        with network_failures(url):
            yield
    except ImportError as error:
        raise DataError(f"{url}: {error}; {scheme}:// needs pip install 'kdm-distill[cloud]'"
                        ) from error
    except ValueError as error:
        raise DataError(f"{url}: {error}; use a folder, s3://, gs:// or https://") from error


def check_url(url: str, read_only: bool = False) -> None:
    """Make sure that a URL holds no secret, and that its protocol writes where that is asked for.

    Raises:
        DataError: it does, or does not; the message holds no secret either.
    """
    scheme = scheme_of(url)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DataError(f"this {scheme}:// URL cannot be read ({error}): correct it") from error
    if parts.password is not None or parts.query:
        raise DataError(f"this {scheme}:// URL has a password or a query in it: give credentials "
                        "in the environment instead")
    if scheme in BUCKETS and not parts.netloc:
        raise DataError(f"{url} names no bucket: {scheme}://BUCKET/...")
    if scheme in READ_ONLY and not read_only:
        raise DataError(f"{url}: {scheme} is for reading only; write to a folder, s3:// or gs://")


def writable_location(location: str) -> str:
    """A location of a configuration, which is to be written to.

    Raises:
        ValueError: it holds a secret, or its protocol does not write.
    """
    if local_path(location) is None:
        try:
            check_url(location)
        except DataError as error:
            raise ValueError(str(error)) from error
    return location


def scheme_of(url: str) -> str:
    return url.partition("://")[0]


def options(url: str) -> dict[str, Any]:
    """What fsspec's file systems need for stores that several processes write at once."""
    scheme = scheme_of(url)
    if scheme in READ_ONLY:
        from aiohttp import ClientTimeout

        # Its default limits the whole of a transfer, and a shard may be large.
        timeout = ClientTimeout(sock_connect=CONNECT_S, sock_read=READ_S)
        # With the environment's proxies and ~/.netrc.
        return {"client_kwargs": {"timeout": timeout, "trust_env": True}}
    if scheme in ("s3", "s3a"):
        from fsspec.config import conf

        # With more, every object is first asked for its size.
        wanted = {"use_listings_cache": False, "max_concurrency": 1,
                  "config_kwargs": {"retries": retries()}}
        return {name: value for name, value in wanted.items() if name not in conf.get("s3", {})}
    return {"use_listings_cache": False} if scheme in ("gs", "gcs") else {}


def retries() -> dict[str, Any]:
    """How often S3 is asked again: as AWS's environment and files say, else patiently."""
    from botocore.session import Session

    session = Session()
    # Asked for by its name, the mode would be botocore's own where the user set none.
    mode = os.environ.get("AWS_RETRY_MODE") or session.get_scoped_config().get("retry_mode")
    return {"mode": mode or "standard",
            "total_max_attempts": session.get_config_variable("max_attempts") or TRIES}


def names(location: str | Path) -> list[str]:
    """What lies in a folder, or directly behind a URL; nothing where there is none.

    Raises:
        DataError: it cannot be listed.
    """
    place = storage(location, read_only=True)
    if isinstance(place, RemoteStore):
        return sorted(sync(collect(place)))
    with failures(location):
        return sorted(os.listdir(place)) if place.is_dir() else []


def open_group(location: str | Path, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open a Zarr group.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    place = storage(location, read_only=mode == "r")
    try:
        return zarr.open_group(place, mode=mode, zarr_format=3)
    except (OSError, KeyError, ValueError, TypeError) as error:
        advice = ("correct the folder, or make it again" if isinstance(place, Path)
                  else "check the address")
        raise DataError(f"{location} is no Zarr group ({type(error).__name__}: {error}): {advice}"
                        ) from error


def put_group(url: str, documents: dict[str, Buffer]) -> None:
    """Put a new Zarr group behind a URL; it appears there when all of it has been written.

    What a killed run has left of such a group is written over.

    Args:
        documents: its files by their names, as `zarr.storage.MemoryStore` has them.

    Raises:
        DataError: something else is there already, or it cannot be written.
    """
    store = storage(url, read_only=False)
    assert isinstance(store, RemoteStore)
    if (found := sync(first_foreign(store, set(documents) - {GROUP}))) is not None:
        raise DataError(f"{url} holds something already ({found}): choose another place or "
                        "open it")
    for key in sorted(documents, key=lambda key: (key == GROUP, key)):
        sync(store.set(key, documents[key]))


async def first_foreign(store: Store, own: set[str], folder: str = "") -> str | None:
    """The name of something in a store that is none of its `own` files; None if all is."""
    async for name in store.list_dir(folder):
        path = f"{folder}{name}"
        if path in own:
            continue
        if not any(key.startswith(f"{path}/") for key in own):
            return path
        if (found := await first_foreign(store, own, f"{path}/")) is not None:
            return found
    return None


async def collect(store: Store) -> list[str]:
    """What lies directly in a store."""
    return [name async for name in store.list_dir("") if name]
