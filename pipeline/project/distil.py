"""From pairs to a student in one go: a project of pairs alone, made, filled in and run."""

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from kdm_core.errors import KDMError
from kdm_core.pairs.spec import StoreSpec
from kdm_core.serialization import write_atomic
from kdm_core.students.defaults import default_losses, default_student, default_training
from pipeline.params.run import parse_params
from pipeline.project.files import preset_path
from pipeline.project.new import make_project
from pipeline.project.repro import child_environment
from pipeline.runtime import paths

PRESET = "pairs"
STUDENT = "student"
"""Its name in the project."""
PARAMS = "params.yaml"


class DistilError(KDMError):
    """Pairs cannot be distilled there."""


class Places(NamedTuple):
    """Where all lies: what was asked for, and the project that makes it."""

    out: Path
    project: Path

    @property
    def student(self) -> Path:
        return self.project / paths.STUDENTS / STUDENT

    @property
    def evaluation(self) -> Path:
        return self.project / paths.EVALUATION / STUDENT / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.project / paths.REPORTS / "report.html"


def places(out: Path) -> Places:
    """Where a student is to be, and its project beside it.

    Raises:
        DistilError: something is there already.
    """
    out = out.resolve()
    if out.exists():
        raise DistilError(f"{out} exists already, and nothing is overwritten: name another folder")
    return Places(out, out.with_name(f"{out.name}-project"))


def make(project: Path, location: str, spec: StoreSpec, steps: int | None) -> list[str]:
    """Make the project of a store's pairs, unless it is there.

    Args:
        location: of the store.
        steps: of the training; None for as many as suit so many pairs.

    Returns:
        What was done, a line each.

    Raises:
        DistilError: the project there is of other pairs or of another training.
        KDMError: as `make_project`.
    """
    text = parameters(location, spec, steps)
    file = project / PARAMS
    if (project / "dvc.yaml").is_file():
        if file.read_text(encoding="utf-8") != text:
            raise DistilError(f"{file} is of other pairs or another training, or somebody has "
                              f"worked on it: `cd {project} && dvc repro` goes on with it, and "
                              "another --out begins anew")
        return [f"going on in {project}"]
    said = make_project(project, PRESET)[:1]
    write_atomic(file, text.encode())
    return said


def parameters(location: str, spec: StoreSpec, steps: int | None) -> str:
    """The preset with what suits these pairs in its place.

    Raises:
        ParamsError: nothing does; the message says what.
    """
    yaml = YAML()
    yaml.width = 1000  # a long path stays on its line
    values: Any = yaml.load(preset_path(PRESET).read_text(encoding="utf-8"))
    samples = spec.samples
    images = samples.kind == "image"  # of latents nobody here knows the decoder
    classes = samples.num_classes if images else 0
    model = default_student(samples)
    values["pairs"]["location"] = location
    student = values["students"][STUDENT]
    student["model"] = written(model)
    student["losses"] = written(default_losses(model, samples))
    student["training"] = written(default_training(spec.splits["train"], steps))
    if not classes:
        values["reference"]["classifier"] = None
    if not images:
        values["evaluation"] |= {"extractors": [], "lpips": []}
    elif not classes:
        values["evaluation"]["extractors"] = [{"kind": "vgg16", "resolution": 32}]
    parse_params(values, f"the preset {PRESET}")
    buffer = io.StringIO()
    yaml.dump(values, buffer)
    return buffer.getvalue()


def written(config: Any) -> dict[str, Any]:
    """A configuration as a person would write it, without defaults but with its kinds."""
    found: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)
    return found


def run(project: Path, *stages: str) -> None:
    """Run stages of a project and all before them, or all; what is done already is not done again.

    Raises:
        DistilError: one failed; it has said why.
        KeyboardInterrupt: Ctrl-C, of which a terminal tells DVC, too; it has ended.
    """
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro", *stages], cwd=project,
                          env=child_environment()) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # killed, it would leave its locks, and complain of them the next time
            raise
    if code:
        raise DistilError(f"the run in {project.absolute()} did not come to its end, for the "
                          "reason above; give this command again to go on with it")


def deliver(found: Places, card: Callable[[], str]) -> None:
    """Copy the finished student to where it is wanted, with its model card, all at once."""
    work = found.project / paths.WORK / "distil"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(found.student, work)
    write_atomic(work / "README.md", card().encode())
    found.out.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work, found.out)
