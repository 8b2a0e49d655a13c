"""A folder as a run leaves it: a teacher, two students of random weights, how it was solved."""

import shutil
from pathlib import Path

from kdm_core.pairs.sampling import plan_store
from kdm_core.pairs.store import PairStore
from kdm_core.sharing.folder import save_student
from kdm_core.teachers import save_teacher
from pipeline.project.files import preset_path
from pipeline.runtime.paths import PAIRS, STUDENTS, TEACHER
from tests.support import family
from tests.support.pairs import CPU, config
from tests.support.students import make_student

NFE = 5  # of three steps of Heun's method


def make_run(folder: Path) -> None:
    """`mine` has neither modes nor states, `levels` both; images are 8 × 8, of classes a, b, c."""
    shutil.copy(preset_path("smoke"), folder / "params.yaml")
    teacher = family.teacher("mlp")
    for weight, _ in teacher.class_weights():
        weight.data *= 300  # classes are seen in 8 bits
    mark = save_teacher(folder / TEACHER, teacher)
    PairStore.create(folder / PAIRS, plan_store(config(), teacher, mark, None, 0, CPU), {})
    told = {"teacher": mark, "pairs": "p" * 64}
    save_student(folder / STUDENTS / "mine", make_student(), told)
    levels = family.bent(family.student("hierarchical", teacher))
    save_student(folder / STUDENTS / "levels", levels, told)
