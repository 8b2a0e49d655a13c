"""The project in which a table or figure is reproduced."""

import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.params.reading import FILE
from pipeline.project.files import preset_path
from pipeline.project.git_program import git
from pipeline.project.new import make_project
from pipeline.project.reproduction.paper import ReproductionError
from pipeline.project.reproduction.running import has_commit, require_committer

MESSAGE = "Project of the preset {}"


@contextmanager
def entered(
    preset: str | None, folder: Path | None, dry_run: bool, say: Callable[[str], None]
) -> Iterator[Path]:
    """The folder to work in: a project of a preset, which is made unless it is there, or the one
    that is there. Of a dry run, with a preset, a folder with its parameters alone.

    Raises:
        PresetError: there is no such preset.
        PipelineError, NewError, ReproductionError: no project can be had there.
    """
    if preset is None:
        yield folder or Path()
    elif dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch, FILE).write_bytes(preset_path(preset).read_bytes())
            yield Path(scratch)
    else:
        root = folder or Path(f"reproduce-{preset}")
        make(root, preset, say)
        yield root


def make(root: Path, preset: str, say: Callable[[str], None]) -> None:
    """Make a project of a preset and commit it, which DVC's experiments need. Raises as `entered`.
    """
    file = root / FILE
    wanted = preset_path(preset).read_bytes()
    if (root / "dvc.yaml").is_file():
        if not file.is_file() or file.read_bytes() != wanted:
            raise ReproductionError(f"{file} is not the preset {preset}, or somebody has worked on "
                                    "it: name another --dir, or leave --preset out and work there "
                                    f"(cd {shlex.quote(str(root))})")
    else:
        for line in make_project(root, preset)[:1]:
            say(line)
    if not has_commit(root) or git(root, "status", "--porcelain", "--", FILE.name).stdout:
        require_committer(root)
        git(root, "commit", "--quiet", "--message", MESSAGE.format(preset), "--", ".")
