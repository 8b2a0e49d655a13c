"""Starting a program as processes that train together, on this machine or as one of several.

What torchrun does, but for three things: processes of one machine meet on its loopback, where no
other machine can connect; only a process that was lost makes all start again, since an error that
a person must mend would come back; and what happened is said in one line.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousTimeoutError,
)

from kdm_core.errors import KDMError
from kdm_core.training.distributed import LOST
from kdm_core.training.meeting import Machines, OneMachine, command, invitation, meet

# Workers have nothing to do for their end; a stopped stage must be gone within its own grace time.
SHUTDOWN_S = 3
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
RESUME = "run again to go on from the last checkpoint"


def say_to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def launch(
    module: str, arguments: Sequence[str], processes: int, restarts: int = 0,
    machines: Machines | None = None, say: Callable[[str], None] = say_to_stderr,
) -> int:
    """Run `python -m MODULE ARGUMENTS…` in several processes and wait for their end.

    They write to this process's stdout and stderr. When one of them fails, all are ended; when
    this process is asked to end (SIGTERM, SIGINT), so are they.

    Args:
        module, arguments: the program, whose processes are in `one_failure` and `process_group`.
        processes: on this machine.
        restarts: how often all are started again after one was lost.
        machines: those that train together; None for this one alone.
        say: told how to start the other machines, and of every restart.

    Returns:
        The exit code: 0 where all ended well, 128 + n for signal n, else that of a process that
        has said why.

    Raises:
        KDMError: processes were lost more often than they may be, the machines cannot meet at the
            endpoint, or have left each other.
    """
    # Otherwise every process would start a thread for each core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # torch would report every failure on many lines, after the failed process has said it in one.
    logging.disable(logging.CRITICAL)
    try:
        meeting = meet(machines) if machines else OneMachine()
        if machines:
            say(invitation(machines, command(module, arguments, processes, restarts, machines)))
        try:
            return supervise(meeting, module, arguments, processes, restarts, say)
        finally:
            meeting.shutdown()  # which ends the other machines' part, too
    except RendezvousTimeoutError as error:
        assert machines is not None
        raise KDMError(f"fewer than {machines.least} machines came to {machines.endpoint} within "
                       f"{machines.patience_s:g} s: {RESUME}") from error
    except RendezvousClosedError as error:
        raise KDMError("another machine has given up, see what it says; then "
                       f"{RESUME}") from error
    except RendezvousConnectionError as error:
        raise KDMError(f"the machines cannot meet ({error.__cause__ or error})") from error
    finally:
        logging.disable(logging.NOTSET)


def supervise(
    meeting: RendezvousHandler, module: str, arguments: Sequence[str], processes: int,
    restarts: int, say: Callable[[str], None],
) -> int:
    """`launch`, the machines being about to meet."""
    # torch's agents read from there which signals to pass on, and would take them, too, from a
    # program that was started with nohup.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(
        each.name for each in PASSED_ON if signal.getsignal(each) is not signal.SIG_IGN)
    agent = Agent(WorkerSpec(
        role="default", local_world_size=processes, entrypoint=sys.executable,
        args=("-m", module, *arguments), rdzv_handler=meeting, max_restarts=restarts,
        monitor_interval=0.1), say)
    try:
        result: RunResult | None = agent.run()
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    if result is None or not result.is_failed():
        return 0
    codes = said(result.failures)
    if codes:
        return codes[0]
    after = f" after {restarts} restarts" if restarts else ""
    raise KDMError(f"{loss(result.failures, processes)}{after}: {RESUME}")


class Agent(LocalElasticAgent):
    """torchrun's agent, which starts processes and watches them, with a rule when to give up."""

    def __init__(self, spec: WorkerSpec, say: Callable[[str], None]) -> None:
        # The processes write to our own stdout and stderr; without a name, a folder would be left.
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), shutdown_timeout=SHUTDOWN_S)
        self.say = say

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if not result.is_failed():
            return result
        if said(result.failures):
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            spec = worker_group.spec
            restart = spec.max_restarts - self._remaining_restarts + 1
            self.say(f"{loss(result.failures, spec.local_world_size)}: all go on from the last "
                     f"checkpoint (restart {restart} of {spec.max_restarts})")
        return result


def said(failures: Mapping[int, ProcessFailure]) -> list[int]:
    """The exit codes of processes that failed and have said, or know that another has said, why."""
    return [failure.exitcode for failure in failures.values()
            if failure.exitcode > 0 and failure.exitcode != LOST]


def loss(failures: Mapping[int, ProcessFailure], processes: int) -> str:
    """Which process was lost, and how."""
    killed = [failure for failure in failures.values() if failure.exitcode < 0]
    if not killed:
        return "a process of another machine was lost"
    name = signal.Signals(-killed[0].exitcode).name
    return (f"process {killed[0].local_rank} of {processes} was ended by {name}"
            f"{' (out of memory?)' if name == 'SIGKILL' else ''}")
