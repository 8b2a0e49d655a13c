"""Tables and figures of the paper for which nothing is run: what to do, and table 7's check."""

from collections.abc import Iterator
from typing import Any

from pipeline.params.run import Params, load_params
from pipeline.project.files import preset_path
from pipeline.project.reproduction.paper import ITEMS, SETTINGS, Item
from pipeline.project.reproduction.sweeps import PREFERRED

INSTRUCTIONS = {
    "timing": ["Times are measured by a benchmark, which is no part of the installed package. In a "
               "clone of the repository:", "    python -m benchmarks.table4"],
    "people": ["People judge it. In a project with a finished student:",
               "    kdm study collages STUDENT --out slides --key key.json",
               "    kdm study tally key.json answers-of-one.csv answers-of-another.csv"],
    "drawing": ["There is nothing to run."],
}
"""By the kind of an item."""
PLACES = {"batch": "training", "lr": "training", "steps": "training", "latent_noise": "losses",
          "adversarial": "losses", "channels": "model.encoder", "projected_channels": "model",
          "latent": "model"}
"""Where the settings of table 7 stand, below a student."""


def instructions(name: str, item: Item) -> Iterator[str]:
    """What there is to say of an item for which nothing is run."""
    yield f"{name} ({item.place}): {item.title}"
    if item.said:
        yield f"The paper: {item.said}."
    if item.kind == "several":
        yield from (f"    kdm reproduce {part}    # {ITEMS[part].title}" for part in item.names)
    else:
        yield from settings() if item.kind == "settings" else INSTRUCTIONS[item.kind]


def settings() -> Iterator[str]:
    """Where the settings of table 7 stand, and which of them are not the paper's."""
    for preset, published in SETTINGS.items():
        ours = settings_of(load_params(preset_path(preset)))
        other = [f"{key} is {ours[key]:g}, in the paper {value:g}"
                 for key, value in published.items() if ours[key] != value]
        said = "; ".join(other) if other else f"all {len(published)} are the paper's"
        yield f"    kdm preset show {preset}    # students.{PREFERRED}: {said}"
    yield "The comments at the head of a preset say why it differs."


def settings_of(params: Params) -> dict[str, Any]:
    """What the published recipe has in a preset of the settings of table 7."""
    student: dict[str, Any] = params.students[PREFERRED].model_dump(mode="json")
    found = {}
    for key, place in PLACES.items():
        section = student
        for part in place.split("."):
            section = section[part]
        found[key] = section.get(key)
    return found
