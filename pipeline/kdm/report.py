"""Reports on more than one run, and curves for programs that show those of many."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from kdm_core.errors import KDMError

app = typer.Typer(no_args_is_help=True, help="Reports.")


class ReportError(KDMError):
    """A report command refuses what it was asked for."""


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(
        metavar="RUN…", help="A folder of a run, a report.json, or a git revision or DVC "
                             "experiment of this repository.")],
    out: Annotated[Path, typer.Option(help="The page, an .html that must not be there yet.")],
) -> None:
    """Set the students of several runs side by side on one page."""
    from kdm_core.serialization import write_atomic
    from pipeline.reporting.comparison import compare as page_on

    if out.exists():
        raise ReportError(f"--out: {out} exists already; name a new file")
    write_atomic(out, page_on(runs).encode())
    typer.echo(f"{out}: {len(runs)} runs side by side")


@app.command()
def curves(
    format: Annotated[Literal["tensorboard", "wandb"], typer.Option(
        help="Event files of TensorBoard, or runs that `wandb sync` uploads to Weights & Biases.")],
    out: Annotated[Path, typer.Option(help="A folder that must not be there yet.")],
    names: Annotated[list[str] | None, typer.Argument(
        metavar="[NAME]…", help="`teacher` or students; all that have been trained unless given.")]
    = None,
) -> None:
    """Write this folder's training curves for TensorBoard or Weights & Biases; nothing is sent."""
    from pipeline.reporting.trackers import export_curves

    if out.exists():
        raise ReportError(f"--out: {out} exists already; name a new folder")
    typer.echo(f"{out}: the curves of {', '.join(export_curves(names or [], format, out))}")
    typer.echo(f"next: tensorboard --logdir {shlex.quote(str(out))}" if format == "tensorboard"
               else f"next: wandb sync {shlex.quote(str(out))}/wandb/offline-run-*")
