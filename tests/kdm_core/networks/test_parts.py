"""Dropout, attention and shared conditions, against what they are the faster form of."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.networks.base import attention, dropout
from kdm_core.networks.mlp import MLP, MLPConfig


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


CLASSES = 3
ONE_TIME, TIMES = torch.tensor(0.3).expand(40), torch.linspace(0, 1, 40)


def conditioned(timed: bool) -> MLP:
    """A network whose every weight matters; layers that end a branch start at zero otherwise."""
    torch.manual_seed(0)
    network = MLP(MLPConfig(kind="mlp", width=32, blocks=2), (5,), (4,), timed, CLASSES)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def sharing(network: MLP, time: Tensor | None, labels: Tensor | None) -> bool:
    """Whether samples of a class share a condition while the network is trained."""
    return network.conditions(time, labels, network.training)[1] is not None


@pytest.mark.parametrize("time", [None, ONE_TIME], ids=["untimed", "one time"])
def test_shared_conditions_have_the_values_and_the_gradients_of_each_sample_s_own(
    time: Tensor | None
) -> None:
    labels = torch.arange(40) % (CLASSES + 1) - 1  # with -1 for no label
    x, g = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 4, dtype=torch.float64)
    found = []
    for training in (True, False):
        network = conditioned(time is not None).double().train(training)
        assert sharing(network, time, labels) == training
        out = network(x, time, labels)
        gradients = torch.autograd.grad(out, list(network.parameters()), g)
        assert all(bool(gradient.any()) for gradient in gradients)
        found.append([out.detach(), *gradients])
    for shared, own in zip(*found, strict=True):
        assert float((shared - own).norm() / own.norm()) < 1e-12


def test_shared_conditions_change_no_bit_of_samples_in_bfloat16() -> None:
    network = conditioned(True).eval()
    x, labels = torch.randn(40, 5), torch.arange(40) % CLASSES
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        shared, own = (network(x, time, labels) for time in (ONE_TIME, ONE_TIME.clone()))
    assert ONE_TIME.clone().stride(0) and torch.equal(shared, own)


def test_conditions_are_each_sample_s_own_where_times_differ_or_classes_are_many() -> None:
    network, labels = conditioned(True).train(), torch.arange(40) % CLASSES
    assert sharing(network, ONE_TIME, labels)
    assert not sharing(network, TIMES, labels)
    assert not sharing(network, ONE_TIME, None)
    assert not sharing(network, ONE_TIME[:CLASSES], labels[:CLASSES])
    assert not sharing(network.eval(), ONE_TIME, labels)
