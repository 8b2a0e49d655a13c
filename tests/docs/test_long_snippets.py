"""What the documentation says to type is typed: whole blocks, by bash, where the pages mean them.

`make test-docs-long` runs them all (ten minutes); what takes seconds is in test_snippets.py.

A block runs as it stands but for what its story says: the preset is `smoke`, whose networks are too
small to be any good, sizes are those that `smoke` has, and names stand in for one's own.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from ruamel.yaml import YAML

from kdm_core.networks.song_unet import SongUNet, SongUNetConfig
from kdm_core.pairs.store import PairStore
from tests.docs.test_snippets import BLOCKS, CHEAP, of, typed
from tests.support.edm_writer import edm_pickle
from tests.support.imports import ROOT
from tests.support.markdown import Block
from tests.support.project import copy_project, dvc, edit, environment, git, make_project
from tests.support.shell import commands


def block_of(page: str, words: str) -> Block:
    """The only block of a page that has these words."""
    found, = (block for block in BLOCKS if block.page == ROOT / page and words in block.text)
    return found


def put(text: str, instead: dict[str, str]) -> str:
    """A text with something else in place of what must stand there."""
    for old, other in instead.items():
        assert old in text, f"there is no {old} any more in:\n{text}"
        text = text.replace(old, other)
    return text


def parameters(page: str, words: str, instead: dict[str, str] | None = None) -> dict[str, Any]:
    """The part of params.yaml that a page gives in the block with these words."""
    text = put(block_of(page, words).text, instead or {})
    found: dict[str, Any] = YAML(typ="safe").load(text)
    return found


def bash(script: str, folder: Path) -> str:
    """What a script prints, which must succeed, typed in a folder by somebody whose name git knows.
    """
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    (home / ".gitconfig").write_text("[user]\n\tname = test\n\temail = test@localhost\n")
    done = subprocess.run(["bash", "-e", "-c", script], cwd=folder, text=True, check=False,
                          env=environment(HOME=str(home), OMP_NUM_THREADS="1"),
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{script}\n{done.stdout[-5000:]}"
    return done.stdout


# Where blocks are typed. Each makes a folder below `base`; `finished` is a project that has run.

def empty(finished: Path, base: Path) -> Path:
    folder = base / "empty"
    folder.mkdir()
    return folder


def clone(finished: Path, base: Path) -> Path:
    """Of this repository, with the environment that `make setup` makes."""
    git(base, "clone", "--quiet", ROOT.as_uri(), "clone")
    (base / "clone/.venv").symlink_to(sys.prefix)
    return base / "clone"


def new(finished: Path, base: Path) -> Path:
    return make_project(base / "new")


def project(finished: Path, base: Path) -> Path:
    return copy_project(finished, base / "project")


def retitled(finished: Path, base: Path) -> Path:
    """A project whose report has to be made again."""
    folder = project(finished, base)
    edit(folder, lambda params: params["report"].update(title="Another"))
    return folder


def project_and_answers(finished: Path, base: Path) -> Path:
    """What a rater filled in, who always took the picture on the left."""
    folder = project(finished, base)
    rows = "".join(f"me,{number},left\n" for number in range(1, 8))
    (folder / "answers.csv").write_text(f"rater,slide,choice\n{rows}")
    return folder


def project_and_upstream(finished: Path, base: Path) -> Path:
    folder = project(finished, base)
    git(base, "init", "--quiet", "--bare", "upstream")
    git(folder, "push", "--quiet", "--set-upstream", "../upstream", "HEAD")
    git(folder, "remote", "add", "origin", "../upstream")
    git(folder, "push", "--quiet", "--set-upstream", "origin", "HEAD")
    dvc(folder, "remote", "add", "--default", "store", str(base / "store"))
    return folder


def new_beside_publisher(finished: Path, base: Path) -> Path:
    """A project beside another one, whose pairs were pushed as the same page says."""
    publisher = project(finished, base)
    story = next(story for story in STORIES if story.words == "dvc push" and "shar" in story.page)
    bash(story.script(), publisher)
    return new(finished, base)


def pairs_of_others(finished: Path, base: Path) -> Path:
    """The project's pairs as others publish them: a file a pair, and an FID file with its noise."""
    folder = project(finished, base)
    bash("kdm pairs export data/pairs/pairs.zarr cifar10-cond --format published", folder)
    pairs = PairStore.open(folder / "data/pairs/pairs.zarr").read(range(400))
    np.savez(folder / "samples.npz", arr_0=np.moveaxis(pairs.sample, 1, -1), arr_1=pairs.label)
    np.save(folder / "noise.npy", pairs.noise.astype(np.float32))
    return folder


def pairs_alone(finished: Path, base: Path) -> Path:
    folder = empty(finished, base)
    noise = np.random.default_rng(0).standard_normal((60, 1, 8, 8), dtype=np.float32)
    np.savez(folder / "pairs.npz", noise=noise, samples=(np.tanh(noise) * 127 + 128).astype("u1"))
    return folder


def pickle_of_edm(finished: Path, base: Path) -> Path:
    """A small network in a file as EDM writes it."""
    config = SongUNetConfig(kind="song_unet", channels=16, multipliers=[1, 2], blocks=1,
                            attention=[4])
    shape = (3, 8, 8)
    folder = empty(finished, base)
    (folder / "models").mkdir()
    (folder / "models/edm-cifar10-32x32-uncond-vp.pkl").write_bytes(
        edm_pickle(SongUNet(config, shape, shape, True, 0), shape))
    return folder


def images(finished: Path, base: Path) -> Path:
    """Somebody's own images: bright and dark stripes."""
    folder = empty(finished, base)
    labels = np.arange(400) % 2
    noise = np.random.default_rng(0).integers(0, 60, (400, 8, 8))
    stripes = np.where(np.arange(8) % 2, 180, 0)
    pictures = np.where(labels[:, None, None] == 1, stripes, stripes[:, None]) + noise
    np.savez(folder / "cells.npz", images=pictures.astype(np.uint8), labels=labels)
    return folder


# What must have come of it, by the folder and what was printed.

def nothing(folder: Path, printed: str) -> None:
    """That all commands succeed is enough."""


def ran_an_experiment(folder: Path, printed: str) -> None:
    assert printed.count("Running stage 'train_student@kdm'") == 2
    assert printed.count("Running stage 'teacher'") == 1
    assert "students.kdm.model.latent" in printed.rpartition("Ran experiment(s): ")[2]
    assert (folder / "clothes/reports/report.html").stat().st_size > 10_000


def compared(folder: Path, printed: str) -> None:
    ran = re.findall(r"Running stage '(.+)'", printed)
    assert "train_student@kdm" in ran and "teacher" not in ran
    told = (folder / "compare.html").read_text(encoding="utf-8")
    assert "wide" in told and "Runs side by side" in told


def distils_own_images(folder: Path, printed: str) -> None:
    """What the page says next: its `data:`, its check, and the student of a later section."""
    cells, page = folder / "cells", "docs/quickstart.md"
    student = parameters(page, "kind: direct}", {"steps: 1200": "steps: 40"})
    edit(cells, lambda params: params.update(parameters(page, "source: npz") | student))
    bash("kdm params check\ndvc repro", cells)
    assert json.loads((cells / "reports/simple.json").read_text())["nfe"] == 1


def delivered(folder: Path, printed: str) -> None:
    assert "the verdict" in printed and (folder / "samples.png").stat().st_size > 500
    assert (folder / "student-project/reports/report.html").is_file()


def logged_json(folder: Path, printed: str) -> None:
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"time"')]
    assert any(line["stage"] == "report" for line in lines)


def pushed(folder: Path, printed: str) -> None:
    assert re.search(r"\d+ files pushed", printed)


def imported(folder: Path, printed: str) -> None:
    """And used, with the parameters that the page gives next."""
    values = parameters("docs/sharing.md", "location: shared/pairs.zarr")
    edit(folder, lambda params: params.update(values))
    assert "Running stage 'sample_pairs'" in bash("dvc repro sample_pairs", folder)
    ours, theirs = (PairStore.open(place / "data/pairs/pairs.zarr").content_hash()
                    for place in (folder, folder.parent / "project"))
    assert ours == theirs


def imported_all(folder: Path, printed: str) -> None:
    assert printed.count(": complete, fingerprint") == 3
    assert "the teacher makes these samples again" in printed


def has_both_remotes(folder: Path, printed: str) -> None:
    told = (folder / ".dvc/config").read_text()
    assert "s3://bucket/dvc" in told and "/mnt/share/dvc" in told


def runs_nothing(folder: Path, printed: str) -> None:
    _, _, there = printed.partition("files fetched")
    assert re.findall(r"Running stage '(.+)'", there) == ["plan"]
    assert (folder / "run/data/students/kdm/weights.safetensors").is_file()


def counted(folder: Path, printed: str) -> None:
    assert len(list((folder / "slides").glob("*.png"))) == 7 and "of    7" in printed


def flowed(folder: Path, printed: str) -> None:
    assert "Finished in state Completed" in printed


def drew_a_grid(folder: Path, printed: str) -> None:
    assert (folder / "grid.png").stat().st_size > 500


def exported(folder: Path, printed: str) -> None:
    drew_a_grid(folder, printed)
    assert (folder / "student.onnx").stat().st_size > 500 and "OWNER/NAME" in printed


class Story(NamedTuple):
    """A block that is typed whole.

    Attributes:
        page, words: the only block of that page with these words.
        place: makes the folder where it is typed, of a finished project and a folder to work in.
        check: what must have come of it.
        instead: what is typed in place of what stands there.
        without: lines that are left out, by how they begin, and why.
    """

    page: str
    words: str
    place: Callable[[Path, Path], Path]
    check: Callable[[Path, str], None] = nothing
    instead: dict[str, str] = {}
    without: dict[str, str] = {}

    def block(self) -> Block:
        return block_of(self.page, self.words)

    def script(self) -> str:
        """What is typed."""
        text = typed(self.block())
        for start in self.without:
            text, left_out = re.subn(rf"^{re.escape(start)}.*\n", "", text, flags=re.MULTILINE)
            assert left_out == 1, f"{self.page}: {start} is there {left_out} times"
        return put(text, self.instead)


SMOKE = {"--preset fashion-small": "--preset smoke"}
STUDENT = {"DIR": "data/students/kdm"}
STORIES = [
    Story("README.md", "kdm new clothes", clone, ran_an_experiment, SMOKE),
    Story("docs/quickstart.md", "kdm status", clone),
    Story("docs/quickstart.md", "dvc metrics show", project),
    Story("docs/quickstart.md", "dvc exp run", project, compared),
    Story("docs/quickstart.md", "kdm new cells", images, distils_own_images, SMOKE),
    Story("docs/observability.md", "KDM_LOG=json", retitled, logged_json),
    Story("docs/prefect.md", "python -m pipeline.flow ", project, flowed, without={
        "make deploy": "runs until Ctrl-C; tests/pipeline/flow/test_prefect.py deploys"}),
    # `smoke` has pairs for seven slides of the ten.
    Story("docs/evaluation.md", "kdm study tally", project_and_answers, counted,
          {"NAME": "kdm", "--out slides": "--out slides --slides 7"}),
    # The steps that it takes by itself, 2,000 of so few pairs, are minutes.
    Story("docs/sharing.md", "kdm distil", pairs_alone, delivered,
          {"--out student ": "--out student --steps 20 "}),
    Story("docs/sharing.md", "dvc push", project, pushed, {"s3://bucket/dvc": "../store"}),
    Story("docs/sharing.md", "dvc import", new_beside_publisher, imported, {"URL": "../project"}),
    Story("docs/sharing.md", "kdm pairs import", pairs_of_others, imported_all,
          {"--test 5000": "--test 50 --validation 50", "--steps 18": "--steps 5"}),
    Story("docs/storage.md", "/mnt/share/dvc", new, has_both_remotes),
    Story("docs/storage.md", "git clone", project_and_upstream, runs_nothing,
          {"URL": "../upstream"}),
    Story("docs/teachers.md", "--kind edm", pickle_of_edm, drew_a_grid),
    Story("docs/using.md", "kdm card", project, exported,
          {**STUDENT, "card NAME": "card kdm"},
          {"kdm push": "needs the hub; tests/kdm_core/sharing/test_hub.py pushes"}),
]
ELSEWHERE = {
    r"make (demo|test|setup|lint|docs|test-slow|test-docs-long)\b":
        "sets up an environment, which takes a network; what it then runs is run in tests",
    r"make drills": "is a set of tests itself",
    r"pip install |kdm weights fetch": "needs a network",
    r"kdm play\b": "runs until Ctrl-C; tests/browser/test_play.py plays",
    r"kdm reproduce (--list|table5|figure13)":
        "takes eight experiments; tests/pipeline/project/test_reproduction.py runs shorter ones",
}
"""Commands that no test types as they stand, and why."""


def test_every_command_is_typed_somewhere() -> None:
    """By a story, or by test_snippets.py, or there is a reason why it is not."""
    stories = [story.block() for story in STORIES]
    open_ends = [f"{block}: {' '.join(words)}" for block in of("sh", "")
                 if not block.reason and block not in stories
                 for words in commands(typed(block))
                 if not CHEAP.match(" ".join(words))
                 and not any(re.match(known, " ".join(words)) for known in ELSEWHERE)]
    assert not open_ends, f"add a story or a reason: {open_ends}"
    assert all(story.script() for story in STORIES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: f"{story.page}: {story.words}")
def test_blocks_run(story: Story, finished: Path, tmp_path: Path) -> None:
    folder = story.place(finished, tmp_path)
    story.check(folder, bash(story.script(), folder))
