"""A plan whose numbers do not fit together is refused with the rule and the nearest plan that holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import PlanError
from schemas.threshold import Threshold, broken_rules, default_threshold, find_nearest, verify_numbers_fit

FIVE = default_threshold(5)


def test_the_defaults_are_those_of_the_design() -> None:
    assert (
        Threshold(
            t=3,
            certificate_quorum=4,
            k_min=4,
            colluding_key_holders=2,
            colluding_contributors=2,
            honest_noise_shares=2,
            tolerated_dropouts=1,
        )
        == FIVE
    )
    four = default_threshold(4)
    assert (four.t, four.certificate_quorum, four.k_min, four.colluding_key_holders) == (2, 3, 3, 1)


@given(st.integers(4, 200))
def test_the_defaults_hold_for_any_number_of_sites(sites: int) -> None:
    assert broken_rules(default_threshold(sites), sites, sites) == ()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"colluding_key_holders": 3}, "c_key <= t - 1 (3 <= 2)"),
        ({"certificate_quorum": 3}, "2Q > n_k + c_key (6 > 7)"),
        ({"tolerated_dropouts": 2}, "Q <= n_k - drop-outs (4 <= 3)"),
        ({"t": 5}, "t <= Q (5 <= 4)"),
        ({"k_min": 6}, "k_min <= n_c (6 <= 5)"),
        ({"honest_noise_shares": 3}, "k_min - c_contrib >= max(h, 2) (2 >= 3)"),
    ],
)
def test_each_rule_is_named_with_its_figures_and_the_nearest_plan(change: dict[str, int], rule: str) -> None:
    numbers = FIVE.model_copy(update=change)
    with pytest.raises(PlanError, match=re.escape(rule)) as caught:
        verify_numbers_fit(numbers, 5, 5)
    assert "nearest plan that holds: t=" in str(caught.value)
    nearest = find_nearest(numbers, 5, 5)
    assert nearest is not None
    assert broken_rules(nearest, 5, 5) == ()


def test_too_few_sites_are_told_to_add_sites() -> None:
    with pytest.raises(PlanError, match=r"Expected at least 4 sites, got 3\. Add sites\."):
        default_threshold(3)
    with pytest.raises(PlanError, match="Add sites: no numbers hold"):
        verify_numbers_fit(FIVE, 2, 2)
