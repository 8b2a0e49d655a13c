"""What a data set is, and the checks that every source's data must pass."""

from math import fsum, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdm_core.config import Config
from kdm_core.errors import DataError, adapted, shown
from kdm_core.samples import Kind, SampleSpec

MAX_CLASSES = 10_000
MAX_NAME = 200
DARK = 32
RENUMBER = ("number the classes that there are from 0 without gaps, as "
            "numpy.unique(labels, return_inverse=True)[1] does, and name only these")


class LabelledConfig(Config):
    """A source of images that may have classes.

    Attributes:
        conditional: whether teachers and students are given the class. The labels are kept either
            way, since the evaluation's classifier is trained on them.
    """

    conditional: bool = False


class SplitConfig(LabelledConfig):
    """A source of images without a test split of its own.

    Attributes:
        test_fraction: share of the images that is held out, of every class alike.
    """

    test_fraction: float = Field(0.2, gt=0, lt=1)


class LabelledImages(NamedTuple):
    """Images (n, C, H, W) uint8, labels (n,) int64, and the names of the classes.

    Without classes the labels are -1 and there are no names.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: list[str]


NO_DATA = "none"
"""The source of a data set in whose place the samples of pairs stand."""


class DatasetInfo(Config):
    """What is known of a data set beside its arrays.

    Attributes:
        source: the `source` of the configuration that it was loaded with.
        samples: what one sample is; its `label_names` are empty unless models are to be given the
            class, its `sigma_data` is the standard deviation of all training values.
        class_names: the classes of the data, whether or not models are given them; may be empty.
        train, test: number of samples of each split.
    """

    source: str
    samples: SampleSpec
    class_names: list[str]
    train: int = Field(ge=1)
    test: int = Field(ge=2)

    @property
    def real(self) -> bool:
        """Whether these are data, and not the teacher's own samples in their place."""
        return self.source != NO_DATA


class Dataset(NamedTuple):
    """Samples and labels of both splits.

    Samples are uint8 images (n, C, H, W), float16 latents (n, C, H, W) or float32 points (n, D);
    labels are (n,) int64, -1 in an unlabelled set. Each split is in random order unless its source
    comes with one.
    """

    train_samples: NDArray[Any]
    train_labels: NDArray[np.int64]
    test_samples: NDArray[Any]
    test_labels: NDArray[np.int64]
    info: DatasetInfo


def unlabelled(count: int) -> NDArray[np.int64]:
    """The labels (count,) of samples that have none."""
    return np.full(count, -1, dtype=np.int64)


def check_names(names: list[str], place: str) -> None:
    """Make sure that class names can be told apart, printed and written as JSON.

    Raises:
        DataError: they cannot; `place` says where they stand.
    """
    if len(names) > MAX_CLASSES:
        raise DataError(f"{place}: {len(names)} classes, at most {MAX_CLASSES} are supported")
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise DataError(f"{place}: the class name '{shown(name[:MAX_NAME])}' is empty, too "
                            "long or not printable: rename the class")
    if len(set(names)) < len(names):
        raise DataError(f"{place}: two classes have the same name: rename one of them")


def check_labels(labels: NDArray[Any], count: int, classes: int, place: str) -> NDArray[np.int64]:
    """Labels as int64, if there is one of 0 … classes - 1 for each of `count` samples.

    Raises:
        DataError: there is not; `place` says where the labels stand.
    """
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(f"{place}: labels of type {labels.dtype} and shape {labels.shape}, "
                        f"expected integers of shape ({count},), one for each sample"
                        f"{_conversion(labels, count)}")
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        without = ("; if it stands for samples without a label, leave these out, or all labels"
                   if outside[0] == -1 else "")
        raise DataError(f"{place}: label {outside[0]} is none of the {classes} classes, which are "
                        f"numbered from 0: {RENUMBER}{without}")
    return labels.astype(np.int64)


def _conversion(labels: NDArray[Any], count: int) -> str:
    """How labels of another form become integers, where that can be told."""
    if labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1:
        return ": if they are one-hot, save labels.argmax(1)"
    if labels.size != count:
        return ""
    if labels.dtype.kind in "US":
        return (": save label_names, labels = numpy.unique(labels.ravel().astype(str), "
                "return_inverse=True)")
    if labels.dtype.kind in "biuf":
        return ": if they are whole numbers, save labels.ravel().astype(int)"
    return ""


def numbered_classes(labels: NDArray[Any], place: str) -> list[str]:
    """Names "0", "1", … for labels that come without any."""
    count = max(int(labels.max()) + 1, 0) if labels.size else 0
    if count > MAX_CLASSES:
        raise DataError(f"{place}: label {count - 1}, at most {MAX_CLASSES} classes are supported: "
                        "number the classes 0, 1, …")
    return [str(label) for label in range(count)]


def tell_dark(images: NDArray[Any], where: str) -> None:
    """Say it if 8-bit images (n, …) seem to have values from 0 to 1 or 16, and not to 255.

    Judged by the images, of which 99 % have no value of DARK or more, and not by their values, of
    which most are 0 in drawings.
    """
    brightest = images.reshape(len(images), -1).max(1)
    white = max(int(np.quantile(brightest, 0.99, method="lower")), 1)
    if white < DARK:
        adapted(f"{where}: 99 % of the images have no value above {white}, and are taken as nearly "
                f"black, since 255 is white: if {white} is white in them, save (images * "
                f"(255 / {white})).round().astype('uint8')")


def standard_deviation(samples: NDArray[Any]) -> float:
    """Standard deviation of all values, uint8 ones taken as floats in [-1, 1].

    Sums are exact, so that the figure does not depend on the machine.
    """
    if samples.dtype == np.uint8:
        counts = np.zeros(256, dtype=np.int64)
        for row in range(0, len(samples), 4096):  # bincount needs eight bytes a value
            counts += np.bincount(samples[row : row + 4096].ravel(), minlength=256)
        weights = [int(count) for count in counts]
        total = sum(weights)
        first = sum(level * weight for level, weight in enumerate(weights))
        second = sum(level**2 * weight for level, weight in enumerate(weights))
        return sqrt(total * second - first**2) / total / 127.5
    values = samples.astype(np.float64).ravel()
    centred = values - fsum(values) / values.size
    return sqrt(fsum(centred**2) / values.size)


def assemble(
    source: str,
    kind: Kind,
    train: tuple[NDArray[Any], NDArray[np.int64]],
    test: tuple[NDArray[Any], NDArray[np.int64]],
    class_names: list[str],
    conditional: bool,
) -> Dataset:
    """Check samples and labels of both splits and describe them.

    Raises:
        DataError: there are too few samples, values that are not finite, labels out of range,
            classes without training samples, or no classes to be conditioned on.
    """
    check_names(class_names, f"data ({source})")
    if conditional and not class_names:
        raise DataError("the data has no labels to be conditioned on: set it to false or supply "
                        "labels", field="conditional")
    if len(train[0]) < 1 or len(test[0]) < 2:
        raise DataError(f"data ({source}): {len(train[0])} samples to train on and {len(test[0])} "
                        "to test on, needed are 1 and 2 beside one of each class to train on: "
                        "supply more data or change test_fraction")
    for split, (samples, labels) in (("training", train), ("test", test)):
        if samples.size == 0 or not np.isfinite(samples).all():
            raise DataError(f"data ({source}): {split} samples are empty or not finite: "
                            "remove those")
        if class_names:
            check_labels(labels, len(samples), len(class_names), f"data ({source}), {split} split")
    _check_classes(source, train[1], test[1], class_names)
    sigma = standard_deviation(train[0])
    if sigma == 0:
        raise DataError(f"data ({source}): all values of all training samples are the same: there "
                        "is nothing to learn from them, supply other data")
    if kind == "image":
        tell_dark(train[0], f"data ({source})")
    spec = SampleSpec(kind=kind, shape=list(train[0].shape[1:]), sigma_data=sigma,
                      label_names=class_names if conditional else [])
    info = DatasetInfo(source=source, samples=spec, class_names=class_names,
                       train=len(train[0]), test=len(test[0]))
    return Dataset(*train, *test, info)


def _check_classes(
    source: str, train: NDArray[np.int64], test: NDArray[np.int64], class_names: list[str]
) -> None:
    """Make sure that each class can be trained on; say which cannot be tested.

    Raises:
        DataError: a class has no training samples. Models would be asked for it all the same.
    """
    untrained, untested = absent(train, class_names), absent(test, class_names)
    if untrained:
        raise DataError(f"data ({source}): {have(untrained, class_names)} no training samples: "
                        f"supply some, or {RENUMBER}")
    if untested:
        adapted(f"data ({source}): {have(untested, class_names)} no test samples")


def absent(labels: NDArray[np.int64], names: list[str]) -> list[int]:
    """The classes that do not occur."""
    return sorted(set(range(len(names))) - set(np.unique(labels).tolist()))


def have(classes: list[int], names: list[str]) -> str:
    """"class 3 (cat) has" or "classes 3 (cat), 5 (dog), 6 (frog), … (9 in all) have"."""
    first = [str(label) if names[label] == str(label) else f"{label} ({names[label]})"
             for label in classes[:3]]
    if len(classes) == 1:
        return f"class {first[0]} has"
    more = f", … ({len(classes)} in all)" if len(classes) > len(first) else ""
    return f"classes {', '.join(first)}{more} have"
