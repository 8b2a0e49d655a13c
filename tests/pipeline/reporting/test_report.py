"""The report from made-up results: its JSON, its figures, its page."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from PIL import Image

from kdm_core.datasets import on_board
from kdm_core.errors import DataError, MismatchError
from kdm_core.figures import files as figures
from kdm_core.figures.extrapolation import Extrapolated, extrapolation
from kdm_core.figures.scatter import OFF, cell_colours
from kdm_core.figures.style import STUDENTS as STUDENT_COLOURS
from kdm_core.metrics.denoising.record import DenoisingCheck, LevelCheck
from kdm_core.samples import SampleSpec
from kdm_core.serialization import read_json, write_json
from pipeline.reporting import conditions, metrics, pictures, table, text, verdicts
from pipeline.reporting.document import Document, models
from pipeline.reporting.headlines import Headline
from pipeline.reporting.publishing import preview
from pipeline.reporting.records import ExtractorRecord
from stages import report
from tests.support.report_project import (
    FEATURES,
    FINDINGS,
    IMAGE,
    RESULTS,
    SEEN,
    STUDENTS,
    change_evaluation,
    finished,
    make_report,
    measured,
    of_unknown_origin,
    undrawn,
    write_project,
    write_studies,
)

__all__ = ["finished", "undrawn"]

KINDS = ("image", "points")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Made(NamedTuple):
    """A report: its page and what its JSON says."""

    folder: Path
    page: str
    json: dict[str, Any]

    @property
    def document(self) -> Document:
        return Document.model_validate(self.json, strict=False)


@pytest.fixture
def made(finished: dict[str, Path]) -> dict[str, Made]:
    return {kind: Made(folder, (folder / "reports/report.html").read_text(encoding="utf-8"),
                       read_json(folder / "reports/report.json"))
            for kind, folder in finished.items()}


class Tags(HTMLParser):
    """Collects all tags of a page with their attributes, and the text of the visible cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def bare(figures: dict[str, Any]) -> dict[str, float]:
    return {key: one["value"] for key, one in figures.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_json_has_all_figures(kind: str, made: dict[str, Made]) -> None:
    results, document = RESULTS[kind], made[kind].json
    assert document["dataset"] == ("digits" if kind == "image" else "checkerboard")
    assert document["kind"] == kind and document["n"] == 500 and document["title"] == "A title"
    assert document["teacher"] == bare(results["teacher"])
    assert document["real"] == bare(results.get("real", {}))
    speedup = (results["student"]["images_per_s"]["value"]
               / results["teacher"]["images_per_s"]["value"])
    assert document["students"] == {name: {**bare(results["student"]), "speedup": speedup}
                                    for name in STUDENTS}
    assert document["ratios"] == {name: bare(results["ratios"]) for name in STUDENTS}
    assert document["intervals"]["students"]["kdm"] == {
        key: one["interval"] for key, one in results["student"].items() if one["interval"]}
    assert document["studies"] == {name: FINDINGS for name in STUDENTS}
    found = document["conditions"]
    assert found["seed"] == 7 and found["torch"] == "2.x" and found["threads"] == 2
    assert found["students"] == {"kdm": "m" * 64, "kdm-f": "f" * 64}
    assert results["conditions"].items() <= found.items()
    assert "zarr" in found["packages"]


def test_json_keeps_counts_extrapolation_and_lines(made: dict[str, Made]) -> None:
    document = made["image"].json
    equal = document["at_equal_n"]
    assert equal["n"] == 360 and equal["real"]["fd_vgg16"] == 3.1
    assert equal["teacher"]["fd_vgg16"] == 5.1 and equal["students"]["kdm"]["fd_vgg16"] == 6.1
    assert equal["intervals"]["students"]["kdm-f"].keys() == equal["students"]["kdm-f"].keys()
    assert document["verdicts"]["students"]["kdm"]["word"] == "close"
    assert document["verdicts"]["teacher"] == IMAGE["verdicts"]["teacher"]
    assert document["counts"]["students"]["kdm"]["lpips_vgg"] == 200
    assert document["extrapolation"]["vgg16"]["students"]["kdm-f"] == (
        IMAGE["extrapolation"]["vgg16"]["student"])
    assert document["warnings"] == IMAGE["warnings"] and document["absent"] == IMAGE["absent"]
    assert document["extractors"]["classifier"]["accuracy"] == 0.985
    assert set(document["stages"]) == {
        "prepare_data", "reference", "teacher", "sample_pairs", "train_student@kdm",
        "train_student@kdm-f", "evaluate@kdm", "evaluate@kdm-f"}


@pytest.mark.parametrize("kind", KINDS)
def test_json_is_read_back(kind: str, made: dict[str, Made]) -> None:
    students = [model for model in models(made[kind].document)
                if model.role == "student" and model.n == 500]
    assert [model.name for model in students] == list(STUDENTS)
    for key, one in RESULTS[kind]["student"].items():
        figure = students[0].figures[key]
        assert (figure.value, figure.n) == (one["value"], one["n"])
        assert figure.interval == (tuple(one["interval"]) if one["interval"] else None)
    assert students[0].ratios.keys() == RESULTS[kind]["ratios"].keys()


def test_json_is_small_and_dvc_reads_it_as_metrics(made: dict[str, Made]) -> None:
    from dvc.repo.metrics.show import _extract_metrics

    path = made["image"].folder / "reports/report.json"
    shown = _extract_metrics(read_json(path), str(path))
    assert path.stat().st_size < 40_000
    assert shown["students"]["kdm"]["fd_vgg16"] == 5.0
    assert shown["studies"]["kdm"]["vicinity"]["share"] == 0.25
    assert "intervals" not in shown  # lists, which would be columns without use


@pytest.mark.parametrize("kind", KINDS)
def test_page_stands_alone(kind: str, made: dict[str, Made]) -> None:
    folder, page, _ = made[kind]
    tags = Tags(page)
    assert not re.search(r"https?://|@import|url\(", page)
    assert len(tags.all("script")) == 1 and not tags.all("script")[0]
    assert [link["href"] for link in tags.all("link")] == ["data:,"]
    images = tags.all("img")
    own = {"curves.png", "terms.png", "spectrum.png", *(
        {"samples.png", "extrapolation.png"} if kind == "image" else {"scatter.png"})}
    assert len(images) == len(own) + len(STUDENTS) * len(FINDINGS)
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/") for image in images)
    assert {path.name for path in (folder / "reports/figures").iterdir()} == own
    assert len(page) < 4e6
    assert not (folder / "reports/timings/report.json").exists()  # its own dependency


def test_policy_allows_what_the_page_holds_and_nothing_else(made: dict[str, Made]) -> None:
    page = made["points"].page
    [policy] = [meta["content"] or "" for meta in Tags(page).all("meta")
                if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r'\s(style|on\w+)="', page)  # which the policy would not let work


def test_page_tells_figures_with_intervals_and_proportions(made: dict[str, Made]) -> None:
    page = made["image"].page
    for told in ("instead of 35", "30×", "1.25×", "[4.80, 5.20]", "1.25× [1.19, 1.31]",
                 "10.0 % of 0.500", "5.0 % of 0.400", "98.0 %", "n = 200",
                 "98.5 % of 360 held-out images",
                 "500 samples of each model were compared with 1,437 real ones"):
        assert told in page, told
    for line in (*IMAGE["warnings"], "No FID", "<code>kdm weights fetch inception</code>"):
        assert line in page
    assert ">FID<" not in page  # which VGG16’s distance is not


def test_published_statistics_are_not_told_as_no_samples(undrawn: None) -> None:
    """Of a mean and a covariance nobody says how many samples they come from: `reference_n` is 0.
    """
    write_project("image")
    for name in STUDENTS:
        change_evaluation(name, extractors__vgg16__reference="cifar10.npz",
                          extractors__vgg16__reference_n=0)
    page = make_report()
    assert "compared with published statistics (cifar10.npz) in 512 features" in page
    assert "with 0 real" not in page


def test_real_samples_stand_beside_as_many_of_each_model(made: dict[str, Made]) -> None:
    document = made["image"].document
    found, beside = table.overviews([("", models(document))], document.extractors)
    assert [line.model.text for line in found.lines] == ["teacher", *STUDENTS]
    assert [line.model.text for line in beside.lines] == ["teacher", *STUDENTS,
                                                          "held-out real data"]
    assert found.title == "500 samples of each"
    assert beside.title == "360 samples of each, as many as there are other real ones"
    assert [metric.key for metric in found.metrics] == [
        "fd_vgg16", "images_per_s", "nfe", "fd_infinity_vgg16", "kd_vgg16", "lpips_vgg",
        "precision_vgg16", "recall_vgg16"]
    orders = {line.model.text: [cell.order for cell in line.cells] for line in found.lines}
    assert orders["kdm"][0] == 5.0 and orders["teacher"][5] is None
    assert [line.cells[0].order for line in beside.lines] == [5.1, 6.1, 6.1, 3.1]
    for one in table.sections(document):
        assert ("held-out real data" in [model.text for model in one.models]) == (
            "360 samples of each" in one.title)


def test_real_samples_of_another_number_are_not_in_the_models_column(
    made: dict[str, Made]
) -> None:
    """As reports have it that were made before the models were measured at that number, too."""
    values = {**made["image"].json, "real": {"fd_vgg16": 3.1},
              "counts": {"real": {"fd_vgg16": 360}}}
    values.pop("at_equal_n")
    values["conditions"] = {key: value for key, value in values["conditions"].items()
                            if key != "real_n"}
    document = Document.model_validate(values, strict=False)
    models_, real = table.overviews([("", models(document))], document.extractors)
    assert [line.model.text for line in models_.lines] == ["teacher", *STUDENTS]
    assert [line.model.text for line in real.lines] == ["held-out real data"]
    assert "no counterpart" in real.title


def test_as_many_real_samples_stand_in_the_same_table(made: dict[str, Made]) -> None:
    document = made["points"].document
    [found] = table.overviews([("", models(document))], document.extractors)
    assert [line.model.text for line in found.lines] == ["teacher", *STUDENTS,
                                                         "real data, train split"]
    assert found.title == ""


def failed(results: dict[str, Any]) -> dict[str, Any]:
    """The same of a student that learned nothing."""
    word = {"word": "failed", "why": ["its MSE is 100.0 % of that of permuted pairs",
                                      "its recall is gone"], "unknown": []}
    return {**results, "verdicts": {**results["verdicts"], "student": word}}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_open_the_page(kind: str) -> None:
    write_project(kind)
    page = make_report()
    head = page[page.index("<h1>"):page.index("</header>")]
    assert "instead of" in head and "kdm and kdm-f come close to their teacher." in head
    assert re.findall(r'class="verdict (\w+)">([^<]+)<', head) == [
        ("good", "passed"), *[("good", "close")] * 2]
    for line in RESULTS[kind]["verdicts"]["student"]["why"]:
        assert line.replace("'", "&#39;") in head
    assert "Could not be judged: its recall" in head


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", KINDS)
def test_of_students_that_failed_no_ratio_is_shown(kind: str) -> None:
    write_project(kind, failed(RESULTS[kind]))
    page = make_report()
    assert "30×" not in page and "12×" not in page and not re.search(r"\d×", page)
    assert "was to be distilled into 2 students" in page and "dimensions, failed)" in page
    head = page[page.index("<h1>"):page.index("</header>")]
    assert '"sentence">kdm and kdm-f failed.<' in head
    seen = head[:head.index("<details")]
    assert seen.count('class="verdict bad">failed') == 2 and "its recall is gone" in seen
    assert [one.number for one in tiles(page)] == ["failed"]


@pytest.mark.usefixtures("undrawn")
def test_a_student_that_failed_leaves_the_others_their_ratios() -> None:
    write_project("image")
    change_evaluation("kdm-f", verdicts__student=failed(IMAGE)["verdicts"]["student"],
                      ratios__fd_vgg16=measured(0.5, 0.05), student__images_per_s=measured(9e9))
    page = make_report()
    assert [one.number for one in tiles(page)] == ["1.25×", "30×", "70.0 %"]
    assert all("kdm’s" in one.text or "for kdm:" in one.text for one in tiles(page))
    assert "kdm comes close to its teacher and kdm-f failed." in page and "0.50×" not in page
    assert "was distilled into 2 students" in page


def tiles(page: str) -> list[Headline]:
    return [Headline(*found) for found in re.findall(
        "<dt>(.*?)</dt><dd><strong>(.*?)</strong> (.*?)</dd>", page)]


@pytest.mark.usefixtures("undrawn")
def test_a_figure_that_a_loss_has_seen_is_marked_and_no_headline() -> None:
    """VGG16's distance leads both without: now the classifier's does, where nobody is flattered."""
    write_project("image")
    assert "(fd_vgg16) to real data; fd_classifier: 1.50×. Below 1" in tiles(make_report())[0].text
    change_evaluation("kdm-f", seen=SEEN)
    page = make_report()
    distance, _, share = tiles(page)
    assert "(fd_classifier)" in distance.text and distance.number == "1.50×"
    assert "(recall_classifier" in share.text and share.number == "69.0 %"
    document = Document.model_validate_json(Path("reports/report.json").read_bytes())
    [found, _] = table.overviews([("", models(document))], document.extractors)
    assert found.metrics[0].key == "fd_classifier"
    # LPIPS stands there with its mark, and so the MSE, which nothing flatters, with it.
    cells = {line.model.text: dict(zip((metric.key for metric in found.metrics), line.cells,
                                       strict=True)) for line in found.lines}
    assert list(cells["kdm-f"]["lpips_vgg"].marks) == ["†"] and "mse" in cells["kdm-f"]
    marked = {(name.text, row.metric.key) for section in table.sections(document)
              for row in section.rows for name, cell in zip(section.models, row.cells, strict=True)
              if cell.marks}
    # Of this student alone, at both numbers of samples; not of those whose losses saw nothing.
    assert marked == {("kdm-f", key) for key in SEEN["network"]}
    assert page.count("† the loss has seen this network") == 4  # chief table; VGG16 twice; LPIPS
    assert "has seen this network" not in "".join(
        one for one in page.split("<section") if "features of classifier" in one)


@pytest.mark.usefixtures("undrawn")
def test_where_every_distance_flatters_none_is_a_headline() -> None:
    """As of a student that is compared with the images that its loss took as real."""
    write_project("image")
    images = {f"{metric}_{name}": ["adversary"] for name in ("vgg16", "classifier")
              for metric in FEATURES if metric != "is"}
    change_evaluation("kdm", seen={"network": {}, "images": images})
    page = make_report()
    speed, faithfulness = tiles(page)
    assert speed.title == "Speed"
    assert faithfulness.text.startswith("of the MSE with mixed-up noises")
    assert "‡ the loss took as real the images that this compares with: the figure" in page
    assert "† the loss" not in page
    assert read_json(Path("reports/report.json"))["seen"] == {
        "kdm": {"network": {}, "images": images}}


@pytest.mark.usefixtures("undrawn")
def test_what_a_study_warns_of_is_read_at_the_head_of_the_report() -> None:
    write_project("image")
    write_studies("kdm", {"memorisation": {"n": 5}}, warnings=["memorisation: in pixels <1 % …"])
    page = make_report()
    assert "<li>kdm: memorisation: in pixels &lt;1 % …</li>" in page
    assert "kdm: memorisation: in pixels <1 % …" in read_json(
        Path("reports/report.json"))["warnings"]


@pytest.mark.parametrize("kind", KINDS)
def test_of_pairs_of_unknown_origin_nothing_is_told_of_a_teacher(kind: str) -> None:
    write_project(kind, of_unknown_origin(RESULTS[kind]), studies=False)
    worse = LevelCheck(level=0.5, teacher=2.0, linear=0.5, constant=1.0, excess=(1.0, 2.0))
    write_json(Path("reports/details/teacher.json"),
               {"check": DenoisingCheck(n=20, levels=[worse]).model_dump(mode="json")})
    page = make_report()
    visible = page[page.index("<h1>"):page.index("<h2>Conditions")]
    texts = re.sub(r'src="data:[^"]*"', "", visible)
    assert [line for line in texts.splitlines() if "eacher" in line] == []
    assert "Pairs of noise and" in visible and "whose maker is not here or not known" in visible
    assert not re.search(r"\d×", visible) and "stored pairs" in visible
    document = read_json(Path("reports/report.json"))
    assert document["teacher"] == {} and document["ratios"] == {} and "check" not in document
    assert "teacher" not in document["verdicts"] and "teacher" not in document["conditions"]
    assert document["pairs"].keys() == of_unknown_origin(RESULTS[kind])["pairs"].keys()
    assert not any("speedup" in one for one in document["students"].values())


def test_pairs_alone_make_a_page() -> None:
    """Neither teacher nor real data, features or studies: distances lead to held-out pairs."""
    unknown = of_unknown_origin(IMAGE)
    for who in ("pairs", "student"):
        unknown[who] = {key: one for key, one in unknown[who].items()
                        if not key.endswith(("_vgg16", "_classifier"))}
    write_project("image", unknown | {"at_equal_n": {}, "extractors": {}, "extrapolation": {}},
                  studies=False)
    speed, faithfulness = tiles(make_report())
    assert speed.number == "1,500" and speed.text == "samples a second, for kdm, with 1 network " \
        "evaluation each."
    assert faithfulness.number == "5.0 %"
    extractor = {**IMAGE["extractors"]["vgg16"], "reference": "held-out pairs"}
    write_evaluations(of_unknown_origin(IMAGE) | {"at_equal_n": {},
                                                  "extractors": {"vgg16": extractor}})
    distance, *_ = tiles(make_report())
    assert distance.number == "5" and distance.text == (
        "for kdm: Fréchet distance (fd_vgg16) to held-out samples of the pairs; stored pairs: 4. "
        "Lower is better.")


def write_evaluations(results: dict[str, Any]) -> None:
    """Other figures in the place of those of all students."""
    for name in STUDENTS:
        path = Path("data/evaluation") / name / "evaluation.json"
        known = read_json(path)
        write_json(path, {**results, "conditions": known["conditions"]})


@pytest.mark.parametrize(("words", "said"), [
    (("close", "close"), "kdm and kdm-f come close to their teacher."),
    (("poor", "better than its teacher"),
     "kdm-f is better than its teacher and kdm is far behind its teacher."),
    (("failed", "as good as its teacher"), "kdm-f is as good as its teacher and kdm failed."),
    (("of a later kind", "not judged"), "kdm is of a later kind and kdm-f cannot be judged."),
])
def test_the_verdict_is_a_sentence(
    words: tuple[str, str], said: str, made: dict[str, Made]
) -> None:
    given = {name: {"word": word} for name, word in zip(STUDENTS, words, strict=True)}
    document = made["image"].json
    told = verdicts.sentence(Document.model_validate(
        document | {"verdicts": {"teacher": {"word": "passed"}, "students": given}}, strict=False))
    assert told == f"With 1 network evaluation a sample instead of 35, {said}"
    told = verdicts.sentence(Document.model_validate(
        document | {"verdicts": {"teacher": {"word": "failed"}, "students": {}}}, strict=False))
    assert "What they learned from, the teacher, failed itself." in told


def test_the_picture_has_a_column_for_each_class() -> None:
    labels = np.array([2, 0, 1, 0, 2, 1, 0, 2, 1, 1])
    columns, names = pictures.choose(labels, ["a", "b", "c"], 2)
    assert "".join(names) == "aaabbbccc" and columns.shape == (9, 1)
    assert labels[columns].ravel().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    many = np.arange(100).repeat(2)
    columns, names = pictures.choose(many, [f"c{i}" for i in range(100)], 2)
    assert columns.shape == (10, 2) and names[0] == "c0" and names[-1] == "c99"
    assert (many[columns[:, 0]] == many[columns[:, 1]]).all()
    # Data with classes, pairs without.
    columns, names = pictures.choose(np.zeros(64, int), ["a", "b"], 2)
    assert names == [] and columns.T.ravel().tolist() == list(range(20))


def test_a_student_keeps_its_colour_where_others_are_left_out() -> None:
    """The first one has no operator, and no line that leads to infinitely many samples."""
    write_project("image")
    path = Path("data/evaluation/kdm/samples.npz")
    with np.load(path) as stored:
        np.savez(path, **{**stored, "eigenvalues": np.zeros((0, 2))})
    known = read_json(Path("data/evaluation/kdm/evaluation.json"))["extrapolation"]
    change_evaluation("kdm", extrapolation={name: {"teacher": one["teacher"]}
                                            for name, one in known.items()})
    drawn: dict[str, pictures.Picture] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "illustrate", lambda found, *rest: drawn.update(
            {one.name: one for one in found}) or {
                "first": None, "pictures": {}, "studies": None, "filtered": None,
                "near_copies": []})
        make_report()
    own = to_rgba(STUDENT_COLOURS[1])
    [operator] = drawn["spectrum"].figure.axes
    assert tuple(operator.collections[0].get_facecolor()[0][:3]) == own[:3]
    lines = {to_rgba(line.get_color()) for line in drawn["extrapolation"].figure.axes[0].lines}
    assert own in lines and to_rgba(STUDENT_COLOURS[0]) not in lines


@pytest.mark.usefixtures("undrawn")
def test_a_preview_has_a_picture_where_it_has_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    assert preview("gs://b/r/", "samples") == (
        "https://storage.googleapis.com/b/r/figures/samples.png")
    assert preview("s3://b/r", "samples") == "https://b.s3.amazonaws.com/r/figures/samples.png"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    assert preview("s3://b/r", "samples") is None
    assert preview("/shared/r", "samples") is None and preview(None, "samples") is None
    write_project("points", title='A "title"')
    meta = {one.get("property"): one.get("content") for one in Tags(make_report()).all("meta")}
    assert meta["og:title"] == 'A "title"' and "og:image" not in meta
    assert meta["og:description"] == ("With 1 network evaluation a sample instead of 20, kdm and "
                                      "kdm-f come close to their teacher.")


def test_long_captions_are_shortened_by_sentences() -> None:
    assert text.shortened("One two. Three four.") == ("One two. Three four.", "")
    assert text.shortened("One 2.5 two. Three. Four", 4) == ("One 2.5 two. Three.", "Four")
    assert text.shortened("One two three. Four", 2) == ("One two …", "One two three. Four")


@pytest.mark.usefixtures("undrawn")
def test_an_evaluation_is_beside_a_teacher_or_pairs() -> None:
    write_project("points")
    change_evaluation("kdm", pairs={"on_support": measured(0.9)})
    with pytest.raises(DataError, match="teacher and pairs"):
        make_report()


@pytest.mark.usefixtures("undrawn")
def test_every_figure_is_in_some_table() -> None:
    write_project("image")
    change_evaluation("kdm", student__brand_new=measured(3.5))
    make_report()
    document = Document.model_validate_json(Path("reports/report.json").read_bytes())
    shown = {row.metric.key for section in table.sections(document) for row in section.rows}
    every = {key for model in models(document) for key in model.figures}
    assert every - shown == {"mse_permuted", "lpips_vgg_permuted", "lpips_alex_permuted",
                             "speedup"}
    assert table.sections(document)[-1].rows[0].metric.key == "brand_new"


def test_only_genuine_inception_is_called_fid() -> None:
    def extractor(keys: dict[str, str]) -> ExtractorRecord:
        return ExtractorRecord(fingerprint="", dim=2048, reference="train split", reference_n=9,
                               metrics=keys, text="")

    found = {"vgg16": extractor({"fd": "fd_vgg16"}), "classifier": extractor({"fd": "fd_c"}),
             "inception_legacy": extractor({"fd": "fd_inception_legacy"}),
             "inception_clean": extractor({"fd": "fid_clean", "kd": "kid_clean"})}
    assert metrics.by_rank(found) == ["inception_clean", "vgg16", "inception_legacy", "classifier"]
    named = {metric.key: metric.name for one in found.values()
             for metric in metrics.in_features(one).values()}
    assert named["fid_clean"] == "FID" and named["kid_clean"] == "KID"
    assert all("FID" not in name for key, name in named.items() if not key.startswith("fid"))


@pytest.mark.usefixtures("undrawn")
def test_strings_are_escaped() -> None:
    attack = '<script>alert("x")</script>'
    results = {**IMAGE, "absent": [attack], "warnings": [f"`{attack}`"],
               "conditions": {**IMAGE["conditions"], attack: f"'\"><img src=x>{attack}"}}
    write_project("image", results, title=f"</title>{attack}")
    page = make_report()
    assert page.count("<script") == 1 and "<img src=x" not in page
    assert "&lt;/title&gt;&lt;script&gt;" in page
    assert "<code>&lt;script&gt;" in page


def test_second_run_is_the_same() -> None:
    write_project("points")
    page = make_report()
    first = {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()}
    assert make_report() == page
    assert first == {path.name: path.read_bytes() for path in Path("reports/figures").iterdir()}
    assert not any(b"matplotlib" in content for content in first.values())


@pytest.mark.usefixtures("undrawn")
def test_without_studies_the_page_says_so() -> None:
    write_project("points", studies=False)
    assert "No studies were made" in make_report()
    assert read_json(Path("reports/report.json"))["studies"] == {}


@pytest.mark.parametrize(("missing", "stage"), [
    ("data/evaluation/kdm-f/evaluation.json", "evaluate@kdm-f"),
    ("data/evaluation/kdm/samples.npz", "evaluate@kdm"),
    ("reports/curves/kdm/plots/metrics/loss.tsv", "train_student@kdm"),
    ("reports/curves/teacher/plots/metrics/loss.tsv", "teacher"),
    ("data/studies/kdm/findings.json", "study@kdm"),
    ("data/studies/kdm-f/pictures/vicinity.png", "study@kdm-f"),
])
def test_missing_input_names_file_and_stage(missing: str, stage: str) -> None:
    write_project("points")
    Path(missing).unlink()
    with pytest.raises(DataError, match=f"^{missing} is missing: run `dvc repro {stage}`$"):
        make_report()


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(("damaged", "content"), [
    ("data/evaluation/kdm/samples.npz", "[1, 2\n[3, 4"),
    ("reports/curves/kdm/plots/metrics/loss.tsv", "[1, 2\n[3, 4"),
    ("reports/curves/kdm/plots/metrics/loss.tsv", ""),
    ("data/evaluation/kdm/evaluation.json", "{"),
    ("data/evaluation/kdm/evaluation.json", '{"teacher": NaN}'),
    ("data/evaluation/kdm/evaluation.json", "[]"),
    ("data/studies/kdm/findings.json", "{}"),
])
def test_damaged_input_is_named(damaged: str, content: str) -> None:
    write_project("points")
    Path(damaged).write_text(content)
    with pytest.raises(DataError, match=damaged):
        make_report()
    assert not Path("reports/report.html").exists() and not Path("reports/report.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_damaged_picture_is_named() -> None:
    write_project("points")
    path = Path("data/studies/kdm/pictures/vicinity.png")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="data/studies/kdm/pictures/vicinity.png is damaged"):
        make_report()


@pytest.mark.parametrize("value", [None, "5", True, [1]])
def test_a_figure_that_is_no_number_is_named(value: Any) -> None:
    write_project("points")
    change_evaluation("kdm", student__on_support__value=value)
    with pytest.raises(DataError, match=r"kdm/evaluation.json is damaged \(student.on_support"):
        make_report()


def test_a_finding_cannot_name_a_file_elsewhere() -> None:
    write_project("points")
    path = Path("data/studies/kdm/findings.json")
    findings = read_json(path)
    findings[0]["name"] = "../../../secret"
    write_json(path, findings)
    with pytest.raises(DataError, match="no name for a finding"):
        make_report()


@pytest.mark.parametrize(("place", "value", "key"), [
    ("conditions__teacher", "f" * 64, "teacher"), ("conditions__pairs", "f" * 64, "pairs"),
    ("conditions__n", 400, "n"), ("extractors__vgg16__fingerprint", "other", "extractors"),
])
def test_students_of_different_teachers_or_features_are_not_mixed(
    place: str, value: Any, key: str
) -> None:
    write_project("image")
    change_evaluation("kdm-f", **{place: value})
    with pytest.raises(MismatchError, match=f"'{key}'"):
        make_report()


@pytest.mark.usefixtures("undrawn")
def test_conditions_that_differ_are_told_by_student() -> None:
    write_project("points")
    change_evaluation("kdm-f", conditions__device="cuda")
    page = make_report()
    found = read_json(Path("reports/report.json"))["conditions"]
    assert found["device"] == {"kdm": "cpu", "kdm-f": "cuda"}
    assert "kdm-f: cuda" in page


@pytest.mark.usefixtures("undrawn")
def test_warnings_of_one_student_have_its_name() -> None:
    write_project("image")
    change_evaluation("kdm-f", warnings=[IMAGE["warnings"][0], "Only here."])
    make_report()
    assert read_json(Path("reports/report.json"))["warnings"] == [
        IMAGE["warnings"][0], f"kdm: {IMAGE['warnings'][1]}", "kdm-f: Only here."]


def test_revision_is_left_out_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert "revision" not in conditions.environment()
    monkeypatch.setenv("PATH", "")
    assert "revision" not in conditions.environment()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def test_pictures_share_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 320, 3), np.uint8)
    large, small = png(Image.fromarray(noise)), png(Image.new("RGB", (1280, 400), "white"))
    pngs = {Path("small"): small, **{Path(str(i)): large for i in range(3)}}
    monkeypatch.setattr(pictures, "PAGE_BYTES", len(large))
    embedded = pictures.embed(pngs)
    assert sum(len(one.uri) for one in embedded.values()) < 1.4 * len(large)
    assert embedded[Path("small")].uri.startswith("data:image/png;")
    assert embedded[Path("0")][1:] == (160, 100)
    assert embedded[Path("2")].uri.startswith("data:image/webp;")
    assert pictures.embed({Path("0"): large})[Path("0")].uri.startswith("data:image/png;")


def test_extrapolated_line_ends_where_the_extrapolation_does() -> None:
    n = np.array([100.0, 200.0, 500.0])
    found = {"vgg16": (Extrapolated(n, 2 + 30 / n, 2.0), {"kdm": Extrapolated(n, 3 + 30 / n, 3.0)})}
    [axis] = extrapolation(found, {"kdm": "#1180c4"}).axes
    teacher, *_ = axis.get_lines()
    np.testing.assert_allclose(teacher.get_xydata(), [[0, 2], [0.01, 2.3]])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["∞", "500", "200", "100"]


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
    assert [text.number(v) for v in (35, 0.012345, 1234.5, 12.34, 0.05, -3e-5, 0)] == [
        "35", "0.0123", "1,234", "12.3", "0.0500", "−0.0000300", "0"]
    assert text.percent(0.0512) == "5.1 %"
    assert text.times(1.25) == "1.25×" and text.times(150.2) == "150×"
    assert text.interval(0.3184, 0.3339) == "[0.318, 0.334]"
    assert text.interval(2, 2) == "[2.000, 2.000]" and text.interval(-1, 2000) == "[−1, 2,000]"


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_any_number_and_interval_can_be_written(value: float, width: float) -> None:
    written = text.number(value).replace("−", "-").replace(",", "")
    assert float(written) == pytest.approx(value, rel=6e-3)
    low, high = json.loads(re.sub(r"(?<=\d),(?=\d)", "", text.interval(value, value + width))
                           .replace("−", "-"))
    assert low <= high and low == pytest.approx(value, abs=0.051 * width + 6e-4)


@pytest.mark.usefixtures("undrawn")
def test_prefects_table_has_no_multiples_of_students_that_failed() -> None:
    from pipeline.flow.artifacts import metrics_table

    write_project("points", studies=False)
    failed, sound = STUDENTS
    change_evaluation(failed, verdicts__student={"word": "failed", "why": ["it is"]})
    make_report()
    rows = {row["metric"]: row for row in metrics_table(read_json(Path("reports/report.json")))}
    assert rows["speedup"][f"student {failed}"] is None
    assert rows["speedup"][f"student {sound}"] == 12.5


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("unknown", [False, True])
def test_prefects_table_has_the_verdicts(unknown: bool) -> None:
    from pipeline.flow.artifacts import beside, metrics_table

    write_project("points", of_unknown_origin(RESULTS["points"]) if unknown else None,
                  studies=False)
    make_report()
    report = read_json(Path("reports/report.json"))
    first, *others = metrics_table(report)
    source = "pairs" if unknown else "teacher"
    assert first == {"metric": "verdict", source: "passed",
                     **{f"student {name}": "not judged" if unknown else "close"
                        for name in STUDENTS}}
    assert all(set(row) == set(first) for row in others)
    assert ("teacher" in beside(report)) != unknown
