"""Blocks of the documentation hold: Python runs, YAML is valid, commands run or could be typed.

What can be run only elsewhere says why in a comment above it: `<!-- not run: needs a GPU -->`.
Its commands are looked at all the same.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from kdm_core.samples import SampleSpec
from kdm_core.students.hierarchical import HierarchicalConfig
from kdm_core.students.kdm import KDMConfig
from pipeline.kdm.cli import app
from tests.support import pairs
from tests.support.imports import ROOT
from tests.support.markdown import PAGES, Block, fences
from tests.support.shell import commands, problem, wrong_fields

BLOCKS = [block for page in PAGES for block in fences(page)]
CHEAP = re.compile("|".join((
    r"kdm (student info|export|status|doctor|preset)", r"kdm params (check|show)",
    r"kdm sample (?!.*(--device|--n 50000))", r"kdm pairs (info|verify|repair|export)",
    r"kdm teacher (info|sample)", r"kdm weights list", r"kdm reproduce .*--dry-run")))
"""Commands that take seconds and change nothing elsewhere."""


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def test_every_block_is_of_a_known_language() -> None:
    assert [f"{block}: {block.language}" for block in BLOCKS
            if block.language not in ("", "sh", "python", "yaml", "json")] == []


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_parameters_are_valid(block: Block) -> None:
    values = YAML(typ="safe", pure=True).load(block.text)
    assert block.reason or wrong_fields(values) == []


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_is_valid(block: Block) -> None:
    json.loads(block.text)


def typed(block: Block) -> str:
    """What a block says to type: all of a script, and of a record what follows a prompt."""
    return block.text if block.language else "".join(
        f"{line[2:]}\n" for line in block.text.splitlines() if line.startswith("$ "))


@pytest.mark.parametrize("block", of("sh", ""), ids=str)
def test_commands_exist(block: Block) -> None:
    for words in commands(typed(block)):
        found = problem(words)
        if found is None:
            assert block.reason, f"{words[0]} is not known here: say why it is not run"
        assert not found, f"{' '.join(words)}: {found}"


@pytest.fixture(scope="module")
def prepared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project with what the pages assume beside it: pairs of cats, a hierarchical
    student, and the names that stand for one's own."""
    folder = tmp_path_factory.mktemp("docs") / "project"
    shutil.copytree(finished, folder, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "SPEC", pairs.SPEC.model_copy(update={"label_names": ["cat", "dog"]}))
        pairs.small(folder / "pairs.zarr")
    network = {"kind": "unet", "channels": 8, "multipliers": [1, 2]}
    config = HierarchicalConfig.model_validate(
        {"kind": "hierarchical", "denoiser": {"kind": "denoiser", "network": network}})
    digits = SampleSpec(kind="image", shape=[1, 8, 8], sigma_data=0.5, label_names=[*"0123456789"])
    config.build(digits).save(folder / "data/students/levels")
    for name, place in {"DIR": "data/students/kdm", "STORE": "data/pairs/pairs.zarr",
                        "student": "data/students/kdm", "my-teacher": "data/teacher"}.items():
        (folder / name).symlink_to(place)
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def pages(*languages: str) -> list[Path]:
    return list(dict.fromkeys(block.page for block in of(*languages) if not block.reason))


@pytest.mark.parametrize("page", pages("python"), ids=lambda page: str(page.relative_to(ROOT)))
def test_python_runs(page: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a page in one interpreter, as who reads it types it, with a small student by
    default."""
    small = KDMConfig.model_validate({
        "encoder": {"kind": "mlp", "width": 16, "blocks": 1},
        "decoder": {"kind": "mlp", "width": 16, "blocks": 1},
        "latent": 8, "operator": {"kind": "dense"}})
    monkeypatch.setattr("kdm_core.students.train.default_student", lambda samples: small)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in fences(page):
        if block.language == "python" and not block.reason:
            # Errors name the page's line.
            code = compile("\n" * block.line + block.text, str(page), "exec", dont_inherit=True)
            exec(code, names)


@pytest.mark.parametrize("page", pages("sh"), ids=lambda page: str(page.relative_to(ROOT)))
def test_cheap_commands_run(page: Path, here: Path) -> None:
    for block in fences(page):
        for words in commands(typed(block)):
            if CHEAP.match(" ".join(words)) and not block.reason:
                done = CliRunner().invoke(app, words[1:])
                assert done.exit_code == 0, f"{block}: {' '.join(words)}\n{done.output}"
