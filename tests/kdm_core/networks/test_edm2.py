"""EDM2's U-Net: the published numbers, and the properties that its paper claims."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.importers import EDM2Source, import_teacher
from kdm_core.importers.edm2 import read_edm2
from kdm_core.networks.edm2_unet import Block, EDM2UNet, EDM2UNetConfig, MPConv
from kdm_core.samples import SampleSpec
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers.guidance import guided
from tests.support.edm2_writer import RGB, TINY, VAE, Recorded, record_precond, write


def waves(shape: tuple[int, ...], phase: float) -> Tensor:
    """Values that need no generator, so that other implementations can be given the same."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64) * (1 + 0.37 * phase)
    return torch.sin(steps + phase).reshape(shape).float()


def build(
    timed: bool = True, num_classes: int = 3, config: EDM2UNetConfig = TINY, resolution: int = 8,
    channels: int = 3,
) -> EDM2UNet:
    """In eval mode, with random weights and gains that are not zero."""
    torch.manual_seed(0)
    shape = (channels, resolution, resolution)
    network = EDM2UNet(config, shape, shape, timed, num_classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand([]) + 0.5 if parameter.ndim == 0
                            else torch.randn(parameter.shape) * (1 + torch.rand([])))
    return network.eval()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()
            if parameter.grad is not None}


@pytest.mark.parametrize(("num_classes", "clip", "published"), [
    (3, 256.0, [-0.003927680, 0.004178586, 0.005225386, -0.013582624, 0.003355559, 0.014597987,
                -0.022896776, -0.007633875, 0.020448899]),
    (0, 0.8, [-0.002161064, 0.006902463, 0.001755216, 0.005143166, 0.007828097, -0.005598666,
              0.006741911, 0.000994200, -0.006795937]),
])
def test_outputs_are_those_of_the_published_network(
    num_classes: int, clip: float, published: list[float]
) -> None:
    """Given the same weights, the authors' implementation put these values at pixel (2, 5)."""
    config = TINY.model_copy(update={"clip_act": clip})
    network = EDM2UNet(config, (3, 8, 8), (3, 8, 8), True, num_classes).eval()
    for index, (_, tensor) in enumerate(sorted(network.state_dict().items())):
        tensor.copy_(waves(tuple(tensor.shape), index + 1))
    labels = torch.tensor([0, 2, -1]) if num_classes else None
    with torch.no_grad():
        out = network(waves((3, 3, 8, 8), 0.5), torch.tensor([-1.5, 0.0, 1.0]), labels)
    torch.testing.assert_close(out[:, :, 2, 5].flatten(), torch.tensor(published),
                               rtol=1e-4, atol=2e-7)


def test_attention_is_the_formula() -> None:
    """softmax(q kᵀ / √d) v with q, k and v normalised over the channels of a head, in float64."""
    torch.manual_seed(0)
    block = Block(TINY, 32, 32, 0, decoder=True, attention=True).double().eval()
    x = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    rows = block.attn_qkv(x).reshape(2, 2, 16, 3, 16)
    rows = rows / (rows.square().mean(2, keepdim=True).sqrt() + 1e-4)
    q, k, v = rows.unbind(3)
    weights = torch.einsum("bhcn,bhcm->bhnm", q, k).div(4).softmax(-1)
    mixed = torch.einsum("bhnm,bhcm->bhcn", weights, v).reshape(x.shape)
    torch.testing.assert_close(block.attend(x), block.attn_proj(mixed))


def test_magnitudes_are_kept_whatever_the_weights_are() -> None:
    """The paper's main claim: at initialisation, and after weights have grown a thousandfold."""
    torch.manual_seed(0)
    config = EDM2UNetConfig(kind="edm2_unet", channels=64, multipliers=[1, 2], blocks=2,
                            attention=[8])
    network = EDM2UNet(config, (3, 16, 16), (3, 16, 16), timed=True).eval()
    nn.init.ones_(network.out_gain)
    x, time = torch.randn(8, 3, 16, 16), torch.randn(8)
    deviations: list[float] = []
    hooks = [block.register_forward_hook(lambda m, i, out: deviations.append(float(out.std())))
             for block in network.modules() if isinstance(block, Block)]
    with torch.no_grad():
        before = network(x, time)
        assert len(deviations) == len(hooks) and all(0.7 < d < 1.4 for d in deviations)
        for parameter in network.parameters():
            if parameter.ndim:
                parameter.mul_(1000)
        torch.testing.assert_close(network(x, time), before, rtol=2e-3, atol=2e-3)


def test_training_normalises_the_weights_and_inference_leaves_them() -> None:
    network = build()
    x, time, labels = torch.randn(2, 3, 8, 8), torch.randn(2), torch.tensor([0, 2])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(x, time, labels)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    network.train()(x, time, labels)
    for layer in network.modules():
        if isinstance(layer, MPConv):
            rms = layer.weight.detach().flatten(1).square().mean(1).sqrt()
            torch.testing.assert_close(rms, torch.ones_like(rms), rtol=1e-3, atol=1e-3)


def test_weights_learn_across_their_own_direction_only() -> None:
    """Their gradient is orthogonal to them, since their magnitude changes nothing (eq. 47)."""
    torch.manual_seed(0)
    layer = MPConv(7, 5, (3, 3))
    layer(torch.randn(2, 7, 6, 6)).square().sum().backward()
    assert layer.weight.grad is not None
    cosine = F.cosine_similarity(layer.weight.grad.flatten(1), layer.weight.flatten(1))
    assert float(cosine.abs().max().detach()) < 1e-3


def test_a_network_can_be_applied_twice_before_the_backward_pass() -> None:
    """As the students' decoders are: in training, normalisation must not spoil the gradients."""
    network = build(timed=False, num_classes=0).train()
    network(torch.randn(2, 3, 8, 8))  # weights are normalised from here on
    first, second = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    network.eval()
    (network(first).square().mean() + network(second).square().mean()).backward()
    expected = gradients(network)
    network.zero_grad()
    network.train()
    (network(first).square().mean() + network(second).square().mean()).backward()
    found = gradients(network)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3,
                                   atol=1e-4 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize(("timed", "num_classes"), [(False, 0), (True, 0), (False, 3), (True, 3)])
def test_every_parameter_gets_a_gradient(timed: bool, num_classes: int) -> None:
    network = build(timed, num_classes).train()
    labels = torch.tensor([0, 1, 2, 0]) if num_classes else None
    out = network(torch.randn(4, 3, 8, 8), torch.randn(4) if timed else None, labels)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_time_and_label_matter_and_no_label_is_one_too() -> None:
    network = build()
    x, time = torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1), torch.full((4,), 0.3)
    with torch.no_grad():
        outputs = network(x, time, torch.tensor([0, 1, 2, -1]))
        for one in range(4):
            for other in range(one):
                assert not torch.allclose(outputs[one], outputs[other], atol=1e-2)
        torch.testing.assert_close(network(x, time, None)[0], outputs[3])
        assert not torch.allclose(network(x, time + 1, None)[0], outputs[3], atol=1e-2)


def test_channels_may_change() -> None:
    assert EDM2UNet(TINY, (3, 8, 8), (5, 8, 8))(torch.randn(2, 3, 8, 8)).shape == (2, 5, 8, 8)


def test_a_chain_of_two_learns() -> None:
    """A student is such a chain, although a fresh network outputs zeros."""
    torch.manual_seed(0)
    chain = nn.ModuleList([EDM2UNet(TINY, (1, 8, 8), (2, 8, 8)),
                           EDM2UNet(TINY, (2, 8, 8), (1, 8, 8))])
    adam = torch.optim.Adam(chain.parameters(), lr=0.02)
    x = torch.randn(16, 1, 8, 8)
    losses = []
    for _ in range(60):
        loss = (chain[1](chain[0](x)) - x.flip(3)).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(float(x.square().mean()))
    assert losses[-1] < 0.7 * losses[0]


def test_dropout_is_for_training_only() -> None:
    config = TINY.model_copy(update={"dropout": 0.5})
    network, x, time = build(config=config, num_classes=0), torch.randn(2, 3, 8, 8), torch.randn(2)
    assert torch.equal(network(x, time), network(x, time))
    network.train()
    assert not torch.allclose(network(x, time), network(x, time), atol=1e-2)


def test_bf16_autocast_stays_close_to_fp32() -> None:
    network = build()
    x, time, labels = torch.randn(4, 3, 8, 8), torch.randn(4), torch.tensor([0, 1, -1, 2])
    with torch.no_grad():
        exact = network(x, time, labels)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(x, time, labels)
    assert float((rough - exact).std() / exact.std()) < 0.03


@pytest.mark.parametrize(("change", "shapes", "named"), [
    ({"multipliers": [1, 2, 2, 2, 2]}, ((3, 8, 8), (3, 8, 8)), r"network\.multipliers: 5 levels"),
    ({"channels_per_head": 9}, ((3, 8, 8), (3, 8, 8)), r"channels cannot be divided between 3"),
    ({}, ((2,), (2,)), r"network\.kind: .* \(2,\)"),
    ({}, ((3, 8, 8), (64,)), r"network\.kind"),
    ({}, ((3, 8, 8), (3, 4, 4)), r"network\.kind"),
    ({}, ((3, 8, 4), (3, 8, 4)), r"square"),
])
def test_what_does_not_fit_is_refused(
    change: dict[str, object], shapes: tuple[tuple[int, ...], tuple[int, ...]], named: str
) -> None:
    with pytest.raises(KDMError, match=named):
        EDM2UNet(TINY.model_copy(update=change), *shapes)


# Checkpoints


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_checkpoint_gives_the_network_back(
    num_classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(num_classes=num_classes).to(dtype)
    document = {"encoder": RGB, "dataset_kwargs": {"use_labels": True},
                "loss_fn": Recorded("EDM2Loss"), "ema": record_precond(network)}
    found = read_edm2(write(document, monkeypatch), "net.pkl")
    assert (found.sigma_data, found.shape, found.num_classes) == (0.7, (3, 8, 8), num_classes)
    assert found.network == TINY
    copy = EDM2UNet(found.network, found.shape, found.shape, True, found.num_classes).eval()
    copy.load_state_dict(found.tensors)
    x, time = torch.randn(3, 3, 8, 8), torch.randn(3)
    labels = torch.tensor([0, -1, 2]) if num_classes else None
    with torch.no_grad():
        assert torch.equal(copy(x, time, labels), network.float()(x, time, labels))


def test_a_checkpoint_of_latents_gives_the_network_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published ones for 512 × 512 pixels are, in half precision."""
    network = build(channels=4).half()
    document = {"encoder": VAE, "ema": record_precond(network, channels=4)}
    (tmp_path / "net.pkl").write_bytes(write(document, monkeypatch))
    source = EDM2Source(source="edm2", file=str(tmp_path / "net.pkl"))
    latents = SampleSpec(kind="latent", shape=[4, 8, 8], sigma_data=0.5, label_names=list("abc"),
                         decoder="ab" * 32, picture=[3, 64, 64])
    teacher = import_teacher(source, latents)
    # The network's own standard deviation, which its preconditioning is made of.
    assert teacher.spec == latents.model_copy(update={"sigma_data": 0.7})
    x, sigma, labels = torch.randn(3, 4, 8, 8), torch.tensor([0.3, 2.0, 9.0]), torch.tensor(
        [0, -1, 2])
    s = sigma[:, None, None, None]
    total = (s**2 + 0.49).sqrt()
    with torch.no_grad():
        inner = network.float()(x / total, sigma.log() / 4, labels)
        found = teacher.denoise(x, sigma, labels)
    torch.testing.assert_close(found, 0.49 / total**2 * x + 0.7 * s / total * inner,
                               rtol=1e-5, atol=1e-5)
    images = SampleSpec(kind="image", shape=[3, 64, 64], label_names=list("abc"))
    with pytest.raises(MismatchError, match=r"makes latents of shape \[4, 8, 8\].*holds images"):
        import_teacher(source, images)


def test_a_checkpoint_of_images_makes_no_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {"encoder": RGB, "ema": record_precond(build())}
    (tmp_path / "net.pkl").write_bytes(write(document, monkeypatch))
    latents = SampleSpec(kind="latent", shape=[3, 8, 8], label_names=list("abc"))
    with pytest.raises(MismatchError, match="makes images, and the data set holds latents"):
        import_teacher(EDM2Source(source="edm2", file=str(tmp_path / "net.pkl")), latents)


@pytest.mark.parametrize("recorded", [{}, {"label_dropout": 0.1}])
def test_the_share_of_labels_that_were_dropped(
    recorded: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code drops none, so classifier-free guidance needs a file that says it."""
    precond = record_precond(build(num_classes=3))
    precond.state["_init_kwargs"].update(recorded)
    (tmp_path / "net.pkl").write_bytes(write({"ema": precond}, monkeypatch))
    data = SampleSpec(kind="image", shape=[3, 8, 8], label_names=list("abc"))
    teacher = import_teacher(EDM2Source(source="edm2", file=str(tmp_path / "net.pkl")), data)
    assert teacher.label_dropout == recorded.get("label_dropout", 0)
    guidance = GuidanceConfig(kind="classifier_free", scale=2.0)
    if recorded:
        assert guided(teacher, None, guidance).evaluations == 2
    else:
        with pytest.raises(KDMError, match="label_dropout 0"):
            guided(teacher, None, guidance)


def test_arguments_may_stand_in_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    precond = record_precond(build())
    arguments = precond.state["_init_kwargs"]
    first = [arguments.pop(name) for name in ("img_resolution", "img_channels", "label_dim")]
    precond.state["_init_args"] = tuple(first)
    assert read_edm2(write({"ema": precond}, monkeypatch), "net.pkl").shape == (3, 8, 8)


Change = Callable[[dict[str, Any], Any], object]


def unet(document: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = document["ema"].state["_modules"]["unet"].state
    return state


def in0(document: dict[str, Any]) -> Recorded:
    block: Recorded = unet(document)["_modules"]["dec"]._modules["4x4_in0"]
    return block


def argument(name: str, value: object) -> Change:
    return lambda d, k: d["ema"].state["_init_kwargs"].update({name: value})


def reverse_encoder(document: dict[str, Any], kwargs: dict[str, Any]) -> None:
    encoder = unet(document)["_modules"]["enc"]
    encoder._modules = dict(reversed(encoder._modules.items()))


CHANGES: dict[str, tuple[Change, str]] = {
    "latents": (lambda d, k: d.update(encoder=Recorded("StabilityVAEEncoder")),
                "3 channels for the encoder 'StabilityVAEEncoder'.*latents .*, with 4"),
    "latent channels": (argument("img_channels", 4),
                        "4 channels for the encoder 'StandardRGBEncoder'"),
    "encoder of no kind": (lambda d, k: d.update(encoder="rgb"), "for the encoder 'str'"),
    "no such key": (lambda d, k: d.update(net=d.pop("ema")), r"no network 'ema' among .*'net'"),
    "EDM": (lambda d, k: setattr(d["ema"], "class_name", "EDMPrecond"),
            "'EDMPrecond', expected EDM2's Precond"),
    "unknown argument": (argument("flavour", 1), "argument 'flavour'"),
    "missing argument": (lambda d, k: k.pop("img_resolution"), "argument 'img_resolution'"),
    "argument of another type": (argument("num_blocks", "1"), "argument 'num_blocks'"),
    "argument out of range": (argument("clip_act", -1.0), "argument 'clip_act'"),
    "argument that is not finite": (argument("sigma_data", float("inf")), "argument 'sigma_data'"),
    "another filter": (argument("resample_filter", [1, 3, 3, 1]), "argument 'resample_filter'"),
    "enormous": (argument("model_channels", 2**14), "have another shape"),
    "endless": (argument("num_blocks", 2**40), "too few for"),
    "deep": (argument("channel_mult", [1] * 5), r"network\.multipliers: 5 levels"),
    "missing tensor": (lambda d, k: unet(d)["_parameters"].pop("out_gain"),
                       r"1 tensors are missing \(out_gain"),
    "extra tensor": (lambda d, k: unet(d)["_parameters"].update(bias=torch.zeros(3)),
                     r"1 tensors are unknown \(bias"),
    "foreign tensor": (lambda d, k: d["ema"].state["_buffers"].update(shift=torch.zeros(3)),
                       "unknown tensor 'shift'"),
    "integers": (lambda d, k: unet(d)["_parameters"].update(out_gain=torch.tensor(1)),
                 "'unet.out_gain' of torch.int64"),
    "wrong shape": (lambda d, k: unet(d)["_parameters"].update(out_gain=torch.zeros(2)),
                    r"out_gain \(2,\) instead of \(\)"),
    "not finite": (lambda d, k: unet(d)["_parameters"].update(out_gain=torch.tensor(math.nan)),
                   "out_gain has values that are not finite"),
    "another class": (lambda d, k: setattr(in0(d), "class_name", "Blok"),
                      "unet.dec.4x4_in0 is a 'Blok', expected Block"),
    "another order": (reverse_encoder, "unet.enc holds modules"),
    "altered setting": (lambda d, k: in0(d).state.update(num_heads=1),
                        "unet.dec.4x4_in0.num_heads is not 2"),
    "setting of another type": (lambda d, k: in0(d).state.update(clip_act=torch.ones(3)),
                                "clip_act is not 256"),
    "filter of another type": (lambda d, k: in0(d).state.update(resample_filter=[torch.ones(3), 1]),
                               "resample_filter is not"),
    "another sigma_data": (lambda d, k: d["ema"].state.update(sigma_data=0.5),
                           "Precond.sigma_data is not 0.7"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_the_network_would_not_do_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = CHANGES[name]
    precond = record_precond(build())
    document: dict[str, Any] = {"encoder": RGB, "ema": precond}
    change(document, precond.state["_init_kwargs"])
    with pytest.raises(DataError, match=r"^net\.pkl: .*" + message):
        read_edm2(write(document, monkeypatch), "net.pkl")
