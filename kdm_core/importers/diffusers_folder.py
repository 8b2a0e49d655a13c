"""Folders as diffusers' `save_pretrained` writes them; nothing in them is executed."""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from kdm_core.errors import DataError

CONFIG, PIPELINE = "config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_CONFIG = 2**22


def read_json_of_others(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: it is damaged.
    """
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise DataError(f"{path} is larger than any configuration: fetch it again")
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}): fetch it again") from error


def read_index(folder: Path) -> dict[str, Any]:
    """What the pipeline's own file says; empty if there is none.

    Raises:
        DataError: it is damaged.
    """
    path = folder / PIPELINE
    index = read_json_of_others(path) if path.is_file() else {}
    if not isinstance(index, dict):
        raise DataError(f"{path} holds no JSON object: fetch it again")
    return index


def locate(folder: Path, subfolders: tuple[str, ...], name: str) -> Path:
    """A file in one of its subfolders, or in the folder itself.

    Raises:
        DataError: it is in none.
    """
    for place in (*(folder / subfolder for subfolder in subfolders), folder):
        if (place / name).is_file():
            return place / name
    places = ", ".join(f"{subfolder}/{name}" for subfolder in subfolders)
    raise DataError(f"{folder} holds neither {places} nor {name}: name a folder that "
                    "diffusers' save_pretrained wrote for a pipeline", field="folder")


def read_config(
    path: Path, classes: tuple[str, ...], way_out: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """A configuration of diffusers that describes one of these classes.

    Args:
        way_out: what to do about a configuration of another class.

    Raises:
        DataError: it is damaged, or describes something else.
    """
    document = read_json_of_others(path)
    name = document.get("_class_name") if isinstance(document, dict) else None
    if not isinstance(document, dict) or name not in classes:
        raise DataError(f"{path} describes {str(name)[:100]}; supported: {', '.join(classes)}. "
                        f"{way_out(document if isinstance(document, dict) else {})}")
    return document


def require_weights(place: Path) -> None:
    """Make sure that there are weights that can be read without executing anything.

    Raises:
        DataError: there are none.
    """
    if not (place / WEIGHTS).is_file():
        pickled = (place / WEIGHTS).with_suffix(".bin").is_file()
        raise DataError(
            f"{place} holds no {WEIGHTS}" + (
                "; its .bin is a pickle, which could run code and is not read: convert it with "
                "diffusers, save_pretrained(…, safe_serialization=True), on a machine that may"
                if pickled else ": it is incomplete, fetch it again"), field="folder")


def load_network(kind: Any, place: Path) -> Any:
    """A network of diffusers' class `kind`, by diffusers itself, which knows tensors' older names.

    Raises:
        DataError: the file is damaged, or not that of this network.
    """
    try:
        network, found = kind.from_pretrained(
            place, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False,
            torch_dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # of safetensors, of torch, and of what diffusers makes of a config
        text = " ".join(str(error).split())[:400]
        raise DataError(f"diffusers cannot load {place} ({text}): fetch it again",
                        field="folder") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in found[problem]):
            raise DataError(f"{place / WEIGHTS} does not fit {place / CONFIG}: {len(names)} "
                            f"{problem.replace('_', ' ')} ({', '.join(names[:3])}): fetch both "
                            "again")
    return network


def network_arguments(
    network: Any, described: dict[str, Any], path: Path, derived: tuple[str, ...] = ()
) -> dict[str, Any]:
    """All arguments of a network, defaults included, as JSON has them.

    Args:
        derived: what else its configuration says, and follows from the arguments.

    Raises:
        DataError: the file has one that this version of diffusers does not know.
    """
    known = set(inspect.signature(type(network).__init__).parameters) - {"self"}
    require_known(described, known | {*derived}, path)
    arguments: dict[str, Any] = json.loads(json.dumps(
        {name: value for name, value in network.config.items() if name in known}))
    return arguments


def require_known(described: Mapping[str, Any], known: set[str], path: Path) -> None:
    """Refuse arguments that this version of diffusers does not know.

    Raises:
        DataError: there is one.
    """
    if unknown := sorted(name for name in described.keys() - known if not name.startswith("_")):
        raise DataError(f"{path}: this version of diffusers knows no {', '.join(unknown)}; remove "
                        "it if it means nothing, or install a newer version")


def reason(error: Exception) -> str:
    """What a validation found, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(str(part) for part in found['loc'])} {found['msg']}".strip()
                         for found in error.errors()[:3])
    return str(error)
