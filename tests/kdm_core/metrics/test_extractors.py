"""Extractors: what they compute, against the code that others measure with."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional as F

from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.losses.trunks import Trunk
from kdm_core.metrics.classifier import Classifier, ClassifierConfig, save_classifier
from kdm_core.metrics.extractors import ExtractorConfig, build_extractor
from kdm_core.metrics.extractors.inception import Inception, pytorch_network
from kdm_core.metrics.extractors.vit import ENCODERS, Encoder, positions, resized
from kdm_core.metrics.features import METRICS, Extractor, extract
from kdm_core.metrics.frechet import fit_gaussian, frechet_distance, read_statistics
from kdm_core.samples import SampleSpec
from kdm_core.values import from_uint8
from kdm_core.vision import import_torchvision
from kdm_core.weights import WeightsMissing, WeightsSource
from kdm_core.weights.registry import REGISTRY

CPU = torch.device("cpu")
MODES = ("clean", "legacy_pytorch", "legacy_tensorflow")
Sources = dict[str, WeightsSource]
ADAPTER: TypeAdapter[Any] = TypeAdapter(ExtractorConfig)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the cache, and nothing downloaded."""
    monkeypatch.setenv("KDM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KDM_OFFLINE", "1")


def build(block: dict[str, Any], sources: Sources | None = None) -> Extractor:
    return build_extractor(ADAPTER.validate_python(block), sources or {}, CPU)


def images(n: int, channels: int = 3, side: int = 32, seed: int = 0) -> Tensor:
    """Smooth random images (n, channels, side, side)."""
    coarse = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, (side, side), mode="bilinear") * 255).to(torch.uint8)


def owned(name: str, path: Path) -> Sources:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {name: WeightsSource(path=str(path), sha256=digest)}


# Inception: two networks with its interface, of which the second is its architecture


class StandIn(nn.Module):
    """The interface of the TorchScript network; 256 of its 2048 features are not constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 16, stride=16), nn.ReLU(), nn.AdaptiveAvgPool2d(16), nn.Flatten())
        self.output = nn.Linear(2048, 10)
        with torch.no_grad():
            self.layers[0].weight *= 4
            self.layers[0].bias[0], self.layers[0].bias[1:] = 8, -1e4

    def forward(self, img: Tensor, return_features: bool = False, use_fp16: bool = False,
                no_output_bias: bool = False) -> Tensor:
        x = F.interpolate(img.float(), size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        if no_output_bias:
            return F.linear(features, self.output.weight).softmax(dim=1)
        return self.output(features).softmax(dim=1)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`script.pt`, the stand-in, and `ported.pth`, random weights of pytorch-fid's network."""
    import_torchvision()
    folder = tmp_path_factory.mktemp("inception")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.jit.script(StandIn().eval()).save(folder / "script.pt")
        torch.save(random_inception(), folder / "ported.pth")
    return folder


def random_inception() -> dict[str, Tensor]:
    """A state dict with which 64 of the 2048 features are not constant."""
    from cleanfid import inception_pytorch

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(nn.Module, "load_state_dict", lambda *_: None)
        network = inception_pytorch.fid_inception_v3()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    for branch in ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a",
                   "branch3x3dbl_3b", "branch_pool"):
        last = getattr(network.Mixed_7c, branch).bn
        nn.init.zeros_(last.weight[64 if branch == "branch1x1" else 0 :])
    return network.state_dict()  # type: ignore[no-any-return]


def sources(files: Path, mode: str) -> Sources:
    if mode == "legacy_pytorch":
        return owned("inception_pytorch", files / "ported.pth")
    return owned("inception", files / "script.pt")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two folders of PNGs."""
    found = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"pngs{seed}")
        for index, picture in enumerate(pictures(seed)):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
        found.append(str(folder))
    return found[0], found[1]


def pictures(seed: int) -> Tensor:
    return images(6, side=40, seed=seed)


def cleanfid_model(files: Path, mode: str, folder: Path) -> Callable[[Tensor], Tensor]:
    """The function that clean-fid's `build_feature_extractor` makes, without its download."""
    from cleanfid.inception_torchscript import InceptionV3W

    if mode == "legacy_pytorch":
        network = pytorch_network(files / "ported.pth").eval()
        return lambda x: network(x / 255)[0].squeeze(-1).squeeze(-1)  # type: ignore[no-any-return]
    (folder / "inception-2015-12-05.pt").write_bytes((files / "script.pt").read_bytes())
    script = InceptionV3W(str(folder), download=False, resize_inside=mode == "legacy_tensorflow")
    return lambda x: script.eval()(x)  # type: ignore[no-any-return]


def distance(made: Any, real: Any) -> float:
    return float(frechet_distance(fit_gaussian(made), fit_gaussian(real)))


@pytest.mark.parametrize("mode", MODES)
def test_fid_is_clean_fids(
    mode: str, files: Path, folders: tuple[str, str], tmp_path: Path
) -> None:
    from cleanfid import fid

    inception = build({"kind": "inception", "mode": mode}, sources(files, mode))
    model = cleanfid_model(files, mode, tmp_path)
    theirs = [fid.get_folder_features(folder, model, num_workers=0, device=CPU, mode=mode,
                                      verbose=False) for folder in folders]
    ours = [extract(inception, pictures(seed), batch=4).features for seed in (1, 2)]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    # What is constant in both sets adds nothing, and takes clean-fid's square root half a minute.
    varies = np.ptp(np.concatenate(theirs), axis=0) > 0
    assert 30 < varies.sum() <= 256
    wanted = fid.fid_from_feats(*[features[:, varies] for features in theirs])
    assert wanted > 0.1
    made, real = (features[:, varies] for features in ours)
    assert distance(made, real) == pytest.approx(wanted, abs=1e-4)
    # The other set as a published statistics file.
    np.savez(tmp_path / "statistics.npz", mu=np.mean(theirs[1][:, varies], axis=0),
             sigma=np.cov(theirs[1][:, varies], rowvar=False))
    published = read_statistics(tmp_path / "statistics.npz")
    assert frechet_distance(fit_gaussian(made), published) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_fid_is_clean_fids_in_one_call(
    mode: str, files: Path, folders: tuple[str, str], tmp_path: Path
) -> None:
    from cleanfid import fid

    wanted = fid.compute_fid(*folders, mode=mode, device=CPU, num_workers=0, verbose=False,
                             custom_feat_extractor=cleanfid_model(files, mode, tmp_path))
    inception = build({"kind": "inception", "mode": mode}, sources(files, mode))
    found = distance(*[extract(inception, pictures(seed)).features for seed in (1, 2)])
    assert found == pytest.approx(wanted, abs=1e-4)


def test_probabilities_are_the_networks_own_without_the_bias(files: Path) -> None:
    script = torch.jit.load(files / "script.pt")
    inception = build({"kind": "inception", "mode": "legacy_tensorflow"},
                      sources(files, "legacy_tensorflow"))
    found = extract(inception, images(5)).probabilities
    with torch.inference_mode():
        wanted = script(images(5), no_output_bias=True)
    assert found is not None
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_network_without_its_last_layer_has_no_score(files: Path, tmp_path: Path) -> None:
    torch.jit.script(Headless(StandIn().layers).eval()).save(tmp_path / "headless.pt")
    inception = build({"kind": "inception"}, owned("inception", tmp_path / "headless.pt"))
    assert extract(inception, images(2)).probabilities is None
    ported = build({"kind": "inception", "mode": "legacy_pytorch"},
                   sources(files, "legacy_pytorch"))
    assert extract(ported, images(2)).probabilities is None


class Headless(nn.Module):
    """The stand-in's features and nothing else."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return self.layers(img)  # type: ignore[no-any-return]


def test_grey_images_are_coloured_as_clean_fid_reads_them(files: Path) -> None:
    inception = build({"kind": "inception"}, sources(files, "clean"))
    grey = images(3, channels=1)
    found, wanted = (extract(inception, x).features for x in (grey, grey.expand(-1, 3, -1, -1)))
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_genuine_network_gives_fid(
    mode: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = sources(files, mode)
    other = build({"kind": "inception", "mode": mode}, given)
    assert other.metric_names == {metric: f"{metric}_inception_{mode}" for metric in METRICS}
    assert "Not the genuine" in other.text
    ((name, source),) = given.items()
    assert source.sha256
    monkeypatch.setitem(REGISTRY, name, REGISTRY[name]._replace(sha256=source.sha256))
    genuine = build({"kind": "inception", "mode": mode}, given)
    names = genuine.metric_names
    assert [names[metric] for metric in ("fd", "fd_infinity", "kd", "is", "precision")] == [
        f"fid_{mode}", f"fid_infinity_{mode}", f"kid_{mode}", f"is_{mode}",
        f"precision_inception_{mode}"]
    assert genuine.fingerprint == other.fingerprint


def test_modes_and_weights_have_fingerprints_of_their_own(files: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.jit.script(StandIn().eval()).save(tmp_path / "other.pt")
    found = [build({"kind": "inception", "mode": mode}, sources(files, mode)) for mode in MODES]
    found.append(build({"kind": "inception"}, owned("inception", tmp_path / "other.pt")))
    assert len({extractor.fingerprint for extractor in found}) == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_file_of_another_sum_is_never_opened(
    mode: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    for module, name in ((torch.jit, "load"), (torch, "load")):
        monkeypatch.setattr(module, name, opened)
    ((name, source),) = sources(files, mode).items()
    with pytest.raises(MismatchError, match=source.path):
        build({"kind": "inception", "mode": mode}, {name: WeightsSource(path=source.path)})


def test_a_file_that_is_no_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "linear.pt")
    for name, mode, file in (
        ("inception", "clean", "junk"), ("inception_pytorch", "legacy_pytorch", "junk"),
        ("inception_pytorch", "legacy_pytorch", "other.pth"), ("inception", "clean", "linear.pt"),
    ):
        with pytest.raises(DataError, match=f"{file} does not hold an Inception network"):
            build({"kind": "inception", "mode": mode}, owned(name, tmp_path / file))


def test_a_pickle_in_place_of_weights_runs_nothing(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Program()}, tmp_path / "program.pth")
    with pytest.raises(DataError, match=r"program\.pth does not hold"):
        build({"kind": "inception", "mode": "legacy_pytorch"},
              owned("inception_pytorch", tmp_path / "program.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("block", "name"), [
    ({"kind": "inception"}, "inception"), ({"kind": "dinov2"}, "dinov2_vitl14"),
    ({"kind": "inception", "mode": "legacy_pytorch"}, "inception_pytorch"),
    ({"kind": "clip"}, "clip_vitb32")])
def test_missing_weights_are_said_in_one_line(block: dict[str, Any], name: str) -> None:
    with pytest.raises(WeightsMissing, match=f"^the weights {name} .*fetch them elsewhere"):
        build(block)


# VGG16


@pytest.mark.parametrize(("shape", "resolution"), [((3, 32, 32), 32), ((1, 8, 8), 32),
                                                   ((3, 40, 24), 16)])
def test_vgg16_averages_its_last_block(shape: tuple[int, int, int], resolution: int) -> None:
    extractor = build({"kind": "vgg16", "resolution": resolution})
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8))
    found = extract(extractor, pixels).features
    with torch.inference_mode():
        wanted = Trunk("vgg", resolution=resolution)(from_uint8(pixels))[-1].mean((2, 3))
    assert found.shape == (3, extractor.dim) == (3, 512)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found.std() > 0.01


def test_vgg16s_resolution_is_part_of_its_fingerprint() -> None:
    found = {build({"kind": "vgg16", "resolution": r}).fingerprint for r in (32, 64, 32)}
    assert len(found) == 2


def test_vgg16_refuses_images_that_are_too_small() -> None:
    with pytest.raises(KDMError, match="at least 16×16 pixels"):
        extract(build({"kind": "vgg16", "resolution": 0}), images(2, side=8))


# Vision transformers


def random_network(encoder: Encoder) -> nn.Module:
    """timm's network with random weights."""
    import_torchvision()
    timm = pytest.importorskip("timm")
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network: nn.Module = timm.create_model(
            encoder.architecture, img_size=224, num_classes=encoder.classes).eval()
    network.to_empty(device="cpu")
    for parameter in network.parameters():
        deviation = 0.5 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        nn.init.normal_(parameter, std=deviation, generator=generator)
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    network = random_network(ENCODERS["dinov2_vits14"])
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("vit") / "dinov2.safetensors"
    save_file(network.state_dict(), path)
    return path, network


def test_dinov2_is_its_class_token(small: tuple[Path, nn.Module]) -> None:
    path, network = small
    extractor = build({"kind": "dinov2", "size": "vits14"}, owned("dinov2_vits14", path))
    found = extract(extractor, images(3)).features
    pixels = resized(images(3)) / 255
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1)
                       for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        wanted = network.forward_features((pixels - mean) / deviation)[:, 0]  # type: ignore[operator]
    assert found.shape == (3, extractor.dim) == (3, 384)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert extractor.metric_names["fd"] == "fd_dinov2_vits14"


def test_dinov2s_positions_are_resampled_from_518_pixels(
    small: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(small[0])
    tensors["pos_embed"] = torch.ones(1, 1 + 37**2, 384)
    save_file(tensors, tmp_path / "published.safetensors")
    extractor = build({"kind": "dinov2", "size": "vits14"},
                      owned("dinov2_vits14", tmp_path / "published.safetensors"))
    assert extract(extractor, images(2)).features.shape == (2, 384)
    # Within the border a plane stays one, but for what the cubic filter does to it.
    rows = torch.arange(37.0).repeat_interleave(37).reshape(1, -1, 1)
    found = positions(torch.cat([torch.full((1, 1, 1), 7.0), rows], dim=1), 16)
    assert found[0, 0, 0] == 7 and found.shape == (1, 257, 1)
    inner = (torch.arange(16.0) + 0.5)[2:-2] * 37 / 16.1 - 0.5
    torch.testing.assert_close(found[0, 1:, 0].reshape(16, 16)[2:-2, 5], inner, atol=0.1, rtol=0)


def test_clip_is_read_from_openais_names(tmp_path: Path) -> None:
    network = random_network(ENCODERS["clip_vitb32"])
    nn.init.zeros_(network.head.bias)  # type: ignore[union-attr, arg-type]
    from safetensors.torch import save_file

    save_file(openai_names(network.state_dict()), tmp_path / "clip.safetensors")
    extractor = build({"kind": "clip"}, owned("clip_vitb32", tmp_path / "clip.safetensors"))
    found = extract(extractor, images(2)).features
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))
    with torch.inference_mode():
        wanted = network((resized(images(2)) / 255 - mean) / deviation)
    assert found.shape == (2, extractor.dim) == (2, 512)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def openai_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A timm state dict under the names of OpenAI's image tower, with a tensor of the other one."""
    found = {"logit_scale": torch.zeros(())}
    for name, tensor in tensors.items():
        for ours, theirs in (
            ("patch_embed.proj.weight", "conv1.weight"), ("pos_embed", "positional_embedding"),
            ("cls_token", "class_embedding"), ("norm_pre", "ln_pre"),
            ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ("norm1", "ln_1"), ("norm2", "ln_2"), ("blocks.", "transformer.resblocks."),
            ("head.weight", "proj"),
        ):
            name = name.replace(ours, theirs)
        name = name.replace("norm.", "ln_post.") if name.startswith("norm.") else name
        if name == "proj":
            tensor = tensor.T.contiguous()
        elif name in ("positional_embedding", "class_embedding"):
            tensor = tensor.squeeze().contiguous()
        if name != "head.bias":
            found[f"visual.{name}"] = tensor
    return found


def test_pixels_are_resized_as_pil_does() -> None:
    for side in (32, 300):
        (picture,) = images(1, side=side)
        wanted = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(
            (224, 224), Image.Resampling.BICUBIC)
        difference = resized(picture[None])[0] - torch.from_numpy(np.array(wanted)).permute(2, 0, 1)
        assert difference.abs().max() <= 1 and difference.abs().mean() < 0.2


def test_weights_of_another_network_are_named(small: tuple[Path, nn.Module]) -> None:
    with pytest.raises(DataError, match=r"dinov2\.safetensors does not hold the weights of DINOv2 "
                                        "ViT-B/14"):
        build({"kind": "dinov2", "size": "vitb14"}, owned("dinov2_vitb14", small[0]))


# The classifier


def test_the_runs_classifier(tmp_path: Path) -> None:
    spec = SampleSpec(kind="image", shape=[3, 32, 32], label_names=["a", "b"])
    mark = save_classifier(tmp_path, Classifier(ClassifierConfig(channels=8, features=4), spec))
    config = ADAPTER.validate_python({"kind": "classifier"})
    assert build_extractor(config, {}, CPU, tmp_path).fingerprint == mark
    with pytest.raises(KDMError, match="there is no classifier"):
        build_extractor(config, {}, CPU)


def test_names_are_known_before_anything_is_loaded(files: Path) -> None:
    for block in ({"kind": "vgg16"}, {"kind": "inception"}):
        config = ADAPTER.validate_python(block)
        assert build(block, sources(files, "clean")).name == config.name
    assert Inception.dim == 2048
