"""Starting a program several times on this machine, as processes that train together."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

# Workers have nothing to do for their end; a stopped stage must be gone within its own grace time.
SHUTDOWN_S = 3


def launch(module: str, arguments: Sequence[str], processes: int) -> int:
    """Run `python -m MODULE ARGUMENTS…` in `processes` processes, as torchrun would.

    They write to this process's stdout and stderr. When one of them fails, all are ended; when
    this process is asked to end (SIGTERM, SIGINT), so are they.

    Returns:
        The exit code: 0 where all ended well, 128 + n for signal n, else that of the first that
        failed. A process that a signal ended could not say so; this does.
    """
    # Otherwise every process would start a thread for each core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="127.0.0.1",
        run_id=uuid.uuid4().hex, shutdown_timeout=SHUTDOWN_S)
    # It would report every failure on many lines, after the failed process has said it in one.
    logging.disable(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        first = error.get_first_failure()[1]
        if first.exitcode >= 0:
            return first.exitcode
        name = signal.Signals(-first.exitcode).name
        print(f"error: process {first.local_rank} of {processes} was ended by {name}"
              f"{' (out of memory?)' if name == 'SIGKILL' else ''}; run again to go on from the "
              "last checkpoint", file=sys.stderr, flush=True)
        return 128 - first.exitcode
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    finally:
        logging.disable(logging.NOTSET)
    return 0
