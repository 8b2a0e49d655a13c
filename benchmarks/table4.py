"""The paper's table 4: KDM beside the generative equilibrium transformer, as ratios.

    OMP_NUM_THREADS=1 python -m benchmarks.table4 [--batch 8] [--images 1000] [--small]

A training step and the sampling of images, at CIFAR-10's size and about as many parameters: GET's
size B (62.2 M, six iterations with full backpropagation) and the paper's KDM (DDPM++ encoder and
decoder, LPIPS left out of both, so that the networks are compared). `--small`: both at a sixteenth
of the width, to try it. Published: four times as fast a step, eight times as fast to sample.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from pydantic import TypeAdapter

from kdm_core.compute import resolve_device
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.students import Student, StudentConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.training.config import TrainingConfig

CONFIG: TypeAdapter[StudentConfig] = TypeAdapter(StudentConfig)
SPEC = SampleSpec(kind="image", shape=[3, 32, 32], sigma_data=0.5)
LOSSES = {"adversarial": 0.0}
DIRECT = {"reconstruction": 0.0, "latent": 0.0, "latent_noise": 0.0}


def students(small: bool) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Models and losses, by name."""
    channels, width, heads = (16, 48, 4) if small else (128, 768, 12)
    unet = {"kind": "song_unet", "channels": channels, "multipliers": [1, 2, 2, 2], "blocks": 1,
            "attention": [16], "dropout": 0.0}
    get = {"kind": "get", "width": width, "injection": 1, "heads": heads, "mlp_ratio": 12}
    # 62 M parameters for a sample, as GET's.
    kdm = {"kind": "kdm", "encoder": unet, "decoder": {**unet, "blocks": 2}, "latent": 1024,
           "operator": {"kind": "dense"}}
    return {"kdm": (kdm, LOSSES),
            "get": ({"kind": "direct", "denoiser": {"kind": "denoiser", "network": get}},
                    {**LOSSES, **DIRECT})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    device = resolve_device("auto")
    noise = torch.randn(arguments.batch, *SPEC.shape)
    pairs = Pairs(noise, noise.tanh(), torch.full((arguments.batch,), -1))
    tasks: dict[str, StudentTask] = {}
    for name, (model, losses) in students(arguments.small).items():
        training = TrainingConfig(steps=1000, batch=arguments.batch, checkpoint_every=1000)
        student = CONFIG.validate_python(model).build(SPEC).to(device)
        tasks[name] = StudentTask(student, LossConfig.model_validate(losses), training,
                                  ResidentReader.of(pairs, arguments.batch, 0), pairs, 0)
        print(f"{name}: {used(student):,} parameters when sampling, "
              f"{sum(p.numel() for p in student.parameters()):,} in training", flush=True)
    counts = {name: iter(range(1000)) for name in tasks}
    steps = {name: (lambda task=task, name=name: task.seeded_step(next(counts[name])))
             for name, task in tasks.items()}
    compare("a training step", steps, 5)
    part = min(arguments.images, 50)
    labels = None
    samples = {name: (lambda task=task: task.ema.shadow.generate(
        noise[:1].expand(part, -1, -1, -1).to(device), labels)) for name, task in tasks.items()}
    compare(f"{arguments.images} images", samples, 3, arguments.images / part)
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB, "
          "both students at once")


def compare(what: str, work: dict[str, Callable[[], Any]], rounds: int, times: float = 1) -> None:
    """Median CPU seconds of both, in turn, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, one in work.items():
            began = time.process_time()
            one()
            found[name].append(times * (time.process_time() - began))
    seconds = {name: statistics.median(values[1:]) for name, values in found.items()}
    ratios = [get / kdm for get, kdm in zip(found["get"][1:], found["kdm"][1:], strict=True)]
    print(f"{what}: kdm {seconds['kdm']:.3g} s, get {seconds['get']:.3g} s, "
          f"{statistics.median(ratios):.2f}× ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def used(student: Student) -> int:
    """Parameters that a sample takes."""
    unused = getattr(student, "data_encoder", None)
    total = sum(p.numel() for p in student.parameters())
    return total - (0 if unused is None else sum(p.numel() for p in unused.parameters()))


if __name__ == "__main__":
    main()
