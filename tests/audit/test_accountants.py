"""An auditor without the independent accountants is told so, and everything else is checked."""

from __future__ import annotations

import importlib.util

import pytest

from tasks.audit.checks import privacy
from tasks.audit.registry import run_check
from tasks.audit.verify import open_evidence
from tests.conftest import FinishedStudy


def test_a_missing_accountant_is_said_and_never_counted_as_agreement(
    finished_study: FinishedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dp_accounting" else found(name))
    context = open_evidence(finished_study.evidence, None)
    results = {check.number: run_check(check, context) for check in privacy.CHECKS}
    assert {number for number, result in results.items() if result.status == "not-applicable"} == {"C27", "C28"}
    assert "no independent accountant is installed here" in results["C27"].detail
    assert results["C26"].status == "checked"
