"""Files that a user names: a path, a URL, or something on the Hugging Face hub.

What is fetched is kept: URLs in KDM_CACHE (the user's cache folder where that is not set), files
of the hub in its own cache (HF_HOME), from the server HF_ENDPOINT.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from kdm_core.config import Config
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.serialization import file_sha256

FORMS = "a path, https://…, or hf://OWNER/NAME/PATH[@REVISION]"
CHUNK = 2**20


class Weights(Config):
    """A file with a model's weights.

    Attributes:
        file: a path, an https:// URL, or hf://OWNER/NAME/PATH[@REVISION]; http:// only with
            `sha256`.
        sha256: 64 hexadecimal digits; a file with another sum is not used.
    """

    file: str = Field(min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")

    @model_validator(mode="after")
    def _pinned(self) -> "Weights":
        if problem := unusable(self.file, self.sha256):
            raise ValueError(problem)
        return self


def unusable(file: str, sha256: str | None) -> str | None:
    """Why a file cannot be named like this; None if it can."""
    scheme, separator, rest = file.partition("://")
    if not separator:
        return None
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        return (f"file: this {scheme}:// URL has a password in it, which would go wherever the "
                "parameters go: put it into ~/.netrc instead")
    if scheme == "https":
        return None
    if scheme == "http":
        return None if sha256 else ("file: whoever is in between can change what http:// brings; "
                                    "use https://, or give sha256")
    if scheme == "hf":
        parts = rest.split("/")
        return None if len(parts) > 2 and all(parts) else (f"file: {file} is not "
                                                           "hf://OWNER/NAME/PATH[@REVISION]")
    return f"file: {scheme}:// is not supported; use {FORMS}"


def fetch(file: str, sha256: str | None) -> Path:
    """The local path of a file, downloaded if need be.

    Args:
        file, sha256: as in `Weights`.

    Raises:
        DataError: there is no such file, or it could not be downloaded.
        MismatchError: its sum is another.
        KDMError: the package for the hub is not installed.
    """
    if problem := unusable(file, sha256):
        raise DataError(problem.removeprefix("file: "), field="file")
    scheme, separator, rest = file.partition("://")
    if not separator:
        path = Path(file)
        if not path.is_file():
            raise DataError(f"{file} does not exist or is not a file: correct it to {FORMS}",
                            field="file")
    elif scheme == "hf":
        path = _from_hub(file, rest)
    else:
        path = _download(file, sha256)
    require_sha256(path, sha256, file)
    return path


def require_sha256(path: Path, sha256: str | None, name: str) -> None:
    """Make sure that a file is the one that was pinned, if one was.

    Raises:
        MismatchError: its sum is another; the message says both.
    """
    if sha256 is not None and (found := file_sha256(path)) != sha256.lower():
        raise MismatchError(f"{name} has the SHA-256 {found}, not {sha256.lower()}: it is not "
                            "used; if this is the file that you want, correct the sum",
                            field="sha256")


def _download(url: str, sha256: str | None) -> Path:
    """A URL's file in the cache; one of another sum than the pinned is fetched anew."""
    import pooch

    folder = Path(os.environ.get("KDM_CACHE") or pooch.os_cache("kdm-distill")) / "downloads"
    pooch.get_logger().setLevel(logging.WARNING)  # otherwise it advises on its own parameters
    fetcher = pooch.HTTPDownloader(progressbar=True, chunk_size=CHUNK,
                                   hooks={"response": _stay_encrypted})
    try:
        name = PurePosixPath(urlsplit(url).path).name[-100:] or "file"
        path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
        if sha256 and path.exists() and file_sha256(path) != sha256.lower():
            path.unlink()
        pooch.retrieve(url, known_hash=None, fname=path.name, path=folder, downloader=fetcher)
    except (OSError, ValueError) as error:  # those of requests are OSErrors
        raise DataError(f"{url} could not be downloaded ({innermost(error)}): check the address "
                        "and the network, or download it yourself and give its path", field="file"
                        ) from error
    return path


def innermost(error: BaseException) -> BaseException:
    """What an error began with: those of HTTP libraries are wrapped many times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _stay_encrypted(response: Any, *_: Any, **__: Any) -> None:
    """Follow no redirection from https:// to http://."""
    target = response.headers.get("location", "")
    if response.url.startswith("https://") and target.lower().startswith("http://"):
        raise OSError(f"it redirects to {target}, which is not encrypted")


def _from_hub(file: str, rest: str) -> Path:
    """A file of OWNER/NAME/PATH[@REVISION] on the hub."""
    where, _, revision = rest.rpartition("@") if "@" in rest else (rest, "", "")
    owner, name, path = where.split("/", 2)
    with _hub(file, "file") as hub:
        return Path(hub.hf_hub_download(f"{owner}/{name}", path, revision=revision or None))


def fetch_folder(folder: str, revision: str | None, patterns: list[str]) -> Path:
    """A local folder, or the files of OWNER/NAME on the hub that match one of the patterns.

    Raises:
        DataError: there is no such folder, or it could not be downloaded.
        KDMError: the package for the hub is not installed.
    """
    if Path(folder).is_dir():
        return Path(folder)
    if folder.count("/") != 1 or folder.startswith((".", "/", "~")):
        raise DataError(f"{folder} does not exist: correct it to a folder, or to OWNER/NAME on the "
                        "hub", field="folder")
    with _hub(folder, "folder") as hub:
        return Path(hub.snapshot_download(folder, revision=revision, allow_patterns=patterns))


@contextmanager
def _hub(what: str, field: str) -> Iterator[Any]:
    """The hub's library, with one clear message for whatever goes wrong in it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise KDMError(f"{what} needs the package huggingface_hub: "
                       "pip install 'kdm-distill[diffusers]'", field) from error
    try:
        yield huggingface_hub
    except Exception as error:  # its own, those of its HTTP client, and those of the file system
        text = " ".join(str(error).split())[:300]
        raise DataError(f"{field}: {what} could not be fetched from the hub "
                        f"({type(error).__name__}: {text}): check the name, the revision and the "
                        "network, or download it yourself and give its path") from error
