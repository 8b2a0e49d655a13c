"""A student of a teacher that is linear becomes that teacher's flow map.

With one Gaussian for data the map from noise to sample is affine and known in closed form. With
identity networks a student is dynamic mode decomposition, whose operator has to become that map.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdm_core.compute import seeded
from kdm_core.errors import KDMError
from kdm_core.networks import IdentityConfig, build_network
from kdm_core.operators import DenseConfig
from kdm_core.operators.dense import DenseOperator
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers.exact import GaussianMixture, GaussianMixtureConfig
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import fit

SIGMA_MAX = 80.0
VARIANCES = torch.tensor([0.02, 0.1, 0.4, 1.0, 2.5, 6.0])
SPEC = SampleSpec(kind="points", shape=[6], sigma_data=1.2)


def linear_teacher() -> GaussianMixture:
    """The exact teacher of N(mean, V diag(VARIANCES) Vᵀ)."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    teacher = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=1), SPEC)
    mean = torch.randn(1, 6, generator=generator)
    teacher.describe(torch.ones(1), mean, (axes @ VARIANCES.diag() @ axes.T)[None])
    return teacher


def pairs_of(teacher: GaussianMixture, count: int) -> Pairs:
    """Pairs by Heun steps, so many that each is within 0.2 % of the flow."""
    noise = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    samples = teacher.sample(noise, None, FixedSolver(kind="heun", steps=100)).state
    return Pairs(noise.clone(), samples.clone(), torch.zeros(count, dtype=torch.int64))


def flow_matrix(teacher: GaussianMixture) -> Tensor:
    """The linear part (6, 6) of the closed-form map from unit-variance noise to sample."""
    unit = SIGMA_MAX * torch.eye(6, dtype=torch.float64)
    return (teacher.flow_map(unit, SIGMA_MAX) - teacher.flow_map(0 * unit, SIGMA_MAX)).T


def test_the_trained_operator_is_the_flow_map(tmp_path: Path) -> None:
    teacher = linear_teacher()
    pairs = pairs_of(teacher, 4096)
    identity = IdentityConfig(kind="identity")
    config = KDMConfig(encoder=identity, decoder=identity, latent=6,
                           operator=DenseConfig(kind="dense"))
    with seeded(0):
        student = KDM(config, SPEC)
    losses = LossConfig(reconstruction=0.0, adversarial=0.0, latent_noise=0.0)
    training = TrainingConfig.model_validate({
        "steps": 500, "batch": 256, "lr": 0.02, "schedule": "cosine", "ema": 0.9,
        "precision": "fp32", "checkpoint_every": 10000, "log_every": 500})
    reader = ResidentReader.of(pairs, training.batch, seed=0)
    task = StudentTask(student, losses, training, reader, pairs, seed=0)
    fit(task, tmp_path / "checkpoint.safetensors", "key")

    operator = task.ema.shadow.operator
    assert isinstance(operator, DenseOperator)
    learned = SPEC.sigma_data * operator.matrix.detach().double()
    exact = flow_matrix(teacher)
    found, true = torch.linalg.svdvals(learned), torch.linalg.svdvals(exact)
    closed = (VARIANCES * SIGMA_MAX**2 / (VARIANCES + SIGMA_MAX**2)).sqrt().sort().values.flip(0)
    torch.testing.assert_close(true, closed.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found, true, rtol=0.02, atol=0)
    # The map of a Gaussian is symmetric, so that its spectrum are its singular values.
    spectrum = SPEC.sigma_data * operator.eigenvalues().real.sort(descending=True).values
    torch.testing.assert_close(spectrum, true, rtol=0.02, atol=0)
    torch.testing.assert_close(learned, exact, rtol=0, atol=0.02 * float(true[0]))
    exact_samples = teacher.flow_map(SIGMA_MAX * pairs.noise.double(), SIGMA_MAX)
    made = task.ema.shadow.generate(pairs.noise).double()
    error = (made - exact_samples).square().mean() / exact_samples.var()
    assert float(error) < 1e-3


def test_identity_keeps_all_values() -> None:
    network = build_network(IdentityConfig(kind="identity"), (1, 4, 4), (16,))
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(network(x, torch.zeros(3), torch.zeros(3, dtype=torch.int64)), x.flatten(1))
    back = build_network(IdentityConfig(kind="identity"), (16,), (1, 4, 4))
    assert torch.equal(back(x.flatten(1)), x)
    assert not list(network.parameters())


def test_identity_needs_as_many_values_out_as_in() -> None:
    identity = IdentityConfig(kind="identity")
    config = KDMConfig(encoder=identity, decoder=identity, latent=4,
                           operator=DenseConfig(kind="dense"))
    with pytest.raises(KDMError, match="6 values.*4 are wanted.*latent"):
        KDM(config, SPEC)
