"""A question before a study, end to end with real keys, ledgers and encryption: charged once, opened as a sum."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.embedded import Faults
from infra.embedded_statistics import EmbeddedQuestion, answer_question
from infra.question_words import describe_answer
from infra.questions import write_question
from schemas.canonical import digest_of
from schemas.envelope import sign_envelope
from schemas.errors import PeerError, PlanError
from schemas.layout import ANSWER, attempt_key, release_key
from schemas.messages import Instruction, StatisticsRelease
from schemas.statistics import QUESTION_ROUND, StatisticsPlan, coefficients
from site_agents.context import open_context
from site_agents.home import open_home
from site_agents.questioning import Questioning
from site_agents.release import SiteAnswer
from site_agents.round import SiteRound
from tasks.audit.html.page import render_page
from tasks.audit.keys import PublicKeys, public_keys_document
from tasks.audit.report import AuditReport
from tasks.audit.verify import open_evidence, verify_evidence
from tasks.ledger.budget import budget_state, describe_budget
from tasks.privacy.accounting import exact
from tasks.privacy.pure import gdp_cost_of_pure
from tests.audit.studies import reseal
from tests.simulator import InsecureRecordedStream, Prepared, change_settings, copy_study
from tests.statistics.asking import Asked, ask, question

COLUMN = "mean_radius"


@pytest.fixture(scope="module")
def study(prepared_study: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return copy_study(prepared_study, tmp_path_factory.mktemp("questions") / "study")


@pytest.fixture(scope="module")
def counted(study: Prepared) -> Asked:
    """An approved count with Laplace noise."""
    return ask(study, question(epsilon="0.5", where=("malignant=true",)))


def open_recorded(asked: Asked) -> EmbeddedQuestion:
    consortium = asked.open()
    consortium.stream_for = InsecureRecordedStream
    return consortium


def audit(evidence: Path, asked: Asked) -> AuditReport:
    keys = PublicKeys.model_validate_json(json.dumps(public_keys_document(asked.plan)))
    return verify_evidence(evidence, keys)


def tables(prepared: Prepared, names: list[str] | tuple[str, ...]) -> pa.Table:
    return pa.concat_tables([pq.read_table(prepared.workdir.site(name) / "cohort.parquet") for name in names])


def test_a_count_over_hospitals_is_answered_charged_and_closed(counted: Asked) -> None:
    consortium = open_recorded(counted)
    silent = consortium.plan.sites[0].name
    before = {name: budget_state(site.ledger).training.spent for name, site in consortium.sites.items()}
    answer = consortium.run(Faults(silent=(silent,))).predicate
    assert silent not in answer.participants
    truth = sum(tables(counted.prepared, answer.participants)["malignant"].to_pylist())
    ((name, value, low, high),) = answer.figures
    assert name == "patients"
    assert float(low) <= truth <= float(high)
    assert abs(float(value) - truth) < 40
    assert (answer.pure, answer.epsilon) == (True, "0.5")
    cost = gdp_cost_of_pure(exact("0.5"))
    for site in consortium.sites.values():
        state = budget_state(site.ledger)
        charged = cost if site.name != silent else 0
        assert exact(state.training.spent) == exact(state.held_out.spent) == exact(before[site.name]) + charged
    assert "patients who qualify" in describe_answer(consortium.plan, answer)

    # Asked again, by everybody after a restart: the same answer, and nothing is charged.
    again = open_recorded(counted)
    positions = {name: site.ledger.position() for name, site in again.sites.items()}
    assert again.run().predicate == answer
    assert {name: site.ledger.position() for name, site in again.sites.items()} == positions
    evidence = again.close()
    report = audit(evidence, counted)
    assert report.passed, [finding for result in report.results for finding in result.findings]
    status = {result.check: result.status for result in report.results}
    assert {"C06", "C14", "C16", "C20", "C24", "C25", "C34"} <= {n for n, s in status.items() if s == "checked"}
    assert {status[n] for n in ("C21", "C22", "C23", "C26", "C29")} == {"not-applicable"}
    page = render_page(open_evidence(evidence, None), report)
    assert "<title>Audit: How many patients would qualify?</title>" in page
    assert "Not shown" not in page
    assert f"<td>{value}</td>" in page

    # A coordinator that rewrites the answer afterwards, manifest and all, is named.
    lie = answer.model_copy(update={"figures": ((name, str(float(value) + 1), low, high),)})
    identity = again.coordinator.identity
    path = evidence / release_key(counted.plan.study, ANSWER)
    path.write_bytes(sign_envelope(lie, counted.plan.study, identity.signing))
    reseal(evidence, counted.plan.study, identity)
    assert "C34" in {result.check for result in audit(evidence, counted).results if result.status == "failed"}
    assert all(site.released for site in again.sites.values())


def test_budget_words_name_the_question(counted: Asked) -> None:
    site = counted.plan.sites[1].name
    words = describe_budget(counted.open().sites[site].ledger)
    assert "1 question" in words
    assert "purely epsilon 0.5" in words


def test_the_same_question_under_another_name_is_another_plan_and_another_charge(counted: Asked) -> None:
    first = counted.open()
    name = first.plan.sites[1].name
    renamed = ask(counted.prepared, question(name="Another name", epsilon="0.5", where=("malignant=true",)))
    consortium = open_recorded(renamed)
    site = consortium.sites[name]
    public = consortium.run_ceremony()
    from flows.question_steps import QuestionSteps

    QuestionSteps(consortium.coordinator, public).issue()
    spent = exact(budget_state(site.ledger).training.spent)
    work = SiteRound(site, QUESTION_ROUND, 1)
    assert answer_question(work) is not None, "0.79 does not fit a limit of 0.52"
    assert exact(budget_state(site.ledger).training.spent) == spent, "a refused question is charged to neither part"
    assert describe_budget(site.ledger).count("question") >= 1

    # What the coordinator changes in the one instruction is refused by name, and never charged.
    real = work.instruction.predicate
    for change, code in (
        ({"kind": "train"}, "wrong-kind"),
        ({"model": "0" * 64}, "wrong-query"),
        ({"length": 2}, "wrong-length"),
        ({"participants": real.participants[:2]}, "too-few-participants"),
    ):
        forged = real.model_copy(update={**change, "attempt": 2})
        assert refused_code(consortium, name, forged) == code
    assert exact(budget_state(site.ledger).training.spent) == spent


def refused_code(consortium: EmbeddedQuestion, name: str, instruction: Instruction) -> str:
    key = attempt_key(consortium.plan.study, QUESTION_ROUND, instruction.attempt, None, "instruction.json")
    path = Path(consortium.coordinator.settings.store) / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(sign_envelope(instruction, consortium.plan.study, consortium.coordinator.identity.signing))
    work = SiteRound(consortium.sites[name], QUESTION_ROUND, instruction.attempt)
    with pytest.raises(PeerError) as refusal:
        Questioning(work).verify()
    return refusal.value.code


def test_mean_and_histogram_with_gaussian_noise_and_a_site_without_budget(study: Prepared, tmp_path: Path) -> None:
    prepared = copy_study(study, tmp_path / "study")
    poor = prepared.plan.sites[2].name
    change_settings(prepared.workdir.site(poor), epsilon="0.1")
    asked = ask(prepared, question(noise="gaussian", epsilon="1", column=COLUMN, bins=4))
    consortium = open_recorded(asked)
    answer = consortium.run().predicate
    assert poor not in answer.participants
    assert consortium.sites[poor].ledger.find(asked.plan.study, "refused")
    assert not consortium.sites[poor].ledger.find(asked.plan.study, "privacy-reserved")
    values = np.array(tables(prepared, answer.participants)[COLUMN].to_pylist(), float)
    found = {name: (float(v), float(low), float(high)) for name, v, low, high in answer.figures}
    assert list(found) == ["patients", "recorded", "mean", "bin 1", "bin 2", "bin 3", "bin 4"]
    assert found["patients"][1] <= values.size <= found["patients"][2]
    assert found["mean"][1] <= values.mean() <= found["mean"][2]
    assert found["mean"][2] - found["mean"][1] < 5

    # A coordinator that publishes another answer than the one that was opened gets no signature.
    key = release_key(asked.plan.study, ANSWER)
    (name, value, low, high), *rest = answer.figures
    lie = answer.model_copy(update={"figures": ((name, str(float(value) + 1), low, high), *rest)})
    coordinator = consortium.coordinator
    path = Path(coordinator.settings.store) / key
    path.unlink()
    path.write_bytes(sign_envelope(lie, asked.plan.study, coordinator.identity.signing))
    with pytest.raises(PeerError, match="does not follow from the opened sum"):
        SiteAnswer(consortium.sites[answer.participants[0]]).verify()


def test_a_question_is_no_study_and_a_study_answers_no_question(counted: Asked) -> None:
    home = open_home(counted.prepared.workdir.site(counted.plan.sites[0].name))
    with pytest.raises(PlanError, match="another kind"):
        open_context(home, counted.plan.study)
    with pytest.raises(PlanError, match="no sum of kind statistics"):
        coefficients(counted.prepared.plan, "statistics")
    assert isinstance(counted.plan, StatisticsPlan)
    assert digest_of(counted.plan) != digest_of(counted.plan.query)
    assert StatisticsRelease.predicate_type() == "urn:consilium:statistics-release:v1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": "no_such_number"}, "to be a number of the contract"),
        ({"where": ("no_such_column=1",)}, "has no column"),
        ({"where": ("patient_id=mine",)}, "does not go with the role patient_id and the kind identifier"),
        ({"where": ("malignant",)}, "Expected a condition like"),
        ({"where": ("mean_radius=small",)}, "mean_radius"),
        ({"epsilon": "30"}, "noise multiplier of at least"),
        ({"epsilon": "0.001"}, "scale up to"),
    ],
    ids=str,
)
def test_a_question_that_does_not_fit_the_contract_is_refused(
    prepared_study: Prepared, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        write_question(prepared_study.plan, question(**changes))
