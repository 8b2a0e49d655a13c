"""Distances, LPIPS and the discriminator."""

import pytest
import torch

from kdm_core.errors import KDMError, MismatchError
from kdm_core.losses import perceptual
from kdm_core.losses.discriminator import Discriminator, discriminator_loss, generator_loss
from kdm_core.losses.distances import LPIPSConfig, PseudoHuberConfig, build_distance
from kdm_core.losses.perceptual import LPIPS, import_lpips
from kdm_core.samples import SampleSpec

CPU = torch.device("cpu")


def test_pseudo_huber_by_hand() -> None:
    distance = build_distance(PseudoHuberConfig(kind="pseudo_huber", c=0.03), CPU)
    x = torch.zeros(2, 4)
    y = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    assert float(distance(x, y)) == pytest.approx(((1 + 0.03**2) ** 0.5 - 0.03) / 2, rel=1e-6)


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return LPIPS(resolution=64)


def test_lpips_is_the_package_lpips(lpips: LPIPS) -> None:
    """The same network, weights and arithmetic as `lpips.LPIPS`, to rounding."""
    theirs = import_lpips().LPIPS(net="vgg", pnet_rand=True, verbose=False)
    theirs.net.load_state_dict(lpips.model.net.state_dict())
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 3, 64, 64, generator=generator) * 2 - 1 for _ in range(2))
    with torch.no_grad():
        torch.testing.assert_close(lpips(a, b), theirs(a, b).flatten(), rtol=0, atol=1e-6)


def test_lpips_orders_distortions(lpips: LPIPS) -> None:
    """With real weights a shift of one pixel is nearer than another picture; random ones fail."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(4, 1, 6, 6, generator=generator) * 2 - 1
    picture = torch.nn.functional.interpolate(low, size=(32, 32), mode="bicubic").clamp(-1, 1)
    with torch.no_grad():
        same, shifted, other = (float(lpips(picture, image).mean()) for image in
                                (picture, picture.roll(1, dims=3), picture.roll(1, dims=0)))
    assert same == pytest.approx(0, abs=1e-6)
    assert 0 < shifted < 0.5 * other


def test_lpips_as_a_training_distance_has_finite_gradients() -> None:
    distance = build_distance(LPIPSConfig(kind="lpips", resolution=32, mse=0.5), CPU)
    x = torch.zeros(2, 1, 8, 8)
    y = torch.zeros(2, 1, 8, 8, requires_grad=True)
    distance(x, y + 0.1 * torch.eye(8)).backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()
    assert float(y.grad.abs().max()) > 0


def test_altered_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "SHA256", "0" * 64)
    with pytest.raises(MismatchError, match="SHA-256 differs"):
        perceptual.vgg16_weights()


def test_discriminator_is_the_published_one_at_32_pixels() -> None:
    model = Discriminator(SampleSpec(kind="image", shape=[3, 32, 32]))
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(m.in_channels, m.out_channels) for m in layers] == [
        (3, 64), (64, 128), (128, 256), (256, 1)]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2,)
    assert Discriminator(SampleSpec(kind="image", shape=[1, 8, 8]))(
        torch.zeros(2, 1, 8, 8)).shape == (2,)


def test_discriminator_refuses_points_and_tiny_images() -> None:
    for spec in (SampleSpec(kind="points", shape=[2]), SampleSpec(kind="image", shape=[1, 4, 4])):
        with pytest.raises(KDMError, match="at least 8×8"):
            Discriminator(spec)


def test_adversarial_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    sigmoid = torch.sigmoid
    expected = -(sigmoid(real).log() + (1 - sigmoid(fake)).log())
    assert float(discriminator_loss(real, fake)) == pytest.approx(float(expected), rel=1e-5)
    assert float(generator_loss(fake)) == pytest.approx(float(-sigmoid(fake).log()), rel=1e-5)
