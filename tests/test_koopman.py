"""The operators against linear algebra."""

import pytest
import torch

from kdm_core.students.koopman import (
    DenseConfig,
    DenseOperator,
    FactorisedConfig,
    FactorisedOperator,
    build_operator,
)


def complex_basis(operator: FactorisedOperator) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.complex(operator.p_re, operator.p_im),
            torch.complex(operator.q_re, operator.q_im))


def test_dense_is_affine_and_knows_its_spectrum() -> None:
    torch.manual_seed(0)
    operator = DenseOperator(DenseConfig(kind="dense"), 6)
    with torch.no_grad():
        operator.matrix.copy_(torch.diag(torch.arange(6.0)))
        operator.bias.fill_(1.0)
    z = torch.randn(3, 6)
    torch.testing.assert_close(operator(z), z * torch.arange(6.0) + 1)
    assert sorted(operator.eigenvalues().real.tolist()) == pytest.approx(list(range(6)), abs=1e-9)
    assert DenseOperator(DenseConfig(kind="dense", bias=False), 6).bias is None


def test_factorised_equals_appendix_c_with_its_real_matrices() -> None:
    """z_next = first d of P Λ P_inv [z; 0], with 2d × 2d block matrices, in float64."""
    torch.manual_seed(0)
    operator = FactorisedOperator(FactorisedConfig(kind="factorised"), 5).double()
    for parameter in operator.parameters():
        torch.nn.init.normal_(parameter)

    def block(re: torch.Tensor, im: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.cat([re, -im], 1), torch.cat([im, re], 1)])

    values = torch.exp(-torch.exp(operator.nu)) * torch.exp(1j * operator.theta)
    big = (block(operator.p_re, operator.p_im)
           @ block(values.real.diag(), values.imag.diag())
           @ block(operator.q_re, operator.q_im))
    z = torch.randn(7, 5, dtype=torch.float64)
    padded = torch.cat([z, torch.zeros_like(z)], dim=1)
    torch.testing.assert_close(operator(z), (padded @ big.T)[:, :5])


def test_factorised_represents_a_given_matrix() -> None:
    """With P from an eigendecomposition of C, the operator is C."""
    torch.manual_seed(0)
    c = torch.randn(8, 8, dtype=torch.float64)
    c = 0.9 * c / torch.linalg.eigvals(c).abs().max()
    values, p = torch.linalg.eig(c)
    operator = FactorisedOperator(FactorisedConfig(kind="factorised"), 8).double()
    q = torch.linalg.inv(p)
    with torch.no_grad():
        for parameter, value in ((operator.p_re, p.real), (operator.p_im, p.imag),
                                 (operator.q_re, q.real), (operator.q_im, q.imag),
                                 (operator.nu, torch.log(-torch.log(values.abs()))),
                                 (operator.theta, values.angle())):
            parameter.copy_(value)
    z = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(operator(z), z @ c.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        operator.eigenvalues().real.sort().values, values.real.sort().values)
    assert float(operator.penalty()) < 1e-20


def test_factorised_starts_invertible_and_inside_the_unit_circle() -> None:
    torch.manual_seed(0)
    operator = build_operator(FactorisedConfig(kind="factorised", consistency=2.0), 16)
    assert float(operator.eigenvalues().abs().max()) < 1
    assert float(operator.penalty()) < 1e-10
    assert isinstance(operator, FactorisedOperator)
    with torch.no_grad():
        operator.p_re += 0.5
    p, q = complex_basis(operator)
    eye = torch.eye(16)
    expected = 2 * ((q @ p - eye).abs() ** 2 + (p @ q - eye).abs() ** 2).mean()
    assert float(operator.penalty()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("config", [DenseConfig(kind="dense"),
                                    FactorisedConfig(kind="factorised")])
def test_gradients(config: DenseConfig | FactorisedConfig) -> None:
    torch.manual_seed(0)
    operator = build_operator(config, 3).double()
    z = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(operator, (z,))
    assert torch.autograd.gradcheck(
        lambda *parameters: torch.func.functional_call(
            operator, dict(zip(dict(operator.named_parameters()), parameters, strict=True)),
            (z.detach(),)),
        tuple(operator.parameters()))


def test_no_penalty_for_dense() -> None:
    assert float(build_operator(DenseConfig(kind="dense"), 4).penalty()) == 0
