"""Guidance: a teacher pushed away from a weaker one."""

import torch
from torch import Tensor

from kdm_core.classes import match_classes
from kdm_core.errors import KDMError, MismatchError
from kdm_core.solvers import Path
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers.base import Teacher


class Guided(Teacher):
    """weak + scale (teacher − weak), in the velocity as in the denoiser, which are linear in each
    other. One evaluation runs two networks."""

    evaluations = 2

    def __init__(
        self, teacher: Teacher, weak: Teacher, scale: float, classes: list[int] | None
    ) -> None:
        """`classes`: the weaker teacher's number of each class; None if it is given no labels."""
        super().__init__(teacher.config, teacher.spec)
        self.teacher, self.weak, self.scale, self.classes = teacher, weak, scale, classes
        self.start, self.end = teacher.start, teacher.end
        self.lowest, self.highest = teacher.lowest, teacher.highest
        self.default_grid, self.ends_singular = teacher.default_grid, teacher.ends_singular

    def of_weak(self, labels: Tensor | None) -> Tensor | None:
        """The labels in the weaker teacher's numbers."""
        if labels is None or self.classes is None:
            return None
        if self.classes == sorted(self.classes):
            return labels
        return torch.tensor([*self.classes, -1], device=labels.device)[labels]

    def path(self, time: Tensor) -> Path:
        return self.teacher.path(time)

    def time_at(self, level: Tensor) -> Tensor:
        return self.teacher.time_at(level)

    def levels(self) -> Tensor | None:
        return self.teacher.levels()

    def activations(self, x: Tensor, time: Tensor, labels: Tensor | None) -> list[Tensor]:
        return self.teacher.activations(x, time, labels)

    def noise_scale(self, time: Tensor) -> Tensor:
        return self.teacher.noise_scale(time)

    def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        weak = self.weak.denoise(x, time, self.of_weak(labels))
        return torch.lerp(weak, self.teacher.denoise(x, time, labels), self.scale)

    def velocity(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        weak = self.weak.velocity(x, time, self.of_weak(labels))
        return torch.lerp(weak, self.teacher.velocity(x, time, labels), self.scale)


def guided(
    teacher: Teacher, weak: Teacher | None, config: GuidanceConfig | None, done: bool = False
) -> Teacher:
    """The teacher as it is to be sampled.

    Args:
        weak: its guide if it has one.
        done: whether pairs that are there were guided so, which nobody is to be kept from.

    Raises:
        KDMError: the guidance asked for needs labels or a second teacher that are not there, or a
            teacher that has learned to do without labels.
        MismatchError: the second teacher has samples, classes or an ODE of another kind.
    """
    if config is None:
        return teacher
    if config.kind == "classifier_free":
        if not teacher.spec.num_classes:
            raise KDMError("classifier_free needs a teacher that takes labels; use another "
                           "guidance or none, or a class-conditional teacher", "guidance.kind")
        if teacher.label_dropout == 0 and not done:
            raise KDMError("classifier_free asks the teacher for samples without a label, which it "
                           "has not learned: it was shown every label (label_dropout 0). Sample it "
                           "without guidance, with one of another kind, or take a teacher that "
                           "was trained with label_dropout",
                           "guidance.kind")
        return Guided(teacher, teacher, config.scale, classes=None)
    if weak is None:
        raise KDMError("autoguidance needs a second, weaker teacher; describe one as the teacher's "
                       "guide, or put its folder into the teacher's, as guide", "guidance.kind")
    halfway = torch.tensor(0.5, dtype=torch.float64)
    if (weak.spec.shape != teacher.spec.shape
            or weak.spec.num_classes not in (0, teacher.spec.num_classes)
            or weak.path(halfway) != teacher.path(halfway)):
        raise MismatchError("the teacher's guide must have its sample shape, its classes or none, "
                            "and its kind of ODE (two denoisers, or two flow-matching models); "
                            "describe such a one", "guidance")
    # A guide without classes is given the labels, too, and makes nothing of them.
    own = teacher.spec.label_names
    classes = (match_classes(own, weak.spec.label_names, "the guide", "the teacher")
               if weak.spec.num_classes else list(range(len(own))))
    return Guided(teacher, weak, config.scale, classes)
