"""Finding what makes the host wait for its device, also where there is none to wait for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# What looks at values, or whose result's size depends on them.
LOOKS = frozenset({
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select,
    aten.unique_consecutive, aten._unique2, aten.unique_dim, aten.repeat_interleave,
    aten.bincount,
})


class Looks(TorchDispatchMode):
    """Notes every operation for which a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.overloadpacket in LOOKS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def not_waiting(device: torch.device) -> Iterator[None]:
    """A context in which nothing may wait for the device.

    Raises:
        AssertionError: something would.
        RuntimeError: something did, says CUDA itself.
    """
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with Looks() as looks:
            yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert not looks.found, looks.found
