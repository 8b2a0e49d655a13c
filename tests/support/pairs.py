"""Small pair stores, and damage to them."""

from pathlib import Path

import numpy as np
import torch

from kdm_core.networks import MLPConfig
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_pairs
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import Denoiser, DenoiserConfig

CPU = torch.device("cpu")
SPEC = SampleSpec(kind="image", shape=[1, 4, 4], label_names=["a", "b"], sigma_data=0.5)


def teacher() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(
        DenoiserConfig(kind="denoiser", network=MLPConfig(kind="mlp", width=16, blocks=1)),
        SPEC).eval().requires_grad_(False)


def config(**changes: object) -> PairsConfig:
    values = {"solver": FixedSolver(kind="heun", steps=3), "train": 70, "validation": 5,
              "test": 10, "precision": "fp32", "batch": 8, "shard": 16, "chunk": 4, **changes}
    return PairsConfig.model_validate(values)


def plan(**changes: object) -> StoreSpec:
    return plan_store(config(**changes), teacher(), "f" * 64, None, 0, CPU)


def sampled(path: Path, **changes: object) -> PairStore:
    store = PairStore.create(path, plan(**changes), {})
    sample_pairs(store, teacher(), CPU)
    return store


FIXTURES = Path(__file__).parent / "pairs-v1"
SIZES = {"train": 30, "validation": 2, "test": 3}
PAIRS = 35


def small(location: Path | str, **changes: object) -> PairStore:
    store = PairStore.create(location, plan(**{**SIZES, **changes}), {"numpy": np.__version__})
    sample_pairs(store, teacher(), CPU)
    return store


def shard_path(store: PairStore, name: str, shard: int) -> Path:
    return Path(store.location) / store.shard_file(name, shard).path


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def files(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes()
            for file in sorted(store.rglob("*")) if file.is_file()}


class Counted:
    """A teacher that counts the batches it is given."""

    def __init__(self) -> None:
        self.teacher, self.batches = teacher(), 0

    def sample(self, *args: object, **kwargs: object) -> object:
        self.batches += 1
        return self.teacher.sample(*args, **kwargs)  # type: ignore[arg-type]
