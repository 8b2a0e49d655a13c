"""`kdm new`: any folder as a project."""

import shlex
from pathlib import Path
from typing import Annotated

import typer


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if it is missing.")],
    preset: Annotated[str | None, typer.Option(help="The parameters to start from, of `kdm preset "
                                               "list`; digits by default.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Bring a project of an older version "
                                          "up to date: dvc.yaml is replaced, params.yaml is not.")]
    = False,
) -> None:
    """Make a folder a project, with a git and DVC repository; nothing there is overwritten."""
    from pipeline.project import new as work

    if refresh:
        if preset is not None:
            raise work.NewError("--refresh leaves params.yaml alone: give it no --preset (`kdm "
                                "preset use NAME` gives a project the parameters of a preset)")
        for line in work.refresh(folder):
            typer.echo(line)
        return
    for line in work.make_project(folder, preset or work.DEFAULT):
        typer.echo(line)
    typer.echo("next:")
    if folder.absolute() != Path.cwd():
        typer.echo(f"    cd {shlex.quote(str(folder))}")
    typer.echo("    kdm params check && dvc repro    # runs it; the report is reports/report.html\n"
               "    kdm status                       # in another terminal: how far it is")
