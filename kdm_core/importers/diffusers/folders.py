"""What lies in a folder of diffusers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdm_core.errors import DataError

CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = [PIPELINE, *(f"{folder}{name}" for name in (CONFIG, WEIGHTS)
                     for folder in ("", "unet/", "transformer/")),
         SCHEDULER, f"scheduler/{SCHEDULER}"]
LATENT = "vae"
UNSUPPORTED = {"vqvae", "movq", "text_encoder"}
LABELS = "id2label"
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


def parts_of(folder: Path, index: dict[str, Any]) -> set[str]:
    """Names of all that the pipeline is made of, and of what else is in the folder."""
    return {path.name for path in folder.iterdir()} | set(index)


def require_supported(folder: Path, parts: set[str]) -> None:
    """Refuse pipelines that work on a text, or on other latents than those of a `vae`.

    Raises:
        DataError: it is one.
    """
    if found := sorted(parts & UNSUPPORTED):
        raise DataError(f"{folder} has a {found[0]}: text-conditional pipelines are not supported, "
                        "nor are latents of a codebook; choose one that makes pixels, or latents "
                        f"of a {LATENT}, from noise", field="folder")


def class_table(folder: Path, index: dict[str, Any], count: int) -> list[str] | None:
    """What the pipeline calls its classes, in their order; None if it does not say.

    Raises:
        DataError: it does not name each class once.
    """
    table = index.get(LABELS)
    if table is None:
        return None
    if (not isinstance(table, dict) or len(table) != count
            or not all(isinstance(table.get(str(number)), str) for number in range(count))):
        raise DataError(f"{folder / PIPELINE}: {LABELS} does not name the network's {count} "
                        "classes, each by its number: fetch it again, or remove that entry")
    return [table[str(number)] for number in range(count)]


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
