"""From parameters to plans: values with their defaults, and the code of the kinds they choose."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kdm_core.config import Config
from kdm_core.decoders import DiffusersAutoencoderSource, FolderAutoencoderSource
from kdm_core.importers import ForeignSource, ModuleSource
from kdm_core.networks.module import ModuleNetworkConfig
from kdm_core.pairs.filtering.config import FilterConfig
from kdm_core.students.objective import LossConfig
from pipeline.params.run import Params
from pipeline.params.teacher import ExactTeacher
from pipeline.runtime.plan.code import INSTALLED, code_of, digest, file_of, modules_below, own_code
from pipeline.runtime.plan.sections import COLOURED, reads_of, stages_of, values_of

TEMPLATES = INSTALLED / "pipeline/reporting/templates"
# What a teacher or an autoencoder is made of that was imported is known when it is there.
OF_ANY_TEACHER = ("kdm_core.networks", "kdm_core.teachers")
OF_ANY_AUTOENCODER = ("kdm_core.decoders",)


def plan_all(
    params: Params, root: Path, torch: str
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The plans of all stages, and the files of the user's that they depend on.

    Args:
        root: the project's folder, where modules of the user's are looked for.
        torch: its version.
    """
    plans, own = {}, dict[str, str]()
    for stage in stages_of(list(params.students)):
        reads = reads_of(stage)
        used = [one for name in (*reads.values, *reads.kinds) if not reads.shows
                for one in components(section(params, name))]
        files = own_code(own_modules(used), root)
        own |= {name: file for name, (file, _) in files.items()}
        plans[stage] = {
            "parameters": parameters_of(stage, params),
            "code": code_of([program(stage)], chosen_by(used))
            | {name: mark for name, (_, mark) in files.items()}
            | (templates() if reads.shows else {}),
            "torch": torch, **place_of(stage, params)}
    return plans, sorted(own.values())


def place_of(stage: str, params: Params) -> dict[str, int]:
    """The place of a stage's student, where its result depends on it."""
    name, _, key = stage.partition("@")
    return {"place": list(params.students).index(key)} if name in COLOURED else {}


def program(stage: str) -> str:
    """The module that is a stage's program; of a stage with a folder it is `__main__`."""
    name = f"stages.{stage.partition('@')[0]}"
    return f"{name}.__main__" if file_of(f"{name}.__main__") else name


def section(params: Params, name: str) -> Any:
    """What stands at a place of the parameters, as the schema has it."""
    found: Any = params
    for key in name.split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    return found


def parameters_of(stage: str, params: Params) -> dict[str, Any]:
    """The values that decide a stage's result, with all defaults, as JSON has them."""
    return {name: found.model_dump(mode="json") if isinstance(found, Config)
            else TypeAdapter(Any).dump_python(found, mode="json")
            for name in values_of(stage, params.data.source) for found in [section(params, name)]}


def components(value: Any) -> Iterator[Config]:
    """All configurations within a value that are used, itself included."""
    if isinstance(value, Config):
        yield value
        for name in type(value).model_fields:
            if not is_idle(value, name):
                yield from components(getattr(value, name))
    elif isinstance(value, dict):
        for one in value.values():
            yield from components(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from components(one)


def is_idle(config: Config, name: str) -> bool:
    """Whether a part of a configuration has no weight."""
    return isinstance(config, LossConfig) and (
        (name == "adversary" and not config.adversarial)
        or (name == "drift" and not config.drifting))


def chosen_by(used: list[Config]) -> set[str]:
    """The modules of the kinds that configurations are of."""
    chosen = {type(config).__module__ for config in used}
    if any(isinstance(config, ForeignSource | ExactTeacher) for config in used):
        chosen |= {name for package in OF_ANY_TEACHER for name in modules_below(package)}
    if any(isinstance(config, DiffusersAutoencoderSource | FolderAutoencoderSource)
           for config in used):
        chosen |= {name for package in OF_ANY_AUTOENCODER for name in modules_below(package)}
    return chosen


def own_modules(used: list[Config]) -> set[str]:
    """The modules of the user's that configurations name."""
    paths = {path for config in used for path in (
        [config.factory] if isinstance(config, ModuleNetworkConfig | ModuleSource)
        else config.rules if isinstance(config, FilterConfig) else [])}
    return {path.partition(":")[0] for path in paths}


def templates() -> dict[str, str]:
    """A digest of each template, by its name."""
    return {file.name: digest(file.read_bytes()) for file in sorted(TEMPLATES.iterdir())}
