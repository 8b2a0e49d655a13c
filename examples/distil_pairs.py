"""Distil pairs of your own: noise, and what a model made of it. Takes seconds on a CPU.

    python examples/distil_pairs.py FOLDER

writes pairs.npy, pairs.zarr, the student and its samples into FOLDER. The model here is a function
that bends the plane; put yours in its place.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdm_core import KDM, PairStore, train
from kdm_core.pairs.reading.whole import read_split


def model(noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples (n, 2) of noise (n, 2)."""
    radius = 1 + 0.2 * np.tanh(noise[:, :1])
    angle = np.pi * np.tanh(noise[:, 1:])
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def main(folder: Path, steps: int = 1000) -> float:
    """Distil the model into a student; returns how far it is from the model on pairs that it has
    not seen, as a share of how far samples are from their mean."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal((20_000, 2), dtype=np.float32)
    np.save(folder / "pairs.npy", np.stack([noise, model(noise)]))
    subprocess.run(["kdm", "pairs", "import", "pairs.npy", "pairs.zarr"], cwd=folder, check=True)

    train(PairStore.open(folder / "pairs.zarr"), steps=steps).save(folder / "student")

    subprocess.run(["kdm", "sample", "student", "--n", "2000", "--out", "samples.png"],
                   cwd=folder, check=True)
    student = KDM.load(folder / "student")
    unseen = read_split(PairStore.open(folder / "pairs.zarr"), "test", torch.device("cpu"))
    made = student.generate(unseen.noise)
    error = float((made - unseen.samples).square().mean() / unseen.samples.var(dim=0).mean())
    print(f"error on unseen pairs: {error:.1%} of the samples' variance")
    return error


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
