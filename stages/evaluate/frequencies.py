"""Whether sets that an evaluation compares have the same classes equally often."""

import numpy as np

from kdm_core.datasets import Dataset
from kdm_core.datasets.frequencies import label_counts
from kdm_core.metrics.labels import in_words, label_shift
from kdm_core.pairs.spec import StoreSpec
from pipeline.runtime.models import Models
from pipeline.runtime.runner import Stage
from stages.evaluate.results import Results


def compare_labels(stage: Stage, results: Results, dataset: Dataset, models: Models) -> None:
    """Warn where the pairs, or the other real samples, have other labels than the reference.

    Of published statistics nobody knows the classes, and of unlabelled samples neither.
    """
    spec, config, info = models.store.samples, stage.params.evaluation, dataset.info
    if not info.class_names or all(extractor.name in config.statistics
                                   for extractor in config.extractors):
        return
    names = spec.label_names or info.class_names
    real = {split: np.array(label_counts(np.asarray(labels), info.class_names, names))
            for split, labels in (("train", dataset.train_labels), ("test", dataset.test_labels))}
    reference = real.pop(config.reference)
    [(held_out, others)] = real.items()
    sets = {f"the data's {held_out} split": (others, "")}
    if spec.num_classes:
        pairs = np.bincount(models.test.labels.numpy(), minlength=spec.num_classes)
        sets = {"the test pairs (both models)": (pairs, f". {remedy(models.store)}"), **sets}
    for who, (labels, way_out) in sets.items():
        if (shift := label_shift(labels, reference)) is not None:
            results.warnings.append(
                f"{who} and the reference, the data's {config.reference} split, have classes in "
                f"other proportions ({shift:.1%} of the labels would have to be others): "
                f"{in_words(labels, reference, names)}. Distances between them, precision and "
                f"recall measure that as well, however good the samples are{way_out}")
            stage.say(f"warning: {results.warnings[-1]}")


def remedy(spec: StoreSpec) -> str:
    """How pairs come to have the labels of the data."""
    if spec.noise_seed is None or spec.subset is not None:
        return ("Choose data whose classes are as frequent as those of these pairs, or pairs that "
                "are sampled here with pairs.labels: data")
    return "pairs.labels: data draws labels as the data has them"
