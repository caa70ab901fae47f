"""A contract as a page for people: what a table must have, who is in the study, and every rule with its remedy."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.canonical import digest_of
from schemas.contract import Column, DataContract
from tasks.contract.rules import columns_of, remedy_of, suite_description

_ROLES = {
    "patient_id": "patient id",
    "label": "outcome to predict",
    "held_out": "public split",
    "feature": "feature",
    "time": "order of a patient's rows",
    "key": "tells rows apart",
    "outcome": "outcome, never a feature",
    "support": "for rules only, never a feature",
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}td,th{border:1px solid #8888;padding:.3rem .5rem;text-align:left;"
    "vertical-align:top}th{background:#8882}"
)


@dataclass(frozen=True)
class _Section:
    title: str
    text: Sequence[str]
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def contract_markdown(contract: DataContract) -> str:
    """Returns the contract's documentation page as Markdown."""
    lines: list[str] = []
    for level, section in zip([1, *[2] * 9], _sections(contract), strict=False):
        lines += [f"{'#' * level} {_cell(section.title)}", ""]
        lines += [line for text in section.text for line in (_cell(text), "")]
        if section.rows:
            lines += [_markdown_row(section.head), _markdown_row(["---"] * len(section.head))]
            lines += [*map(_markdown_row, section.rows), ""]
    return "\n".join(lines)


def contract_html(contract: DataContract) -> str:
    """Returns the contract's documentation page as HTML that loads nothing and runs nothing."""
    body: list[str] = []
    for level, section in zip([1, *[2] * 9], _sections(contract), strict=False):
        body.append(f"<h{level}>{html.escape(section.title)}</h{level}>")
        body += [f"<p>{html.escape(text)}</p>" for text in section.text]
        if section.rows:
            body += ["<table>", _html_row("th", section.head), *(_html_row("td", r) for r in section.rows), "</table>"]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html.escape(contract.name)} {html.escape(contract.version)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _sections(contract: DataContract) -> Iterable[_Section]:
    kept = [f"Digest {digest_of(contract)}.", _patients(contract)]
    yield _Section(
        f"Contract {contract.name} {contract.version}",
        [*([contract.description] if contract.description else []), *kept],
    )
    columns = [
        (c.name, _ROLES[c.role], c.kind, c.unit, _allowed(c), _missing(contract, c), c.description)
        for c in contract.columns
    ]
    yield _Section("Columns", [], ("column", "role", "kind", "unit", "allowed", "missing", "description"), columns)
    if contract.label_rule:
        words = " and ".join(c.in_words() for c in contract.label_rule.when)
        yield _Section("Outcome", [f"True where {words}; missing where that cannot be told."])
    if contract.split:
        text = f"A share of {contract.split.share} of the patients is held out, chosen by a public function of the id."
        yield _Section("Split", [text])
    if contract.cohort:
        words = " and ".join(c.in_words() for c in contract.cohort)
        yield _Section("Cohort", [f"A row is part of the study where {words}."])
    if contract.outcomes:
        yield _Section("Outcomes", [f"No feature may be, or be filled from: {', '.join(contract.outcomes)}."])
    rules = [
        (rule, ", ".join(columns_of(contract, rule)) or "all", rule_in_words(contract, rule), remedy_of(rule))
        for rule in (str(described["rule"]) for described in suite_description(contract))
    ]
    text = "What leaves a hospital about its table is whether each of these passed, and nothing else."
    yield _Section("Rules", [text], ("rule", "columns", "what is checked", "if it does not pass"), rules)


def _patients(contract: DataContract) -> str:
    return "One row per patient." if contract.rows_per_patient == "one" else "A patient may have several rows."


def _allowed(column: Column) -> str:
    if column.kind == "number":
        return f"{column.minimum} to {column.maximum}"
    if column.kind == "time":
        earliest, latest = column.earliest or "any", column.latest or "today"
        return f"{earliest} to {latest}"
    return ", ".join(column.codes) if column.kind == "code" else {"boolean": "true, false"}.get(column.kind, "any text")


def _missing(contract: DataContract, column: Column) -> str:
    if column in contract.derived:
        return "derived"
    share = float(column.max_missing)
    return "none" if share == 0 else "any" if share == 1 else f"at most {100 * share:g} %"


def rule_in_words(contract: DataContract, rule: str) -> str:
    """Says what a rule of the contract expects, with its public limits."""
    kind, subject = rule.split(":")
    if kind == "rule":
        return next(r.in_words() for r in contract.rules if r.name == subject)
    column = next((c for c in contract.columns if c.name == subject), None)
    if column is not None and kind in ("range", "codes", "missing", "type"):
        limits = {
            "range": f"all values are in {_allowed(column)} {column.unit}".rstrip(),
            "codes": f"all codes are among {_allowed(column)}",
            "missing": f"{_missing(contract, column)} of the values are missing",
            "type": f"the column is of kind {column.kind}",
        }
        return limits[kind]
    return {
        "cohort": "there is at least one row",
        "present": "the column is there, once",
        "finite": "no NaN, no infinity",
        "split": "all rows of a patient are on one side of the split",
        "complete": "no value is missing",
        "unique": "one row per patient",
        "future": "no time lies in the future",
        "keys": "no two rows are equal in these columns",
    }[kind]


def _cell(text: str) -> str:
    return re.sub(r"([|<>`*_\[\]\\])", r"\\\1", " ".join(text.split()))


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if set(cell) == {"-"} else _cell(cell) for cell in cells) + " |"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
