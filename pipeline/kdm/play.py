"""`kdm play`: a page on which students can be touched."""

from typing import Annotated

import typer


def play(
    students: Annotated[list[str] | None, typer.Argument(
        metavar="[STUDENT]…", help="Students' folders, or OWNER/NAME on the hub; all of this "
                                   "folder's run unless given.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, max=100, help="Images at a time.")] = 16,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1, which only this "
                                      "machine reaches; 0 takes any.")] = 7860,
    device: str = "auto",
) -> None:
    """Touch students on a page of this machine: classes, seeds, modes, and the teacher beside."""
    from pipeline.play.layout import import_gradio

    import_gradio()  # what is missing is said before anything is loaded
    from kdm_core.compute import resolve_device
    from pipeline.play.finding import find_players
    from pipeline.play.page import Page
    from pipeline.play.server import HOST, serve, take_port

    with take_port(port) as taken:
        players = find_players(students or [], resolve_device(device))
        page = Page(players, n)
        typer.echo(f"{', '.join(page.players)}: http://{HOST}:{taken.getsockname()[1]} "
                   "(Ctrl-C ends it)")
        serve(page, taken)
