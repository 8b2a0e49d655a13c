"""The workers of a Dask cluster that is there already."""

import asyncio
import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from distributed import Client, Future, KilledWorker, Security
from distributed.comm import connect

from kdm_core.errors import KDMError
from kdm_core.pairs.claims import marked
from pipeline.runtime.stopping import Stop
from pipeline.workers import member
from pipeline.workers.fitness import Wanted, Worker, processor, require_own_gpus, versions
from pipeline.workers.tasks import OnResult, Place, Task, Work

POLL_S = 0.5
CONNECT_S = 5.0
GATHER_S = 60.0
AHEAD = 2
"""Items that are sent for each worker, so that none waits for the next one."""

LOST = (OSError, TimeoutError, CancelledError)
"""What Dask raises where a connection breaks."""


class Disconnected(ConnectionError):
    """The scheduler is gone, and with it all that it was told."""


class Cluster:
    """See `pipeline.workers.tasks.Engine`. Its workers are looked at on entering."""

    alone = False

    def __init__(
        self, address: str, least: int, place: Place, patience_s: float, stop: Stop,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            address: the scheduler's.
            least: how many workers to wait for before the work begins.
            place: how workers compute; `cuda` is the first GPU that each of them sees.
            patience_s: how long to wait for a scheduler that does not answer, or has no workers.
        """
        self.address, self.least, self.place, self.patience_s = address, least, place, patience_s
        self.stop, self.say, self.workers = stop, say, least
        self.running, self.connection = ExitStack(), ExitStack()
        self.client: Client | None = None
        self.members: dict[str, Worker] = {}
        self.processors = {processor(torch.device(place.device))}
        self.missions, self.looked, self.manned = 0, 0.0, 0.0

    def __enter__(self) -> "Cluster":
        try:
            self.running.enter_context(quiet())
            self.connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *reason: object) -> None:
        self.disconnect()
        self.running.close()

    def run(
        self, task: Task, items: Sequence[Any], on_result: OnResult, own: Work | None = None
    ) -> None:
        sent = task.packed()
        left = dict(enumerate(items))
        with marked(task.written) if task.written is not None else nullcontext() as visible:
            wanted = self.wanted(visible)
            self.members.clear()  # not all of them may see what is visible here
            while left:
                self.stop.check()
                try:
                    if self.client is None:
                        self.connect()
                    self.attempt(sent, wanted, left, on_result)
                except Disconnected:
                    self.say("the connection to the Dask scheduler is lost: what is not complete "
                             "is begun again when it is back")
                    self.disconnect()
        self.stop.check()

    def wanted(self, visible: Path | None) -> Wanted:
        """What workers must be."""
        return Wanted(self.place, versions(), visible)

    def connect(self) -> None:
        """Find the scheduler, and as many fit workers as it takes.

        Raises:
            KDMError: it does not answer, has another version, or not as many workers, or unfit
                ones.
        """
        deadline, waiting = time.monotonic() + self.patience_s, False
        while True:
            self.stop.check()
            try:
                self.client = self.connection.enter_context(
                    open_client(self.address, min(CONNECT_S, self.patience_s)))
                self.get_ready(deadline)
                return
            except LOST as error:
                self.disconnect()
                if time.monotonic() > deadline:
                    raise KDMError(f"no Dask scheduler answers at {self.address} "
                                   f"({brief(error)}): start one (dask scheduler), or correct "
                                   "execution.sampling.address") from error
                if not waiting:
                    self.say(f"no Dask scheduler answers at {self.address}: waiting up to "
                             f"{self.patience_s:g} s")
                waiting = True

    def get_ready(self, deadline: float) -> None:
        """Look at the scheduler, and wait for workers: all to begin with, one to go on."""
        wanted = 1 if self.missions else self.least
        self.ask(lambda client: check_scheduler(self.address, client))
        self.ask(lambda client: client.run_on_scheduler(member.forget_others))
        while (found := len(self.ask(Client.nthreads))) < wanted:
            self.stop.check()
            if time.monotonic() > deadline:
                raise KDMError(f"the Dask scheduler at {self.address} has {found} of "
                               f"{wanted} workers after {self.patience_s:g} s: start "
                               "more (dask worker --nthreads 1), lower execution.sampling.workers, "
                               "or raise execution.sampling.patience_s")
            time.sleep(POLL_S)
        self.look(self.wanted(None))

    def disconnect(self) -> None:
        """Have no scheduler."""
        self.client = None
        self.members.clear()
        self.connection.close()

    def ask(self, question: Callable[[Client], Any]) -> Any:
        """What the scheduler answers.

        Raises:
            Disconnected: nothing.
        """
        if self.client is None or self.client.status != "running":
            raise Disconnected
        try:
            return question(self.client)
        except LOST as error:
            raise Disconnected from error

    def look(self, wanted: Wanted) -> None:
        """See which workers there are, now and then.

        Raises:
            KDMError: one does not fit, or there have been none for a while.
            Disconnected: the scheduler does not tell.
        """
        now = time.monotonic()
        if self.members and now - self.looked < POLL_S:
            return
        self.looked = now
        found = self.ask(Client.nthreads)
        self.members = {name: self.members[name] for name in found if name in self.members}
        if new := [name for name in found if name not in self.members]:
            answers = self.ask(lambda client: client.run(
                member.describe, wanted, workers=new, on_error="return"))
            for name, answer in answers.items():
                self.admit(wanted, name, answer)
            require_own_gpus(self.members)
            self.workers = max(self.workers, len(self.members))
        if self.members or not self.manned:
            self.manned = now
        elif now - self.manned > self.patience_s:
            raise KDMError(f"the Dask scheduler has had no workers for {self.patience_s:g} s: "
                           "start some (dask worker --nthreads 1), and run again to go on")

    def admit(self, wanted: Wanted, name: str, answer: Worker | Exception) -> None:
        """Count a worker in, given what it says of itself.

        Raises:
            KDMError: it does not fit.
        """
        if isinstance(answer, OSError):  # it has just gone
            return
        if isinstance(answer, Exception):
            raise KDMError(f"the Dask worker {name} cannot run this project ({brief(answer)}): "
                           "install the same version there and here, and start it again"
                           ) from answer
        wanted.check(name, answer)
        self.members[name] = answer
        if answer.processor not in self.processors:
            self.processors.add(answer.processor)
            self.say(f"the Dask worker {name} computes on {answer.processor}, this machine on "
                     f"{processor(torch.device(self.place.device))}: results will agree to "
                     "rounding, and not to the bit")

    def attempt(
        self, task: Task, wanted: Wanted, left: dict[int, Any], on_result: OnResult
    ) -> None:
        """Have items worked on while there is a connection; `left` loses those that are done."""
        todo, under_way = deque(left), dict[str, tuple[int, Future]]()
        inbox: SimpleQueue[Future] = SimpleQueue()
        with self.mission(task, wanted) as name:
            while under_way or (todo and not self.stop.asked):
                self.look(wanted)
                if self.stop.asked:
                    self.ask(lambda client: client.run(member.leave, name, on_error="ignore"))
                while (todo and not self.stop.asked
                       and len(under_way) < AHEAD * len(self.members)):
                    place = todo.popleft()
                    future = self.submit(name, place, left[place])
                    under_way[future.key] = place, future
                    future.add_done_callback(inbox.put)
                for future in arrived(inbox):
                    place, _ = under_way.pop(future.key)
                    answer = result(future)
                    if answer.done:
                        del left[place]
                        on_result(place, answer.result)

    @contextmanager
    def mission(self, task: Task, wanted: Wanted) -> Iterator[str]:
        """A context in which workers have a task, under the name that it yields."""
        self.look(wanted)
        assert self.client is not None
        self.missions += 1
        name = member.mission_name(self.client.id, self.missions)
        plugin = member.Mission(name, task, wanted)
        self.ask(lambda client: client.register_plugin(plugin, name=name))
        try:
            yield name
        finally:
            with suppress(Disconnected):
                self.ask(lambda client: client.run_on_scheduler(member.forget, name))

    def submit(self, name: str, place: int, item: Any) -> Future:
        """Send an item."""
        return self.ask(lambda client: client.submit(
            member.do, name, item, key=f"{name}/{place}", pure=False))


def open_client(address: str, timeout_s: float) -> Client:
    """A client of the scheduler at an address.

    Raises:
        KDMError: something else answers there, or TLS is not set up.
        OSError: nothing does.
    """
    try:
        asyncio.run(knock(address, timeout_s))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions are compared by ourselves
            return Client(address, timeout=timeout_s, set_as_default=False)
    except LOST:
        raise
    except Exception as error:  # what Dask raises depends on what answers
        raise KDMError(f"what answers at {address} cannot be used as a Dask scheduler "
                       f"({brief(error)}): correct execution.sampling.address, or Dask's settings "
                       "of TLS") from error


async def knock(address: str, timeout_s: float) -> None:
    """Make sure that something answers as Dask does: a client would wait for it for ever.

    Raises:
        OSError: nothing does.
    """
    own = Security().get_connection_args("client")  # as Dask's configuration has it
    async with asyncio.timeout(timeout_s + 1):
        comm = await connect(address, timeout_s, **own)
        await comm.close()


def check_scheduler(address: str, client: Client) -> None:
    """Make sure that the scheduler has the versions of this process.

    Raises:
        KDMError: it has others.
    """
    found, own = client.get_versions()["scheduler"]["packages"], versions()
    found["python"] = ".".join(found["python"].split(".")[:2])
    differences = [f"{name} {found.get(name)} (here {own[name]})"
                   for name in ("python", "distributed", "cloudpickle")
                   if found.get(name) != own[name]]
    if differences:
        raise KDMError(f"the Dask scheduler at {address} has {', '.join(differences)}: install "
                       "the same versions there and here, and start it again")


def arrived(inbox: "SimpleQueue[Future]") -> Iterator[Future]:
    """Futures that are done; waits a while for the first."""
    with suppress(Empty):
        yield inbox.get(timeout=POLL_S)
        while True:
            yield inbox.get_nowait()


def result(future: Future) -> member.Answer:
    """What a worker says of an item.

    Raises:
        Disconnected: it cannot be had any more.
        KDMError: the item has ended several workers; any other error is the worker's own.
    """
    try:
        if future.status == "error":
            error = future.exception(timeout=GATHER_S)
        elif future.status == "finished":
            answer: member.Answer = future.result(timeout=GATHER_S)
            return answer
        else:
            raise Disconnected
    except LOST as lost:
        raise Disconnected from lost
    if isinstance(error, KilledWorker):
        raise KDMError(f"{error.allowed_failures + 1} Dask workers were lost at the same work "
                       "(killed, or out of memory?): see their logs, and run again to go on after "
                       "what is complete") from error
    raise error


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which Dask does not log: what goes wrong is said by ourselves."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        try:
            yield
        finally:
            logger.setLevel(before)


def brief(error: BaseException) -> str:
    """An error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
