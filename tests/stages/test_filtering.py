"""Filtering before distillation: what is left out, why, and that students are not shown it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from ruamel.yaml import YAML

from kdm_core.datasets.base import assemble, unlabelled
from kdm_core.datasets.storage import save_dataset
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.metrics.classifier import Classifier, ClassifierConfig, save_classifier
from kdm_core.metrics.neighbours import nearest
from kdm_core.pairs.filtering.config import CopiesConfig, FilterConfig
from kdm_core.pairs.filtering.copies import make_space
from kdm_core.pairs.filtering.judging import Judge, judged, saturation
from kdm_core.pairs.filtering.rules import load_rules
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block, PairStore
from kdm_core.samples import SampleSpec
from kdm_core.serialization import read_json, write_json
from pipeline.params.reading import ParamsError
from pipeline.params.run import load_params
from pipeline.project.files import PRESETS
from pipeline.runtime import paths
from pipeline.runtime.runner import Stage
from stages import report, train_student
from stages.filter_pairs import stage as filter_pairs
from tests.support.report_project import write_project

CPU = torch.device("cpu")
IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b"])
POINTS = SampleSpec(kind="points", shape=[2])
TEST, VALIDATION, TRAIN = 10, 6, 64
COUNT = TEST + VALIDATION + TRAIN
PLANTED = [TEST, TEST + 3, 30, 31, 57, 79]
RULES = """
import torch

def bright(samples, labels):
    return samples.flatten(1).mean(1) > -0.2

def first_class(samples, labels):
    return labels == 0

def numbers(samples, labels):
    return labels

def short(samples, labels):
    return torch.ones(1, dtype=torch.bool)

def a_list(samples, labels):
    return [True] * len(labels)

def failing(samples, labels):
    raise RuntimeError("out of luck")

constant = 3
"""


def spec_of(samples: SampleSpec, **changes: object) -> StoreSpec:
    return StoreSpec.model_validate({
        "samples": samples, "teacher": None, "noise_seed": None, "noise_dtype": "float32",
        "noise_scale": 80.0, "sample_dtype": "uint8" if samples.kind == "image" else "float32",
        "solver": None, "times": [], "nfe": None, "compute_batch": 8, "precision": "fp32",
        "splits": {"test": TEST, "validation": VALIDATION, "train": TRAIN}, "chunk": 8,
        "shard": 16, "imported": "a test", **changes})


def make_store(path: Path, spec: StoreSpec, samples: NDArray[Any]) -> PairStore:
    generator = np.random.default_rng(7)
    noise = generator.standard_normal((COUNT, *spec.samples.sample_shape), np.float32)
    labels = np.arange(COUNT) % 2 if spec.samples.num_classes else np.full(COUNT, -1)
    store = PairStore.create(path, spec, {})
    for shard in range(spec.num_shards):
        rows = spec.shard_range(shard)
        part = slice(rows.start, rows.stop)
        store.write_shard(shard, Block(noise[part], samples[part].astype(spec.sample_dtype),
                                       labels[part], np.arange(COUNT)[part]))
    return store


def images(count: int, seed: int) -> NDArray[np.uint8]:
    """Noisy images, no two alike."""
    return np.random.default_rng(seed).integers(1, 255, (count, 1, 8, 8)).astype(np.uint8)


def planted() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Training images, and samples of which those in `PLANTED` and a test sample are copies."""
    train, samples = images(40, 0), images(COUNT, 1)
    samples[PLANTED] = train[5 : 5 + len(PLANTED)]
    samples[0] = train[0]
    return train, samples


def judge(config: FilterConfig, train: NDArray[Any], samples: SampleSpec = IMAGES) -> Judge:
    spaces = [make_space(one, train, lambda values: values, 0, CPU) for one in config.copies]
    rules = {path: rule for path, (rule, _) in load_rules(config, samples).items()}
    return Judge(config, spaces, rules, CPU)


def mask_of(store: PairStore, config: FilterConfig, train: NDArray[Any]) -> KeepMask:
    """Measured in parts that are not the shards."""
    judging, rows = judge(config, train, store.spec.samples), judged(store.spec)
    parts = [judging.measure(store, range(start, min(start + 27, rows.stop)))
             for start in range(rows.start, rows.stop, 27)]
    return judging.decide(store, {
        key: np.concatenate([part[key] for part in parts]) for key in parts[0]})


def left_out(mask: KeepMask) -> list[int]:
    return np.flatnonzero(~mask.keep).tolist()


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of rules, which is the current one."""
    (tmp_path / "my_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    return tmp_path


def test_exactly_the_planted_copies_are_left_out(tmp_path: Path) -> None:
    train, samples = planted()
    store = make_store(tmp_path / "p.zarr", spec_of(IMAGES), samples)
    mask = mask_of(store, FilterConfig(copies=[CopiesConfig(threshold=1e-6)]), train)
    assert left_out(mask) == PLANTED
    assert mask.names == ["copies_pixels"]
    assert mask.counts() == {"copies_pixels": len(PLANTED)}
    masked = store.masked(mask)
    assert masked.kept_rows("test").tolist() == list(range(TEST))
    assert masked.kept_rows("validation").tolist() == [11, 12, 14, 15]
    assert masked.kept_rows("train").tolist() == [
        row for row in range(TEST + VALIDATION, COUNT) if row not in PLANTED]


@pytest.mark.parametrize("quantile, count", [(6 / 70, 6), (0.5, 35), (0.001, 1), (0.999, 70)])
def test_a_quantile_leaves_out_the_nearest(tmp_path: Path, quantile: float, count: int) -> None:
    train, samples = planted()
    samples[np.array(PLANTED)] ^= np.arange(len(PLANTED), dtype=np.uint8)[:, None, None, None]
    store = make_store(tmp_path / "p.zarr", spec_of(IMAGES), samples)
    config = FilterConfig(copies=[CopiesConfig(quantile=quantile)])
    if count == 70:
        with pytest.raises(DataError, match="no validation pair is left of 6.*copies_pixels"):
            mask_of(store, config, train)
        return
    mask = mask_of(store, config, train)
    distance = nearest(samples[TEST:], train).distance
    assert sorted(left_out(mask)) == sorted((TEST + distance.argsort()[:count]).tolist())


def test_the_threshold_is_relative_to_training_images(tmp_path: Path) -> None:
    train, samples = planted()
    distances = np.sqrt(np.square((train[:, None].astype(float) - train) / 127.5).mean((2, 3, 4)))
    np.fill_diagonal(distances, np.inf)
    median = float(np.median(distances.min(1)))
    space = make_space(CopiesConfig(threshold=1.0), train, lambda values: values, 0, CPU)
    assert space.limit(np.zeros(3)) == pytest.approx(median, rel=1e-6)
    store = make_store(tmp_path / "p.zarr", spec_of(IMAGES), samples)
    mask = mask_of(store, FilterConfig(copies=[CopiesConfig(threshold=1.0)]), train)
    near = nearest(samples[TEST:], train).distance <= median
    assert left_out(mask) == (TEST + np.flatnonzero(near)).tolist()
    assert len(PLANTED) < near.sum() < len(near)
    with pytest.raises(DataError, match="two training samples"):
        make_space(CopiesConfig(threshold=1.0), train[:1], lambda values: values, 0, CPU)


def test_copies_of_points_are_those_of_coordinates(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    train = generator.standard_normal((500, 2)).astype(np.float32)
    samples = generator.standard_normal((COUNT, 2)).astype(np.float32)
    samples[PLANTED] = train[100 : 100 + len(PLANTED)]
    store = make_store(tmp_path / "p.zarr", spec_of(POINTS), samples)
    mask = mask_of(store, FilterConfig(copies=[CopiesConfig(threshold=1e-4)]), train)
    assert left_out(mask) == PLANTED


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([1.0, 100.0]))
def test_nearest_is_brute_force(seed: int, chunk: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    train = (generator.normal(size=(11, 3)) + shift).astype(np.float32)
    samples = (generator.normal(size=(7, 3)) + shift).astype(np.float32)
    samples[2] = train[4]
    distances = np.sqrt(np.square(samples[:, None].astype(float) - train).mean(2))
    hits = nearest(samples, train, chunk=chunk)
    np.testing.assert_allclose(hits.distance, distances.min(1), rtol=1e-3, atol=1e-6)
    assert hits.distance[2] == 0


def test_images_at_the_ends_of_the_range(tmp_path: Path) -> None:
    samples = images(COUNT, 1)
    samples[20, :, :4] = 255
    samples[21, :, 4:] = 0
    samples[22, :, :4, :] = 255
    samples[22, :, 4, 0] = 0
    config = FilterConfig(saturated=0.5)
    mask = mask_of(make_store(tmp_path / "p.zarr", spec_of(IMAGES), samples), config, samples)
    assert left_out(mask) == [22]
    floats = samples.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(saturation(floats), saturation(samples))
    assert saturation(samples)[20:23].tolist() == [0.5, 0.5, 33 / 64]
    spec = spec_of(IMAGES, sample_dtype="float32")
    beyond = make_store(tmp_path / "q.zarr", spec, floats * np.float32(1.1))
    assert 22 in left_out(mask_of(beyond, config, samples))


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    """In a store that others wrote: ours refuses them."""
    train, samples = planted()
    spec = spec_of(IMAGES, sample_dtype="float32")
    store = make_store(tmp_path / "p.zarr", spec, samples / np.float32(127.5) - np.float32(1))
    store.arrays["sample"][40, 0, 1, 1] = np.nan
    store.arrays["noise"][41, 0, 7, 7] = np.inf
    copies = [CopiesConfig(quantile=0.2)]
    with pytest.raises(DataError, match="1 samples .* not finite; set it to true"):
        mask_of(store, FilterConfig(copies=copies), train)
    mask = mask_of(store, FilterConfig(not_finite=True, copies=copies), train)
    assert mask.names == ["not_finite", "copies_pixels"]
    assert np.flatnonzero(mask.reasons & 1).tolist() == [40, 41]
    assert not mask.reasons[40] & 2
    assert mask.counts()["copies_pixels"] == 14  # of 69 with finite samples


def test_rules_of_the_users(tmp_path: Path, rules: Path) -> None:
    samples = images(COUNT, 1)
    samples[[5, 17, 50]] = 40
    config = FilterConfig(rules=["my_rules:bright", "my_rules:first_class"], trust_code=True)
    store = make_store(tmp_path / "p.zarr", spec_of(IMAGES), samples)
    mask = mask_of(store, config, samples)
    assert mask.names == ["my_rules:bright", "my_rules:first_class"]
    assert np.flatnonzero(mask.reasons & 1).tolist() == [17, 50]
    assert np.flatnonzero(mask.reasons & 2).tolist() == list(range(11, COUNT, 2))


@pytest.mark.parametrize("name, message", [
    ("my_rules:numbers", "torch.int64"), ("my_rules:short", r"shape \(1,\)"),
    ("my_rules:a_list", "returned list"), ("my_rules:failing", "RuntimeError: out of luck"),
    ("my_rules:constant", "is a int and no function"), ("my_rules:absent", "has no absent"),
    ("no_such_module:rule", "importing no_such_module"),
])
def test_broken_rules_are_one_message(rules: Path, name: str, message: str) -> None:
    config = FilterConfig(rules=[name], trust_code=True)
    with pytest.raises(KDMError, match=f"^rules: {name}:? .*{message}"):
        load_rules(config, IMAGES)


def test_changed_code_is_another_rule(rules: Path) -> None:
    """So that it does not go on with the work of the former."""
    config = FilterConfig(rules=["my_rules:bright"], trust_code=True)
    before = load_rules(config, IMAGES)["my_rules:bright"].sha256
    (rules / "my_rules.py").write_text(RULES + "# changed\n")
    assert load_rules(config, IMAGES)["my_rules:bright"].sha256 != before != ""


def test_code_is_not_run_without_trust(rules: Path) -> None:
    (rules / "canary.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    with pytest.raises(ValidationError, match="set trust_code: true"):
        FilterConfig(rules=["canary:rule"])
    forced = FilterConfig.model_construct(rules=["canary:rule"], trust_code=False)
    with pytest.raises(KDMError, match="^trust_code: canary:rule is code .*if you trust it"):
        load_rules(forced, IMAGES)
    assert not Path("ran").exists()


@pytest.mark.parametrize("path", [
    "os.system", "os:", ":system", "../evil:rule", "a b:c", "__import__('os'):system", "x:y:z",
    "package.module:function()", "package/module:function", "-m:rule", ""])
def test_hostile_paths_of_rules(path: str) -> None:
    with pytest.raises(ValidationError):
        FilterConfig(rules=[path], trust_code=True)


@pytest.mark.parametrize("values, message", [
    ({"copies": [{}]}, "quantile, one of the two"),
    ({"copies": [{"threshold": 0.5, "quantile": 0.1}]}, "one of the two"),
    ({"copies": [{"threshold": 0.5}, {"quantile": 0.1}]}, "copies_pixels stands there twice"),
    ({"copies": [{"quantile": 1.5}]}, "less than 1"),
    ({"copies": [{"features": {"kind": "resnet"}, "quantile": 0.5}]}, "resnet"),
    ({"rules": ["a:b", "a:b"], "trust_code": True}, "a:b stands there twice"),
    ({"rules": [f"a:b{i}" for i in range(17)], "trust_code": True}, "17 reasons"),
    ({"saturated": 1.5}, "less than 1"),
    ({"copy": []}, "copy"),
])
def test_what_a_filter_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FilterConfig.model_validate(values)


def test_a_mask_of_other_pairs_is_refused(tmp_path: Path) -> None:
    train, samples = planted()
    one = make_store(tmp_path / "p.zarr", spec_of(IMAGES), samples)
    other = make_store(tmp_path / "q.zarr", spec_of(IMAGES, imported="another"), samples)
    mask = mask_of(one, FilterConfig(copies=[CopiesConfig(threshold=1e-6)]), train)
    mask.save(tmp_path / "keep.zarr")
    loaded = KeepMask.load(tmp_path / "keep.zarr")
    assert left_out(loaded) == PLANTED
    with pytest.raises(MismatchError, match="filter again"):
        other.masked(loaded)


def test_what_the_stores_own_mask_leaves_out_stays_left_out(tmp_path: Path) -> None:
    train, samples = planted()
    store = make_store(tmp_path / "p.zarr", spec_of(IMAGES), samples)
    reasons = np.zeros(COUNT, np.uint16)
    reasons[[2, 40, 57]] = 1, 2, 3  # a test pair, another one, and one that is planted
    KeepMask(store.spec.fingerprint, ["blurred", "copies_pixels"], reasons).write(
        zarr.open_group(tmp_path / "p.zarr"))
    mask = mask_of(PairStore.open(tmp_path / "p.zarr"),
                   FilterConfig(copies=[CopiesConfig(threshold=1e-6)]), train)
    assert mask.names == ["blurred", "copies_pixels"]
    assert left_out(mask) == sorted([*PLANTED, 40])
    assert mask.counts() == {"blurred": 1, "copies_pixels": 7}


# The stage.


def edit(change: Callable[[Any], None]) -> None:
    yaml = YAML()
    values = yaml.load(Path("params.yaml"))
    change(values)
    yaml.dump(values, Path("params.yaml"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stage reads: data, a classifier, and a store with planted copies."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PRESETS / "smoke.yaml", "params.yaml")
    train, samples = planted()
    labelled, test = (train, np.arange(len(train)) % 2), (images(9, 5), np.arange(9) % 2)
    save_dataset(paths.DATASET, assemble("digits", "image", labelled, test, ["a", "b"], True))
    torch.manual_seed(0)
    save_classifier(paths.REFERENCE, Classifier(ClassifierConfig(channels=8, features=16), IMAGES))
    paths.PAIRS.parent.mkdir(parents=True)
    make_store(paths.PAIRS, spec_of(IMAGES), samples)
    return tmp_path


def set_filter(**values: Any) -> None:
    edit(lambda params: params.update(filter=values))


def run_stage() -> dict[str, Any]:
    filter_pairs.main(Stage("filter_pairs"))
    return json.loads((paths.DETAILS / "filter_pairs.json").read_text())  # type: ignore[no-any-return]


def read_record() -> dict[str, Any]:
    return json.loads(Path("data/pairs/filtered/filtered.json").read_text())  # type: ignore[no-any-return]


def test_no_filter_keeps_everything(project: Path) -> None:
    shutil.rmtree(paths.DATASET)  # it is not read
    edit(lambda params: params.update(execution={"sampling": {  # nor is anyone asked to help
        "engine": "dask", "address": "tcp://127.0.0.1:1", "patience_s": 0.1}}))
    assert run_stage() == {"pairs": 70, "kept": 70}
    mask = KeepMask.load(paths.KEEP)
    assert mask.names == []
    assert mask.keep.tolist() == [True] * COUNT
    assert read_record() == {"pairs": 70, "kept": 70, "reasons": [], "findings": []}


def test_the_stage_finds_planted_copies_in_every_space(project: Path) -> None:
    set_filter(copies=[{"threshold": 1e-6},
                       {"features": {"kind": "classifier"}, "threshold": 1e-6}])
    figures = run_stage()
    assert figures == {"pairs": 70, "kept": 64, "copies_pixels": 6, "copies_classifier": 6}
    mask = KeepMask.load(paths.KEEP)
    assert left_out(mask) == PLANTED
    assert not mask.reasons[:TEST].any()
    record = read_record()
    assert record["reasons"] == [["Near copies of training data in pixels", 6],
                                 ["Near copies of training data in features of classifier", 6]]
    for finding in record["findings"]:
        assert finding["numbers"]["copies"] == 6
        assert finding["numbers"]["least"] == 0 < finding["numbers"]["train_least"]
        with Image.open(f"data/pairs/filtered/pictures/{finding['name']}.png") as picture:
            assert picture.width > 1000
    # Nothing is left of the work but features of the training images.
    assert [path.parent.name for path in paths.WORK.glob("*/*")] == ["features"]
    before = {file: file.read_bytes() for file in paths.KEEP.rglob("*") if file.is_file()}
    run_stage()
    assert before == {file: file.read_bytes() for file in paths.KEEP.rglob("*") if file.is_file()}


def test_a_killed_run_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_filter(copies=[{"threshold": 1e-6}])
    measure = Judge.measure
    measured: list[range] = []

    def killed_after_two(self: Judge, store: PairStore, rows: range) -> Any:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(rows)
        return measure(self, store, rows)

    def noted(self: Judge, store: PairStore, rows: range) -> Any:
        measured.append(rows)
        return measure(self, store, rows)

    monkeypatch.setattr(Judge, "measure", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_stage()
    assert not paths.KEEP.exists()
    monkeypatch.setattr(Judge, "measure", noted)
    run_stage()
    assert measured == [range(10, 16), range(16, 32), range(32, 48), range(48, 64), range(64, 80)]
    assert left_out(KeepMask.load(paths.KEEP)) == PLANTED


def test_pairs_of_another_shape_cannot_be_compared(project: Path) -> None:
    points = np.eye(20, 2, dtype=np.float32)
    save_dataset(paths.DATASET, assemble("checkerboard", "points", (points, unlabelled(20)),
                                         (points, unlabelled(20)), [], False))
    set_filter(copies=[{"threshold": 0.5}])
    with pytest.raises(MismatchError, match="filter.copies: .*points samples of shape"):
        run_stage()


def test_parameters_that_do_not_fit_the_run(project: Path) -> None:
    set_filter(copies=[{"features": {"kind": "classifier"}, "threshold": 0.5}])
    edit(lambda params: params["reference"].update(classifier=None))
    edit(lambda params: params["evaluation"].update(extractors=[]))
    with pytest.raises(ParamsError, match="filter.copies: there is no classifier"):
        load_params()
    shutil.copy(PRESETS / "checkerboard.yaml", "params.yaml")
    set_filter(copies=[{"features": {"kind": "vgg16"}, "quantile": 0.1}], saturated=0.5)
    with pytest.raises(ParamsError, match="(?s)filter.copies: vgg16 is for images.*"
                                          "filter.saturated: points have no ends"):
        load_params()
    set_filter(copies=[{"features": {"kind": "clip14"}, "quantile": 0.1}])
    with pytest.raises(ParamsError, match="filter.copies.0.features"):
        load_params()


def test_students_are_not_shown_what_is_left_out(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("house_rules.py").write_text("def even(samples, labels):\n    return labels % 2 == 0\n")
    set_filter(copies=[{"threshold": 1e-6}], rules=["house_rules:even"], trust_code=True)
    run_stage()
    store = PairStore.open(paths.PAIRS).masked(KeepMask.load(paths.KEEP))
    kept = [row for row in range(TEST + VALIDATION, COUNT) if not row % 2 and row not in PLANTED]
    assert store.kept_rows("train").tolist() == kept
    edit(lambda params: params["students"]["kdm"]["training"].update(steps=2, batch=8))
    train_student.main(Stage("train_student@kdm"), "kdm")
    said = capsys.readouterr().err
    assert f"reads {len(kept)} of {TRAIN} pairs" in said
    assert "starts at random weights, since nobody knows the teacher of these pairs" in said
    recorded = read_json(paths.STUDENTS / "kdm/config.json")["provenance"]
    assert recorded["pairs_read"] == len(kept)


def test_the_report_tells_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_project("image")
    report.main(Stage("report"))
    assert "Filtered pairs" not in Path("reports/report.html").read_text()
    Path("data/pairs/filtered/filtered.json").unlink()
    with pytest.raises(DataError, match="filtered.json is missing: run `dvc repro filter_pairs`"):
        report.main(Stage("report"))
    folder = Path("data/pairs/filtered")
    finding = {"name": "copies_pixels", "title": "Near copies in pixels", "alt": "Pairs.",
               "caption": "Look <here>.", "numbers": {"copies": 1200}}
    write_json(folder / "filtered.json", {
        "pairs": 60_000, "kept": 58_500, "findings": [finding],
        "reasons": [["Not kept by `mine:<script>`", 300], ["Near copies", 1200]]})
    with pytest.raises(DataError, match="copies_pixels.png is missing"):
        report.main(Stage("report"))
    (folder / "pictures").mkdir()
    Image.new("RGB", (64, 32)).save(folder / "pictures/copies_pixels.png")
    report.main(Stage("report"))
    page = Path("reports/report.html").read_text()
    assert "Students were not shown 1,500 of the 60,000 pairs (2.5 %)" in page
    assert "<code>mine:&lt;script&gt;</code></th><td>300</td><td>0.5 %</td>" in page
    assert "Look &lt;here&gt;." in page
    write_json(folder / "filtered.json", {"pairs": 1})
    with pytest.raises(DataError, match="filtered.json is damaged"):
        report.main(Stage("report"))

