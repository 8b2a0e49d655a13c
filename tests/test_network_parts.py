"""Dropout and attention of our own, where torch's are slow, against torch's."""

import pytest
import torch
from torch.nn import functional as F

from kdm_core.networks.base import attention, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(16, 32, 33, 31, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = dropout(x, 0.1, True)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.003)
    assert float(y.float().mean()) == pytest.approx(1, abs=0.006)  # bf16 rounds 1 / 0.9
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]
    # Neighbours in memory share no random bits.
    dropped = (y == 0).float().flatten()
    assert abs(float((dropped[1:] * dropped[:-1]).mean()) - 0.01) < 0.002


def test_dropout_is_a_function_of_the_global_seed_and_off_in_evaluation() -> None:
    x = torch.ones(4, 8, 5, 5)
    torch.manual_seed(1)
    first = dropout(x, 0.5, True)
    torch.manual_seed(1)
    assert torch.equal(first, dropout(x, 0.5, True))
    assert not torch.equal(first, dropout(x, 0.5, True))
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0, True), x)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_attention_has_the_value_and_the_gradient_of_the_fused_kernel_in_float64(
    dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 64, 32, dtype=dtype, requires_grad=True) for _ in range(3))
    g = torch.randn(2, 4, 64, 32, dtype=dtype)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    found = attention(q, k, v)
    assert found.dtype == dtype
    assert float((found.detach() - exact.detach()).norm() / exact.detach().norm()) < tolerance
    wanted = torch.autograd.grad(exact, (q, k, v), g.double())
    for a, b in zip(torch.autograd.grad(found, (q, k, v), g), wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < tolerance
