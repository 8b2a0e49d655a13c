"""The operators against linear algebra."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from kdm_core.errors import DivergedError, KDMError
from kdm_core.operators import (
    ContinuousConfig,
    DenseConfig,
    FactorisedConfig,
    IdentityConfig,
    KoopmanOperator,
    OperatorConfig,
    SpectrumConfig,
    build_operator,
)
from kdm_core.operators.continuous import ContinuousOperator
from kdm_core.operators.dense import DenseOperator
from kdm_core.operators.factorised import FactorisedOperator
from kdm_core.operators.spectrum import by_angle, draw_targets

KINDS = ["dense", "factorised", "continuous", "identity"]
PENALISED = KINDS[:3]
CONTINUOUS = KINDS[1:]
SPECTRA = ["uniform", "gradual", "circle"]


def parse(values: dict[str, object]) -> OperatorConfig:
    config: OperatorConfig = TypeAdapter(OperatorConfig).validate_python(values)
    return config


def make(kind: str, dim: int, spectrum: str | None = None, weight: float = 1.0) -> KoopmanOperator:
    """An operator in float64, the same at every call, whose penalties and drives matter."""
    torch.manual_seed(0)
    values: dict[str, object] = {"kind": kind}
    if spectrum is not None:
        values["spectrum"] = {"kind": spectrum, "weight": weight}
    operator = build_operator(parse(values), dim).double()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return operator


def represent(c: Tensor) -> FactorisedOperator:
    """KDM-F with P from an eigendecomposition of C (d, d) float64, whose spectral radius is < 1."""
    values, p = torch.linalg.eig(c)
    operator = FactorisedOperator(FactorisedConfig(kind="factorised"), len(c)).double()
    q = torch.linalg.inv(p)
    with torch.no_grad():
        for parameter, value in ((operator.p_re, p.real), (operator.p_im, p.imag),
                                 (operator.q_re, q.real), (operator.q_im, q.imag),
                                 (operator.nu, torch.log(-torch.log(values.abs()))),
                                 (operator.theta, values.angle())):
            parameter.copy_(value)
    return operator


def contraction(dim: int) -> Tensor:
    """A random real matrix (d, d) float64 of spectral radius 0.9."""
    c = torch.randn(dim, dim, dtype=torch.float64)
    return 0.9 * c / torch.linalg.eigvals(c).abs().max()


def block(re: Tensor, im: Tensor) -> Tensor:
    """The real 2d × 2d matrix that appendix C makes of a complex one."""
    return torch.cat([torch.cat([re, -im], 1), torch.cat([im, re], 1)])


def latents(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_dense_is_affine_and_knows_its_spectrum() -> None:
    operator = DenseOperator(DenseConfig(kind="dense"), 6)
    assert operator.bias is not None
    with torch.no_grad():
        operator.matrix.copy_(torch.diag(torch.arange(6.0)))
        operator.bias.fill_(1.0)
    z = torch.randn(3, 6)
    torch.testing.assert_close(operator(z), z * torch.arange(6.0) + 1)
    assert sorted(operator.eigenvalues().real.tolist()) == pytest.approx(list(range(6)), abs=1e-9)
    assert DenseOperator(DenseConfig(kind="dense", bias=False), 6).bias is None


def test_factorised_equals_appendix_c_with_its_real_matrices() -> None:
    """z_next = first d of P Λ P_inv [z; 0], with 2d × 2d block matrices, in float64."""
    operator = make("factorised", 5)
    assert isinstance(operator, FactorisedOperator)
    values = torch.exp(-torch.exp(operator.nu)) * torch.exp(1j * operator.theta)
    big = (block(operator.p_re, operator.p_im)
           @ block(values.real.diag(), values.imag.diag())
           @ block(operator.q_re, operator.q_im))
    z = latents(7, 5)
    padded = torch.cat([z, torch.zeros_like(z)], dim=1)
    torch.testing.assert_close(operator(z), (padded @ big.T)[:, :5])


def test_eigenvalues_of_the_real_matrices_are_ours_and_their_conjugates() -> None:
    operator = represent(contraction(6))
    values = operator.eigenvalues()
    big = (block(operator.p_re, operator.p_im) @ block(values.real.diag(), values.imag.diag())
           @ block(operator.q_re, operator.q_im))
    found = torch.linalg.eigvals(big.detach())
    nearest = (found[:, None] - torch.cat([values, values.conj()])).abs()
    assert float(nearest.min(dim=0).values.max()) < 1e-10
    assert float(nearest.min(dim=1).values.max()) < 1e-10


@pytest.mark.parametrize("dim", [1, 8, 33])
def test_factorised_represents_a_given_matrix(dim: int) -> None:
    """With P from an eigendecomposition of C, the operator is C."""
    torch.manual_seed(0)
    c, z = contraction(dim), latents(4, dim)
    operator = represent(c)
    torch.testing.assert_close(operator(z), z @ c.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(operator.float()(z.float()), (z @ c.T).float(), rtol=0, atol=1e-5)
    assert operator.penalty().item() < 1e-9


def test_factorised_starts_invertible_and_inside_the_unit_circle() -> None:
    torch.manual_seed(0)
    operator = build_operator(FactorisedConfig(kind="factorised"), 16)
    assert float(operator.eigenvalues().abs().max()) < 1
    assert operator.penalty().item() < 1e-12


def test_continuous_is_the_exponential_of_its_generator() -> None:
    for dim in (1, 4, 7):
        operator = make("continuous", dim)
        assert isinstance(operator, ContinuousOperator)
        half, modes = dim // 2, dim - dim // 2
        generator = torch.zeros(dim, dim, dtype=torch.float64)
        rows = torch.arange(modes)
        generator[rows, rows] = -operator.nu.detach().exp()
        pairs = torch.arange(half)
        generator[modes + pairs, modes + pairs] = generator[pairs, pairs]
        generator[pairs, modes + pairs] = -operator.omega.detach()
        generator[modes + pairs, pairs] = operator.omega.detach()
        z = latents(3, dim)
        for t in (0.0, 0.3, 1.0):
            expected = z @ torch.linalg.matrix_exp(t * generator).T
            torch.testing.assert_close(operator.advance(z, t), expected)
        found = torch.linalg.eigvals(torch.linalg.matrix_exp(generator))
        distance = (found[:, None] - operator.eigenvalues()).abs()
        assert float(distance.min(dim=0).values.max()) < 1e-12
        assert float(distance.min(dim=1).values.max()) < 1e-12


def test_continuous_drive_is_the_solution_of_the_forced_equation() -> None:
    """z(t) = e^{tA} z + A⁻¹ (e^{tA} − 1) u, with the u that adds the drive in unit time."""
    operator = make("continuous", 6)
    eye = torch.eye(6, dtype=torch.float64)
    generator = torch.autograd.functional.jacobian(
        lambda t: operator.advance(eye, t), torch.zeros((), dtype=torch.float64)).T
    drive, z = latents(1, 6), torch.zeros(1, 6, dtype=torch.float64)

    def added(t: float) -> Tensor:
        return torch.linalg.solve(generator, torch.linalg.matrix_exp(t * generator) - eye)

    u = torch.linalg.solve(added(1.0), drive[0])
    for t in (0.2, 0.7):
        torch.testing.assert_close(operator.advance(z, t, drive)[0], added(t) @ u)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_unit_time_is_the_whole_way(kind: str) -> None:
    """Exactly, for KDM-F with an inverse that is none, too."""
    operator, z, drive = make(kind, 7), latents(5, 7), latents(10, 7)[5:]
    torch.testing.assert_close(operator.advance(z, 1.0), operator(z))
    torch.testing.assert_close(operator.advance(z, 1.0, drive), operator(z, drive))
    torch.testing.assert_close(operator.advance(z, torch.ones(5), drive), operator(z, drive))
    torch.testing.assert_close(operator(z, drive), operator(z) + drive)


@settings(max_examples=50)
@given(st.sampled_from(["continuous", "factorised", "identity"]),
       st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_times_add_up(kind: str, first: float, second: float, driven: bool) -> None:
    """C_s C_t = C_{s+t}, with a drive as without; for KDM-F if it represents a real matrix."""
    operator = make(kind, 6)
    if kind == "factorised":
        torch.manual_seed(0)
        generator = torch.randn(6, 6, dtype=torch.float64)
        shift = torch.linalg.eigvals(generator).real.max() + 0.1
        operator = represent(torch.linalg.matrix_exp(
            (generator - shift * torch.eye(6, dtype=torch.float64)) / 2))
    z, drive = latents(3, 6), latents(6, 6)[3:] if driven else None
    once = operator.advance(z, first + second, drive)
    twice = operator.advance(operator.advance(z, first, drive), second, drive)
    torch.testing.assert_close(twice, once, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_every_latent_has_its_own_duration(kind: str) -> None:
    operator, z, drive = make(kind, 6), latents(3, 6), latents(6, 6)[3:]
    times = torch.tensor([0.0, 0.4, 1.0])
    together = operator.advance(z, times, drive)
    for row, t in enumerate(times.tolist()):
        alone = operator.advance(z[row : row + 1], t, drive[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-6, atol=1e-6)


def test_dense_has_no_intermediate_times() -> None:
    operator = make("dense", 4)
    assert not operator.continuous
    with pytest.raises(KDMError, match="operator.kind.*continuous"):
        operator.advance(latents(1, 4), 0.5)


def test_identity_passes_everything() -> None:
    operator, z = make("identity", 3), latents(2, 3)
    assert torch.equal(operator(z), z)
    assert torch.equal(operator(z, z), 2 * z)
    torch.testing.assert_close(operator.advance(z, 0.25, z), 1.25 * z)
    assert torch.equal(operator.eigenvalues(), torch.ones(3, dtype=torch.complex64))
    assert not list(operator.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_eigenvalues_are_complex_and_as_many_as_dimensions(kind: str) -> None:
    for dim in (1, 6, 9):
        values = make(kind, dim).eigenvalues()
        assert values.shape == (dim,) and values.is_complex() and not values.requires_grad


def test_consistency_is_that_of_the_real_matrices() -> None:
    operator = make("factorised", 4)
    assert isinstance(operator, FactorisedOperator)
    operator.consistency = 3.0
    p, q = block(operator.p_re, operator.p_im), block(operator.q_re, operator.q_im)
    eye = torch.eye(8, dtype=torch.float64)
    expected = 3 * ((q @ p - eye).square().mean() + (p @ q - eye).square().mean())
    assert expected.item() > 1e-3
    torch.testing.assert_close(operator.penalty(), expected)


@pytest.mark.parametrize("kind", PENALISED)
def test_no_spectral_penalty_unless_asked_for(kind: str) -> None:
    operator = make(kind, 5)
    assert operator.spectrum is None
    expected = operator.constraint() if kind == "factorised" else torch.zeros(())
    assert operator.penalty().item() == expected.item()


def test_spectral_penalty_by_hand() -> None:
    """Eigenvalues 0.5 ± 0.5i of a dense and −0.25 of a factorised operator, to given targets."""
    dense = make("dense", 2, "circle", weight=2.0)
    with torch.no_grad():
        dense.matrix.copy_(torch.tensor([[0.5, -0.5], [0.5, 0.5]]))
    assert dense.penalty().item() == pytest.approx(2 * math.sqrt(0.5))
    factorised = make("factorised", 1, "uniform", weight=4.0)
    assert isinstance(factorised, FactorisedOperator) and factorised.spectrum is not None
    with torch.no_grad():
        factorised.nu.fill_(math.log(-math.log(0.25)))
        factorised.theta.fill_(math.pi)
        factorised.spectrum.targets.copy_(torch.tensor([[0.05, 0.4]]))
    assert factorised.spectral_penalty().item() == pytest.approx(4 * 0.5)
    continuous = make("continuous", 2, "uniform")
    assert isinstance(continuous, ContinuousOperator) and continuous.spectrum is not None
    with torch.no_grad():
        continuous.nu.fill_(math.log(-math.log(0.5)))
        continuous.omega.fill_(math.pi / 2)
        continuous.spectrum.targets.copy_(torch.tensor([[0.0, 0.5], [0.0, 0.25]]))
    assert continuous.penalty().item() == pytest.approx((0 + 0.75) / 2)


@pytest.mark.parametrize("kind", PENALISED)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_spectral_penalty_is_the_distance_of_eigenvalues_to_targets(
    kind: str, spectrum: str
) -> None:
    operator = make(kind, 6, spectrum, weight=0.5)
    assert operator.spectrum is not None
    values = operator.eigenvalues()
    if kind == "dense":
        values = values[values.angle().argsort()]
    targets = torch.view_as_complex(operator.spectrum.targets)
    expected = 0.5 * (values - targets).abs().mean()
    torch.testing.assert_close(operator.spectral_penalty(), expected)


def test_targets() -> None:
    torch.manual_seed(0)
    uniform = draw_targets("uniform", 4000)
    assert float(uniform.abs().max()) <= 1
    torch.testing.assert_close(uniform.var(dim=0), torch.full((2,), 1 / 3), rtol=0.1, atol=0)
    modulus = draw_targets("gradual", 4001).norm(dim=1)
    high, low = modulus[modulus >= 0.9 - 1e-6], modulus[modulus <= 0.5 + 1e-6]
    assert (len(high), len(low)) == (2001, 2000) and float(high.max()) <= 1 + 1e-6
    assert high.mean() == pytest.approx(0.95, abs=0.01)
    assert low.mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(draw_targets("circle", 3), torch.tensor([[1.0, 0.0]] * 3))


def test_a_factorised_spectrum_is_trained_to_its_targets() -> None:
    operator = make("factorised", 8, "gradual").float()
    assert isinstance(operator, FactorisedOperator)
    optimizer = torch.optim.Adam([operator.nu, operator.theta], lr=0.02, fused=True)
    first = operator.spectral_penalty().item()
    for _ in range(400):
        optimizer.zero_grad()
        operator.spectral_penalty().backward()
        optimizer.step()
    assert operator.spectral_penalty().item() < 0.1 * first


def test_a_dense_spectrum_spreads_like_its_targets() -> None:
    """From the middle, where it would stay if the solver's order said what belongs together."""
    operator = make("dense", 24, "gradual").float()
    assert isinstance(operator, DenseOperator) and operator.spectrum is not None
    wanted = operator.spectrum.targets.norm(dim=1)
    optimizer = torch.optim.Adam(operator.parameters(), lr=0.01)
    with torch.no_grad():
        operator.matrix.mul_(0.1)
    for _ in range(250):
        optimizer.zero_grad()
        operator.penalty().backward()
        optimizer.step()
    found = operator.eigenvalues().abs()
    assert float(found.mean()) == pytest.approx(float(wanted.mean()), rel=0.2)
    assert float(found.std()) > 0.5 * float(wanted.std())


@pytest.mark.parametrize("spectrum", [None, *SPECTRA])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str, spectrum: str | None) -> None:
    """Of forward, advance and penalty, by finite differences in float64."""
    if kind == "identity" and spectrum is not None:
        return
    operator = make(kind, 3, spectrum)
    names = dict(operator.named_parameters())
    z = latents(4, 3)[:2].requires_grad_()
    drive = latents(4, 3)[2:].requires_grad_()

    def check(run: Callable[..., Tensor], *inputs: Tensor) -> None:
        def call(*values: Tensor) -> Tensor:
            given = dict(zip(names, values[len(inputs):], strict=True))
            return torch.func.functional_call(Caller(operator, run), {
                f"operator.{name}": value for name, value in given.items()}, values[:len(inputs)])

        arguments = (*inputs, *(parameter.detach().requires_grad_() for parameter in
                                names.values()))
        if arguments:
            assert torch.autograd.gradcheck(call, arguments)

    check(lambda op, a, b: op(a, b), z, drive)
    if kind in CONTINUOUS:
        check(lambda op, a, b, t: op.advance(a, t, b), z, drive,
              torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True))
    if kind != "identity" and (kind == "factorised" or spectrum is not None):
        check(lambda op: op.penalty())


class Caller(torch.nn.Module):
    """A module whose forward is any function of an operator: what functional_call needs."""

    def __init__(self, operator: KoopmanOperator, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.operator, self.run = operator, run

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self.operator, *inputs)


@pytest.mark.parametrize("spectrum", [None, *SPECTRA])
@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: str, spectrum: str | None) -> None:
    if kind == "identity" and spectrum is not None:
        return
    saved = make(kind, 6, spectrum)
    torch.manual_seed(5)
    values: dict[str, object] = {"kind": kind}
    if spectrum is not None:
        values["spectrum"] = {"kind": spectrum}
        assert "spectrum.targets" in saved.state_dict()
    other = build_operator(parse(values), 6).double()
    other.load_state_dict(saved.state_dict())
    z = latents(2, 6)
    assert torch.equal(other(z), saved(z))
    assert other.penalty().item() == saved.penalty().item()


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_penalties_stay_exact(kind: str) -> None:
    operator = make(kind, 8, None if kind == "identity" else "gradual").float()
    z = latents(4, 8).float()
    expected = operator.penalty()
    with torch.autocast("cpu", torch.bfloat16):
        pushed = operator(z)
        advanced = operator.advance(z, 0.5, z) if operator.continuous else pushed
        assert operator.penalty().item() == expected.item()
    torch.testing.assert_close(pushed.float(), operator(z), rtol=0.05, atol=0.05)
    if operator.continuous:
        torch.testing.assert_close(advanced.float(), operator.advance(z, 0.5, z),
                                   rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["factorised", "continuous"])
def test_traced_as_one_graph(kind: str) -> None:
    """What the compiler sees has no breaks; no compiler needed."""
    operator = make(kind, 6, "uniform").float()

    def run(z: Tensor) -> Tensor:
        return operator(z).sum() + operator.advance(z, 0.5, z).sum() + operator.penalty()

    traced = torch.compile(run, backend="eager", fullgraph=True)
    z = latents(2, 6).float()
    torch.testing.assert_close(traced(z), run(z))


def test_built_without_memory() -> None:
    with torch.device("meta"):
        for kind in KINDS:
            for spectrum in SPECTRA:
                values: dict[str, object] = {"kind": kind}
                if kind != "identity":
                    values["spectrum"] = {"kind": spectrum}
                build_operator(parse(values), 6)


def test_a_matrix_that_is_not_finite_is_told() -> None:
    operator = make("dense", 3, "uniform")
    with torch.no_grad():
        operator.matrix[0, 0] = math.nan
    for act in (operator.penalty, operator.eigenvalues):
        with pytest.raises(DivergedError, match="not finite"):
            act()


@pytest.mark.parametrize(("values", "message"), [
    ({"kind": "dens"}, "'dense', 'factorised', 'continuous', 'identity'"),
    ({"kind": "dense", "spectrum": {"kind": "ring"}}, "'uniform', 'gradual' or 'circle'"),
    ({"kind": "dense", "spectrum": {"kind": "circle", "weight": -1.0}}, "greater than or equal"),
    ({"kind": "identity", "spectrum": {"kind": "circle"}}, "Extra inputs"),
    ({"kind": "factorised", "bias": True}, "Extra inputs"),
])
def test_wrong_configurations(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(values)
    assert len(caught.value.errors()) == 1 and message in str(caught.value)


def test_configurations() -> None:
    assert isinstance(build_operator(ContinuousConfig(kind="continuous"), 2), ContinuousOperator)
    assert build_operator(IdentityConfig(kind="identity"), 2).continuous
    assert SpectrumConfig(kind="circle").weight == 1


def test_by_angle() -> None:
    values = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.5], [0.0, -2.0]])
    assert by_angle(values).tolist() == [[0.0, -2.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]


def test_the_estimated_consistency_is_without_bias() -> None:
    """Over many vectors the estimate is the computed penalty, and so is its gradient."""
    config = FactorisedConfig(kind="factorised", consistency=2.0, estimate=True)
    torch.manual_seed(0)
    operator = build_operator(config, 6).double()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    probes = torch.randn(200_000, 6, dtype=torch.float64)
    exact, estimated = operator.penalty(), operator.penalty(probes)
    assert estimated.item() == pytest.approx(exact.item(), rel=0.02)
    wanted = torch.autograd.grad(exact, operator.p_im)[0]
    found = torch.autograd.grad(estimated, operator.p_im)[0]
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02 * float(wanted.abs().max()))
    plain = build_operator(FactorisedConfig(kind="factorised"), 6)
    assert plain.penalty(torch.randn(3, 6)).item() == plain.penalty().item()
