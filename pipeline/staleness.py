"""What DVC knows of each stage: whether its result is up to date, and if not, why.

Reads beside a running pipeline and takes none of DVC's locks: `dvc status` would make a stage fail
that starts while it looks, and cannot look at one that runs.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import networkx
import psutil
from dvc.repo import Repo

from kdm_core.errors import DataError
from pipeline.records import look
from pipeline.repro import address
from stages import CODE


class Standing(NamedTuple):
    """A stage as DVC has it.

    Attributes:
        stage: its address.
        recorded: whether it has ever been run to its end.
        busy: whether a DVC runs it or writes down its result.
        why: what has changed since then, by kind (params, code, data, command, or what became of
            a result); empty if nothing has.
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

    Raises:
        PipelineError: there is no pipeline, or DVC cannot read it.
        DataError: DVC's database cannot be used.
    """
    try:
        return look(root, lambda repo: list(examine(repo)))
    except sqlite3.Error as error:
        raise DataError(f"DVC cannot use its database ({error}): free some space or check the "
                        "permissions") from error


def examine(repo: Repo) -> Iterator[Standing]:
    """The stages in the order in which they run."""
    graph = repo.index.graph
    busy = written_now(Path(repo.tmp_dir))
    made = {out.fs_path: out for stage in graph for out in stage.outs}
    current: set[str] = set()
    for stage in networkx.lexicographical_topological_sort(graph.reverse(copy=False), address):
        recorded = any(out.hash_info for out in stage.outs)
        at_work = any(out.fs_path in busy for out in stage.outs)
        waits_for = sorted({address(need) for need in graph.successors(stage)} - current)
        why = {} if at_work or not recorded else changes(stage, made, busy)
        found = Standing(address(stage), recorded, at_work, why, waits_for)
        if found.is_current:
            current.add(found.stage)
        yield found


def changes(stage: Any, made: dict[str, Any], busy: set[str]) -> dict[str, list[str]]:
    """What is other than DVC has recorded it: names by kind."""
    why: dict[str, list[str]] = {"command": [stage.cmd]} if stage.cmd_changed else {}
    for dep in stage.deps:
        producer = made.get(dep.fs_path)
        if producer is not None:
            # What the stage before has made is not read, which takes long, but looked up.
            if producer.hash_info and producer.hash_info != dep.hash_info:
                why.setdefault("data", []).append(str(dep))
        elif not any(path.startswith(f"{dep.fs_path}/") for path in busy):
            for name in changed(dep):
                why.setdefault(kind(dep, name), []).append(name)
    for out in stage.outs:
        for state in out.status().values():
            why.setdefault(f"result {state}", []).append(str(out))
    return why


def changed(dep: Any) -> list[str]:
    """A dependency's name if it has changed, or those of the sections of params.yaml that have."""
    return [name for key, value in dep.status().items()
            for name in (value if isinstance(value, dict) else [key])]


def kind(dep: Any, name: str) -> str:
    """What a dependency is."""
    return "params" if hasattr(dep, "params") else "code" if name.split("/")[0] in CODE else "data"


def written_now(folder: Path) -> set[str]:
    """The paths that stages of living DVCs write now, as DVC notes them in a file of its own."""
    try:
        notes = json.loads((folder / "rwlock").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # or it is being written at this moment
        return set()
    return {path for path, note in notes.get("write", {}).items()
            if psutil.pid_exists(int(note["pid"]))}
