"""`evaluation`: images a second through the networks in whose features sets are compared.

The networks' shapes are genuine. Their weights are where they are installed; Inception's never, as
it is torchvision's, which has the same layers as FID's but for their pooling.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Job, Row
from benchmarks.gpu.measuring import forget_memory, most_memory, once
from benchmarks.gpu.weights import vgg_weights
from kdm_core.errors import KDMError
from kdm_core.losses.trunks import Trunk
from kdm_core.values import from_uint8
from kdm_core.vision import import_torchvision

INCEPTION_SIDE = 299
BATCH = 128
Features = Callable[[Tensor], Tensor]


def jobs(bench: Bench) -> list[Job]:
    return [Job("VGG16", 60.0, partial(vgg16, bench, False)),
            Job("VGG16, TF32", 60.0, partial(vgg16, bench, True)),
            Job("Inception's shape", 60.0, partial(inception, bench, False)),
            Job("Inception's shape, TF32", 60.0, partial(inception, bench, True))]


def vgg16(bench: Bench, tf32: bool) -> Row:
    with vgg_weights() as origin:
        trunk = Trunk("vgg", resolution=32).to(bench.device).eval()
    return measure(bench, lambda images: trunk(from_uint8(images))[-1].mean(dim=(2, 3)), tf32,
                   origin)


def inception(bench: Bench, tf32: bool) -> Row:
    """
    Raises:
        KDMError: torchvision is not installed.
    """
    if find_spec("torchvision") is None:
        raise KDMError("torchvision is not installed: pip install torchvision")
    import_torchvision()
    from torchvision.models import inception_v3

    network: Any = inception_v3(weights=None, init_weights=False, aux_logits=False)
    network.fc = torch.nn.Identity()
    network.to(bench.device).eval().requires_grad_(False)
    side = 75 if bench.scale.trial else INCEPTION_SIDE

    def features(images: Tensor) -> Tensor:
        enlarged = torch.nn.functional.interpolate(from_uint8(images), (side, side),
                                                   mode="bilinear", antialias=False)
        found: Tensor = network(enlarged)
        return found

    return measure(bench, features, tf32, "random")


@torch.inference_mode()
def measure(bench: Bench, features: Features, tf32: bool, weights: str) -> Row:
    """Of images that come from the host's memory, and features that go there, as in an evaluation.

    Args:
        tf32: whether convolutions and products may round to ten bits, which torch lets
            convolutions on NVIDIA's GPUs do unless it is told otherwise.
    """
    device, scale = bench.device, bench.scale
    forget_memory(device)
    images = torch.randint(256, (scale.judged, *scale.spec.sample_shape), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))

    def extract(allowed: bool, chosen: Tensor) -> Tensor:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
        return torch.cat([features(part.to(device)).float().cpu() for part in chosen.split(BATCH)])

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        first = once(lambda: extract(tf32, images[:BATCH]), device)
        seconds = once(lambda: extract(tf32, images), device)
        exact, found = (extract(allowed, images[:BATCH]) for allowed in (False, tf32))
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    return {"precision": "tf32" if tf32 else "fp32", "weights": weights, "batch": BATCH,
            "images_per_s": scale.judged / seconds, "first_batch_s": first,
            "deviation_from_fp32": float((found - exact).norm() / exact.norm()),
            "peak_memory_gb": most_memory(device)}
