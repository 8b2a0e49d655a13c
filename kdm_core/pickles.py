"""Reading dictionaries of arrays from pickles of others without running anything in them.

A pickle is a program that calls functions by name. Here the few names that NumPy's arrays need
stand for recorders: what the program does with them is noted down, and the arrays are then built
from the notes. Any other name is refused.
"""

import io
import pickle
import pickletools
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
KNOWN = {ARRAY, DTYPE, ENCODE, *RECONSTRUCT, *FROM_BUFFER}
MAX_MEMO = 2**20


class Name:
    """Stands for a function or class of that name; a call of it is noted, not made."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: object) -> "Call":
        return Call(self.name, arguments)

    def __setstate__(self, state: object) -> None:
        # Without this, a pickle could set any attribute of the object.
        raise DataError(f"the pickle tries to change {self.name}")


class Call:
    """A call that was noted, and the state that its result was to be given."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[object, ...]) -> None:
        self.name = name
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class InertUnpickler(pickle.Unpickler):
    """An unpickler for which every global is a `Name`, or refused."""

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if full not in KNOWN:
            raise DataError(f"the pickle asks for {full}, which has no place in a data file: "
                            "fetch the file again from its publisher")
        return Name(full)


def read_pickle(content: bytes, place: str) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as str; values are as recorded (see `as_uint8`).

    Args:
        content: a pickle of any protocol, also of Python 2.
        place: the file, for messages.

    Raises:
        DataError: it is damaged, holds no dictionary, or asks for anything but NumPy arrays.
    """
    try:
        # The unpickler makes its memo as large as the largest index that it is told to use.
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name.endswith("PUT") and int(argument or 0) > MAX_MEMO:
                raise DataError(f"the pickle uses more than {MAX_MEMO} memo entries")
        document = InertUnpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    except Exception as error:  # a damaged program fails in any way
        raise DataError(f"{place} is not a readable pickle ({type(error).__name__}: {error}): "
                        "fetch it again") from error
    if not isinstance(document, dict):
        raise DataError(f"{place}: expected a dictionary: fetch the file again")
    return {_text(key, place): value for key, value in document.items()}


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
    content = _bytes(raw)
    if kind is None or order not in ("C", "F") or content is None:
        raise DataError(f"{place}: expected an array of uint8 or float32: fetch the file again")
    if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise DataError(f"{place}: an array of shape {str(shape)[:100]}: fetch the file again")
    if len(content) != prod(shape) * kind.itemsize:
        raise DataError(f"{place}: {len(content)} bytes for an array of shape {shape}: "
                        "fetch the file again")
    flat = np.frombuffer(content, dtype=kind)
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


def _bytes(value: object) -> bytes | None:
    """Bytes in any form in which they are pickled; None if it is something else."""
    match value:
        case bytes() | bytearray():
            return bytes(value)
        case Call(name="_codecs.encode", arguments=(str(text), "latin1" | b"latin1")):
            # Characters beyond bytes become question marks, which no published file has.
            return text.encode("latin1", errors="replace")
    return None


def _text(key: object, place: str) -> str:
    content = key.encode() if isinstance(key, str) else _bytes(key)
    if content is None:
        raise DataError(f"{place}: expected a dictionary with text as keys")
    return content.decode(errors="replace")
