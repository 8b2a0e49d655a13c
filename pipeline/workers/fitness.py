"""Whether a worker computes what the stage would: versions, device, what it sees."""

import hashlib
import os
import platform
import socket
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

import kdm_core
from kdm_core.errors import KDMError
from pipeline.workers.tasks import Place

PACKAGES = ("numpy", "zarr", "pydantic", "cloudpickle", "distributed")
"""Whose versions must be equal, besides torch's, which tells its build as well."""


class Worker(NamedTuple):
    """What a worker is.

    Attributes:
        host: its machine.
        threads: tasks that it takes at a time.
        versions: of what is computed with, and a hash of this project's code.
        problem: why it cannot compute as asked; None if it can.
        gpu: the identity of the GPU that it computes on, if any.
        processor: on which the last bits of the results depend.
        sees: whether it sees the stage's store.
    """

    host: str
    threads: int
    versions: dict[str, str]
    problem: str | None
    gpu: str | None
    processor: str
    sees: bool


class Wanted(NamedTuple):
    """What a worker must be.

    Attributes:
        visible: a file that it must see, if any.
    """

    place: Place
    versions: dict[str, str]
    visible: Path | None

    def describe(self, threads: int) -> Worker:
        """This process, a worker that takes so many tasks at a time."""
        problem, device = None, torch.device("cpu")
        try:
            device = self.place.prepare()
        except KDMError as error:
            problem = str(error)
        return Worker(socket.gethostname(), threads, versions(), problem, gpu_of(device),
                      processor(device), self.visible is None or os.path.exists(self.visible))

    def check(self, name: str, worker: Worker) -> None:
        """Make sure that a worker fits.

        Raises:
            KDMError: it does not; the message says what differs and what to do.
        """
        who = f"the Dask worker {name} on {worker.host}"
        differences = [f"{key} {worker.versions.get(key, 'none')} (here {own})"
                       for key, own in self.versions.items() if worker.versions.get(key) != own]
        if differences:
            raise KDMError(f"{who} has {', '.join(differences)}: install the same versions there "
                           "and here, and start it again")
        if worker.threads != 1:
            raise KDMError(f"{who} takes {worker.threads} tasks at a time, which would share its "
                           "device: start it with --nthreads 1, once for each device")
        if worker.problem is not None:
            raise KDMError(f"{who}: {worker.problem}")
        if not worker.sees:
            assert self.visible is not None
            raise KDMError(f"{who} does not see {self.visible.parent.parent}: sample into a folder "
                           "that all machines have under the same path, or into a bucket (s3://)")


def require_own_gpus(workers: dict[str, Worker]) -> None:
    """Make sure that no two workers, by their names, compute on the same GPU.

    Raises:
        KDMError: two do.
    """
    owners: dict[str, str] = {}
    for name, worker in workers.items():
        if worker.gpu is not None and (other := owners.setdefault(worker.gpu, name)) != name:
            raise KDMError(f"the Dask workers {other} and {name} compute on the same GPU of "
                           f"{worker.host} ({worker.gpu}): start each with a CUDA_VISIBLE_DEVICES "
                           "of its own, or use dask-cuda")


def versions() -> dict[str, str]:
    """What must be the same everywhere."""
    return {"python": ".".join(platform.python_version_tuple()[:2]), "torch": torch.__version__,
            **{name: version(name) for name in PACKAGES}, "kdm-distill's code": code_hash()}


@cache
def code_hash() -> str:
    """A hash of the code that workers run, and not of the rest of the project."""
    root = Path(kdm_core.__file__).parent.parent
    digest = hashlib.sha256()
    for package in ("kdm_core", "pipeline/workers"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def processor(device: torch.device) -> str:
    """The kind of processor, as far as the last bits of results depend on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type


def gpu_of(device: torch.device) -> str | None:
    """The identity of a GPU, the same in all processes that see it."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
