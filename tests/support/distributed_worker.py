"""What test_distributed.py trains, in one process or, started as a program, in two.

    python -m tests.support.distributed_worker PART FOLDER
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdm_core.compute import dropout_seed, is_worker, seeded
from kdm_core.errors import KDMError
from kdm_core.losses.adversary import AdversaryConfig
from kdm_core.losses.features import NOWHERE, Frozen
from kdm_core.metrics.classifier import Classifier, ClassifierConfig
from kdm_core.networks import GETConfig, MLPConfig, NetworkConfig, OwnNetwork, SongUNetConfig
from kdm_core.operators import DenseConfig, FactorisedConfig, OperatorConfig
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.serialization import write_json
from kdm_core.students.base import Student
from kdm_core.students.denoising import DenoisingConfig
from kdm_core.students.direct import DirectConfig
from kdm_core.students.given import Given
from kdm_core.students.hierarchical import HierarchicalConfig
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.mean_flow import MeanFlowConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.rectified_flow import RectifiedFlowConfig
from kdm_core.students.training import StudentTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.distributed import (
    check_batch,
    check_start,
    distributed,
    is_main,
    one_failure,
    own_rows,
    own_seed,
    process_group,
    rank,
    synchronised,
)
from kdm_core.training.launcher import launch
from kdm_core.training.loop import Record, fit

PROCESSES = 2
KILLED_AT = 7
POINTS = SampleSpec(kind="points", shape=[2], sigma_data=2.0)
IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)
MLP = MLPConfig(kind="mlp", width=16, blocks=1)
# Without attention, whose keys' biases change nothing: rounding decides what Adam makes of them.
UNET = SongUNetConfig(kind="song_unet", channels=16, multipliers=[1, 2], blocks=1, attention=[],
                      dropout=0.0)
EQUILIBRIUM = GETConfig(kind="get", width=16, heads=2, mlp_ratio=2, iterations=2)

ROUNDING = 1e-4
"""Adam's eps: a gradient of no more than rounding must not become a step of full length."""


def task_of(
    student: Student, losses: LossConfig, frozen: Frozen = NOWHERE, **training: object
) -> StudentTask:
    """A short training of a student on made-up pairs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(80, *student.spec.sample_shape, generator=generator)
    states = torch.randn(80, 3, *student.spec.sample_shape, generator=generator)
    pairs = Pairs(noise, noise.tanh(), torch.arange(80) % 3, states.to(torch.float16),
                  torch.tensor([0.75, 0.5, 0.25]))
    config = TrainingConfig.model_validate({
        "steps": 12, "batch": 8, "lr": 3e-4, "schedule": "cosine", "ema": 0.9, "clip": 1.0,
        "precision": "fp32", "checkpoint_every": 5, "log_every": 3, **training})
    held_out = Pairs(*(part[:8] for part in pairs[:3]))
    reader = ResidentReader.of(pairs, config.batch, seed=0)
    task = StudentTask(student, losses, config, reader, held_out, seed=0,
                       given=Given(frozen=frozen))
    for group in task.optimizer.adam.param_groups:
        group["eps"] = ROUNDING
    return task


def student_task(
    spec: SampleSpec, network: NetworkConfig, latent: int, operator: OperatorConfig,
    losses: LossConfig, frozen: Frozen = NOWHERE, **training: object,
) -> StudentTask:
    with seeded(0):
        student = KDM(KDMConfig(encoder=network, decoder=network, latent=latent,
                                    operator=operator), spec)
    return task_of(student, losses, frozen, **training)


def denoising(
    kind: type[DenoisingConfig], network: OwnNetwork = UNET, endpoint: float = 0.0,
    **training: object,
) -> StudentTask:
    """A student that is a denoiser."""
    config = kind.model_validate({"denoiser": {"kind": "denoiser",
                                               "network": network.model_dump()}})
    with seeded(0):
        student = config.build(IMAGES)
    losses = LossConfig(adversarial=0.0, reconstruction=0.0, latent=0.0, latent_noise=0.0,
                        endpoint=endpoint)
    return task_of(student, losses, **training)


def direct(**training: object) -> StudentTask:
    return denoising(DirectConfig, endpoint=0.5, **training)


def hierarchical(**training: object) -> StudentTask:
    return denoising(HierarchicalConfig, endpoint=0.5, **training)


def points(**training: object) -> StudentTask:
    return student_task(POINTS, MLP, 8, FactorisedConfig(kind="factorised"),
                        LossConfig(adversarial=0.0), **training)


def images(**training: object) -> StudentTask:
    """A student of images with the paper's adversary, whose batch statistics are global ones."""
    return student_task(IMAGES, UNET, 64, DenseConfig(kind="dense"),
                        LossConfig(adversarial=0.1), **training)


def penalised_images(**training: object) -> StudentTask:
    """With R1, whose gradient goes through the exchange of batch statistics twice."""
    losses = LossConfig(adversarial=0.1, adversary=AdversaryConfig(loss="hinge", r1=1.0))
    return student_task(IMAGES, MLP, 8, DenseConfig(kind="dense"), losses, **training)


def projected_images(**training: object) -> StudentTask:
    """With frozen layers, whose own batch normalisation is by running averages."""
    with seeded(1):
        classifier = Classifier(ClassifierConfig(channels=8, features=4), IMAGES)
    losses = LossConfig.model_validate({"adversarial": 0.1, "adversary": {
        "network": "features", "channels": 8, "features": [{"kind": "classifier"}], "r1": 0.1}})
    return student_task(IMAGES, MLP, 8, DenseConfig(kind="dense"), losses,
                        Frozen(classifier=lambda: classifier), **training)


TASKS: dict[str, Callable[..., StudentTask]] = {
    "points": points, "images": images, "penalised": penalised_images,
    "projected": projected_images,
    "micro": lambda: points(accumulate=2), "direct": direct, "hierarchical": hierarchical,
    "rectified flow": lambda: denoising(RectifiedFlowConfig),
    "mean flow": lambda: denoising(MeanFlowConfig),
    "equilibrium": lambda: denoising(DirectConfig, EQUILIBRIUM),
}


def judgement(task: StudentTask) -> Tensor:
    """What the discriminator, if there is one, makes of samples after the training.

    As it does while training: biases before a batch normalisation do nothing there, so that
    rounding alone decides what Adam makes of them and of their running averages.
    """
    if not task.losses.adversarial:
        return torch.zeros(0)
    samples = task.validation.samples
    with torch.no_grad():
        return torch.stack([task.adversary.generator_loss(-samples, samples),
                            task.adversary.discriminator_loss(-samples, samples)])


def outcome(task: StudentTask) -> dict[str, Tensor]:
    """All weights of the student and of its averages, and the discriminator's judgement."""
    weights = {f"{name}/{key}": value for name, module in task.modules.items()
               if name != "adversary" for key, value in module.state_dict().items()}
    return {**weights, "judgement": judgement(task)}


def train(name: str, folder: Path) -> tuple[dict[str, Tensor], list[Record]]:
    task = TASKS[name]()
    records = fit(task, folder / f"{name}.checkpoint", "key")
    return outcome(task), records


def write(folder: Path, name: str, tensors: dict[str, Tensor], records: list[Record]) -> None:
    save_file({key: value.contiguous().clone() for key, value in tensors.items()},
              folder / f"{name}-{rank()}.safetensors")
    write_json(folder / f"{name}-{rank()}.json", records)


class Normalised(nn.Module):
    """A loss that depends on the gradient of batch-normalised values, in float64."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2),
                                      nn.Conv2d(4, 1, 3)).to(torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        logits = self.body(images).flatten(1).mean(dim=1)
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return nn.functional.softplus(-logits).mean() + gradient.square().flatten(1).sum(1).mean()


def normalised() -> dict[str, Tensor]:
    """Gradients, buffers and the evaluated output of `Normalised` on one global batch."""
    model = Normalised()
    model.body = synchronised(model.body)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(8, 2, 6, 6, generator=generator, dtype=torch.float64)
    wrapped = distributed(model)  # exchanges gradients for as long as it is there
    wrapped(own_rows(batch)).backward()
    found = {f"gradient/{name}": p.grad for name, p in model.named_parameters()
             if p.grad is not None}
    return {**found, **dict(model.named_buffers()), "evaluated": model.eval().body(batch).detach()}


def message(call: Callable[[], object]) -> str:
    try:
        call()
    except KDMError as error:
        return str(error)
    return "no error"


def compare(folder: Path) -> None:
    """Everything that is compared with one process, in one start."""
    for name in TASKS:
        write(folder, name, *train(name, folder))
    write(folder, "normalised", normalised(), [])
    write_json(folder / f"messages-{rank()}.json", {
        "batch": message(lambda: points(batch=9)),
        "micro": message(lambda: check_batch(10, 2)),
        "start": message(lambda: check_start(rank())),
        "dropout": own_seed(dropout_seed(0, 3)),
    })


def killed(folder: Path) -> None:
    """A training one of whose processes is killed, once."""
    task = points()
    first = not (folder / "killed").exists()

    def kill(step: int) -> None:
        if first and rank() == 1 and step == KILLED_AT:
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    seen: list[int] = []
    records = fit(task, folder / "killed.checkpoint", "key",
                  lambda step: (seen.append(step), kill(step)))  # type: ignore[func-returns-value]
    assert seen[0] == (1 if first else 6)
    write(folder, "killed", outcome(task), records)


def fails(folder: Path) -> None:
    """A training of which one process, not the first, finds an error."""

    def check(step: int) -> None:
        if rank() == 1 and step == KILLED_AT:
            raise KDMError("the disk of this machine is full")

    fit(points(), folder / "fails.checkpoint", "key", check)


def resumed(folder: Path) -> None:
    """Goes on with a killed training; another one fails after that."""
    killed(folder)
    fails(folder)


PARTS: dict[str, Callable[[Path], None]] = {
    "compare": compare, "killed": killed, "resumed": resumed}
# An error that a person must mend is none that starting again would help.
RESTARTS = {"compare": 0, "killed": 0, "resumed": 3}


def main(part: str, folder: Path) -> None:
    try:
        with one_failure(), process_group(torch.device("cpu")):
            PARTS[part](folder)
            if is_main():
                print(f"{part} done")
    except KDMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    if not is_worker():
        try:
            sys.exit(launch("tests.support.distributed_worker", sys.argv[1:], PROCESSES,
                            restarts=RESTARTS[sys.argv[1]]))
        except KDMError as error:
            sys.exit(f"error: {error}")
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
