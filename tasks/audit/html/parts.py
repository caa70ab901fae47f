"""Small pieces of HTML; every text passes `escape` here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already; everything else is escaped."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Returns a value as HTML text."""
    return value if isinstance(value, Markup) else Markup(escape(str(value)))


def paragraph(value: object, style: str = "") -> Markup:
    """Returns a paragraph."""
    return Markup(f"<p{_style(style)}>{text(value)}</p>")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], style: str = "") -> Markup:
    """Returns a table in a box that scrolls sideways by itself."""
    head = "".join(f'<th scope="col">{text(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return Markup(
        f'<div class="wide"><table{_style(style)}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def pairs(rows: Iterable[tuple[str, object]]) -> Markup:
    """Returns a list of terms and what they are."""
    body = "".join(f"<dt>{text(term)}</dt><dd>{text(value)}</dd>" for term, value in rows)
    return Markup(f"<dl>{body}</dl>")


def bullets(items: Iterable[object]) -> Markup:
    """Returns a bulleted list."""
    return Markup(f"<ul>{''.join(f'<li>{text(item)}</li>' for item in items)}</ul>")


def section(anchor: str, title: str, *content: object) -> Markup:
    """Returns a section with a heading."""
    return Markup(f'<section id="{anchor}"><h2>{text(title)}</h2>{"".join(text(part) for part in content)}</section>')


def code(value: object) -> Markup:
    """Returns a digest, key or path in a fixed-width font."""
    return Markup(f"<code>{text(value)}</code>")


def _style(style: str) -> str:
    return f' class="{style}"' if style else ""
