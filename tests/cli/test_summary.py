"""The summary separates what everybody may see from what only a demo can know."""

import io
import json

import pytest
from rich.console import Console

from infra.demo.summary import AuditSummary, DemoSummary, Interval, SiteEpsilon, Transferred, render_summary

SPENT = SiteEpsilon(collusion=2.995, outsider=1.77, fallback=6.5)
AUDIT = AuditSummary(passed=True, checked=14, failed=0, not_applicable=1)
SUMMARY = DemoSummary(
    study="ab" * 32,
    title="Is this breast mass malignant?",
    data="breast-cancer",
    attribution="Breast Cancer Wisconsin (Diagnostic), CC BY 4.0",
    complete=True,
    reason="all rounds opened",
    rounds=10,
    participants={"1": ("mercy", "valley"), "2": ("mercy",)},
    dropped={"2": (("valley", "silent"),)},
    released_auc=Interval(value=0.97, low=0.91, high=1.0),
    exact_auc=0.9871,
    central_auc=0.9893,
    epsilon={"mercy": SPENT, "valley": SPENT},
    evaluation_epsilon={"mercy": SPENT},
    budget_epsilon=3.0,
    delta=1e-5,
    transferred=Transferred(up=12_345_678, down=999),
    seconds=93.4,
    model_version="breast-mass/1",
    audit=AUDIT,
    workdir="demo-study",
    evidence="demo-study/coordinator/evidence",
)


def shown(summary: DemoSummary) -> str:
    out = io.StringIO()
    render_summary(summary, Console(file=out, width=160))
    return out.getvalue()


def test_json_carries_everything_that_a_script_needs() -> None:
    value = json.loads(SUMMARY.model_dump_json(by_alias=True))
    for name in ("study", "rounds", "participants", "exact_auc", "central_auc", "released_auc", "epsilon", "bytes"):
        assert name in value
    for name in ("seconds", "model_version", "audit"):
        assert name in value
    assert value["released_auc"] == {"value": 0.97, "low": 0.91, "high": 1.0}
    assert value["epsilon"]["mercy"] == {"collusion": 2.995, "outsider": 1.77, "fallback": 6.5}
    assert value["bytes"] == {"up": 12_345_678, "down": 999}
    assert value["audit"]["passed"] is True


def test_figures_that_only_a_demo_can_know_are_labelled() -> None:
    lines = {line.split()[1]: line for line in shown(SUMMARY).splitlines() if line.startswith("│ ")}
    assert "only a demo can know this" in lines["exact"]
    assert "only a demo can know this" in lines["central"]
    assert "only a demo can know this" not in lines["released"]
    assert "95 % interval 0.910 to 1.000" in lines["released"]


def test_the_summary_shows_rounds_drop_outs_epsilon_bytes_and_where_to_look() -> None:
    text = shown(SUMMARY)
    assert "10 of training, 1 to 2 hospitals in every sum, drop-outs: 1" in text
    assert "2.995 of 3 under collusion, 1.770 against outsiders" in text
    assert "12.3 MB up, 1.0 kB down" in text
    assert "Audit verified: 14 checked, 0 failed, 1 not applicable" in text
    assert "consilium ui --workdir demo-study" in text
    assert "consilium audit verify demo-study/coordinator/evidence --keys demo-study/public-keys.json" in text
    assert "CC BY 4.0" in text


def test_a_failed_audit_names_what_failed() -> None:
    audit = AuditSummary(passed=False, checked=13, failed=1, not_applicable=1, failures=("7 openings: 1 finding",))
    text = shown(SUMMARY.model_copy(update={"audit": audit}))
    assert "Audit failed: 13 checked, 1 failed" in text
    assert "7 openings: 1 finding" in text


def test_a_study_that_ended_early_says_why_and_shows_no_figure_it_does_not_have() -> None:
    ended = {"complete": False, "reason": "budget-exceeded", "released_auc": None, "exact_auc": None}
    text = shown(SUMMARY.model_copy(update={**ended, "central_auc": None, "model_version": None}))
    assert "ended early: budget-exceeded" in text
    assert "released AUC    none" in text


def test_a_summary_has_no_unknown_field() -> None:
    with pytest.raises(ValueError, match="extra"):
        DemoSummary.model_validate(SUMMARY.model_dump() | {"extra": 1})
