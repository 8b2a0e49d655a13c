"""The sweeps of the paper: from parameters to the experiments of a table, each checked."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dvc.exceptions import DvcException
from dvc.utils.hydra import apply_overrides

from kdm_core.errors import KDMError
from kdm_core.pairs.sampling import PairsConfig
from kdm_core.samples import SampleSpec
from kdm_core.students.kdm import KDMConfig
from pipeline.params.fitting import check_against, on_meta
from pipeline.params.reading import FILE, read_values
from pipeline.params.run import Params, load_params, parse_params
from pipeline.project.reproduction.paper import (
    LATENTS,
    OWN_PARAMETERS,
    PAIRS,
    PARAMETERS,
    ReproductionError,
)

PREFERRED = "paper"
"""The student with the published recipe, in presets that have one."""
TERMS = ("reconstruction", "latent", "prediction", "adversarial")
LOSSES = {
    "lat": (0.0, 1.0, 0.0, 0.0), "pred": (0.0, 0.0, 1.0, 0.0), "rec": (1.0, 0.0, 0.0, 0.0),
    "lat-pred": (0.0, 1.0, 1.0, 0.0), "rec-pred": (1.0, 0.0, 1.0, 0.0),
    "rec-lat": (1.0, 1.0, 0.0, 0.0), "koopman": (1.0, 1.0, 1.0, 0.0), "all": (1.0, 1.0, 1.0, 0.01)}
"""The columns of table 5: weights of `TERMS`."""
OTHER_TERMS = ("drifting", "trajectory", "endpoint")
"""Of which the paper knows none: they are left out of all columns."""
PUBLISHED_NETWORK = {"kind": "song_unet", "channels": 64, "multipliers": [1, 2, 2, 2], "blocks": 4}
GUESSES = {"20of62": (32, [1, 1, 1, 1]), "38of62": (32, [1, 2, 2, 4]), "84of62": (64, [1, 1, 3, 3])}
"""Channels and multipliers of the published network for CIFAR-10 in table 9. The paper gives none.
Its 62 million parameters are the 47.5 that are trained and the 14.7 of LPIPS's VGG16; counted like
that, these are 20, 38 and 84 million."""
WIDTHS = {"width": 8, "channels": 4}
"""What makes a network wider, and of which number it is to be a multiple."""
FARTHEST = 0.25
"""By so much of its target a size may miss it: widths come in steps, and a latent has its own
parameters."""


class Experiment(NamedTuple):
    """One column of a table.

    Attributes:
        key: of the column.
        name: DVC's.
        overrides: as `dvc exp run -S` takes them.
        text: what is varied in it, for the table.
        values: what params.yaml then has.
    """

    key: str
    name: str
    overrides: tuple[str, ...]
    text: str
    values: Mapping[str, Any]


class Column(NamedTuple):
    """What an experiment changes, by dotted parameters; see `Experiment`.

    Attributes:
        value: the end of the experiment's name, `key` where it is empty.
    """

    key: str
    changes: Mapping[str, Any]
    text: str
    value: str = ""


def choose_student(params: Params, asked: str | None) -> str:
    """The student of a sweep: the one that was asked for, else `paper`, else the first of kind kdm.

    Raises:
        ReproductionError: there is none such.
    """
    students = params.students
    koopman = [name for name, one in students.items() if isinstance(one.model, KDMConfig)]
    if asked is None:
        if not koopman:
            raise ReproductionError(f"{FILE} has no student of kind kdm, which the paper's are: "
                                    "add one under students")
        return PREFERRED if PREFERRED in koopman else koopman[0]
    if asked not in students:
        raise ReproductionError(f"{FILE} has no student '{asked}'; there are "
                                f"{', '.join(students)}")
    return asked


def experiments(
    name: str, folder: Path, student: str, spec: SampleSpec | None
) -> list[Experiment]:
    """The experiments of a table or figure with a sweep, each checked as a run would be.

    Args:
        name: of the table or figure.
        folder: of the project.
        student: which is varied; each experiment trains that one alone.
        spec: of the data; None where it is not known, and then models are not built.

    Raises:
        ReproductionError: that cannot be varied in this student.
        ParamsError: an experiment could not be used.
    """
    params = load_params(folder / FILE)
    others = tuple(f"~students.{other}" for other in params.students if other != student)
    found = []
    for column in SWEEPS[name](params, student, spec):
        overrides = others + tuple(f"++{key}={written(value)}"
                                   for key, value in column.changes.items())
        one = f"{SHARED.get(name, name)}-{student}-{column.value or column.key}"
        values = changed(folder / FILE, overrides)
        checked = parse_params(values, f"{FILE} with the overrides of {one}")
        if spec is not None:
            check_against(checked, spec)
        found.append(Experiment(column.key, one, overrides, column.text, values))
    return found


def changed(file: Path, overrides: tuple[str, ...]) -> Any:
    """What a parameter file has with overrides, as DVC applies them.

    Raises:
        ReproductionError: DVC cannot.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, FILE.name)
        shutil.copyfile(file, copy)
        try:
            apply_overrides(copy, list(overrides))
        except DvcException as error:
            raise ReproductionError(f"DVC cannot apply {' '.join(overrides)} ({error}): give the "
                                    "student a name of letters, digits, - and _ that begins with "
                                    "a letter") from error
        return read_values(copy)


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return str(value)


def losses(params: Params, student: str, spec: SampleSpec | None) -> Iterator[Column]:
    """Table 5. Further phases are emptied: all columns have the same training."""
    own = params.students[student]
    koopman_of(params, student)
    at = f"students.{student}"
    unknown = {f"{at}.losses.{term}": 0.0 for term in OTHER_TERMS if getattr(own.losses, term)}
    then: dict[str, Any] = {f"{at}.then": []} if own.then else {}
    for key, weights in LOSSES.items():
        named = dict(zip(TERMS, weights, strict=True))
        yield Column(key, {f"{at}.losses.{term}": weight for term, weight in named.items()}
                     | unknown | then, key.replace("-", " + "))


def latents(params: Params, student: str, spec: SampleSpec | None) -> Iterator[Column]:
    """Table 6: one, four and nine times the student's latent, which of 1024 are the paper's."""
    own = koopman_of(params, student).latent
    for key, factor in LATENTS.items():
        yield Column(key, {f"students.{student}.model.latent": factor * own},
                     f"latent {factor * own}", str(factor * own))


def sizes(params: Params, student: str, spec: SampleSpec | None) -> Iterator[Column]:
    """Table 9 and figure 5A."""
    model = koopman_of(params, student)
    at = f"students.{student}.model"
    if is_published(model):
        for key, (channels, multipliers) in GUESSES.items():
            yield Column(key, {f"{at}.{part}.{field}": value for part in ("encoder", "decoder")
                               for field, value in (("channels", channels),
                                                    ("multipliers", multipliers))},
                         f"channels {channels} × {multipliers}", f"{PARAMETERS[key]}M")
        return
    if spec is None:
        raise ReproductionError("the data are not there, and without them nobody knows how many "
                                "parameters a student has: `kdm params check` says what is missing")
    whole = count(model, spec)
    for key, millions in PARAMETERS.items():
        widths = scaled(model, spec, whole * millions / OWN_PARAMETERS, student)
        yield Column(key, {f"{at}.{place}": value for place, value in widths.items()},
                     ", ".join(f"{place} {value}" for place, value in widths.items()))


def pairs(params: Params, student: str, spec: SampleSpec | None) -> Iterator[Column]:
    """Figure 5B: a quarter, a half and all of the pairs.

    Raises:
        ReproductionError: pairs are not sampled here, or are too few.
    """
    koopman_of(params, student)
    if not isinstance(params.pairs, PairsConfig):
        raise ReproductionError(f"{FILE}: pairs.source is {params.pairs.source}, whose number is "
                                "not varied here: give it pairs that are sampled (pairs.source: "
                                "sample)")
    whole = params.pairs.train
    found = {key: whole if part == 1 else fraction(params.pairs, part)
             for key, part in PAIRS.items()}
    if len(set(found.values())) < len(found) or not all(found.values()):
        raise ReproductionError(f"{FILE}: pairs.train: {whole} pairs in batches of "
                                f"{params.pairs.batch} cannot be divided in four: raise it")
    for key, number in found.items():
        yield Column(key, {"pairs.train": number}, f"{number:,} pairs", str(number))


def fraction(config: PairsConfig, part: int) -> int:
    """A part of the training pairs in whole batches of the teacher, so that these are the very
    pairs that the whole has: their last bits depend on the batch."""
    return config.train // part // config.batch * config.batch


SWEEPS: dict[str, Callable[[Params, str, SampleSpec | None], Iterator[Column]]] = {
    "table5": losses, "table6": latents, "table9": sizes, "figure5a": sizes, "figure5b": pairs}
SHARED = {"figure5a": "table9"}
"""Figures whose experiments are those of a table."""


def koopman_of(params: Params, student: str) -> KDMConfig:
    """The model of a student of kind kdm.

    Raises:
        ReproductionError: it is of another kind.
    """
    model = params.students[student].model
    if not isinstance(model, KDMConfig):
        known = [name for name, one in params.students.items() if isinstance(one.model, KDMConfig)]
        raise ReproductionError(
            f"students.{student} is of kind {model.kind}; the paper's sweeps are of kind kdm: "
            + (f"name another one ({', '.join(known)})" if known else "add such a student"))
    return model


def is_published(model: KDMConfig) -> bool:
    """Whether these are the paper's networks for CIFAR-10, which table 9 made smaller and larger.
    """
    parts = [part.model_dump(mode="json") for part in (model.encoder, model.decoder)]
    return all(part.get(field) == value for part in parts
               for field, value in PUBLISHED_NETWORK.items())


def count(model: KDMConfig, spec: SampleSpec) -> int:
    """A student's parameters, without memory for them."""
    student: Any = on_meta(model.build, spec)
    return sum(parameter.numel() for parameter in student.parameters())


def scaled(model: KDMConfig, spec: SampleSpec, target: float, student: str) -> dict[str, int]:
    """The widths of encoder and decoder with which a student has about so many parameters.

    Raises:
        ReproductionError: there are none.
    """
    widths = {place: value for part in ("encoder", "decoder")
              for place, value in width_of(getattr(model, part), part, student)}
    first, own = next(iter(widths.items()))
    step = WIDTHS[first.partition(".")[2]]

    def at(multiple: int) -> tuple[dict[str, int], int]:
        found = {place: nearest(value * multiple * step / own, WIDTHS[place.partition(".")[2]])
                 for place, value in widths.items()}
        return found, count(with_widths(model, found), spec)

    low, high = 1, max(2, 4 * own // step)
    try:
        while high - low > 1:  # the wider, the more parameters
            middle = (low + high) // 2
            low, high = (middle, high) if at(middle)[1] < target else (low, middle)
        (narrow, fewer), (wide, more) = at(low), at(high)
    except (KDMError, ValueError) as error:
        raise ReproductionError(f"students.{student}.model: it cannot be made of {target:,.0f} "
                                f"parameters: {error}") from error
    found, reached = (narrow, fewer) if target - fewer < more - target else (wide, more)
    if abs(reached - target) > FARTHEST * target:
        raise ReproductionError(
            f"students.{student}.model: no width makes it of about {target:,.0f} parameters; the "
            f"nearest has {reached:,}, since its latent of {model.latent} has its own: take a "
            "student with a smaller latent, or with wider networks")
    return found


def width_of(network: Any, part: str, student: str) -> Iterator[tuple[str, int]]:
    """The field that makes a network wider, with its place and value.

    Raises:
        ReproductionError: it has none.
    """
    for field in WIDTHS:
        if isinstance(value := getattr(network, field, None), int):
            yield f"{part}.{field}", value
            return
    raise ReproductionError(f"students.{student}.model.{part}: a network of kind {network.kind} "
                            "has no width that can be scaled: take one of kind mlp, unet or "
                            "song_unet")


def nearest(value: float, step: int) -> int:
    """The multiple of a step that is nearest to a value, at least one."""
    return max(1, round(value / step)) * step


def with_widths(model: KDMConfig, widths: Mapping[str, int]) -> KDMConfig:
    """A model with other widths, checked.

    Raises:
        ValueError: its networks do not allow them.
    """
    values = model.model_dump(mode="json")
    for place, value in widths.items():
        part, _, field = place.partition(".")
        values[part][field] = value
    return KDMConfig.model_validate(values)


