"""A thousand contributors with a committee of sixteen key holders; runs in `make test-long`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from schemas.threshold import Threshold
from tests.secure_sum.plans import make_plan
from tests.secure_sum.world import Round, hold_ceremony, make_context

COMMITTEE = Threshold(
    t=9,
    certificate_quorum=13,
    k_min=600,
    colluding_key_holders=8,
    colluding_contributors=300,
    honest_noise_shares=300,
    tolerated_dropouts=3,
)


def exact_round(contributors: int, numbers: Threshold, length: int, folder: Path) -> None:
    ceremony = hold_ceremony(make_plan(contributors, numbers, holders=16))
    round_ = Round(ceremony, make_context(ceremony, length), folder)
    sites = round_.context.instruction.participants
    for index, site in enumerate(sites[:-2]):
        values = np.random.default_rng(index).integers(-(2**22), 2**22, length)
        round_.contribute(site, values)
    round_.propose()
    holders = tuple(round_.context.points)
    round_.certify(holders[:13])
    opened = round_.open(round_.request(holders[4:13]))
    assert (opened == sum(round_.values.values())).all()
    assert round_.record is not None
    assert [name for name, _ in round_.record.dropped] == list(sites[-2:])


def test_a_committee_of_sixteen_opens_the_sum_of_twenty(tmp_path: Path) -> None:
    numbers = COMMITTEE.model_copy(update={"k_min": 16, "colluding_contributors": 8, "honest_noise_shares": 8})
    exact_round(20, numbers, 100, tmp_path)


@pytest.mark.long
def test_a_committee_of_sixteen_opens_the_sum_of_a_thousand(tmp_path: Path) -> None:
    exact_round(1000, COMMITTEE, 100, tmp_path)
