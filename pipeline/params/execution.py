"""The section `execution` of params.yaml: by how many processes, and on which machines."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdm_core.config import Config

ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://[^\s@/]+:\d+")
ENDPOINT = re.compile(r"[^\s:@/]+:\d+")


def has_port(address: str) -> bool:
    """Whether an address ends with the number of a port at which something can listen."""
    return 0 < int(address.rpartition(":")[2]) < 2**16


class LocalSampling(Config):
    """Processes of this machine.

    Attributes:
        workers: how many; null for one a GPU, and one where there are none. On a CPU each has
            `compute.threads` threads, so that the pairs are the same to the bit: workers × threads
            should not exceed the cores.
    """

    engine: Literal["local"] = "local"
    workers: int | None = Field(None, ge=1)


class DaskSampling(Config):
    """The workers of a Dask cluster, on this machine or on many.

    Attributes:
        address: of the scheduler, as `tcp://HOST:8786`.
        workers: how many to wait for before the work begins.
        patience_s: how long to wait for a scheduler that does not answer, or has no workers,
            before giving up.
    """

    engine: Literal["dask"]
    address: str
    workers: int = Field(1, ge=1)
    patience_s: float = Field(60.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _addressed(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("address") is None:
            raise ValueError("address is missing: give that of a Dask scheduler that runs "
                             "(tcp://HOST:8786), or use engine: local for processes of this "
                             "machine")
        return values

    @field_validator("address")
    @classmethod
    def _address(cls, address: str) -> str:
        if not (ADDRESS.fullmatch(address) and has_port(address)):
            # Not shown: it may hold a password.
            raise ValueError("this is no address of a Dask scheduler; it looks like "
                             "tcp://HOST:8786")
        return address


class LocalTraining(Config):
    """One process."""

    engine: Literal["local"] = "local"


class TorchrunTraining(Config):
    """Processes that torchrun starts, each with its share of every batch.

    Attributes:
        nproc_per_node: on each machine; null for one a GPU, and one where there are none.
        nnodes: machines, as a number or as MIN:MAX, between which they may come and go.
        rdzv_endpoint: HOST:PORT at which the machines find each other; HOST is the one that runs
            the stage, as the others see it.
        max_restarts: how often all processes go on from the last checkpoint after one was lost.
        patience_s: how long to wait for machines that do not come, or do not come back.
    """

    engine: Literal["torchrun"]
    nproc_per_node: int | None = Field(None, ge=1)
    nnodes: Annotated[int, Field(ge=1)] | str = 1
    rdzv_endpoint: str | None = None
    max_restarts: int = Field(3, ge=0)
    patience_s: float = Field(600.0, ge=1)

    @field_validator("nnodes")
    @classmethod
    def _range(cls, nnodes: int | str) -> int | str:
        if isinstance(nnodes, int):
            return nnodes
        found = re.fullmatch(r"(\d+):(\d+)", nnodes)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"'{nnodes}' is neither a number of machines nor MIN:MAX")
        return nnodes

    @field_validator("rdzv_endpoint")
    @classmethod
    def _endpoint(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not (ENDPOINT.fullmatch(endpoint) and has_port(endpoint)):
            raise ValueError("this is no HOST:PORT, PORT being 1 to 65535")
        return endpoint

    @model_validator(mode="after")
    def _meeting(self) -> "TorchrunTraining":
        if self.nnodes != 1 and self.rdzv_endpoint is None:
            raise ValueError("rdzv_endpoint: several machines must know where to find each other; "
                             "give HOST:PORT of the one that runs the stage")
        return self

    @property
    def nodes(self) -> tuple[int, int]:
        """The least and the most machines."""
        least, _, most = str(self.nnodes).partition(":")
        return int(least), int(most or least)


SamplingEngine = Annotated[LocalSampling | DaskSampling, Field(discriminator="engine")]
TrainingEngine = Annotated[LocalTraining | TorchrunTraining, Field(discriminator="engine")]


class ExecutionParams(Config):
    """Who computes. No stage depends on this section: changing it reruns nothing.

    Attributes:
        sampling: for pairs, for the filter and for the features of images.
        training: for students.
    """

    sampling: SamplingEngine = LocalSampling()
    training: TrainingEngine = LocalTraining()
