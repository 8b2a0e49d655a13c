"""`kdm distil`: pairs in, a student and its report out."""

import shlex
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdm_core.pairs.spec import StoreSpec
    from pipeline.project.distil import Places

MOST_HELD_OUT = 1000
"""Pairs of the test split, and as many of the validation split, where an import has enough."""

IMPORTED = "data/imported.zarr"
"""In the project, where git does not look."""
SAID = ("channels", "layout", "noise", "noise_scale", "order", "sample_dtype", "sample_range")
"""Fields of an import that this command leaves to be found, and another one has options for."""


def distil(
    pairs: Annotated[str, typer.Argument(metavar="PAIRS", help="A store (a folder or a URL), or "
                                         "what `kdm pairs import` reads: an .npz or .npy file, a "
                                         "folder of .npz files or of pictures, .tar files.")],
    out: Annotated[Path, typer.Option(help="The student's folder; its project is made beside it.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Of the training; as many as suit so "
                                              "many pairs unless given.")] = None,
) -> None:
    """Distil a student from pairs alone: no teacher, no data, no project needed. Stopped, it goes
    on when it is run again."""
    from pipeline.project import distil as work
    from pipeline.runtime.stopping import INTERRUPTED

    found = work.places(out)
    try:
        make_student(pairs, found, steps)
    except KeyboardInterrupt:
        typer.echo("stopped: give this command again to go on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    tell(found)


def make_student(pairs: str, found: "Places", steps: int | None) -> None:
    """From the pairs to the student and its report, in their places."""
    from kdm_core.sharing.folder import load_student
    from pipeline.kdm.student import card_of_run
    from pipeline.project import distil as work

    location, spec = store_of(pairs, found.project)
    for line in work.make(found.project, location, spec, steps):
        typer.echo(line)
    work.run(found.project)

    def card() -> str:
        with chdir(found.project):
            return card_of_run(*load_student(found.student), work.STUDENT, None, None)

    work.deliver(found, card)


def tell(found: "Places") -> None:
    """Say what became of it, and where everything is."""
    from kdm_core.serialization import read_json

    word = read_json(found.evaluation)["verdicts"]["student"]["word"]
    typer.echo(f"\nthe verdict  {word}; the report says why\n"
               f"the student  {found.out}\n"
               f"the report   {found.report}\n"
               f"the project  {found.project}  (its params.yaml can be changed; `dvc repro` there "
               "runs it)\n"
               f"samples      kdm sample {shlex.quote(str(found.out))} --n 64 --out samples.png")


def store_of(pairs: str, project: Path) -> tuple[str, "StoreSpec"]:
    """The store of the pairs: where it lies, as the project sees it, and what it holds. Pairs of
    others are imported into one of the project's first."""
    from kdm_core.errors import naming
    from kdm_core.pairs.importing import ImportConfig, open_source
    from kdm_core.pairs.location import local_path
    from kdm_core.pairs.reference import FILE
    from kdm_core.pairs.store import PairStore
    from pipeline.kdm.pairs_exchange import run_import

    path = local_path(pairs)
    if path is None or any((path / name).is_file() for name in ("zarr.json", FILE)):
        location = pairs if path is None else str(path.resolve())
        return location, PairStore.open(location).spec
    store = project / IMPORTED
    with naming(elsewhere):
        source = open_source(path)
        held_out = max(2, min(MOST_HELD_OUT, source.count // 10))
        run_import(source, str(store), ImportConfig(test=held_out, validation=held_out), path.name,
                   None, "auto", trust_code=False)
    return IMPORTED, PairStore.open(store).spec


def elsewhere(field: str) -> str:
    """How a user says what this command has no option for."""
    option = f"--{field.replace('_', '-')}"
    return f"`kdm pairs import PAIRS STORE {option} …`" if field in SAID else field
