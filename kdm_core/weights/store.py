"""Where weights are: at a path in the parameters, in the cache, in a package, or to be downloaded.

No file is opened before its checksum was compared.
"""

import logging
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from kdm_core.config import Config
from kdm_core.errors import DataError, KDMError, MismatchError, called
from kdm_core.serialization import file_sha256
from kdm_core.weights.registry import REGISTRY, WeightsFile

CHUNK = 2**20


class WeightsMissing(KDMError):
    """Weights that a metric needs are nowhere to be found; the metric is absent, not replaced.

    Attributes:
        name: of those in the registry that `download` would fetch, where there is a network.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class WeightsSource(Config):
    """A file of the user's own.

    Attributes:
        path: where it is.
        sha256: its checksum, if it is another file than the registry's. A TorchScript file is a
            program: whoever writes its sum here says that they trust it.
    """

    path: str = Field(min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")


def check_names(sources: dict[str, WeightsSource]) -> dict[str, WeightsSource]:
    """Sources for weights that a path can be given for.

    Raises:
        ValueError: a name is unknown, or a package carries those weights.
    """
    allowed = [name for name, entry in REGISTRY.items() if not entry.package]
    for name in sources:
        if name not in allowed:
            raise ValueError(f"{name}: a path can be given for {', '.join(allowed)}")
    return sources


WeightsSources = Annotated[dict[str, WeightsSource], AfterValidator(check_names)]
"""The block `weights` of the parameters."""


class Found(NamedTuple):
    """A file whose checksum was compared.

    Attributes:
        path: where it is.
        sha256: its checksum.
        genuine: whether it is the registry's file, so that metrics may have their proper names.
    """

    path: Path
    sha256: str
    genuine: bool


def find(name: str, sources: Mapping[str, WeightsSource] | None = None) -> Found:
    """The file with the weights of that name in the registry, downloaded if need be.

    Raises:
        WeightsMissing: it is nowhere, and cannot or must not be downloaded.
        MismatchError: a file is there, with another checksum.
        DataError: the path in the parameters is no file, or cannot be read.
    """
    entry = REGISTRY[name]
    if sources and name in sources:
        return _given(name, sources[name], entry)
    path = local(name) or download(name)
    if (digest := file_sha256(path)) != entry.sha256:
        remedy = f"install {entry.package} again" if entry.package else "delete it and try again"
        raise MismatchError(f"{path} is not the file that its name says (SHA-256 {digest}, not "
                            f"{entry.sha256}): it is not opened; {remedy}")
    return Found(path, entry.sha256, genuine=True)


def _given(name: str, source: WeightsSource, entry: WeightsFile) -> Found:
    """A file of the user's own: of the sum beside its path, or else of the registry's."""
    path = Path(source.path)
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file: correct it",
                        field=f"{name}.path")
    wanted = (source.sha256 or entry.sha256).lower()
    if (digest := file_sha256(path)) != wanted:
        raise MismatchError(f"{path} has the SHA-256 {digest}, not {wanted}: it is not opened; if "
                            "this is the file that you want, give its sum as sha256",
                            field=f"{name}.path")
    return Found(path, digest, genuine=digest == entry.sha256)


def local(name: str) -> Path | None:
    """Where the file is, in the cache or a package; its checksum was not compared."""
    entry = REGISTRY[name]
    if not entry.package:
        path = cache_folder() / entry.file
        return path if path.is_file() else None
    try:
        path = Path(str(distribution(entry.package).locate_file(entry.file)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def download(name: str) -> Path:
    """Fetch a file of the registry into the cache, where it replaces a damaged one.

    Raises:
        WeightsMissing: no package or network brings it, or KDM_OFFLINE forbids to ask.
        MismatchError: what came is another file; it is not kept.
    """
    import pooch

    entry, folder = REGISTRY[name], cache_folder()
    missing = f"the weights {name} ({entry.purpose}) are missing: "
    if entry.package:
        raise WeightsMissing(f"{missing}they are in the package {entry.package}: "
                             f"{entry.install}")
    remedy = f"fetch them elsewhere, or give the path of {entry.file} as {called(f'{name}.path')}"
    if os.environ.get("KDM_OFFLINE", "0") not in ("", "0"):
        raise WeightsMissing(f"{missing}not in {folder}, and KDM_OFFLINE forbids a download; "
                             f"{remedy}", name)
    pooch.get_logger().setLevel(logging.WARNING)  # otherwise it advises on its own parameters
    try:
        return Path(pooch.retrieve(
            entry.url, known_hash=f"sha256:{entry.sha256}", fname=entry.file, path=folder,
            downloader=pooch.HTTPDownloader(progressbar=True, chunk_size=CHUNK)))
    except OSError as error:  # those of requests are too
        reason = " ".join(str(error).split())[:200]
        raise WeightsMissing(f"{missing}not in {folder}, and {entry.url} cannot be downloaded "
                             f"({reason}); {remedy}", name) from error
    except ValueError as error:
        raise MismatchError(f"{entry.url} brings another file than the one that was tested (its "
                            "SHA-256 differs): it was not kept; try again, or give a path as "
                            f"{called(f'{name}.path')}") from error


def cache_folder() -> Path:
    """Where downloaded weights are kept: in KDM_CACHE, or the user's cache folder without it."""
    import pooch

    return Path(os.environ.get("KDM_CACHE") or pooch.os_cache("kdm-distill")) / "weights"
