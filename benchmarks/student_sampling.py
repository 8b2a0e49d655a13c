"""Images a second of a one-step student: against its teacher, and against a plain sampler.

    python -m benchmarks.student_sampling [digits images] [--channels 32] [--rounds 5]

The teacher has about as many parameters and takes 35 evaluations an image (Heun, 18 steps).
The plain sampler runs the same student as the published code samples: in float32, with the default
memory format, einsum attention and convolutions whose bias is added afterwards. Weights are random,
which costs the same as trained ones.

    digits  residual MLPs for 8×8 images (the default run's), batch 500
    images  DDPM++ U-Nets for 32×32 images, batch 64
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.published_student import PublishedStudent
from benchmarks.timing import ratio, rounds
from kdm_core.compute import resolve_device, resolve_precision, seeded
from kdm_core.networks import MLPConfig, NetworkConfig, SongUNetConfig
from kdm_core.operators import DenseConfig
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.teachers import Denoiser, DenoiserConfig

Name = Literal["digits", "images"]
SOLVER = FixedSolver(kind="heun", steps=18)


class Case(NamedTuple):
    """Networks of teacher and student, of about the same size."""

    spec: SampleSpec
    teacher: MLPConfig | SongUNetConfig
    student: NetworkConfig
    latent: int
    batch: int


def build_case(name: Name, channels: int) -> Case:
    if name == "digits":
        return Case(SampleSpec(kind="image", shape=[1, 8, 8]),
                    MLPConfig(kind="mlp", width=512, blocks=4),
                    MLPConfig(kind="mlp", width=384, blocks=4), 128, 500)
    # A student has three networks: the teacher's one has as many parameters as all of them.
    widened = 4 * round(channels * 3**0.5 / 4)
    return Case(SampleSpec(kind="image", shape=[3, 32, 32]),
                SongUNetConfig(kind="song_unet", channels=widened),
                SongUNetConfig(kind="song_unet", channels=channels), 1024, 64)


def measure(name: Name, channels: int, count: int, device: torch.device) -> None:
    case = build_case(name, channels)
    with seeded(0):
        config = KDMConfig(encoder=case.student, decoder=case.student, latent=case.latent,
                               operator=DenseConfig(kind="dense"))
        student = KDM(config, case.spec).eval().to(device)
        teacher = Denoiser(DenoiserConfig(kind="denoiser", network=case.teacher), case.spec)
        teacher = teacher.eval().requires_grad_(False).to(device)
        noise = torch.randn(case.batch, *case.spec.sample_shape, device=device)
    published = PublishedStudent.of(student).eval()

    @torch.inference_mode()
    def plain() -> Tensor:
        return finished(published(noise))

    torch.testing.assert_close(plain(), student.generate(noise, precision="fp32"),
                               rtol=1e-3, atol=1e-4)
    precision = resolve_precision("auto", device)
    candidates: dict[str, Callable[[], object]] = {
        "teacher": lambda: finished(teacher.sample(noise, None, SOLVER, precision).state),
        "plain sampler": plain,
        "fp32": lambda: finished(student.generate(noise, precision="fp32"))}
    if precision == "bf16":
        candidates["bf16"] = lambda: finished(student.generate(noise, precision="bf16"))
    seconds = rounds(candidates, count)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (teacher, student)]
    print(f"{name}: teacher of {sizes[0]:,} parameters in {precision}, student of {sizes[1]:,}, "
          f"batch {case.batch}, {device}, {torch.get_num_threads()} threads")
    for label, times in seconds.items():
        rate = case.batch / statistics.median(times)
        print(f"  {label:>13} {rate:10,.0f} images/s   {ratio(seconds['teacher'], times)} of the "
              f"teacher's   {ratio(seconds['plain sampler'], times)} of the plain sampler's")


def finished(images: Tensor) -> Tensor:
    """The images, when they are there."""
    if images.is_cuda:
        torch.cuda.synchronize()
    return images


def main() -> None:
    names: list[Name] = ["digits", "images"]
    parser = argparse.ArgumentParser(description="Students' images a second.")
    parser.add_argument("cases", nargs="*", choices=[*names, []], default=names)
    parser.add_argument("--channels", type=int, default=32, help="of the U-Nets' first level")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.cases:
        measure(name, arguments.channels, arguments.rounds, resolve_device())


if __name__ == "__main__":
    main()
