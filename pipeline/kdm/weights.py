"""`kdm weights`: the networks that metrics need, where they are, and whether they are genuine."""

from pathlib import Path
from typing import Annotated

import typer

from kdm_core.errors import KDMError

app = typer.Typer(no_args_is_help=True, help="Weights of the networks that metrics need.")


class WeightsError(KDMError):
    """A weights command refuses what it was asked for, or found a file that is not genuine."""


@app.command("list")
def list_() -> None:
    """All weights in the registry: size, licence, purpose, and where they are."""
    from kdm_core.weights.registry import REGISTRY
    from kdm_core.weights.store import cache_folder, local

    for name, entry in REGISTRY.items():
        origin = f"package {entry.package}" if entry.package else entry.url
        typer.echo(f"{name:18} {entry.size / 1e6:7.1f} MB  {entry.licence:11} {entry.purpose}\n"
                   f"    {local(name) or 'missing'}\n    from {origin}\n"
                   f"    sha256 {entry.sha256}")
    typer.echo(f"the cache is {cache_folder()}")


@app.command()
def fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Download weights into the cache; what is there and genuine stays."""
    from kdm_core.weights.store import download

    check_names(names)
    for name in names:
        path = genuine(name)
        typer.echo(f"{name}: {f'already at {path}' if path else download(name)}")


@app.command()
def verify() -> None:
    """Compare the checksums of all weights that are on this machine."""
    from kdm_core.weights.registry import REGISTRY
    from kdm_core.weights.store import local

    damaged = []
    for name in REGISTRY:
        state = "missing" if local(name) is None else "ok" if genuine(name) else "wrong checksum"
        damaged += [name] if state == "wrong checksum" else []
        typer.echo(f"{name:18} {state:15} {local(name) or ''}".rstrip())
    if damaged:
        raise WeightsError(f"wrong checksums: {', '.join(damaged)}; `kdm weights fetch NAME` "
                           "replaces a file of the cache")


def genuine(name: str) -> Path | None:
    """Where a file of the right checksum is on this machine."""
    from kdm_core.serialization import file_sha256
    from kdm_core.weights.registry import REGISTRY
    from kdm_core.weights.store import local

    path = local(name)
    return path if path and file_sha256(path) == REGISTRY[name].sha256 else None


def check_names(names: list[str]) -> None:
    """Raises: WeightsError: a name is not in the registry."""
    from kdm_core.weights.registry import REGISTRY

    if unknown := [name for name in names if name not in REGISTRY]:
        raise WeightsError(f"no weights '{unknown[0]}'; there are {', '.join(REGISTRY)}")
