"""The specification and the checks say the same."""

from __future__ import annotations

from pathlib import Path

from tasks.audit.verify import CHECKS


def test_the_specification_states_every_check_as_the_report_does() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "spec-audit.md").read_text().split())
    for check in CHECKS:
        assert f"### {check.number} {check.title}" in text
        assert f"- Proves: {check.proves}" in text
        assert f"- Does not prove: {check.does_not_prove}" in text
    assert text.count("### C") == len(CHECKS)


def test_checks_are_numbered_in_order_and_each_says_what_it_does_not_prove() -> None:
    assert [check.number for check in CHECKS] == [f"C{number:02d}" for number in range(1, len(CHECKS) + 1)]
    assert all(check.proves and check.does_not_prove for check in CHECKS)
    assert len({check.title for check in CHECKS}) == len(CHECKS)
