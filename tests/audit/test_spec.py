"""The specification and the checks say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.errors import OperationError
from tasks.audit.explain import EXPLANATIONS, explain_check, find_check
from tasks.audit.verify import CHECKS


def test_the_specification_states_every_check_as_the_report_does() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "spec-audit.md").read_text().split())
    for check in CHECKS:
        assert f"### {check.number} {check.title}" in text
        assert f"- Proves: {check.proves}" in text
        assert f"- Does not prove: {check.does_not_prove}" in text
        assert f"- If it fails: {EXPLANATIONS[check.number].means}" in text
        assert f"- Who acts: {EXPLANATIONS[check.number].acts}" in text
    assert text.count("### C") == len(CHECKS)


def test_checks_are_numbered_in_order_and_each_says_what_it_does_not_prove() -> None:
    assert [check.number for check in CHECKS] == [f"C{number:02d}" for number in range(1, len(CHECKS) + 1)]
    assert all(check.proves and check.does_not_prove for check in CHECKS)
    assert len({check.title for check in CHECKS}) == len(CHECKS)


def test_every_check_can_be_explained_and_no_other() -> None:
    assert sorted(EXPLANATIONS) == sorted(check.number for check in CHECKS)
    told = explain_check(find_check("c7", CHECKS))
    assert told.startswith("C07  The coordinator and every site approved the plan")
    assert "Who acts: " in told
    with pytest.raises(OperationError, match=r"Expected a check from C01 to C\d\d, got C99"):
        find_check("C99", CHECKS)
