"""The parts a page is made of, as HTML: sections, bullets, tables, figures, legends. Everything given is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from irl.report.panel import Panel
from irl.report.tables import Table

LONG = 32
"""Characters of a cell beyond which it wraps."""


def section(name: str, title: str, body: str) -> str:
    """A section under a heading; ``body`` is HTML already."""
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}</section>\n'


def cautions(title: str, found: Sequence[str]) -> str:
    """A box of warnings; nothing if there are none."""
    if not found:
        return ""
    return f'<aside class="warn"><h3>{escape(title)}</h3>{bullets(found)}</aside>\n'


def bullets(texts: Iterable[str]) -> str:
    """A list of sentences; nothing if there are none."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def absent(text: str) -> str:
    """A sentence in place of what is not there."""
    return f'<p class="quiet">{escape(text)}</p>\n'


def grid(panels: Sequence[Panel]) -> str:
    """Figures that wrap, each with its words for those who do not see it."""
    figures = "".join(
        f"<figure>{f'<figcaption>{escape(p.caption)}</figcaption>' if p.caption else ''}"
        f'<div role="img" aria-label="{escape(p.description)}">{p.svg}</div></figure>\n'
        for p in panels
    )
    return f'<div class="grid">{figures}</div>\n' if panels else ""


def folded(table: Table) -> str:
    """A table to be opened."""
    return f"<details><summary>{escape(table.title)}</summary>{as_table(table, caption=False)}</details>\n"


def as_table(table: Table, *, caption: bool = True) -> str:
    """A table that scrolls within its frame, under its title unless it has one already."""
    head = "".join(f'<th scope="col"{_side(table, i)}>{escape(text)}</th>' for i, text in enumerate(table.header))
    rows = "".join(
        f"<tr{' class=flag' if i in table.flagged else ''}>"
        + "".join(
            f'<th scope="row"{_long(cell)}>{escape(cell)}</th>'
            if k < table.labels
            else f"<td{_side(table, k) or _long(cell)}>{escape(cell)}</td>"
            for k, cell in enumerate(row)
        )
        + "</tr>\n"
        for i, row in enumerate(table.rows)
    )
    title = f"<h3>{escape(table.title)}</h3>" if caption else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'{title}<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>{note}\n"
    )


def _long(cell: str) -> str:
    """Sentences wrap, at a width that can be read."""
    return ' class="long"' if len(cell) > LONG else ""


def _side(table: Table, column: int) -> str:
    return ' class="n"' if table.numeric(column) else ""


def key(label: str, colour: str, *, dashed: bool = False) -> str:
    """An entry of a legend."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    line = f'<svg viewBox="0 0 26 10" aria-hidden="true"><path d="M1 5H25" stroke="{colour}"{dash}/></svg>'
    return f"<li>{line}{escape(label)}</li>"
