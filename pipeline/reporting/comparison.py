"""Students of several runs side by side: from report.json files of folders, revisions, or
experiments."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from kdm_core.errors import DataError
from pipeline.reporting.conditions import LABELS, parts
from pipeline.reporting.document import Document, merge, models
from pipeline.reporting.headlines import Headline
from pipeline.reporting.leaders import leaders, ranking
from pipeline.reporting.page import render
from pipeline.reporting.pictures import Embedded, embed
from pipeline.reporting.reading import first_problem
from pipeline.reporting.records import ExtractorRecord
from pipeline.reporting.table import Overview, overviews
from pipeline.reporting.text import day
from pipeline.reporting.verdicts import Shown, sentence, verdicts

SAMPLES = ("samples.png", "scatter.png")
"""Of these two, a run has the one that fits its data."""
CONCERNS = {
    "n": "they stand in tables of their own: Fréchet distances shrink as n grows, and can only be "
         "compared for n → ∞",
    "teacher": "each student is to be compared with its own teacher",
    "pairs": "the figures come from other noises",
    "lpips_resolution": "LPIPS cannot be compared",
    "projections": "sliced distances cannot be compared",
    "precision": "samples a second cannot be compared",
    "device": "samples a second cannot be compared",
    "threads": "samples a second cannot be compared",
}
"""What it means for the figures that a condition is not the same in all runs."""
LONG = 16


class Run(NamedTuple):
    """A run by the name under which it was asked for, and the picture of its samples if it has
    one, with the file that this comes from."""

    name: str
    document: Document
    samples: tuple[Path, bytes] | None


class Group(NamedTuple):
    """The runs on one data set that were compared with the same real samples.

    Attributes:
        sentence: whose students are nearest to the data, or what became of each run.
        headlines: the best figures, as far as figures can be compared.
        conditions: (label, one text a run), those that differ first.
        pictures: (run, embedded picture, verdicts on its models).
    """

    title: str
    sentence: str
    headlines: list[Headline]
    runs: list[str]
    overviews: list[Overview]
    concerns: list[str]
    warnings: list[str]
    absent: list[str]
    conditions: list[tuple[str, list[str]]]
    pictures: list[tuple[str, Embedded, list[Shown]]]


Read = Callable[[str], bytes | None]
"""The content of a file by its path in the folder `reports`; None where there is none."""


def compare(names: Sequence[str]) -> str:
    """The page on several runs, each a folder, a report.json, a git revision or an experiment.

    Raises:
        DataError: a run has no report, or a damaged one, or was named twice.
    """
    if len(set(names)) < len(names):
        raise DataError("a run is named twice: name every run once")
    runs = [open_run(name) for name in names]
    images = embed(dict(run.samples for run in runs if run.samples is not None))
    by_data: dict[Any, list[Run]] = {}
    for run in runs:
        by_data.setdefault((run.document.conditions.get("dataset"), real_samples(run.document)),
                           []).append(run)
    groups = [describe(found, images) for found in by_data.values()]
    return render("comparison.html.j2", title="Runs side by side", day=day(datetime.now(UTC)),
                  runs=list(names), groups=groups,
                  description=" ".join(group.sentence for group in groups), preview=None,
                  command=f"kdm report compare {' '.join(names)} --out page.html")


def real_samples(document: Document) -> frozenset[tuple[Any, Any]]:
    """Which real samples, and how many, the models were compared with: distances to others, or to
    as many more, are other figures."""
    found: list[tuple[Any, Any]] = [(one.reference, one.reference_n)
                                    for one in document.extractors.values()]
    conditions = document.conditions
    return frozenset(found or [(conditions.get("reference"), conditions.get("reference_n"))])


def open_run(name: str) -> Run:
    """One run.

    Raises:
        DataError: it has no report, or a damaged one.
    """
    read = reader(name)
    content = read("report.json")
    if content is None:
        raise DataError(f"{name}: there is no reports/report.json: name a folder that has one, a "
                        "report.json, or a git revision or DVC experiment of this repository that "
                        "has one; `dvc repro report` makes it")
    try:
        document = Document.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{name}: report.json is damaged or of another version "
                        f"({first_problem(error)}): run `dvc repro report` there") from error
    pictures = ((Path(name, file), read(f"figures/{file}")) for file in SAMPLES)
    return Run(name, document, next(((path, png) for path, png in pictures if png), None))


def reader(name: str) -> Read:
    """Reads a run's reports from where they are."""
    path = Path(name)
    if path.is_file():
        return lambda file: beside(path.parent, path.name if file == "report.json" else file)
    if path.is_dir():
        nested = path / "reports"
        return lambda file: beside(nested if nested.is_dir() else path, file)
    return at_revision(name)


def beside(folder: Path, file: str) -> bytes | None:
    path = folder / file
    return path.read_bytes() if path.is_file() else None


def at_revision(revision: str) -> Read:
    """Reads the reports of a git revision or DVC experiment of the repository around us."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    def read(file: str) -> bytes | None:
        try:
            files = DVCFileSystem(rev=revision)
            with files.open(f"/reports/{file}", "rb") as opened:
                content: bytes = opened.read()
        except FileNotFoundError:
            return None
        except DvcException as error:
            raise DataError(f"{revision}: is neither a folder or file, nor a git revision or DVC "
                            f"experiment of this repository ({error})") from error
        return content

    return read


def describe(runs: list[Run], images: Mapping[Path, Embedded]) -> Group:
    """All about the runs of one group."""
    extractors: dict[str, ExtractorRecord] = {}
    for run in runs:
        extractors = run.document.extractors | extractors
    told = [(run.name, run.document) for run in runs]
    documents = dict(told)
    document, mark = runs[0].document, runs[0].document.conditions.get("dataset")
    beside = ", ".join(sorted(str(name) for name, _ in real_samples(document) if name))
    return Group(
        title=f"{document.dataset}{f' ({short(mark)})' if mark else ''}"
              f"{f', beside its {beside}' if beside else ''}",
        sentence=ranking(documents) or " ".join(
            f"{name}: {sentence(document)}" for name, document in told),
        headlines=leaders(documents),
        runs=[run.name for run in runs],
        overviews=overviews([(name, models(document)) for name, document in told], extractors),
        concerns=differences(runs),
        warnings=merge({name: document.warnings for name, document in told}),
        absent=merge({name: document.absent for name, document in told}),
        conditions=tabulate(runs),
        pictures=[(run.name, images[run.samples[0]], verdicts(run.document))
                  for run in runs if run.samples is not None])


def differences(runs: list[Run]) -> list[str]:
    """In what the runs differ that their figures depend on, and what follows from it."""
    lines = []
    for key, consequence in CONCERNS.items():
        values = {run.name: run.document.conditions.get(key) for run in runs}
        if differ(values.values()):
            lines.append(f"{LABELS.get(key, key)}: {told(values)}. So {consequence}.")
    for name in dict.fromkeys(name for run in runs for name in run.document.extractors):
        lines += extractor_differences(name, runs)
    return lines


def extractor_differences(name: str, runs: list[Run]) -> list[str]:
    """In what the runs that use an extractor differ in it."""
    found = {run.name: run.document.extractors[name] for run in runs
             if name in run.document.extractors}
    values = {run: one.fingerprint for run, one in found.items()}
    return [f"The features of {name}: {told(values)}. So figures in features of {name} cannot be "
            "compared between these runs."] if differ(values.values()) else []


def differ(values: Any) -> bool:
    first, *rest = values
    return any(value != first for value in rest)


def told(values: Mapping[str, Any]) -> str:
    """Values by run as text."""
    return ", ".join(f"{short(value)} in {run}" for run, value in values.items())


def short(value: Any) -> str:
    """A condition as text, fingerprints by their beginning."""
    if value is None:
        return "–"
    texts = [f"{part} {text}".strip() for part, text in parts(value)]
    return ", ".join(text[:LONG - 4] + "…" if len(text) > LONG and " " not in text else text
                     for text in texts)


def tabulate(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Conditions as (label, one text a run), those that differ first."""
    keys = dict.fromkeys(key for run in runs for key in run.document.conditions)
    labels = list(LABELS)
    rows = []
    for key in sorted(keys, key=lambda key: labels.index(key) if key in LABELS else len(labels)):
        values = [run.document.conditions.get(key) for run in runs]
        rows.append((LABELS.get(key, key), [short(value) for value in values], differ(values)))
    return [(label, texts) for label, texts, _ in sorted(rows, key=lambda row: not row[2])]
