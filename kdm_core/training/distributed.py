"""Training with several processes, each on a device and a share of every batch, as torchrun starts
them. With one process, and without torchrun, everything here is what it would be without it.

The result does not depend on the number of processes but for rounding: each has the same weights,
takes its rows of the same global batch, and gradients, batch statistics and curves are means over
all of them. What dropout draws is the one exception.
"""

import math
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdm_core.compute import hashed_seed, is_worker
from kdm_core.errors import KDMError, MismatchError

M = TypeVar("M", bound=nn.Module)

LOST = 75
"""Exit code of a process that could go on if another one, which was lost, were there again."""

POLL_S = 0.05
ORPHAN_POLL_S = 0.5
# How long processes wait for each other to start.
START_S = 600.0
# How long the process that hosts the store stays for the others to read why it failed.
LINGER_S = 5.0


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether it is this process that shows, writes and publishes."""
    return rank() == 0


@contextmanager
def one_failure() -> Iterator[None]:
    """A context for the whole of a program: of the processes of a machine, one says what failed.

    What the others run into after that, or alike, ends them without a word. A process whose
    launcher has been killed ends, too: nobody would know of it, and a second run of the same
    training would meet it.
    """
    if not is_worker():
        yield
        return
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        announce(error)
        linger()
        if fails_first():
            raise
        raise SystemExit(1) from None


def end_with(parent: int) -> None:
    """Wait for the end of the parent process, then end this one at once."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL_S)
    os._exit(1)


def hosts_store() -> bool:
    """Whether this process keeps the store; otherwise its launcher or another process does."""
    return (os.environ["RANK"] == "0"
            and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True))


@cache
def store() -> Any:
    """What the processes of this start of the training tell each other through."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=hosts_store(),
        multi_tenant=True, wait_for_workers=False)


@cache
def fails_first() -> bool:
    """Count this process as failed, once; whether it is the first on its machine."""
    try:
        first: bool = store().add(f"failed/{os.environ['GROUP_RANK']}", 1) == 1
        store().add("failed", 1)
    except RuntimeError:  # of a store when those behind it have ended
        return True
    return first


def announce(error: BaseException) -> None:
    """Count this process as failed, and tell the others why; the first reason counts."""
    fails_first()
    text = str(error) if isinstance(error, KDMError | SystemExit) else repr(error)
    with suppress(RuntimeError):  # then there is nobody to be told
        store().compare_set("reason", "", f"{os.environ['GROUP_RANK']} {text}")


def announced() -> KDMError | None:
    """Why another process fails, if one has said so."""
    try:
        if not store().check(["reason"]):
            return None
        group, _, text = store().get("reason").decode().partition(" ")
    except RuntimeError:
        return None
    elsewhere = group != os.environ["GROUP_RANK"]
    return KDMError(f"on another machine: {text}" if elsewhere else text)


def linger() -> None:
    """Keep the store, if it is here, until the others know why this process fails."""
    deadline, processes = time.monotonic() + LINGER_S, int(os.environ["WORLD_SIZE"])
    while (hosts_store() and store().add("failed", 0) < processes
           and time.monotonic() < deadline):
        time.sleep(POLL_S)


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """A context in which the processes that torchrun started work together; they leave it together.

    Where a process is lost without a word, the others end at once with code LOST: whoever started
    them may start all of them again.

    Args:
        device: of the parameters; `cuda` becomes the GPU of this process.

    Yields:
        The device of this process.

    Raises:
        KDMError: there is no device for this process, or another process has failed.
    """
    if not is_worker():
        yield device
        return
    try:
        device = own_device(device)
        join(device)
        yield device
        # Whoever had ended could not go on with the rest, should one be lost just now.
        dist.barrier()
    except BaseException as error:
        if is_loss(error):
            reason = announced()
            if reason is None:
                os._exit(LOST)
            raise reason from error
        announce(error)  # before the others notice that this one is gone
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    # Gloo's own are known by their words alone; a user's may have them in a path.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error))


def join(device: torch.device) -> None:
    """Make the processes a group as soon as all of them are there.

    Raises:
        KDMError: one has failed before.
        DistError: not all have come.
    """
    processes = int(os.environ["WORLD_SIZE"])
    # torch would go on waiting for a process that failed before it came.
    store().add("there", 1)
    deadline = time.monotonic() + START_S
    while store().add("there", 0) < processes:
        reason = announced()
        if reason is not None:
            raise reason
        if time.monotonic() > deadline:
            raise dist.DistError(f"not all of {processes} processes have come")
        time.sleep(POLL_S)
    stay_on_machine()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store()),  # type: ignore[attr-defined]
        rank=int(os.environ["RANK"]), world_size=processes,
        device_id=device if device.type == "cuda" else None)


def stay_on_machine() -> None:
    """Have processes that are all on one machine talk over its loopback.

    No name has to resolve then, and nobody else can connect.
    """
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback())


def loopback() -> str:
    """The name of the network interface of this machine alone."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), names[0])


def own_device(device: torch.device) -> torch.device:
    """The device of this process, where the parameters ask for `device`.

    Raises:
        KDMError: as `check_devices`.
    """
    check_devices(device, int(os.environ["LOCAL_WORLD_SIZE"]))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def check_devices(device: torch.device, processes: int) -> None:
    """Make sure that there is a device for each process of this machine.

    Raises:
        KDMError: it has fewer GPUs than processes, or a device that cannot be shared.
    """
    if device.type == "cpu" or processes == 1:
        return
    if device.type != "cuda":
        raise KDMError(f"{device.type} cannot be used by several processes; use cpu, cuda, or one "
                       "process", field="device")
    if device.index is not None:
        raise KDMError(f"{device} is one GPU and cannot serve {processes} processes; use cuda",
                       field="device")
    if processes > torch.cuda.device_count():
        raise KDMError(f"{processes} need a GPU each, and this machine has "
                       f"{torch.cuda.device_count()}", field="processes")


def check_batch(
    batch: int, accumulate: int, *processes: int, most: int | None = None
) -> None:
    """Make sure that a batch can be cut into equal micro-batches for all processes.

    Args:
        batch: samples a step.
        accumulate: micro-batches of a process and step.
        processes: how many may train together; those that there are unless given.
        most: samples that there are, if that is known.

    Raises:
        KDMError: it cannot.
    """
    processes = processes or (world_size(),)
    parts = math.lcm(*processes) * accumulate
    if batch % parts:
        near = [size for size in (batch // parts * parts, (batch // parts + 1) * parts)
                if 0 < size <= (most or size)]
        fitting = (f"use {' or '.join(map(str, near))}" if near else
                   f"there are only {most}, so use fewer of them")
        raise KDMError(f"{batch} samples cannot be shared equally by "
                       f"{' or '.join(map(str, processes))} processes × {accumulate} "
                       f"micro-batches (accumulate); {fitting}", field="batch")


def own_rows(rows: Tensor) -> Tensor:
    """This process's share (B / world size, …) of what is there for the global batch (B, …)."""
    share = len(rows) // world_size()
    return rows[rank() * share : (rank() + 1) * share]


def own_seed(seed: int) -> int:
    """A seed of this process's own; that of the first is `seed` itself."""
    return hashed_seed(seed, rank()) if rank() else seed


def distributed(module: nn.Module) -> nn.Module:
    """The module with gradients that are means over all processes, and the first one's weights.

    All weights that need gradients must be used in every forward pass.
    """
    if world_size() == 1:
        return module
    with warnings.catch_warnings():
        # torch 2.13 has a new name for the argument, which older versions do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Buffers are the same everywhere by themselves: batch statistics are those of all rows.
        return DistributedDataParallel(module, broadcast_buffers=False)


def exchanging(module: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """A context for forward and backward pass of one micro-batch of a `distributed` module.

    Gradients add up in each process and are exchanged in the `last` one of a step.
    """
    if last or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()


def mean_over_processes(record: Mapping[str, float]) -> dict[str, float]:
    """Means of scalars that every process has under the same names, in one exchange."""
    if world_size() == 1:
        return dict(record)
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    values = torch.tensor(list(record.values()), dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(record, (values / world_size()).tolist(), strict=True))


def same_weights(module: nn.Module) -> None:
    """Give every process the weights and buffers that the first one has."""
    if world_size() > 1:
        for value in module.state_dict().values():
            dist.broadcast(value, src=0)


def check_start(step: int) -> None:
    """Make sure that all processes go on from the same step.

    Raises:
        MismatchError: they do not see the same checkpoint.
    """
    # No mean of equal numbers differs from them, nor the mean of their squares from the square.
    mean = mean_over_processes({"step": step, "square": step * step})
    if mean["step"] != step or mean["square"] != step * step:
        raise MismatchError(
            f"the processes do not all find the same checkpoint (one goes on from step {step}, "
            "others do not); put the project's folder on storage that all machines share")


class SumOverProcesses(torch.autograd.Function):
    """x → Σ x over all processes; its gradient is the same sum, as often as it is taken."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return SumOverProcesses.apply(grads[0])  # type: ignore[no-untyped-call, no-any-return]


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose statistics are those of the global batch, on any device.

    torch's own SyncBatchNorm is for GPUs only, and cannot be differentiated twice.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        """Shares the weights and buffers of `norm`, which has running averages."""
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        if not self.training or world_size() == 1:
            return super().forward(input)
        assert self.running_mean is not None
        x = input.to(self.running_mean.dtype)  # as torch does it, also under autocast
        mean = self.mean(x)
        centred = x - mean
        variance = self.mean(centred.square())
        self.remember(mean.flatten(), variance.flatten(), x.numel() // x.shape[1] * world_size())
        normal = centred * (variance + self.eps).rsqrt()
        if self.affine:
            normal = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return normal.to(input.dtype)

    def mean(self, x: Tensor) -> Tensor:
        """Means (1, C, 1, 1) over the pixels of all images of all processes."""
        total: Tensor = SumOverProcesses.apply(  # type: ignore[no-untyped-call]
            x.mean(dim=(0, 2, 3), keepdim=True))
        return total / world_size()

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running averages, in place, towards the statistics (C,) of `count` values."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = (1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * (count / (count - 1)), weight)


def synchronised(module: M) -> M:
    """The module with every nn.BatchNorm2d replaced by one over the global batch, in place.

    Weights and buffers stay the same objects under the same names.
    """
    if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
        return cast(M, GlobalBatchNorm2d(module))
    for name, child in module.named_children():
        setattr(module, name, synchronised(child))
    return module
