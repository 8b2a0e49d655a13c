"""The report from made-up results: its JSON, its figures, and its page, also in a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from selenium.webdriver import Chrome

from kdm_core.datasets import on_board
from kdm_core.datasets.base import assemble, unlabelled
from kdm_core.datasets.checkerboard import sample_board
from kdm_core.datasets.storage import save_dataset
from kdm_core.errors import DataError, MismatchError
from kdm_core.figures.scatter import OFF, cell_colours
from kdm_core.samples import SampleSpec
from kdm_core.serialization import read_json, write_json
from stages import figures, report
from stages.report_table import number, percent, times
from stages.runner import Stage
from tests.browser import browser, emulate

__all__ = ["browser"]
STUDENTS = ("kdm", "kdm-f")
MARK = "0123456789abcdef" * 4
IMAGE = {
    "teacher": {"fd_classifier": 4.0, "is_classifier": 8.9, "label_accuracy": 0.98, "nfe": 35,
                "images_per_s": 50.0, "parameters": 400_000},
    "student": {"fd_classifier": 5.0, "is_classifier": 8.5, "label_accuracy": 0.96,
                "label_agreement": 0.94, "mse": 0.02, "mse_permuted": 0.4, "lpips_vgg": 0.05,
                "lpips_vgg_permuted": 0.5, "nfe": 1, "images_per_s": 1500.0,
                "parameters": 900_000},
    "conditions": {"reference": "train split", "reference_n": 1437, "classifier": MARK,
                   "classifier_accuracy": 0.985, "lpips_n": 500, "lpips_resolution": 64},
}
POINTS = {
    "teacher": {"on_support": 0.97, "sliced_wasserstein": 0.05, "nfe": 20, "images_per_s": 4e4,
                "parameters": 300_000},
    "student": {"on_support": 0.93, "sliced_wasserstein": 0.06, "mse": 0.1, "mse_permuted": 10.5,
                "nfe": 1, "images_per_s": 5e5, "parameters": 600_000},
    "conditions": {"reference": "test split", "reference_n": 20_000, "projections": 128},
}


def write_params(kind: str, title: str = "A title") -> None:
    network = {"kind": "mlp", "width": 16, "blocks": 1}
    training = {"steps": 10, "batch": 8}
    student = {"model": {"encoder": network, "decoder": network, "latent": 32,
                         "operator": {"kind": "dense"}},
               "losses": {"adversarial": 0.0}, "training": training}
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump({
            "seed": 7,
            "compute": {"device": "cpu", "threads": 1},
            "data": {"source": "digits" if kind == "image" else "checkerboard"},
            "reference": {"classifier": None},
            "teacher": {"source": "train", "training": training,
                        "model": {"kind": "denoiser", "network": network}},
            "pairs": {"solver": {"kind": "heun", "steps": 18}, "train": 100, "validation": 4,
                      "test": 8,
                      "sample_dtype": "uint8" if kind == "image" else "float32"},
            "students": {name: student for name in STUDENTS},
            "report": {"title": title},
        }, file)


def write_dataset(kind: str) -> str:
    generator = np.random.default_rng(0)
    if kind == "points":
        points = sample_board(20, 0, 0), unlabelled(20)
        return save_dataset(Path("data/dataset"),
                            assemble("checkerboard", "points", points, points, [], False))
    images = generator.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    labelled = images, np.arange(20) % 2
    return save_dataset(Path("data/dataset"),
                        assemble("digits", "image", labelled, labelled, ["a", "b"], True))


def write_evaluation(name: str, kind: str, dataset: str, results: dict[str, Any]) -> None:
    generator = np.random.default_rng(1)
    if kind == "image":
        noise = generator.normal(size=(40, 1, 8, 8)).astype(np.float32)
        teacher = np.tanh(noise)
    else:
        noise = generator.normal(size=(500, 2)).astype(np.float32)
        teacher = sample_board(500, 0, 2)
    folder = Path("data/evaluation") / name
    write_json(folder / "evaluation.json", {**results, "conditions": {
        "n": 500, "dataset": dataset, "teacher": MARK, "student": name[-1] * 64, "pairs": MARK,
        "device": "cpu", "precision": "fp32", **results["conditions"]}})
    angle = generator.uniform(0, 2 * np.pi, 32)
    np.savez(folder / "samples.npz", noise=noise, teacher=teacher, student=0.9 * teacher,
             labels=np.zeros(len(noise), np.int64),
             eigenvalues=0.9 * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def write_curves(name: str, terms: tuple[str, ...]) -> None:
    folder = Path("reports/curves") / name / "plots" / "metrics"
    folder.mkdir(parents=True)
    for term in terms:
        lines = [f"step\t{term}", *(f"{step}\t{1 / step}" for step in range(1, 20))]
        (folder / f"{term}.tsv").write_text("\n".join(lines) + "\n")


def write_project(kind: str, results: dict[str, Any], title: str = "A title") -> None:
    """Everything that the report reads, in the current folder."""
    write_params(kind, title)
    mark = write_dataset(kind)
    write_json(Path("data/reference/reference.json"), {"dataset": mark, "accuracy": 0.985,
                                                       "accuracy_n": 360})
    write_curves("teacher", ("loss",))
    stages = ["prepare_data", "reference", "teacher", "sample_pairs"]
    for name in STUDENTS:
        write_evaluation(name, kind, mark, results)
        write_curves(name, ("loss", "reconstruction", "latent", "prediction", "validation_mse",
                            "validation_mse_ratio"))
        stages += [f"train_student@{name}", f"evaluate@{name}"]
    # The last one is left from a student that is no longer in params.yaml.
    for i, stage in enumerate([*stages, "evaluate@gone"]):
        write_json(Path(f"reports/timings/{stage}.json"), {
            "seconds": 1.5 + i, "device": "cpu", "threads": 2, "torch": "2.x"})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty project folder; a stage sets torch's mode and threads for its own process only."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def make_report() -> str:
    report.main(Stage("report"))
    return Path("reports/report.html").read_text(encoding="utf-8")


class Images(HTMLParser):
    """Collects the attributes of all pictures of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append(dict(attrs))


@pytest.mark.parametrize(("kind", "results"), [("image", IMAGE), ("points", POINTS)])
def test_json_has_all_figures(kind: str, results: dict[str, Any]) -> None:
    write_project(kind, results)
    make_report()
    document = read_json(Path("reports/report.json"))
    assert set(document) == {"dataset", "n", "teacher", "students", "stages", "conditions"}
    assert document["dataset"] == ("digits" if kind == "image" else "checkerboard")
    assert document["n"] == 500
    assert document["teacher"] == results["teacher"]
    speedup = results["student"]["images_per_s"] / results["teacher"]["images_per_s"]
    assert document["students"] == {name: {**results["student"], "speedup": speedup}
                                    for name in STUDENTS}
    assert set(document["stages"]) == {
        "prepare_data", "reference", "teacher", "sample_pairs", "train_student@kdm",
        "train_student@kdm-f", "evaluate@kdm", "evaluate@kdm-f"}
    assert document["stages"]["prepare_data"] == 1.5
    conditions = document["conditions"]
    assert conditions["seed"] == 7 and conditions["torch"] == "2.x" and conditions["threads"] == 2
    assert conditions["students"] == {"kdm": "m" * 64, "kdm-f": "f" * 64}
    assert results["conditions"].items() <= conditions.items()


@pytest.mark.parametrize(("kind", "results"), [("image", IMAGE), ("points", POINTS)])
def test_page_stands_alone(kind: str, results: dict[str, Any]) -> None:
    write_project(kind, results)
    page = make_report()
    assert not re.search(r"https?://|<script|<link[^>]+stylesheet|@import|url\(", page)
    images = Images(page).found
    assert len(images) == 3
    for image in images:
        assert image["alt"]
        assert (image["src"] or "").startswith("data:image/png;base64,")
    expected = {"curves.png", "spectrum.png", "samples.png" if kind == "image" else "scatter.png"}
    assert {path.name for path in Path("reports/figures").iterdir()} == expected
    assert not Path("reports/timings/report.json").exists()  # its own dependency


def test_page_tells_ratios() -> None:
    write_project("image", IMAGE)
    page = make_report()
    for text in ("35 → 1", "30×", "1.25×", "5.0 % of 0.4", "10.0 % of 0.5", "98.0 %"):
        assert text in page


def test_missing_metrics_are_explained() -> None:
    results = {
        "teacher": {k: v for k, v in IMAGE["teacher"].items() if "classifier" not in k},
        "student": {k: v for k, v in IMAGE["student"].items()
                    if "classifier" not in k and "lpips" not in k},
        "conditions": {},
    }
    write_project("image", results)
    page = make_report()
    assert "Fréchet distance</" not in page and 'scope="row">LPIPS' not in page
    assert "no classifier was asked for" in page and "LPIPS was left out" in page
    assert "5.0 %" in page


def test_strings_are_escaped() -> None:
    attack = '<script>alert("x")</script>'
    results = {**IMAGE, "conditions": {**IMAGE["conditions"], attack: f"'\"><img src=x>{attack}"}}
    write_project("image", results, title=f"</title>{attack}")
    page = make_report()
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;/title&gt;&lt;script&gt;" in page


def test_second_run_is_the_same() -> None:
    write_project("points", POINTS)
    page = make_report()
    first = {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()}
    assert make_report() == page
    assert first == {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()}
    assert not any(b"matplotlib" in content for content in first.values())


@pytest.mark.parametrize(("missing", "stage"), [
    ("data/evaluation/kdm-f/evaluation.json", "evaluate@kdm-f"),
    ("data/evaluation/kdm/samples.npz", "evaluate@kdm"),
    ("data/reference/reference.json", "reference"),
    ("reports/curves/kdm/plots/metrics/loss.tsv", "train_student@kdm"),
    ("reports/curves/teacher/plots/metrics/loss.tsv", "teacher"),
])
def test_missing_input_names_file_and_stage(missing: str, stage: str) -> None:
    write_project("points", POINTS)
    Path(missing).unlink()
    with pytest.raises(DataError, match=f"^{missing} is missing: run `dvc repro {stage}`$"):
        make_report()


@pytest.mark.parametrize("damaged", [
    "data/evaluation/kdm/samples.npz", "reports/curves/kdm/plots/metrics/loss.tsv",
    "data/evaluation/kdm/evaluation.json",
])
def test_damaged_input_is_named(damaged: str) -> None:
    write_project("points", POINTS)
    Path(damaged).write_text("[1, 2\n[3, 4")
    with pytest.raises(DataError, match=damaged):
        make_report()


def test_students_of_different_teachers_are_not_mixed() -> None:
    write_project("points", POINTS)
    path = Path("data/evaluation/kdm-f/evaluation.json")
    document = read_json(path)
    document["conditions"]["teacher"] = "f" * 64
    write_json(path, document)
    with pytest.raises(MismatchError, match="'teacher'"):
        make_report()


def test_conditions_that_differ_are_told_by_student() -> None:
    write_project("points", POINTS)
    path = Path("data/evaluation/kdm-f/evaluation.json")
    document = read_json(path)
    document["conditions"]["device"] = "cuda"
    write_json(path, document)
    page = make_report()
    conditions = read_json(Path("reports/report.json"))["conditions"]
    assert conditions["device"] == {"kdm": "cpu", "kdm-f": "cuda"}
    assert "kdm-f: cuda" in page


def test_comparisons_of_images_and_points() -> None:
    images = torch.rand(5, 3, 8, 8) * 2 - 1
    points = torch.randn(50, 2)
    for spec, made in ((SampleSpec(kind="image", shape=[3, 8, 8]), images),
                       (SampleSpec(kind="points", shape=[2]), points)):
        first = figures.render(figures.comparison(spec, made, made))
        assert first.startswith(b"\x89PNG")
        assert first == figures.render(figures.comparison(spec, made, made))


def test_colours_tell_the_cell() -> None:
    points = np.random.default_rng(0).uniform(-5, 5, (2000, 2))
    colours = cell_colours(points)
    assert ((colours != OFF) == on_board(points)).all()
    cells = {tuple(cell) for cell in np.floor((points[colours != OFF] + 4) / 2)}
    assert len(cells) == 8 == len(set(colours[colours != OFF]))


def test_numbers_are_short() -> None:
    assert [number(v) for v in (35, 0.012345, 1234.5, 12.34)] == ["35", "0.0123", "1,234", "12.3"]
    assert percent(0.0512) == "5.1 %"
    assert times(5, 4) == "1.25×" and times(300, 2) == "150×"


@pytest.mark.parametrize(("kind", "results"), [("image", IMAGE), ("points", POINTS)])
def test_page_in_a_browser(
    kind: str, results: dict[str, Any], folder: Path, browser: Chrome
) -> None:
    write_project(kind, results)
    make_report()
    emulate(browser, 1200, 900, dark=False)
    browser.get((folder / "reports/report.html").as_uri())
    assert browser.get_log("browser") == []
    pictures = browser.find_elements("tag name", "img")
    assert len(pictures) == 3
    for width, dark in ((1200, False), (390, False), (390, True)):
        emulate(browser, width, 800, dark)
        for picture in pictures:
            assert int(picture.get_property("naturalWidth")) > 0
            assert picture.is_displayed() and 100 < picture.size["width"] <= width
        assert browser.execute_script(
            "return document.documentElement.scrollWidth <= window.innerWidth && "
            "window.innerWidth") == width
        red, green, blue = map(int, re.findall(r"\d+", browser.execute_script(
            "return getComputedStyle(document.body).backgroundColor"))[:3])
        assert (max(red, green, blue) < 60) if dark else (min(red, green, blue) > 200)
