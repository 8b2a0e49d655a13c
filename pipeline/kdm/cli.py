"""The command `kdm`: projects, presets, and tidying up; the other groups have files of their own.

What needs torch is imported by the commands that use it, so that the others answer at once.
"""

import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from kdm_core.errors import Adapted, KDMError, naming, printable
from pipeline.kdm.distil import distil
from pipeline.kdm.doctor import doctor
from pipeline.kdm.new import new
from pipeline.kdm.pairs import app as pairs_app
from pipeline.kdm.params import app as params_app
from pipeline.kdm.play import play
from pipeline.kdm.report import app as report_app
from pipeline.kdm.reproduce import reproduce
from pipeline.kdm.status import status
from pipeline.kdm.student import add_commands as add_student_commands
from pipeline.kdm.study import app as study_app
from pipeline.kdm.teacher import app as teacher_app
from pipeline.kdm.weights import app as weights_app
from pipeline.project.files import PRESETS, SCHEMA, free_name, preset_path
from pipeline.runtime.paths import WORK

PARAMS = Path("params.yaml")


class CommandError(KDMError):
    """A command refuses what it was asked for."""


class Commands(TyperGroup):
    """Shows errors that a user can mend as one message, with exit code 1.

    Attributes:
        options: of the command that runs, by the names of their parameters.
    """

    options: dict[str, str] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        found: Any = super().resolve_command(ctx, args)
        _, command, rest = found
        command = getattr(command, "commands", {}).get(rest[0] if rest else "", command)
        self.options = {param.name: param.opts[0] for param in command.params
                        if param.param_type_name == "option"}
        return found

    def called(self, field: str) -> str:
        """The option that gives a field of the library's; the field itself where none does."""
        parts = reversed(field.split("."))
        return next((self.options[part] for part in parts if part in self.options), field)

    def invoke(self, ctx: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names need not be UTF-8
        try:
            with warnings.catch_warnings(), naming(self.called):
                warnings.simplefilter("always", Adapted)
                warnings.showwarning = partial(show_warning, warnings.showwarning, set())
                return super().invoke(ctx)
        except KDMError as error:
            typer.echo(f"error: {error}", err=True)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            typer.echo(printable(f"error: {where}{error.strerror or error}"), err=True)
        raise typer.Exit(1)


def show_warning(
    former: Callable[..., None], shown: set[str], message: Warning | str,
    category: type[Warning], *rest: Any,
) -> None:
    """An adaptation as one line, once; other warnings as Python shows them."""
    if issubclass(category, Adapted):
        if str(message) not in shown:
            typer.echo(f"note: {message}", err=True)
        shown.add(str(message))
    else:
        former(message, category, *rest)


def show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"kdm-distill {metadata.version('kdm-distill')}")
        raise typer.Exit


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="One-step generators by distillation: the pipeline's helpers.")


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.",
                                          is_eager=True, callback=show_version)] = False,
) -> None:
    pass


preset_app = typer.Typer(no_args_is_help=True, help="Complete parameter files to start from.")
app.add_typer(preset_app, name="preset")
app.add_typer(params_app, name="params")
app.add_typer(teacher_app, name="teacher")
app.add_typer(pairs_app, name="pairs")
app.add_typer(weights_app, name="weights")
app.add_typer(study_app, name="study")
app.add_typer(report_app, name="report")
add_student_commands(app)
app.command()(distil)
app.command()(new)
app.command()(status)
app.command()(doctor)
app.command()(reproduce)
app.command()(play)


@preset_app.command("list")
def preset_list() -> None:
    """The presets, each with a description."""
    for path in sorted(PRESETS.glob("*.yaml")):
        typer.echo(f"{path.stem}\n    {description(path)}")


@preset_app.command("show")
def preset_show(name: str) -> None:
    """Print a preset."""
    typer.echo(preset_path(name).read_text(encoding="utf-8"), nl=False)


@preset_app.command("path")
def preset_path_of(name: str) -> None:
    """Print where a preset lies."""
    typer.echo(preset_path(name))


@preset_app.command("use")
def preset_use(
    name: str,
    force: Annotated[bool, typer.Option(help="Replace a params.yaml that is no preset; it is kept "
                                             "as params.yaml.bak.")] = False,
) -> None:
    """Make a preset the params.yaml of the current folder, with its schema for editors."""
    from kdm_core.serialization import write_atomic
    from pipeline.params.run import load_params

    path = preset_path(name)
    load_params(path)
    if PARAMS.exists() and not is_preset(PARAMS):
        if not force:
            raise CommandError(f"{PARAMS} differs from every preset, so somebody has worked on it; "
                               "--force replaces it and keeps a copy")
        backup = free_name(PARAMS)
        shutil.copy2(PARAMS, backup)
        typer.echo(f"kept the old {PARAMS} as {backup}")
    write_atomic(PARAMS, path.read_bytes())
    write_atomic(PARAMS.with_name(SCHEMA), (PRESETS / SCHEMA).read_bytes())
    typer.echo(f"{PARAMS} is the preset {name} now")


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove unfinished work and features of images (not while stages run).

    Stopped stages would go on from the one, and evaluations need not compute the other again.
    """
    folders = sorted(path for path in WORK.iterdir()) if WORK.is_dir() else []
    if not folders:
        typer.echo(f"nothing in {WORK}")
        return
    for folder in folders:
        typer.echo(f"{size(folder) / 1e6:10.1f} MB  {folder}")
    if yes or typer.confirm(f"Remove all of {WORK}? Stopped stages will start over"):
        shutil.rmtree(WORK)
        typer.echo(f"removed {WORK}")


def description(path: Path) -> str:
    """The comment at the head of a file, without the line that tells editors of the schema."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# yaml-language-server:"):
            lines.append(line.lstrip("# "))
    return "\n    ".join(lines)


def is_preset(path: Path) -> bool:
    """Whether a file has the content of a preset."""
    content = path.read_bytes()
    return any(preset.read_bytes() == content for preset in PRESETS.glob("*.yaml"))


def size(folder: Path) -> int:
    """Bytes in all files under a folder, or of a file."""
    files = [Path(base) / name for base, _, names in os.walk(folder) for name in names]
    return sum(file.lstat().st_size for file in files or [folder])
