"""Discriminators on frozen networks: layers, mixing, heads, recipes, augmentation, resumption."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.compute import seeded
from kdm_core.errors import KDMError
from kdm_core.losses import augmentation
from kdm_core.losses.adversary import (
    Adversary,
    AdversaryConfig,
    build_adversary,
    check_adversary,
)
from kdm_core.losses.augmentation import augment
from kdm_core.losses.discriminator import (
    FeatureDiscriminator,
    Mixing,
    SpectralConv2d,
    head,
)
from kdm_core.losses.features import (
    AlexNetFeatures,
    ClassifierFeatures,
    FeatureNetwork,
    FeaturesConfig,
    Frozen,
    TeacherFeatures,
    VGG16Features,
    build_features,
    check_features,
)
from kdm_core.metrics.classifier import Classifier, ClassifierConfig
from kdm_core.networks import AnyNetworkConfig, Network, build_network
from kdm_core.networks.dhariwal_unet import DhariwalUNetConfig
from kdm_core.networks.diffusers_unet import DiffusersUNetConfig
from kdm_core.networks.edm2_unet import EDM2UNetConfig
from kdm_core.networks.mlp import MLP, MLPConfig
from kdm_core.networks.song_unet import SongUNetConfig
from kdm_core.networks.torchcfm_unet import TorchCFMUNetConfig
from kdm_core.networks.transformer import TransformerConfig
from kdm_core.networks.unet import UNetConfig
from kdm_core.operators import FactorisedConfig
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.students.given import Given
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers import (
    Denoiser,
    DenoiserConfig,
    FlowMatching,
    FlowMatchingConfig,
    Teacher,
    build_teacher,
)
from kdm_core.teachers.exact import GaussianMixture, GaussianMixtureConfig
from kdm_core.teachers.guidance import Guided
from kdm_core.teachers.preconditioning import DiscretePreconditioning
from kdm_core.training.distributed import synchronised
from kdm_core.training.loop import fit
from tests.support.training import Killed, assert_same, config, killed_at

CPU = torch.device("cpu")
IMAGES = SampleSpec(kind="image", shape=[1, 16, 16], label_names=["a", "b", "c"])
POINTS = SampleSpec(kind="points", shape=[2])
SMALL = MLPConfig(kind="mlp", width=16, blocks=6)
# The layers that each network is to show, and their shapes for 16×16 pixels.
KINDS: list[tuple[AnyNetworkConfig, list[str], list[tuple[int, ...]]]] = [
    (SMALL, ["blocks.0", "blocks.2", "blocks.3", "blocks.5"], [(16,)] * 4),
    (UNetConfig(kind="unet", channels=8, multipliers=[1, 2, 2], blocks=2, attention=[8]),
     ["down.1", "down.4", "down.7"], [(8, 16, 16), (16, 8, 8), (16, 4, 4)]),
    (SongUNetConfig(kind="song_unet", channels=16, multipliers=[1, 2], blocks=2, attention=[8],
                    encoder="residual"),
     ["enc.16x16_block1", "enc.8x8_block1"], [(16, 16, 16), (32, 8, 8)]),
    (DhariwalUNetConfig(kind="dhariwal_unet", channels=32, multipliers=[1, 2], blocks=1,
                        attention=[8]),
     ["enc.16x16_block0", "enc.8x8_block0"], [(32, 16, 16), (64, 8, 8)]),
    (EDM2UNetConfig(kind="edm2_unet", channels=16, multipliers=[1, 2], blocks=2, attention=[8],
                    channels_per_head=16),
     ["enc.16x16_block1", "enc.8x8_block1"], [(16, 16, 16), (32, 8, 8)]),
    (TransformerConfig(kind="transformer", width=32, blocks=3, heads=2, patch=4),
     ["blocks.0", "blocks.1", "blocks.2"], [(32, 4, 4)] * 3),
    (DiffusersUNetConfig(kind="diffusers_unet", arguments={
        "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16], "layers_per_block": 2,
        "norm_num_groups": 4, "attention_head_dim": 4, "num_class_embeds": 3,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}),
     ["unet.down_blocks.0.resnets.1", "unet.down_blocks.1.attentions.1"],
     [(8, 16, 16), (16, 8, 8)]),
    (TorchCFMUNetConfig(kind="torchcfm_unet", num_channels=32, num_res_blocks=2,
                        channel_mult=[1, 2], num_heads=2, num_head_channels=16,
                        attention_resolutions=[8]),
     ["unet.input_blocks.2", "unet.input_blocks.5"], [(32, 16, 16), (64, 8, 8)]),
]
MANY = {"network": "features", "channels": 8,
        "features": [{"kind": "teacher"}, {"kind": "classifier"}]}
EVERY_KIND = pytest.mark.parametrize(("network", "names", "shapes"), KINDS,
                                     ids=[network.kind for network, _, _ in KINDS])


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def randomised(module: nn.Module) -> Any:
    """With weights that are nowhere zero, as those of a trained network."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            fan = max(1, weight[0].numel() if weight.ndim > 1 else 1)
            weight.copy_(torch.randn(weight.shape, generator=generator) / fan**0.5)
    return module


def denoiser(network: AnyNetworkConfig = SMALL, spec: SampleSpec = IMAGES, **fields: Any) -> Any:
    return randomised(build_teacher(
        DenoiserConfig(kind="denoiser", network=network, **fields), spec))


def layers_of(teacher: Teacher, level: float = 0.3) -> FeatureNetwork:
    return build_features(TeacherFeatures(kind="teacher", level=level), teacher.spec, CPU,
                          Frozen(teacher=lambda: teacher))


def classifier() -> Classifier:
    model: Classifier = randomised(Classifier(ClassifierConfig(channels=8, features=6), IMAGES))
    with torch.no_grad():  # running averages, too
        for _ in range(3):
            model(values(8, 1, 16, 16))
    return model


def frozen() -> Frozen:
    return Frozen(teacher=denoiser, classifier=classifier)


# The layers of networks


@EVERY_KIND
def test_stages_are_those_layers_of_a_full_evaluation(
    network: AnyNetworkConfig, names: list[str], shapes: list[tuple[int, ...]]
) -> None:
    built: Network = randomised(build_network(
        network, (1, 16, 16), (1, 16, 16), timed=True, num_classes=3)).eval()
    assert [id(stage) for stage in built.stages()] == [
        id(built.get_submodule(name)) for name in names]
    given = values(2, 1, 16, 16), torch.tensor([0.3, 0.7]), torch.tensor([0, 2])
    seen: list[Tensor] = []
    hooks = [built.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: seen.append(output)) for name in names]
    with torch.no_grad():
        built(*given)
        for hook in hooks:
            hook.remove()
        found = built.activations(lambda: built(*given))
    assert [layer.shape[1:] for layer in found] == shapes
    for layer, full in zip(found, seen, strict=True):
        if full.ndim == 3:  # tokens, row by row
            full = full.mT.unflatten(2, (4, 4))  # type: ignore[no-untyped-call]
        assert torch.equal(layer, full)


def test_an_evaluation_is_left_after_the_last_stage_and_leaves_nothing_behind() -> None:
    network = MLP(SMALL, (4,), (4,))
    calls: list[str] = []
    network.norm.register_forward_hook(lambda *_: calls.append("after"))
    x = values(2, 4).requires_grad_()
    found = network.activations(lambda: network(x))
    assert len(found) == 4
    assert not calls
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network.activations(lambda: network(values(2, 5)))
    assert not any(block._forward_hooks for block in network.blocks)
    gc.collect()
    gc.disable()
    try:
        kept = weakref.ref(found[-1])
        del found
        assert kept() is None  # without a collection: no cycle holds the graph
    finally:
        gc.enable()


@EVERY_KIND
def test_layers_of_every_teacher_change_with_samples_and_leave_it_alone(
    network: AnyNetworkConfig, names: list[str], shapes: list[tuple[int, ...]]
) -> None:
    if network.kind == "torchcfm_unet":
        teacher: Teacher = randomised(build_teacher(
            FlowMatchingConfig(kind="flow_matching", network=network), IMAGES))
    else:
        teacher = denoiser(network)
    layers = layers_of(teacher)
    assert layers.shapes(IMAGES, CPU) == shapes
    assert not list(layers.parameters())
    assert not layers.state_dict()
    samples, labels = values(2, 1, 16, 16).requires_grad_(), torch.tensor([0, 2])

    def found(samples: Tensor, labels: Tensor, seed: int = 0) -> list[Tensor]:
        with seeded(seed):
            return layers(samples, labels)  # type: ignore[no-any-return]

    first = found(samples, labels)
    for layer, again, others, noisier, named in zip(
            first, found(samples, labels), found(-samples, labels), found(samples, labels, 1),
            found(samples, labels.flip(0)), strict=True):
        assert torch.equal(layer, again)
        assert not torch.allclose(layer, others, rtol=1e-3)
        assert not torch.allclose(layer, noisier, rtol=1e-3)
        assert not torch.allclose(layer, named, rtol=1e-3)
    for layer in first:
        (gradient,) = torch.autograd.grad(layer.square().sum(), samples, retain_graph=True)
        assert gradient.isfinite().all()
        assert float(gradient.abs().sum()) > 0
    sum(layer.sum() for layer in first).backward()  # type: ignore[union-attr]
    assert all(weight.grad is None for weight in teacher.parameters())


def chain(network: MLP, x: Tensor, time: Tensor, labels: Tensor) -> list[Tensor]:
    """What the blocks of an MLP make of x, in its dtype."""
    assert network.embed is not None
    condition = network.embed(time, labels)
    h, found = network.enter(x.flatten(1)), []
    for block in network.blocks:
        h = block(h, condition, None)
        found.append(h)
    return found


@pytest.mark.parametrize("kind", ["denoiser", "discrete", "flow matching", "guided"])
def test_samples_are_noised_and_preconditioned_as_the_teacher_knows_them(kind: str) -> None:
    """Against the formulas of EDM, DDPM and flow matching in float64."""
    table = [0.99, 0.95, 0.9, 0.5, 0.1]
    discrete = DiscretePreconditioning(kind="discrete", prediction="epsilon", alphas_cumprod=table)
    fields: dict[str, Any] = {"preconditioning": discrete} if kind == "discrete" else {}
    teacher: Teacher = denoiser(**fields) if kind != "flow matching" else randomised(
        build_teacher(FlowMatchingConfig(kind="flow_matching", network=SMALL), IMAGES))
    layers = layers_of(teacher if kind != "guided" else
                       Guided(teacher, denoiser(), 2.0, [0, 1, 2]))
    x, labels = values(3, 1, 16, 16), torch.tensor([0, 2, 1])
    with seeded(5):
        found = layers(x, labels)
    with seeded(5):
        noise = torch.randn_like(x).double()
    x, sd = x.double(), IMAGES.sigma_data
    if kind == "flow matching":
        time = 1 / 1.3
        state = time * x + (1 - time) * noise
        given = state / ((1 - time) ** 2 + (time * sd) ** 2) ** 0.5
    elif kind == "discrete":
        time, sigma = 2.0, (0.1 / 0.9) ** 0.5  # the level nearest to 0.3
        given = (x + sigma * noise) / (1 + sigma**2) ** 0.5
    else:
        time = float(torch.tensor(0.3, dtype=torch.float64).log()) / 4
        given = (x + 0.3 * noise) / (0.3**2 + sd**2) ** 0.5
    assert isinstance(teacher, Denoiser | FlowMatching)
    assert isinstance(teacher.network, MLP)
    times = torch.full((3,), time, dtype=torch.float64)
    expected = chain(teacher.network.double(), given, times, labels)
    for layer, exact in zip(found, [expected[index] for index in (0, 2, 3, 5)], strict=True):
        torch.testing.assert_close(layer.double(), exact, rtol=2e-4, atol=2e-5)


def test_layers_that_nobody_has_are_refused() -> None:
    exact = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=1), POINTS)
    with pytest.raises(KDMError, match=r"^features\.kind: teacher .*has no network.*another one"):
        layers_of(exact)
    with pytest.raises(KDMError, match=r"^features\.kind: there is no teacher here"):
        build_features(TeacherFeatures(kind="teacher"), POINTS, CPU)
    with pytest.raises(KDMError, match=r"^features\.kind: there is no classifier here"):
        build_features(ClassifierFeatures(kind="classifier"), IMAGES, CPU)
    discrete = DiscretePreconditioning(
        kind="discrete", prediction="epsilon", alphas_cumprod=[0.9, 0.5])
    with pytest.raises(KDMError, match=r"^features\.level: .*from 0\.333 to 1, not 0\.2"):
        layers_of(denoiser(preconditioning=discrete), level=0.2)


def test_the_classifier_shows_its_stages_by_its_running_averages() -> None:
    model = classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = build_features(ClassifierFeatures(kind="classifier"), IMAGES, CPU,
                            Frozen(classifier=lambda: model))
    assert layers.shapes(IMAGES, CPU) == [(8, 8, 8), (16, 4, 4), (32, 4, 4), (6,)]
    x = values(5, 1, 16, 16).requires_grad_()
    with torch.no_grad():
        expected, _ = model(x)
    found = layers.train()(x)
    assert torch.equal(found[-1], expected)
    assert torch.equal(layers(x[:2])[-1], layers(x)[-1][:2])  # nobody sees the batch
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for layer in found:
        (gradient,) = torch.autograd.grad(layer.square().sum(), x, retain_graph=True)
        assert float(gradient.abs().sum()) > 0


def test_borrowed_networks_go_along_but_are_no_part() -> None:
    """Neither batch statistics nor weights of theirs become their owner's."""
    owner = nn.Sequential(build_features(ClassifierFeatures(kind="classifier"), IMAGES, CPU,
                                         Frozen(classifier=classifier)))
    assert not synchronised(owner).state_dict()
    assert not list(owner.parameters())
    assert not list(owner.buffers())
    assert all(layer.dtype == torch.float64 for layer in owner.double()(values(2, 1, 16, 16)
                                                                        .double()))


@pytest.mark.parametrize(("features", "shape", "expected"), [
    (VGG16Features(kind="vgg16"), (2,), r"features\.kind: vgg16 is for images.*use teacher"),
    (ClassifierFeatures(kind="classifier"), (2,), r"features\.kind: classifier is for images"),
    (AlexNetFeatures(kind="alexnet"), (2, 32, 32), r"features\.kind: alexnet .*1 or 3 channels"),
    (VGG16Features(kind="vgg16", resolution=0), (3, 8, 8), r"features\.resolution: .*set it to 16"),
    (TeacherFeatures(kind="teacher"), (2,), None),
    (VGG16Features(kind="vgg16"), (1, 4, 4), None),
])
def test_what_features_can_see(
    features: FeaturesConfig, shape: tuple[int, ...], expected: str | None
) -> None:
    spec = SampleSpec(kind="image" if len(shape) == 3 else "points", shape=list(shape))
    config = AdversaryConfig(network="features", features=[features])
    if expected is None:
        check_features(features, spec)
        check_adversary(config, spec)
        return
    with pytest.raises(KDMError, match=rf"^losses\.drift\.{expected}"):
        check_features(features, spec, "losses.drift.features")
    with pytest.raises(KDMError, match=rf"^losses\.adversary\.{expected}"):
        check_adversary(config, spec)


# Mixing and heads


def test_mixing_is_two_products_and_a_sum_from_the_last_layer_up() -> None:
    """Against loops in float64: maps, a smaller map and a vector."""
    shapes: list[tuple[int, ...]] = [(4, 6, 6), (6, 3, 3), (8,)]
    mixing = Mixing(shapes, torch.Generator().manual_seed(3)).double()
    assert mixing.shapes == [(4, 6, 6), (4, 3, 3), (6, 1, 1)]
    layers = [values(2, *shape, seed=seed).double() for seed, shape in enumerate(shapes)]
    weights = [(first.weight[:, :, 0, 0], second.weight[:, :, 0, 0])
               for first, second in zip(mixing.channels, mixing.scales, strict=True)]

    def unit(x: Tensor) -> Tensor:
        return x / x.square().mean(dim=1, keepdim=True).sqrt()

    third = unit(layers[2]) @ weights[2][0].T @ weights[2][1].T
    own = torch.einsum("oc,bchw->bohw", weights[1][0], unit(layers[1]))
    second = torch.einsum("oc,bchw->bohw", weights[1][1],
                          (own + third[:, :, None, None]) / 2**0.5)
    # From 3 pixels to 6, half-pixel centres: a quarter and three quarters of two neighbours.
    line = torch.tensor([[1, 0, 0], [.75, .25, 0], [.25, .75, 0], [0, .75, .25], [0, .25, .75],
                         [0, 0, 1]], dtype=torch.float64)
    own = torch.einsum("oc,bchw->bohw", weights[0][0], unit(layers[0]))
    first = torch.einsum("oc,bchw->bohw", weights[0][1], (own + line @ second @ line.T) / 2**0.5)
    found = mixing(layers)
    for layer, exact in zip(found, [first, second, third[:, :, None, None]], strict=True):
        torch.testing.assert_close(layer, exact, rtol=1e-9, atol=1e-9)


def test_mixing_keeps_the_mean_square() -> None:
    shapes: list[tuple[int, ...]] = [(64, 8, 8), (128, 4, 4), (256,)]
    found = Mixing(shapes, torch.Generator().manual_seed(0))(
        [100 * torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
         for shape in shapes])
    assert all(0.5 < float(layer.square().mean()) < 1.5 for layer in found)


def test_mixing_is_the_same_in_every_run_and_in_no_checkpoint() -> None:
    built = []
    for seed in (0, 1):
        with seeded(seed):
            network = build_adversary(AdversaryConfig.model_validate(MANY), IMAGES, CPU, frozen())
            built.append(network.get_submodule("network.mixing"))
    first, second = (dict(mixing.named_buffers()) for mixing in built)
    assert len(first) == 2 * (4 + 4)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(*list(first.values())[:2])
    assert not built[0].state_dict()
    assert not list(built[0].parameters())


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 9, 16, 32])
@pytest.mark.parametrize("normalise", [False, True])
def test_heads_fit_maps_of_every_size(side: int, normalise: bool) -> None:
    made = head(6, side, 5, normalise)
    convolutions = [layer for layer in made if isinstance(layer, nn.Conv2d)]
    assert all(isinstance(layer, SpectralConv2d) for layer in convolutions)
    assert len(convolutions) == {9: 2, 16: 2, 32: 3}.get(side, 2)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in made) == (normalise and side > 1)
    logits = made(values(3, 6, side, side + 2 * (side > 1)))
    assert logits.shape[:2] == (3, 1)
    assert convolutions[-1].kernel_size == (min(4, side),) * 2
    if side in (8, 16, 32):  # as published: 5×5 logits of 8×8 pixels
        assert made(values(2, 6, side, side)).shape[2:] == (5, 5)


def test_a_spectral_norm_is_one_and_tracked() -> None:
    torch.manual_seed(0)
    layer = SpectralConv2d(6, 5, 3)

    def norm() -> float:
        seen: list[Tensor] = []

        def forward(x: Tensor, weight: Tensor, bias: object) -> Tensor:
            seen.append(weight)
            return x

        layer._conv_forward = forward  # type: ignore[method-assign, assignment]
        layer(torch.zeros(1))
        del layer._conv_forward
        return float(torch.linalg.matrix_norm(seen[0].detach().flatten(1), 2))

    # The estimate is from below: the norm is at least 1, and nearly that from the start.
    assert 1 - 1e-6 < norm() < 1.02
    for _ in range(100):
        norm()
    assert norm() == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        layer.weight.mul_(7).add_(0.1 * torch.randn_like(layer.weight))
    for _ in range(100):
        norm()
    assert norm() == pytest.approx(1, abs=1e-5)
    kept = layer.left.clone()
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    layer.eval()
    norm()
    assert torch.equal(layer.left, kept)
    layer.train()
    norm()
    assert not torch.equal(layer.left, kept)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm() < 1.3  # float32 all the same: the power iteration goes on


def test_a_spectral_convolution_is_torchs_parametrisation() -> None:
    """Value and gradient of torch's, with the same singular vectors."""
    torch.manual_seed(0)
    ours = SpectralConv2d(3, 4, 3).double().eval()
    theirs = nn.Conv2d(3, 4, 3).double()
    theirs.weight.data, theirs.bias.data = ours.weight.data.clone(), ours.bias.data  # type: ignore[union-attr]
    nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=1)
    matrix = ours.weight.flatten(1).detach()
    right = F.normalize(ours.left @ matrix, dim=0)
    theirs.parametrizations.weight[0]._u.copy_(F.normalize(matrix @ right, dim=0))
    theirs.parametrizations.weight[0]._v.copy_(right)
    theirs.eval()
    x = values(2, 3, 5, 5).double()
    torch.testing.assert_close(ours(x), theirs(x))
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original.grad)


# The whole discriminator


def test_several_networks_have_a_head_a_layer_and_only_heads_are_trained() -> None:
    adversary = build_adversary(AdversaryConfig.model_validate(MANY), IMAGES, CPU, frozen())
    labels = torch.tensor([0, 1, 2, 0])
    assert adversary.network(values(4, 1, 16, 16), labels).shape == (4, 4 + 4)
    assert {name.split(".")[1] for name in adversary.state_dict()} == {"heads"}
    assert {name.split(".")[1] for name, _ in adversary.named_parameters()} == {"heads"}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("recipe", ["d2o", "r3gan"])
def test_gradients_go_one_way_through_several_networks(recipe: str, bf16: bool) -> None:
    teacher = denoiser()
    config = AdversaryConfig.model_validate(
        {"recipe": recipe, **MANY, "augment": ["colour", "translation", "cutout"]})
    adversary = build_adversary(config, IMAGES, CPU, Frozen(lambda: teacher, classifier))
    fake, real = values(4, 1, 16, 16).requires_grad_(), values(4, 1, 16, 16, seed=1)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        generator = adversary.generator_loss(fake, real, labels)
    generator.backward()
    assert fake.grad is not None
    assert fake.grad.isfinite().all()
    assert float(fake.grad.abs().sum()) > 0
    trained = list(adversary.parameters())
    assert all(p.grad is None for p in trained)
    fake.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        discriminator = adversary(fake, real, labels)
    discriminator.backward()
    assert fake.grad is None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert all(weight.grad is None for weight in teacher.parameters())


def test_labels_reach_the_networks_in_the_order_of_real_and_fake() -> None:
    class Labelled(FeatureNetwork):
        def forward(self, samples: Tensor, labels: Tensor | None = None) -> list[Tensor]:
            assert labels is not None
            return [torch.stack([samples.flatten(), labels.to(samples.dtype)], dim=1)]

    critic = FeatureDiscriminator([Labelled()], [[(2,)]], 4)
    seen: list[list[Tensor]] = []
    critic.judge = lambda embedded: (seen.append(embedded), embedded[0].flatten(1))[1]  # type: ignore[method-assign]
    adversary = Adversary(AdversaryConfig(network="features"), critic)
    fake, real, labels = values(3, 1), values(3, 1, seed=1), torch.tensor([2, 0, 1])
    adversary(fake, real, labels)
    for found, samples in zip(seen, (real, fake), strict=True):
        torch.testing.assert_close(found[0], critic.embed(samples, labels)[0])


def test_points_are_told_apart_by_the_teachers_layers() -> None:
    torch.manual_seed(0)
    teacher = denoiser(spec=POINTS)
    config = AdversaryConfig.model_validate(
        {"network": "features", "features": [{"kind": "teacher"}], "channels": 16})
    check_adversary(config, POINTS)
    adversary = build_adversary(config, POINTS, CPU, Frozen(teacher=lambda: teacher))
    real, fake = values(64, 2).abs(), -values(64, 2, seed=1).abs()
    adam = torch.optim.Adam(adversary.parameters(), lr=1e-2)
    for _ in range(60):
        adam.zero_grad()
        adversary(fake, real).backward()
        adam.step()
    with torch.no_grad():
        gap = adversary.network(real).mean() - adversary.network(fake).mean()
    assert float(gap) > 1
    with pytest.raises(KDMError, match=r"^losses\.adversary\.augment: only images"):
        check_adversary(config.model_copy(update={"augment": ["cutout"]}), POINTS)
    with pytest.raises(KDMError, match=r"^losses\.adversarial: .*set it to 0, or adversary"):
        check_adversary(AdversaryConfig(), POINTS)


def test_recipes_fill_what_is_not_given() -> None:
    parse = AdversaryConfig.model_validate
    assert parse({"recipe": "kdm"}) == AdversaryConfig()
    d2o = parse({"recipe": "d2o"})
    assert (d2o.network, d2o.loss, d2o.r1, d2o.r2, d2o.r1_every) == (
        "features", "bce", 1e-4, 0, 16)
    r3gan = parse({"recipe": "r3gan"})
    assert (r3gan.network, r3gan.loss, r3gan.r1, r3gan.r2, r3gan.r1_every, r3gan.normalise) == (
        "paper", "relativistic", 0.05, 0.05, 1, False)
    assert parse({"recipe": "r3gan", "r2": 0.0, "normalise": True, "network": "features"}) == (
        r3gan.model_copy(update={"r2": 0.0, "normalise": True, "network": "features"}))
    assert parse(d2o.model_dump()) == d2o
    with pytest.raises(ValidationError, match="recipe"):
        parse({"recipe": "stylegan"})
    with pytest.raises(ValidationError, match="features"):
        parse({"network": "features", "features": []})


# Augmentation


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Choose what would be drawn."""

    def choose(share: list[float] | None = None, offsets: list[int] | None = None) -> None:
        shares, moves = iter(share or []), iter(offsets or [])
        monkeypatch.setattr(augmentation, "uniform", lambda images: torch.full(
            (len(images), 1, 1, 1), next(shares), dtype=images.dtype))
        monkeypatch.setattr(augmentation, "offset", lambda images, low, high: torch.full(
            (len(images), 1), next(moves)))

    return choose


def test_augmentations_that_change_nothing(chosen: Callable[..., None]) -> None:
    x = values(2, 3, 8, 6)
    assert augment(x, []) is x
    chosen([0.5, 0.5, 0.5], [0, 0])
    torch.testing.assert_close(augment(x, ["colour"]), x, rtol=1e-6, atol=1e-6)
    assert torch.equal(augment(x, ["translation"]), x)
    with torch.autocast("cpu", torch.bfloat16):
        chosen([], [0, 0])
        assert torch.equal(augment(x, ["translation"]), x)


def test_augmentations_by_hand(chosen: Callable[..., None]) -> None:
    x = values(2, 3, 8, 6).double()
    chosen([0.75, 0.25, 0.9])
    bright = x + 0.25
    grey = bright.mean(dim=1, keepdim=True)
    dull = 0.5 * bright + 0.5 * grey
    mean = dull.flatten(1).mean(dim=1)[:, None, None, None]
    torch.testing.assert_close(augment(x, ["colour"]), mean + 1.4 * (dull - mean))
    chosen([], [1, -2])  # down and to the left
    moved = torch.zeros_like(x)
    moved[:, :, 1:, :-2] = x[:, :, :-1, 2:]
    assert torch.equal(augment(x, ["translation"]), moved)
    chosen([], [4, 0])
    cut = x.clone()
    cut[:, :, 2:6, :2] = 0  # 4 of 8 rows from 4 - 2, 3 of 6 columns from 0 - 1
    assert torch.equal(augment(x, ["cutout"]), cut)


def test_augmentations_are_differentiable_and_drawn_from_the_global_generator() -> None:
    x = values(4, 2, 4, 4).double().requires_grad_()

    def changed(x: Tensor, seed: int = 0) -> Tensor:
        with seeded(seed):
            return augment(x, ["colour", "translation", "cutout"])

    assert torch.autograd.gradcheck(changed, (x,))
    assert torch.equal(changed(x), changed(x))
    assert not torch.equal(changed(x), changed(x, 1))
    same = changed(x[:1].expand(4, -1, -1, -1))
    assert not torch.equal(same[0], same[1])  # each image in its own way


def test_translations_reach_an_eighth_and_cuts_all_pixels() -> None:
    torch.manual_seed(0)
    spot = torch.zeros(512, 1, 17, 17)
    spot[:, :, 8, 8] = 1
    reached = augment(spot, ["translation"]).sum(dim=0)[0].nonzero()
    assert reached.min(dim=0).values.tolist() == [6, 6]
    assert reached.max(dim=0).values.tolist() == [10, 10]
    left = augment(torch.ones(512, 1, 8, 8), ["cutout"])
    assert (left.mean(dim=0) < 1).all()
    assert float(left.flatten(1).mean(dim=1).min()) == 0.75


# Training


@pytest.mark.parametrize("adversary", [
    {**MANY, "recipe": "d2o", "augment": ["colour", "translation", "cutout"]},
    {"network": "features", "channels": 8, "recipe": "r3gan", "features": [{"kind": "teacher"}]},
], ids=["d2o", "r3gan"])
def test_a_killed_run_with_frozen_networks_ends_like_an_undisturbed_one(
    tmp_path: Path, adversary: dict[str, Any]
) -> None:
    def task() -> StudentTask:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(40, 1, 16, 16, generator=generator)
        pairs = Pairs(noise, noise.tanh(), torch.arange(40) % 3)
        with seeded(0):
            network = MLPConfig(kind="mlp", width=16, blocks=1)
            student = KDM(KDMConfig(encoder=network, decoder=network, latent=8,
                                        operator=FactorisedConfig(kind="factorised")), IMAGES)
        losses = LossConfig.model_validate({"adversarial": 0.1, "adversary": adversary})
        return StudentTask(student, losses, config(steps=12), ResidentReader.of(pairs, 8, seed=0),
                           Pairs(*(part[:4] for part in pairs[:3])), seed=0,
                           given=Given(frozen=frozen()))

    whole = task()
    curves = fit(whole, tmp_path / "a", "key")
    with pytest.raises(Killed):
        fit(task(), tmp_path / "b", "key", killed_at(7))
    torch.rand(3)
    resumed = task()
    assert fit(resumed, tmp_path / "b", "key") == curves
    assert_same(whole, resumed)
