"""Using a student: look at it, sample it, export it, describe it, share it."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from ruamel.yaml import YAML

from kdm_core.errors import KDMError

if TYPE_CHECKING:
    import numpy as np

    from kdm_core.students.base import Student

app = typer.Typer(no_args_is_help=True, help="Trained students.")

MOST_IN_A_PICTURE = 10_000
Format = Literal["torch-export", "onnx"]
Precision = Literal["auto", "fp32", "bf16"]
Source = Annotated[str, typer.Argument(metavar="DIR", help="A student's folder, such as "
                                       "data/students/kdm, or OWNER/NAME on the hub.")]
Revision = Annotated[str | None, typer.Option(help="Of the hub: a branch, tag or commit.")]
License = Annotated[str | None, typer.Option(help="An identifier of the hub, e.g. apache-2.0.")]


class StudentError(KDMError):
    """A student command refuses what it was asked for."""


@app.command()
def info(source: Source, revision: Revision = None) -> None:
    """Say what a student is."""
    student, fingerprint = load(source, revision)
    evaluation_of_run(student, fingerprint, Path(source).name)
    typer.echo(f"{student.describe()}\nfingerprint {fingerprint}")
    buffer = io.StringIO()
    YAML().dump({"student": student.config.model_dump(exclude_none=True),
                 "distilled from": student.provenance}, buffer)
    typer.echo(buffer.getvalue(), nl=False)


def sample(
    source: Source,
    out: Annotated[Path, typer.Option(help="A .png (grid, or scatter of points), a .npz, or a "
                                           "folder for one PNG a sample and labels.json.")],
    n: Annotated[int, typer.Option("--n", min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    labels: Annotated[str, typer.Option(help="Names or numbers of classes, as 3,5, which the "
                                             "samples take in turn; drawn unless given.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="1 unless given; more for students that "
                                              "were trained on trajectories, and flows.")] = None,
    decode: Annotated[bool, typer.Option(help="Write the pictures of latents, where the student "
                                              "has their decoder.")] = True,
    invert: Annotated[Path | None, typer.Option(metavar="FILE", help="Of a rectified flow: a .npz "
                                                "of samples and labels, of which the noises are "
                                                "written in place of samples.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 500,
    precision: Annotated[Precision, typer.Option()] = "auto",
    device: str = "auto",
    revision: Revision = None,
) -> None:
    """Sample a student into a picture, a folder of pictures, or arrays."""
    from kdm_core.compute import resolve_device
    from kdm_core.labels import in_turn

    where = resolve_device(device)
    student, _ = load(source, revision)
    if invert is not None:
        from pipeline.kdm.inversion import STEPS, invert_file

        said = invert_file(student.to(where), invert, out, steps or STEPS, batch, precision)
        typer.echo(f"{out}: {said}")
        return
    if not decode:
        student.attach(None)
    write = writer(student, out, n)
    classes = in_turn(labels, n, student.spec.label_names) if labels else None
    drawn = Draw(student.to(where), n, seed, classes, batch, precision, steps or 1)
    write(drawn)
    typer.echo(f"{out}: {n} samples of seed {seed}, on {where}")


def export(
    source: Source,
    format: Annotated[Format, typer.Option()],
    out: Annotated[Path, typer.Option(help="The file, which must not be there yet.")],
    decode: Annotated[bool, typer.Option("--decode", help="Let the file give the pictures of a "
                                         "student's latents.")] = False,
    revision: Revision = None,
) -> None:
    """Write a student as a file for other runtimes, and check its samples."""
    from kdm_core.sharing.export import export_student

    require_new(out)
    student, fingerprint = load(source, revision)
    made = export_student(student, out, format, fingerprint, decode)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB; for batches of "
               f"{', '.join(map(str, made.batches))} its samples are the student's to within "
               f"{made.deviation:.1e}")


def card(
    name: Annotated[str, typer.Argument(help="A student of this folder's params.yaml.")],
    out: Annotated[Path | None, typer.Option(help="A file; printed where it is not given.")
                   ] = None,
    title: Annotated[str | None, typer.Option(help="OWNER/NAME, if it is known.")] = None,
    license: License = None,
) -> None:
    """Write a model card for a student of this folder's run, with its figures if it has any."""
    from kdm_core.serialization import write_atomic
    from pipeline.runtime.paths import STUDENTS

    student, fingerprint = load(str(STUDENTS / name))
    text = card_of_run(student, fingerprint, name, title, license)
    if out is None:
        typer.echo(text, nl=False)
        return
    require_new(out)
    write_atomic(out, text.encode())
    typer.echo(f"{out}: the model card of {name}")


def push(
    source: Source,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME")],
    private: Annotated[bool | None, typer.Option(help="Of a new repository.")] = None,
    branch: Annotated[str | None, typer.Option()] = None,
    card: Annotated[Path | None, typer.Option(help="A model card of your own.")] = None,
    license: License = None,
) -> None:
    """Upload a student to the Hugging Face hub, with a model card."""
    from kdm_core.sharing.hub import push_to_hub

    student, fingerprint = load(source)
    text = (card.read_text(encoding="utf-8") if card is not None else
            card_of_run(student, fingerprint, Path(source).name, repository, license))
    address = push_to_hub(student, repository, text, private, branch)
    typer.echo(f"{repository}: {address}")


def add_commands(main: typer.Typer) -> None:
    """`kdm student …`, and what is used most as commands of its own."""
    main.add_typer(app, name="student")
    for command in (sample, export, card, push):
        main.command()(command)


def load(source: str, revision: str | None = None) -> "tuple[Student, str]":
    """A student and its fingerprint."""
    from kdm_core.serialization import CONFIG, read_json
    from kdm_core.sharing.hub import find_student, from_pretrained

    folder = find_student(source, revision)
    student = from_pretrained(folder)
    return student, read_json(folder / CONFIG)["fingerprint"]


def require_new(out: Path) -> None:
    """Make sure that nothing is overwritten.

    Raises:
        StudentError: something would be.
    """
    if out.exists():
        raise StudentError(f"--out: {out} exists already; name a new file")


def card_of_run(
    student: "Student", fingerprint: str, name: str, title: str | None, license: str | None
) -> str:
    """A card with the pairs and figures of this folder's run, where they are this student's."""
    from kdm_core.pairs.store import PairStore
    from kdm_core.sharing.card import model_card
    from pipeline.runtime.paths import PAIRS

    pairs = PairStore.open(PAIRS).spec if PAIRS.exists() else None
    if pairs is not None and pairs.fingerprint != student.provenance.get("pairs"):
        pairs = None
    evaluation = evaluation_of_run(student, fingerprint, name)
    return model_card(student, fingerprint, pairs, evaluation, title, license)


def evaluation_of_run(student: "Student", fingerprint: str, name: str) -> Any:
    """What this folder's run measured of a student, which gets its verdict; None if it is none of
    this run's, or was not evaluated."""
    from kdm_core.serialization import read_json
    from pipeline.runtime.paths import EVALUATION

    file = EVALUATION / name / "evaluation.json"
    evaluation = read_json(file) if file.exists() else None
    if evaluation is None or evaluation["conditions"]["student"] != fingerprint:
        return None
    student.verdict = evaluation.get("verdicts", {}).get("student", student.verdict)
    return evaluation


class Draw:
    """The samples of a command, batch by batch; those of `KDM.sample` with the same seed."""

    def __init__(
        self, student: "Student", n: int, seed: int, labels: list[int] | None, batch: int,
        precision: Precision, steps: int,
    ) -> None:
        self.student, self.n, self.seed, self.labels = student, n, seed, labels
        self.batch, self.precision, self.steps = batch, precision, steps

    def __iter__(self) -> Iterator["tuple[np.ndarray, np.ndarray, np.ndarray]"]:
        """Noise (B, *shape), labels (B,), −1 for none, and samples (B, *shape)."""
        import numpy as np

        from pipeline.runtime.progress import Progress

        with Progress("sample", self.n, "sample") as progress:
            for noise, labels, made in self.student.batches(
                    self.n, self.seed, self.labels, self.precision, self.batch, self.steps):
                classes = np.full(len(made), -1) if labels is None else labels.cpu().numpy()
                yield noise.cpu().numpy(), classes, self.student.pictures(made).cpu().numpy()
                progress.update(len(made))


def writer(student: "Student", out: Path, n: int) -> Any:
    """What writes samples to a place of this name.

    Raises:
        StudentError: the name, or what there is, does not suit these samples.
    """
    if out.suffix == ".npz":
        return lambda drawn: write_arrays(out, drawn)
    spec = student.shown
    image = spec.kind == "image"
    if spec.kind == "latent":
        raise StudentError("--out: latents are no pictures without their decoder; name a .npz")
    if image and spec.shape[0] not in (1, 3):
        raise StudentError(f"--out: images of {spec.shape[0]} channels are no pictures; "
                           "name a .npz")
    if out.suffix == ".png":
        if n > MOST_IN_A_PICTURE:
            raise StudentError(f"--n: {n} samples are too many for one picture; at most "
                               f"{MOST_IN_A_PICTURE}, or name a folder or a .npz")
        if not image and spec.shape != [2]:
            raise StudentError("--out: only points of two numbers can be drawn; name a .npz")
        return lambda drawn: write_picture(out, drawn)
    if out.suffix:
        raise StudentError(f"--out: {out} is neither .png nor .npz nor a folder")
    if not image:
        raise StudentError("--out: points do not go into a folder of pictures; name a .npz or .png")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudentError(f"--out: {out} exists and is no empty folder; name another one")
    return lambda drawn: write_folder(out, drawn)


def write_arrays(out: Path, drawn: Draw) -> None:
    """Samples (n, *shape) float32, the labels (n,) of a class-conditional student, and the seed."""
    import numpy as np

    from kdm_core.serialization import write_atomic

    _, labels, samples = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    arrays = {"samples": samples, "seed": np.array(drawn.seed)}
    if drawn.student.spec.num_classes:
        arrays["labels"] = labels
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_atomic(out, buffer.getvalue())


def write_picture(out: Path, drawn: Draw) -> None:
    """A grid of images, or a scatter of points."""
    import numpy as np

    from kdm_core.figures.files import save_figure
    from kdm_core.figures.tiles import tiles
    from kdm_core.serialization import write_atomic

    samples = np.concatenate([made for _, _, made in drawn])
    if drawn.student.shown.kind == "image":
        write_atomic(out, png(tiles(samples)))
    else:
        save_figure(out, scatter(samples))


def write_folder(out: Path, drawn: Draw) -> None:
    """000000.png …, and labels.json with the label of each, a name of its class and a number."""
    import numpy as np

    from kdm_core.serialization import write_atomic, write_json

    names = drawn.student.spec.label_names
    table: dict[str, Any] = {}
    out.mkdir(parents=True, exist_ok=True)
    for _, labels, samples in drawn:
        for label, image in zip(labels, samples, strict=True):
            file = f"{len(table):06}.png"
            values = (image.transpose(1, 2, 0) * 127.5 + 128).clip(0, 255).astype(np.uint8)
            write_atomic(out / file, png(values[..., 0] if values.shape[2] == 1 else values))
            table[file] = {"label": int(label), "name": names[label]} if names else None
    # Written last: a folder with it is complete.
    write_json(out / "labels.json", {"seed": drawn.seed, "labels": table})


def png(picture: "np.ndarray") -> bytes:
    """Gray (H, W) or RGB (H, W, 3) as a file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def scatter(points: "np.ndarray") -> Any:
    """A figure of points (n, 2)."""
    from kdm_core.figures.style import STUDENTS, WIDTH, panels, styled

    figure, (axis,) = panels(1, 1, WIDTH, WIDTH)
    with styled():
        axis.scatter(points[:, 0], points[:, 1], c=STUDENTS[0], s=2.5, linewidths=0)
        axis.set_aspect("equal")
    return figure
