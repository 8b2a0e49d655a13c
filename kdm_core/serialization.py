"""Models on disk: a folder with `weights.safetensors` and `config.json`, nothing executable.

Files are written beside their place and renamed into it, so a kill leaves the old or the new one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdm_core.errors import DataError, MismatchError

WEIGHTS = "weights.safetensors"
CONFIG = "config.json"
REMARKS = "remarks"  # in CONFIG: what is known of a model but does not change what it computes


def write_atomic(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, durably and all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}; free some space or "
                        "check the permissions, then run again") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a diff can read: sorted keys, one entry a line, no NaN."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON, or say which file is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: correct the folder, or make it again") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): delete it and make it again"
                        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and a few strings as one safetensors file."""
    from safetensors.torch import save

    cpu: dict[str, Tensor] = {}
    storages = set()
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu().contiguous()
        # The format has no tied weights: each name gets values of its own.
        shared = kept.untyped_storage().data_ptr() in storages
        cpu[name] = kept.clone() if shared else kept
        storages.add(kept.untyped_storage().data_ptr())
    write_atomic(path, save(cpu, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_tensors` wrote, onto the CPU."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: correct the folder, or make it again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and make it again") from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in lower-case hexadecimal digits.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check the disk and the "
                        "permissions") from error


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 over a configuration and the names, dtypes, shapes and bytes of tensors."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted((tensors or {}).items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(
    folder: Path, model: nn.Module, config: dict[str, Any], remarks: dict[str, Any] | None = None
) -> str:
    """Write a model's weights and configuration; returns its fingerprint, also in config.json.

    Args:
        remarks: of the model, for `read_remarks`; the fingerprint is the same with others.
    """
    weights = model.state_dict()
    mark = fingerprint(config, weights)
    write_tensors(folder / WEIGHTS, weights, {"fingerprint": mark})
    noted = {REMARKS: remarks} if remarks else {}
    write_json(folder / CONFIG, {**config, **noted, "fingerprint": mark})
    return mark


def read_remarks(folder: Path) -> dict[str, Any]:
    """The remarks that `save_model` wrote; empty if there were none."""
    remarks: dict[str, Any] = read_json(folder / CONFIG).get(REMARKS, {})
    return remarks


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """What `save_model` wrote, as it lies there: configuration, weights and fingerprint.

    Raises:
        DataError: a file is missing or damaged.
        MismatchError: weights and configuration do not belong together.
    """
    config = read_json(folder / CONFIG)
    mark, _ = config.pop("fingerprint", None), config.pop(REMARKS, None)
    weights, metadata = read_tensors(folder / WEIGHTS)
    if mark is None or metadata.get("fingerprint") != mark or fingerprint(config, weights) != mark:
        raise MismatchError(f"{folder / WEIGHTS} and {folder / CONFIG} do not belong together or "
                            "were altered: copy or make both again")
    return config, weights, mark


def load_model(folder: Path, build: Callable[[dict[str, Any]], nn.Module]) -> tuple[Any, str]:
    """Rebuild a model that `save_model` wrote.

    Args:
        folder: where it lies.
        build: makes the module, with any weights, from the configuration.

    Returns:
        The module in eval mode on the CPU, and its fingerprint.

    Raises:
        DataError, MismatchError: as `read_model`; or the weights are not those of such a module.
    """
    config, weights, mark = read_model(folder)
    model = build(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise MismatchError(f"{folder / WEIGHTS}: missing tensors {missing}, "
                            f"unexpected tensors {unexpected}")
    return model.eval().requires_grad_(False), mark
