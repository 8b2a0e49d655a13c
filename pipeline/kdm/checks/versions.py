"""Checks of what is installed."""

import platform
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from pipeline.kdm.checks.finding import Finding, ok, problem, warning

SHOWN = ("torch", "zarr", "numcodecs", "dvc", "prefect", "distributed")
SETUP = "pip install --upgrade kdm-distill; in a clone of the repository, `make setup`"


def check_python() -> list[Finding]:
    """Python and the packages on which results and files depend."""
    found = [f"Python {platform.python_version()}"]
    for name in SHOWN:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue  # an optional one, or `check_requirements` says so
    return [ok("versions", ", ".join(found))]


def check_requirements() -> list[Finding]:
    """Every package is there, in a version that this one works with."""
    try:
        needed = [Requirement(text) for text in requires("kdm-distill") or []]
    except PackageNotFoundError:
        return [warning("packages", "kdm-distill is not installed, so nothing says which packages "
                        "it needs", "in a clone of the repository, pip install --no-deps "
                        "--editable .")]
    wrong = [text for requirement in needed if (text := misfit(requirement))]
    if wrong:
        return [problem("packages", text, SETUP) for text in wrong]
    return [ok("packages", f"all {sum(one.marker is None for one in needed)} that are needed are "
               "there in fitting versions")]


def misfit(requirement: Requirement) -> str:
    """Why a requirement is not met; empty if it is, or is one of an extra that is not there."""
    extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return "" if extra else f"{requirement.name} is missing"
    if requirement.specifier.contains(found, prereleases=True):
        return ""
    return f"{requirement.name} {found} is installed, needed is {requirement.specifier}"
