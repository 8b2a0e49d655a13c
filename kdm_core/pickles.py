"""Reading the pickles of others without running anything in them.

A pickle is a program that calls functions by name. Here a machine of our own runs it, for which
the few names that a kind of file needs stand for functions that rebuild plain data or only note
the call down. Any other name is refused.

Python's unpickler is not used because its limits are those of the process: nested tuples as keys
crash it or keep it busy for ever, and a few bytes make it allocate gigabytes.
"""

import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError

ARRAY, DTYPE = "numpy.ndarray", "numpy.dtype"
ENCODE = "_codecs.encode"  # how Python 3 writes bytes in the protocols of Python 2
# NumPy 1 and 2 differ in the module's name.
RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
MAX_STEPS = 2**20  # the largest published files take about 2^17


@dataclass(frozen=True, slots=True, eq=False)
class Name:
    """A function or class of that name."""

    name: str


class Budget:
    """What a file of `size` bytes may cost: steps of its program, and bytes that are copied."""

    def __init__(self, size: int) -> None:
        self.steps = MAX_STEPS
        self.bytes = 2 * size  # protocol 2 spells bytes as text, which is one more copy

    def spend(self, steps: int = 0, size: int = 0) -> None:
        self.steps -= steps
        self.bytes -= size
        if self.steps < 0:
            raise DataError("the pickle is longer than any data file")
        if self.bytes < 0:
            raise DataError("the pickle's arrays claim more bytes than it has")


class Stateful(ABC):
    """What a pickle may give a state."""

    __slots__ = ()

    @abstractmethod
    def build(self, state: Any, budget: Budget) -> None:
        """Take the state."""


@dataclass(slots=True, eq=False, repr=False)
class Call(Stateful):
    """A call that was noted, and the state that its result was to be given."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None

    def build(self, state: Any, budget: Budget) -> None:
        self.state = state


Recall = Callable[[Name, tuple[Any, ...], Budget], Any]
"""(name, arguments, budget) → what stands for the result of the call."""


# The machine


class Machine:
    """Runs one pickle's program; see the documentation of `pickletools` for what opcodes do.

    Nothing recurses and every allocation is bounded by bytes that are there, so that no program
    can crash the process or fill its memory. Bytes, and the texts of Python 2, are memoryviews of
    the content.

    Args:
        content: what the pickle is in.
        calls: the names it may use, with what stands for a call; None for names that are only
            mentioned.
        budget: limits, shared by all machines that read the same file.
        position: where in the content it begins.
    """

    def __init__(
        self,
        content: memoryview,
        calls: Mapping[str, Recall | None],
        budget: Budget,
        position: int = 0,
    ) -> None:
        self.content = content
        self.calls = calls
        self.budget = budget
        self.position = position
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the program leaves; `position` is then behind its end."""
        while (opcode := bytes(self.read(1))) != pickle.STOP:
            self.budget.spend(steps=1)
            if opcode not in STEPS:
                raise DataError(f"the pickle has the opcode {opcode!r}, which no data "
                                "file needs")
            STEPS[opcode](self)
        return self.stack.pop()

    def read(self, size: int) -> memoryview:
        if size > len(self.content) - self.position:
            raise DataError("the pickle is cut short: fetch the file again")
        self.position += size
        return self.content[self.position - size:self.position]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        """Up to the end of the line, without it."""
        size, text, newline = 128, b"", b""
        while not newline and len(text) < len(self.content) - self.position:
            size *= 2
            part = bytes(self.content[self.position:self.position + size])
            text, newline, _ = part.partition(b"\n")
        self.read(len(text) + 1)
        return text

    def since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise DataError("the pickle takes values that it never gave")
        items = self.stack[len(self.stack) - count:]
        del self.stack[len(self.stack) - count:]
        return items

    def refer(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DataError("the pickle asks for something without a name")
        full = f"{module}.{name}"
        if full not in self.calls:
            raise DataError(f"the pickle asks for {ascii(full[:100])[1:-1]}, which has no place in "
                            "a data file: fetch the file again from its publisher")
        self.stack.append(Name(full))

    def call(self) -> None:
        function, arguments = self.pop(2)
        recall = self.calls.get(function.name) if isinstance(function, Name) else None
        if recall is None or not isinstance(arguments, tuple):
            raise DataError("the pickle calls something that cannot be called")
        self.stack.append(recall(function, arguments, self.budget))

    def build(self) -> None:
        target, state = self.pop(2)
        if isinstance(target, Name):
            raise DataError(f"the pickle tries to change {target.name}")
        if not isinstance(target, Stateful):
            raise DataError("the pickle sets the state of something that has none")
        target.build(state, self.budget)
        self.stack.append(target)

    def put(self, index: int) -> None:
        if not 0 <= index <= MAX_STEPS:
            raise DataError(f"the pickle uses more than {MAX_STEPS} memo entries")
        self.memo[index] = self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise DataError("the pickle sets items of something that has none")
        target.update(pairs(items))

    def add_items(self, items: list[Any]) -> None:
        match self.stack[-1]:
            case list() as target:
                target.extend(items)
            case set() as members:
                members.update(map(key, items))
            case _:
                raise DataError("the pickle adds items to something that has none")

    def push_text(self, layout: str) -> None:
        self.stack.append(str(self.read(self.number(layout)), "utf-8"))

    def push_bytes(self, layout: str) -> None:
        self.stack.append(self.read(self.number(layout)))


def key(value: object) -> str | int | bytes:
    """A key of a dictionary or set; others could take for ever, or the stack, to hash."""
    match value:
        case str() | int():
            return value
        case memoryview():
            return bytes(value)
    raise DataError(f"the pickle has a key of type {type(value).__name__}")


def pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise DataError("the pickle has a key without a value")
    return dict(zip(map(key, items[::2]), items[1::2], strict=True))


def integer(line: bytes) -> int:
    """A number in digits, or a truth value, as protocol 0 writes them."""
    return line == b"01" if line in (b"00", b"01") else int(line)


Step = Callable[[Machine], Any]


def push(make: Callable[[Machine], Any]) -> Step:
    return lambda m: m.stack.append(make(m))


STEPS: dict[bytes, Step] = {
    pickle.PROTO: lambda m: m.read(1),
    pickle.FRAME: lambda m: m.read(8),
    pickle.NONE: push(lambda m: None),
    pickle.NEWTRUE: push(lambda m: True),
    pickle.NEWFALSE: push(lambda m: False),
    pickle.BININT: push(lambda m: m.number("<i")),
    pickle.BININT1: push(lambda m: m.number("<B")),
    pickle.BININT2: push(lambda m: m.number("<H")),
    pickle.LONG1: push(lambda m: int.from_bytes(m.read(m.number("<B")), "little", signed=True)),
    pickle.BINFLOAT: push(lambda m: m.number(">d")),
    pickle.SHORT_BINUNICODE: lambda m: m.push_text("<B"),
    pickle.BINUNICODE: lambda m: m.push_text("<I"),
    pickle.BINUNICODE8: lambda m: m.push_text("<Q"),
    pickle.SHORT_BINBYTES: lambda m: m.push_bytes("<B"),
    pickle.BINBYTES: lambda m: m.push_bytes("<I"),
    pickle.BINBYTES8: lambda m: m.push_bytes("<Q"),
    pickle.EMPTY_TUPLE: push(lambda m: ()),
    pickle.EMPTY_LIST: push(lambda m: []),
    pickle.EMPTY_DICT: push(lambda m: {}),
    pickle.EMPTY_SET: push(lambda m: set()),
    pickle.TUPLE1: push(lambda m: tuple(m.pop(1))),
    pickle.TUPLE2: push(lambda m: tuple(m.pop(2))),
    pickle.TUPLE3: push(lambda m: tuple(m.pop(3))),
    pickle.TUPLE: push(lambda m: tuple(m.since_mark())),
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.APPEND: lambda m: m.add_items(m.pop(1)),
    pickle.APPENDS: lambda m: m.add_items(m.since_mark()),
    pickle.ADDITEMS: lambda m: m.add_items(m.since_mark()),
    pickle.SETITEM: lambda m: m.set_items(m.pop(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.since_mark()),
    pickle.MEMOIZE: lambda m: m.put(len(m.memo)),
    pickle.BINPUT: lambda m: m.put(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.put(m.number("<I")),
    pickle.BINGET: push(lambda m: m.memo[m.number("<B")]),
    pickle.LONG_BINGET: push(lambda m: m.memo[m.number("<I")]),
    pickle.GLOBAL: lambda m: m.refer(m.line().decode(), m.line().decode()),
    pickle.STACK_GLOBAL: lambda m: m.refer(*m.pop(2)),
    pickle.BINPERSID: push(lambda m: Call("persistent_load", tuple(m.pop(1)))),
    pickle.REDUCE: Machine.call,
    pickle.NEWOBJ: Machine.call,
    pickle.BUILD: Machine.build,
    pickle.BYTEARRAY8: lambda m: m.push_bytes("<Q"),
    # Of Python 2, and of protocol 0.
    pickle.SHORT_BINSTRING: lambda m: m.push_bytes("<B"),
    pickle.BINSTRING: lambda m: m.push_bytes("<I"),
    pickle.UNICODE: push(lambda m: m.line().decode("raw-unicode-escape")),
    pickle.INT: push(lambda m: integer(m.line())),
    pickle.LONG: push(lambda m: integer(m.line().removesuffix(b"L"))),
    pickle.FLOAT: push(lambda m: float(m.line())),
    pickle.LIST: push(Machine.since_mark),
    pickle.DICT: push(lambda m: pairs(m.since_mark())),
    pickle.PUT: lambda m: m.put(integer(m.line())),
    pickle.GET: push(lambda m: m.memo[integer(m.line())]),
}


# What stands for calls


def note(name: Name, arguments: tuple[Any, ...], budget: Budget) -> Call:
    return Call(name.name, arguments)


def recall_bytes(name: Name, arguments: tuple[Any, ...], budget: Budget) -> memoryview:
    match arguments:
        case (str(text), "latin1" | b"latin1"):
            budget.spend(size=len(text))  # each call makes a copy
            return memoryview(text.encode("latin1"))
    raise DataError("the pickle encodes a text other than bytes")


NUMPY: dict[str, Recall | None] = {
    ARRAY: None, DTYPE: note, ENCODE: recall_bytes,
    **dict.fromkeys(RECONSTRUCT, note), **dict.fromkeys(FROM_BUFFER, note),
}


# Arrays


def read_pickle(content: bytes, place: str) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as str; values are as recorded (see `as_uint8`).

    Args:
        content: a pickle of any protocol, also of Python 2.
        place: the file, for messages.

    Raises:
        DataError: it is damaged, holds no dictionary, or asks for anything but NumPy arrays.
    """
    document = run(content, NUMPY, place)
    if not isinstance(document, dict):
        raise DataError(f"{place}: expected a dictionary: fetch the file again")
    return {_text(key, place): value for key, value in document.items()}


def run(content: bytes, calls: Mapping[str, Recall | None], place: str) -> Any:
    """What a pickle's program leaves.

    Raises:
        DataError: it is damaged, or asks for a name that is not in `calls`.
    """
    try:
        return Machine(memoryview(content), calls, Budget(len(content))).run()
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    except Exception as error:  # a damaged program fails in any way
        raise DataError(f"{place} is not a readable pickle ({type(error).__name__}: "
                        f"{str(error)[:200]}): fetch it again") from error


def as_array(value: object, place: str) -> NDArray[Any]:
    """Build the recorded array, of uint8 or of little-endian float32.

    Raises:
        DataError: `value` is no such array, or its bytes are not as many as its shape says.
    """
    match value:
        case Call(name=name, arguments=(Name(name="numpy.ndarray"), *_),
                  state=(1, shape, Call(name="numpy.dtype") as dtype, fortran, raw),
                  ) if name in RECONSTRUCT:
            order: object = "F" if fortran else "C"
        case Call(name=name, arguments=(raw, Call(name="numpy.dtype") as dtype, shape, order),
                  ) if name in FROM_BUFFER:
            pass
        case _:
            raise DataError(f"{place}: expected an array: fetch the file again")
    kind = _dtype(dtype)
    if kind is None or order not in ("C", "F") or not isinstance(raw, memoryview):
        raise DataError(f"{place}: expected an array of uint8 or float32: fetch the file again")
    if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise DataError(f"{place}: an array of shape {str(shape)[:100]}: fetch the file again")
    if len(raw) != prod(shape) * kind.itemsize:
        raise DataError(f"{place}: {len(raw)} bytes for an array of shape {shape}: "
                        "fetch the file again")
    flat = np.frombuffer(raw, dtype=kind)
    # A copy, since the pickle's bytes cannot be written.
    return flat.reshape(shape, order="F" if order == "F" else "C").copy()


def as_uint8(value: object, columns: int, place: str) -> NDArray[np.uint8]:
    """Build the recorded array (n, columns) of uint8.

    Raises:
        DataError: `value` is no such array.
    """
    array = as_array(value, place)
    if array.ndim != 2 or array.shape[1] != columns or array.dtype != np.uint8:
        raise DataError(f"{place}: an array of shape {array.shape} and {array.dtype}, expected "
                        f"uint8 of shape (n, {columns}): fetch the file again")
    return array


def _dtype(call: Call) -> np.dtype[Any] | None:
    """The two dtypes that data files of this project have; None for any other."""
    match call:
        case Call(arguments=("u1" | b"u1", *_)):
            return np.dtype(np.uint8)
        case Call(arguments=("f4" | b"f4", *_), state=(_, "<" | b"<", *_)):
            return np.dtype("<f4")
    return None


def _text(key: object, place: str) -> str:
    match key:
        case str():
            return key
        case bytes():
            return key.decode(errors="replace")
    raise DataError(f"{place}: expected a dictionary with text as keys")
