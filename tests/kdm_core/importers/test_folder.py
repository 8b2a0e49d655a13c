"""Teachers from folders of this project: they stay what they were."""

from pathlib import Path

import pytest

from kdm_core.compute import seeded
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.importers import FolderSource, import_guide, import_teacher
from kdm_core.networks import MLPConfig
from kdm_core.samples import SampleSpec
from kdm_core.serialization import write_json
from kdm_core.teachers import GUIDE, FlowMatchingConfig, build_teacher, save_teacher

SPEC = SampleSpec(kind="points", shape=[2], sigma_data=0.7)


def saved(folder: Path, width: int) -> str:
    config = FlowMatchingConfig(kind="flow_matching",
                                network=MLPConfig(kind="mlp", width=width, blocks=1))
    with seeded(width):
        return save_teacher(folder, build_teacher(config, SPEC))


def source(folder: Path) -> FolderSource:
    return FolderSource(source="folder", folder=str(folder))


def test_teacher_and_guide_keep_their_fingerprints(tmp_path: Path) -> None:
    marks = [saved(tmp_path / "a", 16), saved(tmp_path / "a" / GUIDE, 8)]
    teacher, guide = (load(source(tmp_path / "a"), SPEC) for load in (import_teacher, import_guide))
    assert teacher is not None and guide is not None
    again = [save_teacher(tmp_path / name, model) for name, model in
             (("b", teacher), ("c", guide))]
    assert again == marks


def test_a_teacher_without_a_guide(tmp_path: Path) -> None:
    saved(tmp_path / "a", 16)
    assert import_guide(source(tmp_path / "a"), SPEC) is None


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none/config.json is missing"):
        import_teacher(source(tmp_path / "none"), SPEC)
    saved(tmp_path / "a", 16)
    with pytest.raises(MismatchError, match=r"shape \[2\].*shape \[3\]"):
        import_teacher(source(tmp_path / "a"), SPEC.model_copy(update={"shape": [3]}))
    saved(tmp_path / "a" / GUIDE, 8)
    write_json(tmp_path / "a" / GUIDE / "config.json", {"fingerprint": "0"})
    with pytest.raises(KDMError, match=r"guide"):
        import_guide(source(tmp_path / "a"), SPEC)
