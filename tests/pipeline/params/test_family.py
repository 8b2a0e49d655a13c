"""Students of several kinds in params.yaml: what follows from the kind, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kdm_core.errors import KDMError
from kdm_core.networks import UNetConfig
from kdm_core.samples import SampleSpec
from kdm_core.students import DirectConfig, KDMConfig
from kdm_core.teachers import DenoiserConfig, build_teacher, save_teacher
from kdm_core.teachers.exact import fit_mixture
from pipeline.kdm.checks.storage import models
from pipeline.params.fitting import check_against, check_source
from pipeline.params.reading import ParamsError
from pipeline.params.run import parse_params
from tests.pipeline.params.test_params import preset

IMAGES = SampleSpec(kind="image", shape=[1, 8, 8])
TRAINING = preset()["students"]["kdm"]["training"]


def with_student(student: dict[str, Any], **sections: Any) -> dict[str, Any]:
    values = preset()
    values["students"] = {"one": {"training": TRAINING, **student}}
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return dict(values)


def test_a_kind_is_all_that_a_student_needs() -> None:
    """Network and weights are the teacher's, and losses that it has no use for have no weight."""
    params = parse_params(with_student({"model": {"kind": "direct"}, "then": [
        {"steps": 5, "lr": 1e-4, "losses": {"adversarial": 0.1}}]}))
    check_against(params, IMAGES)
    student = params.students["one"]
    assert isinstance(student.model, DirectConfig) and student.init == "auto"
    for phase in student.phases:
        losses = phase.losses
        assert (losses.reconstruction, losses.latent, losses.latent_noise) == (0, 0, 0)
        assert losses.prediction == 1
    built = [model for model, training in models(params, IMAGES)]
    assert len(built) == 3  # the teacher, and a phase each
    with torch.device("meta"):
        theirs = sum(value.numel() for value in built[0].parameters())
        assert sum(value.numel() for value in built[1].parameters()) == theirs


def test_without_a_kind_it_is_the_paper_s() -> None:
    params = parse_params(preset())
    assert isinstance(params.students["kdm"].model, KDMConfig)
    assert params.model_dump()["students"]["kdm"]["model"]["kind"] == "kdm"


@pytest.mark.parametrize(("student", "sections", "message"), [
    ({"model": {"kind": "direct"}, "losses": {"latent": 1.0}}, {},
     "students.one: losses.latent: a student of this kind has no use for it; set it to 0"),
    ({"model": {"kind": "direct"}, "losses": {"endpoint": 1.0}}, {},
     "students.one.losses.endpoint: there are no intermediate states in the pairs; set "
     "pairs.states (4, say)"),
    ({"model": {"kind": "hierarchical", "operator": {"kind": "none"}},
      "losses": {"trajectory": 1.0}},
     {"pairs": {"states": 4}}, "or model.decoder_time: target"),
    ({"model": {"kind": "hierarchical", "denoiser": {
        "kind": "denoiser", "network": {"kind": "identity"}}}}, {}, "'identity' is none of"),
    ({"model": {"kind": "straight"}}, {},
     "students.one.model.kind: 'straight' is none of kdm, direct, hierarchical"),
    ({"model": {"kind": "direct", "width": 3}}, {}, "students.one.model.width: unknown key"),
    ({"model": {"encoder": {"kind": "mlp"}, "decoder": {"kind": "mlp"}, "latent": 8,
                "encoders": "noise", "operator": {"kind": "identity"}},
      "losses": {"reconstruction": 0.0, "latent": 0.0}}, {}, "write model: {kind: direct}"),
])
def test_what_a_kind_cannot(
    student: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParamsError) as caught:
        parse_params(with_student(student, **sections))
    assert message in str(caught.value)


def test_a_closed_form_has_no_network_to_start_from() -> None:
    teacher = {"source": "exact", "kind": "gaussian_mixture"}
    for student in ({"model": {"kind": "direct"}}, {"model": {"kind": "hierarchical"}}):
        values = with_student(student) | {"teacher": teacher}
        with pytest.raises(ParamsError, match="closed form without a network; give the"):
            parse_params(values)
        values["students"]["one"]["model"]["denoiser"] = {
            "kind": "denoiser", "network": {"kind": "mlp"}}
        check_against(parse_params(values), IMAGES)


def test_a_network_that_does_not_fit_the_samples_is_named() -> None:
    student = {"model": {"kind": "hierarchical", "denoiser": {
        "kind": "denoiser", "network": {"kind": "unet", "multipliers": [1, 2]}}}}
    with pytest.raises(ParamsError, match=r"students\.one\.model\..*divisible by 2"):
        check_against(parse_params(with_student(student)),
                      SampleSpec(kind="image", shape=[1, 7, 7]))


def test_an_imported_teacher_is_what_a_student_of_it_needs(tmp_path: Path) -> None:
    theirs = build_teacher(DenoiserConfig(kind="denoiser", network=UNetConfig(
        kind="unet", channels=8, multipliers=[1], blocks=1, attention=[])), IMAGES)
    save_teacher(tmp_path, theirs)
    values = with_student({"model": {"kind": "hierarchical"}}) | {
        "teacher": {"source": "folder", "folder": str(tmp_path)}}
    params = parse_params(values)
    check_against(params, IMAGES)  # nothing is known of it yet
    check_source(params, IMAGES)
    exact = fit_mixture(IMAGES, torch.randn(4, 1, 8, 8), torch.full((4,), -1))
    save_teacher(tmp_path / "exact", exact)
    values["teacher"]["folder"] = str(tmp_path / "exact")
    with pytest.raises(KDMError, match=r"students\.one\.model\.denoiser: this teacher is a closed"):
        check_source(parse_params(values), IMAGES)
