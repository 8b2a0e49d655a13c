"""Model cards: what a student is, written from its configuration and the figures of its run."""

import json
from collections.abc import Mapping
from typing import Any

from kdm_core.pairs.spec import StoreSpec
from kdm_core.samples import SOURCE_NAMES, SampleSpec, Source
from kdm_core.students.base import Student

CARD = "README.md"
LIBRARY = "kdm-distill"

MARKS = {"network": ("†", "Its loss has seen this network"),
         "images": ("‡", "Its loss took as real the images that this compares with")}
"""On figures that flatter the student."""

Figures = Mapping[str, Any]


def model_card(
    student: Student,
    fingerprint: str,
    pairs: StoreSpec | None = None,
    evaluation: Figures | None = None,
    name: str | None = None,
    license: str | None = None,
) -> str:
    """A model card in Markdown, with the YAML head that the Hugging Face hub reads.

    Args:
        student: with its provenance, if it has one.
        fingerprint: of its folder.
        pairs: what it was distilled from; None leaves its solver and number of pairs out.
        evaluation: what was measured: `teacher` (or `pairs`, where nobody knows
            which teacher made them), `student`, `ratios`, `verdicts`, `seen`, `absent`, `warnings`
            and `conditions`.
        name: its title, and where the hub has it; None for a placeholder.
        license: one of the hub's identifiers (apache-2.0, …); None leaves the choice to the reader.
    """
    sections = [
        head(student, license),
        f"# {name or 'One-step student'}\n\n{opening(student, evaluation)}",
        f"## Use\n\n{usage(student, name)}",
        f"## Without PyTorch\n\n{onnx_usage(student, fingerprint)}",
        f"## What it was distilled from\n\n{listing(origin(student, pairs))}",
        f"## Architecture\n\n{listing(architecture(student, fingerprint))}",
    ]
    if evaluation is not None:
        sections += [f"## Evaluation\n\n{figures_table(evaluation)}",
                     f"Conditions:\n\n{listing(evaluation['conditions'])}"]
        if found := limitations(evaluation):
            sections.append("## Limitations\n\n" + "\n".join(f"- {line}" for line in found))
    return "\n\n".join(sections) + "\n"


def head(student: Student, license: str | None) -> str:
    """The YAML between two rules; JSON's strings are YAML's."""
    lines = [f"license: {json.dumps(license)}"] if license else []
    lines.append(f"library_name: {LIBRARY}")
    if student.spec.pictured:
        lines.append("pipeline_tag: unconditional-image-generation")
    tags = ["koopman-distillation", "one-step-generation", "diffusion-distillation"]
    lines += ["tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def opening(student: Student, evaluation: Figures | None) -> str:
    """What its figures come to, if that is known, and what it is."""
    found = (evaluation or {}).get("verdicts", {}).get("student", student.verdict)
    return "\n\n".join([*([verdict(found)] if found else []), description(student)])


def verdict(found: Figures) -> str:
    """The word on it, why, and what could not be judged."""
    lines = [*found["why"], *(f"could not be judged: {line}" for line in found["unknown"])]
    return "\n".join([f"**Verdict: {one_line(found['word'])}**", "",
                      *(f"- {one_line(line)}" for line in lines)])


def description(student: Student) -> str:
    """What it makes of what, in two sentences."""
    spec = student.spec
    size = " × ".join(map(str, spec.shape))
    what = {"image": f"images of {size} (channels, height, width) in [-1, 1]",
            "latent": f"latents of {size} (channels, height, width){decoded(spec)}",
            "points": f"points of {spec.shape[0]} numbers"}[spec.kind]
    given = f" and one of {spec.num_classes} labels" if spec.num_classes else ""
    source = ("pairs of noise and samples of which nobody wrote down who made them"
              if is_of_unknown_origin(student) else "a diffusion or flow-matching model")
    return (f"A one-step student ({student.config.describe()}): it makes {what} of Gaussian "
            f"noise{given} in one evaluation. It was distilled from {source} with {LIBRARY}.")


def decoded(spec: SampleSpec) -> str:
    """What becomes of latents."""
    if spec.picture is None:
        return ", whose decoder nobody wrote down,"
    return f", which a decoder makes images of {' × '.join(map(str, spec.picture))},"


def is_of_unknown_origin(student: Student) -> bool:
    """Whether its record says that the teacher of its pairs is not known."""
    return "teacher" in student.provenance and student.provenance["teacher"] is None


def usage(student: Student, name: str | None) -> str:
    """Three lines of Python."""
    label = a_label(student.spec)
    labels = "" if label is None else f", labels={label}"
    decoded = student.autoencoder is not None
    shape = student.spec.picture_shape if decoded else student.spec.shape
    made = f"{(64, *(shape or ()))} float32"
    if student.spec.bounded or decoded:
        made += ", about [-1, 1]" if student.spec.bounded else ", [-1, 1]"
    labels += ", decode=True" if decoded else ""
    return ("```python\nimport kdm_core\n"
            f"student = kdm_core.from_pretrained({json.dumps(name or 'path/to/this/folder')})\n"
            f"samples = student.sample(64, seed=0{labels})  # {made}\n```")


def a_label(spec: SampleSpec) -> str | None:
    """The first class as Python has it: by its name, where that is one name and can be written."""
    if not spec.num_classes:
        return None
    name = spec.label_names[0]
    plain = name.isprintable() and "`" not in name and spec.label_names.count(name) == 1
    return json.dumps(name, ensure_ascii=False) if plain else "0"


def onnx_usage(student: Student, fingerprint: str) -> str:
    """How the student becomes a file for ONNX runtimes, and how that is run: inputs, outputs."""
    spec = student.spec
    shape = ", ".join(map(str, spec.shape))
    lines = [
        "import numpy as np", "import onnxruntime", "",
        'session = onnxruntime.InferenceSession("student.onnx")',
        f"noise = np.random.default_rng(0).standard_normal((16, {shape}), dtype=np.float32)",
        'inputs = {"noise": noise}']
    takes = "`noise`, float32, independent normal values of variance 1"
    if spec.num_classes:
        lines.append(f'inputs["labels"] = np.arange(16, dtype=np.int64) % {spec.num_classes}')
        takes += (f", and `labels` (B,), int64, the class of each, 0 to {spec.num_classes - 1} in "
                  "the order given under Architecture")
    lines.append('(samples,) = session.run(["samples"], inputs)')
    values, decoded = "values of any size", student.autoencoder is not None
    if spec.bounded or decoded:
        values = "values from -1 to 1"
        lines.append("pixels = np.rint((samples + 1) * 127.5).astype(np.uint8)")
    export = ["from pathlib import Path", "from kdm_core.sharing.export import export_student",
              f'export_student(student, Path("student.onnx"), "onnx", "{fingerprint}"'
              f'{", decode=True" if decoded else ""})']
    return "\n\n".join([
        "Written as ONNX (`pip install 'kdm-distill[export]'`):", fenced(export),
        f"It takes {takes}; it gives `samples`, float32, {values}. Noise and samples have the "
        f"shape (B, {shape}), for any B.", fenced(lines)])


def fenced(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def origin(student: Student, pairs: StoreSpec | None) -> dict[str, Any]:
    """The run's record, and how its pairs were made."""
    record = student.provenance
    again = ("losses", "training") if "phases" in record else ()  # those of the first phase
    found = {key: value for key, value in sorted(record.items()) if key not in again}
    if is_of_unknown_origin(student):
        found["teacher"] = "unknown"
    if pairs is not None:
        found["pairs for training"] = f"{pairs.splits['train']:,}"
    if pairs is not None and pairs.source == "teacher":
        found |= {
            "solver": pairs.known_solver.model_dump(exclude_none=True),
            "evaluations of the teacher a pair": pairs.nfe if pairs.nfe else "adaptive",
            "guidance": (pairs.guidance.model_dump(exclude_none=True) if pairs.guidance
                         else "none"),
            "precision of the teacher": pairs.precision,
        }
    return found or {"record": "none was kept"}


def architecture(student: Student, fingerprint: str) -> dict[str, Any]:
    config = student.config.model_dump(exclude_none=True)
    count = sum(parameter.numel() for parameter in student.parameters())
    labels = ", ".join(student.spec.label_names)
    return {"parameters": f"{count:,}", **config, **({"labels": labels} if labels else {}),
            "standard deviation of samples": student.spec.sigma_data, "fingerprint": fingerprint}


def listing(values: Figures) -> str:
    """A Markdown list of names and values; an object is one line of its own fields."""
    return "\n".join(f"- {one_line(key)}: {text(value)}" for key, value in values.items())


def text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{one_line(key)} {text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def one_line(value: str) -> str:
    """Text as Markdown that is neither code, nor markup, nor more than a line."""
    plain = " ".join(value.split())
    return "".join(f"\\{letter}" if letter in r"\`*_[]<>|#" else letter for letter in plain)


def source_of(evaluation: Figures) -> Source:
    """What the student was measured beside."""
    return "pairs" if evaluation.get("pairs") else "teacher"


def figures_table(evaluation: Figures) -> str:
    """Teacher and student side by side; a figure that one of them has not is left open.

    Those that flatter the student are marked.
    """
    source, seen = source_of(evaluation), evaluation.get("seen", {})
    given, student = evaluation[source], evaluation["student"]
    names = [*given, *(key for key in student if key not in given)]
    marks = {what: mark for what, (mark, _) in MARKS.items() if seen.get(what)}
    rows = [f"| {one_line(key)} | {cell(given.get(key))} | {cell(student.get(key))}"
            f"{''.join(f' {mark}' for what, mark in marks.items() if key in seen[what])} |"
            for key in names]
    legend = [f"\n{mark} {MARKS[what][1]}, which flatters it." for what, mark in marks.items()]
    return "\n".join([f"| | {SOURCE_NAMES[source]} | student |", "|---|---|---|", *rows, *legend])


def cell(figure: Figures | None) -> str:
    """A figure with its interval, where it has one."""
    if figure is None:
        return ""
    value = figure["value"]
    written = f"{value:,.0f}" if value == int(value) else text(value)
    interval = figure["interval"]
    return f"{written} ({text(interval[0])} to {text(interval[1])})" if interval else written


def limitations(evaluation: Figures) -> list[str]:
    """What the figures say against the student, a sentence each."""
    source = source_of(evaluation)
    teacher, student = ({key: figure["value"] for key, figure in evaluation[who].items()}
                        for who in (source, "student"))
    its = "its teacher's" if source == "teacher" else "the stored"
    whose = "its teacher's" if source == "teacher" else "that of its pairs' own samples"
    found = [one_line(line) for line in evaluation.get("absent", []) if source == "pairs"]
    for key, figure in evaluation["ratios"].items():
        if figure["value"] > 1:
            found.append(f"Its {one_line(key)}, a distance, is {figure['value']:.2f} times "
                         f"{whose} ({student[key]:.4g} and {teacher[key]:.4g}).")
    if "mse" in student and student.get("mse_permuted"):
        share = 100 * student["mse"] / student["mse_permuted"]
        found.append(f"It does not give {its} sample of a noise exactly: the mean squared "
                     f"difference is {student['mse']:.4g}, {share:.1f} % of that of samples "
                     "of different noise.")
    if "label_agreement" in student and student["label_agreement"] < 1:
        share = 100 * (1 - student["label_agreement"])
        found.append(f"In {share:.1f} % of cases a classifier sees another class in its sample "
                     f"than in {its} one of the same noise.")
    if "on_support" in student and student["on_support"] < 1:
        found.append(f"{100 * (1 - student['on_support']):.1f} % of its points lie where there are "
                     f"no data ({SOURCE_NAMES[source]}: "
                     f"{100 * (1 - teacher['on_support']):.1f} %).")
    return found + [one_line(line) for line in evaluation["warnings"]]
