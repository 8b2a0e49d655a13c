"""`kdm reproduce`: the tables and figures of the KDM paper, each by its name."""

import shlex
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdm_core.samples import SampleSpec
    from pipeline.params.run import Params
    from pipeline.project.reproduction.paper import Item
    from pipeline.project.reproduction.tables import Head, Outcome

OUT = Path("reproduction")
"""In the project's folder."""


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="table1 to table9, figure1 to "
                                               "figure13.")] = None,
    student: Annotated[str | None, typer.Argument(metavar="STUDENT", help="Of params.yaml; `paper` "
                                                  "where there is one, else the first of kind "
                                                  "kdm.")] = None,
    preset: Annotated[str | None, typer.Option(help="Work in a project of this preset, which is "
                                               "made unless it is there; in the current one "
                                               "unless given.")] = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="The project's folder; reproduce-"
                                                "PRESET unless given.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Say what there is.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and run "
                                          "nothing.")] = False,
) -> None:
    """Make a table or figure of the KDM paper anew, as reproduction/NAME.md and NAME.png. Stopped
    or killed, it goes on when it is run again."""
    from pipeline.project.reproduction import paper

    if show:
        width = max(map(len, paper.ITEMS))
        for known, what in paper.ITEMS.items():
            typer.echo(f"{known:{width}}  {what.title}")
        return
    if name is None:
        raise paper.ReproductionError("name a table or figure of the paper; `kdm reproduce --list` "
                                      "says what there is")
    if paper.item(name).kind in ("sweep", "run", "study"):
        in_project(name, student, preset, folder, dry_run)
    else:
        from pipeline.project.reproduction.texts import instructions

        typer.echo("\n".join(instructions(name, paper.item(name))))


def in_project(
    name: str, student: str | None, preset: str | None, folder: Path | None, dry_run: bool
) -> None:
    """Reproduce what needs a project, in the one that is meant."""
    from pipeline.params.reading import FILE
    from pipeline.params.run import load_params
    from pipeline.project.current import require_current_project
    from pipeline.project.reproduction import paper, projects, sweeps

    item = paper.item(name)
    command = command_of(name, student, preset, folder)
    with projects.entered(preset, folder, dry_run, typer.echo) as root, chdir(root):
        if not (dry_run and preset):
            require_current_project(Path())
        params = load_params(FILE)
        chosen = sweeps.choose_student(params, student)
        if item.kind == "sweep":
            run_sweep(name, item, params, chosen, command, dry_run)
        elif dry_run:
            target = f"study@{chosen}" if item.kind == "study" else "report"
            typer.echo(f"{name}: `dvc repro {target}`, which runs what is not up to date")
        elif item.kind == "study":
            run_study(name, item, params, chosen, command)
        else:
            run_whole(name, item, params, command)


def run_sweep(
    name: str, item: "Item", params: "Params", student: str, command: str, dry_run: bool
) -> None:
    """The experiments of a sweep, then their table."""
    from pipeline.project.reproduction import paper, running, sweeps, tables
    from pipeline.reporting.comparison import open_run

    if not dry_run:
        require_fit()
    wanted = sweeps.experiments(name, Path(), student, spec_of(params))
    if dry_run:
        for one in wanted:
            typer.echo(f"{one.name}    # {one.text}")
            typer.echo("".join(f"    -S {shlex.quote(override)}\n" for override in one.overrides),
                       nl=False)
        return
    running.require_repository(Path().absolute())
    commits = running.run_all(Path().absolute(), wanted, typer.echo)
    found = {key: open_run(commit).document for key, commit in commits.items()}
    by_key = {one.key: one for one in item.published}
    outcomes = [tables.Outcome(one.text, student, found.get(one.name), by_key.get(one.key),
                               f"the experiment {one.name} failed: `dvc queue logs {one.name}` "
                               "says why; this command runs it again") for one in wanted]
    first = next(iter(found.values()), None)
    if first is not None and first.teacher:
        outcomes.insert(0, tables.Outcome("teacher", paper.TEACHER, first))
    write_table(name, item, head(item, student, command), outcomes)
    if len(commits) < len(wanted):
        raise paper.ReproductionError(
            f"{len(wanted) - len(commits)} of {len(wanted)} experiments failed; "
            f"{OUT / name}.md says which")


def run_whole(name: str, item: "Item", params: "Params", command: str) -> None:
    """The run as it is, then its table."""
    from pipeline.project.distil import run
    from pipeline.project.reproduction import paper, tables
    from pipeline.reporting.comparison import open_run

    require_fit()
    run(Path())
    document = open_run(".").document
    made = head(item, ", ".join(params.students), command)
    preset = made.preset.partition(",")[0]
    theirs = {one.student: one for one in item.published if one.preset == preset}
    students = ([paper.TEACHER] if document.teacher else []) + list(document.students)
    outcomes = [tables.Outcome(one, one, document, theirs.get(one)) for one in students]
    # The others are shown, too, as rows of the paper's alone.
    outcomes += [tables.Outcome(one.name, one.student, None, one,
                                f"`kdm reproduce {name} --preset {one.preset}` is for it")
                 for one in item.published if one not in theirs.values()]
    write_table(name, item, made, outcomes)


def run_study(name: str, item: "Item", params: "Params", student: str, command: str) -> None:
    """What a study needs, then its picture and page."""
    from kdm_core.serialization import write_atomic
    from pipeline.project.distil import run
    from pipeline.project.reproduction import studied

    studied.require_studies(name, item, params)
    require_fit()
    run(Path(), f"study@{student}")
    found = studied.find_studies(name, item, student)
    pictures = {OUT / (f"{name}-{number}.png" if number else f"{name}.png"): one
                for number, one in enumerate(found)}
    OUT.mkdir(exist_ok=True)
    for file, one in pictures.items():
        write_atomic(file, one.png)
    write_page(name, studied.page(name, item, head(item, student, command), pictures))


def write_table(name: str, item: "Item", made: "Head", outcomes: "list[Outcome]") -> None:
    """The page of a table, and the figure of a sweep."""
    from kdm_core.figures.files import save_figure
    from pipeline.project.reproduction import tables

    figure = tables.drawn(outcomes, ordered=name != "table5") if item.kind == "sweep" else None
    picture = OUT / f"{name}.png"
    OUT.mkdir(exist_ok=True)
    if figure is not None:
        save_figure(picture, figure)
    write_page(name, tables.table(name, item, made, outcomes,
                                  picture.name if figure is not None else ""))


def write_page(name: str, text: str) -> None:
    """Write a page, and show it."""
    from kdm_core.serialization import write_atomic

    page = OUT / f"{name}.md"
    write_atomic(page, text.encode())
    typer.echo(f"\n{text}\n{page.absolute()}")


def head(item: "Item", student: str, command: str) -> "Head":
    """Of what a page is."""
    from pipeline.kdm.params import summary
    from pipeline.params.origins import nearest, read_given
    from pipeline.params.reading import FILE
    from pipeline.project.files import PRESETS
    from pipeline.project.reproduction.tables import Head

    preset, entries = nearest(read_given(FILE), ((path.stem, read_given(path))
                                                 for path in sorted(PRESETS.glob("*.yaml"))))
    own = preset in item.presets and all(entry.origin != "yours" for entry in entries.values())
    return Head(summary(preset, entries).removeprefix("preset "), student, command, own)


def require_fit() -> None:
    """Make sure that what the parameters need is there, as `kdm params check` does."""
    from pipeline.kdm.params import check
    from pipeline.params.reading import FILE

    check(FILE)


def spec_of(params: "Params") -> "SampleSpec | None":
    """What the data's samples are; None where they are not there, or take long to look at."""
    from pipeline.kdm.checks.fit import look
    from pipeline.kdm.checks.inputs import sources

    absent = {name for name, path in sources(params) if path is not None and not path.exists()}
    if params.data.source != "cifar10" and absent & {"data.path", "pairs.location"}:
        return None
    found = look(params)
    return None if found is None else found.samples


def command_of(name: str, student: str | None, preset: str | None, folder: Path | None) -> str:
    """The command that was given, as it is given again."""
    parts = ["kdm", "reproduce", name, *([student] if student else []),
             *(["--preset", preset] if preset else []), *(["--dir", str(folder)] if folder else [])]
    return shlex.join(parts)
