"""The blind human study: slides that tell nothing, a key that fits them, and an exact count."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner, Result

from kdm_core.errors import DataError, KDMError
from kdm_core.noise import draw
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block, PairStore
from kdm_core.samples import SampleSpec
from kdm_core.serialization import write_json
from kdm_core.sharing.folder import save_student
from kdm_core.solvers import FixedSolver
from kdm_core.studies.collages import (
    Answer,
    Count,
    Key,
    draw_sides,
    draw_slides,
    read_answers,
    read_key,
    tally,
)
from kdm_core.values import from_uint8, to_uint8
from pipeline.kdm.cli import app
from tests.support.students import IMAGES, POINTS, make_student

KEY = Key(student="kdm", fingerprint="f" * 64, pairs="p" * 64, seed=0, side=2,
          students=["left", "right", "right"])


@given(st.integers(1, 40), st.integers(0, 2**32))
def test_sides_are_balanced_and_a_function_of_the_seed(slides: int, seed: int) -> None:
    sides = draw_sides(slides, seed)
    assert len(sides) == slides and sides == draw_sides(slides, seed)
    assert abs(sides.count("left") - sides.count("right")) == slides % 2


def test_every_slide_is_on_either_side_equally_often() -> None:
    for slides in (1, 2, 5):
        left = np.array([[side == "left" for side in draw_sides(slides, seed)]
                         for seed in range(2000)])
        assert np.abs(left.mean(axis=0) - 0.5).max() < 0.05


def test_slides_show_the_samples_at_their_places() -> None:
    """Images of one value each, so that every tile of a slide says which it is."""
    values = torch.arange(24).reshape(2, 12)
    teacher, student = (from_uint8(row[:, None, None, None].expand(12, 1, 4, 4) * 10)
                        for row in values)
    pictures = draw_slides(teacher, student, ["left", "right", "right"], 2)
    for index, (picture, place) in enumerate(zip(pictures, ("left", "right", "right"),
                                                 strict=True)):
        side = 2 * 98 - 2  # 4 pixels are shown 24-fold, with 2 pixels between
        assert picture.shape == (side, 2 * side + side // 8, 3)
        assert (picture[:, side : side + side // 8] == 255).all()
        left, right = picture[:, :side], picture[:, -side:]
        rows = values[:, 4 * index : 4 * index + 4] * 10
        for collage, wanted in zip((left, right), rows.flip(0) if place == "left" else rows,
                                   strict=True):
            assert (collage[::98, ::98, 0].flatten() == wanted.numpy()).all()
            assert (collage[48::98, 48::98, 2].flatten() == wanted.numpy()).all()


def test_samples_that_cannot_be_shown() -> None:
    images = torch.zeros(7, 3, 4, 4)
    with pytest.raises(KDMError, match="2 slides of 2 × 2 need 8 unseen pairs, there are 7"):
        draw_slides(images, images, ["left", "right"], 2)
    for shape in ((9, 2), (9, 2, 4, 4)):
        with pytest.raises(KDMError, match="no pictures"):
            draw_slides(torch.zeros(shape), torch.zeros(shape), ["left"], 2)


# ---- counting

@pytest.mark.parametrize(("student", "n"), [(5, 5), (0, 4), (3, 10), (165, 300), (7, 13)])
def test_the_p_value_is_the_exact_binomial_one(student: int, n: int) -> None:
    ways = [comb(n, k) for k in range(n + 1)]
    wanted = sum(w for w in ways if w <= ways[student]) / 2**n
    assert Count(student, n).p_value == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("student", "n"), [(5, 5), (0, 4), (3, 10), (165, 300)])
def test_the_interval_is_clopper_and_pearsons(student: int, n: int) -> None:
    """At its ends the observed count, or one more extreme, has a chance of 2.5 %."""
    low, high = Count(student, n).interval()

    def chance(p: float, counts: range) -> float:
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    assert low == 0 if student == 0 else chance(low, range(student, n + 1)) == pytest.approx(0.025)
    assert high == 1 if student == n else chance(high, range(student + 1)) == pytest.approx(0.025)
    assert low <= Count(student, n).ratio <= high


def test_the_papers_table() -> None:
    count = Count(165, 300)
    assert count.ratio == 0.55
    assert count.p_value == pytest.approx(0.094, abs=0.001)
    assert count.interval() == pytest.approx((0.492, 0.607), abs=0.001)


def test_counts_of_raters_and_slides() -> None:
    found = tally([Answer("b", 1, True), Answer("a", 1, False), Answer("b", 2, True)])
    assert found.overall == Count(2, 3)
    assert list(found.raters.items()) == [("a", Count(0, 1)), ("b", Count(2, 2))]
    assert found.slides == {1: Count(1, 2), 2: Count(1, 1)}


# ---- reading

def table(folder: Path, text: str, name: str = "answers.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_answers_as_spreadsheets_save_them(tmp_path: Path) -> None:
    path = table(tmp_path, "Rater,Slide,Choice\r\n Ada ,01,left\r\n\r\nAda,2,LEFT\r\n,,\r\n"
                 '"Lovelace, A.",3,right\r\n', encoding="utf-8-sig")
    more = table(tmp_path, "rater,slide,choice\nBob,3,left\n", "bob.csv")
    assert read_answers([path, more], KEY) == [
        Answer("Ada", 1, True), Answer("Ada", 2, False), Answer("Lovelace, A.", 3, True),
        Answer("Bob", 3, False)]


@pytest.mark.parametrize(("text", "saying"), [
    ("rater,slide,choice\na,1,left\na,2,\n", "answers.csv, line 3: the choice is ''"),
    ("rater,slide,choice\na,1,both\n", "line 2: the choice is 'both'; write left or right"),
    ("rater,slide,choice\n,1,left\n", "line 2: no rater"),
    ("rater,slide,choice\na,0,left\n", "line 2: there is no slide '0'; they are 1 to 3"),
    ("rater,slide,choice\na,4,left\n", "line 2: there is no slide '4'"),
    ("rater,slide,choice\na,-1,left\n", "there is no slide '-1'"),
    ("rater,slide,choice\na,1.0,left\n", "there is no slide '1.0'"),
    ("rater,slide,choice\na,²,left\n", "there is no slide '²'"),
    ("rater,slide,choice\na,١,left\n", "there is no slide"),
    (f"rater,slide,choice\na,{'1' * 5000},left\n", "line 2: there is no slide"),
    ("rater,slide,choice\na,1,left,right\n", "line 2: 4 columns instead of 3"),
    ("rater,slide,choice\na,1\n", "line 2: 2 columns instead of 3"),
    ("rater,slide,choice\na,1,left\na,01,right\n",
     "line 3: a has rated slide 1 in .*answers.csv, line 2 already"),
    ("a,1,left\n", "line 1: the header is not rater,slide,choice"),
    ("rater;slide;choice\na;1;left\n", "line 1: the header .* with commas"),
    ("", "line 1: the header"),
    ("rater,slide,choice\n", "hold no answers"),
    ('rater,slide,choice\na,1,"left\n', "no CSV table in UTF-8"),
    ("rater,slide,choice\na" + "a" * 200_000 + ",1,left\n", "no CSV table in UTF-8"),
])
def test_malformed_answers_are_refused(tmp_path: Path, text: str, saying: str) -> None:
    with pytest.raises(DataError, match=saying):
        read_answers([table(tmp_path, text)], KEY)


def test_tables_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.csv is missing"):
        read_answers([tmp_path / "nowhere.csv"], KEY)
    path = table(tmp_path, "rater,slide,choice\nZoë,1,left\n", encoding="latin-1")
    with pytest.raises(DataError, match="no CSV table in UTF-8"):
        read_answers([path], KEY)


def test_the_same_table_twice_is_refused(tmp_path: Path) -> None:
    first = table(tmp_path, "rater,slide,choice\na,1,left\n")
    second = table(tmp_path, "rater,slide,choice\na,1,left\n", "b.csv")
    with pytest.raises(DataError, match="b.csv, line 2: a has rated slide 1 in .*answers.csv"):
        read_answers([first, second], KEY)
    with pytest.raises(DataError, match="answers.csv, line 2: a has rated slide 1"):
        read_answers([first, first], KEY)


def test_keys_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    with pytest.raises(DataError, match="key.json is missing"):
        read_key(path)
    for wrong in ("[]", "{}", json.dumps(KEY.model_dump() | {"students": ["left", "above"]}),
                  json.dumps(KEY.model_dump() | {"students": []}),
                  json.dumps(KEY.model_dump() | {"more": 1})):
        path.write_text(wrong)
        with pytest.raises(DataError, match="key.json is no answer key"):
            read_key(path)
    path.write_text("{")
    with pytest.raises(DataError, match="key.json is not valid JSON"):
        read_key(path)


# ---- the commands

def make_run(folder: Path, spec: SampleSpec = IMAGES, pairs: str | None = None) -> StoreSpec:
    """A store of made-up pairs and a student of it, of which 20 are the test split."""
    store = StoreSpec(
        samples=spec, teacher="t" * 64, noise_seed=1, noise_dtype="float16", noise_scale=80.0,
        sample_dtype="uint8" if spec.kind == "image" else "float32",
        solver=FixedSolver(kind="heun", steps=18), times=[1.0, 0.0], nfe=35, compute_batch=4,
        precision="fp32", splits={"test": 20, "validation": 2, "train": 2}, chunk=4, shard=24)
    noise, labels = draw(1, range(24), spec.sample_shape, "float16", spec.num_classes)
    samples = np.random.default_rng(0).integers(0, 256, (24, *spec.shape)).astype(
        store.sample_dtype)
    target = PairStore.create(folder / "data/pairs/pairs.zarr", store, {})
    target.write_shard(0, Block(noise, samples, labels, np.arange(24)))
    save_student(folder / "data/students/kdm", make_student(spec=spec),
                 {"pairs": pairs or store.fingerprint})
    return store


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kdm(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["study", *arguments])


COLLAGES = ("collages", "kdm", "--slides", "2", "--side", "3", "--device", "cpu")


def test_a_study_from_slides_to_the_count(folder: Path) -> None:
    make_run(folder)
    made = kdm(*COLLAGES, "--out", "slides", "--key", "keys/key.json", "--seed", "3")
    assert made.exit_code == 0, made.output
    assert {path.name for path in Path("slides").iterdir()} == {
        "01.png", "02.png", "answers.csv", "README.txt"}
    key = read_key(Path("keys/key.json"))
    assert key.students == draw_sides(2, 3) and key.student == "kdm"
    assert Path("slides/answers.csv").read_text() == "rater,slide,choice\n,1,\n,2,\n"

    store = PairStore.open(Path("data/pairs/pairs.zarr"))
    block = store.read(range(18))
    wanted = to_uint8(make_student().generate(torch.from_numpy(block.noise).float(),
                                              torch.from_numpy(block.label), "fp32")).numpy()
    side = 3 * 98 - 2
    for index, place in enumerate(key.students):
        with Image.open(f"slides/0{index + 1}.png") as picture:
            assert not picture.info
            pixels = np.asarray(picture)[..., 0].astype(int)
        collages = {"left": pixels[:, :side], "right": pixels[:, -side:]}
        mine, theirs = collages.pop(place), next(iter(collages.values()))
        for i in range(9):
            y, x = i // 3 * 98, i % 3 * 98
            tile = np.s_[y : y + 96 : 12, x : x + 96 : 12]
            assert np.array_equal(theirs[tile], block.sample[9 * index + i, 0])
            # Batches of another size round otherwise.
            assert np.abs(mine[tile] - wanted[9 * index + i, 0]).max() <= 1

    left, right = ("left", "right") if key.students[0] == "left" else ("right", "left")
    table(folder, f"rater,slide,choice\nada,1,{left}\nada,2,{left}\nbob,1,{left}\n")
    counted = kdm("tally", "keys/key.json", "answers.csv")
    assert counted.exit_code == 0, counted.output
    first, second = (key.students[0] == left, key.students[1] == left)
    assert first and not second  # with two slides the student is once at either side
    rows = {line.split("   ")[0].strip(): line for line in counted.stdout.splitlines()}
    assert any("2 of    3 =  66.7%" in row and row.startswith("all") for row in rows.values())
    assert any("1 of    2 =  50.0%" in row and row.startswith("rater ada")
               for row in rows.values())
    assert any("0 of    1 =   0.0%" in row and row.startswith("slide 02")
               for row in rows.values())


def test_malformed_answers_are_one_message(folder: Path) -> None:
    write_json(folder / "key.json", KEY.model_dump())
    table(folder, "rater,slide,choice\nada,1,left\nada,9,left\n")
    refused = kdm("tally", "key.json", "answers.csv")
    assert refused.exit_code == 1
    assert refused.stderr == "error: answers.csv, line 3: there is no slide '9'; they are 1 to 3\n"


@pytest.mark.parametrize(("arguments", "saying"), [
    (("--out", "slides", "--key", "slides/key.json"), "would lie among the slides"),
    (("--out", "slides", "--key", "slides/../slides/deep/key.json"), "among the slides"),
    (("--out", "full", "--key", "key.json"), "full exists and is no empty folder"),
    (("--out", "slides", "--key", "full/file"), "full/file exists already"),
    (("--out", "slides", "--key", "key.json", "--side", "4"),
     "2 slides of 4 × 4 need 32 unseen pairs, there are 20"),
])
def test_studies_that_are_refused(folder: Path, arguments: tuple[str, ...], saying: str) -> None:
    make_run(folder)
    (folder / "full").mkdir()
    (folder / "full/file").write_text("kept")
    before = sorted(folder.rglob("*"))
    result = kdm(*COLLAGES, *arguments)
    assert result.exit_code == 1 and saying in result.stderr, result.output
    assert sorted(folder.rglob("*")) == before


def test_students_that_cannot_be_studied(folder: Path) -> None:
    arguments = (*COLLAGES, "--out", "slides", "--key", "key.json")
    assert "data/students/kdm is no folder" in kdm(*arguments).stderr
    make_run(folder, pairs="x" * 64)
    assert "was not distilled from the pairs" in kdm(*arguments).stderr
    assert not Path("slides").exists() and not Path("key.json").exists()


def test_points_are_no_pictures(folder: Path) -> None:
    make_run(folder, POINTS)
    refused = kdm(*COLLAGES, "--out", "slides", "--key", "key.json")
    assert "no pictures" in refused.stderr and not Path("slides").exists()
