"""What the check of a teacher found, and what it means in words."""

from kdm_core.config import Config

Bounds = tuple[float, float]
SHARE = 1 / 3
"""Of what labels tell a linear denoiser, they must tell the teacher so much."""
ORDER = 1 / 2
"""Of the teacher's answer to labels, so much must serve it; an optimal denoiser's does in full."""
MARGIN = 0.02
"""Of the linear denoiser's error, what a teacher's may be beyond it: where that is optimal an exact
teacher is as good at best, and chance has one of the two ahead."""

BY_HEART = ("On training samples it is better, so it knows those by heart: train it for fewer "
            "steps or on more data.")
SETTINGS = ("Likely causes: settings that weights do not show (attention heads, the order of "
            "attention's channels, sigma_data, the range of values, the order of classes), other "
            "data than it was trained on, or a training that was too short.")
OTHER_ORDER = ("It does answer to labels, so its classes are likely in another order than the "
               "data's: compare the two lists of names.")
INDIFFERENT = ("It hardly answers to labels: it was trained without them, or they do not reach "
               "its network.")
UNLABELLED = ("without labels, as classifier-free guidance asks it, the teacher is worse than the "
              "best linear denoiser of the data: it was likely trained without leaving out "
              "labels. Take pairs without guidance, or a teacher trained with label dropout.")


class LevelCheck(Config):
    """Mean squared errors of a value at one noise level, in units of sigma_data².

    Attributes:
        level: sigma / alpha, in the data's unit.
        teacher, linear, constant: errors on held-out samples with their right labels.
        excess: interval of the teacher's error minus the smaller of the other two; the four of a
            check hold together with 95 % confidence. Both above 0 where the teacher is worse.
        train_excess: the same on training samples, looked at where held-out ones are worse.
    """

    level: float
    teacher: float
    linear: float
    constant: float
    excess: Bounds
    train_excess: Bounds | None = None

    @property
    def best(self) -> float:
        """The smaller error of the other two."""
        return min(self.linear, self.constant)

    @property
    def worse(self) -> bool:
        """Whether the teacher is, by more than chance."""
        return self.excess[0] > MARGIN * self.best


class LabelCheck(Config):
    """What labels tell a teacher, errors as in `LevelCheck`, means over all noise levels.

    Attributes:
        teacher, linear: how much wrong labels add to the errors of the teacher, and of a linear
            denoiser that knows each class's mean.
        response: mean squared difference of the teacher's answers to right and wrong labels. With
            an optimal denoiser this is what wrong labels add.
        lack: 95 % interval of what right labels should save at least, minus what they do; both
            above 0 where they serve the teacher too little. None where classes differ too little
            to tell.
    """

    teacher: float
    linear: float
    response: float
    lack: Bounds | None


class DenoisingCheck(Config):
    """What was found on `n` held-out samples.

    Attributes:
        labels: of a teacher that takes some.
        unlabelled: excess of the errors without labels, mean of all noise levels, as
            `LevelCheck.excess`; of a teacher that is guided by itself without labels.
    """

    n: int
    levels: list[LevelCheck]
    labels: LabelCheck | None = None
    unlabelled: Bounds | None = None

    @property
    def share(self) -> float | None:
        """The teacher's error over the smaller of the other two, at the noise level where it is
        worst beside them; None where those make no error."""
        return max((one.teacher / one.best for one in self.levels if one.best > 0), default=None)

    def warnings(self) -> list[str]:
        """What is wrong, with its likely causes; empty where nothing is."""
        found = []
        if worse := [one for one in self.levels if one.worse]:
            worst = max(worse, key=lambda one: one.teacher / one.best)
            learnt = all(one.train_excess is not None and one.train_excess[1] < 0 for one in worse)
            found.append(
                f"the teacher is worse than the best linear denoiser of the data at {len(worse)} "
                f"of {len(self.levels)} noise levels: at {worst.level:.3g} its error is "
                f"{worst.teacher:.3g}, the linear one's {worst.best:.3g}. "
                + (BY_HEART if learnt else SETTINGS))
        labels = self.labels
        if labels is not None and labels.lack is not None and labels.lack[0] > 0:
            found.append(
                "right labels hardly serve the teacher: wrong ones add "
                f"{labels.teacher:.3g} to its error and {labels.linear:.3g} to a linear "
                "denoiser's. "
                + (OTHER_ORDER if labels.response > SHARE * labels.linear else INDIFFERENT))
        usual = sum(one.best for one in self.levels) / max(len(self.levels), 1)
        if self.unlabelled is not None and self.unlabelled[0] > MARGIN * usual:
            found.append(UNLABELLED)
        return found

    def __str__(self) -> str:
        levels = ", ".join(f"{one.teacher:.3g} ({one.best:.3g}) at "
                           f"{one.level:.3g}" for one in self.levels)
        text = (f"error on {self.n} held-out samples (the best linear denoiser's) by noise level: "
                f"{levels}")
        if self.labels is not None:
            text += (f"; wrong labels add {self.labels.teacher:.3g} (to a linear denoiser's "
                     f"{self.labels.linear:.3g})")
        return text
