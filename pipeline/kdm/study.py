"""The blind human study: slides for raters with an answer key, and the count of their choices."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdm_core.errors import KDMError, MismatchError
from pipeline.kdm.student import load, png

if TYPE_CHECKING:
    from torch import Tensor

    from kdm_core.pairs.spec import StoreSpec
    from kdm_core.students.base import Student
    from kdm_core.studies.collages import Count

app = typer.Typer(no_args_is_help=True, help="A blind study: which looks more realistic?")

INSTRUCTIONS = """\
Each of the pictures 01.png … shows two collages of generated images side by side.
Say for each picture which collage looks more realistic: in answers.csv, write your name under
rater, and left or right under choice. Where both look alike, choose one of them at random; leave
none out. Look at the pictures by yourself, and do not talk about them before you have finished.
"""


class StudyError(KDMError):
    """A study command refuses what it was asked for."""


@app.command()
def collages(
    student: Annotated[str, typer.Argument(help="A student of this folder's params.yaml.")],
    out: Annotated[Path, typer.Option(help="A new folder: all that raters get.")],
    key: Annotated[Path, typer.Option(help="A new file outside of it, which raters do not see.")],
    slides: Annotated[int, typer.Option(min=1, max=99)] = 10,
    side: Annotated[int, typer.Option(min=1, help="Images along a collage's side.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Decides the order; who knows it and the code "
                                                  "can work the answers out.")] = 0,
    device: str = "auto",
) -> None:
    """Draw slides of a teacher's and a student's collage in random order, for raters.

    Both collages of a slide show the same unseen noises, those of the pairs' test split in order.
    """
    from kdm_core.compute import resolve_device
    from kdm_core.serialization import write_atomic, write_json
    from kdm_core.studies.collages import HEADER, Key, draw_sides, draw_slides
    from pipeline.runtime.paths import STUDENTS

    require_apart(out, key)
    model, fingerprint = load(str(STUDENTS / student))
    teacher, made, spec = sample_both(model.to(resolve_device(device)), student, slides * side**2)
    sides = draw_sides(slides, seed)
    pictures = draw_slides(teacher, made, sides, side)
    names = [f"{number:02}.png" for number in range(1, slides + 1)]
    for name, picture in zip(names, pictures, strict=True):
        write_atomic(out / name, png(picture))
    rows = [",".join(HEADER), *(f",{number}," for number in range(1, slides + 1))]
    write_atomic(out / "answers.csv", ("\n".join(rows) + "\n").encode())
    write_atomic(out / "README.txt", INSTRUCTIONS.encode())
    # Written last: a study with a key is complete.
    write_json(key, Key(student=student, fingerprint=fingerprint, pairs=spec.fingerprint,
                        seed=seed, side=side, students=sides).model_dump())
    typer.echo(f"{out}: {slides} slides with two collages of {side} × {side} images each, and a "
               f"table for the answers\n{key}: the answer key, not for raters")


@app.command()
def tally(
    key: Annotated[Path, typer.Argument(help="The answer key that `kdm study collages` wrote.")],
    answers: Annotated[list[Path], typer.Argument(help="Tables that raters filled in.")],
) -> None:
    """Count how often raters preferred the student's collage."""
    from kdm_core.studies import collages as study

    found = study.tally(study.read_answers(answers, study.read_key(key)))
    groups = {"all": found.overall, **{f"rater {r}": c for r, c in found.raters.items()},
              **{f"slide {s:02}": c for s, c in found.slides.items()}}
    width = max(map(len, groups))
    typer.echo(f"{'':{width}}  student preferred      95 % interval    p against a coin")
    for name, count in groups.items():
        typer.echo(f"{name:{width}}  {describe(count)}")
    typer.echo("\nIntervals and p are exact binomial ones, for independent choices. Choices of one "
               "rater, or about\none slide, may have something in common; they say less then than "
               "their number suggests.")


def describe(count: "Count") -> str:
    low, high = count.interval()
    return (f"{count.student:4} of {count.n:4} = {count.ratio:6.1%}   {low:6.1%} to {high:6.1%}   "
            f"{count.p_value:.3g}")


def require_apart(out: Path, key: Path) -> None:
    """Make sure that nothing is overwritten, and that the key is not among the slides.

    Raises:
        StudyError: that would be so.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudyError(f"--out: {out} exists and is no empty folder; name another one")
    if key.exists():
        raise StudyError(f"--key: {key} exists already; name a new file")
    if key.resolve().is_relative_to(out.resolve()):
        raise StudyError(f"--key: {key} would lie among the slides, where raters see it; name a "
                         f"file outside of {out}")


def sample_both(model: "Student", name: str, n: int) -> "tuple[Tensor, Tensor, StoreSpec]":
    """Samples (n, *shape) of teacher and student for the first unseen noises, as files hold them.

    There are fewer where there are not as many. On the CPU.

    Raises:
        MismatchError: the student comes from other pairs, so that it may have seen these.
    """
    import torch

    from kdm_core.pairs.store import PairStore
    from kdm_core.values import as_float, from_uint8, to_uint8
    from pipeline.runtime.paths import PAIRS

    store = PairStore.open(PAIRS)
    spec = store.spec
    if model.provenance.get("pairs") != spec.fingerprint:
        raise MismatchError(f"{name} was not distilled from the pairs in {PAIRS}, so their test "
                            f"split may not be new to it: run `dvc repro train_student@{name}`")
    block = store.read(spec.split_range("test")[:n], states=False)
    device = next(model.parameters()).device
    parts = []
    for noise, labels in zip(torch.split(torch.from_numpy(block.noise), spec.compute_batch),
                             torch.split(torch.from_numpy(block.label), spec.compute_batch),
                             strict=True):
        given = spec.samples.told(labels.to(device))
        parts.append(model.generate(noise.to(device, torch.float32), given, spec.precision).cpu())
    made = torch.cat(parts)
    given, made = (model.pictures(part.to(device)).cpu() for part in (as_float(block.sample), made))
    if model.shown.kind == "image":
        given, made = (from_uint8(to_uint8(part)) for part in (given, made))
    return given, made, spec
