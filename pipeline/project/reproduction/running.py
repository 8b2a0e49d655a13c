"""The experiments of a sweep through DVC's queue: what is there, what is lacking, running it.

DVC's worker is a process of its own, which goes on when the command that started it is killed, and
which the next command waits for. When the worker is killed, too, DVC keeps its experiment as
running for ever; it is taken from the queue and queued again.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
from dvc.repo import Repo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.params.reading import FILE
from pipeline.params.run import parse_params
from pipeline.project.dvc_records import look, with_remedy
from pipeline.project.git_program import GitError, git
from pipeline.project.repro import child_environment, visible
from pipeline.project.reproduction.paper import ReproductionError
from pipeline.project.reproduction.sweeps import Experiment
from pipeline.runtime.log import readable
from pipeline.runtime.plan.plans import FOLDER, content, torch_version
from pipeline.runtime.plan.resolving import plan_all

Say = Callable[[str], None]
State = Literal["queued", "running", "abandoned", "failed", "done"]
POLL_S = 2.0
IDLE_S, STARTS = 30.0, 3
"""So long may nothing run before a worker is started again, as often at most."""
QUEUE = Path(".dvc/tmp/exps/celery")
"""Where DVC keeps its queue, in the project's folder."""
COPIES = "tmp"
"""How the names of the copies of the project begin in which DVC runs experiments."""
WAITED_FOR = ("queued", "running", "abandoned")


class Entry(NamedTuple):
    """An experiment in DVC's queue.

    Attributes:
        rev: by which DVC's commands find it, also where others have its name.
        log: where its output goes; None before it has begun.
        folder: the copy of the project in which it runs.
    """

    name: str
    rev: str
    state: State
    log: Path | None
    folder: Path | None


class Found(NamedTuple):
    """What there is of the experiments, by their names.

    Attributes:
        finished: the commits of those that have come out as they would now.
        outdated: the references of those of these names at this commit that have not.
    """

    finished: dict[str, str]
    outdated: dict[str, str]


def require_repository(root: Path) -> None:
    """Make sure that DVC can make experiments of what is there: all of it committed.

    Raises:
        ReproductionError: it cannot; the message says what to do.
    """
    if git(root, "rev-parse", "--git-dir", fine=(0, 128)).returncode:
        raise ReproductionError(f"{root} is in no git repository, and DVC's experiments are "
                                "commits: run `git init` there, or make a project with `kdm new "
                                "DIR`")
    commit = "`git add --all . && git commit -m 'before the sweep'` there"
    if not has_commit(root):
        raise ReproductionError(f"nothing is committed in {root} yet, and DVC's experiments begin "
                                f"at a commit: run {commit}, then this again")
    require_committer(root)
    edited = git(root, "status", "--porcelain", "--untracked-files=no", "--",
                 ".").stdout.splitlines()
    if edited:
        files = ", ".join(line[3:] for line in edited[:5]) + (" …" if len(edited) > 5 else "")
        raise ReproductionError(f"{root} has changes that are not committed ({files}), and "
                                f"experiments would be of them: run {commit}, then this again")


def require_committer(root: Path) -> None:
    """Make sure that git knows who commits.

    Raises:
        ReproductionError: it does not.
    """
    if git(root, "var", "GIT_COMMITTER_IDENT", fine=(0, 128)).returncode:
        raise ReproductionError("git does not know who commits, and DVC's experiments are commits: "
                                "run `git config --global user.name NAME` and `git config --global "
                                "user.email ADDRESS`, then this again")


def run_all(root: Path, wanted: Sequence[Experiment], say: Say) -> dict[str, str]:
    """Have all experiments finished, of which only those are run that are not.

    Killed at any time, it goes on when it is called again.

    Returns:
        Their commits, by name; none of those that failed.

    Raises:
        ReproductionError: the queue does not run.
        PipelineError: DVC cannot read its repository.
    """
    names = [one.name for one in wanted]
    clear(root, wanted, say)
    found = find(root, wanted)
    waiting = {entry.name for entry in entries(root, names) if entry.state in ("queued", "running")}
    for one in wanted:
        if one.name in found.finished:
            say(f"{one.name}: there already")
        elif one.name in waiting:
            say(f"{one.name}: in the queue already")
        else:
            if one.name in found.outdated:
                say(f"{one.name}: there, but of other parameters or code; it is made anew")
                dvc(root, "exp", "remove", found.outdated[one.name])
            queue(root, one)
            say(f"{one.name}: queued")
    if any(name not in found.finished for name in names):
        dvc(root, "queue", "start")
        wait(root, names, say)
    return find(root, wanted).finished


def queue(root: Path, one: Experiment) -> None:
    """Put one experiment into DVC's queue."""
    sets = [part for override in one.overrides for part in ("-S", override)]
    dvc(root, "exp", "run", "--queue", "--name", one.name, *sets)


def clear(root: Path, wanted: Sequence[Experiment], say: Say) -> None:
    """Take from the queue what has failed, what a worker that was killed has left, and what is
    queued with other parameters than it would be now.

    Raises:
        ReproductionError: one runs with other parameters.
    """
    values = {one.name: one.values for one in wanted}
    for entry in entries(root, list(values)):
        if entry.state in ("queued", "running") and read_yaml(root, entry.rev, FILE.name) not in (
                None, values[entry.name]):
            if entry.state == "running":
                raise ReproductionError(f"{entry.name} runs with other parameters than it would "
                                        "have now: wait until it is finished, or end it with `dvc "
                                        f"queue kill {entry.name}`, then give this command again")
            say(f"{entry.name}: queued with other parameters; it is taken from the queue")
            dvc(root, "queue", "remove", entry.rev)
        elif entry.state == "abandoned":
            say(f"{entry.name}: its worker was killed; it is taken from the queue")
            dvc(root, "queue", "kill", "--force", entry.rev)
            if entry.folder is not None:  # a copy of the project, which nobody else would remove
                shutil.rmtree(entry.folder, ignore_errors=True)
        elif entry.state == "failed":
            say(f"{entry.name}: failed before; it is taken from the queue")
        if entry.state in ("abandoned", "failed"):
            dvc(root, "queue", "remove", entry.rev)


def wait(root: Path, names: Sequence[str], say: Say) -> None:
    """Show what the experiments print, until none of them is queued or runs.

    Raises:
        ReproductionError: nobody runs them.
    """
    shown: dict[str, int] = {}
    started, since = 0, time.monotonic()
    while True:
        states = entries(root, names)
        for entry in states:
            if entry.log is not None and (entry.state == "running" or entry.rev in shown):
                shown[entry.rev] = tell(entry, shown.get(entry.rev, 0), say)
        if not any(entry.state in WAITED_FOR for entry in states):
            return
        if is_served(root / QUEUE):  # and ours may stand behind others
            since = time.monotonic()
        elif time.monotonic() - since > IDLE_S:
            # A worker that ends as another one is asked for is taken for that one.
            if started == STARTS or any(entry.state == "abandoned" for entry in states):
                raise ReproductionError("DVC's queue stands still, since its worker was stopped or "
                                        "killed: give this command again to go on (the worker's "
                                        f"own log is in {root / QUEUE})")
            dvc(root, "queue", "start")
            started, since = started + 1, time.monotonic()
        time.sleep(POLL_S)


def tell(entry: Entry, start: int, say: Say) -> int:
    """Say the whole lines that a log has beyond a place; returns where these end."""
    assert entry.log is not None
    try:
        with entry.log.open("rb") as file:
            file.seek(start)
            fresh = file.read()
    except FileNotFoundError:
        return start
    whole = fresh[: fresh.rfind(b"\n") + 1]
    for line in whole.decode("utf-8", "replace").splitlines():
        if text := visible(line):
            say(f"{entry.name}: {readable(text)}")
    return start + len(whole)


def entries(root: Path, names: Sequence[str]) -> list[Entry]:
    """The entries of these names in DVC's queue."""
    return look(root, lambda repo: list(examine(repo, names)))


def examine(repo: Repo, names: Sequence[str]) -> Iterator[Entry]:
    """As `entries`."""
    celery = repo.experiments.celery_queue
    served = is_served(Path(repo.root_dir, QUEUE))

    def entry(one: Any, state: State) -> Entry:
        process = celery.proc.get(one.stash_rev)
        log = Path(process.stdout) if process is not None and process.stdout else None
        return Entry(one.name, one.stash_rev, state, log, folder_of(celery, one.stash_rev))

    for one in celery.iter_queued():
        if one.name in names:
            yield entry(one, "queued")
    for one in celery.iter_active():
        if one.name in names:
            yield entry(one, "running" if served else "abandoned")
    for one, result in celery.iter_done():
        if one.name in names:
            yield entry(one, "failed" if result is None or not result.exp_hash else "done")


def is_served(folder: Path) -> bool:
    """Whether a worker of the queue that lies in a folder lives, as the notes there tell."""
    for note in folder.glob("dvc-exp-worker-*.json"):
        try:
            pid = int(json.loads(note.read_bytes())["pid"])
            if "queue-worker" in psutil.Process(pid).cmdline():
                return True
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            continue  # it is gone, or its note is being written
    return False


def folder_of(celery: Any, rev: str) -> Path | None:
    """The copy of the project in which an experiment was run, as DVC has noted it."""
    try:
        noted = json.loads(Path(celery.get_infofile_path(rev)).read_bytes())
        folder = Path(noted["root_dir"]).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # What a file says is not enough for removing a folder.
    is_copy = folder.name.startswith(COPIES)
    return folder if is_copy and folder.parent == Path(celery.wdir).resolve().parent else None


def find(root: Path, wanted: Sequence[Experiment]) -> Found:
    """Which of the experiments have come out as they would now: of the same parameters, code and
    torch, whatever was committed since."""
    head = git(root, "rev-parse", "HEAD").stdout.strip()
    listed = git(root, "for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)",
                 "refs/exps").stdout.splitlines()
    refs: dict[str, list[tuple[str, str]]] = {}
    for ref, commit in map(str.split, listed):
        refs.setdefault(ref.rpartition("/")[2], []).append((ref, commit))
    finished, outdated = dict[str, str](), dict[str, str]()
    for one in wanted:
        marks = plan_marks(root, one.values) if one.name in refs else {}
        for ref, commit in refs.get(one.name, []):
            if is_current(root, commit, one, marks):
                finished[one.name] = commit
                break
            if ref == f"refs/exps/{head[:2]}/{head[2:]}/{one.name}":
                outdated[one.name] = ref
    return Found(finished, outdated)


def plan_marks(root: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each stage's plan with these parameters, as DVC would record it."""
    plans, _ = plan_all(parse_params(values), root, torch_version())
    return {(FOLDER / f"{stage}.json").as_posix():
            hashlib.md5(content(plan), usedforsecurity=False).hexdigest()
            for stage, plan in plans.items()}


def is_current(root: Path, commit: str, one: Experiment, marks: Mapping[str, str]) -> bool:
    """Whether an experiment is of these parameters, and all its stages of these plans."""
    values, lock = (read_yaml(root, commit, file) for file in (FILE.name, "dvc.lock"))
    if values != one.values or not isinstance(lock, dict):
        return False
    try:
        recorded = {dep["path"]: dep.get("md5") for stage in lock["stages"].values()
                    for dep in stage.get("deps", [])}
    except (KeyError, TypeError, AttributeError):
        return False
    return all(recorded.get(path) == mark for path, mark in marks.items())


def read_yaml(root: Path, commit: str, file: str) -> Any:
    """A file of the project in a commit; None where it is missing or cannot be read."""
    try:
        return YAML(typ="safe", pure=True).load(git(root, "show", f"{commit}:./{file}").stdout)
    except (GitError, YAMLError):
        return None


def has_commit(root: Path) -> bool:
    """Whether anything is committed in the repository around a folder."""
    return not git(root, "rev-parse", "--verify", "--quiet", "HEAD", fine=(0, 1, 128)).returncode


def dvc(root: Path, *arguments: str) -> None:
    """Run a DVC command.

    Raises:
        ReproductionError: it failed; DVC says why.
    """
    # Into a file: the worker that DVC starts would hold a pipe for as long as it lives.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run([sys.executable, "-m", "dvc", "--wait-for-lock", *arguments],
                              cwd=root, env=child_environment(), stdin=subprocess.DEVNULL,
                              stdout=output, stderr=subprocess.STDOUT, check=False)
        output.seek(0)
        said = output.read().decode("utf-8", "replace").strip()
    if done.returncode:
        raise ReproductionError(f"`dvc {' '.join(arguments[:2])}` failed in {root}: "
                                f"{with_remedy(said)}")
