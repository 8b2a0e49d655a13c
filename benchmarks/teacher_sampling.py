"""Images a second of pair sampling, against the same network driven as EDM's generator drives it.

    python -m benchmarks.teacher_sampling [TEACHER_FOLDER]

Without a folder it takes a DDPM++ network for 32×32 images with random weights, half as wide and
half as deep as EDM's for CIFAR-10; what it makes does not look like anything, but costs the same.
EDM's generator (generate.py of NVlabs/edm) draws noise from one generator an image, keeps the
state in float64, evaluates the network in float32 and does no more about speed.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import ratio, rounds
from kdm_core.compute import resolve_device, seeded
from kdm_core.networks.song_unet import SongUNetConfig
from kdm_core.noise import draw
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import Denoiser, DenoiserConfig, Teacher, load_teacher

BATCH, STEPS, ROUNDS = 16, 18, 4


def random_teacher() -> Denoiser:
    """DDPM++ with 64 channels; the layers that start at zero are given weights too."""
    network = SongUNetConfig(kind="song_unet", channels=64, multipliers=[2, 2, 2], blocks=2)
    spec = SampleSpec(kind="image", shape=[3, 32, 32])
    with seeded(0):
        teacher = Denoiser(DenoiserConfig(kind="denoiser", network=network), spec)
        for parameter in teacher.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return teacher.eval().requires_grad_(False)


@torch.inference_mode()
def as_edm(teacher: Denoiser, seeds: range, labels: Tensor | None, device: torch.device) -> Tensor:
    """EDM's algorithm 1, deterministic, literally."""
    shape = teacher.spec.sample_shape
    latents = torch.stack([torch.randn(shape, generator=torch.Generator(device).manual_seed(seed),
                                       device=device) for seed in seeds])
    return heun(teacher, latents, labels)


@torch.inference_mode()
def heun(teacher: Teacher, latents: Tensor, labels: Tensor | None) -> Tensor:
    times = teacher.times(FixedSolver(kind="heun", steps=STEPS)).to(latents.device)
    x = latents.to(torch.float64) * times[0]
    for i, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
        slope = (x - teacher.denoise(x, t, labels)) / t
        proposal = x + (t_next - t) * slope
        if i < STEPS - 1:
            end = (proposal - teacher.denoise(proposal, t_next, labels)) / t_next
            proposal = x + (t_next - t) * (slope + end) / 2
        x = proposal
    return x


def main() -> None:
    device = resolve_device()
    teacher = load_teacher(Path(sys.argv[1]))[0] if sys.argv[1:] else random_teacher()
    teacher.to(device)
    classes = teacher.spec.num_classes
    solver = FixedSolver(kind="heun", steps=STEPS)

    def ours(precision: str) -> Tensor:
        noise, drawn = draw(0, range(BATCH), teacher.spec.sample_shape, "float16", classes)
        labels = torch.from_numpy(drawn).to(device) if classes else None
        x = torch.from_numpy(noise).to(device, torch.float32)
        return teacher.sample(x, labels, solver, precision).state.cpu()

    given = torch.zeros(BATCH, dtype=torch.int64, device=device) if classes else None
    reference = "as EDM's generator"
    seconds = rounds({
        reference: lambda: as_edm(teacher, range(BATCH), given, device).cpu(),
        "fp32": lambda: ours("fp32"),
        "bf16": lambda: ours("bf16"),
    }, ROUNDS)
    parameters = sum(p.numel() for p in teacher.parameters())
    print(f"{device}, {torch.get_num_threads()} threads, batch {BATCH}, "
          f"{2 * STEPS - 1} evaluations, {parameters:,} parameters")
    for name, times in seconds.items():
        rate = BATCH / sorted(times)[len(times) // 2]
        print(f"{name:>20} {rate:8.2f} images/s   {ratio(seconds[reference], times)}")
    deviations(ours("fp32"), ours("bf16"))


def deviations(exact: Tensor, rounded: Tensor) -> None:
    """How far bf16 samples are from fp32 ones, of values in [-1, 1]."""
    spread = exact.std()
    difference = (exact - rounded).abs()
    print(f"bf16 against fp32, same noise: largest deviation {difference.max():.4f}, "
          f"root mean square {difference.square().mean().sqrt():.4f} "
          f"(deviation of the samples themselves {spread:.3f})")


if __name__ == "__main__":
    main()
