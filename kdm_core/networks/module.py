"""A network of the user's own, by import path.

Building one runs the user's code. It is therefore refused outside `trusting_code`, whoever asks
for it: a parameter file, a folder of someone else, or a network that contains another.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.networks.base import Network

IMPORT_PATH = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*$"
ImportPath = Annotated[str, Field(pattern=IMPORT_PATH)]
"""`package.module:callable`."""

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusting_code() -> Iterator[None]:
    """Within it, modules may be imported and run: for callers whom the user has told so."""
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


class ModuleNetworkConfig(Config):
    """A network made by a function of the user's.

    Attributes:
        factory: `package.module:callable`, looked for in the current directory, too. It returns
            an `nn.Module`, which is called as `module(x, time)`, or `module(x, time, labels)` if
            there are labels. x is (B, *shape) float32, time (B,) float32 what the teacher's
            preconditioning makes of the noise level (flow matching: t from 0 to 1), labels (B,)
            int64 with −1 for "no label". It returns (B, *shape).
        arguments: keyword arguments of the callable.
    """

    kind: Literal["module"]
    factory: ImportPath
    arguments: dict[str, JsonValue] = {}


class ModuleNetwork(Network):
    """See `ModuleNetworkConfig`."""

    def __init__(
        self,
        config: ModuleNetworkConfig,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        timed: bool = False,
        num_classes: int = 0,
    ) -> None:
        """
        Raises:
            KDMError: nobody trusts the code, or it does not make a module.
        """
        super().__init__()
        if not timed:
            raise KDMError("network.kind: a module is called with a time, so it can only be part "
                           "of a teacher")
        self.factory, self.out_shape, self.num_classes = config.factory, out_shape, num_classes
        self.module = make_module(config)

    def stages(self) -> list[nn.Module]:
        raise KDMError(f"{self.factory} is a module of others, of which no layers are known")

    def class_weights(self) -> list[tuple[Tensor, int]]:
        raise KDMError(f"{self.factory} is a module of others, whose classes cannot be numbered "
                       "anew here")

    def forward(
        self, x: Tensor, time: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        if self.num_classes:
            if labels is None:
                labels = torch.full((len(x),), -1, device=x.device)
            out: object = self.module(x, time, labels)
        else:
            out = self.module(x, time)
        if not isinstance(out, Tensor) or out.shape != (len(x), *self.out_shape):
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise KDMError(f"the module of {self.factory} returned {found}, not a tensor of shape "
                           f"{(len(x), *self.out_shape)}", field="factory")
        return out


def make_module(config: ModuleNetworkConfig) -> nn.Module:
    """Import the factory and call it.

    Raises:
        KDMError: nobody trusts it, it is not there, it fails, or it returns something else.
    """
    factory = import_trusted(config.factory, "factory")
    try:
        module = factory(**config.arguments)
    except Exception as error:  # the user's code can fail in any way
        raise KDMError(f"{config.factory} failed when called with the arguments "
                       f"({type(error).__name__}: {error})", field="factory") from error
    if not isinstance(module, nn.Module):
        raise KDMError(f"{config.factory} returned {type(module).__name__}, not a torch.nn.Module",
                       field="factory")
    return module


def import_trusted(path: str, field: str) -> Any:
    """What stands at `package.module:callable`, looked for in the current directory, too.

    Args:
        path: an `ImportPath`.
        field: whose value that is.

    Raises:
        KDMError: nobody trusts it, or it is not there.
    """
    if not _trusted.get():
        raise KDMError(f"{path} is code that this would run; allow that if you trust it",
                       field="trust_code")
    name, _, attribute = path.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(name)
    except Exception as error:  # the user's code can fail in any way
        raise KDMError(f"{path}: importing {name} from {os.getcwd()} or the installed packages "
                       f"failed ({type(error).__name__}: {error})", field) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise KDMError(f"{path}: {name} has no {attribute}; correct the name", field)
        found = getattr(found, part)
    return found
