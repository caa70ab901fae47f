"""`consilium audit report`: everything about one study in one HTML file that loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Callable

from tasks.audit.context import AuditContext
from tasks.audit.html.parts import Markup, paragraph, section, text
from tasks.audit.html.question import show_answer, show_charges, show_question
from tasks.audit.html.regulations import show_regulations
from tasks.audit.html.sections import (
    show_checks,
    show_contract,
    show_limits,
    show_privacy,
    show_quality,
    show_reviews,
    show_rounds,
    show_study,
    show_verdict,
)
from tasks.audit.registry import AuditFailure
from tasks.audit.report import AuditReport

# A browser that honours this loads and runs nothing, whatever a hostile title in a plan might smuggle in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --paper: #fff; --soft: #5b6470; --rule: #d5dae1; --main: #0b5cad;
  --second: #6d8aa8; --limit: #a3341b; --good: #17693a; --bad: #a3141b; --warn: #8a5a00; --band: #0b5cad22; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --paper: #14171a; --soft: #a3adb9; --rule: #343b43;
  --main: #7db7f5; --second: #8fa6bd; --limit: #f0907b; --good: #79d29b; --bad: #ff8d8d; --warn: #e8b95f;
  --band: #7db7f533; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } code { font-size: .8em; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none; } a { color: var(--main); }
.verdict { font-size: 1.5rem; font-weight: 700; margin: .4rem 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
.warning { border-left: 4px solid var(--warn); padding-left: .8rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--rule);
  overflow-wrap: break-word; min-width: 4rem; }
td:first-child { white-space: nowrap; }
 .checks td:nth-child(2) { min-width: 18rem; }
dl { display: grid; grid-template-columns: minmax(9rem, 18rem) 1fr; gap: .3rem 1rem; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; } .status { font-weight: 600; white-space: nowrap; }
.status.checked { color: var(--good); } .status.failed { color: var(--bad); }
.status.not-applicable { color: var(--warn); }
figure { margin: 1rem 0; } svg { width: 100%; max-width: 40rem; height: auto; } figcaption { font-weight: 600; }
.grid { stroke: var(--rule); } .tick, .label { fill: var(--soft); font-size: 12px; }
.line { fill: none; stroke-width: 2; }
.line.main { stroke: var(--main); } .line.second { stroke: var(--second); }
.line.limit { stroke: var(--limit); stroke-dasharray: 6 4; } .dot.main { fill: var(--main); }
.band { fill: var(--band); }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.2rem; list-style: none; padding: 0; font-size: .9rem; }
.key { display: inline-block; width: 1.4rem; height: .3rem; margin-right: .4rem; vertical-align: middle; }
.key.main { background: var(--main); } .key.second { background: var(--second); }
.key.limit { background: var(--limit); }
.key.band { background: var(--band); height: .8rem; }
@media (max-width: 40rem) { dl { display: block; } dd { margin-bottom: .5rem; } body { padding: 1rem; } }
@media print { :root { --ink: #000; --paper: #fff; --soft: #444; --rule: #bbb; --main: #0b5cad; --band: #0b5cad22; }
  body { max-width: none; font-size: 10.5pt; } nav { display: none; }
  figure, tr { break-inside: avoid; } .wide { overflow: visible; } a { color: inherit; text-decoration: none; } }
"""


def render_page(context: AuditContext, report: AuditReport) -> str:
    """Renders the report.

    Args:
        context: The evidence that was verified.
        report: What its verification gave; a page is rendered also if it failed, and says so first.

    Returns:
        A whole HTML document without any reference to another file.
    """
    title, sections = _title(context, report), _sections(context, report)
    shown = [show_verdict(report)]
    shown += [_safely(anchor, heading, show) for anchor, heading, show in sections]
    shown += [show_limits(report), show_checks(report)]
    names = ("verdict", *(anchor for anchor, _, _ in sections), "limits", "checks")
    links = "".join(f'<li><a href="#{name}">{name}</a></li>' for name in names)
    foot = paragraph(f"Written by {report.software}. Study {report.study or 'unknown'}.", "soft")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit: {text(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>Audit: {text(title)}</h1></header><nav><ul>{links}</ul></nav><main>{''.join(shown)}</main>"
        f"<footer>{foot}</footer></body></html>\n"
    )


def _title(context: AuditContext, report: AuditReport) -> str:
    if report.headline is not None:
        return report.headline.title
    return context.question.query.name if _is_question(context) and context.question is not None else "Study"


def _is_question(context: AuditContext) -> bool:
    try:
        return context.question is not None
    except AuditFailure:
        return False


def _sections(context: AuditContext, report: AuditReport) -> list[tuple[str, str, Callable[[], Markup]]]:
    """Returns (anchor, heading, what shows it): a question has no model, so its report has other sections."""
    if _is_question(context):
        return [
            ("question", "The question and who took part", lambda: show_question(context)),
            ("answer", "Answer", lambda: show_answer(context, report)),
            ("charges", "Privacy", lambda: show_charges(context)),
        ]
    return [
        ("study", "The study and who took part", lambda: show_study(context)),
        ("privacy", "Privacy", lambda: show_privacy(context)),
        ("quality", "Quality", lambda: show_quality(context)),
        ("rounds", "Rounds", lambda: show_rounds(context)),
        ("contract", "Data contract", lambda: show_contract(context)),
        ("reviews", "Review", lambda: show_reviews(context)),
        ("regulations", "What regulations ask for", lambda: show_regulations(context)),
    ]


def _safely(anchor: str, title: str, show: Callable[[], Markup]) -> Markup:
    """Shows a section, or says that hostile or broken evidence does not give it; the checks say why."""
    try:
        return show()
    except AuditFailure as failure:
        words = f"Not shown, since the evidence does not verify: {failure}"
    except Exception as error:
        words = f"Not shown: it could not be derived from this evidence ({type(error).__name__})."
    return section(anchor, title, paragraph(words, "bad"))
