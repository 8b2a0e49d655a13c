"""Labels mean the same in every command and in all of a student's functions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kdm_core
from kdm_core import KDM
from kdm_core.errors import Adapted, KDMError
from kdm_core.labels import as_labels, in_turn, parse_classes
from kdm_core.operators import ContinuousConfig
from kdm_core.samples import SampleSpec
from kdm_core.sharing.export import Sampler
from pipeline.kdm.teacher import class_names
from tests.support.students import IMAGES, POINTS, make_student

DIGITS = [str(number) for number in range(12)]
SORTED = sorted(DIGITS)  # 0, 1, 10, 11, 2, …
SHAPES = ["circle", "square", "a, b", "triangle"]


# In words


@pytest.mark.parametrize(("text", "names", "numbers"), [
    ("circle", SHAPES, [0]), ("triangle, square ,0", SHAPES, [3, 1, 0]),
    ("2", SHAPES, [2]), ('"a, b",circle', SHAPES, [2, 0]), ("a, b", SHAPES, [2]),
    ("2,10", DIGITS, [2, 10]), ("0", SORTED, [0]), ("0,0,1", SHAPES, [0, 0, 1]),
    ("1", ["cat", "1"], [1]),
])
def test_classes_in_words(text: str, names: list[str], numbers: list[int]) -> None:
    assert parse_classes(text, names) == numbers


def test_a_name_wins_over_a_number_and_it_is_said() -> None:
    """`--labels 2` of classes 0, 1, 10, 11, 2, … is the class named 2, in all commands."""
    with pytest.warns(Adapted, match="^labels: 2 is taken for the class of that name.*number 4"):
        assert parse_classes("2", SORTED) == [4]
    with pytest.warns(Adapted):
        assert in_turn("2", 3, SORTED) == [4, 4, 4]
    with pytest.warns(Adapted):
        found = as_labels(["2"], SORTED, 1, "student")
    assert found is not None and found.tolist() == [4]


@pytest.mark.parametrize(("text", "names", "message"), [
    ("cirle", SHAPES, "no class 'cirle'; near are circle; the classes are"),
    ("Circle", SHAPES, "near are circle"),
    ("4", SHAPES, "no class '4'.*or 0 to 3"), ("-1", SHAPES, "no class '-1'"),
    ("2.9", SHAPES, r"no class '2\.9'"), ("02", SHAPES, "no class '02'"),
    ("٣", SHAPES, "no class '٣'"), ("9" * 5000, SHAPES, "no class"),
    ("0", [*"123"], r"no class '0'; the classes are \[1, 2, 3\]$"),
    ("0,,1", SHAPES, "empty"), ("0,", SHAPES, "empty"), (" ", SHAPES, "empty"),
    ("a", ["a", "a"], "2 classes are named a: give a number"), ("0", [], "no classes"),
])
def test_what_is_no_class_in_words(text: str, names: list[str], message: str) -> None:
    with pytest.raises(KDMError, match=message):
        parse_classes(text, names)


def test_names_for_an_imported_teacher() -> None:
    assert class_names("3") == ["0", "1", "2"] and class_names("0") == []
    assert class_names('cat, dog,"a, b"') == ["cat", "dog", "a, b"]
    for text in ("", "cat,,dog", "cat,cat"):
        with pytest.raises(KDMError, match="--labels"):
            class_names(text)


# In Python

CALLS: dict[str, Callable[[KDM, Any], Tensor]] = {
    "sample": lambda student, labels: student.sample(4, 0, labels, "fp32"),
    "generate": lambda student, labels: student.generate(noise(), labels, "fp32"),
    "steps": lambda student, labels: student.generate(noise(), labels, "fp32", steps=2),
    "call": lambda student, labels: student(noise(), labels),
    "encode": lambda student, labels: student.encode(noise(), 0.5, labels),
    "encode_data": lambda student, labels: student.encode_data(noise(), labels),
    "encode_noise": lambda student, labels: student.encode_noise(noise(), labels),
    "push": lambda student, labels: student.push(torch.ones(4, 64), labels),
    "decode": lambda student, labels: student.decode(torch.ones(4, 64), labels),
    "decode_state": lambda student, labels: student.decode_state(torch.ones(4, 64), 0.5, labels),
    "refine": lambda student, labels: student.refine(noise(), labels, 2),
    "export": lambda student, labels: Sampler(student)(noise(), labels),
}


def noise() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def student() -> KDM:
    return make_student(operator=ContinuousConfig(kind="continuous"), encoders="shared")


@pytest.mark.parametrize("call", [name for name in CALLS if name != "export"])
def test_one_meaning_in_all_functions(student: KDM, call: str) -> None:
    run = CALLS[call]
    wanted = run(student, torch.tensor([2, 2, 2, 2]))
    assert not torch.allclose(wanted, run(student, torch.tensor([1, 1, 1, 1])), atol=1e-4)
    for labels in (2, "c", "2", np.int32(2), np.array(2), torch.tensor(2), [2] * 4, ("c",) * 4,
                   ["c"], torch.tensor([2]),
                   ["c", 2, np.uint8(2), torch.tensor(2)], np.full(4, 2, np.uint8),
                   np.array(["c"] * 4), torch.full((4,), 2, dtype=torch.int16),
                   np.array(["c", 2, "c", 2], object)):
        assert torch.equal(run(student, labels), wanted), labels


WRONG: list[tuple[Any, str]] = [
    (3, "are 0 to 2, found 3"), (-1, "found -1"), ([0, 1, 2, 3], "found 0 to 3"),
    (torch.tensor([0, 0, 0, 10]), "found 0 to 10"), (10**30, "no class"), (10**400, "no class"),
    (2.9, "2.9 is no label"), ([0, 1, 2, 2.9], "2.9 is no label"), (torch.zeros(4), "float32"),
    (np.zeros(4), "float64"), (True, "True is no label"), ([True] * 4, "True is no label"),
    (torch.ones(4, dtype=torch.bool), "bool"), (np.bool_(True), "bool"),
    ([], "given for 4 samples"), ([0, 0], "given for 4 samples"),
    (torch.eye(4)[:, :3].long(), "given"),
    ("x", "no class 'x'"), (["a", "b", "c", "x"], "no class 'x'"), ({0, 1}, "is no label"),
    (b"a", "is no label"), ([None] * 4, "None is no label"), ([[0]] * 4, "is no label"),
]


@pytest.mark.parametrize("call", [name for name in CALLS if name != "export"])
@pytest.mark.parametrize(("labels", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_are_no_labels(student: KDM, call: str, labels: Any, message: str) -> None:
    with pytest.raises(KDMError, match=message):
        CALLS[call](student, labels)


@pytest.mark.parametrize("call", [name for name in CALLS if name not in ("sample", "export")])
def test_noise_of_one_s_own_needs_labels(student: KDM, call: str) -> None:
    with pytest.raises(KDMError, match=r"labels: this student needs them.*\[a, b, c\]"):
        CALLS[call](student, None)


def test_labels_are_drawn_where_noise_is(student: KDM) -> None:
    assert student.sample(4).shape == (4, 1, 8, 8)


def test_an_unconditional_student_takes_none() -> None:
    plain = make_student(spec=POINTS)
    x = torch.zeros(3, 2)
    assert torch.equal(plain.generate(x, None, "fp32"), plain(x))
    for labels in (0, "a", [0, 0, 0], torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(KDMError, match="takes none"):
            plain.generate(x, labels)
    with pytest.raises(KDMError, match="takes none"):
        plain.sample(3, labels=0)


def test_a_fresh_student_is_asked_as_well() -> None:
    """In training mode a tensor passes the networks unseen, but not `generate`."""
    fresh = make_student().train()
    with pytest.raises(KDMError, match="found 0 to 3"):
        fresh.generate(noise(), torch.tensor([0, 1, 2, 3]))


def test_an_empty_batch_takes_no_labels(student: KDM) -> None:
    assert student.generate(noise()[:0], []).shape == (0, 1, 8, 8)


def test_an_exported_file_has_no_sample_for_a_label_that_is_none() -> None:
    """With networks that see a label as a row of zeros and a one nothing would fail."""
    from kdm_core.networks import SongUNetConfig

    song = SongUNetConfig(kind="song_unet", channels=8, multipliers=[1], blocks=1, attention=[])
    made = Sampler(make_student(song, control=False).train())(noise(), torch.tensor([0, 3, -1, 2]))
    assert made.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
    assert not made[[0, 3]].isnan().any()


def test_names_that_are_numbers() -> None:
    named = make_student(spec=SampleSpec(kind="points", shape=[2], label_names=["1", "2", "0"]))
    with pytest.warns(Adapted):
        by_name = named.sample(2, labels="0", precision="fp32")
    assert torch.equal(by_name, named.sample(2, labels=2, precision="fp32"))
    assert not torch.equal(by_name, named.sample(2, labels=0, precision="fp32"))


def test_names_come_with_a_saved_student(tmp_path: Any) -> None:
    student = make_student(spec=IMAGES)
    kdm_core.save_pretrained(student, tmp_path)
    again = kdm_core.from_pretrained(tmp_path)
    assert torch.equal(again.sample(3, labels=["c", "a", "b"]), student.sample(3, labels=[2, 0, 1]))
