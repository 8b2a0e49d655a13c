"""One training step of a student against a step written the way the published code does it.

    python -m benchmarks.train_step [CASE …] [--channels 16] [--rounds 5] [--compile] [--profile]

Both start from the same weights and minimise the same loss on the same batch; that they do the same
work is checked first, in float32 and with the same random numbers. Then they take turns.

    checkerboard     MLPs, latent 256, three mean squared errors, batch 4096
    images           DDPM++ U-Nets for 32×32 images, latent 1024, LPIPS, the paper's adversary
    spectrum         MLPs, latent 1024, batch 128, with a spectral penalty: KDM-F, whose consistency
                     is computed or estimated, against a dense matrix and eigvals
    spectrum-images  the same with the networks and losses of `images`

The last two compare two forms of the operator, so their losses differ; that the rest is the same
work is what the first two check.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.profiler import profile

from benchmarks.published_student import Drawn, PairwiseLPIPS, PublishedStep, PublishedStudent
from benchmarks.timing import ratio, rounds
from kdm_core.compute import Precision, has_native_bf16, resolve_device, seeded
from kdm_core.losses.discriminator import Discriminator
from kdm_core.losses.distances import LPIPSConfig, MSEConfig, build_distance
from kdm_core.networks import MLPConfig, SongUNetConfig
from kdm_core.operators import DenseConfig, FactorisedConfig, OperatorConfig, SpectrumConfig
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import Batch, LossConfig, Objective
from kdm_core.students.training import StudentTask
from kdm_core.training.config import TrainingConfig

Name = Literal["checkerboard", "images", "spectrum", "spectrum-images"]
NAMES: list[Name] = list(get_args(Name))
BATCHES = 4
"""How many batches of pairs there are; each is seen again in the next epoch."""


class Case(NamedTuple):
    """What is trained, and on how many pairs a step."""

    spec: SampleSpec
    model: KDMConfig
    losses: LossConfig
    batch: int


def build_case(name: Name, channels: int, estimate: bool = False) -> Case:
    operator: OperatorConfig = DenseConfig(kind="dense")
    if name.startswith("spectrum"):
        operator = FactorisedConfig(kind="factorised", estimate=estimate,
                                    spectrum=SpectrumConfig(kind="uniform"))
    if name in ("checkerboard", "spectrum"):
        network = MLPConfig(kind="mlp", width=256, blocks=2)
        latent, batch = (256, 4096) if name == "checkerboard" else (1024, 128)
        return Case(SampleSpec(kind="points", shape=[2], sigma_data=2.3),
                    KDMConfig(encoder=network, decoder=network, latent=latent,
                                  operator=operator),
                    LossConfig(distance=MSEConfig(kind="mse"), adversarial=0.0), batch)
    unet = SongUNetConfig(kind="song_unet", channels=channels)
    return Case(SampleSpec(kind="image", shape=[3, 32, 32]),
                KDMConfig(encoder=unet, decoder=unet, latent=1024, operator=operator),
                LossConfig(distance=LPIPSConfig(kind="lpips", resolution=0, pooling="average")),
                16)


def random_pairs(case: Case, device: torch.device) -> Pairs:
    """What they show is of no matter to the time of a step."""
    count, shape = BATCHES * case.batch, case.spec.sample_shape
    return Pairs(torch.randn(count, *shape, device=device),
                 2 * torch.rand(count, *shape, device=device) - 1,
                 torch.full((count,), -1, device=device))


def published_step(case: Case, student: KDM) -> PublishedStep:
    """With a copy of the student's weights; its operator is dense, and penalised if ours is."""
    device, images = student.operator.zero.device, case.spec.kind == "image"
    published, targets = PublishedStudent.of(student), None
    if student.operator.spectrum is not None:
        dense = torch.nn.Linear(case.model.latent, case.model.latent, device=device)
        published.operator = dense
        targets = torch.view_as_complex(student.operator.spectrum.targets)
    return PublishedStep(
        published, discriminator=Discriminator(case.spec).to(device) if images else None,
        distance=PairwiseLPIPS().to(device) if images else None, targets=targets)


def check_same_work(case: Case, student: KDM, pairs: Pairs) -> None:
    """Compare all terms of the loss and its gradients by both ways, without dropout.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    noise, samples = pairs.noise[: case.batch], pairs.samples[: case.batch]
    latent_noise = torch.randn(case.batch, 2, case.model.latent, device=noise.device)
    own = copy.deepcopy(student).eval()
    published = published_step(case, student)
    published.student.eval()
    objective = Objective(own, case.losses, build_distance(case.losses.distance, noise.device))
    terms, predicted = objective(Batch(noise, samples, None, latent_noise))
    theirs, their_predicted = published.terms(noise, samples, Drawn(*latent_noise.unbind(1)))
    torch.testing.assert_close(predicted, their_predicted, rtol=1e-3, atol=1e-5)
    for name, term in theirs.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-4, atol=1e-6)
    gradients = torch.autograd.grad(torch.stack([terms[name] for name in theirs]).sum(),
                                    list(own.decoder.parameters()))
    their_gradients = torch.autograd.grad(torch.stack(list(theirs.values())).sum(),
                                          list(published.student.decoder.parameters()))
    ours, reference = (torch.cat([g.flatten() for g in found])
                       for found in (gradients, their_gradients))
    deviation = float((ours - reference).norm() / reference.norm())
    assert deviation < 1e-3, f"the decoder's gradients differ by {deviation:.1e}"
    print(f"  same loss and gradients: terms within 1e-4, gradients within {deviation:.0e}")


def our_step(case: Case, student: KDM, pairs: Pairs, precision: Precision,
             compile: Literal["on", "off"] = "off") -> Callable[[], object]:
    """A function that trains a copy of the student by one step."""
    config = TrainingConfig(steps=10**6, batch=case.batch, ema=0.9999, precision=precision,
                            compile=compile)
    reader = ResidentReader.of(pairs, config.batch, seed=0)
    task = StudentTask(copy.deepcopy(student), case.losses, config, reader, pairs, seed=0)
    steps = iter(range(config.steps))

    def step() -> Tensor:
        loss = task.seeded_step(next(steps))["loss"]
        wait(loss.device)
        return loss

    return step


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(
    name: Name, channels: int, count: int, device: torch.device, compile: bool, profiled: bool
) -> None:
    case = build_case(name, channels)
    with seeded(0):
        student = KDM(case.model, case.spec).to(device)
        pairs = random_pairs(case, device)
    parameters = sum(p.numel() for p in student.parameters())
    print(f"{name}: {parameters:,} parameters, latent {case.model.latent}, batch {case.batch}, "
          f"{device}, {torch.get_num_threads()} threads")
    if not name.startswith("spectrum"):
        check_same_work(case, student, pairs)
    theirs = published_step(case, student)

    def published() -> None:
        theirs.step(pairs.noise[: case.batch], pairs.samples[: case.batch])
        wait(device)

    candidates: dict[str, Callable[[], object]] = {
        "published way": published, "fp32": our_step(case, student, pairs, "fp32")}
    if has_native_bf16(device):
        candidates["bf16"] = our_step(case, student, pairs, "bf16")
    if compile:
        candidates["compiled"] = our_step(case, student, pairs, "auto", "on")
    if name.startswith("spectrum"):
        estimated = build_case(name, channels, estimate=True)
        with seeded(0):
            other = KDM(estimated.model, estimated.spec).to(device)
        candidates["estimate"] = our_step(estimated, other, pairs, "auto")
    seconds = rounds(candidates, count)
    for label, times in seconds.items():
        print(f"  {label:>13} {1000 * sorted(times)[len(times) // 2]:8.1f} ms   "
              f"{ratio(seconds['published way'], times)}")
    if profiled:
        for label, step in candidates.items():
            print(f"{label}:\n{profile_of(step)}")


def profile_of(step: Callable[[], object]) -> str:
    """Where the time of a step goes: operations by the time in themselves."""
    with profile() as found:
        step()
    table: str = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15,
                                            max_name_column_width=40)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*NAMES, []], default=NAMES)
    parser.add_argument("--channels", type=int, default=16, help="of the U-Nets' first level")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true",
                        help="also with torch.compile, which takes a while at first")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    arguments = parser.parse_args()
    for name in arguments.cases:
        measure(name, arguments.channels, arguments.rounds, resolve_device(), arguments.compile,
                arguments.profile)


if __name__ == "__main__":
    main()
