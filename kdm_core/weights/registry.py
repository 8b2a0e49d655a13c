"""The weights of feature extractors: one entry a file, with the checksum that makes it genuine."""

from typing import NamedTuple

from kdm_core.losses.trunks import INSTALL, LAYOUTS, PACKAGE


class WeightsFile(NamedTuple):
    """A file with weights that are published somewhere.

    Attributes:
        file: its name in the cache; its path in the package where one carries it.
        sha256: its checksum, which several independent sources give.
        size: in bytes.
        licence: under which its authors published it.
        purpose: what it is for.
        url: where it can be had; empty where a package carries it.
        package: the one that carries it.
        install: how that is installed.
    """

    file: str
    sha256: str
    size: int
    licence: str
    purpose: str
    url: str = ""
    package: str = ""
    install: str = ""


def on_hub(repository: str, revision: str, file: str) -> str:
    """The address of a file on the Hugging Face hub, in one revision that never changes."""
    return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"


def dinov2(size: str, revision: str, sha256: str, n_bytes: int) -> WeightsFile:
    """The image encoder of one size (Oquab et al. 2023), as timm distributes it."""
    name = f"vit_{size}_patch14_dinov2.lvd142m"
    return WeightsFile(
        f"{name}.safetensors", sha256, n_bytes, "Apache-2.0",
        f"Fréchet and kernel distances in DINOv2's features (ViT-{size[0].upper()}/14)",
        on_hub(f"timm/{name}", revision, "model.safetensors"))


REGISTRY: dict[str, WeightsFile] = {
    "vgg16": WeightsFile(
        LAYOUTS["vgg"].file, LAYOUTS["vgg"].sha256, 58_866_625, "CC-BY-4.0",
        "LPIPS and distances in VGG16's features", package=PACKAGE, install=INSTALL),
    "alexnet": WeightsFile(
        LAYOUTS["alex"].file, LAYOUTS["alex"].sha256, 9_884_491, "BSD-3-Clause",
        "LPIPS with AlexNet", package=PACKAGE, install=INSTALL),
    "inception": WeightsFile(
        "inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4", 95_607_719,
        "Apache-2.0", "FID, KID and Inception score (modes clean and legacy_tensorflow)",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt"),
    "inception_pytorch": WeightsFile(
        "pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2", 95_628_359,
        "Apache-2.0", "FID and KID as pytorch-fid computes them (mode legacy_pytorch)",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth"),
    "dinov2_vits14": dinov2(
        "small", "4610ca143709d58a633b6397a74412c2c3842454",
        "04d27f3400d059fc0cfd7d17dd1909a75bf3ea8fb3eeb48b97cb99e57ee20081", 88_240_510),
    "dinov2_vitb14": dinov2(
        "base", "4685c99dabffe5affac90bd99dbffd25801ae58d",
        "55cbb5d887b336d430e649c277b85a1429e724871f9d02ac16203235886d8c7b", 346_334_872),
    "dinov2_vitl14": dinov2(
        "large", "4741e1cafbf45415e77074bb0cb42dba76c8684a",
        "0424a5d1b515278cba3c6640ccbeaacc41de59d3a93df0dd5e494285eea2b355", 1_217_502_758),
    "clip_vitb32": WeightsFile(
        "vit_base_patch32_clip_224.openai.safetensors",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31", 605_143_284, "MIT",
        "Fréchet and kernel distances in CLIP's image embedding (ViT-B/32)",
        on_hub("timm/vit_base_patch32_clip_224.openai",
               "a6f597a30f7b82c51704746581f9a4e41421e878", "open_clip_model.safetensors")),
}
