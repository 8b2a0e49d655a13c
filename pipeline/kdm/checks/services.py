"""Checks of what lies elsewhere: remotes, buckets, schedulers, servers. None waits for long.

Addresses are shown without what could be a password in them.
"""

import os
import socket
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kdm_core.errors import KDMError
from kdm_core.pairs.location import local_path, options, usable
from pipeline.flow.addresses import without_password
from pipeline.kdm.checks.finding import Finding, ok, problem, within
from pipeline.params.execution import DaskSampling
from pipeline.params.run import Params

PATIENCE_S = 5.0
PORTS = {"http": 80, "https": 443}


def check_remotes() -> list[Finding]:
    """DVC's repository and its remotes."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            names = list(repo.config["remote"])
            if not names:
                return [ok("DVC remote", "none is configured: results stay on this machine")]
            return [check_remote(repo, name) for name in names]
    except NotDvcRepoError:
        return []  # `check_records` says so
    except DvcException as error:
        return [problem("DVC", without_password(str(error)), "mend what is named")]


def check_remote(repo: Any, name: str) -> Finding:
    """Whether a remote answers, whatever lies in it."""
    url = without_password(str(repo.config["remote"][name].get("url", "")))

    def attempt() -> str:
        remote = repo.cloud.get_remote(name)
        if remote.fs.protocol == "local":
            return reason_against(Path(remote.path))
        if remote.fs.protocol in PORTS:  # whose client takes what does not answer for absent
            parts = urlsplit(repo.config["remote"][name]["url"])
            return connect(parts.hostname or "", parts.port or PORTS[remote.fs.protocol])
        remote.fs.exists(remote.path)
        return ""

    return judge(f"DVC remote {name}", url, attempt,
                 "check the address, the network and the credentials")


def check_locations(params: Params) -> list[Finding]:
    """Where pairs and reports are to lie, outside of the project."""
    asked = {"pairs.location": getattr(params.pairs, "location", None),
             "report.publish": params.report.publish}
    reads = params.pairs.source == "store"
    return [judge(name, without_password(location),
                  lambda location=location, name=name: reach(  # type: ignore[misc]
                      location, reads and name == "pairs.location"),
                  "check the address, the network, the credentials and what they permit")
            for name, location in asked.items() if location]


def reach(location: str, reads: bool) -> str:
    """Why a location cannot be read or, unless it only is, written; empty if it can."""
    path = local_path(location)
    if path is not None:
        return "" if reads and path.exists() else reason_against(path)
    from fsspec.core import url_to_fs

    with usable(location, reads):
        files, root = url_to_fs(location, **options(location))
        if reads:
            return "" if files.exists(root) else "there is nothing"
        probe = f"{root.rstrip('/')}/.kdm-doctor-{socket.gethostname()}-{os.getpid()}"
        files.pipe_file(probe, b"\n")
        files.rm_file(probe)
    return ""


def reason_against(folder: Path) -> str:
    """Why a folder cannot be written, or not be made where it is missing; empty if it can."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"{there} cannot be written ({error.strerror})"


def check_scheduler(params: Params) -> list[Finding]:
    """The Dask scheduler that the parameters name."""
    sampling = params.execution.sampling
    if not isinstance(sampling, DaskSampling):
        return []
    if find_spec("distributed") is None:
        return [problem("Dask", "execution.sampling.engine: dask needs a package that is missing",
                        "pip install 'kdm-distill[dask]'")]
    parts = urlsplit(sampling.address)
    return [judge("Dask scheduler", sampling.address,
                  lambda: connect(parts.hostname or "", parts.port or 0),
                  "start it (dask scheduler), or correct execution.sampling.address")]


def check_prefect() -> list[Finding]:
    """The Prefect server that the environment, or the profile of Prefect that is in use, names."""
    from pipeline.flow.server import require_server, server_url

    url = server_url()
    if url is None:
        return [ok("Prefect server", "PREFECT_API_URL is not set: `python -m "
                   "pipeline.flow.deploy` starts a server, and python -m pipeline.flow needs none")]

    def attempt() -> str:
        require_server()
        return ""

    return [judge("Prefect server", without_password(url), attempt,
                  "start it, correct PREFECT_API_URL or unset it")]


def connect(host: str, port: int) -> str:
    """Why nobody listens at an address; empty if somebody does."""
    try:
        with socket.create_connection((host, port), PATIENCE_S):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def judge(check: str, place: str, attempt: Callable[[], str], advice: str) -> Finding:
    """What comes of reaching for something, with a limit of time."""

    def careful() -> str:
        try:
            return attempt()
        except KDMError as error:
            return str(error)
        # Whatever a client of some cloud raises is the finding.
        except Exception as error:
            return without_password(" ".join(str(error).split()))[:200] or type(error).__name__

    against = within(PATIENCE_S, careful)
    if against:
        return problem(check, f"{place}: {without_password(against)}", advice)
    return ok(check, f"{place} answers")
