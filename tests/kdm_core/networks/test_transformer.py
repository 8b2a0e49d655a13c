"""The patch transformer: against formulas, and as a network that learns."""

import math

import pytest
import torch
from torch import Tensor, nn

from kdm_core.errors import KDMError
from kdm_core.networks.transformer import (
    Block,
    SelfAttention,
    Transformer,
    TransformerConfig,
    patchify,
    sincos_positions,
    unpatchify,
)

TINY = TransformerConfig(kind="transformer", width=32, blocks=2, heads=4, patch=2, mlp_ratio=2)


def randomise(module: nn.Module) -> None:
    """Weights that no test can mistake for those of a fresh network."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)


def build(timed: bool = False, num_classes: int = 0) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(TINY, (3, 8, 4), (5, 8, 4), timed, num_classes)
    randomise(network)
    return network.eval()


def test_patches_come_in_reading_order_and_go_back() -> None:
    x = torch.randn(2, 3, 6, 4)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 6, 12)
    # The fourth token is row 1, column 1; its channels come first.
    assert torch.equal(tokens[:, 3], x[:, :, 2:4, 2:4].flatten(1))
    assert torch.equal(unpatchify(tokens, 2, (3, 2)), x)


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    found = sincos_positions(3, 5, 8)
    assert found.shape == (15, 8)
    row, column = 2, 4
    expected = [wave(place / 10000**power)
                for place in (row, column)
                for wave in (math.sin, math.cos)
                for power in (0, 0.5)]
    torch.testing.assert_close(found[row * 5 + column], torch.tensor(expected))
    assert len({tuple(place.tolist()) for place in found}) == 15


def test_attention_is_the_formula() -> None:
    """softmax(q kᵀ / √d) v over heads, q and k divided by their root mean square, in float64."""
    torch.manual_seed(0)
    attention = SelfAttention(12, 3).double()
    randomise(attention)
    x = torch.randn(2, 5, 12, dtype=torch.float64)

    def heads(name: int) -> Tensor:
        rows = slice(12 * name, 12 * (name + 1))
        out = torch.einsum("bnc,dc->bnd", x, attention.qkv.weight[rows]) + attention.qkv.bias[rows]
        return out.reshape(2, 5, 3, 4)

    def normal(q: Tensor, weight: Tensor) -> Tensor:
        return q / (q.square().mean(-1, keepdim=True) + torch.finfo(q.dtype).eps).sqrt() * weight

    q, k = normal(heads(0), attention.norm_q.weight), normal(heads(1), attention.norm_k.weight)
    logits = torch.einsum("bnhc,bmhc->bhnm", q, k) / 2
    mixed = torch.einsum("bhnm,bmhc->bnhc", logits.softmax(-1), heads(2)).reshape(2, 5, 12)
    expected = mixed @ attention.leave.weight.T + attention.leave.bias
    torch.testing.assert_close(attention(x), expected)


def test_blocks_do_not_know_the_order_of_tokens() -> None:
    torch.manual_seed(0)
    block = Block(32, 4, 2, conditioned=True)
    randomise(block)
    x, condition, order = torch.randn(2, 7, 32), torch.randn(2, 32), torch.randperm(7)
    torch.testing.assert_close(block(x[:, order], condition), block(x, condition)[:, order])
    assert not torch.allclose(block(x, condition), x, atol=0.1)


def test_the_network_knows_the_order_of_tokens() -> None:
    """Without positions, it would commute with a flip of whole rows of patches."""

    def flip(image: Tensor) -> Tensor:
        return image.unflatten(2, (4, 2)).flip(2).flatten(2, 3)

    network = build()
    x = torch.randn(1, 3, 8, 4)
    assert not torch.allclose(flip(network(flip(x))), network(x), atol=1e-2)
    network.positions.zero_()
    torch.testing.assert_close(flip(network(flip(x))), network(x))


@pytest.mark.parametrize("timed", [False, True])
def test_fresh_blocks_are_the_identity(timed: bool) -> None:
    torch.manual_seed(0)
    network = Transformer(TINY, (3, 8, 8), (3, 8, 8), timed)
    x = torch.randn(2, 16, 32)
    for block in network.blocks:
        assert torch.equal(block(x, torch.randn(2, 32) if timed else None), x)
    out = network(torch.randn(2, 3, 8, 8), torch.rand(2) if timed else None)
    assert float(out.detach().std()) > 0.1


@pytest.mark.parametrize(("timed", "num_classes"), [(False, 0), (True, 0), (False, 3), (True, 3)])
def test_every_parameter_gets_a_gradient(timed: bool, num_classes: int) -> None:
    network = build(timed, num_classes)
    time = torch.rand(4) if timed else None
    labels = torch.tensor([0, 1, 2, 0]) if num_classes else None
    out = network(torch.randn(4, 3, 8, 4), time, labels)
    assert out.shape == (4, 5, 8, 4)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_time_and_label_matter_and_no_label_is_one_too() -> None:
    network = build(timed=True, num_classes=3)
    x = torch.randn(1, 3, 8, 4).expand(4, -1, -1, -1)
    time = torch.full((4,), 0.3)
    outputs = network(x, time, torch.tensor([0, 1, 2, -1]))
    for one in range(4):
        for other in range(one):
            assert not torch.allclose(outputs[one], outputs[other], atol=1e-2)
    torch.testing.assert_close(network(x, time, None)[0], outputs[3])
    assert not torch.allclose(network(x, time + 0.5, None)[0], outputs[3], atol=1e-2)


def test_it_learns_what_depends_on_distant_pixels_and_the_time() -> None:
    torch.manual_seed(0)
    network = Transformer(TINY, (1, 8, 8), (1, 8, 8), timed=True)
    adam = torch.optim.Adam(network.parameters(), lr=3e-3)
    x, time = torch.randn(64, 1, 8, 8), torch.rand(64)
    target = x.flip(2, 3) * time.reshape(-1, 1, 1, 1)
    losses = []
    for _ in range(120):
        loss = (network(x, time) - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * float(target.square().mean())


def test_bf16_autocast_stays_close_to_fp32() -> None:
    torch.manual_seed(0)
    network = build(timed=True, num_classes=3)
    x, time, labels = torch.randn(4, 3, 8, 4), torch.rand(4), torch.tensor([0, 1, -1, 2])
    exact = network(x, time, labels)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, time, labels)
    assert rough.dtype == torch.bfloat16
    assert float(((rough - exact).std() / exact.std()).detach()) < 0.03


@pytest.mark.parametrize(("change", "shapes", "named"), [
    ({"patch": 3}, ((3, 8, 8), (3, 8, 8)), r"network\.patch: patches of 3 pixels"),
    ({"patch": 4}, ((3, 8, 6), (3, 8, 6)), r"network\.patch: .* 8 × 6"),
    ({"heads": 5}, ((3, 8, 8), (3, 8, 8)), r"network\.heads: 5 heads do not divide"),
    ({}, ((2,), (2,)), r"network\.kind: .* \(2,\)"),
    ({}, ((3, 8, 8), (64,)), r"network\.kind"),
    ({}, ((3, 8, 8), (3, 4, 4)), r"network\.kind"),
])
def test_what_does_not_fit_is_refused(
    change: dict[str, int], shapes: tuple[tuple[int, ...], tuple[int, ...]], named: str
) -> None:
    with pytest.raises(KDMError, match=named):
        Transformer(TINY.model_copy(update=change), *shapes)
