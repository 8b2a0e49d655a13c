"""Checks of what the parameters name: data, models, weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdm_core.losses.distances import LPIPSConfig
from kdm_core.metrics.extractors import ExtractorConfig
from kdm_core.metrics.extractors.inception import InceptionConfig
from kdm_core.pairs.location import local_path
from kdm_core.students.kdm import KDMConfig
from kdm_core.students.seen import NETS
from kdm_core.weights.registry import REGISTRY
from kdm_core.weights.store import local
from pipeline.kdm.checks.finding import Finding, ok, problem, warning
from pipeline.params.run import Params
from pipeline.params.student import StudentParams


def check_sources(params: Params) -> list[Finding]:
    """Files and folders of data and of models of others."""
    named = {name: path for name, path in sources(params) if path is not None}
    missing = [problem(name, f"{path} does not exist", "correct the path, or put it there")
               for name, path in named.items() if not path.exists()]
    return missing or [ok("sources", f"{', '.join(named)}: there" if named else
                          "the parameters name no files of your own")]


def sources(params: Params) -> Iterator[tuple[str, Path | None]]:
    """What the parameters name that must be on this machine, None where it is not a path."""
    if path := getattr(params.data, "path", None):
        yield "data.path", Path(path)
    yield from weights_of("autoencoder", params.autoencoder)
    yield from weights_of("teacher", params.teacher)
    if (guide := getattr(params.teacher, "guide", None)) is not None:
        yield from weights_of("teacher.guide", guide)
    if params.pairs.source == "store":
        yield "pairs.location", local_path(params.pairs.location)
    for name, student in params.students.items():
        if (start := student.starts_at) is not None and is_path(start):
            yield f"students.{name}.init", Path(start)
    for name, path in params.evaluation.statistics.items():
        yield f"evaluation.statistics.{name}", Path(path)
    for name, source in params.weights.items():
        yield f"weights.{name}.path", Path(source.path)


def weights_of(name: str, source: Any) -> Iterator[tuple[str, Path | None]]:
    """A model's file or folder; what lies behind a URL or on the hub is fetched when it is run."""
    if file := getattr(source, "file", None):
        yield f"{name}.file", local_path(file)
    if (folder := getattr(source, "folder", None)) and is_path(folder):
        yield f"{name}.folder", local_path(folder)


def is_path(folder: str) -> bool:
    """Whether a folder can only be on this machine: OWNER/NAME may be on the hub."""
    return Path(folder).is_absolute() or folder.count("/") != 1


def check_weights(params: Params) -> list[Finding]:
    """The weights that metrics, losses and the filter need. Sums are compared when they are used.

    Metrics without weights are left out of the results, losses and filters fail.
    """
    findings = []
    for name, (what, fails) in needed_weights(params).items():
        entry = REGISTRY[name]
        if name in params.weights:
            continue  # `check_sources` looks for it
        path = local(name)
        if path is not None and path.stat().st_size == entry.size:
            continue
        state = "are missing" if path is None else f"in {path} are of another size than they should"
        advice = entry.install or (f"kdm weights fetch {name}, or give their path as "
                                   f"weights.{name}.path")
        findings.append((problem if fails else warning)(
            f"weights {name}", f"{state}; {what} needs them", advice))
    return findings or [ok("weights", f"{', '.join(needed_weights(params)) or 'none'}: there")]


def needed_weights(params: Params) -> dict[str, tuple[str, bool]]:
    """The names in the registry, each with the section that needs it and whether it fails
    without."""
    found: dict[str, tuple[str, bool]] = {}
    for config in params.evaluation.extractors:
        if weights := weights_name(config):
            found[weights] = ("evaluation.extractors", False)
    images = params.data.source != "checkerboard"
    studied = (params.studies.semantics, params.studies.vicinity, params.studies.memorisation,
               params.studies.steps and any(map(may_refine, params.students.values())))
    takes_data = any(losses.takes_data for student in params.students.values()
                     for _, losses in student.placed_losses())  # memorisation is studied then
    if images and params.reference.classifier is None and (any(studied) or takes_data):
        found["vgg16"] = ("studies", True)
    if images and params.evaluation.lpips_pairs:
        found |= {NETS[net]: ("evaluation.lpips", False) for net in params.evaluation.lpips}
    for copies in params.filter.copies:
        if copies.features is not None and (
                weights := weights_name(copies.features)):
            found[weights] = ("filter.copies", True)
    for name, student in params.students.items():
        for place, losses in student.placed_losses():
            where = f"students.{name}.{place}losses"
            if isinstance(distance := losses.distance, LPIPSConfig):
                found[NETS[distance.net]] = (f"{where}.distance", True)
            found |= {kind: (where, True) for kind in NETS.values()
                      if kind in losses.asked_networks}
    return found


def may_refine(student: StudentParams) -> bool:
    """Whether a student can sample in several steps once it is trained."""
    model = student.model
    if isinstance(model, KDMConfig):
        return model.encoders == "shared" and model.operator.kind != "dense"
    return any(losses.endpoint or losses.trajectory for _, losses in student.placed_losses())


def weights_name(config: ExtractorConfig) -> str | None:
    """The entry of the registry that an extractor uses; None for the run's own classifier."""
    if isinstance(config, InceptionConfig):
        return "inception_pytorch" if config.mode == "legacy_pytorch" else "inception"
    return config.name if config.name in REGISTRY else None
