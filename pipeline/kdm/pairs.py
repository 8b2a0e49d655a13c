"""`kdm pairs`: what a pair store is, whether it is whole, and making stores of stores."""

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kdm_core.errors import KDMError, printable
from pipeline.kdm.flags import DEVICE, TRUST, in_flags
from pipeline.kdm.pairs_exchange import add_commands
from pipeline.runtime.paths import TEACHER

app = typer.Typer(no_args_is_help=True, help="Stores of noise–sample pairs.")
Store = Annotated[str, typer.Argument(metavar="STORE", help="A folder, or a URL.")]
Target = Annotated[str, typer.Option(help="A new store, or one of an interrupted run.")]
TrustCode = Annotated[bool, typer.Option(help="Import and run the code that a teacher's module "
                                              "names.")]
MAX_THREADS = 1024


class PairsError(KDMError):
    """A pairs command refuses what it was asked for, or found a store that is not whole."""


@app.command()
def info(
    store: Store,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
    params: Annotated[bool, typer.Option("--params", help="The section of params.yaml that samples "
                                                          "such pairs.")] = False,
) -> None:
    """Say what a store holds."""
    from kdm_core.pairs.store import PairStore
    from kdm_core.pairs.summary import sampling_block, summarize

    opened = PairStore.open(store)
    if params:
        typer.echo(f"# The noise is that of seed {opened.spec.noise_seed}, which follows from "
                   "`seed:`.\n" + as_yaml({"pairs": sampling_block(opened.spec)}), nl=False)
        return
    found = summarize(opened)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(
        f"{name:12} {printable(text)}" for name, text in describe(found)))


@app.command()
@in_flags(TRUST | DEVICE)
def verify(
    store: Store,
    teacher: Annotated[Path | None, typer.Option(help="The pairs' teacher: sample two pairs a "
                                                      "shard again and compare.")] = None,
    device: str = "auto",
    trust_code: TrustCode = False,
) -> None:
    """Read and check all of a store; exits 0 only for a whole one, and prints its content hash."""
    from kdm_core.pairs.store import PairStore

    opened = PairStore.open(store)
    report(opened, check(opened, load(opened, teacher, device, trust_code), device))


@app.command()
@in_flags(TRUST | DEVICE)
def repair(
    store: Store,
    teacher: Annotated[Path | None, typer.Option(help="The pairs' teacher; data/teacher unless "
                                                      "given.")] = None,
    other: Annotated[str | None, typer.Option("--from", metavar="OTHER", help=(
        "Another copy of the store, or a longer one of the same pairs."))] = None,
    device: str = "auto",
    trust_code: TrustCode = False,
) -> None:
    """Make lost pairs again: from another copy, from the seed, and from the teacher."""
    from kdm_core.compute import resolve_device
    from kdm_core.pairs.integrity.metadata import restore_metadata
    from kdm_core.pairs.integrity.repairing import repair as mend
    from kdm_core.pairs.store import PairStore
    from pipeline.runtime.progress import Progress

    copy = None if other is None else PairStore.open(other)
    opened = restore_metadata(PairStore.open(store, writable=True))
    at_hand = load(opened, teacher, device, trust_code)
    damage = check(opened, at_hand, device)
    if damage.whole:
        report(opened, damage)
        return
    show(opened, damage)
    if damage.needs_teacher and at_hand is None and copy is None:
        at_hand = load(opened, TEACHER, device, trust_code)
    pairs = sum(len(opened.spec.shard_range(shard)) for shard in damage.shards)
    with Progress("repair", pairs, "pair") as progress:
        mend(opened, damage, resolve_device(device), at_hand, copy, progress.update)
    report(opened, check(opened, None, device))


@app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE...")],
    out: Target,
) -> None:
    """Join stores of the same pairs that were sampled on several machines."""
    from kdm_core.pairs.merging import in_words
    from kdm_core.pairs.merging import merge as join
    from kdm_core.pairs.store import PairStore
    from pipeline.runtime.progress import Progress

    opened = [PairStore.open(store) for store in stores]
    with Progress("merge", opened[0].spec.count, "pair") as progress:
        merged = join(opened, out, progress.update)
    missing = merged.missing_shards()
    there = merged.spec.count - sum(len(merged.spec.shard_range(shard)) for shard in missing)
    typer.echo(f"{out}: {there:,} of {merged.spec.count:,} pairs"
               + (f"; {in_words(merged.spec, missing)} are missing" if missing
                  else f", content {merged.content_hash()}"))


@app.command()
def subset(
    store: Store,
    out: Target,
    split: Annotated[list[str] | None, typer.Option(help="test, validation or train; may be "
                                                         "repeated.")] = None,
    train: Annotated[int | None, typer.Option(min=0, help="At most so many training pairs, the "
                                                          "first ones.")] = None,
    labels: Annotated[str, typer.Option(help="Names or numbers of classes, as 3,5.")] = "",
    indices: Annotated[str, typer.Option(help="FIRST:STOP")] = "",
    kept: Annotated[bool, typer.Option("--kept", help="Leave out what the mask does.")] = False,
    mask: Annotated[str | None, typer.Option(help="The mask, where it is apart from the store.")
                    ] = None,
) -> None:
    """Take some of a store's pairs, those that fit all that is given, into a store of its own."""
    from kdm_core.labels import parse_classes
    from kdm_core.pairs.keep import KeepMask
    from kdm_core.pairs.store import PairStore
    from kdm_core.pairs.subsets import Selection, select
    from kdm_core.pairs.subsets import subset as take
    from pipeline.params.reading import parse
    from pipeline.runtime.progress import Progress

    opened = PairStore.open(store)
    if mask is not None and not kept:
        raise PairsError("--mask: say --kept as well")
    if mask is not None:
        opened = opened.masked(KeepMask.load(mask))
    given: dict[str, Any] = {"splits": split} if split else {}
    selection = parse(Selection, {
        **given, "indices": parse_range(indices), "kept": kept, "train": train,
        "labels": parse_classes(labels, opened.spec.samples.label_names) if labels else []},
        "this command line")
    rows = select(opened, selection)
    with Progress("subset", sum(map(len, rows.values())), "pair") as progress:
        part = take(opened, out, rows, selection.in_words(), progress.update)
    typer.echo(f"{out}: {part.spec.count:,} of {opened.spec.count:,} pairs "
               f"({selection.in_words()}), content {part.content_hash()}")


@app.command()
def sample(
    store: Store,
    part: Annotated[str, typer.Option(metavar="K/N", help="The k-th of n parts; the others may be "
                                                          "sampled elsewhere and merged.")] = "1/1",
) -> None:
    """Sample the pairs of params.yaml into a store anywhere; one that is there is gone on with."""
    from pipeline.pairs.filling import sample_into
    from pipeline.runtime.runner import Stage

    first, separator, second = part.partition("/")
    if not (separator and first.isdecimal() and second.isdecimal()):
        raise PairsError(f"--part: '{part}' is no part such as 2/3")
    sampled = sample_into(Stage("sample_pairs"), store, (int(first), int(second)))
    missing = sampled.missing_shards()
    typer.echo(f"{store}: {sampled.spec.num_shards - len(missing)} of {sampled.spec.num_shards} "
               "shards" + ("" if missing else f", content {sampled.content_hash()}"))


add_commands(app)


def check(store: Any, teacher: Any, device: str) -> Any:
    """The damage of a store, and what the teacher says of its samples if there is one."""
    from kdm_core.compute import resolve_device
    from kdm_core.pairs.integrity.verifying import find_exchanged
    from kdm_core.pairs.integrity.verifying import verify as check_all
    from pipeline.runtime.progress import Progress

    with Progress("verify", store.spec.count, "pair") as progress:
        damage = check_all(store, progress.update)
    if teacher is None:
        return damage
    with Progress("compare", store.spec.count, "pair") as progress:
        exchanged = find_exchanged(store, teacher, resolve_device(device), progress.update)
    for name, shards in exchanged.items():
        damage = damage.losing(store.spec, name, shards)
    return damage


def show(store: Any, damage: Any) -> None:
    """Print what is wrong: rows from the first to before the second."""
    from kdm_core.pairs.merging import in_words

    if damage.missing:
        typer.echo(f"missing    {in_words(store.spec, damage.missing)}")
    for name, ranges in damage.ranges(store.spec).items():
        typer.echo(f"{name:10} {', '.join(f'{rows.start}:{rows.stop}' for rows in ranges)}")
    for sentence in damage.metadata:
        typer.echo(f"{'metadata':10} {sentence}")


def report(store: Any, damage: Any) -> None:
    """Say that a store is whole.

    Raises:
        PairsError: it is not.
    """
    if damage.foreign:
        typer.echo(f"not the store's: {', '.join(damage.foreign[:5])}"
                   + (f" and {len(damage.foreign) - 5} more" if len(damage.foreign) > 5 else ""),
                   err=True)
    if damage.whole:
        typer.echo(f"{store.location}: whole, {store.spec.count:,} pairs\n"
                   f"content {damage.content}")
        if store.expected_content not in (None, damage.content):
            raise PairsError(f"the reference names pairs of the content {store.expected_content}: "
                             "these are others (docs/storage.md)")
        return
    show(store, damage)
    raise PairsError(f"{store.location} is not whole: of {store.spec.count:,} pairs "
                     f"{damage.pairs:,} are incomplete; kdm pairs repair makes them again")


def load(store: Any, folder: Path | None, device: str, trust_code: bool) -> Any:
    """The teacher of a store on the device, if a folder is named."""
    from kdm_core.compute import resolve_device
    from kdm_core.pairs.integrity.repairing import load_recorded

    if folder is None:
        return None
    place, teacher = resolve_device(device), load_recorded(folder, store.spec, trust_code)
    match_conditions(store, place)
    return teacher.to(place)


def match_conditions(store: Any, device: Any) -> None:
    """Compute as the pairs were computed, as far as the store tells; say where that differs."""
    import platform

    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    recorded = store.provenance
    threads = recorded.get("threads")
    if isinstance(threads, int) and 0 < threads <= MAX_THREADS:
        torch.set_num_threads(threads)
    here = {"device": device.type, "threads": torch.get_num_threads(),
            "torch": torch.__version__, "machine": platform.machine()}
    differences = [f"{name} {recorded.get(name, 'unknown')} (here {value})"
                   for name, value in here.items() if recorded.get(name) != value]
    if differences:
        typer.echo(f"the pairs were sampled with {', '.join(differences)}: samples made here agree "
                   "with them to rounding", err=True)


def describe(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of `kdm pairs info`: what, and in words."""
    noise, solver, mask = found["noise"], found["solver"], found["mask"]
    size, each = found["bytes"], found["bytes_per_pair"]
    lines = [
        ("store", found["location"]),
        ("samples", f"{found['kind']} of shape {tuple(found['shape'])}, {found['sample_dtype']}, "
                    f"{len(found['labels']) or 'no'} labels"),
        ("pairs", f"{found['complete']:,} of {found['pairs']:,}"
                  + (f", missing {found['missing']}" if found["missing"] else "")),
        ("splits", ", ".join(f"{name} {count:,}" for name, count in found["splits"].items())),
        ("noise", f"{noise['kind']} {noise['dtype']}, "
                  + ("no seed" if noise["seed"] is None else f"seed {noise['seed']}")
                  + f", scale {noise['scale']:g}"),
        ("labels", None if found["label_law"] is None else f"drawn {found['label_law']}"),
        ("teacher", found["teacher"] or "unknown"),
        ("guidance", None if found["guidance"] is None else in_brackets(found["guidance"])),
        ("solver", "unknown" if solver is None else in_brackets(solver)
                   + (f", {found['nfe']} evaluations" if found["nfe"] else "")),
        ("states", str(found["states"]) if found["states"] else None),
        ("layout", f"shards of {found['shard']:,}, chunks of {found['chunk']:,}, compute batches "
                   f"of {found['compute_batch']:,} in {found['precision']}"),
        ("codecs", "; ".join(f"{name} {'+'.join(names)}"
                             for name, names in found["codecs"].items())),
        ("size", None if size is None else f"{size / 1e6:,.1f} MB"
                 + ("" if each is None else f", {each:,.0f} bytes a pair")),
        ("mask", None if mask is None else f"keeps {mask['kept']:,}; "
                 + ", ".join(f"{name} {count:,}" for name, count in mask["dropped"].items())),
        ("imported", found["imported"]),
        ("subset", None if found["subset"] is None else
         f"of {found['subset']['pairs'][:12]}: {found['subset']['rule']}"),
        ("made with", in_brackets(found["provenance"])),
        ("fingerprint", found["fingerprint"]),
    ]
    return [(name, text) for name, text in lines if text is not None]


def in_brackets(values: dict[str, Any]) -> str:
    """Keys and values on one line; those that are not set are left out."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def as_yaml(values: dict[str, Any]) -> str:
    """A section of a parameter file."""
    from ruamel.yaml import YAML

    buffer = io.StringIO()
    YAML().dump(values, buffer)
    return buffer.getvalue()


def parse_range(text: str) -> tuple[int, int] | None:
    """FIRST:STOP, or nothing."""
    first, separator, stop = text.partition(":")
    if not text:
        return None
    if not (separator and first.isdecimal() and stop.isdecimal()):
        raise PairsError(f"--indices: '{text}' is no range such as 0:5000")
    return int(first), int(stop)
