"""A page: headings, words, tables, and any other block that can say itself in HTML.

Not here: drawings (`plot`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--rule:#d0d7de;--faint:#eaeef2;--paper:#fff;
--s0:#0072b2;--s1:#c04e00;--s2:#00805c;--s3:#b0407f;--s4:#806600;--s5:#6b4fc0;--s6:#1583a6;--s7:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa5b1;--rule:#3d444d;--faint:#21262d;--paper:#0d1117;
--s0:#5cb3ff;--s1:#ff9a4d;--s2:#35d0a0;--s3:#f08cc8;--s4:#e3c63a;--s5:#b39dff;--s6:#5fd3ee;--s7:#ff8078}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:62rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.2rem}p{max-width:46rem}
pre{background:var(--faint);padding:.7rem;overflow-x:auto;font-size:13px;white-space:pre-wrap}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;margin:.6rem 0}
caption{text-align:left;color:var(--soft);padding:.3rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{white-space:nowrap}.number{text-align:right;white-space:nowrap}
tr.marked td:first-child{font-weight:600}
figure{margin:1rem 0}figcaption{color:var(--soft);font-size:13.5px;max-width:46rem}svg{width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--ink);paint-order:stroke;stroke:var(--paper);stroke-width:3px}
svg .soft{fill:var(--soft)}svg .grid{stroke:var(--faint)}
svg .axis{stroke:var(--rule)}svg .level{stroke:var(--soft);stroke-dasharray:6 4;stroke-width:1.3}
svg .front{stroke:var(--ink);stroke-width:1.4;fill:none;opacity:.65}svg .bar{stroke:currentColor;stroke-width:1.3}
svg .link{stroke:currentColor;stroke-width:1;fill:none;opacity:.3}
svg .mark{stroke:var(--paper);stroke-width:1;fill:currentColor}
svg .hollow{stroke:currentColor;stroke-width:1.8;fill:var(--paper)}
svg .title{font-weight:600;font-size:13.5px}
.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:13px;margin:.3rem 0}
.legend svg{width:16px;height:16px;vertical-align:-3px;margin-right:.3rem}
"""


class Block(Protocol):
    """A piece of a section."""

    def html(self) -> str:
        """The piece as HTML."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> str:
        """One <p>."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    """Lines to be read as they are: a command, a config."""

    text: str

    def html(self) -> str:
        """One <pre>."""
        return f"<pre>{escape(self.text)}</pre>"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under columns. numeric: names of columns set to the right. marked: numbers of rows to stand out.

    Raises ValueError for a row with another number of cells.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: frozenset[str] = frozenset()
    marked: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"row {number} of table {self.caption!r} has {len(row)} cells, not {len(self.columns)}"
                )

    def html(self) -> str:
        """One <table>, which scrolls where the window is narrower."""
        head = "".join(self._cell("th", name, name) for name in self.columns)
        rows = "".join(self._row(number, row) for number, row in enumerate(self.rows))
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        return f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'

    def _row(self, number: int, row: Sequence[str]) -> str:
        cells = "".join(self._cell("td", name, cell) for name, cell in zip(self.columns, row, strict=True))
        return f'<tr class="marked">{cells}</tr>' if number in self.marked else f"<tr>{cells}</tr>"

    def _cell(self, tag: str, column: str, text: str) -> str:
        kind = ' class="number"' if column in self.numeric else ""
        return f"<{tag}{kind}>{escape(text)}</{tag}>"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """One <section>."""
        return f"<section><h2>{escape(self.heading)}</h2>{''.join(block.html() for block in self.blocks)}</section>"


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole file."""

    title: str
    sections: Sequence[Section]
    lead: str = ""

    def html(self) -> str:
        """A complete HTML 5 document, in UTF-8, that loads nothing."""
        title, sections = escape(self.title), "".join(part.html() for part in self.sections)
        head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        body = f"<h1>{title}</h1><p>{escape(self.lead)}</p>{sections}"
        return f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'


def bytes_text(size: float) -> str:
    """Bytes in powers of 1000 with three digits, as budgets are written: "158 kB"."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= 0.9995 * scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
