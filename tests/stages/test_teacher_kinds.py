"""The pipeline with a teacher of every kind: the same params.yaml, only `teacher:` changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import nn
from torchcfm.models.unet.unet import UNetModelWrapper
from typer.testing import CliRunner

from kdm_core.compute import seeded
from kdm_core.errors import KDMError
from kdm_core.networks import SongUNetConfig, build_network
from kdm_core.networks.edm2_unet import EDM2UNet
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers import (
    FlowMatchingConfig,
    build_teacher,
    load_sampled,
    load_teacher,
    save_teacher,
)
from kdm_core.values import to_uint8
from pipeline.kdm.cli import app
from pipeline.params.fitting import check_source
from pipeline.params.run import parse_params
from pipeline.project.files import PRESETS
from tests.support import diffusers_writer, edm2_writer, torchcfm_writer
from tests.support.edm_writer import edm_pickle
from tests.support.project import edit, fails, make_project, repro, succeeds

SHAPE = (1, 8, 8)
DIGITS = SampleSpec(kind="image", shape=list(SHAPE), label_names=[str(i) for i in range(10)])
SONG = {"kind": "song_unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
AFTER = {"teacher", "sample_pairs", "filter_pairs", "train_student@kdm", "evaluate@kdm",
         "study@kdm", "report"}
MODULE = """
import torch
from torch import nn
from torchcfm.models.unet.unet import UNetModelWrapper

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inside = nn.Conv2d(1, width, 3, padding=1)
        self.label = nn.Embedding(10, width)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x, time, labels):
        shown = self.label(labels.clamp(min=0)) * (labels >= 0)[:, None]
        return self.out(torch.tanh(self.inside(x) + shown[:, :, None, None]))
"""
Block = dict[str, Any]


def song() -> nn.Module:
    with seeded(0):
        network = build_network(SongUNetConfig.model_validate(SONG), SHAPE, SHAPE, timed=True,
                                num_classes=10)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network.eval()


def edm(project: Path) -> Block:
    (project / "edm.pkl").write_bytes(edm_pickle(song(), SHAPE, "VPPrecond", classes=10))
    return {"source": "edm", "file": "edm.pkl"}


def edm2(project: Path) -> Block:
    with seeded(0):
        network = EDM2UNet(edm2_writer.TINY, SHAPE, SHAPE, True, 10).eval()
        nn.init.ones_(network.out_gain)
    recorded = edm2_writer.record_precond(network)
    recorded.state["_init_kwargs"] |= {"img_channels": 1}
    with pytest.MonkeyPatch.context() as patch:
        content = edm2_writer.write({"encoder": edm2_writer.RGB, "ema": recorded}, patch)
    (project / "edm2.pkl").write_bytes(content)
    return {"source": "edm2", "file": "edm2.pkl"}


def diffusers(project: Path) -> Block:
    unet = diffusers_writer.unet(sample_size=8, in_channels=1, out_channels=1,
                                      num_class_embeds=10)
    diffusers_writer.write(project / "ddpm", diffusers_writer.diffusers.DDIMScheduler(), unet)
    return {"source": "diffusers", "folder": "ddpm"}


def torchcfm(project: Path) -> Block:
    unet = UNetModelWrapper(
        dim=SHAPE, class_cond=True, num_classes=10,
        **{**torchcfm_writer.SIZES, "attention_resolutions": "4"})
    torchcfm_writer.checkpoint(unet, project / "cfm.pt")
    return {"source": "torchcfm", "file": "cfm.pt",
            **torchcfm_writer.SIZES, "attention_resolutions": [4]}


def state_dict(project: Path) -> Block:
    weights = {name: value.contiguous() for name, value in song().state_dict().items()}
    save_file(weights, project / "song.safetensors")
    return {"source": "state_dict", "file": "song.safetensors",
            "model": {"kind": "flow_matching", "network": SONG}}


def folder(project: Path) -> Block:
    model = FlowMatchingConfig.model_validate({"kind": "flow_matching", "network": SONG})
    with seeded(0):
        save_teacher(project / "shared", build_teacher(model, DIGITS))
    return {"source": "folder", "folder": "shared"}


def module(project: Path) -> Block:
    (project / "mine.py").write_text(MODULE)
    return {"source": "module", "factory": "mine:Net", "arguments": {"width": 8},
            "trust_code": True, "model": {"kind": "flow_matching"}}


def exact(project: Path) -> Block:
    return {"source": "exact", "kind": "gaussian_mixture"}


def trained(project: Path) -> Block:
    training = {"steps": 20, "batch": 32, "precision": "fp32"}
    return {"source": "train", "model": {"kind": "flow_matching", "network": SONG},
            "label_dropout": 0.2, "training": training,
            "guide": {"model": {"kind": "flow_matching", "network": {"kind": "mlp", "width": 16}},
                      "training": training}}


KINDS = [edm, edm2, diffusers, torchcfm, state_dict, folder, module, exact, trained]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke preset with few pairs and one short student, up to its data and classifier."""
    project = make_project(tmp_path_factory.mktemp("kinds") / "project")

    def shorten(values: Any) -> None:
        values["pairs"] |= {"train": 96, "validation": 32, "test": 40, "batch": 40, "shard": 80,
                            "chunk": 80}
        values["students"] = {"kdm": values["students"]["kdm"]}
        values["students"]["kdm"]["training"] |= {"steps": 10, "batch": 32}

    edit(project, shorten)
    assert repro(project, "reference") == {"prepare_data", "reference"}
    return project


def check_pairs(project: Path) -> None:
    """The stored pairs are those of the teacher that lies in data/teacher."""
    store = PairStore.open(project / "data/pairs/pairs.zarr")
    teacher, mark, guide = load_sampled(project / "data/teacher", store.spec.guidance,
                                        trust_code=True)
    assert (store.spec.teacher, store.spec.guide) == (mark, guide)
    block = store.read(range(40))
    found = teacher.sample(torch.from_numpy(block.noise).float(), torch.from_numpy(block.label),
                           store.spec.solver, "fp32")
    assert found.nfe == store.spec.nfe
    difference = to_uint8(found.state).int() - torch.from_numpy(block.sample).int()
    assert int(difference.abs().max()) <= 1
    assert len(np.unique(block.sample)) > 20


# Slow only because each runs five stages; tests/kdm_core/importers test them singly.
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_whole_pipeline_with_every_kind(
    project: Path, kind: Callable[[Path], Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)  # where modules are looked for
    block = kind(project)
    edit(project, lambda values: values.update(teacher=block))
    assert repro(project) == AFTER
    check_pairs(project)
    report = json.loads((project / "reports/report.json").read_text())
    assert report["teacher"]["nfe"] == 9
    assert report["students"]["kdm"]["mse"] > 0
    assert (project / "reports/curves/teacher/plots").exists() == (kind is trained)


def test_guidance(project: Path) -> None:
    """Both kinds, from a teacher that was trained with a guide and with label dropout."""
    block = trained(project)
    edit(project, lambda values: values.update(teacher=block))
    for kind in ("classifier_free", "autoguidance"):
        edit(project, lambda values, k=kind: values["pairs"].update(
            guidance={"kind": k, "scale": 2.0}))
        repro(project, "sample_pairs")
        check_pairs(project)
        spec = PairStore.open(project / "data/pairs/pairs.zarr").spec
        assert spec.nfe == 18
        assert (spec.guide is not None) == (kind == "autoguidance")
    # Whoever takes the folder knows it, too.
    assert load_sampled(project / "data/teacher", None)[0].label_dropout == 0.2
    edit(project, lambda values: values["pairs"].pop("guidance"))


def test_a_wrong_source_stops_before_any_work(project: Path) -> None:
    block = edm(project) | {"file": "missing.pkl"}
    edit(project, lambda values: values.update(teacher=block))
    fails(project, "stages.prepare_data", saying=[
        "[prepare_data] error: teacher.file: missing.pkl does not exist"])


@pytest.mark.parametrize(("change", "spec", "saying"), [
    ({"sha256": "0" * 64}, DIGITS, f"teacher.sha256.*{'0' * 64}"),
    ({"source": "edm2"}, DIGITS, "edm.pkl: .*VPPrecond"),
    ({}, DIGITS.model_copy(update={"label_names": []}),
     "this model takes 10 labels, the data set gives 0.*data.conditional: true"),
    ({}, DIGITS.model_copy(update={"shape": [3, 16, 16]}),
     r"shape \[1, 8, 8\], the data set holds image of shape \[3, 16, 16\]"),
])
def test_what_does_not_fit_the_data_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Block, spec: SampleSpec, saying: str
) -> None:
    monkeypatch.chdir(tmp_path)
    values = YAML(typ="safe").load(PRESETS / "smoke.yaml")
    params = parse_params(values | {"teacher": edm(tmp_path) | change})
    with pytest.raises(KDMError, match=f"(?s){saying}"):
        check_source(params, spec)


@pytest.mark.parametrize("make", [edm, edm2, diffusers, torchcfm, folder])
def test_guidance_that_a_teacher_has_not_learned_stops_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Block]
) -> None:
    """None of these files says that labels were dropped, and the networks of two cannot do
    without."""
    monkeypatch.chdir(tmp_path)
    values = YAML(typ="safe").load(PRESETS / "smoke.yaml")
    values["pairs"]["guidance"] = {"kind": "classifier_free", "scale": 2.0}
    block = make(tmp_path)
    if make is folder:
        teacher, _ = load_teacher(tmp_path / block["folder"])
        teacher.label_dropout = 0.0
        save_teacher(tmp_path / block["folder"], teacher)
    with pytest.raises(KDMError, match=r"pairs\.guidance\.kind.*label_dropout 0"):
        check_source(parse_params(values | {"teacher": block}), DIGITS)
    if make is folder:
        check_source(parse_params(values | {"teacher": block | {"label_dropout": 0.1}}), DIGITS)


@pytest.mark.parametrize("make", [diffusers, module, exact])
def test_a_source_without_a_guide_says_how_to_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Block]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = YAML(typ="safe").load(PRESETS / "smoke.yaml")
    values["pairs"]["guidance"] = {"kind": "autoguidance", "scale": 2.0}
    with pytest.raises(KDMError, match="kdm teacher import, the weaker one in its subfolder guide"):
        parse_params(values | {"teacher": make(tmp_path)})
    diffusers(tmp_path)
    for out in ("both", "both/guide"):
        made = CliRunner().invoke(app, ["teacher", "import", "ddpm", "--kind", "diffusers",
                                        "--out", out])
        assert made.exit_code == 0, made.output
    check_source(parse_params(values | {"teacher": {"source": "folder", "folder": "both"}}), DIGITS)
    pushed = load_sampled(Path("both"), GuidanceConfig(kind="autoguidance", scale=2.0))[0]
    assert pushed.evaluations == 2


def test_a_folder_that_names_code_is_not_run(project: Path) -> None:
    block = module(project)
    edit(project, lambda values: values.update(teacher=block))
    succeeds(project, "dvc", "repro", "teacher")
    (project / "mine.py").write_text("open('owned', 'w')\n" + MODULE)
    block = exact(project)
    edit(project, lambda values: values.update(teacher=block))
    fails(project, "stages.sample_pairs", saying=["teacher.trust_code: true", "mine:Net"])
    assert not (project / "owned").exists()
