"""How the report writes numbers."""

import re
from datetime import datetime
from itertools import accumulate
from math import floor, log10


def number(value: float) -> str:
    """Three significant digits, or a whole number with separators."""
    if value == int(value) or abs(value) >= 1000:
        return minus(f"{value:,.0f}")
    digits = max(0, 2 - floor(log10(abs(value))))
    return minus(f"{value:.{digits}f}" if digits < 10 else f"{value:.2e}")


def percent(value: float) -> str:
    return minus(f"{100 * value:.1f} %")


def times(ratio: float) -> str:
    """A ratio as a multiple."""
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:,.0f}×"


def interval(low: float, high: float) -> str:
    """[low, high], to two digits of what lies between them."""
    width = high - low
    digits = min(max(0, 1 - floor(log10(width))), 9) if width > 0 else 3
    return minus(f"[{low:,.{digits}f}, {high:,.{digits}f}]")


def shortened(text: str, words: int = 40) -> tuple[str, str]:
    """Its first sentences, of so many words at most, and the rest."""
    sentences = re.split(r"(?<=[.!?…]) +(?=[A-ZÀ-Þ])", text)
    lengths = list(accumulate(len(sentence.split()) for sentence in sentences))
    kept = sum(length <= words for length in lengths)
    if not kept:
        return " ".join(text.split()[:words]) + " …", text
    return " ".join(sentences[:kept]), " ".join(sentences[kept:])


def minus(text: str) -> str:
    """With the sign that is as wide as a digit in the hyphen's place."""
    return text.replace("-", "−")


def day(moment: datetime) -> str:
    return f"{moment:%d %B %Y}".lstrip("0")


def duration(seconds: float) -> str:
    """A time span in two units at most."""
    if seconds < 60:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    minutes = round(seconds / 60)
    if seconds < 600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
