"""The verdicts of a report, as its page shows them: in one sentence, and one by one."""

from collections.abc import Sequence
from typing import NamedTuple

from kdm_core.figures.style import STUDENTS
from kdm_core.samples import SOURCE_NAMES
from pipeline.reporting.document import Document
from pipeline.reporting.records import VerdictRecord
from pipeline.reporting.text import number

TONES = {"failed": "bad", "poor": "poor", "not judged": "open", "told apart": "open"}
"""How a word is coloured; others are good."""


PHRASES = {
    "better than its teacher": ("is better than its teacher", "are better than their teacher"),
    "as good as its teacher": ("is as good as its teacher", "are as good as their teacher"),
    "close": ("comes close to its teacher", "come close to their teacher"),
    "told apart": ("can be told from its teacher", "can be told from their teacher"),
    "poor": ("is far behind its teacher", "are far behind their teacher"),
    "not judged": ("cannot be judged", "cannot be judged"),
    "failed": ("failed", "failed"),
}
"""What a word says of one student, and of several; the best comes first."""


class Shown(NamedTuple):
    """A verdict for the page.

    Attributes:
        model: on whom, and the colour that it has in the figures.
        tone: "good", "poor", "bad" or "open".
        first: why, in a sentence; always to be seen of one that is "bad".
        more: what else was looked at; seen where it is unfolded, as is
        unknown: what could not be judged.
    """

    model: str
    colour: str
    word: str
    tone: str
    first: str
    more: list[str]
    unknown: list[str]


def verdicts(document: Document) -> list[Shown]:
    """On what was learned from, then on the students."""
    source = getattr(document.verdicts, document.source)
    found = [] if source is None else [show(SOURCE_NAMES[document.source], document.source, source)]
    words = document.verdicts.students
    return found + [show(name, f"student-{place % len(STUDENTS)}", words[name])
                    for place, name in enumerate(document.students) if name in words]


def show(name: str, colour: str, verdict: VerdictRecord) -> Shown:
    """The first reason by itself: with all of them, failures would hide the picture."""
    first, *more = verdict.why or [""]
    return Shown(name, colour, verdict.word, TONES.get(verdict.word, "good"), first, more,
                 verdict.unknown)


def sentence(document: Document) -> str:
    """The verdict on the run: what became of its students, the best first."""
    words = {name: document.verdicts.students[name].word for name in document.students
             if name in document.verdicts.students}
    ranked = sorted(set(words.values()), key=lambda word: (
        list(PHRASES).index(word) if word in PHRASES else -1, word))
    clauses = [clause([name for name, own in words.items() if own == word], word)
               for word in ranked]
    source = getattr(document.verdicts, document.source)
    vain = source is not None and source.word == "failed"
    return (f"{steps(document)}{joined(clauses)}." if clauses else "") + (
        f" What they learned from, the {SOURCE_NAMES[document.source]}, failed itself."
        if vain else "")


def clause(names: Sequence[str], word: str) -> str:
    one, several = PHRASES.get(word, (f"is {word}", f"are {word}"))
    return f"{joined(names)} {one if len(names) == 1 else several}"


def steps(document: Document) -> str:
    """In how many evaluations, where that is the same for all students that did not fail."""
    own = {figures.get("nfe") for name, figures in document.students.items()
           if not document.failed(name)}
    nfe, theirs = own.pop() if len(own) == 1 else None, document.teacher.get("nfe")
    if nfe is None:
        return ""
    instead = "" if theirs is None else f" instead of {number(theirs)}"
    return f"With {number(nfe)} network evaluation{'' if nfe == 1 else 's'} a sample{instead}, "


def joined(parts: Sequence[str]) -> str:
    """Parts of a sentence."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
