"""EDM and flow matching against closed forms."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdm_core.errors import DataError, MismatchError
from kdm_core.networks import MLPConfig, UNetConfig, build_network
from kdm_core.samples import SampleSpec
from kdm_core.solvers import SolverConfig
from kdm_core.teachers import (
    EDM,
    EDMConfig,
    FlowMatching,
    FlowMatchingConfig,
    build_teacher,
    load_teacher,
    save_teacher,
)

MLP = MLPConfig(kind="mlp", width=16, blocks=1)
POINTS = SampleSpec(kind="points", shape=[2], sigma_data=2.0)
DIGITS = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)


class GaussianEDM(EDM):
    """The exact denoiser of N(0, sd²): D(x; σ) = x sd² / (sd² + σ²)."""

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        variance = self.spec.sigma_data**2
        return x * variance / (variance + sigma.reshape(-1, 1).to(x.dtype) ** 2)


class GaussianFlow(FlowMatching):
    """The exact velocity field between N(0, 1) and N(0, sd²) on straight paths."""

    def field(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        time = t.reshape(-1, 1).to(x.dtype)
        sd2 = self.spec.sigma_data**2
        variance = (1 - time) ** 2 + time**2 * sd2
        return x * (time * sd2 - (1 - time)) / variance


def test_edm_carries_a_gaussian_along_its_exact_flow() -> None:
    """With that denoiser the flow map is linear: x₀ = x_T · sd / √(sd² + σ_max²)."""
    teacher = GaussianEDM(EDMConfig(kind="edm", network=MLP), POINTS)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    found = teacher.sample(noise, None, SolverConfig(kind="heun", steps=256), "fp32")
    exact = noise * 80 * 2 / (2**2 + 80**2) ** 0.5
    assert found.nfe == 511
    torch.testing.assert_close(found.state, exact, rtol=1e-3, atol=1e-4)


def test_flow_matching_carries_a_gaussian_along_its_exact_flow() -> None:
    teacher = GaussianFlow(FlowMatchingConfig(kind="flow_matching", network=MLP), POINTS)
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    found = teacher.sample(noise, None, SolverConfig(kind="midpoint", steps=200), "fp32")
    torch.testing.assert_close(found.state, 2 * noise, rtol=1e-3, atol=1e-4)


def test_edm_grid_is_karras() -> None:
    """Equation 5 of the paper, written as it stands there."""
    teacher = EDM(EDMConfig(kind="edm", network=MLP), POINTS)
    n, low, high, rho = 18, 0.002, 80.0, 7
    expected = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
                for i in range(n)] + [0.0]
    torch.testing.assert_close(teacher.time_grid(n), torch.tensor(expected, dtype=torch.float64))


def test_edm_preconditioning_keeps_the_network_at_unit_variance() -> None:
    """Its input and its training target both have variance 1 at every noise level (table 1)."""
    teacher = EDM(EDMConfig(kind="edm", network=MLP), POINTS)
    generator = torch.Generator().manual_seed(0)
    clean = 2 * torch.randn(200_000, 2, generator=generator)
    noise = torch.randn(200_000, 2, generator=generator)
    for sigma in (0.01, 1.0, 50.0):
        seen = []

        def identity(x: Tensor, time: Tensor, labels: object, seen: list[Tensor] = seen) -> Tensor:
            seen.append(x)
            return torch.zeros_like(x)

        teacher.network.forward = identity  # type: ignore[method-assign, assignment]
        skip = teacher.denoise(clean + sigma * noise, torch.full((200_000,), sigma), None)
        c_out = sigma * 2 / (sigma**2 + 4) ** 0.5
        assert float(seen[0].std()) == pytest.approx(1, rel=0.01)
        assert float(((clean - skip) / c_out).std()) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("kind", ["edm", "flow_matching"])
@pytest.mark.parametrize("network", [MLP, UNetConfig(kind="unet", channels=8, multipliers=[1, 2],
                                                     blocks=1, attention=[4])])
def test_training_lowers_the_loss(kind: str, network: MLPConfig | UNetConfig) -> None:
    config = EDMConfig(kind="edm", network=network) if kind == "edm" else FlowMatchingConfig(
        kind="flow_matching", network=network)
    torch.manual_seed(0)
    teacher = build_teacher(config, DIGITS)
    samples = torch.rand(64, 1, 8, 8).round() * 2 - 1
    labels = torch.arange(64) % 3
    adam = torch.optim.Adam(teacher.parameters(), lr=3e-3)

    def loss() -> Tensor:
        return teacher.loss(samples, labels, torch.Generator().manual_seed(1))

    before = float(loss())
    for _ in range(30):
        adam.zero_grad()
        loss().backward()
        adam.step()
    assert float(loss()) < 0.8 * before


def test_labels_matter() -> None:
    torch.manual_seed(0)
    network = build_network(MLP, (2,), (2,), timed=True, num_classes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    x, time = torch.randn(4, 2), torch.rand(4)
    zero, one = (network(x, time, torch.full((4,), label)) for label in (0, 1))
    assert not torch.allclose(zero, one)


def test_round_trip_on_disk(tmp_path: Path) -> None:
    teacher = build_teacher(EDMConfig(kind="edm", network=MLP), DIGITS).eval()
    mark = save_teacher(tmp_path, teacher)
    loaded, found = load_teacher(tmp_path)
    noise, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    solver = SolverConfig(kind="euler", steps=2)
    assert found == mark
    assert torch.equal(loaded.sample(noise, labels, solver).state,
                       teacher.sample(noise, labels, solver).state)


def test_altered_or_missing_files_are_refused(tmp_path: Path) -> None:
    save_teacher(tmp_path, build_teacher(EDMConfig(kind="edm", network=MLP), DIGITS))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"sigma_max": 80.0', '"sigma_max": 40.0'))
    with pytest.raises(MismatchError, match=r"config\.json"):
        load_teacher(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(DataError, match=r"weights\.safetensors is damaged"):
        load_teacher(tmp_path)
    config.unlink()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        load_teacher(tmp_path)
