"""Where processes that train together find each other: on this machine, or on several."""

import os
import shlex
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from kdm_core.errors import KDMError

LOOPBACK = "127.0.0.1"
# How long to wait for more machines than the least that suffice.
LAST_CALL_S = 5
# How often machines show that they are there; one that misses three in a row is not.
HEARTBEAT_S = 3
# Otherwise torch's agents keep the addresses of machines that have left, and what lost processes
# have written.
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@dataclass(frozen=True)
class Machines:
    """Several machines that train together.

    Attributes:
        least, most: how many.
        endpoint: HOST:PORT of this one, at which they find each other.
        identity: of the training: the same on all machines, and another one for any other.
        patience_s: how long to wait for machines that do not come, or do not come back.
    """

    least: int
    most: int
    endpoint: str
    identity: str
    patience_s: float

    @property
    def settings(self) -> dict[str, int]:
        """What the rendezvous of torch is told."""
        return {"join_timeout": round(self.patience_s), "last_call_timeout": LAST_CALL_S,
                "keep_alive_interval": HEARTBEAT_S}


def command(
    module: str, arguments: Sequence[str], processes: int | str, restarts: int, machines: Machines
) -> str:
    """What a person types on each of the other machines."""
    settings = ",".join(f"{key}={value}" for key, value in machines.settings.items())
    return f"{OWN_STORE}=1 " + shlex.join([
        "torchrun", "--nnodes", f"{machines.least}:{machines.most}",
        "--nproc-per-node", str(processes), "--rdzv-backend", "c10d",
        "--rdzv-endpoint", machines.endpoint, "--rdzv-id", machines.identity,
        "--rdzv-conf", settings, "--max-restarts", str(restarts), "-m", module, *arguments])


def invitation(machines: Machines, command: str) -> str:
    """What a person is told who wants others to take part."""
    least, most = machines.least - 1, machines.most - 1
    others = f"{most}" if least == most else f"{least} to {most}"
    return (f"waiting up to {machines.patience_s:g} s for other machines ({others}); on each of "
            f"them type, in the project's folder:\n\n    {command}\n")


class OneMachine(RendezvousHandler):
    """Where processes of this machine meet: on its loopback, anew at each start."""

    def __init__(self) -> None:
        self.run_id = uuid.uuid4().hex
        self.store: TCPStore | None = None

    def get_backend(self) -> str:
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        # By itself a store would listen to all of the network.
        listening = socket.create_server((LOOPBACK, 0))
        port = listening.getsockname()[1]
        self.store = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False,
                              master_listen_fd=listening.detach())
        return RendezvousInfo(self.store, 0, 1, RendezvousStoreInfo(LOOPBACK, port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        return True


def meet(machines: Machines) -> RendezvousHandler:
    """Where machines meet: at a port of this one.

    Raises:
        KDMError: HOST is not this machine, or the port is taken.
    """
    host, _, port = machines.endpoint.rpartition(":")
    require_own(host, int(port))
    os.environ[OWN_STORE] = "1"
    return get_rendezvous_handler(RendezvousParameters(
        "c10d", machines.endpoint, machines.identity, machines.least, machines.most,
        local_addr=host, is_host=True, **machines.settings))


def require_own(host: str, port: int) -> None:
    """Make sure that this machine can listen there.

    Raises:
        KDMError: it cannot.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise KDMError(f"{host}:{port}: no machine of this name is known here",
                       field="rdzv_endpoint") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address[0], 0))
        except OSError as error:
            raise KDMError(f"{host}:{port}: {host} is not this machine ({error.strerror}); give "
                           "the name or address by which the others reach the one that starts this",
                           field="rdzv_endpoint") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise KDMError(f"{host}:{port}: this port cannot be used ({error.strerror}): choose "
                           "another, or wait for the end of the training that has it",
                           field="rdzv_endpoint") from error
