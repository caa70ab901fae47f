"""Sites that share what one of them verified still refuse an opening that none of them verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.envelope import sign_envelope
from schemas.errors import PeerError
from schemas.layout import round_key
from site_agents.lineage import model_before
from site_agents.past import forget_past, past_of, share_past
from tasks.rounds import read_opening
from tests.simulator import Prepared, copy_study, open_consortium


def test_a_forged_opening_is_refused_by_the_second_site_though_the_first_verified_the_true_one(
    study_after_ceremony: Prepared, tmp_path: Path
) -> None:
    consortium = open_consortium(copy_study(study_after_ceremony, tmp_path / "study"))
    share_past(consortium.sites.values())
    consortium.run_round(consortium.finished_ceremony(), 1)
    first, second, third = (consortium.sites[site.name] for site in consortium.plan.sites[:3])
    true = model_before(first, 2)
    assert model_before(second, 2) is true or model_before(second, 2).opening == true.opening

    opening = read_opening(consortium.coordinator.store, consortium.plan, 1)
    assert opening is not None
    forged = opening.predicate.model_copy(update={"result": "0" * 64})
    key = round_key(consortium.plan.study, 1, None, "opening.json")
    signed = sign_envelope(forged, consortium.plan.study, consortium.coordinator.identity.signing)
    (Path(consortium.coordinator.settings.store) / key).write_bytes(signed)

    with pytest.raises(PeerError, match="not what the shares open"):
        model_before(third, 2)
    forget_past(consortium.sites.values())


def test_sites_share_nothing_unless_they_are_told_to(study_after_ceremony: Prepared, tmp_path: Path) -> None:
    consortium = open_consortium(copy_study(study_after_ceremony, tmp_path / "study"))
    first, second = (consortium.sites[site.name] for site in consortium.plan.sites[:2])
    assert past_of(first) is not past_of(second)
    assert not past_of(first).shared
