"""A finished run, made up: everything that the report reads, of points or of images."""

from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from kdm_core.datasets.base import assemble, unlabelled
from kdm_core.datasets.checkerboard import sample_board
from kdm_core.datasets.storage import save_dataset
from kdm_core.figures.files import save_figure
from kdm_core.figures.style import panels
from kdm_core.serialization import read_json, write_json
from pipeline.runtime.runner import Stage
from stages import report

STUDENTS = ("kdm", "kdm-f")
MARK = "0123456789abcdef" * 4
FEATURES = ("fd", "fd_infinity", "kd", "is", "precision", "recall", "density", "coverage")


def measured(value: float, spread: float = 0.0, n: int = 500) -> dict[str, Any]:
    """A figure, with an interval of ± spread × value if there is a spread."""
    bounds = sorted((value * (1 - spread), value * (1 + spread))) if spread else None
    return {"value": value, "interval": bounds, "n": n}


def in_features(extractor: str, *values: float, n: int = 500) -> dict[str, Any]:
    """All metrics in the features of an extractor."""
    return {f"{metric}_{extractor}": measured(value, 0.04, n)
            for metric, value in zip(FEATURES, values, strict=True)}


def described(extractor: str, text: str, dim: int, **more: float) -> dict[str, Any]:
    return {"fingerprint": f"{extractor}-fingerprint", "dim": dim, "reference": "train split",
            "reference_n": 1437, "text": text,
            "metrics": {metric: f"{metric}_{extractor}" for metric in FEATURES}, **more}


def line(infinite: float, slope: float) -> dict[str, Any]:
    n = [100, 200, 300, 400, 500]
    return {"n": n, "fd": [infinite + slope / count for count in n], "infinite": infinite}


IMAGE: dict[str, Any] = {
    "teacher": {
        **in_features("vgg16", 4.0, 3.2, 0.0021, 8.9, 0.81, 0.74, 0.93, 0.88),
        **in_features("classifier", 0.22, 0.2, 0.00051, 9.1, 0.79, 0.71, 0.9, 0.85),
        "label_accuracy": measured(0.98, 0.005), "nfe": measured(35),
        "images_per_s": measured(50.0), "parameters": measured(400_000)},
    "student": {
        **in_features("vgg16", 5.0, 4.1, -0.00003, 8.5, 0.78, 0.7, 0.88, 0.84),
        **in_features("classifier", 0.33, 0.3, 0.00081, 8.7, 0.75, 0.69, 0.86, 0.81),
        "label_accuracy": measured(0.96, 0.005), "label_agreement": measured(0.94, 0.01),
        "mse": measured(0.02, 0.02), "mse_permuted": measured(0.4, 0.02),
        "lpips_vgg": measured(0.05, 0.03, 200), "lpips_vgg_permuted": measured(0.5, 0.03, 200),
        "lpips_alex": measured(0.01, 0.03, 200), "lpips_alex_permuted": measured(0.2, 0.03, 200),
        "nfe": measured(1), "images_per_s": measured(1500.0), "parameters": measured(900_000)},
    "at_equal_n": {
        "teacher": {**in_features("vgg16", 5.1, 3.3, 0.0024, 8.5, 0.8, 0.6, 0.92, 0.7, n=360),
                    **in_features("classifier", 0.4, 0.2, 0.0005, 9.0, 0.78, 0.6, 0.9, 0.7, n=360)},
        "student": {**in_features("vgg16", 6.1, 4.2, 0.0001, 8.2, 0.77, 0.5, 0.87, 0.6, n=360),
                    **in_features("classifier", 0.5, 0.3, 0.0008, 8.6, 0.74, 0.5, 0.8, 0.6, n=360)},
        "real": {**in_features("vgg16", 3.1, 2.9, 0.0002, 9.4, 0.86, 0.85, 1.01, 0.95, n=360),
                 **in_features("classifier", 0.12, 0.1, 0.00004, 9.6, 0.85, 0.84, 1.0, 0.94,
                               n=360)}},
    "verdicts": {
        "teacher": {"word": "passed", "why": ["its fd_vgg16 is 1.65 times that of other real data"],
                    "unknown": []},
        "student": {"word": "close", "why": ["its distance is 1.25 (fd_vgg16) times its teacher's",
                                             "its MSE is 5.0 % of that of permuted pairs"],
                    "unknown": ["its recall_inception, of which there is none"]}},
    "ratios": {"fd_vgg16": measured(1.25, 0.05), "fd_infinity_vgg16": measured(1.28, 0.08),
               "fd_classifier": measured(1.5, 0.06), "kd_classifier": measured(1.59, 0.1)},
    "extrapolation": {name: {"teacher": line(low, 60), "student": line(high, 64)}
                      for name, low, high in (("vgg16", 3.2, 4.1), ("classifier", 0.2, 0.3))},
    "extractors": {
        "vgg16": described("vgg16", "VGG16 trained on ImageNet, its last block averaged.", 512),
        "classifier": described("classifier", "The classifier that this run trained.", 64,
                                accuracy=0.985, accuracy_n=360)},
    "absent": ["No FID: there are no weights of Inception; `kdm weights fetch inception`."],
    "warnings": ["500 samples are fewer than the protocol’s 50,000.",
                 "fd_vgg16 is unreliable: 500 samples in 512 dimensions."],
    "conditions": {"device": "cpu", "bootstrap": 1000, "lpips_n": 200, "lpips_resolution": 64,
                   "real": "test split", "real_n": 360},
}
POINTS: dict[str, Any] = {
    "teacher": {"on_support": measured(0.97, 0.01), "sliced_wasserstein": measured(0.05, 0.1),
                "energy_distance": measured(0.0004, 0.2), "nfe": measured(20),
                "images_per_s": measured(4e4), "parameters": measured(300_000)},
    "student": {"on_support": measured(0.93, 0.01), "sliced_wasserstein": measured(0.06, 0.1),
                "energy_distance": measured(0.0006, 0.2), "mse": measured(0.1),
                "mse_permuted": measured(10.5), "nfe": measured(1),
                "images_per_s": measured(5e5), "parameters": measured(600_000)},
    "real": {"on_support": measured(1.0), "sliced_wasserstein": measured(0.03, 0.1),
             "energy_distance": measured(0.0001, 0.2)},
    "ratios": {"sliced_wasserstein": measured(1.2, 0.1)},
    "verdicts": {
        "teacher": {"word": "passed", "why": ["its sliced_wasserstein is 1.67 times real data's"],
                    "unknown": []},
        "student": {"word": "close", "why": ["its distance is 1.20 (sliced_wasserstein) times"],
                    "unknown": ["its recall, for want of features"]}},
    "conditions": {"device": "cpu", "projections": 128, "real": "train split", "real_n": 500},
}
RESULTS = {"image": IMAGE, "points": POINTS}


SEEN = {"network": {name: ["adversary"] for name in (
            *(f"{metric}_vgg16" for metric in FEATURES), "lpips_vgg")}, "images": {}}
"""What evaluations say of a student whose adversary has seen VGG16."""


def of_unknown_origin(results: Mapping[str, Any]) -> dict[str, Any]:
    """The same, as evaluations have it where nobody knows which teacher made the pairs."""

    def moved(found: Mapping[str, Any]) -> dict[str, Any]:
        return {"pairs" if who == "teacher" else who: own for who, own in found.items()}

    costs = ("nfe", "images_per_s", "parameters")
    word = {"word": "not judged", "why": ["its MSE is 5.0 % of that of permuted pairs"],
            "unknown": ["its distance to real samples beside that of whoever made the pairs"]}
    return moved(results) | {
        "pairs": {key: one for key, one in results["teacher"].items() if key not in costs},
        "at_equal_n": moved(results.get("at_equal_n", {})),
        "verdicts": moved(results["verdicts"]) | {"student": word},
        "extrapolation": {name: moved(one)
                          for name, one in results.get("extrapolation", {}).items()},
        "ratios": {}}


def write_params(kind: str, title: str) -> None:
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
            "pairs": {"source": "sample", "solver": {"kind": "heun", "steps": 18}, "train": 100,
                      "validation": 4, "test": 40,
                      "sample_dtype": "uint8" if kind == "image" else "float32"},
            "students": {name: student for name in STUDENTS},
            "filter": {}, "evaluation": {}, "weights": {}, "studies": {},
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


def write_evaluation(name: str, kind: str, dataset: str, results: Mapping[str, Any]) -> None:
    generator = np.random.default_rng(1)
    if kind == "image":
        noise = generator.normal(size=(40, 1, 8, 8)).astype(np.float32)
        teacher = np.tanh(noise)
    else:
        noise = generator.normal(size=(500, 2)).astype(np.float32)
        teacher = sample_board(500, 0, 2)
    folder = Path("data/evaluation") / name
    write_json(folder / "evaluation.json", {**results, "conditions": {
        "n": 500, "dataset": dataset, "student": name[-1] * 64, "pairs": MARK,
        "precision": "fp32", **({"teacher": MARK} if "teacher" in results else {}),
        **results["conditions"]}})
    angle = generator.uniform(0, 2 * np.pi, 32)
    given = {"teacher" if "teacher" in results else "pairs": teacher}
    np.savez(folder / "samples.npz", noise=noise, student=0.9 * teacher, **given,
             labels=np.arange(len(noise)) % 2,
             eigenvalues=0.9 * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def write_curves(name: str, terms: tuple[str, ...]) -> None:
    folder = Path("reports/curves") / name / "plots" / "metrics"
    folder.mkdir(parents=True)
    for term in terms:
        lines = [f"step\t{term}", *(f"{step}\t{1 / step}" for step in range(1, 20))]
        (folder / f"{term}.tsv").write_text("\n".join(lines) + "\n")


def write_studies(
    name: str, findings: Mapping[str, Mapping[str, Any]], warnings: Sequence[str] = ()
) -> None:
    """Findings by name with their numbers, each with a picture and these warnings."""
    folder = Path("data/studies") / name
    write_json(folder / "findings.json", [
        {"name": finding, "title": f"The {finding}", "alt": f"What {finding} shows of {name}.",
         "caption": f"What to look at in the {finding}.", "numbers": numbers,
         "warnings": list(warnings)}
        for finding, numbers in findings.items()])
    for finding in findings:
        figure, (axis,) = panels(1, 1, 6.4, 2)
        axis.plot([0, len(name), len(finding)])
        save_figure(folder / "pictures" / f"{finding}.png", figure)


FINDINGS = {"vicinity": {"share": 0.25, "chance": 0.1},
            "interpolation": {"steps": [0.1, 0.2, 0.3], "path": {"teacher": 3.0, "student": 2.5}}}


def write_project(
    kind: str, results: Mapping[str, Any] | None = None, title: str = "A title",
    studies: bool = True,
) -> None:
    """Everything that the report reads, in the current folder."""
    results = results or RESULTS[kind]
    write_params(kind, title)
    mark = write_dataset(kind)
    write_curves("teacher", ("loss",))
    write_json(Path("reports/details/teacher.json"), {"nfe": 35})
    write_json(Path("data/pairs/filtered/filtered.json"),
               {"pairs": 104, "kept": 104, "reasons": [], "findings": []})
    stages = ["prepare_data", "reference", "teacher", "sample_pairs"]
    for name in STUDENTS:
        write_evaluation(name, kind, mark, results)
        write_curves(name, ("loss", "reconstruction", "latent", "prediction", "validation_mse",
                            "validation_mse_ratio"))
        if studies:
            write_studies(name, FINDINGS)
        stages += [f"train_student@{name}", f"evaluate@{name}"]
    # The last one is left from a student that is no longer in params.yaml.
    for i, stage in enumerate([*stages, "evaluate@gone"]):
        write_json(Path(f"reports/timings/{stage}.json"), {
            "seconds": 1.5 + i, "device": "cpu", "threads": 2, "torch": "2.x"})


def change_evaluation(name: str, **values: Any) -> None:
    """Set values by their paths (`conditions__teacher`) in a student's evaluation.json."""
    path = Path("data/evaluation") / name / "evaluation.json"
    document = read_json(path)
    for keys, value in values.items():
        *parents, last = keys.split("__")
        place = document
        for parent in parents:
            place = place[parent]
        place[last] = value
    write_json(path, document)


def make_report() -> str:
    """Run the stage in the current folder; returns the page.

    A stage sets torch's mode and threads for its own process only.
    """
    threads = torch.get_num_threads()
    try:
        report.main(Stage("report"))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    return Path("reports/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs with reports, one a kind of data, for tests that only look at them."""
    base = tmp_path_factory.getbasetemp()
    folders = {kind: base / f"finished-{kind}" for kind in RESULTS}
    for kind, folder in folders.items():
        # A module that imports the fixture has one of its own; the runs are made once.
        if not folder.exists():
            folder.mkdir()
            with chdir(folder):
                write_project(kind)
                make_report()
    return folders


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of a report's time, and some tests are about the rest."""
    monkeypatch.setattr(report, "draw", lambda *arguments: [])
