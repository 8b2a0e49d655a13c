"""Data sets: where they come from, and how they are kept on disk."""

from typing import Annotated

from pydantic import Field

from kdm_core.datasets.base import Dataset, DatasetInfo, LabelledImages, assemble, unlabelled
from kdm_core.datasets.checkerboard import CheckerboardConfig, on_board, sample_board
from kdm_core.datasets.cifar10 import CLASSES, Cifar10Config, read_cifar10
from kdm_core.datasets.digits import DigitsConfig, read_digits
from kdm_core.datasets.edm_zip import EdmZipConfig, read_edm_zip
from kdm_core.datasets.folder import FolderConfig, read_folder
from kdm_core.datasets.idx import IdxConfig, read_idx
from kdm_core.datasets.none import NoDataConfig, samples_as_data
from kdm_core.datasets.npz import NpzConfig, read_npz
from kdm_core.datasets.splitting import split_rows
from kdm_core.datasets.storage import open_dataset, save_dataset

SplitSource = DigitsConfig | NpzConfig | FolderConfig | EdmZipConfig
DataConfig = Annotated[
    SplitSource | CheckerboardConfig | Cifar10Config | IdxConfig | NoDataConfig,
    Field(discriminator="source"),
]

__all__ = [
    "CLASSES",
    "CheckerboardConfig",
    "Cifar10Config",
    "DataConfig",
    "Dataset",
    "DatasetInfo",
    "DigitsConfig",
    "EdmZipConfig",
    "FolderConfig",
    "IdxConfig",
    "NoDataConfig",
    "NpzConfig",
    "load_dataset",
    "on_board",
    "open_dataset",
    "save_dataset",
]


def load_dataset(config: DataConfig, seed: int, pairs: str | None = None) -> Dataset:
    """Read or draw the data set that a configuration describes.

    Args:
        config: where it comes from.
        seed: not negative; decides what is held out for testing, or which points are drawn.
        pairs: where there are no data, the folder or URL of the pairs.

    Raises:
        DataError: a file is missing or damaged, or the data cannot be used.
    """
    if isinstance(config, NoDataConfig):
        assert pairs is not None, "the parameters are checked for that"
        return samples_as_data(pairs)
    if isinstance(config, CheckerboardConfig):
        train, test = (sample_board(count, seed, stream)
                       for stream, count in enumerate((config.train, config.test)))
        return assemble(config.source, "points", (train, unlabelled(len(train))),
                        (test, unlabelled(len(test))), [], conditional=False)
    if isinstance(config, Cifar10Config):
        return assemble(config.source, "image", *read_cifar10(config), CLASSES, config.conditional)
    if isinstance(config, IdxConfig):
        train_split, test_split, names = read_idx(config)
        return assemble(config.source, "image", train_split, test_split, names, config.conditional)
    images, labels, class_names = _read(config)
    train_rows, test_rows = split_rows(labels, config.test_fraction, seed)
    return assemble(config.source, "image", (images[train_rows], labels[train_rows]),
                    (images[test_rows], labels[test_rows]), class_names, config.conditional)


def _read(config: SplitSource) -> LabelledImages:
    """All images of a source that has no test split of its own."""
    if isinstance(config, DigitsConfig):
        return read_digits()
    if isinstance(config, NpzConfig):
        return read_npz(config)
    if isinstance(config, FolderConfig):
        return read_folder(config)
    return read_edm_zip(config)
