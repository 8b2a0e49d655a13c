"""The Prefect server that keeps the runs: whether it can be used, and a work pool of it."""

import httpx
import prefect
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from pydantic import ValidationError

from kdm_core.errors import KDMError
from pipeline.flow.addresses import without_password


class ServerError(KDMError):
    """The Prefect server cannot be used, or not for this."""


def server_url() -> str | None:
    """The server that the environment, or the profile of Prefect that is in use, names.

    None where Prefect starts one for this process alone.

    Raises:
        ServerError: Prefect's settings cannot be used.
    """
    try:
        return get_current_settings().api.url
    except ValidationError as error:
        # What was given, which `error` has as well, may hold a password.
        said = error.errors(include_input=False)[0]["msg"].removeprefix("Value error, ")
        raise ServerError(f"Prefect's settings cannot be used ({said}): correct PREFECT_API_URL, "
                          "or what else of PREFECT_… is wrong") from None


def require_server() -> None:
    """Make sure that the server which PREFECT_API_URL names, if any, can be used.

    Raises:
        ServerError: it does not answer, does not let us in, or is older than our Prefect; the
            message holds no password.
    """
    url = server_url()
    if url is None:
        return
    place = without_password(url)
    try:
        with get_client(sync_client=True) as client:
            version = client.api_version()
    except httpx.InvalidURL as error:
        raise ServerError(f"PREFECT_API_URL is no URL: {place} ({error})") from error
    except httpx.HTTPStatusError as error:
        raise ServerError(f"{place} answers {error.response.status_code} "
                          f"({error.response.reason_phrase}): check PREFECT_API_URL, and "
                          "PREFECT_API_KEY or PREFECT_API_AUTH_STRING") from error
    except (httpx.HTTPError, RuntimeError, ValueError) as error:
        raise ServerError(f"PREFECT_API_URL is {place}, where no Prefect server answers "
                          f"({without_password(str(error))}): start it, or unset the variable"
                          ) from error
    require_version(version)


def require_version(server: str) -> None:
    """Make sure that a server understands what our Prefect says.

    Raises:
        ServerError: it is older, or of another generation.
    """
    ours = prefect.__version__
    theirs, needed = release(server), release(ours)
    if theirs[0] != needed[0] or theirs < needed:
        raise ServerError(f"the Prefect server is {server} and Prefect here is {ours}: a server "
                          "must be as new as its clients, so install the same version there")


def release(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def require_pool(client: SyncPrefectClient, name: str) -> None:
    """Make sure that a work pool takes runs.

    Raises:
        ServerError: the pool is missing, or paused.
    """
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound as error:
        raise ServerError(f"there is no work pool {name}: make one with `prefect work-pool create "
                          f"{name} --type process`, and start a worker for it") from error
    if pool.is_paused:
        raise ServerError(f"the work pool {name} is paused, and no run would start: "
                          f"`prefect work-pool resume {name}`")


def require_deployment(client: SyncPrefectClient, name: str) -> None:
    """Make sure that a run of a deployment would start now: `prefect deployment run` does not ask.

    Raises:
        ServerError: it would wait; the message says what for.
    """
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise ServerError(f"there is no deployment {name}: run `prefect deploy --all` in the "
                          "project's folder") from error
    pool = deployment.work_pool_name
    if pool is None:
        raise ServerError(f"the deployment {name} has no work pool: name one in prefect.yaml and "
                          "run `prefect deploy --all`")
    require_pool(client, pool)
    workers = client.read_workers_for_work_pool(pool)
    if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
        raise ServerError(f"no worker serves the work pool {pool}: start one with `prefect worker "
                          f"start --pool {pool}`")
