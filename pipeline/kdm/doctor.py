"""`kdm doctor`: whether this machine and this project are fit for what the parameters ask."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.kdm.checks.finding import Finding
    from pipeline.params.run import Params

COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, for programs.")]
    = False,
) -> None:
    """Look for what would stop a run: versions, devices, disk space, files, servers.

    Exits with 1 if there are problems; warnings are about runs that may fail, or could be faster.
    """
    levels = {"ok": 0, "warning": 0, "problem": 0}
    findings = []
    for found in examine():
        levels[found.level] += 1
        findings.append(found._asdict())
        if not as_json:
            typer.echo(line(found))
    if as_json:
        typer.echo(json.dumps({"checks": findings, **levels}, indent=2))
    else:
        typer.echo(f"\n{levels['problem']} problems, {levels['warning']} warnings, "
                   f"{levels['ok']} checks passed")
    if levels["problem"]:
        raise typer.Exit(1)


def examine() -> Iterator["Finding"]:
    """The findings of all checks, as they come; those on parameters only if they can be read."""
    from pipeline.kdm.checks import dvc_records, machine, services, storage, versions

    for check in (versions.check_python, versions.check_requirements, machine.check_gpu,
                  storage.check_file_system, dvc_records.check_records,
                  services.check_remotes, services.check_prefect):
        yield from findings_of(check)
    yield from examine_params()


def findings_of(check: Callable[..., list["Finding"]], *arguments: Any) -> list["Finding"]:
    """What a check finds; where it cannot do its work, that is the finding."""
    from kdm_core.errors import KDMError
    from pipeline.flow.addresses import without_password
    from pipeline.kdm.checks.finding import problem

    try:
        return check(*arguments)
    except (KDMError, OSError, ValueError) as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return [problem(name, without_password(str(error)), "mend what is named, then look again")]


def examine_params() -> Iterator["Finding"]:
    """Whether the parameters are valid and what they need is there."""
    from kdm_core.errors import KDMError
    from pipeline.kdm.checks import fit, inputs, machine, services, storage
    from pipeline.kdm.checks.finding import ok, problem
    from pipeline.params.run import load_params

    try:
        params: Params = load_params()
    except KDMError as error:
        yield problem("params.yaml", str(error), "mend it; `kdm params check` looks again")
        return
    yield ok("params.yaml", f"valid, {len(params.students)} students")
    for check in (machine.check_device, machine.check_cores, machine.check_processes,
                  inputs.check_sources, fit.check_fit, inputs.check_weights, storage.check_space,
                  services.check_locations, services.check_scheduler):
        yield from findings_of(check, params)


def line(found: "Finding") -> str:
    """A finding as the terminal shows it."""
    label = typer.style(format(found.level, "8"), fg=COLOURS[found.level])
    advice = f"\n{' ' * 9}→ {found.advice}" if found.advice else ""
    return f"{label} {found.check}: {found.text}{advice}"
