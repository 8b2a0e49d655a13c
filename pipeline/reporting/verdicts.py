"""The verdicts of a report, as its page shows them."""

from typing import NamedTuple

from kdm_core.samples import SOURCE_NAMES
from pipeline.reporting.document import Document
from pipeline.reporting.records import VerdictRecord

TONES = {"failed": "bad", "poor": "poor", "not judged": "open"}
"""How a word is coloured; others are good."""


class Shown(NamedTuple):
    """A verdict for the page.

    Attributes:
        model: on whom.
        tone: "good", "poor", "bad" or "open".
        first: why, in what is always to be seen.
        more: what else was looked at; seen where it is unfolded, as is
        unknown: what could not be judged.
    """

    model: str
    word: str
    tone: str
    first: list[str]
    more: list[str]
    unknown: list[str]


def verdicts(document: Document) -> list[Shown]:
    """On what was learned from, then on the students."""
    source = getattr(document.verdicts, document.source)
    found = [] if source is None else [show(SOURCE_NAMES[document.source], source)]
    return found + [show(name, one) for name, one in document.verdicts.students.items()]


def show(name: str, verdict: VerdictRecord) -> Shown:
    """All reasons of a failure are to be seen, of other verdicts the first."""
    seen = len(verdict.why) if verdict.word == "failed" else 1
    return Shown(name, verdict.word, TONES.get(verdict.word, "good"), verdict.why[:seen],
                 verdict.why[seen:], verdict.unknown)
