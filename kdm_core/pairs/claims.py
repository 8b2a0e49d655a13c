"""Claims: which process writes which shard of a store on a local disk.

A claim is a lock (flock) on a file of the shard's name, in a folder beside the store. The kernel
drops it when its holder ends, however that happens, so there are no stale claims. File and folder
are removed with the claim; those of a killed process by whoever claims next, or sweeps.

Stores behind URLs have no locks: what is written there is the same whoever writes it, and writers
are given disjoint parts.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdm_core.errors import KDMError
from kdm_core.pairs.location import failures, local_path


def claims_folder(store: Path) -> Path:
    """Where the claims on the shards of a store lie."""
    path = store.resolve()
    return path.with_name(f".{path.name}.claims")


@contextmanager
def claim(location: Path | str, shard: int) -> Iterator[None]:
    """A context in which no other process writes a shard.

    Raises:
        KDMError: another one does.
        DataError: the folder beside the store cannot be written.
    """
    with try_claim(location, shard) as ours:
        if not ours:
            raise KDMError(f"another process (pid {holder(location, shard)}) writes shard {shard} "
                           f"of {location}: wait for it or stop it")
        yield


@contextmanager
def try_claim(location: Path | str, shard: int) -> Iterator[bool]:
    """A context in which no other process writes a shard, if it yields True.

    Raises:
        DataError: the folder beside the store cannot be written.
    """
    path = local_path(location)
    if path is None:
        yield True
        return
    file = claims_folder(path) / str(shard)
    with failures(f"cannot write shard {shard} of {location}"):
        descriptor = lock(file, wait=False)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            unlock(file, descriptor)


def is_claimed(location: Path | str, shard: int) -> bool:
    """Whether another process is writing a shard.

    Raises: as `try_claim`.
    """
    with try_claim(location, shard) as ours:
        return not ours


@contextmanager
def creating(store: Path) -> Iterator[None]:
    """A context in which no other process makes a store at the same place; waits for its turn."""
    file = claims_folder(store) / "creation"
    descriptor = lock(file, wait=True)
    assert descriptor is not None
    try:
        yield
    finally:
        unlock(file, descriptor)


@contextmanager
def marked(store: Path) -> Iterator[Path]:
    """A context with a file beside a store, of a name that there was never before: whoever sees it
    sees the same folder."""
    file = claims_folder(store) / f"seen-{secrets.token_hex(8)}"
    with failures(f"cannot write beside {store}"):
        descriptor = lock(file, wait=False)
    assert descriptor is not None
    try:
        yield file
    finally:
        unlock(file, descriptor)


def sweep(store: Path) -> None:
    """Remove what killed processes left of their claims."""
    folder = claims_folder(store)
    for file in folder.glob("*"):
        descriptor = lock(file, wait=False)
        if descriptor is not None:
            unlock(file, descriptor)


def holder(location: Path | str, shard: int) -> str:
    """The process that has claimed a shard, as far as its file tells."""
    path = local_path(location)
    assert path is not None
    try:
        return (claims_folder(path) / str(shard)).read_text() or "unknown"
    except FileNotFoundError:  # it has just ended
        return "unknown"


def lock(file: Path, wait: bool) -> int | None:
    """The descriptor of a file that this process alone has locked; None if another one has."""
    while True:
        with suppress(FileExistsError):
            file.parent.mkdir(parents=True)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process has just removed the empty folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Else its former holder has removed it in the meantime, and others lock a new one.
            if is_file_of(descriptor, file):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def unlock(file: Path, descriptor: int) -> None:
    """Give back what `lock` gave, and remove its file."""
    file.unlink(missing_ok=True)
    os.close(descriptor)
    with suppress(OSError):  # other claims lie there
        file.parent.rmdir()


def is_file_of(descriptor: int, file: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
