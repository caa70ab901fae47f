"""Parameters follow from the plan; what does not fit is refused with the rule and the nearest figure."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from schemas.errors import PlanError
from schemas.threshold import Threshold
from tasks.secure_sum import parameters
from tasks.secure_sum.modular import is_prime
from tasks.secure_sum.parameters import (
    derive_parameters,
    derive_sid,
    describe_parameters,
    parameters_digest,
    self_test_sets,
)
from tests.secure_sum.plans import make_plan


def test_default_plan_gets_the_documented_numbers() -> None:
    p = derive_parameters(make_plan(5))
    assert (p.bulk_modulus.bit_length(), p.bulk_delta, p.residual_bound(5)) == (46, 256, 98)
    assert (p.key_delta, p.ciphertext_bound, p.smudging_bits) == (1 << 159, 1014, 155)
    assert p.statistical_bits == 121


def test_every_bound_of_section_4_holds() -> None:
    for sites in (4, 5, 8, 12):
        p = derive_parameters(make_plan(sites))
        assert is_prime(p.bulk_modulus)
        assert p.bulk_modulus % (2 * p.bulk_degree) == 1
        assert p.bulk_modulus > p.bulk_delta * (2 * p.sum_bound + 1)
        assert p.bulk_delta // 2 > p.residual_bound(sites)
        assert p.key_delta * (2 * 42 * sites + 1) <= p.data_modulus
        assert p.threshold * (1 << p.smudging_bits) + p.ciphertext_bound <= p.key_delta // 4
        assert p.statistical_bits >= 80


def test_larger_sums_get_a_larger_modulus_up_to_52_bits() -> None:
    sizes = [
        derive_parameters(make_plan(5, scale_bits=bits, patients=20_000)).bulk_modulus.bit_length()
        for bits in (16, 20, 22, 24)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == 46
    assert sizes[-1] <= 52


def test_a_sum_that_no_safe_modulus_holds_is_refused_with_the_remedy() -> None:
    plan = make_plan(5, scale_bits=24, patients=100_000_000)
    with pytest.raises(PlanError, match=r"largest safe bulk modulus holds \d+\. Lower scale_bits by \d+") as caught:
        derive_parameters(plan)
    assert caught.value.code == "sum-parameters"
    lower = int(caught.value.remedy.split("scale_bits by ")[1].split(",")[0])
    derive_parameters(make_plan(5, scale_bits=24 - lower, patients=100_000_000))


@pytest.mark.parametrize(
    ("needed", "remedy"), [(122, r"Set rounds_per_epoch to (\d+)"), (200, r"Use fewer key holders")]
)
def test_smudging_that_hides_too_little_is_refused_with_the_nearest_plan(
    needed: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(5)
    monkeypatch.setattr(parameters, "MIN_STATISTICAL_BITS", needed)
    rule = f"Smudging hides 121 bits and at least {needed} are needed"
    with pytest.raises(PlanError, match=f"{rule}. {remedy}") as caught:
        derive_parameters(plan)
    if found := re.search(r"to (\d+)", caught.value.remedy):
        nearest = int(found[1])
        assert derive_parameters(plan.model_copy(update={"rounds_per_epoch": nearest})).statistical_bits >= needed
        with pytest.raises(PlanError, match="Smudging hides"):
            derive_parameters(plan.model_copy(update={"rounds_per_epoch": nearest + 1}))


def test_a_modulus_above_the_security_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "SECURITY_LIMIT_BITS", 199)
    with pytest.raises(PlanError, match="above the limit for 128 bits of security"):
        derive_parameters(make_plan(5))


def test_large_committees_still_hide_enough() -> None:
    numbers = Threshold(
        t=9,
        certificate_quorum=13,
        k_min=600,
        colluding_key_holders=8,
        colluding_contributors=300,
        honest_noise_shares=300,
        tolerated_dropouts=3,
    )
    p = derive_parameters(make_plan(1000, numbers, holders=16))
    assert (p.key_holders, p.contributors) == (16, 1000)
    assert 100 <= p.statistical_bits <= 110


@pytest.mark.parametrize(("holders", "threshold"), [(2, 2), (4, 2), (5, 3), (7, 4), (16, 9)])
def test_self_test_sets_use_every_holder_at_least_twice(holders: int, threshold: int) -> None:
    sets = self_test_sets(holders, threshold)
    assert all(len(set(s)) == threshold for s in sets)
    counts = Counter(member for s in sets for member in s)
    assert set(counts) == set(range(holders))
    assert min(counts.values()) >= 2


def test_sid_changes_with_plan_epoch_and_keys() -> None:
    plan = make_plan(5)
    assert len({derive_sid(plan, 1), derive_sid(plan, 2), derive_sid(make_plan(5, nonce="cd" * 32), 1)}) == 3
    assert parameters_digest(plan) == parameters_digest(make_plan(5, nonce="cd" * 32))
    assert parameters_digest(plan) != parameters_digest(make_plan(6))


def test_description_names_margins_and_security() -> None:
    text = describe_parameters(make_plan(5))
    for part in ("log2 QP 200", "limit 203", "smudging hides 121 bits", "delta/2 = 128"):
        assert part in text
