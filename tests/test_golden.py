"""Golden numbers: a tiny run of every kind of everything, so that no number drifts in silence.

If a change is meant, renew tests/golden/numbers.json by `python -m tests.test_golden`, and read
what differs. Where pairs do, an edit makes other pairs: raise `MAKER` in kdm_core/pairs/spec.py.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from kdm_core.compute import seeded, step_generator
from kdm_core.config import Config
from kdm_core.datasets import Dataset, DatasetInfo, on_board
from kdm_core.losses.features import Frozen
from kdm_core.losses.perceptual import LPIPS
from kdm_core.metrics.classifier import (
    Classifier,
    ClassifierConfig,
    ClassifierExtractor,
    ClassifierTask,
)
from kdm_core.metrics.compare import compare_features, compare_points, reference_of
from kdm_core.metrics.denoising.check import check_denoising
from kdm_core.metrics.estimate import Estimate, resampling
from kdm_core.metrics.extractors import (
    CLIPConfig,
    DINOv2Config,
    ExtractorConfig,
    InceptionConfig,
    ReferenceConfig,
    build_extractor,
)
from kdm_core.metrics.features import Extractor, Features, extract
from kdm_core.metrics.labels import label_shift
from kdm_core.metrics.paired import (
    coincidence,
    label_accuracy,
    label_agreement,
    paired_lpips,
    paired_mse,
)
from kdm_core.metrics.spread import within_class_variance
from kdm_core.networks.diffusers_dit import DiffusersDiTConfig
from kdm_core.networks.diffusers_unet import DiffusersUNetConfig
from kdm_core.networks.module import ModuleNetworkConfig
from kdm_core.networks.torchcfm_unet import TorchCFMUNetConfig
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_batch
from kdm_core.pairs.spec import MAKER
from kdm_core.samples import SampleSpec
from kdm_core.solvers import SolverConfig
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.students import StudentConfig
from kdm_core.students.given import Given, RealSamples
from kdm_core.students.initialise import start_at_teacher
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers import Teacher, TeacherConfig, TrainableConfig, build_teacher, save_teacher
from kdm_core.teachers.augmentation import AugmentationConfig
from kdm_core.teachers.exact import FiniteData, GaussianMixture, fit_data, fit_mixture
from kdm_core.teachers.guidance import guided
from kdm_core.teachers.training import TeacherTask
from kdm_core.training.config import TrainingConfig
from kdm_core.training.ema import Averages
from kdm_core.training.loop import Task, fit
from kdm_core.training.optimizer import ScheduledOptimizer
from kdm_core.values import to_uint8
from pipeline.reporting.metrics import IN_FEATURES, PLAIN

Raw = dict[str, Any]
Numbers = dict[str, list[float]]
Choice = tuple[type[Config], str, str | bool]

FILE = Path(__file__).parent / "golden/numbers.json"
CPU = torch.device("cpu")
RENEW = "python -m tests.test_golden"
SPEC = SampleSpec(kind="image", shape=[3, 8, 8], label_names=["a", "b"])
TRAINING = TrainingConfig(steps=3, batch=8, lr=5e-3, precision="fp32")


class Family(NamedTuple):
    """Kinds that are run alike.

    Attributes:
        parts: of a case, each with the type of its configuration.
        cases: by name, the values of some parts; what is left out is None.
        run: the numbers of a case, given its parts by name.
    """

    parts: dict[str, Any]
    cases: Mapping[str, Raw]
    run: Callable[..., Numbers]

    def configs(self, name: str) -> dict[str, Any]:
        return {part: None if (raw := self.cases[name].get(part)) is None else
                TypeAdapter(kind).validate_python(raw) for part, kind in self.parts.items()}


def values(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32, drawn by numpy: torch's depend on the processor in the last bits."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def described(made: Tensor) -> Numbers:
    flat = made.detach().double().flatten()
    return {"mean": [float(flat.mean())], "std": [float(flat.std(correction=0))],
            "values": flat[:: max(1, len(flat) // 6)].tolist()}


def pairs(count: int, seed: int) -> Pairs:
    noise, labels = values(count, *SPEC.shape, seed=seed), torch.arange(count) % 2
    samples = (noise.roll(1, dims=3) / 2 + labels[:, None, None, None] - 0.5).tanh()
    states = torch.stack([0.7 * noise + 0.6 * samples, 0.3 * noise + 1.4 * samples], dim=1)
    return Pairs(noise, samples, labels, states.half(), torch.tensor([0.7, 0.3]))


DATA, HELD_OUT = pairs(32, 0), pairs(8, 1)


# Pairs: teachers, their networks and preconditioning, solvers and grids

HEUN: Raw = {"kind": "heun", "steps": 4}
MLP: Raw = {"kind": "mlp", "width": 16, "blocks": 1}
UNET: Raw = {"channels": 16, "multipliers": [1, 1], "blocks": 1, "attention": [4]}
NETWORKS: dict[str, Raw] = {
    "mlp": MLP,
    **{kind: {"kind": kind, **UNET} for kind in ("unet", "song_unet", "dhariwal_unet")},
    "edm2_unet": {"kind": "edm2_unet", "channels_per_head": 8, **UNET},
    "transformer": {"kind": "transformer", "width": 32, "blocks": 1, "heads": 2},
}
NCSNPP: Raw = {**NETWORKS["song_unet"], "time_embedding": "fourier", "encoder": "residual",
               "resample": "binomial", "time_width": 2}
SOLVERS: dict[str, Raw] = {
    **{kind: {"kind": kind, "steps": 4}
       for kind in ("euler", "heun", "midpoint", "rk4", "dpmpp_2m")},
    "dopri5": {"kind": "dopri5", "tolerance": 1e-3}}
GRIDS: dict[str, Raw] = {
    kind: {"kind": kind} for kind in ("karras", "log_snr", "ve", "vp", "iddpm")}
ALPHAS = [0.999, 0.98, 0.9, 0.7, 0.4, 0.2, 0.05, 0.01]


def denoiser(network: Raw = MLP, **more: Any) -> Raw:
    return {"kind": "denoiser", "network": network, **more}


def discrete(prediction: str) -> Raw:
    return {"kind": "discrete", "prediction": prediction, "alphas_cumprod": ALPHAS}


def stepping(spacing: str, end: str, steps: int = 4, **more: int) -> Raw:
    grid = {"kind": "timesteps", "spacing": spacing, "end": end, **more}
    return {**HEUN, "steps": steps, "grid": grid}


PAIRS: dict[str, Raw] = {
    **{f"denoiser, {name}": {"teacher": denoiser(network), "solver": HEUN}
       for name, network in NETWORKS.items() if name != "mlp"},
    **{f"denoiser, {name}": {"teacher": denoiser(), "solver": solver}
       for name, solver in SOLVERS.items()},
    **{f"flow, {name}": {"teacher": {"kind": "flow_matching", "network": MLP}, "solver": solver}
       for name, solver in SOLVERS.items()},
    "guided": {"teacher": denoiser(NETWORKS["song_unet"]), "solver": HEUN,
               "guidance": {"kind": "classifier_free", "scale": 3.0}},
    "guided by another": {"teacher": denoiser(), "solver": HEUN,
                          "guidance": {"kind": "autoguidance", "scale": 2.0}},
    "denoiser, ncsnpp": {"teacher": denoiser(NCSNPP), "solver": HEUN},
    "denoiser, skips": {"teacher": denoiser({**NCSNPP, "encoder": "skip", "decoder": "skip"}),
                        "solver": HEUN},
    "flow, as it is": {"teacher": {"kind": "flow_matching", "network": MLP, "normalised": False},
                       "solver": {**HEUN, "grid": {"kind": "uniform"}}},
    **{f"grid {kind}": {"teacher": denoiser(), "solver": {**HEUN, "grid": grid}}
       for kind, grid in GRIDS.items()},
    **{f"preconditioning {kind}": {"teacher": denoiser(preconditioning={"kind": kind}),
                                   "solver": HEUN} for kind in ("none", "vp", "ve", "iddpm")},
    **{f"preconditioning {prediction}": {
        "teacher": denoiser(preconditioning=discrete(prediction)), "solver": solver}
       for prediction, solver in (("epsilon", stepping("leading", "zero", 8)),
                                  ("v_prediction", stepping("trailing", "lowest")),
                                  ("sample", stepping("linspace", "zero")))},
    "stepping as Euler of diffusers": {
        "teacher": denoiser(preconditioning={**discrete("epsilon"), "start": "noise"}),
        "solver": stepping("linspace_euler", "zero", 8)},
    **{f"stepping {spacing}": {"teacher": denoiser(preconditioning=discrete("epsilon")),
                               "solver": stepping(spacing, "zero", 3, offset=1)}
       for spacing in ("leading_dpm", "linspace_dpm")},
    "exact mixture": {"teacher": {"kind": "gaussian_mixture", "components": 2}, "solver": HEUN},
    "exact data": {"teacher": {"kind": "finite_data", "count": 32}, "solver": HEUN},
}


def filled(model: nn.Module, seed: int = 0) -> None:
    """Give a model weights that torch's generators do not decide, and none of which is 0."""
    for place, (_, weight) in enumerate(sorted(model.named_parameters())):
        inputs = weight[0].numel() if weight.ndim else 1
        drawn = values(*weight.shape, seed=seed + place).double() / max(inputs, 4) ** 0.5
        weight.data.copy_(drawn)


def teacher_of(config: TeacherConfig, seed: int = 0) -> Teacher:
    with seeded(seed):  # EDM2's frequencies are drawn, and no parameters
        teacher = build_teacher(config, SPEC)
    if isinstance(teacher, GaussianMixture | FiniteData):
        fitted = fit_mixture if isinstance(teacher, GaussianMixture) else fit_data
        teacher = fitted(SPEC, DATA.samples, DATA.labels)
    filled(teacher, seed)
    teacher.label_dropout = 0.1
    return teacher.eval()


def run_pairs(
    teacher: TeacherConfig, solver: SolverConfig, guidance: GuidanceConfig | None
) -> Numbers:
    plain = teacher_of(teacher)
    weak = teacher_of(teacher, 1) if guidance and guidance.kind == "autoguidance" else None
    model = guided(plain, weak, guidance)
    config = PairsConfig(
        solver=solver, guidance=guidance, train=1, validation=2, test=2, batch=4, shard=4, chunk=4,
        precision="fp32", noise_dtype="float32", sample_dtype="float32")
    block, nfe = sample_batch(plan_store(config, model, "0" * 64, None, 7, CPU), model, 0, CPU)
    flat = block.sample.astype(np.float64).reshape(-1)
    # An adaptive solver may take one step more on another processor.
    return {"nfe": [0 if solver.kind == "dopri5" else nfe], "mean": [float(flat.mean())],
            "std": [float(flat.std())], "values": flat[::150].tolist()}


# Training of teachers

TEACHERS: dict[str, Raw] = {
    **{f"denoiser, {name}": {"teacher": denoiser(network)} for name, network in NETWORKS.items()},
    "flow": {"teacher": {"kind": "flow_matching", "network": MLP}},
    "mirrored": {"teacher": denoiser(), "augmentation": {"flip": "mirror"}},
    **{name: {"teacher": denoiser({**NETWORKS["song_unet"], "augment_dim": 9}),
              "augmentation": augmentation}
       for name, augmentation in {"flipped": {"flip": "augment"},
                                  "warped": {"probability": 0.5}}.items()},
}


def run_teachers(teacher: TrainableConfig, augmentation: AugmentationConfig | None) -> Numbers:
    model = teacher_of(teacher)
    task = TeacherTask(model, TRAINING, DATA.samples, DATA.labels, 0, label_dropout=0.2,
                       augmentation=augmentation)
    curves = trained(task, 2)
    with torch.no_grad():
        time = model.time_at(torch.tensor(0.5, dtype=torch.float64))
        made = task.ema.shadow.denoise(HELD_OUT.noise, time, HELD_OUT.labels)
    return curves | described(made)


def trained(task: Task, steps: int) -> Numbers:
    """The curves of the first steps."""
    curves = [task.seeded_step(step) for step in range(steps)]
    return {name: [float(curve[name]) for curve in curves]
            for name in curves[0] if not name.endswith("skipped")}


# Students: forms, operators, losses

STUDENT: Raw = {"kind": "kdm", "encoder": MLP, "decoder": MLP, "latent": 8,
                "operator": {"kind": "dense"}}
NO_OTHERS: Raw = {"adversarial": 0.0}
SMALL_UNET: Raw = {"kind": "unet", "channels": 16, "multipliers": [1, 1], "blocks": 1,
                   "attention": []}
FACTORISED, CONTINUOUS = ({"kind": kind} for kind in ("factorised", "continuous"))


def form(operator: Raw | None = None, **changes: Any) -> Raw:
    operators = {} if operator is None else {"operator": operator}
    return {"student": {**STUDENT, **operators, **changes}, "losses": NO_OTHERS}


def loss(student: Raw | None = None, **losses: Any) -> Raw:
    return {"student": {**STUDENT, **(student or {})}, "losses": {**NO_OTHERS, **losses}}


def denoising(student: Raw, **losses: float) -> Raw:
    unused = dict.fromkeys(("reconstruction", "latent", "latent_noise"), 0.0)
    return {"student": student, "losses": {**NO_OTHERS, **unused, **losses}}


def adversary(**fields: Any) -> Raw:
    return loss(adversarial=0.5, adversary={"channels": 4, **fields})


STUDENTS: dict[str, Raw] = {
    "kdm": form(),
    "kdm-f": form(FACTORISED),
    "kdm-f, estimated": form({**FACTORISED, "estimate": True}),
    "kdm-f, spectrum gradual": form({**FACTORISED, "spectrum": {"kind": "gradual"}}),
    "continuous": form(CONTINUOUS, latent=7),
    "continuous, spectrum uniform": form({**CONTINUOUS, "spectrum": {"kind": "uniform"}}),
    "dense, spectrum circle": form({"kind": "dense", "bias": False,
                                    "spectrum": {"kind": "circle"}}),
    "no operator": form({"kind": "identity"}),
    "no encoder of data": {"student": {**STUDENT, "encoders": "noise"},
                           "losses": {**NO_OTHERS, "reconstruction": 0.0, "latent": 0.0}},
    "shared": loss({"encoders": "shared", "operator": CONTINUOUS}, endpoint=1.0),
    "direct": denoising({"kind": "direct", "denoiser": denoiser()}),
    "direct, states": denoising({"kind": "direct", "denoiser": {
        "kind": "flow_matching", "network": MLP}}, endpoint=0.5),
    **{f"hierarchical, {kind}": denoising(
        {"kind": "hierarchical", "denoiser": denoiser(SMALL_UNET), "decoder_time": time,
         "operator": {"kind": kind, "per_pixel": kind == "skips"}}, **terms)
       for kind, time, terms in (("skips", "target", {"endpoint": 0.5, "trajectory": 0.5}),
                                 ("resolutions", "input", {}), ("none", "target", {}))},
    "direct, get": denoising({"kind": "direct", "denoiser": denoiser(
        {"kind": "get", "width": 16, "heads": 2, "mlp_ratio": 2, "iterations": 3})}),
    "rectified flow": denoising({"kind": "rectified_flow", "denoiser": denoiser()}),
    "mean flow": denoising({"kind": "mean_flow", "denoiser": denoiser()}),
    "mean flow, jvp": denoising({"kind": "mean_flow", "denoiser": denoiser(),
                                 "derivative": "jvp", "truncate": 0.5}),
    "timed, no control": form(timed=True, control=False),
    "dynamic mode decomposition": form(encoder={"kind": "identity"}, decoder={"kind": "identity"},
                                       latent=192),
    "images": form(encoder=SMALL_UNET, decoder=SMALL_UNET, latent=64),
    "projected": form(encoder=SMALL_UNET, decoder=SMALL_UNET, projected_channels=1),
    "from a teacher": {**form(timed=True), "start": denoiser()},
    "pseudo_huber": loss(distance={"kind": "pseudo_huber"}, stop_gradient=True),
    "pseudo_huber, wide": loss(distance={"kind": "pseudo_huber", "c": 0.5}),
    "l1": loss(distance={"kind": "l1"}),
    "lpips, vgg": loss(distance={"kind": "lpips", "resolution": 16}),
    "lpips, alex": loss(distance={"kind": "lpips", "net": "alex", "resolution": 32, "mse": 0.5,
                                  "pooling": "average"}),
    "trajectory": loss({"encoders": "shared", "operator": FACTORISED}, trajectory=1.0),
    "adversary kdm": adversary(),
    "adversary d2o": adversary(recipe="d2o"),
    "adversary r3gan": adversary(recipe="r3gan"),
    "adversary hinge": adversary(loss="hinge", real="data", r1=0.1, r1_every=2,
                                 augment=["colour", "translation", "cutout"]),
    "adversary features": adversary(network="features", loss="relativistic", r2=0.1, features=[
        {"kind": "alexnet", "resolution": 32}, {"kind": "classifier"}, {"kind": "teacher"}]),
    "drifting": loss(drifting=1.0),
    "drifting, features": loss(drifting=1.0, drift={
        "real": "data", "features": [{"kind": "classifier"}], "temperatures": [0.1]}),
}


def run_students(
    student: StudentConfig, losses: LossConfig, start: TeacherConfig | None
) -> Numbers:
    with seeded(0):
        model = student.build(SPEC)
    taken: Numbers = {}
    if start is not None:
        with TemporaryDirectory() as folder:
            save_teacher(Path(folder), teacher_of(start))
            taken = {"taken": [start_at_teacher(model, Path(folder))[0]]}
    frozen = Frozen(lambda: teacher_of(TypeAdapter(TeacherConfig).validate_python(denoiser())),
                    lambda: classifier()[0])
    given = Given(RealSamples(to_uint8(-DATA.samples), DATA.labels, 2), frozen)
    task = StudentTask(model, losses, TRAINING, ResidentReader.of(DATA, 8, 0), HELD_OUT, 0, given)
    curves, best = trained(task, 3), task.ema.shadow
    figures = {name: [value] for name, value in task.validate().items()}
    if losses.takes_states:
        twice = best.generate(HELD_OUT.noise, HELD_OUT.labels, "fp32", 2)
        figures["two steps"] = described(twice)["values"]
    if (eigenvalues := best.eigenvalues()) is not None:
        figures["eigenvalues"] = eigenvalues.abs().double().sort().values[:8].tolist()
    return {**taken, **curves, **figures,
            **described(best.generate(HELD_OUT.noise, HELD_OUT.labels, "fp32"))}


# Optimisers and averages

TRAININGS: dict[str, Raw] = {
    name: {"training": {"steps": 6, "batch": 1, "lr": 0.1, "precision": "fp32", **changes}}
    for name, changes in {
        "adam": {},
        "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "betas": [0.5, 0.9], "ema": 0.2},
        "cosine, zero": {"schedule": "cosine", "warmup": 2, "nonfinite": "zero"},
        "linear, clipped": {"schedule": "linear", "clip": 0.5},
    }.items()}


class Bowl(Task):
    """Learns a vector from noisy gradients, of which step 3 has one that is infinite."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config, self.seed = config, 0
        self.model = nn.Linear(4, 1, bias=False)
        filled(self.model)
        self.ema = Averages(self.model, config)
        self.optimizer = ScheduledOptimizer(self.model.parameters(), config)
        self.modules = {"model": self.model, "ema": self.ema}
        self.optimizers = {"optimizer": self.optimizer}

    def step(self, step: int) -> dict[str, Tensor]:
        noise = torch.rand(1, 4, generator=step_generator(CPU, self.seed, step))
        if step == 3:
            noise[0, 0] = torch.inf
        found = (0.5 * self.model.weight.square() + noise * self.model.weight).sum()
        self.optimizer.backward(found)
        curves = self.optimizer.update(step)
        self.ema.update(self.model, step)
        return {"loss": found, **curves}

    def validate(self) -> dict[str, float]:
        return {"validation_mse": float(self.ema.shadow.weight.detach().square().sum())}


def run_trainings(training: TrainingConfig) -> Numbers:
    task = Bowl(training)
    with TemporaryDirectory() as folder:
        record = fit(task, Path(folder) / "checkpoint.safetensors", "golden")[-1]
    return {**{name: [value] for name, value in record.items() if name != "step"},
            "weights": task.model.weight.flatten().tolist(),
            "average": task.ema.shadow.weight.flatten().tolist()}


# Extractors

EXTRACTORS: dict[str, Raw] = {kind: {"extractor": {"kind": kind}}
                              for kind in ("vgg16", "classifier")}


def classifier(steps: int = 0) -> tuple[Classifier, Numbers]:
    """The run's own, after so many steps, and their curves."""
    with seeded(0):
        model = Classifier(ClassifierConfig(channels=8, features=8), SPEC)
    filled(model)
    task = ClassifierTask(model, TRAINING, DATA.samples, DATA.labels, 0)
    return model, trained(task, steps) if steps else {}


def run_extractors(extractor: ExtractorConfig) -> Numbers:
    curves: Numbers = {}
    network: Extractor
    if isinstance(extractor, ReferenceConfig):
        model, curves = classifier(3)
        network = ClassifierExtractor(model, "")
    else:
        network = build_extractor(extractor, {}, CPU)
    found = extract(network, to_uint8(HELD_OUT.samples))
    seen = {} if found.probabilities is None else {
        "probabilities": found.probabilities[:, 0].tolist()}
    return {**curves, **seen, **described(torch.from_numpy(found.features))}


# Figures of evaluation

COUNTS = resampling(96, 50, 0)
A, B = values(96, 4, seed=2), 0.8 * values(80, 4, seed=3) + 0.3


def probabilities(seed: int, count: int = 96) -> np.ndarray[Any, Any]:
    return values(count, 3, seed=seed).mul(2).softmax(dim=1).numpy()


def estimates(found: Mapping[str, Estimate]) -> Numbers:
    """Each figure with its interval."""
    return {name: [one.value, *(one.interval() or ())] for name, one in found.items()}


def in_features() -> Numbers:
    found = compare_features(Features(A.numpy(), probabilities(4)), reference_of(B.numpy(), "B"),
                             COUNTS, 0)
    assert found.extrapolation is not None
    return estimates(found.estimates) | {"distances": found.extrapolation.distances}


def of_points() -> Numbers:
    return estimates(compare_points(A[:, :2].numpy(), B[:, :2].numpy(), COUNTS, 0, 16, on_board))


def of_pairs() -> Numbers:
    counts, sides = resampling(8, 50, 0), (HELD_OUT.samples, DATA.samples[:8])
    found = {"mse": paired_mse(*sides, counts)} | {
        f"lpips_{net}": paired_lpips(LPIPS(32, net), *sides, counts, batch=4)
        for net in ("vgg", "alex")}
    return (estimates({name: one.matched for name, one in found.items()})
            | estimates({f"{name}_permuted": one.permuted for name, one in found.items()}))


def of_labels() -> Numbers:
    ours, theirs, wanted = probabilities(4), probabilities(5), np.arange(96) % 3
    shift = label_shift(np.array([90, 10, 20]), np.array([40, 30, 50]))
    assert shift is not None
    return estimates({
        "label_accuracy": label_accuracy(ours, wanted, COUNTS),
        "label_agreement": label_agreement(ours, theirs, COUNTS),
        "spread": within_class_variance(A, torch.from_numpy(wanted), COUNTS),
    }) | {"coincidence": [coincidence(ours.argmax(axis=1), theirs.argmax(axis=1))],
          "label_shift": [shift]}


def of_denoising() -> Numbers:
    info = DatasetInfo(source="npz", samples=SPEC, class_names=SPEC.label_names, train=32, test=32)
    test = pairs(32, 2)
    data = Dataset(DATA.samples.numpy(), DATA.labels.numpy(), test.samples.numpy(),
                   test.labels.numpy(), info)
    teacher = fit_data(SPEC, DATA.samples, DATA.labels)
    found = check_denoising(teacher, data, 0, unlabelled=True)
    assert found is not None
    return {name: list(leaves(value)) for name, value in found.model_dump().items()}


def leaves(value: Any) -> Iterator[float]:
    """All numbers of nested dictionaries and lists."""
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    elif value is not None:
        yield float(value)


FIGURES: dict[str, Callable[[], Numbers]] = {
    "features": in_features, "points": of_points, "pairs": of_pairs, "labels": of_labels,
    "denoising": of_denoising}

# All of it

FAMILIES: dict[str, Family] = {
    "pairs": Family({"teacher": TeacherConfig, "solver": SolverConfig, "guidance": GuidanceConfig},
                    PAIRS, run_pairs),
    "teachers": Family({"teacher": TrainableConfig, "augmentation": AugmentationConfig}, TEACHERS,
                       run_teachers),
    "students": Family({"student": StudentConfig, "losses": LossConfig, "start": TeacherConfig},
                       STUDENTS, run_students),
    "trainings": Family({"training": TrainingConfig}, TRAININGS, run_trainings),
    "extractors": Family({"extractor": ExtractorConfig}, EXTRACTORS, run_extractors),
    "figures": Family({"name": str}, {name: {"name": name} for name in FIGURES},
                      lambda name: FIGURES[name]()),
}
ELSEWHERE: dict[type[Config], str] = {
    **dict.fromkeys((DiffusersUNetConfig, DiffusersDiTConfig, TorchCFMUNetConfig,
                     ModuleNetworkConfig),
                    "code of others, with which tests/kdm_core/importers compare"),
    **dict.fromkeys((InceptionConfig, DINOv2Config, CLIPConfig),
                    "weights of others, which test_extractors.py does without"),
}
NO_NUMBERS = {(TrainingConfig, "precision"), (TrainingConfig, "compile")}
NO_FIGURES = {"nfe", "images_per_s", "parameters"}


def parts(annotation: Any) -> Iterator[Any]:
    """A type, and all that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from parts(part)


def offered(annotation: Any) -> Iterator[Choice]:
    """What configurations of a type let choose, all the way down: kinds, options, yes or no."""
    for config in parts(annotation):
        if not isinstance(config, type) or not issubclass(config, Config) or config in ELSEWHERE:
            continue
        for name, field in config.model_fields.items():
            for part in parts(field.annotation):
                found = get_args(part) if get_origin(part) is Literal else ()
                for value in (True, False) if part is bool else found:
                    yield config, name, value
            yield from offered(field.annotation)


def chosen(config: Any) -> Iterator[Choice]:
    """What a configuration has chosen, all the way down."""
    for each in config if isinstance(config, list) else [config]:
        for name, value in each if isinstance(each, Config) else ():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str | bool):
                    yield type(each), name, one
            yield from chosen(value)


@cache
def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}  # type: ignore[no-any-return]


def differences(family: str, name: str, found: Numbers) -> list[str]:
    """What is no longer what it was, in words."""
    known = golden().get(family, {}).get(name)
    if known is None:
        return ["has no golden numbers yet"]
    said = [f"has no '{number}' any more" for number in known if number not in found]
    for number, value in found.items():
        if number not in known:
            said.append(f"has no golden '{number}' yet")
        elif not same(family, value, known[number]):
            said.append(f"'{number}' is {rounded(value)}, and was {known[number]}")
    return said


def same(family: str, found: Sequence[float], known: Sequence[float]) -> bool:
    """Whether numbers agree as they do on other processors, with other numbers of threads."""
    within = 2e-3 if family == "pairs" else 1e-3  # of which dopri5 chooses its steps
    return len(found) == len(known) and np.allclose(found, known, rtol=within, atol=within)


def rounded(numbers: Sequence[float]) -> list[float]:
    return [float(f"{number:.5g}") for number in numbers]


def run(family: str, name: str) -> Numbers:
    one = FAMILIES[family]
    return one.run(**one.configs(name))


CASES = [(family, name) for family, one in FAMILIES.items() for name in one.cases]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_numbers_are_golden(family: str, name: str) -> None:
    found = run(family, name)
    said = "".join(f"\n  {family}, {name}: {line}" for line in differences(family, name, found))
    pairs_too = ("the same specification gives other pairs: raise MAKER in kdm_core/pairs/spec.py, "
                 "then " if family == "pairs" else "")
    assert not said, f"{said}\nIf that change is meant, {pairs_too}renew the numbers: {RENEW}"
    assert np.std(found.get("values", [0, 1])) > 0.01  # no case is trivial


def test_every_kind_has_golden_numbers() -> None:
    wanted = {choice for one in FAMILIES.values() for kind in one.parts.values()
              for choice in offered(kind)}
    had = {choice for family, name in CASES
           for config in FAMILIES[family].configs(name).values() for choice in chosen(config)}
    missing = [f"{config.__name__}.{field}: {value}" for config, field, value in wanted - had
               if (config, field) not in NO_NUMBERS]
    names = {name for case in golden()["figures"].values() for name in case}
    missing += [f"figure {name}" for name in {*IN_FEATURES, *PLAIN} - NO_FIGURES - names]
    assert not missing, (f"no golden numbers of {', '.join(sorted(missing))}: add cases to the "
                         f"tables of tests/test_golden.py, then {RENEW}")


def test_the_file_is_of_these_cases() -> None:
    known = [(family, name) for family in FAMILIES for name in golden()[family]]
    assert (golden()["maker"], sorted(known)) == (MAKER, sorted(CASES)), f"renew: {RENEW}"


def renew() -> None:
    """Write the numbers. What agrees stays as it was, so that the file shows what does not.

    Other pairs than before are refused as long as they have the same `MAKER`.
    """
    written: dict[str, Any] = {}
    for family, name in CASES:
        found, known = run(family, name), golden().get(family, {}).get(name)
        said = differences(family, name, found)
        for line in said:
            print(f"{family}, {name}: {line}")
        if said and known and family == "pairs" and golden()["maker"] == MAKER:
            sys.exit("other pairs than before: raise MAKER in kdm_core/pairs/spec.py first")
        numbers = {number: known[number] if known and number in known and
                   same(family, value, known[number]) else rounded(value)
                   for number, value in found.items()}
        written.setdefault(family, {})[name] = numbers
    families = [f' "{family}": {{\n' + ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items()) + "\n }"
        for family, cases in written.items()]
    FILE.write_text(f'{{\n "maker": {MAKER},\n' + ",\n".join(families) + "\n}\n")


if __name__ == "__main__":
    renew()
