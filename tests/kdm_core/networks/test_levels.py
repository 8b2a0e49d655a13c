"""Networks cut at their levels: two halves that together are the network."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from kdm_core.errors import KDMError
from kdm_core.networks import Network, NetworkConfig, build_network

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "blocks": 3},
    "transformer": {"width": 16, "blocks": 3, "heads": 2},
    "unet": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    "song_unet": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4],
                  "encoder": "residual", "decoder": "skip", "time_embedding": "fourier"},
    "dhariwal_unet": {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
    "edm2_unet": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4],
                  "channels_per_head": 8},
}


def build(kind: str, timed: bool = True, num_classes: int = 3) -> Network:
    torch.manual_seed(0)
    config = TypeAdapter(NetworkConfig).validate_python({"kind": kind, **NETWORKS[kind]})
    network = build_network(config, (2, 8, 8), (2, 8, 8), timed=timed, num_classes=num_classes)
    for value in network.parameters():  # branches that start at zero
        nn.init.normal_(value, std=0.2)
    return network.eval()


def halves(network: Network, x: Tensor, *told: Tensor | None) -> Tensor:
    condition = network.condition(x, *told)
    return network.decode(network.encode(x, condition), condition)


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_two_halves_are_the_network(kind: str) -> None:
    x, time, labels = torch.randn(4, 2, 8, 8), torch.rand(4), torch.tensor([0, 1, -1, 2])
    for timed, classes in ((True, 3), (False, 0)):
        network = build(kind, timed, classes)
        told = (time if timed else None, labels if classes else None)
        assert torch.equal(halves(network, x, *told), network(x, *told))


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_levels_are_all_that_the_second_half_knows_of_an_input(kind: str) -> None:
    network, time, labels = build(kind), torch.rand(1).expand(2), torch.tensor([1, 1])
    x = torch.randn(2, 2, 8, 8)
    condition = network.condition(x, time, labels)
    levels = network.encode(x, condition)
    assert all(level.shape[0] == 2 for level in levels)
    assert len(levels) == {"mlp": 1, "transformer": 1}.get(kind, 4)  # 2 a resolution in U-Nets
    for number in range(len(levels)):  # each of them matters
        changed = [level + (index == number) for index, level in enumerate(levels)]
        assert not torch.equal(network.decode(changed, condition), network(x, time, labels))
    swapped = [level.flip(0) for level in levels]
    torch.testing.assert_close(network.decode(swapped, condition),
                               network(x.flip(0), time, labels), rtol=1e-4, atol=1e-5)


def test_identity_has_no_levels() -> None:
    network = build_network(TypeAdapter(NetworkConfig).validate_python({"kind": "identity"}),
                            (2,), (2,))
    with pytest.raises(KDMError, match="cannot be cut at its levels; use mlp"):
        network.condition(torch.zeros(1, 2), None, None)
