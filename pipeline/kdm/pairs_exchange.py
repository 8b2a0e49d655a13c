"""`kdm pairs import` and `kdm pairs export`: pairs of others, and pairs for others."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kdm_core.errors import KDMError

Layout = Literal["auto", "published", "points", "npz", "png", "webdataset"]
Channels = Literal["first", "last"]
Order = Literal["auto", "noise-first", "sample-first"]
Range = Literal["signed", "unit", "bytes"]
Format = Literal["npz", "published", "webdataset"]
Float = Literal["float16", "float32"]
Stored = Literal["uint8", "float16", "float32"]
Solver = Literal["euler", "heun", "midpoint", "rk4", "dpmpp_2m", "dopri5"]
Store = Annotated[str, typer.Argument(metavar="STORE", help="A folder, or a URL.")]


class ExchangeError(KDMError):
    """Import or export refuses what it was asked for."""


def add_commands(app: typer.Typer) -> None:
    """Give the group `kdm pairs` these commands."""
    app.command("import")(import_)
    app.command("export")(export)


def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder or a file.")],
    store: Store,
    layout: Annotated[Layout, typer.Option()] = "auto",
    noise: Annotated[Path | None, typer.Option(help="The noise's .npy or .npz file, where it is "
                                                    "apart from the samples.")] = None,
    order: Annotated[Order, typer.Option(help="Of published pairs' arrays.")] = "auto",
    channels: Annotated[Channels | None, typer.Option(help="Of images in a .npz file, where their "
                                                      "shape does not say it.")] = None,
    noise_scale: Annotated[float | None, typer.Option(help="What the noise is divided by; "
                                                           "measured where it is not given.")
                           ] = None,
    noise_dtype: Annotated[Float, typer.Option()] = "float16",
    sample_dtype: Annotated[Stored | None, typer.Option(help="uint8 for images and float16 for "
                                                         "latents unless given.")
                            ] = None,
    sample_range: Annotated[Range | None, typer.Option(
        help="Of images that are floats: [-1, 1], [0, 1] or [0, 255].")] = None,
    latents: Annotated[bool, typer.Option("--latents", help="The samples are latents of an "
                                          "autoencoder, and no images.")] = False,
    test: Annotated[int, typer.Option(min=2, help="Test pairs, the first ones.")] = 1000,
    validation: Annotated[int, typer.Option(min=2, help="Validation pairs, the next ones.")] = 1000,
    teacher: Annotated[Path | None, typer.Option(help="The teacher's folder, if you have it.")
                       ] = None,
    solver: Annotated[Solver | None, typer.Option(help="How the teacher was solved.")] = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    shard: Annotated[int, typer.Option(min=1, help="Pairs a file.")] = 10_000,
    chunk: Annotated[int, typer.Option(min=1, help="Pairs compressed together.")] = 500,
    device: str = "auto",
    trust_code: Annotated[bool, typer.Option(help="Import and run the code that a teacher's module "
                                                  "names.")] = False,
) -> None:
    """Turn noise–sample pairs of others into a store. Stopped, it goes on when it is run again."""
    from kdm_core.pairs.importing import ImportConfig, open_source
    from pipeline.params.reading import parse

    if (solver is None) != (steps is None):
        raise ExchangeError("--solver: give it and --steps, or neither")
    config = parse(ImportConfig, {
        "test": test, "validation": validation, "noise_scale": noise_scale,
        "noise_dtype": noise_dtype, "sample_dtype": sample_dtype, "shard": shard, "chunk": chunk,
        "solver": None if solver is None else {"kind": solver, "steps": steps},
    }, "this command line")
    typer.echo(f"looking at {source}", err=True)
    found = open_source(source, layout, noise, order, channels, sample_range, latents)
    run_import(found, store, config, source.name, teacher, device, trust_code)


def run_import(
    found: Any, store: str, config: Any, name: str, teacher: Path | None, device: str,
    trust_code: bool,
) -> None:
    """Measure, plan, fill, and say what was found and made."""
    import kdm_core
    from kdm_core.compute import resolve_device
    from kdm_core.pairs.importing import (
        KnownTeacher,
        compare_with_teacher,
        import_pairs,
        plan_import,
        say_missing_classes,
    )
    from kdm_core.pairs.opening import open_or_create
    from kdm_core.teachers import load_teacher
    from pipeline.runtime.progress import Progress

    known = KnownTeacher(*load_teacher(teacher, trust_code)) if teacher is not None else None
    plan = plan_import(found, config, known)
    spec = plan.spec
    labels = f"{spec.samples.num_classes} labels" if spec.samples.num_classes else "no labels"
    typer.echo(f"{found.layout}: {spec.count:,} pairs, {spec.samples.kind} of shape "
               f"{found.shape}, {labels}\n"
               f"noise of standard deviation {plan.measured.deviation:.5g}, divided by "
               f"{plan.scale:g}; samples of {plan.measured.sigma_data:.4g}")
    if known is not None and spec.solver is not None:
        difference = compare_with_teacher(found, plan, known, resolve_device(device))
        typer.echo(f"the teacher makes these samples again to {difference:.2g} (root mean square)")
    made = open_or_create(store, spec, {"created_by": f"kdm-distill {kdm_core.__version__}",
                                        "imported_from": name})
    missing = sum(len(spec.shard_range(shard)) for shard in made.missing_shards())
    with Progress("pairs", spec.count, "pair", spec.count - missing) as progress:
        import_pairs(found, made, plan.scale, progress.update)
    say_missing_classes(made, labels_known=found.labels is not None)
    typer.echo(f"{store}: complete, fingerprint {spec.fingerprint}")


def export(
    store: Store,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A file (npz, published points) or a "
                                        "folder, which must not be there yet.")],
    format: Annotated[Format, typer.Option()],
    split: Annotated[list[str] | None, typer.Option(help="test, validation or train; may be "
                                                        "repeated; all unless given.")] = None,
    kept: Annotated[bool, typer.Option("--kept", help="Leave out what the mask does.")] = False,
    mask: Annotated[Path | None, typer.Option(help="The mask, where it is apart from the store.")
                    ] = None,
    pairs_per_file: Annotated[int, typer.Option(min=1, help="Of a WebDataset.")] = 10_000,
) -> None:
    """Write a store's pairs in a format of others. Stopped, folders go on when it is run again."""
    from kdm_core.pairs.exporting import export_npz, export_published, export_webdataset, select
    from kdm_core.pairs.keep import KeepMask
    from kdm_core.pairs.spec import SPLITS
    from kdm_core.pairs.store import PairStore
    from pipeline.runtime.progress import Progress

    if unknown := sorted(set(split or ()) - set(SPLITS)):
        raise ExchangeError(f"--split: there is no {unknown[0]}; there are {', '.join(SPLITS)}")
    if mask is not None and not kept:
        raise ExchangeError("--mask: say --kept as well")
    opened = PairStore.open(store)
    if mask is not None:
        opened = opened.masked(KeepMask.load(mask))
    chosen = select(opened, [name for name in SPLITS if name in (split or SPLITS)], kept)
    with Progress("pairs", len(chosen.rows), "pair") as progress:
        if format == "webdataset":
            export_webdataset(chosen, out, progress.update, pairs_per_file)
        else:
            write = export_npz if format == "npz" else export_published
            write(chosen, out, progress.update)
    typer.echo(f"{out}: {len(chosen.rows):,} pairs of {store}")
