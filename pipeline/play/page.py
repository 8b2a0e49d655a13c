"""What the page shows: pictures with their stopwatch, and why one is missing."""

from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any

from kdm_core.errors import KDMError
from pipeline.play.drawing import (
    Drawing,
    Wish,
    address,
    draw_student,
    draw_teacher,
    stopwatch,
    warm_up,
)
from pipeline.play.finding import Player

PATIENCE_S = 0.25
"""A teacher that is slower for one image draws only when it is asked."""
ANY = -1
"""The class of which the seed decides."""


class Page:
    """What the page shows, as HTML; one thing after the other, so that times are those of one
    model alone.

    Attributes:
        along: whether all teachers are quick enough to draw whenever the student does.
    """

    def __init__(self, players: list[Player], n: int) -> None:
        self.players = {player.name: player for player in players}
        self.n = n
        self.painter = ThreadPoolExecutor(max_workers=1)
        self.along = max(self.painter.submit(warm_up, player, Wish(n)).result()
                         for player in players) < PATIENCE_S

    def wish(self, label: int, seed: Any, other_seed: Any, weight: float, *rest: Any) -> Wish:
        """What the controls say, in the order in which they are inputs."""
        chosen = None if label == ANY else label
        return Wish(self.n, seed, chosen, other_seed, weight, *rest)

    def draw_student(self, name: str, *controls: Any) -> tuple[str, float]:
        """The student's picture and the seconds that it took."""
        player, wish = self.players[name], self.wish(*controls)
        try:
            drawing = self.painter.submit(draw_student, player, wish).result()
            return figure(name, "student", drawing, wish), drawing.seconds
        except KDMError as error:
            return problem(str(error)), 0.0

    def draw_teacher(self, name: str, along: bool, seconds: float, *controls: Any) -> str:
        """The teacher's picture of the same noise, or why there is none.

        Args:
            along: whether it is to draw.
            seconds: of the student.
        """
        player, wish = self.players[name], self.wish(*controls)
        if player.teacher is None:
            return note("No teacher", player.absent)
        if not along:
            return note("The teacher", "waits to be asked for the same pictures.")
        try:
            drawing = self.painter.submit(draw_teacher, player, wish).result()
            return figure("teacher", "teacher", drawing, wish, seconds)
        except KDMError as error:
            return problem(str(error))

    def about(self, name: str) -> str:
        return f"<pre class='about'>{escape(self.players[name].student.describe())}</pre>"

    def classes(self, name: str) -> list[tuple[str, int]]:
        """What the class buttons say, and the numbers of the classes."""
        names = self.players[name].student.spec.label_names
        return [("any", ANY), *((label, number) for number, label in enumerate(names))]


def figure(
    name: str, role: str, drawing: Drawing, wish: Wish, student_s: float | None = None
) -> str:
    """A picture with its stopwatch."""
    times = ""
    if student_s:
        times = f"<span class='times'>{drawing.seconds / student_s:,.0f} times as long</span>"
    plural = "s" if drawing.evaluations > 1 else ""
    return (f"<figure class='{role}'><img src='{address(drawing.images)}' "
            f"alt='{wish.n} images of {escape(name, quote=True)}'><figcaption><strong>"
            f"{escape(name)}</strong><span class='clock'>{stopwatch(drawing.seconds)}</span>"
            f"<span>{drawing.evaluations} evaluation{plural}</span>{times}</figcaption></figure>")


def note(title: str, text: str) -> str:
    return f"<div class='note'><strong>{title}</strong><p>{escape(text)}</p></div>"


def problem(text: str) -> str:
    return f"<div class='note problem' role='alert'><p>{escape(text)}</p></div>"
