"""Teacher and student side by side, from the same noise (figures 6 to 9 of the KDM paper)."""

import numpy as np
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.figures.grid import side_by_side
from kdm_core.figures.tiles import Images
from kdm_core.samples import SOURCE_NAMES
from kdm_core.studies.base import Finding, Subject, mean_square


class GridsConfig(Config):
    """How much is shown.

    Attributes:
        rows: of images, each of one class where there are classes; of more classes than rows, as
            many are taken, evenly over their order.
        columns: images a row, of each model.
    """

    rows: int = Field(10, ge=1)
    columns: int = Field(6, ge=1)


def grids(subject: Subject, config: GridsConfig) -> Finding:
    """Images of both models from the same noise, at the same places of two grids."""
    chosen, classes = choose(subject, config)
    matched = mean_square(subject.teacher.numpy(), subject.student.numpy())
    permuted = mean_square(subject.teacher.numpy(), subject.student.roll(1, 0).numpy())
    figure = side_by_side(pick(subject.teacher, chosen), pick(subject.student, chosen),
                          subject.name, classes, SOURCE_NAMES[subject.source])
    count = sum(map(len, chosen))
    order = ", one class a row" if classes else ""
    listed = f" ({', '.join(classes)})" if classes else ""
    return Finding(
        name="grids", title="The same noise, two models" if subject.source == "teacher" else
            "The same noise, stored and made anew", figure=figure,
        alt=f"Two grids of {count} images each{order}{listed}: {subject.of_source} at the left, "
            f"those of {subject.name} at the right.",
        caption=f"Images at the same place of both grids come from the same noise{order}; none "
                "was chosen for its looks, and the student was not trained on the noise. Over "
                f"{len(subject.noise)} such noises the mean squared error between the two "
                f"is {matched:.3g}, and {permuted:.3g} between images of different noise.",
        numbers={"n": len(subject.noise), "mse": matched, "mse_permuted": permuted})


def choose(subject: Subject, config: GridsConfig) -> tuple[list[list[int]], list[str]]:
    """The first samples, in rows, and each row's class; no classes where the models know none."""
    if not subject.label_names:
        count = min(len(subject.noise), config.rows * config.columns)
        return [list(range(start, min(start + config.columns, count)))
                for start in range(0, count, config.columns)], []
    labels = subject.labels.numpy()
    present = np.unique(labels)
    kept = np.linspace(0, len(present) - 1, min(config.rows, len(present))).round().astype(int)
    rows = [np.flatnonzero(labels == label)[: config.columns].tolist() for label in present[kept]]
    return rows, [subject.label_names[label] for label in present[kept]]


def pick(samples: Tensor, rows: list[list[int]]) -> list[Images]:
    return [samples[row].numpy() for row in rows]
