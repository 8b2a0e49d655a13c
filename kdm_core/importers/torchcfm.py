"""Teachers from checkpoints of torchcfm's image examples (conditional flow matching).

Source: A. Tong et al., Improving and generalizing flow-based generative models with minibatch
optimal transport, 2024, arXiv:2302.00482; examples/images/cifar10 of the library. Its time runs
from noise (0) to samples (1), as ours does.
"""

from typing import Literal

from pydantic import Field

from kdm_core.errors import DataError
from kdm_core.importers.files import Weights, fetch
from kdm_core.importers.samples import label_names, samples_like
from kdm_core.importers.state_dict import read_state_dict
from kdm_core.importers.weights import load_weights
from kdm_core.networks.torchcfm_unet import (
    TorchCFMArguments,
    TorchCFMUNet,
    TorchCFMUNetConfig,
)
from kdm_core.samples import SampleSpec
from kdm_core.teachers import FlowMatching, FlowMatchingConfig

PARALLEL = "module."  # what torch's DataParallel puts before names
LABELS, ENTRANCE = "label_emb.weight", "input_blocks.0.0.weight"


class TorchCFMSource(TorchCFMArguments, Weights):
    """A velocity field on straight paths (`otcfm`, `icfm` or `fm` of the example, sigma 0).

    Channels and number of classes of the images are read from the file.

    Attributes:
        key: which network of the file; `ema_model` is the averaged one.
        guide: the checkpoint of a weaker teacher of the same size, for autoguidance.
    """

    source: Literal["torchcfm"]
    key: str | None = Field("ema_model", min_length=1)
    guide: Weights | None = None


def import_torchcfm(source: TorchCFMSource, data: SampleSpec) -> FlowMatching:
    """The velocity field in a checkpoint, for images of the height and width of `data`.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
        MismatchError: its tensors are not those of the network that `source` describes.
        KDMError: torchcfm is not installed.
    """
    path = fetch(source.file, source.sha256)
    tensors = read_state_dict(path, source.key)
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    entrance = tensors.get(ENTRANCE)
    if entrance is None or entrance.ndim != 4 or len(data.shape) != 3:
        raise DataError(f"{path} holds no U-Net of torchcfm for images (a tensor {ENTRANCE} of "
                        "four dimensions): choose another key, or another source", field="file")
    classes = len(tensors[LABELS]) if LABELS in tensors else 0
    spec = samples_like(data, [entrance.shape[1], *data.shape[1:]], label_names(classes, data))
    arguments = source.model_dump(include=set(TorchCFMArguments.model_fields))
    network = TorchCFMUNetConfig(kind="torchcfm_unet", **arguments)
    teacher = FlowMatching(
        FlowMatchingConfig(kind="flow_matching", network=network, normalised=False), spec)
    assert isinstance(teacher.network, TorchCFMUNet)
    load_weights(teacher.network.unet, tensors, str(path))
    teacher.label_dropout = 0.0  # its embedding has a row for each class and none for no label
    return teacher.eval().requires_grad_(False)
