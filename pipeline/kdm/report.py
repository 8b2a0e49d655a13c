"""Reports on more than one run."""

from pathlib import Path
from typing import Annotated

import typer

from kdm_core.errors import KDMError

app = typer.Typer(no_args_is_help=True, help="Reports.")


class ReportError(KDMError):
    """A report command refuses what it was asked for."""


# Without a callback, typer would make the only command the whole of `kdm report`.
@app.callback()
def report() -> None:
    """Reports."""


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
