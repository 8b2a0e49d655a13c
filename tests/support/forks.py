"""Programs of the project in forks of a process that has imported what they need.

A fork has a folder, an environment, output, limits and an exit code of its own, like any process,
but starts at once: the imports of torch and DVC take seconds. Stages that DVC runs are forks of
DVC. Whoever looks at how a program starts or is stopped starts a real one.
"""

import atexit
import json
import os
import resource
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from tests.support.imports import PACKAGES, ROOT

STAGES = ("prepare_data", "reference", "autoencoder", "teacher", "sample_pairs.stage",
          "filter_pairs.stage", "train_student", "evaluate.stage", "study", "report", "plan")
LATER = ("dvc.cli", "dvc.commands.repro", "dvc.repo.reproduce", "dvc.repo.status", "dvclive",
         "dvc_data.index", "matplotlib.figure", "scipy.linalg", "torchvision")
"""What programs import while they run."""


@cache
def server() -> subprocess.Popen[str]:
    """The process whose forks programs are; it ends with this one."""
    process = subprocess.Popen([sys.executable, "-m", "tests.support.forks"], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(process.communicate)  # closes what it reads from
    return process


def run(
    arguments: tuple[str, ...], folder: Path, environment: dict[str, str], limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """What `python -m ARGUMENTS` comes to.

    Args:
        limit: how many bytes a file may have.
    """
    requests, answers = server().stdin, server().stdout
    assert requests is not None and answers is not None
    with TemporaryDirectory() as outputs:
        print(json.dumps([arguments, str(folder), environment, outputs, limit]), file=requests,
              flush=True)
        code = int(answers.readline())
        told = [Path(outputs, name).read_text() for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, code, *told)


def serve() -> None:
    """Run one program after the other as asked on standard input."""
    prepare()
    for line in sys.stdin:
        print(fork(partial(begin, *json.loads(line))), flush=True)


def prepare() -> None:
    """Import what programs need, and have DVC fork."""
    for name in (*LATER, *(f"stages.{name}" for name in STAGES)):
        import_module(name)
    for name in STAGES:  # which are run and not imported
        sys.modules.pop(f"stages.{name}")
    from dvc.stage import run as running
    from dvc.stage.exceptions import StageCmdFailedError

    shell = running._run

    def run_command(executable: str, command: str, cwd: str, env: dict[str, str], **rest: Any):
        python, *words = shlex.split(command)
        if python != "python":
            shell(executable, command, cwd=cwd, env=env, **rest)
        elif code := fork(partial(become, words[1:], cwd, env)):
            raise StageCmdFailedError(command, code)

    running._run = run_command


def fork(program: Callable[[], NoReturn]) -> int:
    """Run something in a fork; returns its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    if not (process := os.fork()):
        program()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def begin(
    arguments: list[str], folder: str, environment: dict[str, str], outputs: str,
    limit: int | None,
) -> NoReturn:
    """Become a program with output of its own; it is ended if it takes minutes."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(outputs, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.alarm(590)  # before its test is
    become(arguments, folder, environment)


def become(arguments: list[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """Do what `python -m ARGUMENTS` does."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments.copy()
    if (code := environment["PYTHONPATH"]) != str(ROOT):  # a copy, which is imported instead
        sys.path.insert(0, code)
        for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
            del sys.modules[name]
    sys.path.insert(0, folder)
    code: Any = 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
