"""`kdm play`: what it draws, which students it finds, and what it refuses."""

import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from kdm_core.errors import KDMError
from kdm_core.noise import draw
from kdm_core.sharing.folder import save_student
from kdm_core.students.hierarchical import Band
from kdm_core.studies.interpolation import evenly, great_circle
from pipeline.kdm.cli import app
from pipeline.play.drawing import Wish, address, draw_student, draw_teacher, make, stopwatch, wished
from pipeline.play.finding import Player, PlayError, find_players
from pipeline.play.noises import draw_noises
from pipeline.play.page import ANY, Page
from tests.support.pairs import CPU
from tests.support.play import NFE, make_run
from tests.support.students import POINTS, make_student


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder)
    return folder


@pytest.fixture(autouse=True)
def folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def players() -> dict[str, Player]:
    return {player.name: player for player in find_players([], CPU)}


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["play", *arguments])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
    return result.stderr


def test_noises_lie_on_the_arc_between_both(players: dict[str, Player]) -> None:
    student = players["levels"].student
    noises = [draw_noises(student, 6, 3, 4, place / 4, None) for place in range(5)]
    whole = great_circle(noises[0].own, noises[0].other, evenly(5))
    assert torch.equal(torch.stack([each.own for each in noises], dim=1), whole)
    expected, _ = draw(4, range(6), student.spec.sample_shape)
    assert torch.equal(noises[4].own, noises[0].other)
    assert torch.equal(noises[0].other, torch.from_numpy(expected))


def test_pictures_are_the_samples_of_the_seed(players: dict[str, Player]) -> None:
    for player in players.values():
        student, fp32 = player.student, player.precision
        assert fp32 == "fp32"  # the pairs'
        drawn = draw_student(player, Wish(5, seed=3)).images
        assert torch.equal(drawn, student.sample(5, 3, precision=fp32))
        of_class = draw_student(player, Wish(5, seed=3, label=1)).images
        assert torch.equal(of_class, student.sample(5, 3, "b", fp32))
        there = draw_student(player, Wish(5, seed=3, label=1, other_seed=8, weight=1)).images
        assert torch.equal(there, student.sample(5, 8, "b", fp32))


def test_the_teacher_draws_the_same_noise(players: dict[str, Player]) -> None:
    player, wish = players["levels"], Wish(4, seed=2, label=0, weight=0.5)
    assert player.teacher is not None
    drawn, noises = draw_teacher(player, wish), wished(player, wish)
    assert drawn.evaluations == NFE and drawn.seconds > 0
    teacher = player.teacher
    wanted = teacher.model.sample(noises.own, noises.labels, teacher.solver, teacher.precision)
    assert torch.equal(drawn.images, wanted.state)
    assert draw_student(player, wish).evaluations == 1


def test_modes_and_states(players: dict[str, Player]) -> None:
    player, wish = players["levels"], Wish(4, order="rotation", first=0.2, last=0.7)
    student, noises = player.student, wished(player, wish)
    band = Band("rotation", 0.2, 0.7)
    for modes, other in (("exchange", noises.other), ("drop", None)):
        changed = make(player, wish._replace(modes=modes), noises)
        assert torch.equal(changed, student.edit(noises.own, band, noises.labels, other))
        assert not torch.equal(changed, make(player, wish, noises))
    states = student.states(noises.own, [0.4], noises.labels)[:, 0]
    torch.testing.assert_close(make(player, wish._replace(position=0.4), noises), 0.5 * states)
    with pytest.raises(KDMError, match="From must be below To"):
        make(player, wish._replace(modes="drop", first=0.7), noises)
    # A student without any is left as it is.
    mine = players["mine"]
    assert torch.equal(draw_student(mine, wish._replace(modes="drop", position=1.0)).images,
                       draw_student(mine, Wish(4)).images)


def test_page_shows_both_or_why_not(players: dict[str, Player], monkeypatch: pytest.MonkeyPatch
                                    ) -> None:
    page = Page(list(players.values()), 4)
    assert page.along
    assert page.classes("mine") == [("any", ANY), ("a", 0), ("b", 1), ("c", 2)]
    controls = (ANY, 0, 1, 0.0, "decay", 0.5, 1.0, "keep", 0.0)
    picture, seconds = page.draw_student("levels", *controls)
    assert seconds > 0 and "1 evaluation<" in picture and "4 images of levels" in picture
    beside = page.draw_teacher("levels", True, seconds, *controls)
    assert f"{NFE} evaluations" in beside and "times as long" in beside
    assert "waits" in page.draw_teacher("levels", False, seconds, *controls)
    for field, place in (("seed", 1), ("second seed", 2)):
        for wrong in (None, -1):
            broken = [*controls[:place], wrong, *controls[place + 1:]]
            assert f"{field}: give a whole number" in page.draw_student("levels", *broken)[0]
    page.players["<b>"] = players["mine"]._replace(name="<b>", teacher=None, absent="a < b")
    assert "<b>" not in page.draw_student("<b>", *controls)[0]
    assert "a &lt; b" in page.draw_teacher("<b>", True, 0.0, *controls)


def test_no_picture_of_values_that_are_not_finite() -> None:
    assert address(torch.zeros(2, 3, 4, 4)).startswith("data:image/png;base64,")
    with pytest.raises(KDMError, match="not finite"):
        address(torch.full((2, 1, 4, 4), torch.nan))


def test_times_are_read_easily() -> None:
    assert [stopwatch(seconds) for seconds in (0.00314, 0.1118, 0.9999, 12.345)] == [
        "3.14 ms", "112 ms", "1 s", "12.3 s"]


def test_a_student_without_its_teacher_says_why(folder: Path) -> None:
    def absent(*sources: str) -> list[str]:
        found = find_players(list(sources), CPU)
        assert all((player.teacher is None) == bool(player.absent) for player in found)
        return [player.absent for player in found]

    assert absent() == ["", ""]
    save_student(folder / "foreign", make_student(), {"teacher": "t" * 64})
    assert "not the one" in absent("foreign")[0]
    (folder / "data/teacher/weights.safetensors").write_bytes(b"")
    assert "cannot be used" in absent("foreign")[0]
    shutil.rmtree(folder / "data/pairs")
    assert "no data/pairs/pairs.zarr here" in absent("foreign")[0]
    shutil.rmtree(folder / "data/teacher")
    assert "no data/teacher here" in absent("foreign")[0] or "no data here" in absent("foreign")[0]


def test_students_of_one_name_keep_their_folders_apart(folder: Path) -> None:
    save_student(folder / "mine", make_student(), {})
    found = find_players(["mine", "data/students/mine", "data/students/levels"], CPU)
    assert [player.name for player in found] == ["mine", "data/students/mine", "levels"]


def test_what_cannot_be_played_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_student(folder / "points", make_student(spec=POINTS), {})
    said = refused("points", "--port", "0")
    assert "points makes points" in said and "kdm sample DIR --out points.png" in said
    channels = make_student().spec.model_copy(update={"shape": [2, 8, 8]})
    save_student(folder / "two", make_student(spec=channels), {})
    assert "2 channels" in refused("two", "--port", "0")
    assert "nothere is no folder" in refused("nothere", "--port", "0")
    monkeypatch.chdir(folder.parent)
    said = refused("--port", "0")
    assert "no students in" in said and "kdm play DIR" in said
    with pytest.raises(PlayError):
        find_players([], CPU)


def test_port_in_use_and_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused("mine", "--port", str(port))
    assert f"--port: {port} cannot be taken" in said and "0 for any" in said
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'kdm-distill[play]'" in refused("mine")
