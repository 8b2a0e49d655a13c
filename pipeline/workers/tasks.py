"""What is worked on: a task that every worker is given once, and items that it works on."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch

from kdm_core.compute import resolve_device
from kdm_core.errors import placed
from kdm_core.pairs.location import local_path

Work = Callable[[Any], Any]
"""An item → its result; both can be pickled."""

OnResult = Callable[[int, Any], None]
"""Told the place of an item among the items, and its result, in any order."""


class Task(Protocol):
    """Something that can be done for many items apart. Pickled, and sent to every worker once."""

    @property
    def written(self) -> Path | None:
        """A store on a disk that workers write into, and so must see; None if there is none."""

    def packed(self) -> Self:
        """The same for machines that do not have this one's files, as far as that can be."""

    def start(self, device: torch.device) -> Work:
        """In a worker: open and load what is needed, once.

        Raises:
            KDMError: something is not there, or not what the stage has.
        """


class Engine(Protocol):
    """Workers of a task. Use as a context manager, so that they end with it.

    Attributes:
        alone: whether the work is done in this process.
        workers: how many there are, or will be.
        patience_s: how long to wait for items that workers of before still hold.
    """

    alone: bool
    workers: int
    patience_s: float

    def run(
        self, task: Task, items: Sequence[Any], on_result: OnResult, own: Work | None = None
    ) -> None:
        """Have all items worked on; a lost worker's go to the others.

        Args:
            own: what `task.start` would return, where this process has it already.

        Raises:
            KDMError: a worker failed for a reason that holds for all, or all were lost.
            Stopped: the program was asked to end; what was under way is finished.
        """


class Place(NamedTuple):
    """How a worker computes.

    Attributes:
        threads: the number that one process alone would have: another rounds differently.
    """

    device: str
    threads: int
    deterministic: bool

    def prepare(self) -> torch.device:
        """Compute so from here on in this thread; returns the device.

        Raises:
            KDMError: it is not available on this machine.
        """
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        with placed("compute"):
            return resolve_device(self.device)


class Folder(NamedTuple):
    """A folder of files that workers read: where it lies, or what is in it.

    Attributes:
        files: contents by relative path; None where they are read from `path`.
    """

    path: Path
    files: dict[str, bytes] | None = None

    def packed(self) -> "Folder":
        """The same with what is in it."""
        return Folder(self.path, {file.relative_to(self.path).as_posix(): file.read_bytes()
                                  for file in sorted(self.path.rglob("*")) if file.is_file()})

    @contextmanager
    def at_hand(self) -> Iterator[Path]:
        """A context in which the folder can be read."""
        if self.files is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="kdm-") as folder:
            for name, content in self.files.items():
                file = Path(folder) / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            yield Path(folder)


def absolute(location: Path | str) -> str:
    """A store's location as processes in other folders find it."""
    path = local_path(location)
    return str(location) if path is None else str(path.resolve())
