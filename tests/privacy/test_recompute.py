"""Two accountants by other people, reading only the events, reach the same epsilon."""

from __future__ import annotations

import subprocess
import sys

import pytest

from schemas.errors import EvidenceError
from tasks.privacy.accounting import calibrate_noise_multiplier
from tasks.privacy.recompute import check_recomputations, recompute_with_dp_accounting, run_opacus_in_subprocess
from tests.privacy.plans import make_mechanism


@pytest.mark.parametrize(("epsilon", "rounds"), [("1", 1), ("3", 10), ("8", 20), ("0.2", 5)])
def test_dp_accounting_reaches_the_epsilon_that_the_noise_was_calibrated_for(epsilon: str, rounds: int) -> None:
    multiplier = calibrate_noise_multiplier(epsilon, "1e-5", rounds)
    events = [make_mechanism(noise_multiplier=multiplier).event()] * rounds
    result = recompute_with_dp_accounting(events, "1e-5")
    assert result.pld == pytest.approx(float(epsilon), rel=2e-3)
    assert result.pld < result.rdp < 1.2 * float(epsilon)
    assert all(check.passed is not False for check in check_recomputations(events, "1e-5", with_opacus=False))


def test_opacus_agrees_within_two_percent() -> None:
    events = [make_mechanism().event()] * 10 + [make_mechanism(data="held-out", noise_multiplier="1.390616").event()]
    opacus = run_opacus_in_subprocess(events, "1e-5")
    assert opacus is not None
    assert opacus == pytest.approx(recompute_with_dp_accounting(events, "1e-5").rdp, rel=0.02)


def test_a_step_that_was_not_counted_shows() -> None:
    """Ten steps were taken, nine entered the ledger: the figures of nine do not pass for those of ten."""
    events = [make_mechanism().event()] * 10
    nine, ten = (recompute_with_dp_accounting(events[:n], "1e-5").pld for n in (9, 10))
    assert ten - nine > 0.1


def test_no_events_prove_nothing() -> None:
    with pytest.raises(EvidenceError, match="at least one privacy event"):
        check_recomputations([], "1e-5")


def test_the_auditor_needs_neither_torch_nor_opacus() -> None:
    code = (
        "import sys; import tasks.privacy.accounting, tasks.privacy.mechanism, tasks.privacy.recompute;"
        "import tasks.ledger.verify, tasks.ledger.budget;"
        "print(sorted(m for m in ('torch','opacus','scipy','dp_accounting','pandas','sqlalchemy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
