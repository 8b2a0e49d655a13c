"""Importers: each turns a trained model of others into a teacher, which is saved as our own."""

from kdm_core.errors import placed
from kdm_core.importers.diffusers import DiffusersSource, import_diffusers
from kdm_core.importers.folder import FolderSource, import_folder, import_folder_guide
from kdm_core.importers.module import ModuleSource, import_module
from kdm_core.importers.nvlabs import EDM2Source, EDMSource, import_edm
from kdm_core.importers.samples import align_classes, require_same_samples
from kdm_core.importers.state_dict import StateDictSource, import_state_dict
from kdm_core.importers.torchcfm import TorchCFMSource, import_torchcfm
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Teacher

ForeignSource = (EDMSource | EDM2Source | DiffusersSource | TorchCFMSource | StateDictSource
                 | ModuleSource | FolderSource)

__all__ = ["DiffusersSource", "EDM2Source", "EDMSource", "FolderSource", "ForeignSource",
           "ModuleSource", "StateDictSource", "TorchCFMSource", "build_source", "import_guide",
           "import_teacher"]


def import_teacher(source: ForeignSource, data: SampleSpec) -> Teacher:
    """The teacher that a source describes, with its weights, in eval mode on the CPU.

    Args:
        source: where it comes from.
        data: what the data set's samples are, which the teacher's must be too.

    Its classes have the order of the data set's.

    Raises:
        DataError: a file is missing, damaged or holds something else.
        MismatchError: the model makes other samples than the data set has, or it is not sure which
            class of its is which, or the file is not the one whose checksum is pinned.
        KDMError: a package that the importer needs is missing, or trust is.
    """
    teacher = build_source(source, data)
    require_same_samples(teacher.spec, data)
    align_classes(teacher, data)
    return teacher


def import_guide(source: ForeignSource, data: SampleSpec) -> Teacher | None:
    """The weaker teacher of the same source, for autoguidance; None if it has none."""
    with placed("guide"):
        if isinstance(source, FolderSource):
            guide = import_folder_guide(source)
        elif (weights := getattr(source, "guide", None)) is not None:
            update = {"file": weights.file, "sha256": weights.sha256}
            guide = build_source(source.model_copy(update=update), data)
        else:
            guide = None
        if guide is None:
            return None
        # One that takes no labels guides towards them.
        expected = data if guide.spec.num_classes else data.model_copy(update={"label_names": []})
        require_same_samples(guide.spec, expected)
        align_classes(guide, expected)
        return guide


def build_source(source: ForeignSource, data: SampleSpec) -> Teacher:
    """`import_teacher` without the comparison: `data` says what the file does not."""
    if isinstance(source, EDMSource):
        return import_edm(source, data)
    if isinstance(source, DiffusersSource):
        return import_diffusers(source, data)
    if isinstance(source, TorchCFMSource):
        return import_torchcfm(source, data)
    if isinstance(source, StateDictSource):
        return import_state_dict(source, data)
    if isinstance(source, FolderSource):
        return import_folder(source)
    return import_module(source, data)
