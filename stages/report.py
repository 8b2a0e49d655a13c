"""report: all results on one page that needs nothing else, as figures and as JSON."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kdm_core.datasets import DatasetInfo, open_dataset
from kdm_core.figures.files import render as render_figure
from kdm_core.figures.style import student_colours
from kdm_core.serialization import write_atomic, write_json
from pipeline.reporting import conditions, filtered, pictures, reading, table
from pipeline.reporting.document import Document, Model, merge, models, of_evaluations
from pipeline.reporting.durations import day, durations, wall_s
from pipeline.reporting.filtered import Filtered
from pipeline.reporting.headlines import headlines, lead
from pipeline.reporting.metrics import by_rank
from pipeline.reporting.page import render
from pipeline.reporting.pictures import Embedded, Picture
from pipeline.reporting.publishing import preview, publish
from pipeline.reporting.records import PICTURES, FindingRecord, Timing
from pipeline.reporting.text import shortened
from pipeline.reporting.verdicts import sentence, verdicts
from pipeline.runtime import paths
from pipeline.runtime.latents import shown_kind
from pipeline.runtime.runner import Stage, run


def main(stage: Stage) -> None:
    names = list(stage.params.students)
    dataset, _ = open_dataset(paths.DATASET)
    evaluations = {name: reading.read_evaluation(name) for name in names}
    samples = {name: reading.read_samples(name) for name in names}
    studies = reading.read_studies(names)
    left_out = filtered.describe(*reading.read_filtered())
    timings = reading.read_timings(names)
    # Of pairs of unknown origin the teacher here may be any.
    check = reading.read_check() if evaluations[names[0]].teacher else None
    found = conditions.merge_conditions(evaluations)
    found |= {"seed": stage.params.seed, **conditions.measured_on(timings, names),
              **conditions.adaptations(timings), **conditions.environment()}
    document = Document(
        title=stage.params.report.title, dataset=dataset.info.source,
        kind=shown_kind(stage.params, dataset.info.samples), n=found["n"], conditions=found,
        stages={name: timing.seconds for name, timing in timings.items()},
        wall_s=round(wall_s(timings), 2) if timings else None,
        studies={name: {one.finding.name: one.finding.numbers for one in own}
                 for name, own in (studies or {}).items()},
        check=check, **of_evaluations(evaluations, found["n"]))
    if check is not None:
        document.warnings.extend(check.warnings())
    document.warnings.extend(merge({name: [line for one in own for line in one.finding.warnings]
                                    for name, own in (studies or {}).items()}))
    drawn = draw(dataset.info, samples, document)
    page = render("report.html.j2", **content(stage, dataset.info, document, timings),
                  **illustrate(drawn, studies, left_out))
    write_json(paths.REPORTS / "report.json", document.model_dump(exclude_none=True))
    write_atomic(paths.REPORTS / "report.html", page.encode())
    stage.say(f"{paths.REPORTS / 'report.html'}: {len(page) / 1e6:.1f} MB")
    if stage.params.report.publish is not None:
        stage.require_planned()
        publish(stage.params.report.publish)
        stage.say(f"published to {stage.params.report.publish}")


def draw(
    info: DatasetInfo, samples: Mapping[str, reading.Samples], document: Document
) -> list[Picture]:
    """The run's own figures, in the order in which they are shown."""
    curves = {name: reading.read_curves(name, f"train_student@{name}") for name in samples}
    colours = student_colours(samples)
    # Of pairs of unknown origin the teacher here may be any.
    teacher = reading.read_teacher_curves() if document.source == "teacher" else {}
    drawn = [pictures.curves(curves)]
    if document.kind != "latent":
        drawn.insert(0, pictures.samples(info, document.kind, samples))
    if (terms := pictures.terms(teacher, curves)) is not None:
        drawn.append(terms)
    if operators := {name: one for name, one in samples.items() if len(one.eigenvalues)}:
        drawn.append(pictures.eigenvalues(operators, colours))
    limits = {name: document.extrapolation[name] for name in by_rank(document.extractors)
              if name in document.extrapolation}
    if limits:
        drawn.append(pictures.limits(limits, colours, document.source))
    return drawn


def illustrate(
    drawn: list[Picture], studies: Mapping[str, list[reading.Study]] | None,
    left_out: Filtered | None,
) -> dict[str, Any]:
    """Figures as files, and they and those of the stages before for the page.

    Returns:
        `first`, the picture that opens the page, and `pictures`, the others by their names;
        `studies`: the findings of one name together, one a student; and `filtered`: which pairs
        were left out, and its findings as `near_copies`.
    """
    pngs = {paths.FIGURES / f"{picture.name}.png": render_figure(picture.figure)
            for picture in drawn}
    for path, png in pngs.items():
        write_atomic(path, png)
    pngs |= {study_file(name, one): one.png for name, own in (studies or {}).items()
             for one in own}
    if left_out is not None:
        pngs |= {filtered_file(name): png for name, png in left_out.pictures.items()}
    embedded = pictures.embed(pngs)
    together: dict[str, list[dict[str, Any]]] = {}
    for name, own in (studies or {}).items():
        for one in own:
            together.setdefault(one.finding.name, []).append(
                {"student": name, **shown(one.finding, embedded[study_file(name, one)])})
    by_name = {picture.name: (picture, embedded[paths.FIGURES / f"{picture.name}.png"])
               for picture in drawn}
    opening = next((name for name in by_name if name in pictures.SHOWN), None)
    return {"first": None if opening is None else by_name.pop(opening), "pictures": by_name,
            "studies": None if studies is None else list(together.values()),
            "filtered": left_out,
            "near_copies": [shown(one, embedded[filtered_file(one.name)])
                            for one in (left_out.findings if left_out is not None else [])]}


def shown(finding: FindingRecord, image: Embedded) -> dict[str, Any]:
    """A finding as the page shows it."""
    caption, more = shortened(finding.caption)
    return {"finding": finding, "image": image, "caption": caption, "more": more,
            "numbers": table.numbers(finding.numbers)}


def filtered_file(name: str) -> Path:
    return paths.FILTERED / PICTURES / f"{name}.png"


def study_file(name: str, study: reading.Study) -> Path:
    return paths.STUDIES / name / PICTURES / f"{study.finding.name}.png"


def content(
    stage: Stage, info: DatasetInfo, document: Document, timings: Mapping[str, Timing]
) -> dict[str, Any]:
    """What the page says, besides its pictures."""
    run: list[tuple[str, list[Model]]] = [("", models(document))]
    marks = {name: one.fingerprint for name, one in document.extractors.items()}
    return {
        "document": document,
        "day": day(timings),
        "title": document.title,
        "description": sentence(document),
        "preview": preview(stage.params.report.publish, "samples" if document.kind == "image"
                           else "scatter"),
        "command": "dvc repro report",
        "lead": lead(info, stage.params.students, document),
        "headlines": headlines(document),
        "verdicts": verdicts(document),
        "overviews": table.overviews(run, document.extractors),
        "sections": table.sections(document),
        "conditions": conditions.lines(
            document.conditions | ({"extractors": marks} if marks else {})),
        "durations": durations(timings),
        "params": as_yaml(stage.params.model_dump(mode="json", exclude={"compute", "execution"})),
    }


def as_yaml(values: dict[str, Any]) -> str:
    """Parameters as they could stand in params.yaml."""
    buffer = io.StringIO()
    YAML().dump(values, buffer)
    return buffer.getvalue()


if __name__ == "__main__":
    run("report", main)
