"""Whole demos with faults that take their deadlines: an agent that never comes back, seven sites, SQLite."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.test_demo import RunningDemo, kill

pytestmark = [
    pytest.mark.long,
    pytest.mark.demo,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.mark.parametrize("moment", ["contributed", "certified"])
def test_a_study_finishes_without_an_agent_that_died_for_good(tmp_path: Path, moment: str) -> None:
    """``contributed``: somebody has contributed, the victim is still training; ``certified``: decryption has begun."""
    victim = "hospital-03"
    demo = RunningDemo(tmp_path / "demo", "--rounds", "3", "--no-restart")
    if moment == "contributed":
        demo.wait_for("round-started", round=2)
    else:
        demo.wait_for("site-state", round=2, state="certified")
    kill("site", str(demo.workdir.site(victim)))

    assert demo.process.wait(1200) == 0, demo.err.read_text()
    summary = json.loads(demo.out.read_text())
    assert summary["complete"] is True
    assert summary["rounds"] == 3
    assert [victim, "silent"] in summary["dropped"]["3"]
    assert summary["audit"]["passed"] is True
    assert summary["audit"]["failed"] == 0
    # The site that was gone at the end (C11); nobody decided (C32), MLflow was not looked at (C33), no question (C34).
    assert summary["audit"]["not_applicable"] == 4


def test_a_table_that_breaks_its_contract_leaves_a_refusal_in_the_summary(tmp_path: Path) -> None:
    demo = RunningDemo(tmp_path / "demo", "--rounds", "2")
    demo.wait_for("ceremony-done")
    (demo.workdir.site("hospital-02") / "cohort.parquet").write_bytes(b"not a table")

    assert demo.process.wait(1200) == 0, demo.err.read_text()
    summary = json.loads(demo.out.read_text())
    assert ["hospital-02", "refused"] in summary["dropped"]["2"]
    assert (summary["exact_auc"], summary["central_auc"]) == (None, None)
    assert summary["audit"]["passed"] is True
