"""What can be touched on the page, and what it does, in Gradio."""

import os
from typing import Any, NamedTuple

from pipeline.play.drawing import Wish
from pipeline.play.finding import PlayError
from pipeline.play.page import ANY, Page

MOST_BUTTONS = 40
"""Classes that have a button each; more are a list."""
QUIET = {"show_progress": "hidden", "trigger_mode": "always_last"}
DEFAULT = Wish()
MODES = [("kept", "keep"), ("the second seed’s", "exchange"), ("left out", "drop")]
ORDERS = [("decay, fast first", "decay"), ("rotation, slow first", "rotation")]


class Controls(NamedTuple):
    """What can be touched.

    Attributes:
        base: what both models heed, in the order of a `Wish`.
        own: what students alone heed, likewise.
        modes, way: the groups that only some students have.
    """

    name: Any
    base: list[Any]
    another: Any
    own: list[Any]
    modes: Any
    way: Any
    along: Any
    ask: Any
    about: Any


def import_gradio() -> Any:
    """Gradio, without its reports of use to others.

    Raises:
        PlayError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise PlayError("kdm play needs the package gradio: pip install 'kdm-distill[play]' "
                        f"({error})") from error
    return gradio


def build(gr: Any, page: Page) -> Any:
    """The page, for Gradio to serve."""
    with gr.Blocks(title="kdm play", analytics_enabled=False) as blocks:
        gr.HTML("<h1>kdm play</h1><p class='lead'>One evaluation of a student, and all that its "
                "teacher takes, from the same noise.</p>")
        with gr.Row(elem_id="page"):
            with gr.Row(elem_id="pictures", equal_height=False):
                pictures = gr.HTML(elem_id="student"), gr.HTML(elem_id="teacher")
            with gr.Column(elem_id="controls"):
                controls = add_controls(gr, page)
        connect(gr, page, blocks, controls, *pictures)
    return blocks


def add_controls(gr: Any, page: Page) -> Controls:
    """All that can be touched, for the first student."""
    names = list(page.players)
    first = page.players[names[0]]
    name = gr.Radio(names, value=names[0], label="Student", visible=len(names) > 1,
                    elem_id="name")
    choices = page.classes(names[0])
    kind = gr.Radio if len(choices) <= MOST_BUTTONS else gr.Dropdown
    label = kind(choices, value=ANY, label="Class", visible=len(choices) > 1, elem_id="label")
    with gr.Group():
        with gr.Row():
            seed, other = (gr.Number(value, label=text, precision=0, min_width=90, elem_id=mark)
                           for value, text, mark in ((0, "Seed", "seed"),
                                                     (DEFAULT.other_seed, "Second seed", "other")))
        another = gr.Button("Next seed", elem_id="another")
        weight = gr.Slider(0, 1, 0, step=0.01, buttons=[], elem_id="weight",
                           label="From the seed’s noise to the second’s")
    with gr.Group(visible=first.student.has_modes, elem_id="modes") as modes:
        fate = gr.Radio(MODES, value=DEFAULT.modes, label="A band of modes", elem_id="fate")
        order = gr.Radio(ORDERS, value=DEFAULT.order, label="Modes by",
                         elem_id="order")
        with gr.Row():
            band = [gr.Slider(0, 1, value, step=0.01, buttons=[], min_width=90, label=text,
                              elem_id=text.lower())
                    for value, text in ((DEFAULT.first, "From"), (DEFAULT.last, "To"))]
    with gr.Group(visible=first.student.has_states, elem_id="way") as way:
        position = gr.Slider(0, 1, 0, step=0.01, buttons=[], elem_id="position",
                             label="Back on the way, to the noise (1)")
    with gr.Group(visible=any(one.teacher for one in page.players.values())):
        along = gr.Checkbox(page.along, label="The teacher draws along", elem_id="along")
        ask = gr.Button("Ask the teacher", elem_id="ask")
    with gr.Accordion("About this student", open=False):
        about = gr.HTML(page.about(names[0]))
    return Controls(name, [label, seed, other, weight], another, [order, *band, fate, position],
                    modes, way, along, ask, about)


def connect(
    gr: Any, page: Page, blocks: Any, controls: Controls, student: Any, teacher: Any
) -> None:
    """Say what happens when something is touched: the student draws, then the teacher, if what was
    touched is the teacher's, too."""
    seconds = gr.State(0.0)
    wish = [*controls.base, *controls.own]
    draw = {"fn": page.draw_student, "inputs": [controls.name, *wish],
            "outputs": [student, seconds], **QUIET}
    copy = {"fn": page.draw_teacher, "inputs": [controls.name, controls.along, seconds, *wish],
            "outputs": teacher, **QUIET}
    # `input` of a slider may come with the value from before.
    gr.on([blocks.load, *(one.change for one in controls.base)], **draw).then(**copy)
    gr.on([one.change for one in controls.own], **draw)
    seed = controls.base[1]
    controls.another.click(next_seed, seed, seed, show_progress="hidden")

    def choose(name: str) -> list[Any]:
        choices, chosen = page.classes(name), page.players[name].student
        return [gr.update(choices=choices, value=ANY, visible=len(choices) > 1),
                gr.update(visible=chosen.has_modes), gr.update(visible=chosen.has_states),
                page.about(name)]

    controls.name.change(
        choose, controls.name, [controls.base[0], controls.modes, controls.way, controls.about],
        show_progress="hidden").then(**draw).then(**copy)
    controls.along.change(**copy)
    controls.ask.click(lambda name, along, *rest: page.draw_teacher(name, True, *rest),
                       copy["inputs"], teacher, show_progress="minimal")


def next_seed(seed: int | None) -> int:
    return 0 if seed is None else seed + 1
