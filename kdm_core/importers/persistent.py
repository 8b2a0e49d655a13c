"""Reading the pickled networks of EDM and EDM2 without running anything in them.

Such a file describes every module by a call of `_reconstruct_persistent_obj` with the module's
Python source, which the publishers' own loader executes, and its state. Here the machine of
`kdm_core.pickles` runs the program, with the few names of `CALLS`. The source is ignored.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdm_core.errors import DataError
from kdm_core.pickles import NUMPY, Budget, Call, Machine, Name, Recall, Stateful, key, run

MAX_DEPTH, MAX_NAME, MAX_ENTRIES = 16, 100, 2**16  # of a tree of modules
PERSISTENCE_VERSION = 6
STORAGE_MAGIC, STORAGE_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of torch's format before 1.6
STORAGES = {
    "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool,
}
STORAGE_NAMES: dict[str, Recall | None] = dict.fromkeys(STORAGES)
SCALARS = {"f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"}


@dataclass(slots=True, eq=False, repr=False)
class PersistentObject(Stateful):
    """A module or another object as it was recorded.

    Attributes:
        class_name: its class, such as `SongUNet`; nothing is known of what that class does.
        args, kwargs: what it was constructed with.
        parameters, buffers: its own tensors, without those that are None.
        modules: its children by name, without those that are None.
        attributes: everything else in its state. Bytes appear as memoryview, tuples, lists, dicts
            and sets as such, NumPy arrays as `Call`.
    """

    class_name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, "PersistentObject"] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def build(self, state: Any, budget: Budget) -> None:
        """Sort a state into the fields."""
        if not isinstance(state, dict):
            raise DataError(f"{self.class_name}: its state is no dictionary")
        budget.spend(steps=len(state))  # one state may be used again and again
        rest = dict(state)
        self.args = rest.pop("_init_args", None) or ()
        self.kwargs = rest.pop("_init_kwargs", None) or {}
        if not isinstance(self.args, tuple) or not isinstance(self.kwargs, dict):
            raise DataError(f"{self.class_name}: arguments that are none")
        self.parameters = entries(rest.pop("_parameters", {}), Tensor, self, budget)
        self.buffers = entries(rest.pop("_buffers", {}), Tensor, self, budget)
        self.modules = entries(rest.pop("_modules", {}), PersistentObject, self, budget)
        self.attributes = rest

    def walk(self) -> Iterator[tuple[str, "PersistentObject"]]:
        """This object and all below it, each with its path: "" or names that end in a dot.

        Raises:
            DataError: the tree of modules is deeper or larger than that of any network.
        """
        pending: list[tuple[str, int, PersistentObject]] = [("", 0, self)]
        entries = 0
        while pending:
            path, depth, module = pending.pop()
            entries += len(module.parameters) + len(module.buffers) + len(module.modules)
            # A few entries that refer to each other can spell an endless tree.
            if depth > MAX_DEPTH or entries > MAX_ENTRIES:
                raise DataError("the tree of modules is deeper or larger than a network's")
            yield path, module
            pending += [(f"{path}{name}.", depth + 1, child)
                        for name, child in reversed(module.modules.items())]

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers of this object and below by dotted name, like `state_dict()`.

        Raises:
            DataError: the tree of modules is deeper or larger than that of any network.
        """
        return {path + name: tensor for path, module in self.walk()
                for name, tensor in (module.parameters | module.buffers).items()}


def read_checkpoint(content: bytes, place: str) -> dict[str, Any]:
    """The dictionary in a checkpoint of EDM or EDM2: `{"ema": PersistentObject, …}`.

    A file that holds one bare object reads as `{"ema": object}`. Tensors are copies of their own
    dtype, on the CPU.

    Args:
        content: the file, a pickle of protocol 2 or later.
        place: its name, for messages.

    Raises:
        DataError: it is damaged, of another kind, or asks for anything that such files do not need.
    """
    if not content.startswith(pickle.PROTO):
        raise DataError(f"{place} is no pickle of a network: choose the source that fits the file, "
                        "or fetch it again")
    document = run(content, CALLS, place)
    if isinstance(document, PersistentObject):
        return {"ema": document}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise DataError(f"{place}: expected a dictionary of networks, as EDM and EDM2 save it: "
                        "fetch the file again")
    return document


# Objects


def recall_object(name: Name, arguments: tuple[Any, ...], budget: Budget) -> PersistentObject:
    match arguments:
        case ({"type": "class", "version": int(version), "class_name": str(class_name),
               "state": dict(state)},):
            pass
        case _:
            raise DataError("the pickle describes an object in another way than EDM")
    if version != PERSISTENCE_VERSION:
        raise DataError(f"version {version} of torch_utils.persistence, expected "
                        f"{PERSISTENCE_VERSION}")
    made = PersistentObject(class_name[:MAX_NAME])
    made.build(state, budget)
    return made


def recall_container(name: Name, arguments: tuple[Any, ...], budget: Budget) -> PersistentObject:
    if arguments:
        raise DataError(f"the pickle calls {name.name} with arguments")
    return PersistentObject(name.name.rpartition(".")[2])


def entries(
    table: object, kind: type, owner: PersistentObject, budget: Budget
) -> dict[str, Any]:
    """The entries of `table`, all of that kind, without those that are None."""
    if not isinstance(table, dict):
        raise DataError(f"{owner.class_name}: its tensors or modules are no dictionary")
    budget.spend(steps=len(table))
    for name, value in table.items():
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise DataError(f"{owner.class_name}: a name of a tensor or module that is none")
        if not isinstance(value, kind | None):
            raise DataError(f"{owner.class_name}.{name}: expected a {kind.__name__}, found a "
                            f"{type(value).__name__}")
    return {name: value for name, value in table.items() if value is not None}


# Tensors


@dataclass(slots=True, eq=False, repr=False)
class Storage:
    """The elements of a tensor, little-endian and one after the other."""

    dtype: torch.dtype
    content: memoryview


def recall_storage(name: Name, arguments: tuple[Any, ...], budget: Budget) -> Storage:
    """Read the nested `torch.save(storage)`: five pickles, the count of elements, the elements."""
    match arguments:
        case (memoryview() as content,):
            machine = Machine(content, STORAGE_NAMES, budget)
        case _:
            raise DataError(f"the pickle calls {name.name} without bytes")
    header = []
    for _ in range(5):
        machine = Machine(content, STORAGE_NAMES, budget, machine.position)
        header.append(machine.run())
    match header:
        case [int(magic), int(version), {"little_endian": True},
              Call(name="persistent_load", arguments=(
                  ("storage", Name(name=kind), str(identity), str(), int(count), None),)),
              [str(only)]] if kind in STORAGES and only == identity:
            pass
        case _:
            raise DataError("a tensor's elements are kept in another format than torch's")
    if (magic, version) != (STORAGE_MAGIC, STORAGE_VERSION):
        raise DataError("a tensor's elements are kept in another format than torch's")
    dtype = STORAGES[kind]
    stated, elements = machine.number("<q"), content[machine.position:]
    if not stated == count >= 0 or len(elements) != count * dtype.itemsize:
        raise DataError(f"{len(elements)} bytes for {count} elements of {dtype}")
    return Storage(dtype, elements)


def recall_tensor(name: Name, arguments: tuple[Any, ...], budget: Budget) -> Tensor:
    """Copy the part of a storage that (offset, size, stride) describe, checked against its end."""
    match arguments:
        case (Storage() as storage, int(offset), tuple(size), tuple(stride), *_) if (
            len(size) == len(stride) <= 8
            and all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride))
        ):
            pass
        case _:
            raise DataError("the pickle describes a tensor in another way than torch")
    if 0 in size:
        budget.spend(steps=1)
        return torch.empty(size, dtype=storage.dtype)
    width = storage.dtype.itemsize
    extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (offset + extent) * width > len(storage.content):
        raise DataError(f"a tensor of shape {size} with strides {stride} at {offset} is larger "
                        f"than its storage of {len(storage.content) // width} elements")
    budget.spend(size=max(extent, prod(size)) * width)
    # The copy is of bytes, since the content of the file cannot be written.
    copy = bytearray(storage.content[offset * width:(offset + extent) * width])
    if storage.dtype == torch.bool:
        return torch.frombuffer(copy, dtype=torch.uint8).ne(0).as_strided(size, stride).contiguous()
    return torch.frombuffer(copy, dtype=storage.dtype).as_strided(size, stride).contiguous()


def recall_parameter(name: Name, arguments: tuple[Any, ...], budget: Budget) -> Tensor:
    match arguments:
        case (Tensor() as tensor, bool(), dict(), *_):
            return tensor
    raise DataError("the pickle describes a parameter in another way than torch")


# Plain values


def recall_dict(name: Name, arguments: tuple[Any, ...], budget: Budget) -> dict[Any, Any]:
    if arguments:
        raise DataError(f"the pickle calls {name.name} with arguments")
    return {}


def recall_set(name: Name, arguments: tuple[Any, ...], budget: Budget) -> set[Any]:
    """How Python 3 writes sets in protocols 2 and 3."""
    match arguments:
        case (list(items),):
            budget.spend(steps=len(items))
            return set(map(key, items))
    raise DataError(f"the pickle calls {name.name} without a list")


def recall_scalar(name: Name, arguments: tuple[Any, ...], budget: Budget) -> float | int | bool:
    match arguments:
        case (Call(name="numpy.dtype", arguments=(str(kind), *_), state=(_, "<" | "|", *_)),
              memoryview() as content) if kind in SCALARS:
            dtype = np.dtype(kind).newbyteorder("<")
            if len(content) == dtype.itemsize:
                value: float | int | bool = np.frombuffer(content, dtype)[0].item()
                return value
    raise DataError("the pickle describes a number in another way than NumPy")


CONTAINERS = "torch.nn.modules.container."
CALLS: dict[str, Recall | None] = {
    **NUMPY,
    "torch_utils.persistence._reconstruct_persistent_obj": recall_object,
    CONTAINERS + "ModuleDict": recall_container,
    CONTAINERS + "ModuleList": recall_container,
    CONTAINERS + "Sequential": recall_container,
    "torch.storage._load_from_bytes": recall_storage,
    "torch._utils._rebuild_tensor_v2": recall_tensor,
    "torch._utils._rebuild_parameter": recall_parameter,
    "torch._utils._rebuild_parameter_with_state": recall_parameter,
    "collections.OrderedDict": recall_dict,
    "dnnlib.util.EasyDict": recall_dict,
    "builtins.set": recall_set,
    "__builtin__.set": recall_set,
    "numpy.core.multiarray.scalar": recall_scalar,
    "numpy._core.multiarray.scalar": recall_scalar,
}
