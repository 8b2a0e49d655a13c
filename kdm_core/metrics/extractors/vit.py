"""Vision transformers: DINOv2's class token and CLIP's image embedding, by timm's networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.metrics.extractors.base import as_rgb, reading
from kdm_core.metrics.features import named_after
from kdm_core.serialization import fingerprint
from kdm_core.vision import import_torchvision
from kdm_core.weights.store import WeightsSource, find

SIDE = 224
Triple = tuple[float, float, float]


class DINOv2Config(Config):
    """DINOv2 (Oquab et al. 2023); distances in the large one's features follow people's judgement
    better than Inception's (Stein et al. 2023).

    Attributes:
        size: small (384 features), base (768) or large (1,024), all with patches of 14 pixels.
    """

    kind: Literal["dinov2"]
    size: Literal["vits14", "vitb14", "vitl14"] = "vitl14"

    @property
    def name(self) -> str:
        return f"dinov2_{self.size}"


class CLIPConfig(Config):
    """CLIP (Radford et al. 2021), OpenAI's ViT-B/32; its image embedding, not normalised."""

    kind: Literal["clip"]

    @property
    def name(self) -> str:
        return "clip_vitb32"


class Encoder(NamedTuple):
    """A network of timm, what it makes of an image, and the colours it was trained on."""

    architecture: str
    classes: int
    title: str
    mean: Triple
    deviation: Triple


IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WEBIMAGES: tuple[Triple, Triple] = ((0.48145466, 0.4578275, 0.40821073),
                                    (0.26862954, 0.26130258, 0.27577711))
# By the name of their weights, which is that of the extractor too.
ENCODERS = {
    "dinov2_vits14": Encoder("vit_small_patch14_dinov2", 0, "DINOv2 ViT-S/14", *IMAGENET),
    "dinov2_vitb14": Encoder("vit_base_patch14_dinov2", 0, "DINOv2 ViT-B/14", *IMAGENET),
    "dinov2_vitl14": Encoder("vit_large_patch14_dinov2", 0, "DINOv2 ViT-L/14", *IMAGENET),
    "clip_vitb32": Encoder("vit_base_patch32_clip_quickgelu_224", 512, "CLIP ViT-B/32", *WEBIMAGES),
}


class ViT:
    """Features (B, d): the class token after the last norm (DINOv2), or the embedding (CLIP).

    Images are squeezed or stretched to 224×224 pixels by an antialiased bicubic filter and rounded
    to whole levels, as the figures of Stein et al. 2023 are.
    """

    batch = 32

    def __init__(
        self, config: DINOv2Config | CLIPConfig, sources: Mapping[str, WeightsSource],
        device: torch.device,
    ) -> None:
        """Raises: as `find`; DataError: a file of the right checksum holds something else;
        KDMError: the package timm is not installed.
        """
        self.name, self.device = config.name, device
        encoder, weights = ENCODERS[self.name], find(self.name, sources)
        with reading(weights.path, f"the weights of {encoder.title}"):
            self.network = load_network(encoder, weights.path).to(device).eval()
        self.dim = encoder.classes or self.network.num_features
        self.mean, self.deviation = (torch.tensor(value).reshape(1, 3, 1, 1) * 255
                                     for value in (encoder.mean, encoder.deviation))
        self.fingerprint = fingerprint({"encoder": self.name, "side": SIDE,
                                        "weights": weights.sha256})
        self.metric_names: Mapping[str, str] = named_after(self.name)
        what = "image embedding" if encoder.classes else "class token"
        trust = "" if weights.genuine else ", with weights of the user's own"
        self.text = f"{encoder.title}{trust}: its {what} of images at {SIDE}×{SIDE} pixels."

    def __call__(self, images: Tensor) -> tuple[Tensor, None]:
        pixels = (resized(as_rgb(images)) - self.mean) / self.deviation
        features: Tensor = self.network(pixels.to(self.device))
        return features, None


def resized(images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) → whole levels 0 … 255 of 224×224 pixels, on the CPU."""
    pixels = F.interpolate(images.cpu().float(), (SIDE, SIDE), mode="bicubic", antialias=True,
                           align_corners=False)
    return pixels.round().clamp(0, 255)


def load_network(encoder: Encoder, path: Path) -> Any:
    """timm's network with the weights of a safetensors file, every one of them."""
    import_torchvision()  # timm imports it
    try:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn
    except ImportError as error:
        raise KDMError(f"{encoder.title} needs the package timm: pip install "
                       "'kdm-distill[features]'") from error
    from safetensors.torch import load_file

    with torch.device("meta"):  # no time or memory for weights that are replaced
        network: Any = timm.create_model(encoder.architecture, pretrained=False, img_size=SIDE,
                                         num_classes=encoder.classes)
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    if "pos_embed" in tensors:
        tensors["pos_embed"] = positions(tensors["pos_embed"], network.patch_embed.grid_size[0])
    network.load_state_dict(checkpoint_filter_fn(tensors, network), assign=True)
    return network


def positions(embeddings: Tensor, side: int) -> Tensor:
    """Embeddings (1, 1 + N², d) of N×N positions for side×side, the class token's as it is.

    As DINOv2's own code does: bicubic, not antialiased, with a scale of (side + 0.1) / N.
    """
    old = round((embeddings.shape[1] - 1) ** 0.5)
    if old == side:
        return embeddings
    grid = embeddings[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / old, mode="bicubic")
    return torch.cat([embeddings[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
