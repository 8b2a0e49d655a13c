"""`kdm params`: checks params.yaml, says where its values come from and what may stand in it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdm_core.errors import printable
from pipeline.project.files import PRESETS

if TYPE_CHECKING:
    from pipeline.params.origins import Entries, Entry

PARAMS = Path("params.yaml")
WIDEST = 36
"""Letters of a value that others are aligned to."""

app = typer.Typer(no_args_is_help=True, help="The parameter file.")


@app.command()
def check(file: Annotated[Path, typer.Argument()] = PARAMS) -> None:
    """Check that a run with a parameter file can come to its end here, all problems at once."""
    from pipeline.kdm.checks import fit, inputs, machine
    from pipeline.kdm.doctor import findings_of
    from pipeline.params.reading import ParamsError
    from pipeline.params.run import load_params

    params = load_params(file)
    found = [one for check in (machine.check_device, machine.check_processes, inputs.check_sources,
                               fit.check_fit, inputs.check_weights)
             for one in findings_of(check, params)]
    wrong = [one for one in found if one.level == "problem"]
    if wrong:
        raise ParamsError(f"{file} cannot be used here:\n" + "\n".join(
            f"  {one.check}: {one.text}" + (f"; {one.advice}" if one.advice else "")
            for one in wrong))
    for one in found:
        if one.level == "warning":
            typer.echo(f"note: {one.check}: {one.text}; {one.advice}", err=True)
    typer.echo(f"{file}: ok")


@app.command()
def show(
    stage: Annotated[str | None, typer.Argument(
        help="Only what decides the result of a stage: train_student@kdm, or train_student for all "
             "students.")] = None,
    file: Annotated[Path, typer.Option(help="The parameter file.")] = PARAMS,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """All parameters with their defaults, and where each comes from.

    `default` is not in the file, `preset` is there with the value that the preset has, `yours` is
    all else. The preset is the one that agrees most with the file.
    """
    from pipeline.params.origins import nearest, of_stage, read_given

    given = read_given(file)
    name, entries = nearest(given, ((path.stem, read_given(path))
                                    for path in sorted(PRESETS.glob("*.yaml"))))
    asked = entries if stage is None else of_stage(entries, stage, list(given.value.students))
    if as_json:
        typer.echo(json.dumps({path: {"value": entry.value, "origin": entry.origin}
                               for path, entry in asked.items()}, indent=1))
        return
    typer.echo(printable(f"{file}: {summary(name, entries)}"))
    typer.echo("\n".join(table(asked)))


@app.command()
def schema(
    out: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None,
) -> None:
    """The JSON schema of params.yaml, by which editors complete and check it."""
    from pipeline.params.schema import schema_text

    give(schema_text(), out)


@app.command()
def reference(
    out: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None,
) -> None:
    """All parameters with types, defaults and meanings, as a page in Markdown."""
    from pipeline.params.page import page_text

    give(page_text(), out)


def give(text: str, out: Path | None) -> None:
    """Write a text to a file, or print it where none is named."""
    from kdm_core.serialization import write_atomic

    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomic(out, text.encode())
        typer.echo(f"wrote {out}")


def summary(preset: str | None, entries: "Entries") -> str:
    """From which preset a file was made, and how far it has come from it."""
    if preset is None:
        return "no preset has half of its values"
    changed = sum(entry.origin == "yours" for entry in entries.values())
    left = sum(entry.origin == "default" and is_other(entry) for entry in entries.values())
    return (f"preset {preset}, {changed} value{'' if changed == 1 else 's'} changed"
            + (f", {left} left out" if left else ""))


def table(entries: "Entries") -> list[str]:
    """A line a parameter in aligned columns, an empty one before each section of the file."""
    rows = [(path, text(entry.value), entry) for path, entry in entries.items()]
    widths = (max(len(path) for path, _, _ in rows),
              max(len(value) for _, value, _ in rows if len(value) <= WIDEST))
    lines, section = [], ""
    for path, value, entry in rows:
        if section != (section := path.partition(".")[0]):
            lines.append("")
        beside = f" (preset: {short(entry.preset)})" if is_other(entry) else ""
        lines.append(f"{path:{widths[0]}}  {value:{widths[1]}}  {entry.origin}{beside}")
    return lines


def is_other(entry: "Entry") -> bool:
    """Whether the preset says something else."""
    from pipeline.params.origins import MISSING

    return entry.preset is not MISSING


def short(value: Any) -> str:
    """A value beside another one."""
    whole = text(value)
    return whole if len(whole) <= WIDEST else f"{whole[:WIDEST - 1]}…"


def text(value: Any) -> str:
    """A value on one line."""
    return printable(value if isinstance(value, str) and value.isprintable() and value
                     else json.dumps(value, ensure_ascii=False))
