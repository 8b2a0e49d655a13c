"""Imported EDM, EDM2 and SiT networks against the code that they were published with.

    git clone https://github.com/NVlabs/edm && git clone https://github.com/NVlabs/edm2
    git clone https://github.com/willisma/SiT
    python -m benchmarks.published_code edm edm2 SiT

Networks are built and saved by the published code, with random weights everywhere, and imported
by ours. Compared are 18-step samples from the same noise (Heun, for SiT midpoint), by the published
sampler and by ours, in float32; and, for EDM, their speed. Clones that are not named are left out.
They are run, so they must be trusted; nothing of them is part of this project (EDM is CC BY-NC-SA).
"""

import importlib
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import ratio, rounds
from kdm_core.importers import build_source
from kdm_core.importers.module import ModuleFlow, ModuleSource
from kdm_core.importers.nvlabs import EDM2Source, EDMSource
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import Teacher

RESOLUTION, CLASSES, BATCH, STEPS = 16, 3, 4, 18
SONG = {"model_type": "SongUNet", "model_channels": 32, "channel_mult": [1, 2, 2],
        "num_blocks": 2, "attn_resolutions": [8], "augment_dim": 9}
NETWORKS: dict[str, dict[str, Any]] = {
    "DDPM++": SONG,
    "NCSN++": SONG | {"embedding_type": "fourier", "encoder_type": "residual",
                      "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
    "ADM": {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2],
            "num_blocks": 1, "attn_resolutions": [8, 16]},
}
Sampler = Callable[..., Tensor]
PACKAGES = ("training", "torch_utils", "dnnlib", "models", "transport")  # of the clones


def main() -> None:
    clones = {path.name.lower(): path for path in map(Path, sys.argv[1:])}
    print(f"largest deviation of {STEPS}-step samples, as a share of the largest value")
    if "edm" in clones:
        # One clone after the other: they have packages of the same names.
        for name, network, sampler in from_edm(clones["edm"]):
            compare(name, sample_both(network, sampler, imported({"ema": network}, "edm")))
    if "edm2" in clones:
        for name, network, sampler, encoder in from_edm2(clones["edm2"]):
            teacher = imported({"ema": network, "encoder": encoder}, "edm2")
            compare(name, sample_both(network, sampler, teacher))
    if "sit" in clones:
        compare("SiT", sample_sit(clones["sit"]))
    if "edm" in clones:
        compare_speed(clones["edm"])


def compare(name: str, samples: tuple[Tensor, Tensor]) -> None:
    theirs, ours = samples
    print(f"{name:>24} {float((theirs - ours).abs().max() / theirs.abs().max()):.1e}", flush=True)


def from_edm(clone: Path) -> Iterator[tuple[str, nn.Module, Sampler]]:
    """All preconditionings over all networks of EDM."""
    networks, generate = modules(clone, "training.networks", "generate")
    for kind in ("VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond"):
        for name, arguments in NETWORKS.items():
            made = getattr(networks, kind)(img_resolution=RESOLUTION, img_channels=3,
                                           label_dim=CLASSES, **arguments)
            yield f"{kind} {name}", randomised(made), generate.edm_sampler


def from_edm2(clone: Path) -> Iterator[tuple[str, nn.Module, Sampler, object]]:
    """Networks of EDM2 with their encoders, of images and of latents. Its sampler keeps its state
    in float32 unless told otherwise."""
    networks, generate, encoders = modules(clone, "training.networks_edm2", "generate_images",
                                           "training.encoders")

    def sampler(*arguments: Any, **more: Any) -> Tensor:
        found: Tensor = generate.edm_sampler(*arguments, dtype=torch.float64, **more)
        return found

    for kind, channels, encoder in (("images", 3, encoders.StandardRGBEncoder()),
                                    ("latents", 4, encoders.StabilityVAEEncoder())):
        made = networks.Precond(RESOLUTION, channels, CLASSES, use_fp16=False, model_channels=64,
                                channel_mult=[1, 2], num_blocks=2, attn_resolutions=[8])
        for name, parameter in made.named_parameters():
            if name.endswith("_gain"):
                nn.init.constant_(parameter, 0.7)
        yield f"EDM2 {kind}", made.eval().requires_grad_(False), sampler, encoder


def sample_sit(clone: Path) -> tuple[Tensor, Tensor]:
    """A small SiT's samples, the last of which has no label."""
    transport, = modules(clone, "transport")
    drawn = randomised(sit(str(clone)))
    solve = transport.Sampler(transport.create_transport()).sample_ode(
        sampling_method="midpoint", num_steps=STEPS + 1)
    noise = torch.randn(BATCH, 4, RESOLUTION, RESOLUTION,
                        generator=torch.Generator().manual_seed(5))
    labels = torch.tensor([0, 1, 2, -1])
    theirs = solve(noise, drawn.forward, y=labels.where(labels >= 0, CLASSES))[-1]
    data = SampleSpec(kind="latent", shape=list(noise.shape[1:]),
                      label_names=[str(i) for i in range(CLASSES)])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sit.pt"
        torch.save({"ema": drawn.state_dict()}, file)
        teacher = build_source(ModuleSource(
            source="module", factory="benchmarks.published_code:sit",
            arguments={"clone": str(clone)}, file=str(file), key="ema", trust_code=True,
            model=ModuleFlow(kind="flow_matching")), data)
    solver = FixedSolver(kind="midpoint", steps=STEPS)
    return theirs, teacher.sample(noise, labels, solver, "fp32").state


def sit(clone: str) -> nn.Module:
    """A small SiT as docs/teachers.md makes a large one."""
    models, = modules(Path(clone), "models")
    model: nn.Module = models.SiT(input_size=RESOLUTION, hidden_size=64, depth=2, num_heads=4,
                       num_classes=CLASSES)
    model.register_forward_pre_hook(
        lambda module, inputs: (*inputs[:2], inputs[2].where(inputs[2] >= 0, CLASSES)))
    return model


def modules(clone: Path, *names: str) -> list[Any]:
    """Import modules of a clone, and forget those of another."""
    for loaded in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[loaded]
    sys.path.insert(0, str(clone.resolve()))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.pop(0)


def randomised(network: nn.Module) -> nn.Module:
    """Weights everywhere, since some layers start at zero."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


def imported(document: dict[str, Any], source: str) -> Teacher:
    data = SampleSpec(kind="image", shape=[3, RESOLUTION, RESOLUTION],
                      label_names=[str(i) for i in range(CLASSES)])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pkl"
        file.write_bytes(pickle.dumps(document))
        if source == "edm2":
            return build_source(EDM2Source(source="edm2", file=str(file)), data)
        return build_source(EDMSource(source="edm", file=str(file)), data)


def sample_both(network: nn.Module, sampler: Sampler, teacher: Teacher) -> tuple[Tensor, Tensor]:
    noise = torch.randn(BATCH, *teacher.spec.shape, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(BATCH) % CLASSES
    with torch.no_grad():
        theirs = sampler(network, noise, torch.eye(CLASSES)[labels], num_steps=STEPS)
    solver = FixedSolver(kind="heun", steps=STEPS)
    return theirs, teacher.sample(noise, labels, solver, "fp32").state


def compare_speed(clone: Path) -> None:
    """Their sampler and network against ours, images of 32×32, in turn."""
    networks, generate = modules(clone, "training.networks", "generate")
    network = randomised(networks.EDMPrecond(
        img_resolution=32, img_channels=3, **SONG | {"model_channels": 64,
                                                     "channel_mult": [2, 2, 2]}))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pkl"
        file.write_bytes(pickle.dumps({"ema": network}))
        teacher = build_source(EDMSource(source="edm", file=str(file)),
                               SampleSpec(kind="image", shape=[3, 32, 32]))
    noise = torch.randn(16, 3, 32, 32)
    solver = FixedSolver(kind="heun", steps=9)

    def published() -> Tensor:
        with torch.no_grad():
            found: Tensor = generate.edm_sampler(network, noise, None, num_steps=9)
        return found

    seconds = rounds({
        "published": published,
        "fp32": lambda: teacher.sample(noise, None, solver, "fp32").state,
        "bf16": lambda: teacher.sample(noise, None, solver, "bf16").state}, 5)
    print(f"speed, DDPM++ of {sum(p.numel() for p in network.parameters()):,} parameters, "
          f"{torch.get_num_threads()} threads")
    for name, times in seconds.items():
        print(f"{name:>24} {ratio(seconds['published'], times)}")


if __name__ == "__main__":
    main()
