"""2-rectified flow++ and GET against the code that they were published with.

    git clone https://github.com/sangyun884/rfpp && git clone https://github.com/locuslab/get
    OMP_NUM_THREADS=1 python -m benchmarks.published_flows rfpp get

The same random weights, pairs and times on both sides, in float32: the loss of a batch, and the
time of a step (loss and gradients) as a ratio. Of rfpp the network, its velocity, and the
pseudo-Huber loss of its training loop, whose few lines stand here; LPIPS comes from another package
there (piq) and is left out. Of GET the network, with six unrolled steps, each decoded, weighted by
0.8 to the power of how far it is from the last, and the mean absolute error; torchdeq, which does
nothing else there, is stood in for, and its iteration starts at zero, as ours does. The clones are
run, so they must be trusted; nothing of them is part of this project.
"""

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import ratio, rounds
from kdm_core.losses.distances import L1Config, PseudoHuberConfig, build_distance
from kdm_core.samples import SampleSpec
from kdm_core.students import KINDS
from kdm_core.students.objective import Batch, LossConfig
from kdm_core.students.rectified_flow import u_shaped

RESOLUTION, BATCH, ROUNDS = 16, 8, 5
SPEC = SampleSpec(kind="image", shape=[3, RESOLUTION, RESOLUTION], sigma_data=0.5)
SONG = {"channels": 32, "multipliers": [1, 2], "blocks": 1, "attention": [8], "dropout": 0.0}
GET = {"width": 64, "injection": 2, "heads": 4, "mlp_ratio": 6}
LOSSES = LossConfig(adversarial=0.0, reconstruction=0.0, latent=0.0, latent_noise=0.0)
CPU = torch.device("cpu")


def main() -> None:
    rfpp, get = map(Path, sys.argv[1:3])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(BATCH, *SPEC.shape, generator=generator)
    batch = Batch(noise, noise.tanh(), None, torch.randn(BATCH, 2, 1, generator=generator))
    for name, compare in (("2-rectified flow++", lambda: compare_flows(rfpp, batch)),
                          ("GET", lambda: compare_equilibria(get, batch))):
        theirs, ours = compare()
        values = [float(run().detach()) for run in (theirs, ours)]
        seconds = rounds({"theirs": step(theirs), "ours": step(ours)}, ROUNDS, time.process_time)
        print(f"{name}: loss {values[0]:.6g} and {values[1]:.6g}, apart by "
              f"{abs(values[0] / values[1] - 1):.1e}; a step of theirs takes "
              f"{ratio(seconds['theirs'], seconds['ours'])} as long as ours", flush=True)


def step(loss: Any) -> Any:
    return lambda: loss().backward()


def compare_flows(clone: Path, batch: Batch) -> tuple[Any, Any]:
    """The losses of a batch, theirs and ours."""
    network_edm = imported(clone, "network_edm")
    inner = network_edm.SongUNet(
        img_resolution=RESOLUTION, in_channels=3, out_channels=3, model_channels=SONG["channels"],
        channel_mult=SONG["multipliers"], num_blocks=SONG["blocks"],
        attn_resolutions=SONG["attention"], dropout=0.0)
    inner.config = {"img_resolution": RESOLUTION, "in_channels": 3, "label_dim": 0,
                    "augment_dim": 0}
    theirs = network_edm.EDMPrecondVel(randomised(inner))
    student: Any = KINDS["rectified_flow"].model_validate({
        "kind": "rectified_flow", "denoiser": {
            "kind": "denoiser", "network": {"kind": "song_unet", **SONG}}}).build(SPEC)
    student.network.load_state_dict(inner.state_dict(), strict=False)
    taken = set(inner.state_dict()) & set(student.network.state_dict())
    assert taken >= {name for name, _ in student.network.named_parameters()}
    count = batch.noise[0].numel()
    distance = build_distance(
        PseudoHuberConfig(kind="pseudo_huber", c=0.00054 * count**0.5), CPU)
    t = u_shaped(batch.latent_noise[:, :, 0], student.config.concentration, student.first)

    def published() -> Tensor:
        place = t.view(-1, 1, 1, 1)
        predicted = theirs((1 - place) * batch.samples + place * batch.noise, t)
        error = (predicted - (batch.noise - batch.samples)).square().sum(dim=(1, 2, 3))
        constant = 0.00054 * count
        huber = ((error + constant**2).sqrt() - constant) / count
        return ((1 - t) * huber).mean()

    # Ours is larger by the root of the number of values.
    return published, lambda: student.terms(batch, LOSSES, distance)[0]["prediction"] / count**0.5


def compare_equilibria(clone: Path, batch: Batch) -> tuple[Any, Any]:
    """As of `compare_flows`."""
    stand_in_for_torchdeq()
    get = imported(clone, "models.get")
    theirs = randomised(get.GET(
        SimpleNamespace(mem=False), input_size=RESOLUTION, depth=GET["injection"],
        hidden_size=GET["width"], num_heads=GET["heads"], deq_mlp_ratio=GET["mlp_ratio"])).train()
    get.torch = SimpleNamespace(**{**vars(torch), "randn_like": torch.zeros_like})
    student: Any = KINDS["direct"].model_validate({
        "kind": "direct", "denoiser": {"kind": "denoiser", "network": {"kind": "get", **GET}}
    }).build(SPEC)
    take_over(student.network, theirs)
    distance = build_distance(L1Config(kind="l1"), CPU)
    # Their output is the sample; ours goes through the preconditioning of the teacher.
    start, sd = float(student.start), SPEC.sigma_data
    skip, out = sd**2 / (start**2 + sd**2), start * sd / (start**2 + sd**2) ** 0.5
    scale = start / (start**2 + sd**2) ** 0.5

    def published() -> Tensor:
        made = [skip * start * batch.noise + out * one for one in theirs(scale * batch.noise)]
        losses = [(one - batch.samples).abs().mean() for one in made]
        last = len(losses) - 1
        return torch.stack([0.8 ** (last - k) * loss for k, loss in enumerate(losses)]).sum()

    return published, lambda: student.terms(batch, LOSSES, distance)[0]["prediction"]


def stand_in_for_torchdeq() -> None:
    """Six steps of the function, each of which is kept: what GET asks of it."""

    def unrolled(function: Any, z: Tensor) -> tuple[list[Tensor], None]:
        found = []
        for _ in range(6):
            z = function(z)
            found.append(z)
        return found, None

    for name, content in {
            "torchdeq": {"get_deq": lambda args: unrolled},
            "torchdeq.norm": {"apply_norm": lambda *a, **k: None, "reset_norm": lambda *a: None},
            "torchdeq.utils": {"mem_gc": None}}.items():
        module = ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


@torch.no_grad()
def take_over(ours: Any, theirs: Any) -> None:
    """Their weights, some of which lie in another order there."""
    ours.positions.copy_(theirs.pos_embed[0])
    ours.enter.weight.copy_(theirs.x_embedder.proj.weight.flatten(1))
    ours.enter.bias.copy_(theirs.x_embedder.proj.bias)
    ours.inject.weight.copy_(theirs.qkv_inj.weight)
    ours.norm.load_state_dict(theirs.final_layer.norm_final.state_dict())
    for own, other in ((ours.leave.weight, theirs.final_layer.linear.weight),
                       (ours.leave.bias, theirs.final_layer.linear.bias)):
        # Rows, columns, channels there; channels, rows, columns here.
        own.copy_(other.unflatten(0, (2, 2, 3)).movedim(2, 0).flatten(0, 2))
    names = {"norm_attention": "norm1", "qkv": "attn.qkv", "leave": "attn.proj",
             "norm_mlp": "norm2", "first": "mlp.fc1", "second": "mlp.fc2"}
    for blocks, others in ((ours.injection, theirs.blocks), (ours.blocks, theirs.deq_blocks)):
        for block, other in zip(blocks, others, strict=True):
            for name, place in names.items():
                block.get_submodule(name).load_state_dict(other.get_submodule(place).state_dict())


def imported(clone: Path, name: str) -> Any:
    """A module of a clone."""
    sys.path.insert(0, str(clone.resolve()))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def randomised(network: nn.Module) -> nn.Module:
    """Weights everywhere, since some layers start at zero."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
        elif parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


if __name__ == "__main__":
    main()
