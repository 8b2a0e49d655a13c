"""The plan of a run: for each stage, all that decides its result besides what other stages made.

The first stage of the pipeline writes the plan of every stage into a file of its own, on which DVC
has that stage depend. So a stage runs again when its resolved parameters (defaults included), its
numerical code or torch's version changes, and for nothing else; and dvc.yaml lists no code.

Whether anything may have changed since the plan was written is told by the dates and sizes of
files, which takes milliseconds. To resolve parameters takes their schema, and with it torch.
"""

import json
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.runtime.plan.code import INSTALLED, PACKAGES, digest

Plan = dict[str, Any]
"""What decides a result, by kind (parameters, code, torch), each by name."""
FOLDER = Path("data/plan")
STATE = Path("data/work/plan.json")
"""How the files were from which the plan was made; not for DVC, since it is of this machine."""
PARAMS = Path("params.yaml")


def write_plans(root: Path = Path()) -> list[str]:
    """Write the plans of the project in a folder; what stays the same is left alone.

    Returns:
        The stages that had another plan before.

    Raises:
        ParamsError: params.yaml cannot be used.
        DataError: a module of the user's cannot be read.
    """
    if is_fresh(root):
        return []
    from kdm_core.serialization import write_atomic

    plans, own = make_plans(root)
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for path in (root / FOLDER).iterdir():
        if path.suffix != ".json" or path.stem not in plans:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {stage: written(stage, root) for stage in plans}
    changed = [stage for stage, plan in plans.items() if before[stage] != plan]
    for stage in changed:
        write_atomic(root / FOLDER / f"{stage}.json", plans[stage])
    write_atomic(root / STATE, json.dumps(state(root, own)).encode())
    return [stage for stage in changed if before[stage] is not None]


def current_plans(root: Path = Path()) -> dict[str, bytes]:
    """What `write_plans` would write now, by stage. Raises as that."""
    if is_fresh(root):
        return {path.stem: path.read_bytes() for path in sorted((root / FOLDER).glob("*.json"))}
    return make_plans(root)[0]


def current_plan(stage: str) -> Plan:
    """The plan of one stage as things are now. Raises as `write_plans`."""
    found: Plan = json.loads(current_plans()[stage])
    return found


def written(stage: str, root: Path = Path()) -> bytes | None:
    """The plan that was written last; None if there is none."""
    try:
        return (root / FOLDER / f"{stage}.json").read_bytes()
    except FileNotFoundError:
        return None


def make_plans(root: Path) -> tuple[dict[str, bytes], list[str]]:
    """The plans of all stages, and the files of the user's that they depend on."""
    from pipeline.params.run import load_params
    from pipeline.runtime.plan.resolving import plan_all

    plans, own = plan_all(load_params(root / PARAMS), root, torch_version())
    return {stage: content(plan) for stage, plan in plans.items()}, own


def content(plan: Plan) -> bytes:
    """A plan as it stands in its file."""
    return (json.dumps(plan, indent=1, sort_keys=True) + "\n").encode()


def torch_version() -> str:
    """Without what tells builds of a version apart."""
    return version("torch").partition("+")[0]


def is_fresh(root: Path) -> bool:
    """Whether the plans that were written last are those of now, for all that files tell."""
    try:
        recorded = json.loads((root / STATE).read_bytes())
        return bool(recorded == state(root, recorded["own"]))
    except (OSError, ValueError, KeyError, TypeError):  # there are none, or they are damaged
        return False


def state(root: Path, own: Iterable[str]) -> dict[str, Any]:
    """How all is now from which plans are made, and the plans that are there.

    Args:
        own: files of the user's that the plans depend on, in `root`.
    """
    return {"params": digest((root / PARAMS).read_bytes()), "torch": torch_version(),
            "installed": str(INSTALLED), "code": digest(repr(code_stamps()).encode()),
            "own": {file: stamp(root / file) for file in own},
            "plans": {path.name: digest(path.read_bytes())
                      for path in sorted((root / FOLDER).iterdir())}}


def code_stamps() -> list[list[int]]:
    """When each file of the code was changed last, and its size."""
    return [stamp(file) for package in PACKAGES
            for file in sorted((INSTALLED / package).rglob("*.*"))
            if file.suffix != ".pyc" and file.is_file()]


def stamp(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_mtime_ns, found.st_size]
