"""Reading checkpoints of EDM: what is imported, and what is refused."""

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdm_core.errors import DataError, KDMError
from kdm_core.importers import EDMSource, FolderSource, import_guide, import_teacher
from kdm_core.importers.edm import read_edm
from kdm_core.importers.files import Weights
from kdm_core.networks.base import Network
from kdm_core.networks.dhariwal_unet import DhariwalUNet, DhariwalUNetConfig
from kdm_core.networks.song_unet import SongUNet, SongUNetConfig
from kdm_core.samples import SampleSpec
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers import load_teacher, save_teacher
from kdm_core.teachers.guidance import guided
from tests.support.edm_writer import Recorded, dump, edm_pickle, mutate, record, snapshot

SHAPE = (3, 8, 8)
SMALL: dict[str, Any] = {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
CONFIGS: dict[str, SongUNetConfig | DhariwalUNetConfig] = {
    "ddpmpp": SongUNetConfig(kind="song_unet", augment_dim=9, **SMALL),
    "ncsnpp": SongUNetConfig(kind="song_unet", time_embedding="fourier", time_width=2,
                             encoder="residual", resample="binomial", **SMALL),
    "skips": SongUNetConfig(kind="song_unet", encoder="skip", decoder="skip", dropout=0.0, **SMALL),
    "adm": DhariwalUNetConfig(kind="dhariwal_unet", **SMALL | {"channels": 64}),
}
PRECONDITIONINGS = ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"]


def build(
    config: SongUNetConfig | DhariwalUNetConfig, classes: int = 0, outputs: int = 3
) -> Network:
    kind = SongUNet if isinstance(config, SongUNetConfig) else DhariwalUNet
    torch.manual_seed(0)
    out_shape = (outputs, *SHAPE[1:])
    network: Network = kind(config, SHAPE, out_shape, True, classes)  # type: ignore[arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)  # some of the published weights start at zero
    return network.eval()


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("preconditioning", PRECONDITIONINGS)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_written_is_imported(name: str, preconditioning: str, classes: int) -> None:
    twice = preconditioning == "iDDPMPrecond"
    network = build(CONFIGS[name], classes, 6 if twice else 3)
    found = read_edm(edm_pickle(network, SHAPE, preconditioning, classes), "f")
    assert (found.network, found.shape, found.num_classes) == (CONFIGS[name], SHAPE, classes)
    assert (found.preconditioning, found.constants) == {
        "EDMPrecond": ("edm", {}),
        "VPPrecond": ("vp", {"beta_d": 19.9, "beta_min": 0.1, "timesteps": 1000, "epsilon": 1e-5}),
        "VEPrecond": ("ve", {"sigma_min": 0.02, "sigma_max": 100}),
        "iDDPMPrecond": ("iddpm", {"c_1": 0.001, "c_2": 0.008, "timesteps": 1000}),
    }[preconditioning]
    twin = build(found.network, classes, 6 if twice else 3)
    twin.load_state_dict(found.tensors, strict=True)
    x, sigma = torch.randn(2, *SHAPE), torch.tensor([0.1, 3.0])
    labels = torch.tensor([1, -1]) if classes else None
    with torch.no_grad():
        assert torch.equal(twin(x, sigma, labels), network(x, sigma, labels))


@pytest.mark.parametrize("preconditioning", ["EDMPrecond", "iDDPMPrecond"])
def test_half_precision_is_read_as_float32(preconditioning: str) -> None:
    network = build(CONFIGS["ncsnpp"], outputs=6 if preconditioning == "iDDPMPrecond" else 3)
    found = read_edm(edm_pickle(network, SHAPE, preconditioning, dtype=torch.float16), "f")
    for name, tensor in network.state_dict().items():
        assert found.tensors[name].dtype == torch.float32
        assert torch.equal(found.tensors[name], tensor.half().float())


def test_arguments_left_out_have_published_defaults() -> None:
    config = SongUNetConfig(kind="song_unet", channels=4, multipliers=[1, 1])
    top = record(build(config), SHAPE)
    for name in ("channel_mult_emb", "num_blocks", "attn_resolutions", "dropout", "augment_dim",
                 "label_dropout", "embedding_type", "encoder_type", "resample_filter"):
        del top["model"].kwargs[name]
    assert read_edm(snapshot(top), "f").network == config


@pytest.mark.parametrize(("change", "share"), [
    (lambda top: None, 0.0),
    (lambda top: top["model"].kwargs.update(label_dropout=0.1), 0.1),
    (lambda top: top["model"].attributes.update(label_dropout=0.3), 0.3),  # what runs
    (lambda top: [part.kwargs.pop("label_dropout") for part in (top, top["model"])], 0.0),
    (lambda top: [top["model"].kwargs.pop("label_dropout"),
                  top.kwargs.update(label_dropout=0.2)], 0.2),
], ids=["recorded", "argument", "attribute", "absent", "of the preconditioning"])
@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_the_share_of_labels_that_were_dropped(
    tmp_path: Path, name: str, change: Callable[[Recorded], Any], share: float
) -> None:
    """Absent it is 0, the published default of both networks; guidance without labels needs more,
    in this run and in all that take its folder."""
    top = record(build(CONFIGS[name], 5), SHAPE, classes=5)
    change(top)
    (tmp_path / "edm.pkl").write_bytes(snapshot(top))
    data = SampleSpec(kind="image", shape=list(SHAPE), label_names=list("abcde"))
    guidance = GuidanceConfig(kind="classifier_free", scale=2.0)
    teacher = import_teacher(EDMSource(source="edm", file=str(tmp_path / "edm.pkl")), data)
    save_teacher(tmp_path / "t", teacher)
    again = FolderSource(source="folder", folder=str(tmp_path / "t"))
    for found in (teacher, load_teacher(tmp_path / "t")[0], import_teacher(again, data)):
        assert found.label_dropout == share
        if share:
            assert guided(found, None, guidance).evaluations == 2
        else:
            with pytest.raises(KDMError, match=r"^guidance\.kind.*label_dropout 0"):
                guided(found, None, guidance)
    told = import_teacher(again.model_copy(update={"label_dropout": 0.1}), data)
    assert guided(told, None, guidance).evaluations == 2


def test_an_unconditional_model_guides_a_conditional_one(tmp_path: Path) -> None:
    """What the refusal of classifier-free guidance advises."""
    for name, classes in (("strong", 5), ("weak", 0)):
        (tmp_path / name).write_bytes(edm_pickle(build(CONFIGS["ddpmpp"], classes), SHAPE,
                                                 classes=classes))
    data = SampleSpec(kind="image", shape=list(SHAPE), label_names=list("abcde"))
    source = EDMSource(source="edm", file=str(tmp_path / "strong"),
                       guide=Weights(file=str(tmp_path / "weak")))
    teacher, weak = import_teacher(source, data), import_guide(source, data)
    assert weak is not None and weak.spec.num_classes == 0
    pushed = guided(teacher, weak, GuidanceConfig(kind="autoguidance", scale=2.0))
    x, sigma, labels = torch.randn(2, *SHAPE), torch.tensor(3.0), torch.tensor([0, 3])
    torch.testing.assert_close(
        pushed.denoise(x, sigma, labels),
        2 * teacher.denoise(x, sigma, labels) - weak.denoise(x, sigma, None))


def test_another_key_can_be_chosen() -> None:
    content = dump({"net": record(build(CONFIGS["ddpmpp"]), SHAPE), "step": 5})
    assert read_edm(content, "f", key="net").shape == SHAPE
    for key in ("ema", "step"):
        with pytest.raises(DataError, match=rf"^f has no network '{key}'; it has \['net'\]"):
            read_edm(content, "f", key)


Change = Callable[[Recorded], Any]


def values(path: str, name: str) -> Callable[[Recorded], torch.Tensor]:
    """The tensor of that name, to be changed in place."""
    return lambda top: (top[path].parameters | top[path].buffers)[name]  # type: ignore[return-value]


def update(path: str, **attributes: Any) -> Change:
    return lambda top: (top[path] if path else top).attributes.update(attributes)


def argument(**kwargs: Any) -> Change:
    return lambda top: top["model"].kwargs.update(kwargs)


BLOCK = "model.enc.8x8_block0"
REFUSED: dict[str, tuple[Change, str]] = {
    "another class": (lambda top: setattr(top, "class_name", "Precond"),
                      "'Precond' is no preconditioning of EDM.* imported as edm2"),
    "another network": (lambda top: setattr(top["model"], "class_name", "UNet"),
                        "'UNet' is no network of EDM"),
    "another layer": (lambda top: setattr(top[BLOCK + ".conv0"], "class_name", "MPConv"),
                      r"enc\.8x8_block0\.conv0 is of the class 'MPConv'"),
    "no network": (lambda top: top.modules.pop("model"), "EDMPrecond has no model"),
    "unknown argument": (argument(attn_kind="full"), "built with 'attn_kind', which is unknown"),
    "unnamed arguments": (lambda top: setattr(top["model"], "args", (8, 3)), "have no names"),
    "no such filter": (argument(resample_filter=[1, 2, 1]), "neither"),
    "huge filter": (argument(resample_filter=[[[1]]]), "neither"),
    "no list": (argument(channel_mult="1,2"), "SongUNet: multipliers as recorded"),
    "no number": (argument(model_channels=None), "SongUNet: channels as recorded"),
    "huge network": (argument(model_channels=2**14, channel_mult=[64] * 3), r"tensors are missing"),
    "more blocks": (argument(num_blocks=64), r"\d+ tensors are missing \("),
    "other labels": (argument(label_dim=2), r"SongUNet\(label_dim=2\) contradicts"),
    "other channels": (argument(out_channels=6), r"out_channels=6\) contradicts"),
    "other size": (update("", img_resolution=16), r"img_resolution=8\) contradicts"),
    "negative size": (update("", img_channels=-3), "img_channels is no whole number"),
    "no size": (update("", img_resolution=0), "img_resolution is no whole number"),
    "odd size": (lambda top: (argument(img_resolution=7)(top), update("", img_resolution=7)(top)),
                 "need a resolution divisible by 2"),
    "sigma_data": (update("", sigma_data="0.5"), "sigma_data is no positive number"),
    "nan": (update("", sigma_data=math.nan), "sigma_data is no positive number"),
    "limits": (update("", sigma_max=80.0), "limited to some noise levels"),
    "skip scale": (update(BLOCK, skip_scale=1.0), r"8x8_block0\.skip_scale is not 0\.707"),
    "nan scale": (update(BLOCK, skip_scale=math.nan), r"8x8_block0\.skip_scale"),
    "heads": (update("model.dec.4x4_in0", num_heads=4), r"4x4_in0\.num_heads is not 1"),
    "label dropout": (argument(label_dropout=1.5), "label_dropout is no share"),
    "odd dropout": (argument(label_dropout="0.1"), "label_dropout is no share"),
    "epsilon": (update(BLOCK + ".norm0", eps=1e-5), r"8x8_block0\.norm0\.eps is not 1e-06"),
    "endpoint": (update("model.map_noise", endpoint=False), r"map_noise\.endpoint is not True"),
    "missing": (lambda top: top[BLOCK + ".conv0"].parameters.pop("bias"),
                r"1 tensors are missing \(enc\.8x8_block0\.conv0\.bias"),
    "missing filter": (lambda top: top["model.enc.4x4_down.skip"].buffers.clear(),
                       r"missing \(enc\.4x4_down\.skip\.resample_filter"),
    "more": (lambda top: top[BLOCK].parameters.update(gain=nn.Parameter(torch.ones(1))),
             r"1 tensors are unknown \(enc\.8x8_block0\.gain"),
    "outside": (lambda top: top.buffers.update(u=torch.ones(3)), r"1 tensors are unknown \(u\)"),
    "shape": (lambda top: top[BLOCK + ".conv0"].parameters.update(bias=torch.ones(15)),
              r"conv0\.bias \(15,\) instead of \(16,\)"),
    "not finite": (lambda top: values(BLOCK + ".conv0", "bias")(top).fill_(math.inf),
                   r"conv0\.bias has values that are not finite"),
    "whole numbers": (lambda top: top[BLOCK + ".conv0"].parameters.update(
        bias=torch.ones(16, dtype=torch.int64)), r"conv0\.bias has values that are not finite"),
    "filter": (lambda top: values("model.enc.4x4_down.conv0", "resample_filter")(top).mul_(2),
               r"4x4_down\.conv0\.resample_filter is another filter"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_is_named(name: str) -> None:
    change, message = REFUSED[name]
    top = record(build(CONFIGS["ddpmpp"]), SHAPE)
    read_edm(snapshot(top), "f")
    with torch.no_grad():
        change(top)
    began = time.perf_counter()
    with pytest.raises(DataError, match=rf"^f: .*{message}"):
        read_edm(snapshot(top), "f")
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize("change, message", [
    (lambda top: top.buffers["u"].mul_(1.01), "other noise levels than its constants imply"),
    (update("", C_2=0.009), "other noise levels than its constants imply"),
    (update("", M=999), "no table of M"),
    (update("", M=1000.0), "no table of M"),
    (lambda top: top.buffers.clear(), "no table of M"),
])
def test_noise_levels_of_iddpm_are_compared(change: Change, message: str) -> None:
    top = record(build(CONFIGS["adm"], outputs=6), SHAPE, "iDDPMPrecond")
    change(top)
    with pytest.raises(DataError, match=f"^f: iDDPMPrecond.u .*{message}"):
        read_edm(snapshot(top), "f")


def test_iddpm_needs_a_network_with_a_variance() -> None:
    top = record(build(CONFIGS["adm"]), SHAPE, "iDDPMPrecond")  # without the variance's channels
    with pytest.raises(DataError, match=r"f: .*shape .*out_conv\.weight \(3, 64, 3, 3\)"):
        read_edm(snapshot(top), "f")


def test_damaged_files_are_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = random.Random(1)
    content = edm_pickle(build(CONFIGS["ddpmpp"]), SHAPE)
    # What says how the network is built stands in the last part, behind most of the weights.
    tail = content.index(b"img_resolution")
    refused = 0
    for _ in range(150):
        try:
            read_edm(content[:tail] + mutate(content[tail:], source), "f")
        except DataError:
            refused += 1
    assert refused > 100 and not any(tmp_path.iterdir())
