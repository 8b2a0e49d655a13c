"""`kdm teacher`: import a trained model, look at it, sample it, without the pipeline."""

import csv
import io
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kdm_core.errors import KDMError, naming

app = typer.Typer(no_args_is_help=True, help="Trained models as teachers.")

Kind = Literal["edm", "edm2", "diffusers", "torchcfm", "state-dict", "module"]
Solver = Literal["euler", "heun", "midpoint", "rk4", "dpmpp_2m", "dopri5"]
# What the command's first argument is called in the configuration.
PLACE = {"diffusers": "folder", "module": "factory"}
Folder = Annotated[Path, typer.Argument(metavar="DIR")]
TrustCode = Annotated[bool, typer.Option(help="Import and run the code that a module names.")]


class TeacherError(KDMError):
    """A teacher command refuses what it was asked for."""


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A file, https:// URL, hf://OWNER/NAME/PATH, "
                                               "diffusers folder or package.module:factory.")],
    kind: Annotated[Kind, typer.Option()],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    option: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=(
        "More of the `teacher:` block, as YAML; may be repeated."))] = None,
    shape: Annotated[str, typer.Option(help="Of one sample, e.g. 3,32,32, where the file does "
                                            "not say it.")] = "",
    labels: Annotated[str, typer.Option(help="How many classes, or their names as cat,dog, where "
                                             "the file does not say.")] = "0",
    latents: Annotated[bool, typer.Option("--latents", help="It makes latents of an autoencoder, "
                                          "and no images.")] = False,
    sigma_data: Annotated[float, typer.Option(help="Standard deviation of the training data.")
                          ] = 0.5,
) -> None:
    """Turn a trained model into a folder of safetensors and JSON, as the teacher stage does."""
    from kdm_core.importers import build_source
    from kdm_core.samples import SampleSpec
    from kdm_core.teachers import save_teacher
    from pipeline.params.reading import parse
    from pipeline.params.teacher import SourceParams

    if out.exists():
        raise TeacherError(f"--out: {out} exists already; name a new folder")
    name = kind.replace("-", "_")
    place = PLACE.get(name, "file")
    block: dict[str, Any] = {"source": name, place: source,
                             **dict(parse_option(text) for text in option or [])}
    numbers = shape.split(",") if shape else []
    if not all(number.strip().isdigit() for number in numbers):
        raise TeacherError(f"--shape: '{shape}' is no list of sizes such as 3,32,32")
    if latents and len(numbers) not in (0, 3):
        raise TeacherError(f"--shape: latents are C,H,W such as 4,32,32, found {shape}")
    given = SampleSpec(kind="latent" if latents else "points" if len(numbers) == 1 else "image",
                       shape=[int(number) for number in numbers], sigma_data=sigma_data,
                       label_names=class_names(labels))
    config = parse(SourceParams, block, "this command line (--set KEY=VALUE)")
    with naming(lambda field: "" if field == place else f"--set {field}"):
        teacher = build_source(config, given)
    if "," in labels and teacher.spec.label_names != given.label_names:
        raise TeacherError(f"--labels: {given.num_classes} names, and the model takes "
                           f"{teacher.spec.num_classes} labels; name all of them, or none")
    fingerprint = save_teacher(out, teacher)
    typer.echo(f"{out}: {describe(teacher)}\nfingerprint {fingerprint}")


@app.command()
def info(folder: Folder, trust_code: TrustCode = False) -> None:
    """Say what a teacher folder holds."""
    from kdm_core.teachers import load_teacher

    teacher, fingerprint = load_teacher(folder, trust_code)
    typer.echo(f"{describe(teacher)}\nfingerprint {fingerprint}")
    buffer = io.StringIO()
    YAML().dump(teacher.config.model_dump(exclude_none=True), buffer)
    typer.echo(buffer.getvalue(), nl=False)


@app.command()
def sample(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A PNG file.")],
    n: Annotated[int, typer.Option("--n", min=1, max=10_000)] = 16,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    labels: Annotated[str, typer.Option(help="Names or numbers of classes, as 3,5, which the "
                                             "samples take in turn; drawn unless given.")] = "",
    solver: Annotated[Solver, typer.Option()] = "heun",
    steps: Annotated[int, typer.Option(min=1)] = 18,
    guidance: Annotated[float, typer.Option(min=1, help="Scale of classifier-free guidance.")] = 1,
    autoencoder: Annotated[Path | None, typer.Option(help="Of a teacher of latents: the folder of "
                                                     "what decodes them (data/autoencoder).")
                           ] = None,
    device: str = "auto",
    trust_code: TrustCode = False,
) -> None:
    """Sample a teacher folder into a picture."""
    import numpy as np
    import torch
    from PIL import Image

    from kdm_core.compute import resolve_device
    from kdm_core.figures.files import save_figure
    from kdm_core.figures.scatter import noise_map
    from kdm_core.figures.tiles import tiles
    from kdm_core.labels import in_turn
    from kdm_core.noise import draw
    from kdm_core.solvers import SolverConfig
    from kdm_core.solvers.guidance import GuidanceConfig
    from kdm_core.teachers import load_sampled
    from pipeline.params.reading import parse

    chosen = parse(SolverConfig, {"kind": solver, "steps": steps}, "this command line")
    where = resolve_device(device)
    guided = GuidanceConfig(kind="classifier_free", scale=guidance) if guidance > 1 else None
    teacher, _, _ = load_sampled(folder, guided, trust_code)
    teacher.to(where)
    spec = teacher.spec
    decode = decoder(autoencoder, spec)
    noise, classes = draw(seed, range(n), spec.sample_shape, "float32", spec.num_classes)
    if labels:
        classes = np.array(in_turn(labels, n, spec.label_names), np.int64)
    given = spec.told(torch.from_numpy(classes).to(where))
    found = teacher.sample(torch.from_numpy(noise).to(where), given, chosen)
    made = decode(found.state).cpu().numpy()
    if spec.kind != "points":
        Image.fromarray(tiles(made)).save(out, format="PNG")
    else:
        save_figure(out, noise_map(made, {}, noise))
    typer.echo(f"{out}: {n} samples, {found.nfe} evaluations each, on {where}")


def decoder(folder: Path | None, spec: Any) -> Any:
    """What makes pictures of samples.

    Raises:
        TeacherError: nothing does, or nothing has to.
    """
    from kdm_core.decoders import load_autoencoder

    if spec.kind != "latent":
        if folder is not None:
            raise TeacherError(f"--autoencoder: this teacher makes {spec.name}; leave it out")
        return lambda samples: samples
    if folder is None:
        raise TeacherError("--autoencoder: this teacher makes latents; name the folder of the "
                           "autoencoder that makes pictures of them")
    found, _ = load_autoencoder(folder)
    return lambda samples: found.to(samples.device).decode(samples)


def class_names(text: str) -> list[str]:
    """Names of classes as `cat,dog`; numbers in place of names where only a number of them is told.

    Raises:
        TeacherError: a name is empty, or there twice.
    """
    names = [name.strip() for row in csv.reader([text], skipinitialspace=True) for name in row]
    if len(names) == 1 and names[0].isdecimal():
        return [str(number) for number in range(int(names[0]))]
    if not names or not all(names) or len(set(names)) < len(names):
        raise TeacherError(f"--labels: '{text}' is neither a number of classes nor a list of "
                           "different names such as cat,dog")
    return names


def parse_option(text: str) -> tuple[str, Any]:
    """`key=value`, the value being YAML."""
    key, separator, value = text.partition("=")
    try:
        if not separator:
            raise YAMLError("no =")
        return key, YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise TeacherError(f"--set: '{text}' is not KEY=VALUE with a value in YAML") from error


def describe(teacher: Any) -> str:
    """A teacher in one line."""
    from kdm_core.classes import shown

    spec = teacher.spec
    network = getattr(teacher.config, "network", None)
    parameters = sum(p.numel() for p in teacher.parameters())
    labels = (f"{spec.num_classes} labels {shown(spec.label_names)}" if spec.num_classes
              else "no labels")
    if spec.num_classes and teacher.label_dropout is not None:
        labels += f" (label_dropout {teacher.label_dropout:g})"
    return (f"{teacher.config.kind}{f' of a {network.kind}' if network else ''}, "
            f"{parameters:,} parameters, {spec.kind} of shape {tuple(spec.shape)}, {labels}")
