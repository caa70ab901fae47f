"""Bad input to the privacy part: a clear refusal naming who must act; nothing charged that was not reserved."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.round_steps import RoundSteps
from infra.embedded import EmbeddedConsortium, contribute
from schemas.conditions import Split
from schemas.errors import BudgetError, EvidenceError, PlanError, SiteDataError
from schemas.ledger import Refused
from site_agents.policy import SPLIT_KEY, describe_split, verify_split
from site_agents.round import SiteRound
from tasks.ledger.budget import budget_state
from tasks.ledger.verify import verify_log
from tasks.privacy.mechanism import training_mechanism
from tests.ledger.logs import KEY_HEX, OWNER, round_bodies, sign_log
from tests.ledger.test_verify import sign_payload
from tests.simulator import Prepared, change_settings, copy_study, open_consortium


@pytest.fixture
def prepared(study_after_ceremony: Prepared, tmp_path: Path) -> Prepared:
    return copy_study(study_after_ceremony, tmp_path / "study")


def instructed(prepared: Prepared) -> tuple[EmbeddedConsortium, str]:
    """A consortium whose coordinator has asked for round 1, and the site with the bad input."""
    consortium = open_consortium(prepared)
    RoundSteps(consortium.coordinator, consortium.finished_ceremony(), consortium.lineage, 1, "train").issue()
    return consortium, prepared.plan.sites[0].name


def change_table(prepared: Prepared, change: Callable[[pa.Table], pa.Table]) -> None:
    path = prepared.workdir.site(prepared.plan.sites[0].name) / "cohort.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def assert_refused_for_free(consortium: EmbeddedConsortium, site: str, code: str) -> None:
    ledger = consortium.sites[site].ledger
    (entry,) = ledger.find(consortium.plan.study, "refused")
    assert isinstance(entry.body, Refused)
    assert entry.body.code == code
    assert ledger.find(consortium.plan.study, "privacy-reserved") == []
    assert budget_state(ledger).training.spent == "0"
    assert consortium.sites[site].outbox.stored(f"private/{consortium.plan.study}/values-0001") is None


def test_nan_features_are_the_stewards_to_correct_and_cost_nothing(prepared: Prepared) -> None:
    feature = next(c.name for c in prepared.plan.contract.features if c.kind == "number")

    def plant(table: pa.Table) -> pa.Table:
        position = table.column_names.index(feature)
        return table.set_column(position, feature, pa.array([float("nan"), *table.column(feature).to_pylist()[1:]]))

    change_table(prepared, plant)
    consortium, site = instructed(prepared)
    error = contribute(SiteRound(consortium.sites[site], 1, 1))
    assert isinstance(error, SiteDataError)
    assert error.code == "contract-violated"
    assert feature in error.message
    assert_refused_for_free(consortium, site, "contract-violated")


def test_a_site_without_any_patient_refuses_and_the_round_goes_on(prepared: Prepared) -> None:
    change_table(prepared, lambda table: table.slice(0, 0))
    consortium, site = instructed(prepared)
    error = contribute(SiteRound(consortium.sites[site], 1, 1))
    assert isinstance(error, SiteDataError)
    assert error.who_must_act == "the site's data steward"
    outcome = consortium.run_round(consortium.finished_ceremony(), 1)
    assert outcome.record.predicate.dropped == ((site, "refused"),)
    assert len(outcome.record.predicate.contributions) == 4
    assert_refused_for_free(consortium, site, error.code)


def test_a_site_with_one_patient_takes_part_under_the_same_noise(prepared: Prepared) -> None:
    change_table(prepared, lambda table: table.slice(0, 1))
    consortium, site = instructed(prepared)
    work = SiteRound(consortium.sites[site], 1, 1)
    assert contribute(work) is None
    mechanism = training_mechanism(prepared.plan)
    sent = stored_values(consortium, site)
    scaled = sent / float(mechanism.local_sigma)
    # One patient moves the vector by less than the noise of one site hides.
    assert float(np.abs(scaled).max()) < 6 + mechanism.sensitivity / float(mechanism.local_sigma)
    assert np.count_nonzero(sent) == mechanism.dimension
    (entry,) = consortium.sites[site].ledger.find(prepared.plan.study, "privacy-reserved")
    assert entry.body.event == mechanism.event()  # type: ignore[union-attr]


def stored_values(consortium: EmbeddedConsortium, site: str) -> np.ndarray:
    stored = consortium.sites[site].outbox.stored(f"private/{consortium.plan.study}/values-0001")
    assert stored is not None
    return np.frombuffer(stored, dtype="<i8", offset=64)


def test_a_budget_of_zero_refuses_before_data_is_touched(prepared: Prepared) -> None:
    site = prepared.plan.sites[0].name
    change_settings(prepared.workdir.site(site), epsilon="0")
    consortium, _ = instructed(prepared)
    error = contribute(SiteRound(consortium.sites[site], 1, 1))
    assert isinstance(error, BudgetError)
    assert error.code == "budget-exceeded"
    assert "limit 0 (epsilon 0)" in error.message
    assert_refused_for_free(consortium, site, "budget-exceeded")


def test_a_study_under_another_split_is_refused_or_one_patient_could_lose_both_budgets(prepared: Prepared) -> None:
    """Held out here and trained on there: each part has a whole budget only because no patient is in both."""
    consortium, site = instructed(prepared)
    contract, outbox = prepared.plan.contract, consortium.sites[site].outbox
    earlier = contract.model_copy(update={"split": Split(share="0.2", salt="an-earlier-study")})
    assert describe_split(earlier) != describe_split(contract)
    outbox.decide(SPLIT_KEY, lambda: describe_split(earlier))
    error = contribute(SiteRound(consortium.sites[site], 1, 1))
    assert isinstance(error, PlanError)
    assert error.code == "split-changed"
    assert "an-earlier-study" in error.message
    assert_refused_for_free(consortium, site, "split-changed")


def test_the_first_charge_fixes_the_split_and_the_same_split_is_welcome_however_it_is_written(
    prepared: Prepared,
) -> None:
    consortium, site = instructed(prepared)
    outbox, contract = consortium.sites[site].outbox, prepared.plan.contract
    assert outbox.stored(SPLIT_KEY) is None
    assert contribute(SiteRound(consortium.sites[site], 1, 1)) is None
    assert outbox.stored(SPLIT_KEY) == describe_split(contract)
    same = [contract.model_copy(update={"split": Split(share=share, salt="s")}) for share in ("0.2", "0.20", "2e-1")]
    assert len({describe_split(one) for one in same}) == 1
    with pytest.raises(PlanError, match="split of held-out patients that this site's first study fixed"):
        verify_split(outbox.stored(SPLIT_KEY), same[0])


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('"kind":"gaussian"', '"kind":"laplace"', "event"),
        ('"sampler":"discrete-gaussian"', '"sampler":"numpy"', "sampler"),
        ('"rng":"os-seeded-aes-ctr"', '"rng":"mersenne-twister"', "rng"),
        ('"noise_scope":"distributed"', '"noise_scope":"none"', "noise_scope"),
        ('"unit":"patient"', '"unit":"record"', "unit"),
        ('"kind":"gdp"', '"kind":"zcdp"', "after"),
    ],
)
def test_an_unknown_mechanism_in_a_ledger_entry_is_refused_not_skipped(old: str, new: str, place: str) -> None:
    """Skipping what one does not know would hide its cost."""
    log = sign_log(round_bodies(1))
    payload = base64.b64decode(json.loads(log[2])["payload"]).decode()
    assert old in payload
    changed = [*log[:2], sign_payload(payload.replace(old, new))]
    with pytest.raises(EvidenceError, match=f"Entry 2 of {OWNER}'s log: .*known here: predicate.*{place}") as caught:
        verify_log(changed, OWNER, KEY_HEX)
    assert caught.value.code == "malformed"
    assert verify_log(log[:2], OWNER, KEY_HEX).filters[0].spent == "0", "what came before still stands"
