"""Distances, LPIPS, the adversary."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdm_core.errors import KDMError, MismatchError
from kdm_core.losses import trunks
from kdm_core.losses.adversary import (
    Adversary,
    AdversaryConfig,
    build_adversary,
    check_adversary,
    discriminator_loss,
)
from kdm_core.losses.discriminator import Critic, Discriminator
from kdm_core.losses.distances import (
    DistanceConfig,
    LPIPSConfig,
    MSEConfig,
    PseudoHuberConfig,
    build_distance,
    check_distance,
    pseudo_huber,
)
from kdm_core.losses.perceptual import LPIPS
from kdm_core.samples import SampleSpec
from kdm_core.vision import import_torchvision

CPU = torch.device("cpu")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def spec(*shape: int) -> SampleSpec:
    return SampleSpec(kind="image" if len(shape) == 3 else "points", shape=list(shape))


# Distances


def test_distances_by_hand() -> None:
    x = torch.zeros(2, 4)
    near, far = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]), torch.full((2, 4), 2.0)
    found = build_distance(MSEConfig(kind="mse"), CPU)(x, [near, far])
    assert [float(value) for value in found] == [0.5, 4.0]
    huber = build_distance(PseudoHuberConfig(kind="pseudo_huber", c=0.03), CPU)
    found = huber(x, [near, x])
    assert float(found[0]) == pytest.approx(((1 + 0.03**2) ** 0.5 - 0.03) / 2, rel=1e-6)
    assert float(found[1]) == pytest.approx(0, abs=1e-8)


def test_pseudo_huber_gradients() -> None:
    x, y = (images(3, 4, seed=seed).double() for seed in (1, 2))
    assert torch.autograd.gradcheck(lambda y: pseudo_huber(x, y, 0.03), y.requires_grad_())


@pytest.mark.parametrize("config", [
    MSEConfig(kind="mse"), PseudoHuberConfig(kind="pseudo_huber"),
    LPIPSConfig(kind="lpips", net="alex", resolution=32, mse=0.5)], ids=lambda config: config.kind)
def test_a_target_gets_no_gradient(config: DistanceConfig) -> None:
    target, prediction = (images(2, 3, 32, 32, seed=seed).requires_grad_() for seed in (1, 2))
    build_distance(config, CPU)(target, [prediction])[0].backward()
    assert target.grad is None
    assert prediction.grad is not None


# LPIPS


@pytest.fixture(scope="module", params=[("vgg", "max"), ("alex", "max"), ("vgg", "average")],
                ids="-".join)
def networks(request: pytest.FixtureRequest) -> tuple[LPIPS, nn.Module]:
    """Ours, and the network of the package `lpips` with the same weights."""
    import_torchvision()  # which lpips does, too, but not beside every build of torch
    import lpips

    net, pooling = request.param
    ours = LPIPS(0, net, pooling)
    with warnings.catch_warnings():  # lpips calls torchvision in an older way
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    layers: Iterator[Any] = (m for m in ours.modules() if isinstance(m, trunks.FrozenConvolution))
    for layer in [m for m in theirs.net.modules() if isinstance(m, nn.Conv2d)]:
        mine = next(layers)
        layer.load_state_dict({"weight": mine.weight, "bias": mine.bias})
    if pooling == "average":
        for part in list(theirs.net.children()):
            for name, layer in part.named_children():
                if isinstance(layer, nn.MaxPool2d):
                    part[int(name) - min(map(int, part._modules))] = nn.AvgPool2d(2, 2)
    return ours, theirs


def test_lpips_is_the_package_lpips(networks: tuple[LPIPS, nn.Module]) -> None:
    """Values and gradients, in float64 up to the roots of LPIPS's weights, taken in float32."""
    ours, theirs = (network.double() for network in networks)
    a, b, c = (images(2, 3, 40, 32, seed=seed).double() for seed in (1, 2, 3))
    b.requires_grad_()
    found = ours.to_target(a, [b, c])
    expected = torch.stack([theirs(a, b).flatten(), theirs(a, c).flatten()])
    torch.testing.assert_close(found, expected, rtol=5e-8, atol=0)
    mine, others = (torch.autograd.grad(value[0].sum(), b)[0] for value in (found, expected))
    assert float((mine - others).norm() / others.norm()) < 1e-6
    ours.float()
    single = ours(a.float(), b.float())
    torch.testing.assert_close(single, expected[0].float(), rtol=2e-6, atol=0)


@pytest.fixture(scope="module")
def vgg() -> LPIPS:
    return LPIPS(32)


def test_lpips_orders_distortions(vgg: LPIPS) -> None:
    """With real weights a shift of one pixel is nearer than another picture; random ones fail."""
    picture = nn.functional.interpolate(images(4, 1, 6, 6), size=(32, 32), mode="bicubic")
    with torch.no_grad():
        same, shifted, other = (float(vgg(picture, image).mean()) for image in
                                (picture, picture.roll(1, dims=3), picture.roll(1, dims=0)))
    assert same == 0
    assert 0 < shifted < 0.5 * other


def test_lpips_enlarges_and_repeats_a_single_channel(vgg: LPIPS) -> None:
    small, other = images(2, 1, 8, 12, seed=1), images(2, 1, 8, 12, seed=2)
    large, larger = (nn.functional.interpolate(x, size=(32, 48), mode="bilinear").repeat(1, 3, 1, 1)
                     for x in (small, other))
    with torch.no_grad():
        torch.testing.assert_close(vgg(small, other), vgg(large, larger), rtol=1e-5, atol=0)


def test_features_of_the_target_are_computed_once(
    vgg: LPIPS, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = trunks.Trunk.forward

    def counted(self: trunks.Trunk, batch: Tensor) -> list[Tensor]:
        calls.append((len(batch), torch.is_grad_enabled()))
        return forward(self, batch)

    monkeypatch.setattr(trunks.Trunk, "forward", counted)
    vgg.to_target(images(2, 1, 8, 8), [images(2, 1, 8, 8, seed=1), images(2, 1, 8, 8, seed=2)])
    assert calls == [(2, False), (4, True)]


def test_lpips_under_autocast_is_near_and_summed_in_float32(vgg: LPIPS) -> None:
    a, b = images(4, 3, 32, 32, seed=1), images(4, 3, 32, 32, seed=2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = vgg(a, b)
        same = vgg(a, a)
    assert rounded.dtype == torch.float32
    assert not same.any()
    torch.testing.assert_close(rounded, vgg(a, b), rtol=5e-3, atol=0)


@pytest.mark.parametrize("bf16", [False, True])
def test_lpips_as_a_training_distance_has_finite_gradients(bf16: bool) -> None:
    distance = build_distance(LPIPSConfig(kind="lpips", resolution=32, mse=0.5), CPU)
    x = torch.zeros(2, 1, 8, 8)
    y = torch.zeros(2, 1, 8, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        (value,) = distance(x, [y + 0.1 * torch.eye(8)])
    value.backward()  # type: ignore[no-untyped-call]
    assert y.grad is not None
    assert y.grad.isfinite().all()
    assert float(y.grad.abs().max()) > 0


def test_mse_is_added_to_lpips() -> None:
    x, y = images(2, 3, 32, 32, seed=1), images(2, 3, 32, 32, seed=2)
    plain, added = (
        float(build_distance(LPIPSConfig(kind="lpips", net="alex", mse=weight), CPU)(x, [y])[0])
        for weight in (0.0, 0.5))
    assert added - plain == pytest.approx(0.5 * float((x - y).square().mean()), rel=1e-5)


def test_frozen_weights_are_no_state(vgg: LPIPS) -> None:
    assert not list(vgg.parameters())
    assert not vgg.state_dict()


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_altered_weights_are_refused(net: trunks.Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trunks.LAYOUTS, net, trunks.LAYOUTS[net]._replace(sha256="0" * 64))
    with pytest.raises(MismatchError, match="SHA-256 differs"):
        trunks.read_weights(net)


@pytest.mark.parametrize(("net", "side"), [("vgg", 16), ("alex", 31)])
def test_the_smallest_image_is_the_smallest_that_works(net: trunks.Net, side: int) -> None:
    lpips = LPIPS(0, net)
    assert all(layer.numel() for layer in lpips.features(images(1, 3, side, side)))
    with pytest.raises(KDMError, match=f"at least {side}×{side} pixels, found {side - 1}×"):
        lpips.features(images(1, 3, side - 1, side))
    small = SampleSpec(kind="image", shape=[3, side - 1, side + 9])
    with pytest.raises(KDMError, match=r"^losses\.distance\.resolution: .*set it to"):
        check_distance(LPIPSConfig(kind="lpips", net=net, resolution=0), small)
    check_distance(LPIPSConfig(kind="lpips", net=net, resolution=side), small)


@pytest.mark.parametrize("shape", [(2,), (2, 64, 64)])
def test_lpips_refuses_points_and_two_channels(shape: tuple[int, ...], vgg: LPIPS) -> None:
    with pytest.raises(KDMError, match=r"^losses\.distance\.kind: .*use mse or pseudo_huber"):
        check_distance(LPIPSConfig(kind="lpips"), spec(*shape))
    check_distance(MSEConfig(kind="mse"), spec(*shape))
    with pytest.raises(KDMError, match="1 or 3 channels"):
        vgg.features(images(1, *shape))


# The adversary


def test_discriminator_is_the_published_one_at_32_pixels() -> None:
    model = build_adversary(AdversaryConfig(), spec(3, 32, 32), CPU).network
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in layers] == [
        (3, 64), (64, 128), (128, 256), (256, 1)]
    assert [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [128, 256]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 1)
    assert Discriminator(spec(1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape == (2, 1)
    assert Discriminator(spec(3, 64, 80))(torch.zeros(2, 3, 64, 80)).shape == (2, 1)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_the_papers_adversary_refuses_points_and_tiny_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(KDMError, match=r"^losses\.adversarial: .*at least 8×8.*set it to 0"):
        check_adversary(AdversaryConfig(), spec(*shape))
    check_adversary(AdversaryConfig(), spec(2, 16, 16))


class Linear(Critic):
    """D(x) = w · x, whose gradient by x is w; `weight` for R1 by hand."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def embed(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        return [samples]

    def judge(self, embedded: list[Tensor]) -> Tensor:
        return embedded[0].flatten(1) @ self.weight[:, None]


def linear(weight: list[float], **config: Any) -> Adversary:
    return Adversary(AdversaryConfig(**config), Linear(torch.tensor(weight)))


def test_losses_by_hand() -> None:
    """D(real) = 2 and D(fake) = −0.5, through the very discriminator."""
    real, fake = torch.tensor([[[[2.0]]]]), torch.tensor([[[[-0.5]]]])
    sigmoid = torch.sigmoid(torch.tensor([2.0, -0.5, -2.5, 2.5]))
    expected = {
        "bce": (-sigmoid[1].log(), -(sigmoid[0].log() + (1 - sigmoid[1]).log())),
        "hinge": (torch.tensor(0.5), torch.tensor(0.0 + (1 - 0.5))),
        "relativistic": (-sigmoid[2].log(), -sigmoid[3].log()),  # of -0.5 - 2 and 2 + 0.5
    }
    for loss, (generator, discriminator) in expected.items():
        adversary = linear([1.0], loss=loss)
        assert adversary.generator_loss(fake, real).item() == pytest.approx(float(generator))
        assert adversary(fake, real).item() == pytest.approx(float(discriminator))


@pytest.mark.parametrize("kind", ["bce", "hinge", "relativistic"])
def test_loss_gradients(kind: str) -> None:
    real, fake = (images(4, 2, seed=seed).double().requires_grad_() for seed in (1, 2))
    assert torch.autograd.gradcheck(lambda *logits: discriminator_loss(kind, *logits), (real, fake))


@pytest.mark.parametrize("loss", ["bce", "hinge", "relativistic"])
@pytest.mark.parametrize("network", ["paper", "features"])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_go_one_way(loss: str, network: str, bf16: bool) -> None:
    config = AdversaryConfig.model_validate(
        {"loss": loss, "network": network, "channels": 8, "r1": 0.5, "r2": 0.5, "r1_every": 2})
    adversary = build_adversary(config, spec(1, 8, 8), CPU)
    trainable = [p for p in adversary.parameters() if p.requires_grad]
    student = nn.Linear(4, 64)
    made = student(images(4, 4)).reshape(4, 1, 8, 8)
    real = images(4, 1, 8, 8, seed=1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        generator = adversary.generator_loss(made, real)
    generator.backward()
    assert generator.dtype == torch.float32
    assert all(p.grad is None for p in trainable)
    assert all(p.requires_grad for p in trainable)
    assert real.grad is None
    assert student.weight.grad is not None
    assert float(student.weight.grad.abs().sum()) > 0
    student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        discriminator = adversary.discriminator_loss(made.detach(), real)
    discriminator.backward()  # type: ignore[no-untyped-call]
    assert student.weight.grad is None
    assert real.grad is None
    gradients = [p.grad for p in trainable]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0


def test_training_the_adversary_tells_the_two_apart() -> None:
    torch.manual_seed(0)
    real, fake = images(4, 1, 8, 8, seed=1).abs(), -images(4, 1, 8, 8, seed=2).abs()
    for network in ("paper", "features"):
        config = AdversaryConfig.model_validate({"network": network, "channels": 8})
        adversary = build_adversary(config, spec(1, 8, 8), CPU)
        adam = torch.optim.Adam(adversary.parameters(), lr=5e-3)
        for _ in range(15):
            adam.zero_grad()
            adversary(fake, real).backward()
            adam.step()
        assert float((adversary.network(real) - adversary.network(fake)).min().detach()) > 0.5


def test_r1_of_a_linear_discriminator_is_its_weight_squared() -> None:
    """gamma/2 ‖w‖² for each of the two, whose gradient is gamma w; nothing depends on the data."""
    weight = [0.5, -1.0, 2.0]
    real, fake = images(4, 3, 1, 1, seed=1), images(4, 3, 1, 1, seed=2)
    plain = linear(weight, loss="hinge")
    for penalties in ({"r1": 0.8}, {"r2": 0.8}, {"r1": 0.8, "r1_every": 3}):
        adversary = linear(weight, loss="hinge", **penalties)
        added = adversary(fake, real) - plain(fake, real)
        assert added.item() == pytest.approx(0.4 * (0.25 + 1 + 4), rel=1e-6)
        (gradient,) = torch.autograd.grad(added, adversary.parameters(), retain_graph=True)
        (without,) = torch.autograd.grad(plain(fake, real), plain.parameters())
        torch.testing.assert_close(gradient - without, 0.8 * torch.tensor(weight))


class Quadratic(Linear):
    """D(x) = Σ w x²/2, whose gradient by x is w x."""

    def judge(self, embedded: list[Tensor]) -> Tensor:
        return (embedded[0].flatten(1).square() / 2) @ self.weight[:, None]


def test_r1_is_taken_on_the_real_and_on_every_nth() -> None:
    weight = torch.tensor([1.0, 3.0], dtype=torch.float64)
    real, fake = (images(6, 2, 1, 1, seed=seed) for seed in (1, 2))
    expected = (torch.tensor([1.0, 9.0]) * real.flatten(1).square()).sum(dim=1)
    adversary = Adversary(AdversaryConfig(r1=2.0, r1_every=2), Quadratic(weight.float()))
    plain = Adversary(AdversaryConfig(), Quadratic(weight.float()))
    added = adversary(fake, real) - plain(fake, real)
    assert added.item() == pytest.approx(float(expected[::2].mean()), rel=1e-5)


def test_r1_is_in_float32_under_autocast() -> None:
    adversary = build_adversary(AdversaryConfig(channels=8), spec(1, 8, 8), CPU)
    real = images(4, 1, 8, 8)
    exact = adversary.gradient_penalty([real])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(adversary.gradient_penalty([real]), exact, rtol=1e-5, atol=0)


def test_a_frozen_trunk_is_no_part_of_a_checkpoint() -> None:
    adversary = build_adversary(AdversaryConfig(network="features", channels=8), spec(1, 8, 8), CPU)
    assert {name.split(".")[1] for name in adversary.state_dict()} == {"heads"}
