"""What the report says of pairs that students were not shown."""

from typing import NamedTuple

from pipeline.reporting.records import FilterRecord, FindingRecord
from pipeline.reporting.text import percent


class Filtered(NamedTuple):
    """Which pairs were left out.

    Attributes:
        text: how many.
        reasons: what speaks against how many, and their share; code is in backticks.
        findings: one for each space in which copies were looked for.
        pictures: of the findings by their names, as PNG.
    """

    text: str
    reasons: list[tuple[str, str, str]]
    findings: list[FindingRecord]
    pictures: dict[str, bytes]


def describe(record: FilterRecord, pictures: dict[str, bytes]) -> Filtered | None:
    """The section, from what the stage noted; None where nothing was looked for."""
    if not record.reasons:
        return None
    left_out = record.pairs - record.kept
    return Filtered(
        f"Students were not shown {left_out:,} of the {record.pairs:,} pairs "
        f"({percent(left_out / record.pairs)}) of the train and validation splits. Several reasons "
        "can speak against one pair. Test pairs are the yardstick: none is left out.",
        [(text, f"{count:,}", percent(count / record.pairs))
         for text, count in record.reasons],
        record.findings, pictures)
