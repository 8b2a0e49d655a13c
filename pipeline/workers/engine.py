"""The engine that params.yaml asks for (`execution.sampling`)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from kdm_core.errors import KDMError
from pipeline.params.execution import DaskSampling
from pipeline.runtime.runner import Stage
from pipeline.runtime.stopping import Stop
from pipeline.workers.processes import Processes
from pipeline.workers.tasks import Engine, OnResult, Place, Task, Work


class Here:
    """This process. See `pipeline.workers.tasks.Engine`."""

    alone = True
    workers = 1
    patience_s = 0.0

    def __init__(self, device: torch.device, stop: Stop) -> None:
        self.device, self.stop = device, stop

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *reason: object) -> None:
        pass

    def run(
        self, task: Task, items: Sequence[Any], on_result: OnResult, own: Work | None = None
    ) -> None:
        self.stop.check()
        do = own or task.start(self.device)
        for place, item in enumerate(items):
            on_result(place, do(item))
            self.stop.check()


def engine(
    stage: Stage, stop: Stop | None = None, needed: bool = True
) -> AbstractContextManager[Engine]:
    """Those who do the work of a stage.

    Args:
        stop: whether the stage was asked to end; by default it is never asked, and ended at once.
        needed: whether there is work for others; if not it is this process.

    Raises:
        KDMError: there are fewer devices than workers, or `distributed` is not installed. As a
            context: the scheduler cannot be reached, has no workers, or unfit ones.
    """
    config, stop = stage.params.execution.sampling, stop or Stop()
    if not needed:
        return Here(stage.device, stop)
    place = Place(str(stage.device), torch.get_num_threads(), stage.params.compute.deterministic)
    if isinstance(config, DaskSampling):
        try:
            from pipeline.workers.cluster import Cluster
        except ImportError as error:
            raise KDMError("execution.sampling.engine: dask needs a package that is not installed "
                           f"({error.name}): pip install 'kdm-distill[dask]', or use engine: local"
                           ) from error
        # The device is the first that a worker sees.
        return Cluster(config.address, config.workers, place._replace(device=stage.device.type),
                       config.patience_s, stop, stage.say)
    places = own_places(place, config.workers)
    if len(places) == 1:
        return Here(stage.device, stop)
    return Processes(places, stop, stage.say)


def own_places(place: Place, workers: int | None) -> list[Place]:
    """Where the workers of this machine compute, each on a device of its own.

    Raises:
        KDMError: there are not as many devices as workers.
    """
    device = torch.device(place.device)
    if device.type == "cpu":
        return [place] * (workers or 1)
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    devices = gpus if device.type == "cuda" and device.index is None else [place.device]
    if (count := workers or len(devices)) > len(devices):
        raise KDMError(f"execution.sampling.workers: {count} workers cannot share {len(devices)} "
                       f"device{'s' * (len(devices) > 1)} ({', '.join(devices)}): lower it, or "
                       "set compute.device to cuda to use all GPUs, or to cpu")
    return [place._replace(device=device) for device in devices[:count]]
