"""`arithmetic`: what a full run on CIFAR-10 would take by the figures that were measured."""

from benchmarks.gpu.bench import Row
from benchmarks.gpu.results import Results

PAIRS, STEPS, HOUR = 1_000_000, 800_000, 3600
JUDGED = 50_000 * 2
"""Samples of a student and images of the data."""


def rows(results: Results) -> list[Row]:
    """Hours on one device of this kind. Not in them: reading, writing and checkpoints."""
    found: list[Row] = []
    for row in measured(results, "sampling", "images_per_s"):
        found.append(hours(row, f"{PAIRS:,} pairs: {row['name']}", PAIRS / row["images_per_s"]))
    for row in measured(results, "training", "steps_per_s"):
        found.append(hours(row, f"{STEPS:,} steps: {row['name']}", STEPS / row["steps_per_s"]))
    for row in measured(results, "evaluation", "images_per_s"):
        found.append(hours(row, f"features of {JUDGED:,} images: {row['name']}",
                           JUDGED / row["images_per_s"]))
    return found


def measured(results: Results, part: str, figure: str) -> list[Row]:
    return [row for row in results.rows(part) if figure in row]


def hours(row: Row, name: str, seconds: float) -> Row:
    kept = {key: row[key] for key in ("device", "torch", "precision")}
    return {"name": name, **kept, "hours": seconds / HOUR}
