"""NumPy files that nobody vouches for: nothing is unpickled, and nothing allocated on their word.

The headers of .npy files and the directories of .npz files claim sizes. They are compared with
the bytes that are there before any memory is asked for.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdm_core.errors import DataError

# Of a file with one pair: a megapixel of noise in double precision.
MAX_FILE = 64 * 2**20
# No deflate stream unpacks to more than this many times its size (zlib's technical details).
MAX_RATIO = 1032
NUMBERS, STRINGS = "biuf", "SU"
EXPECTED = {NUMBERS: "numbers", STRINGS: "strings", NUMBERS + STRINGS: "numbers or strings"}
PIECE = 2**24


class ArrayFile(Protocol):
    """An array in a file, read by its first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The entries at ascending rows."""


@contextmanager
def damage(where: str | Path) -> Iterator[None]:
    """A context that names the file that could not be read.

    Raises:
        DataError: whatever else was raised.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{where} is missing: supply it") from error
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds on damaged files
        raise DataError(f"{where} is no readable file of plain arrays ({type(error).__name__}: "
                        f"{error}): fetch or write it anew") from error


def read_header(
    stream: Any, size: int, kinds: str = NUMBERS
) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, dtype and whether in Fortran order, of an .npy stream.

    The stream is left at the array's first byte.

    Args:
        stream: at its beginning.
        size: of all of it in bytes.
        kinds: of NumPy's data types, that are expected.

    Raises:
        ValueError: it holds other things than expected, or more or less of them than it claims.
    """
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise ValueError(f"version {version} of the .npy format")
    shape, fortran, dtype = readers[version](stream)
    if dtype.kind not in kinds:
        raise ValueError(f"values of type {dtype}, expected {EXPECTED[kinds]}: astype makes them")
    claimed, there = prod(shape) * dtype.itemsize, size - stream.tell()
    if claimed != there:
        raise ValueError(f"its header claims {claimed} bytes of shape {shape}, {there} are there")
    return shape, dtype, fortran


def parse_npy(content: bytes) -> NDArray[Any]:
    """The array of an .npy file.

    Raises:
        ValueError: as `read_header`.
    """
    stream = io.BytesIO(content)
    shape, dtype, fortran = read_header(stream, len(content))
    values = np.frombuffer(content, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def check_member(member: zipfile.ZipInfo) -> None:
    """Raises: ValueError: an archive's member is packed otherwise than numpy does, or lies."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is packed with method {member.compress_type}")
    if member.file_size > MAX_RATIO * (member.compress_size + 1):
        raise ValueError(f"{member.filename} claims {member.file_size} bytes, which "
                         f"{member.compress_size} packed ones cannot hold")


def parse_npz(content: bytes, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Those of the named arrays that a small .npz file has.

    Raises:
        ValueError, zipfile.BadZipFile, zlib.error, …: it is damaged, or too large.
    """
    found = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name not in names:
                continue
            check_member(member)
            if name in found:
                raise ValueError(f"there are two members {name}")
            if member.file_size > MAX_FILE:
                raise ValueError(f"{name} unpacks to {member.file_size} bytes, at most {MAX_FILE} "
                                 "are allowed in a file of one pair")
            found[name] = parse_npy(archive.read(member))
    return found


class NpyFile:
    """An .npy file of any size; only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        with damage(path):
            if not path.is_file():
                raise FileNotFoundError
            with path.open("rb") as file:
                self.shape, self.dtype, fortran = read_header(file, path.stat().st_size)
                start = file.tell()
            self.values = np.memmap(path, self.dtype, "r", start, self.shape,
                                    "F" if fortran else "C")

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(self.values[rows])


class NpzMember:
    """An array in an .npz file of any size, read forward without holding the rest."""

    def __init__(self, path: Path, member: zipfile.ZipInfo, kinds: str = NUMBERS) -> None:
        self.where = f"{path}: {member.filename}"
        with damage(self.where):
            check_member(member)
            # As long as this object lives.
            self.stream: Any = zipfile.ZipFile(path).open(member)  # noqa: SIM115
            self.shape, self.dtype, self.fortran = read_header(
                self.stream, member.file_size, kinds)
            self.start = self.stream.tell()

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def require_rows(self) -> None:
        """Raises: DataError: the array's rows do not follow each other in the file."""
        if self.fortran and len(self.shape) > 1:
            raise DataError(f"{self.where} is in Fortran order: save it in C order, as "
                            "numpy.ascontiguousarray makes it")

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        self.require_rows()
        inner = self.shape[1:]
        size = prod(inner) * self.dtype.itemsize
        values = np.empty((len(rows), *inner), self.dtype)
        runs = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
        with damage(self.where):
            for run in runs:
                self.stream.seek(self.start + int(rows[run[0]]) * size)
                content = self.stream.read(len(run) * size)
                values[run] = np.frombuffer(content, self.dtype).reshape(len(run), *inner)
        return values

    def whole(self) -> NDArray[Any]:
        """All of the array, which the caller has found small enough to hold."""
        with damage(self.where):
            self.stream.seek(self.start)
            content = np.empty(self.nbytes, np.uint8)
            filled = 0
            while filled < len(content):
                count = self.stream.readinto(content[filled : filled + PIECE].data)
                if not count:
                    raise EOFError(f"{len(content) - filled} bytes are missing")
                filled += count
            return content.view(self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


def npz_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays of an .npz file, by name.

    Raises:
        DataError: it is none.
    """
    if path.exists() and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz file, or cut off: write it anew with numpy.savez")
    with damage(path), zipfile.ZipFile(path) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in members:
                raise ValueError(f"there are two members {name}")
            members[name] = member
        return members
