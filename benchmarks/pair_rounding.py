"""What depends on who computes: noise never, samples in their last bits.

The same pairs are sampled with another compute batch, another number of threads, and on this
machine's accelerator if it has one, by teachers of random weights; or by the one whose folder is
given.
"""

import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from kdm_core.compute import resolve_device, seeded
from kdm_core.networks import MLPConfig, UNetConfig
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_shard
from kdm_core.pairs.store import Block
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import Denoiser, DenoiserConfig, Teacher, load_teacher
from kdm_core.values import to_uint8

PAIRS, BATCH = 200, 50
NETWORKS = {
    "MLP": MLPConfig(kind="mlp", width=232, blocks=4),
    "U-Net": UNetConfig(kind="unet", channels=16, multipliers=[1, 2], blocks=1, attention=[8]),
}
CPU = torch.device("cpu")


def untrained(network: MLPConfig | UNetConfig) -> Teacher:
    """A teacher of 3×8×8 images whose last layers, zero at first, have random weights, too."""
    samples = SampleSpec(kind="image", shape=[3, 8, 8], sigma_data=0.5)
    with seeded(0):
        teacher = Denoiser(DenoiserConfig(kind="denoiser", network=network), samples).eval()
        for parameter in teacher.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return teacher.requires_grad_(False)


def pairs(
    teacher: Teacher, precision: Literal["fp32", "bf16"], batch: int = BATCH, threads: int = 1,
    device: torch.device = CPU,
) -> Block:
    """The first pairs, with float32 samples, sampled under some conditions."""
    config = PairsConfig(
        solver=FixedSolver(kind="heun", steps=18), test=2, validation=2, train=PAIRS - 4,
        precision=precision, batch=batch, shard=PAIRS, chunk=PAIRS, sample_dtype="float32")
    torch.set_num_threads(threads)
    spec = plan_store(config, teacher, "0" * 64, None, 0, device)
    return sample_shard(spec, teacher.to(device), 0, device)[0]


def compare(name: str, usual: Block, other: Block) -> None:
    """Print by how much the same pairs differ."""
    same = "same" if np.array_equal(usual.noise, other.noise) else "DIFFERS"
    images = (to_uint8(torch.from_numpy(block.sample)).short() for block in (usual, other))
    steps = (next(images) - next(images)).abs()
    exact = np.abs(usual.sample - other.sample).max()
    print(f"  {name:22}{same:>8}{float((steps > 0).float().mean()):18.4%}"
          f"{int(steps.max()):14d}{exact:22.1e}")


def conditions() -> dict[str, dict[str, Any]]:
    """What is varied, one at a time."""
    found: dict[str, dict[str, Any]] = {"the same again": {}}
    found |= {f"compute batch {batch}": {"batch": batch} for batch in (1, 10, 200)}
    found |= {f"{threads} threads": {"threads": threads} for threads in (2, 4)}
    device = resolve_device("auto")
    return found if device.type == "cpu" else {**found, str(device): {"device": device}}


def main() -> None:
    teachers = ({sys.argv[1]: load_teacher(Path(sys.argv[1]))[0]} if len(sys.argv) > 1
                else {name: untrained(network) for name, network in NETWORKS.items()})
    print(f"{PAIRS} pairs against those of one thread of the CPU and a compute batch of {BATCH}")
    print(f"{'':24}{'noise':>8}{'differing uint8':>18}{'largest step':>14}"
          f"{'largest float32 step':>22}")
    for name, teacher in teachers.items():
        for precision in ("fp32", "bf16"):
            print(f"{name}, {precision}")
            usual = pairs(teacher, precision)
            for changed, values in conditions().items():
                compare(changed, usual, pairs(teacher, precision, **values))
                teacher.to(CPU)


if __name__ == "__main__":
    main()
