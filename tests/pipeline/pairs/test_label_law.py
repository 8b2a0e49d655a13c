"""Labels of pairs are drawn as the data has them, or uniformly; a store keeps its law."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from scipy import stats
from typer.testing import CliRunner

from kdm_core.compute import seeded
from kdm_core.datasets import Dataset, save_dataset
from kdm_core.datasets.base import assemble
from kdm_core.datasets.frequencies import label_counts, label_weights
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.metrics.classifier import Classifier, ClassifierConfig, save_classifier
from kdm_core.metrics.labels import label_shift
from kdm_core.noise import draw
from kdm_core.pairs.integrity.repairing import repair
from kdm_core.pairs.integrity.verifying import verify
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.sampling import plan_store, sample_batch, sample_pairs, sample_shard
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.serialization import read_json, write_json
from kdm_core.sharing.folder import save_student
from kdm_core.sharing.hub import from_pretrained
from kdm_core.students.kdm import KDM
from kdm_core.teachers import Teacher, load_sampled, save_teacher
from kdm_core.teachers.exact import fit_mixture
from kdm_core.values import as_float
from pipeline.kdm.cli import app
from pipeline.pairs.kept import KEPT
from pipeline.params.run import load_params
from pipeline.runtime import paths
from pipeline.runtime.runner import Stage
from stages.evaluate import stage as evaluate
from stages.filter_pairs import stage as filter_pairs
from stages.sample_pairs import stage as sampling

CPU = torch.device("cpu")
NAMES = ["zero", "one"]
NETWORK = {"kind": "mlp", "width": 16, "blocks": 1}


def write_params(labels: str | None, train: int = 40, **pairs: Any) -> None:
    student = {"model": {"encoder": NETWORK, "decoder": NETWORK, "latent": 8,
                         "operator": {"kind": "dense"}},
               "losses": {"adversarial": 0.0}, "training": {"steps": 1, "batch": 8}}
    law = {} if labels is None else {"labels": labels}
    values = {
        "seed": 0, "filter": {}, "weights": {}, "studies": {}, "report": {},
        "compute": {"device": "cpu", "threads": 1},
        "data": {"source": "digits", "conditional": True},
        "reference": {"classifier": {"training": {"steps": 1, "batch": 8}}},
        "teacher": {"source": "exact", "kind": "gaussian_mixture"},
        "pairs": {"source": "sample", "solver": {"kind": "heun", "steps": 10}, "train": train,
                  "validation": 4, "test": 600, "batch": 40, "precision": "fp32", "shard": 40,
                  "chunk": 40, **law, **pairs},
        "students": {"kdm": student},
        "evaluation": {"bootstrap": 20, "lpips": [], "lpips_pairs": 0, "timing_images": 16,
                       "extractors": [{"kind": "classifier"}]},
    }
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(values, file)


def dataset_of(train: tuple[int, int], test: tuple[int, int]) -> Dataset:
    """Images of two classes, one dark and one bright."""
    generator = np.random.default_rng(0)

    def split(counts: tuple[int, int]) -> tuple[Any, Any]:
        labels = generator.permutation(np.repeat([0, 1], counts))
        level = np.where(labels == 0, 60, 190).reshape(-1, 1, 1, 1)
        return generator.normal(level, 20, (len(labels), 1, 8, 8)).clip(0, 255).astype(
            np.uint8), labels

    return assemble("digits", "image", split(train), split(test), NAMES, conditional=True)


def write_data(
    train: tuple[int, int] = (940, 60), test: tuple[int, int] = (188, 12)
) -> Dataset:
    """The data, and their exact teacher."""
    dataset = dataset_of(train, test)
    save_dataset(paths.DATASET, dataset)
    save_teacher(paths.TEACHER, exact(dataset))
    return dataset


def exact(dataset: Dataset, spec: SampleSpec | None = None) -> Teacher:
    return fit_mixture(spec or dataset.info.samples, as_float(dataset.train_samples),
                       torch.from_numpy(dataset.train_labels))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project folder; a stage sets torch's mode and threads for its own process only."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def sample() -> tuple[PairStore, list[str]]:
    """The stage, as DVC runs it: its outputs are gone before. The pairs, and what was noted."""
    shutil.rmtree(paths.PAIRS, ignore_errors=True)
    stage = Stage("sample_pairs")
    sampling.main(stage)
    return PairStore.open(paths.PAIRS), stage.notes


def labels_of(store: PairStore) -> Any:
    return store.read_arrays(range(store.spec.count), ["label"])["label"]


def as_before() -> StoreSpec:
    """The plan of a store from before there was a choice."""
    teacher, mark, guide = load_sampled(paths.TEACHER, None, False)
    config = load_params().pairs
    spec: StoreSpec = plan_store(config, teacher, mark, guide,  # type: ignore[arg-type]
                                 Stage("sample_pairs").seed("noise"), CPU)
    assert "label_weights" not in spec.describe()
    return spec


def test_new_stores_have_the_labels_of_the_data() -> None:
    write_data()
    write_params(None)
    store, notes = sample()
    assert not notes
    assert store.spec.label_weights == [47, 3]
    found = np.bincount(labels_of(store))
    assert stats.binomtest(int(found[1]), int(found.sum()), 0.06).pvalue > 1e-3
    write_params("data")
    assert sample()[0].content_hash() == store.content_hash()


def test_uniform_stores_are_what_they_were() -> None:
    write_data()
    write_params("uniform")
    store, notes = sample()
    before = as_before()
    assert not notes
    assert (store.spec.fingerprint, store.spec.stream) == (before.fingerprint, before.stream)
    other = PairStore.create(Path("before"), before, {})
    sample_pairs(other, load_sampled(paths.TEACHER, None, False)[0], CPU)
    assert other.content_hash() == store.content_hash()
    # The noise is the same under both laws, and so are pairs of the same label.
    write_params("data")
    new, _ = sample()
    one, two = (PairStore.open(kept).read(range(store.spec.count))
                for kept in ("before", paths.PAIRS))
    np.testing.assert_array_equal(one.noise, two.noise)
    same = one.label == two.label
    assert 0.4 < same.mean() < 0.7
    np.testing.assert_array_equal(one.sample[same], two.sample[same])
    assert new.spec.stream != store.spec.stream


def test_equally_frequent_classes_are_drawn_uniformly() -> None:
    write_data((50, 50), (10, 10))
    write_params("data")
    store, notes = sample()
    assert store.spec == as_before()
    assert not notes
    assert label_weights([5000, 5000, 5000]) is None
    assert label_weights([142, 146, 142]) == [71, 73, 71]
    assert label_weights([0, 8, 4]) == [0, 2, 1]


@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_a_store_that_is_there_keeps_its_law_and_grows(place: str | None) -> None:
    write_data()
    where = {} if place is None else {"location": place}
    write_params("uniform", **where)
    sample()
    write_params("uniform", train=90, **where)
    wanted = as_before()
    write_params(None, train=90, **where)
    store, notes = sample()
    assert store.spec == wanted
    [note] = notes
    assert "labels are drawn uniformly, as those of the pairs in" in note
    assert "pairs.labels: data draws them as the data has them (zero 94.0%, one 6.0%)" in note
    alone = PairStore.create(Path("alone"), wanted, {})
    sample_pairs(alone, load_sampled(paths.TEACHER, None, False)[0], CPU)
    assert store.content_hash() == alone.content_hash()
    # What params.yaml says wins.
    write_params("data", train=90, **where)
    store, notes = sample()
    assert store.spec.label_weights == [47, 3]
    assert not notes
    if place is None:
        assert len(list(KEPT.iterdir())) == 1


def test_pairs_of_older_code_are_those_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sampled again, whatever was edited."""
    write_data()
    write_params("uniform")
    content = sample()[0].content_hash()
    write_params(None)
    with monkeypatch.context() as later:
        later.setattr("pipeline.runtime.plan.code.digest", lambda content: "later")
        later.setattr("kdm_core.pairs.sampling.sample_batch", None)
        store, notes = sample()
    assert store.content_hash() == content
    assert len(notes) == 1
    shutil.rmtree(paths.WORK)  # kdm clean
    shutil.rmtree(paths.PAIRS)
    store, notes = sample()
    assert store.spec.label_weights == [47, 3]
    assert not notes


@pytest.mark.parametrize("place", [None, "elsewhere"])
@pytest.mark.parametrize("more", [0, 40])
def test_half_sampled_pairs_of_an_earlier_release_are_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, place: str | None, more: int
) -> None:
    """It called their folder after its code; and more of them may be wanted now."""
    write_data()
    write_params("uniform", train=40)
    begun = as_before()
    write_params("uniform", train=40 + more, **({} if place is None else {"location": place}))
    wanted = as_before()
    teacher = load_sampled(paths.TEACHER, None, False)[0]
    alone = PairStore.create(Path("alone"), wanted, {})
    sample_pairs(alone, teacher, CPU)
    folder = (paths.WORK / "sample_pairs/0123456789abcdef/pairs.zarr" if place is None
              else Path(place) / "pairs-0123456789abcdef-fedcba9876543210.zarr")
    half = PairStore.create(folder, begun, {})
    for shard in range(8):
        half.write_shard(shard, sample_shard(begun, teacher, shard, CPU)[0])
    sampled: list[int] = []
    monkeypatch.setattr("kdm_core.pairs.sampling.sample_batch",
                        lambda spec, teacher, batch, device: (
                            sampled.append(batch), sample_batch(spec, teacher, batch, device))[1])
    store, _ = sample()
    assert store.content_hash() == alone.content_hash()
    assert sampled == list(range(8, wanted.num_shards))


def kdm(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["pairs", *arguments])


def test_pairs_anywhere() -> None:
    """An old store is gone on with, a new one has the data's labels, and both say so."""
    write_data()
    write_params(None)
    PairStore.create(Path("old.zarr"), as_before(), {})
    for name in ("old", "new"):
        done = kdm("sample", f"{name}.zarr")
        assert done.exit_code == 0, done.output
        assert ("note: labels are drawn uniformly" in done.stderr) == (name == "old")
    shown = {name: kdm("info", f"{name}.zarr").stdout for name in ("old", "new")}
    assert "drawn uniformly" in shown["old"]
    assert "drawn zero 94.0%, one 6.0%" in shown["new"]
    assert json.loads(kdm("info", "new.zarr", "--json").stdout)["label_weights"] == [47, 3]
    for name, law in (("old", "uniform"), ("new", "data")):
        assert f"labels: {law}\n" in kdm("info", f"{name}.zarr", "--params").stdout
        assert kdm("verify", f"{name}.zarr", "--teacher", "data/teacher").exit_code == 0
    write_params("data")
    refused = kdm("sample", "old.zarr")
    assert refused.exit_code == 1
    assert "label_weights (here None, wanted [47, 3])" in refused.stderr
    # A machine without the data goes on with what is there, and cannot begin.
    write_params(None)
    shutil.rmtree(paths.DATASET)
    assert kdm("sample", "old.zarr").exit_code == 0
    refused = kdm("sample", "other.zarr")
    assert refused.exit_code == 1
    assert "set it to uniform" in refused.stderr and str(paths.DATASET) in refused.stderr
    write_params("uniform")
    assert kdm("sample", "other.zarr").exit_code == 0


def test_labels_that_are_lost_are_drawn_again() -> None:
    write_data()
    write_params("data")
    store, _ = sample()
    content = store.content_hash()
    (paths.PAIRS / "label/c/3").unlink()
    store = PairStore.open(paths.PAIRS, writable=True)
    damage = verify(store)
    assert not damage.whole and not damage.needs_teacher
    repair(store, damage, CPU)
    assert verify(PairStore.open(paths.PAIRS)).content == content


def test_parts_and_subsets_keep_the_law() -> None:
    write_data()
    write_params("data")
    whole, _ = sample()
    for k in (1, 2):
        assert kdm("sample", f"{k}.zarr", "--part", f"{k}/2").exit_code == 0
    assert kdm("merge", "1.zarr", "2.zarr", "--out", "both.zarr").exit_code == 0
    assert PairStore.open("both.zarr").content_hash() == whole.content_hash()
    assert kdm("subset", "both.zarr", "--out", "ones.zarr", "--labels", "one").exit_code == 0
    assert PairStore.open("ones.zarr").spec.label_weights == [47, 3]
    assert kdm("verify", "ones.zarr").exit_code == 0


def test_classes_are_those_of_the_same_names() -> None:
    labels = np.array([0, 0, 0, 1])
    assert label_counts(labels, NAMES, NAMES) == [3, 1]
    assert label_counts(labels, NAMES, ["one", "zero"]) == [1, 3]
    assert label_counts(labels, NAMES, ["0", "1"]) == [3, 1]
    with pytest.raises(MismatchError, match="2 classes and the model 3"):
        label_counts(labels, NAMES, ["a", "b", "c"])


def test_without_labels_nothing_changes() -> None:
    dataset = write_data()
    unlabelled = dataset.info.samples.model_copy(update={"label_names": []})
    save_teacher(paths.TEACHER, exact(dataset, unlabelled))
    for law in ("data", "uniform", None):
        write_params(law)
        store, notes = sample()
        assert not notes
        assert store.spec == as_before()


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [0, 0], [-1, 2], [1, 2**31], [0.5, 0.5]])
def test_a_law_of_other_classes_is_refused(weights: list[Any]) -> None:
    write_data()
    write_params("uniform")
    spec = as_before()
    with pytest.raises(ValueError, match="label_weights"):
        StoreSpec.model_validate({**spec.model_dump(), "label_weights": weights})


# Evaluation


def evaluated() -> Any:
    """The evaluation of an untrained student beside its teacher."""
    store = PairStore.open(paths.PAIRS).spec
    with seeded(0):
        save_classifier(paths.REFERENCE, Classifier(ClassifierConfig(channels=8, features=4),
                                                    store.samples))
        student = KDM(load_params().students["kdm"].model, store.samples)
    write_json(paths.REFERENCE / "reference.json", {"accuracy": 0.9, "accuracy_n": 30})
    save_student(paths.STUDENTS / "kdm", student, {"pairs": store.fingerprint})
    evaluate.main(Stage("evaluate@kdm"), "kdm")
    return read_json(paths.EVALUATION / "kdm" / "evaluation.json")


def of_labels(found: Any) -> list[str]:
    return [line for line in found["warnings"] if "classes in other proportions" in line]


def test_an_exact_teacher_is_near_data_whose_labels_its_pairs_have() -> None:
    write_data((500, 500), (100, 100))
    write_params("data")
    sample()
    balanced = evaluated()
    write_data()
    write_params("data")
    sample()
    found = evaluated()
    write_params("uniform")
    sample()
    apart = evaluated()
    distances = [one["teacher"]["fd_classifier"]["value"] for one in (balanced, found, apart)]
    assert distances[1] < 3 * distances[0]
    assert distances[2] > 10 * distances[1]
    assert not of_labels(balanced) and not of_labels(found)
    [line] = of_labels(apart)
    for words in ("test pairs", "train split", "zero 49.2% against 94.0%", "one 50.8% against 6.0%",
                  "pairs.labels: data"):
        assert words in line


def test_imported_pairs_of_other_labels_are_told() -> None:
    write_data()
    write_params("uniform")
    store, _ = sample()
    imported = store.spec.model_copy(update={"noise_seed": None, "imported": "x.npz"})
    block = store.read(range(store.spec.count))
    shutil.rmtree(paths.PAIRS)
    store = PairStore.create(paths.PAIRS, imported, {})
    for shard in range(imported.num_shards):
        rows = imported.shard_range(shard)
        store.write_shard(shard, type(block)(*(
            None if part is None else part[rows.start : rows.stop] for part in block)))
    [line] = of_labels(evaluated())
    assert "imported" not in line and "sampled here with pairs.labels: data" in line


def test_held_out_data_of_other_labels_are_told() -> None:
    write_data((500, 500), (180, 20))
    write_params("data")
    sample()
    [line] = of_labels(evaluated())
    assert line.startswith("the data's test split")
    assert "zero 90.0% against 50.0%" in line


def test_a_filter_that_moves_the_labels_is_noted() -> None:
    write_data()
    write_params("uniform", train=400)
    store, _ = sample()
    stage = Stage("filter_pairs")
    rows = store.spec.split_range("train")
    for dropped, noted in ((labels_of(store) == 1, True), (np.arange(store.spec.count) % 3 == 0,
                                                           False)):
        # All but a few of a class, or a third of all.
        reasons = np.where(dropped & (np.arange(store.spec.count) % 20 > 0), 1, 0).astype(np.uint16)
        mask = KeepMask(store.spec.fingerprint, ["some"], reasons)
        assert mask.keep[rows.start :].any()
        stage.notes.clear()
        filter_pairs.compare_labels(stage, store, mask)
        assert [("kept have classes in other proportions" in note) for note in stage.notes] == (
            [True] if noted else [])


def test_shifts_are_told_from_chance() -> None:
    generator = np.random.default_rng(3)
    even = np.full(10, 100)
    alarms = sum(label_shift(generator.multinomial(200, even / even.sum()), even) is not None
                 for _ in range(300))
    assert alarms <= 2
    skewed = np.array([94, 6])
    assert label_shift(np.array([500, 500]), skewed * 10) == pytest.approx(0.44)
    assert label_shift(np.array([51_000, 49_000]), np.array([5000, 5000])) is None  # too little
    assert label_shift(np.array([3, 1]), np.array([500, 500])) is None  # too few to tell
    # Rare classes, for which tables of chi-square do not hold.
    rare = np.array([1000] + [1] * 50)
    assert label_shift(rare, 3 * rare) is None


# Students


def test_students_draw_labels_as_their_pairs_did(tmp_path: Path) -> None:
    write_data()
    write_params("data")
    spec = sample()[0].spec
    student = KDM(load_params().students["kdm"].model, spec.samples)
    save_student(Path("student"), student, {"label_weights": [47, 3]})
    loaded = from_pretrained(Path("student"))
    noise, labels = draw(5, range(30), (1, 8, 8), "float32", 2, [47, 3])
    with torch.inference_mode():
        expected = loaded(torch.from_numpy(noise), torch.from_numpy(labels))
    torch.testing.assert_close(loaded.sample(30, seed=5, precision="fp32"), expected)
    done = CliRunner().invoke(app, ["sample", "student", "--n", "30", "--seed", "5", "--out",
                                    "s.npz", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert np.load("s.npz")["labels"].tolist() == labels.tolist()
    for wrong in ([1], [0, 0], ["a", "b"], "x", [True, False]):
        save_student(Path("wrong"), student, {"label_weights": wrong})
        with pytest.raises(DataError, match="provenance.label_weights"):
            from_pretrained(Path("wrong"))


def test_params_take_no_other_law() -> None:
    write_params("balanced")
    with pytest.raises(KDMError, match=r"pairs\.labels"):
        load_params()
