"""Under which conditions a run's figures came about."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kdm_core.errors import MismatchError
from pipeline.reporting.records import Evaluation, Timing
from pipeline.runtime import paths

SAME = ("n", "real_n", "dataset", "teacher", "pairs")
"""Conditions without which students cannot be set side by side."""
PACKAGES = ("kdm-distill", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "zarr", "dvc",
            "clean-fid", "timm", "matplotlib")
LABELS = {
    "n": "Noises compared, unseen in training", "reference": "Reference samples",
    "reference_n": "Number of reference samples", "real": "Other real samples",
    "real_n": "Number of other real samples", "dataset": "Data set’s fingerprint",
    "teacher": "Teacher’s fingerprint", "pairs": "Pair store’s fingerprint",
    "students": "Students’ fingerprints", "extractors": "Extractors’ fingerprints",
    "bootstrap": "Bootstrap resamples", "lpips_n": "Pairs of LPIPS",
    "mse_of": "Squared errors are of", "lpips_resolution": "Pixels of LPIPS, a side",
    "projections": "Directions of the sliced distance", "seed": "Seed", "device": "Device",
    "precision": "Precision", "threads": "CPU threads", "torch": "PyTorch",
    "hardware": "Hardware", "revision": "Revision of the project",
    "packages": "Packages when the report was made",
}


def merge_conditions(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """The conditions of all evaluations; those that differ, by the student's name.

    Raises:
        MismatchError: the students were not evaluated on the same noise of the same teacher, or
            not in the same features.
    """
    require_same("extractors", {
        name: {extractor: (one.fingerprint, one.reference_n)
               for extractor, one in evaluation.extractors.items()}
        for name, evaluation in evaluations.items()})
    merged: dict[str, Any] = {}
    for key in sorted({key for one in evaluations.values() for key in one.conditions}):
        values = {name: one.conditions.get(key) for name, one in evaluations.items()}
        if key in SAME:
            require_same(key, values)
        if key == "student":
            merged["students"] = values
        else:
            merged[key] = common(values)
    return merged


def require_same(key: str, values: Mapping[str, Any]) -> None:
    """Make sure that students may be set side by side.

    Raises:
        MismatchError: a condition is not the same for all of them.
    """
    first = next(iter(values.values()))
    if any(value != first for value in values.values()):
        raise MismatchError(f"{paths.EVALUATION}: the evaluations of {', '.join(values)} differ in "
                            f"'{key}': run `dvc repro evaluate`")


def common(values: Mapping[str, Any]) -> Any:
    """The one value that all have, or the values by student."""
    first = next(iter(values.values()))
    return first if all(value == first for value in values.values()) else dict(values)


def measured_on(timings: Mapping[str, Timing], names: list[str]) -> dict[str, Any]:
    """Hardware, threads and torch of the evaluations, as far as their timings tell."""
    found = {name: timings[f"evaluate@{name}"] for name in names if f"evaluate@{name}" in timings}
    conditions = {}
    for key in ("hardware", "threads", "torch"):
        values = {name: value for name, timing in found.items()
                  if (value := getattr(timing, key)) is not None}
        if values:
            conditions[key] = common(values)
    return conditions


def adaptations(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """What stages did otherwise than asked, by stage, as far as there is any."""
    notes = {name: "; ".join(timing.notes) for name, timing in timings.items() if timing.notes}
    return {"notes": notes} if notes else {}


def environment() -> dict[str, Any]:
    """What this report is made with: the project's revision and packages, this one among them."""
    packages = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue  # an optional one
    revision = git_revision()
    return {"packages": ", ".join(packages)} | ({"revision": revision} if revision else {})


def git_revision() -> str | None:
    """The commit that is checked out; None without git or outside of a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True,
                              timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def lines(conditions: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Conditions as (label, values), the values as (student or part, text); known ones first."""
    labels = list(LABELS)
    keys = sorted(conditions, key=lambda key: (
        labels.index(key) if key in LABELS else len(labels), key))
    return [(LABELS.get(key, key), parts(conditions[key])) for key in keys]


def parts(value: Any) -> list[tuple[str, str]]:
    """A condition as (part, text), the part empty where there is only one."""
    items = value.items() if isinstance(value, dict) else [("", value)]
    return [(str(name), f"{item:.4g}" if isinstance(item, float) else str(item))
            for name, item in items]
