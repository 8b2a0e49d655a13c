"""What pipelines of diffusers are made of, and which are read."""

from pathlib import Path
from typing import Any

from kdm_core.errors import DataError
from kdm_core.importers.diffusers_folder import CONFIG, PIPELINE, WEIGHTS

SCHEDULER = "scheduler_config.json"
FILES = [PIPELINE, *(f"{folder}{name}" for name in (CONFIG, WEIGHTS)
                     for folder in ("", "unet/", "transformer/")),
         SCHEDULER, f"scheduler/{SCHEDULER}"]
LATENT = "vae"
UNSUPPORTED = {"vqvae", "movq", "text_encoder"}
LABELS = "id2label"


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
