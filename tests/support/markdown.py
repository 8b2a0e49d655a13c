"""The documentation's pages, and what of them tests look at: links, headings, code blocks."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.imports import ROOT

PAGES = [*(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md",
                                    "benchmarks/README.md", "data/README.md")),
         *sorted((ROOT / "docs").rglob("*.md"))]


def tokens(page: Path) -> list[Token]:
    """A page's blocks, in order."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return parser.parse(page.read_text(encoding="utf-8"))


def inlines(page: Path) -> Iterator[Token]:
    """What stands within a page's blocks."""
    for block in tokens(page):
        yield from block.children or ()


def links(page: Path) -> list[str]:
    """Where a page's links lead and its pictures lie, as they stand there."""
    targets = (token.attrs.get("href" if token.type == "link_open" else "src")
               for token in inlines(page) if token.type in ("link_open", "image"))
    return [str(target) for target in targets]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings: letters, digits, hyphens and underscores
    of the text in small letters, and a number from the second of a kind on."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    blocks = tokens(page)
    for before, block in zip(blocks, blocks[1:], strict=False):
        if before.type == "heading_open":
            text = "".join(token.content for token in block.children or ()
                           if token.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return found


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: as it says; empty for what programs print.
        reason: why it is not run, from a comment above it: `<!-- not run: needs a GPU -->`.
    """

    page: Path
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found, reason = [], ""
    for token in tokens(page):
        if token.type == "fence":
            line = token.map[0] + 1 if token.map else 0
            found.append(Block(page, line, token.info.strip(), token.content, reason))
        # A comment holds for the block that follows it, without a text between them.
        match = re.match(r"<!-- not run: (.+?) -->\s*$", token.content)
        reason = match[1] if token.type == "html_block" and match else ""
    return found
