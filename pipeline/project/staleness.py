"""What DVC knows of each stage: whether its result is up to date, and if not, why.

Reads beside a running pipeline and takes none of DVC's locks: `dvc status` would make a stage fail
that starts while it looks, and cannot look at one that runs.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import networkx
import psutil
from dvc.repo import Repo

from kdm_core.errors import DataError
from pipeline.project.dvc_records import look
from pipeline.project.repro import address
from pipeline.runtime.plan.plans import FOLDER, current_plans

PLAN = "plan"


class Standing(NamedTuple):
    """A stage as DVC has it.

    Attributes:
        stage: its address.
        recorded: whether it has ever been run to its end.
        busy: whether a DVC runs it or writes down its result.
        why: what has changed since then, by kind (parameters, code, torch, data, command, or what
            became of a result); empty if nothing has.
        waits_for: stages before it whose results are not up to date.
    """

    stage: str
    recorded: bool
    busy: bool
    why: dict[str, list[str]]
    waits_for: list[str]

    @property
    def is_current(self) -> bool:
        return self.recorded and not self.busy and not self.why and not self.waits_for


def standings(root: Path) -> list[Standing]:
    """All stages of the pipeline in `root`, each after all that it depends on.

    But for the one that makes the plans: those are made here as they would be now.

    Raises:
        PipelineError: there is no pipeline, or DVC cannot read it.
        ParamsError: params.yaml cannot be used.
        DataError: DVC's database cannot be used.
    """
    plans = {f"{stage}.json": plan for stage, plan in current_plans(root).items()}
    try:
        return look(root, lambda repo: list(examine(repo, plans)))
    except sqlite3.Error as error:
        raise DataError(f"DVC cannot use its database ({error}): free some space or check the "
                        "permissions") from error


def examine(repo: Repo, plans: dict[str, bytes]) -> Iterator[Standing]:
    """The stages in the order in which they run.

    Args:
        plans: what would lie in the folder of plans if they were made now.
    """
    graph = repo.index.graph
    busy = written_now(Path(repo.tmp_dir))
    made = {out.fs_path: out for stage in graph for out in stage.outs}
    current: set[str] = {PLAN}
    for stage in networkx.lexicographical_topological_sort(graph.reverse(copy=False), address):
        if address(stage) == PLAN:
            continue
        recorded = any(out.hash_info for out in stage.outs)
        at_work = any(out.fs_path in busy for out in stage.outs)
        waits_for = sorted({address(need) for need in graph.successors(stage)} - current)
        why = {} if at_work or not recorded else changes(repo, stage, made, busy, plans)
        found = Standing(address(stage), recorded, at_work, why, waits_for)
        if found.is_current:
            current.add(found.stage)
        yield found


def changes(
    repo: Repo, stage: Any, made: dict[str, Any], busy: set[str], plans: dict[str, bytes]
) -> dict[str, list[str]]:
    """What is other than DVC has recorded it: names by kind."""
    why: dict[str, list[str]] = {"command": [stage.cmd]} if stage.cmd_changed else {}
    for dep in stage.deps:
        producer, path = made.get(dep.fs_path), Path(dep.fs_path)
        if path.parent == Path(repo.root_dir, FOLDER):
            why |= changes_of_plan(repo, dep.hash_info.value, plans.get(path.name, b""))
        elif producer is not None:
            # What the stage before has made is not read, which takes long, but looked up.
            if producer.hash_info and producer.hash_info != dep.hash_info:
                why.setdefault("data", []).append(str(dep))
        elif dep.status() and not any(one.startswith(f"{dep.fs_path}/") for one in busy):
            why.setdefault("data", []).append(str(dep))
    for out in stage.outs:
        for state in out.status().values():
            why.setdefault(f"result {state}", []).append(str(out))
    return why


def changes_of_plan(repo: Repo, recorded: str | None, now: bytes) -> dict[str, list[str]]:
    """What a plan has otherwise than the one that DVC has recorded, which lies in its cache."""
    if recorded == hashlib.md5(now, usedforsecurity=False).hexdigest():
        return {}
    try:
        before = json.loads(Path(repo.cache.local.oid_to_path(recorded)).read_bytes())
        after = json.loads(now)
    except (OSError, ValueError, TypeError):
        return {"plan": ["of an earlier version"]}
    return {kind: names for kind in after
            if (names := list(differences(before.get(kind), after[kind])))}


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """The places at which two values of JSON differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            inner = f"{place}.{name}" if place else name
            if name not in before or name not in after:
                yield inner
            else:
                yield from differences(before[name], after[name], inner)
    elif before != after:
        yield place or f"{before} to {after}"


def written_now(folder: Path) -> set[str]:
    """The paths that stages of living DVCs write now, as DVC notes them in a file of its own."""
    try:
        notes = json.loads((folder / "rwlock").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # or it is being written at this moment
        return set()
    return {path for path, note in notes.get("write", {}).items()
            if psutil.pid_exists(int(note["pid"]))}
