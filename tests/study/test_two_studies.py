"""Two coordinators' studies over the same hospitals at once share one budget: nothing is overspent, nothing torn."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from infra.approving import approve, read_proposed
from infra.embedded import EmbeddedConsortium
from infra.homes import make_home
from infra.joining import join, open_request
from infra.proposing import propose
from schemas.errors import ConsiliumError
from schemas.ledger import PrivacyReserved, Refused
from schemas.options import CoordinatorSettings
from site_agents.context import open_context
from site_agents.home import open_home
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import verify_evidence
from tasks.ledger.verify import verify_log
from tests.simulator import Prepared, change_settings, copy_study


@dataclass
class Study:
    """One coordinator's study over the shared homes, run by a thread of its own."""

    coordinator: Path
    homes: dict[str, Path]
    keys: Path
    evidence: Path | None = None
    error: BaseException | None = None

    def opened(self) -> EmbeddedConsortium:
        return EmbeddedConsortium(self.coordinator, self.homes)

    def run(self, barrier: threading.Barrier, release: bool) -> None:
        try:
            consortium = self.opened()
            public = consortium.run_ceremony()
            barrier.wait(timeout=300)
            rounds = consortium.plan.mechanism.rounds
            for round_ in range(1, rounds + 1):
                consortium.run_round(public, round_)
            if release:
                evaluation = consortium.run_round(public, rounds + 1, "evaluate")
                self.evidence = consortium.release(rounds, evaluation)
        except BaseException as error:
            barrier.abort()
            self.error = error


@pytest.fixture
def studies(prepared_study: Prepared, tmp_path: Path) -> tuple[Study, Study]:
    """A hospital's registry and a university, each with its own keys and plan; the hospitals approved both plans."""
    first = copy_study(prepared_study, tmp_path / "study")
    homes = {site.name: first.workdir.site(site.name) for site in first.plan.sites}
    second = tmp_path / "university"
    settings = CoordinatorSettings(
        name="university",
        store=str(first.workdir.store),
        prefect_api_url="http://unused.invalid/api",
        mlflow_uri=f"sqlite:///{second / 'mlflow.db'}",
        artifacts=str(second / "mlartifacts"),
    )
    make_home(second, settings)
    draft = tmp_path / "draft.json"
    draft.write_text(json.dumps(first.plan.model_dump(mode="json")))
    plan = propose(second, draft, [open_request(join(home, 110, True, True)[1], name) for name, home in homes.items()])
    for home in homes.values():
        approve(home, read_proposed(home, plan.study))
    return Study(first.workdir.coordinator, homes, first.keys), Study(second, homes, second / "public-keys.json")


def at_once(studies: tuple[Study, Study], release: bool = False) -> None:
    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=study.run, args=(barrier, release)) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def verify_homes(studies: tuple[Study, Study]) -> dict[str, list[tuple[str, PrivacyReserved]]]:
    """Verifies every site's one ledger from its bytes; returns what it charged to which study, in order."""
    charged = {}
    for name, home in studies[0].homes.items():
        opened = open_home(home)
        ledger = open_context(opened, studies[0].opened().plan.study).ledger
        report = verify_log(ledger.entries(), name, opened.identity.identity_key)
        assert report.position == ledger.position()
        for totals in report.filters:
            assert Fraction(totals.spent) <= Fraction(totals.limit)
        charged[name] = [(study, e.body) for study, e in report.entries if isinstance(e.body, PrivacyReserved)]
        for part in ("training", "held-out"):
            bodies = [body for _, body in charged[name] if body.event.data == part]
            # Each charge began where the one before it ended, whichever study asked: none was lost in between.
            assert [body.before for body in bodies[1:]] == [body.after for body in bodies[:-1]]
        instructions = [body.instruction for _, body in charged[name]]
        assert len(set(instructions)) == len(instructions)
    return charged


def test_a_budget_for_one_study_is_never_spent_twice_by_two_at_once(studies: tuple[Study, Study]) -> None:
    at_once(studies)
    charged = verify_homes(studies)
    # Each plan alone takes the whole budget in its two rounds: no site trains more often, for whomever.
    assert {len(reserved) for reserved in charged.values()} == {2}
    assert len({study.opened().plan.study for study in studies}) == 2
    failed = [study.error for study in studies if study.error is not None]
    assert failed
    for error in failed:
        assert isinstance(error, ConsiliumError), error
    refusals = [
        entry.body.code
        for home in studies[0].homes.values()
        for study in studies
        for entry in open_context(open_home(home), study.opened().plan.study).ledger.find(
            study.opened().plan.study, "refused"
        )
        if isinstance(entry.body, Refused)
    ]
    assert refusals
    assert set(refusals) == {"budget-exceeded"}


@pytest.mark.long
def test_two_studies_that_fit_one_budget_both_finish_and_verify(studies: tuple[Study, Study]) -> None:
    for home in studies[0].homes.values():
        change_settings(home, epsilon="6")
    at_once(studies, release=True)
    for study in studies:
        assert study.error is None, study.error
        assert study.evidence is not None
        report = verify_evidence(study.evidence, read_public_keys(study.keys))
        assert report.passed
    charged = verify_homes(studies)
    rounds = studies[0].opened().plan.mechanism.rounds
    for reserved in charged.values():
        assert Counter(study for study, _ in reserved) == {s.opened().plan.study: rounds + 1 for s in studies}
