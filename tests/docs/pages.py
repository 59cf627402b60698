"""Reading Markdown: fenced blocks, headings, links, tables and code spans."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(
    r"^(?:<!-- skip: (?P<why>[^\n]*) -->\n)?```(?P<kind>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its first line's number, and why it is not run, if it says so."""

    kind: str
    code: str
    line: int
    skip: str | None


def page_id(page: Path) -> str:
    return page.name


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["kind"], match["code"], text.count("\n", 0, match.start("code")) + 1, match["why"])
        for match in _BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """Return the page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    return _LINK.findall(_SPAN.sub("", prose(page)))


def spans(text: str) -> list[str]:
    return _SPAN.findall(text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number, anchor = 0, slug
        while anchor in found:
            number, anchor = number + 1, f"{slug}-{number + 1}"
        found.add(anchor)
    return found


def table_after(page: Path, marker: str) -> list[list[str]]:
    """Return the cells of the table that follows ``<!-- marker -->``, without its header."""
    _, found, rest = page.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
    assert found, f"{page.name} has no table marked '{marker}'"
    rows: list[list[str]] = []
    for line in rest.splitlines():
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    assert len(rows) > 2, f"{page.name}: the table marked '{marker}' is empty"
    return rows[2:]
