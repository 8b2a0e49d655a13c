"""By which law the labels of new pairs are drawn."""

from collections.abc import Iterable

import numpy as np

from kdm_core.datasets import open_dataset
from kdm_core.datasets.frequencies import label_counts, label_weights
from kdm_core.errors import DataError
from kdm_core.pairs.sampling import PairsConfig
from kdm_core.pairs.spec import StoreSpec, law_in_words
from kdm_core.pairs.store import PairStore
from pipeline.params.reading import ParamsError
from pipeline.runtime import paths
from pipeline.runtime.runner import Stage


def with_law(
    stage: Stage, config: PairsConfig, spec: StoreSpec, there: Iterable[PairStore]
) -> StoreSpec:
    """The pairs with the labels that `pairs.labels` asks for.

    Args:
        spec: of uniform labels.
        there: stores that may hold such pairs already. Where params.yaml says nothing, the law of
            the first that does stays, so that it can grow.

    Raises:
        ParamsError: the data's frequencies are wanted, and the data are not there.
        MismatchError: the data has not the teacher's classes.
    """
    if not spec.samples.num_classes or config.labels == "uniform":
        return spec
    if config.labels is None:
        for store in there:
            same = spec.with_labels(store.spec.label_weights)
            if same.stream == store.spec.stream:
                return kept_law(stage, same, store)
    try:
        wanted = law_of_data(spec)
    except DataError as error:
        raise ParamsError("params.yaml: pairs.labels: labels are to be drawn as the data has "
                          f"them, and {error}; or set it to uniform") from error
    stage.say(f"labels are drawn {law_in_words(wanted)}, as the data has them")
    return wanted


def kept_law(stage: Stage, spec: StoreSpec, store: PairStore) -> StoreSpec:
    """The law of a store that is there; said where it is not the data's."""
    try:
        wanted: StoreSpec | None = law_of_data(spec)
    except DataError:  # pairs may grow where the data are not
        wanted = None
    if wanted != spec:
        data = "" if wanted is None else f" ({law_in_words(wanted)})"
        stage.note(f"labels are drawn {law_in_words(spec)}, as those of the pairs in "
                   f"{store.location}; pairs.labels: data draws them as the data has them{data}")
    return spec


def law_of_data(spec: StoreSpec) -> StoreSpec:
    """The pairs with labels in the proportion of the training data's classes."""
    dataset, _ = open_dataset(paths.DATASET)
    counts = label_counts(np.asarray(dataset.train_labels), dataset.info.class_names,
                          spec.samples.label_names)
    return spec.with_labels(label_weights(counts))
