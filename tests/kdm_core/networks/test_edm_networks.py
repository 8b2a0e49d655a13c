"""EDM's U-Nets: DDPM++, NCSN++ and ADM."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from kdm_core.errors import KDMError
from kdm_core.networks.base import Network
from kdm_core.networks.dhariwal_unet import DhariwalUNet, DhariwalUNetConfig
from kdm_core.networks.edm_blocks import (
    FourierEmbedding,
    PositionalEmbedding,
    Resample,
    ShrinkingConv,
    UNetBlock,
)
from kdm_core.networks.song_unet import INIT, SongUNet, SongUNetConfig

SMALL: dict[str, Any] = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4],
                         "augment_dim": 4}
CONFIGS: dict[str, SongUNetConfig | DhariwalUNetConfig] = {
    "ddpmpp": SongUNetConfig(kind="song_unet", **SMALL),
    "ncsnpp": SongUNetConfig(kind="song_unet", time_embedding="fourier", time_width=2,
                             encoder="residual", resample="binomial", **SMALL),
    "skips": SongUNetConfig(kind="song_unet", encoder="skip", decoder="skip", resample="binomial",
                            **SMALL),
    "residual box": SongUNetConfig(kind="song_unet", encoder="residual", decoder="skip", **SMALL),
    "adm": DhariwalUNetConfig(kind="dhariwal_unet",
                              **SMALL | {"channels": 64, "attention": [8, 4]}),
}
# Made once with the published implementation (NVlabs/edm) in float64, from the weights and inputs
# of `waves`: every 83rd number of its output.
PUBLISHED = {
    "ddpmpp": [-0.221679, 0.922983, -0.229867, -0.631636, 0.323509, -0.451467, 0.392162],
    "ncsnpp": [-0.169593, 0.444343, 0.747634, -0.054437, 0.652798, -0.795354, 0.904439],
    "skips": [-0.004418, 0.281068, -0.289145, -0.082781, -0.570538, -1.140548, -0.398069],
    "residual box": [0.144432, 0.285237, -0.231985, -0.077007, -0.524991, -1.109122, -0.412869],
    "adm": [0.181339, 0.294953, -0.380408, 0.305466, 0.099027, 0.267075, -0.118638],
}


def build(
    config: SongUNetConfig | DhariwalUNetConfig,
    shape: tuple[int, ...] = (2, 8, 8),
    out_shape: tuple[int, ...] = (3, 8, 8),
    timed: bool = True,
    num_classes: int = 3,
) -> Network:
    kind = SongUNet if isinstance(config, SongUNetConfig) else DhariwalUNet
    torch.manual_seed(0)
    return kind(config, shape, out_shape, timed, num_classes).eval()  # type: ignore[arg-type]


def waves(shape: torch.Size | tuple[int, ...], phase: float) -> Tensor:
    """Numbers of no regularity that every version of torch agrees on."""
    index = torch.arange(math.prod(shape))
    return torch.sin(index * 0.7 + (index**2 % 1009) * 0.01 + phase).reshape(shape)


def with_waves(network: Network) -> Network:
    for index, (name, values) in enumerate(sorted(network.state_dict().items())):
        fan = values[0].numel() if values.ndim > 1 else 4
        base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        values.copy_(waves(values.shape, index) / math.sqrt(fan) + base)
    return network


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, time, labels (one of them none), augmentation labels."""
    return (waves((3, 2, 8, 8), 0.0), torch.tensor([-1.2, 0.3, 900.0]), torch.tensor([2, -1, 1]),
            waves((3, 4), 1.0))


# The numbers


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_the_published_network(name: str) -> None:
    network = with_waves(build(CONFIGS[name]))
    with torch.no_grad():
        out = network.forward(*inputs())  # type: ignore[call-arg]
    assert out.shape == (3, 3, 8, 8) and out.is_contiguous()
    # The phases of the time 900 are rounded to about 1e-4.
    published = torch.tensor(PUBLISHED[name])
    torch.testing.assert_close(out.flatten()[::83], published, rtol=0, atol=3e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_is_close_to_fp32(name: str) -> None:
    network = with_waves(build(CONFIGS[name]))
    x, time, labels, _ = inputs()
    with torch.no_grad():
        exact = network(x, time, labels)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x, time, labels)
    error = (rough.float() - exact).square().mean() / exact.square().mean()
    assert 0 < error.sqrt() < 0.03


@pytest.mark.parametrize("heads, channels_per_head", [(1, None), (2, 64)])
def test_attention_is_softmax_over_all_pixels(heads: int, channels_per_head: int | None) -> None:
    """The rows of qkv by head, channel, and then query, key, value."""
    network = build(CONFIGS["adm" if channels_per_head else "ddpmpp"])
    block = network.get_submodule("dec.4x4_in0")
    assert isinstance(block, UNetBlock) and block.heads == heads
    block.double()
    torch.nn.init.normal_(block.proj.weight)
    width = block.proj.weight.shape[0]
    x = torch.randn(2, width, 4, 4, dtype=torch.float64)
    q, k, v = block.qkv(block.norm2(x)).reshape(2, heads, width // heads, 3, 16).unbind(3)
    weights = torch.einsum("bhcq,bhck->bhqk", q, k) / math.sqrt(width // heads)
    mixed = torch.einsum("bhqk,bhck->bhcq", weights.softmax(dim=3), v)
    expected = block.proj(mixed.reshape(2, width, 4, 4))
    torch.testing.assert_close(block.attend(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("filter, taps", [("box", [1.0, 1.0]), ("binomial", [1.0, 3.0, 3.0, 1.0])])
def test_resampling_is_a_convolution_with_the_filter(filter: Any, taps: list[float]) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    weights = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    kernel = torch.outer(weights, weights).expand(3, 1, -1, -1)
    pad = (len(taps) - 1) // 2
    down = F.conv2d(x, kernel, stride=2, padding=pad, groups=3)
    up = F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=3)
    torch.testing.assert_close(Resample("down", filter).double()(x), down)
    torch.testing.assert_close(Resample("up", filter).double()(x), up)
    # The fused layer pads for both convolutions at once.
    layer = ShrinkingConv(3, 5, filter, INIT).double()
    wide = F.conv2d(x, layer.weight, layer.bias, padding=1 + pad)
    expected = F.conv2d(wide, kernel[:1].expand(5, 1, -1, -1), stride=2, groups=5)
    torch.testing.assert_close(layer(x), expected)


def test_embeddings_of_time_after_their_formulas() -> None:
    time = torch.tensor([0.5, 700.0])
    for endpoint, steps in ((True, 7), (False, 8)):
        cosines, sines = PositionalEmbedding(16, endpoint)(time)
        angles = time.double()[:, None] * 10000.0 ** (-torch.arange(8).double() / steps)
        torch.testing.assert_close(cosines.double(), angles.cos(), rtol=0, atol=2e-4)
        torch.testing.assert_close(sines.double(), angles.sin(), rtol=0, atol=2e-4)
    fourier = FourierEmbedding(4000)
    assert 15 < fourier.freqs.std() < 17
    cosines, sines = fourier(time[:1])
    torch.testing.assert_close(cosines[0], (math.pi * fourier.freqs).cos(), rtol=0, atol=1e-4)
    assert torch.allclose(cosines**2 + sines**2, torch.ones(1, 2000))


def test_levels_narrower_than_a_head_have_no_attention_in_adm() -> None:
    config = DhariwalUNetConfig(kind="dhariwal_unet", **SMALL)
    assert not [name for name in build(config).state_dict() if "qkv" in name]


# Conditions


@pytest.mark.parametrize("name", CONFIGS)
def test_conditions_count_and_none_of_them_is_no_label(name: str) -> None:
    network = with_waves(build(CONFIGS[name]))
    x, time, labels, augment = inputs()
    with torch.no_grad():
        plain = network(x, time, None)
        assert torch.equal(network(x, time, torch.full((3,), -1)), plain)
        for other in (network(x, time + 1, None), network(x, time, labels),
                      network.forward(x, time, None, augment)):  # type: ignore[call-arg]
            assert (other - plain).abs().amax(dim=(1, 2, 3)).max() > 1e-3
        zeros = network.forward(x, time, None, augment * 0)  # type: ignore[call-arg]
        torch.testing.assert_close(zeros, plain)
        # Samples of a batch know nothing of each other.
        torch.testing.assert_close(network(x[1:2], time[1:2], labels[1:2]),
                                   network(x, time, labels)[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("classes", [0, 3])
def test_without_a_time_it_is_an_encoder(name: str, classes: int) -> None:
    config = CONFIGS[name].model_copy(update={"augment_dim": 0})
    network = build(config, timed=False, num_classes=classes).train()
    names = set(network.state_dict())
    assert not any("map_noise" in name for name in names)
    assert any("map_" in name for name in names) == bool(classes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, _, labels, _ = inputs()
    network(x, None, labels if classes else None).square().mean().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_learns(name: str) -> None:
    network = build(CONFIGS[name]).train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.forward(*inputs()).square().mean().backward()  # type: ignore[call-arg]
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_dropout_is_for_training_only(name: str) -> None:
    network = with_waves(build(CONFIGS[name]))
    x, time, labels, _ = inputs()
    assert torch.equal(network(x, time, labels), network(x, time, labels))
    network.train()
    assert not torch.equal(network(x, time, labels), network(x, time, labels))


# Initial weights


def test_initial_weights_of_ddpmpp() -> None:
    """Uniform after Glorot; 1e-5 of that at the end of branches; no biases."""
    weights = build(SongUNetConfig(kind="song_unet", channels=64, multipliers=[1]), (3, 16, 16),
                    (3, 16, 16)).state_dict()
    for name, factor in (("conv0", 1.0), ("conv1", 1e-5), ("qkv", math.sqrt(0.2)), ("proj", 1e-5)):
        weight = weights[f"dec.16x16_in0.{name}.weight"]
        area = weight[0, 0].numel()
        bound = factor * math.sqrt(6 / (area * (weight.shape[0] + weight.shape[1])))
        assert 0.99 * bound < weight.abs().max() <= bound * 1.0001
        assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not any(values.any() for name, values in weights.items()
                   if name.endswith("bias"))


def test_initial_weights_of_adm() -> None:
    network = build(DhariwalUNetConfig(kind="dhariwal_unet", channels=64, multipliers=[1]),
                    (3, 16, 16), (3, 16, 16), num_classes=10)
    weights = network.state_dict()
    for name in ("conv0", "qkv"):
        weight = weights[f"dec.16x16_in0.{name}.weight"]
        bound = math.sqrt(1 / weight[0].numel())  # sqrt(1/3) of Kaiming's uniform
        assert 0.99 * bound < weight.abs().max() <= bound * 1.0001
        bias = weights[f"dec.16x16_in0.{name}.bias"]
        assert 0.9 * bound < bias.abs().max() <= bound * 1.0001
    assert not weights["dec.16x16_in0.conv1.weight"].any()
    assert weights["map_label.weight"].std() == pytest.approx(1.0, rel=0.1)
    x = torch.randn(2, 3, 16, 16)
    assert not network(x, torch.ones(2), torch.tensor([0, 1])).any()  # starts at zero


# What is refused


@pytest.mark.parametrize("config", [CONFIGS["ddpmpp"], CONFIGS["adm"]], ids=["song", "dhariwal"])
@pytest.mark.parametrize("shape, out_shape, part", [
    ((2,), (2,), "use kind: mlp"), ((2, 8, 8), (2, 4, 4), "use kind: mlp"),
    ((2, 8, 8), (64,), "use kind: mlp"), ((2, 8, 4), (2, 8, 4), "square"),
    ((2, 7, 7), (2, 7, 7), "divisible by 2"),
])
def test_shapes_that_do_not_fit_are_named(
    config: Any, shape: tuple[int, ...], out_shape: tuple[int, ...], part: str
) -> None:
    with pytest.raises(KDMError, match=rf"^network\.(kind|multipliers): .*{part}"):
        build(config, shape, out_shape)


@pytest.mark.parametrize("channels, multipliers, part", [
    (132, [1], "normalised in 32 groups"), (36, [1, 4], "normalised in 32 groups"),
    (68, [1, 3], "normalised in 32 groups"), (32, [7], "divided between 3 attention heads"),
])
def test_channels_that_do_not_fit_are_named(
    channels: int, multipliers: list[int], part: str
) -> None:
    config = DhariwalUNetConfig(kind="dhariwal_unet", channels=channels, multipliers=multipliers,
                                blocks=1)
    with pytest.raises(KDMError, match=rf"^network\.channels: .*{part}"):
        build(config)


@pytest.mark.parametrize("field, value", [
    ("channels", 0), ("channels", 6), ("multipliers", []), ("multipliers", [0]), ("dropout", 1.0),
    ("blocks", 0), ("resample", "gauss"), ("encoder", "none"), ("time_width", 0), ("chanels", 8),
])
def test_wrong_fields_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        SongUNetConfig.model_validate({"kind": "song_unet", field: value})
