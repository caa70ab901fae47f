"""A site measures membership in the released model itself; what it finds is never sent, written or charged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from sklearn.metrics import roc_auc_score

from infra.cli import main
from schemas.errors import ConsiliumError, EvidenceError, OperationError, PlanError
from schemas.layout import release_key, round_key
from site_agents.attacking import attack_released_model
from tasks.attacks.membership import area_bound, epsilon_bound
from tasks.attacks.released import measure_losses, patient_losses
from tasks.attacks.training import train_on
from tasks.privacy.noise import os_noise_stream
from tasks.server_step import initial_state, parse_weights, weights_safetensors
from tests.attacks.test_attacks import cohort_of, plan_of
from tests.simulator import Prepared, change_settings, copy_study


@pytest.fixture
def study(finished_study, tmp_path: Path) -> Prepared:
    return copy_study(finished_study.prepared, tmp_path / "study")


def home_of(study: Prepared) -> Path:
    return study.workdir.site(study.plan.contributors[0].name)


def attack(study: Prepared, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["site", "attack", "--home", str(home_of(study)), *arguments])


def everything_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def multiply_table(study: Prepared, times: int) -> None:
    """Gives the site copies of its patients under other names: more of both kinds than it has."""
    path = home_of(study) / "cohort.parquet"
    table, column = pq.read_table(path), study.plan.contract.column_with_role("patient_id").name
    ids, place = table.column(column).to_pylist(), table.column_names.index(column)
    copies = [table.set_column(place, column, pa.array([f"{i}-{n}" for i in ids])) for n in range(times)]
    pq.write_table(pa.concat_tables(copies), path)


def test_the_released_model_is_attacked_and_not_a_byte_is_written(study: Prepared) -> None:
    before = everything_in(study.workdir.root)
    result = attack(study, "--json")
    assert result.exit_code == 0, result.output
    assert everything_in(study.workdir.root) == before, "neither store, nor ledger, nor outbox, nor logs"
    found = json.loads(result.stdout)
    assert found["study"] == study.plan.study
    assert (found["rounds_in"], found["rounds"]) == (2, 2)
    assert 2.5 < found["epsilon"] <= 3.0, "what the signed release says"
    assert found["auc"][1] < found["auc_bound"] < 1
    assert found["leaves"] is False
    assert "Nothing was charged" in found["notice"]


def test_rates_that_too_few_patients_cannot_show_are_named_and_not_printed(study: Prepared) -> None:
    result = attack(study)
    assert result.exit_code == 0, result.output
    assert "0.1 % false not measured (too-few-held-out: a false-positive rate of 0.1 % needs 1000" in result.stdout
    assert "at 1 % false   not measured (too-few-held-out: a false-positive rate of 1 % needs 100" in result.stdout
    assert "STAYS IN THIS HOSPITAL" in result.stdout


def test_a_larger_hospital_gets_each_rate_that_it_can_measure(study: Prepared) -> None:
    multiply_table(study, 6)
    found = attack_released_model(home_of(study))
    assert [rate.tpr is None for rate in found.rates] == [True, False]
    rate = found.rates[1]
    assert rate.fpr is not None
    assert rate.fpr[0] <= 0.01
    assert rate.bound == epsilon_bound(found.epsilon, found.delta, 0.01)


def test_a_hospital_with_a_handful_of_patients_held_out_is_refused_by_name() -> None:
    losses = np.arange(30.0)
    with pytest.raises(OperationError, match="neither the area nor any false-positive rate") as refused:
        measure_losses(losses, losses[:19], 1.0, 1e-5)
    assert refused.value.code == "attack-too-small"


def test_the_attack_sees_an_overfitted_model_and_measures_as_others_do() -> None:
    plan, cohort = plan_of(), cohort_of(240)
    held_out = np.random.default_rng(5).random(240) < 0.5
    cohort = replace(cohort, held_out=held_out[cohort.patients])
    weights = train_on(plan, cohort.training, os_noise_stream(), protected=False)
    members, others = (patient_losses(plan, part, weights) for part in (cohort.training, cohort.evaluation))
    found = measure_losses(members, others, 1.0, 1e-5)
    truth = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    assert found.auc[0] == pytest.approx(roc_auc_score(truth, -np.concatenate([members, others])))
    assert found.auc[1] > 0.55, "the attack is not blind"


def test_leakage_above_epsilon_is_flagged_at_each_rate_and_chance_is_not() -> None:
    generator = np.random.default_rng(1)
    others, same = generator.normal(size=2000), generator.normal(size=4000)
    leaking = np.where(generator.random(4000) < 0.3, -9.0, same)
    for members, above in ((leaking, True), (same, False)):
        found = measure_losses(members, others, 1.0, 1e-5)
        assert [rate.above_bound for rate in found.rates] == [above, above]
        for rate in found.rates:
            threshold = np.sort(others)[round(rate.allowed * len(others))]
            assert rate.fpr is not None
            assert rate.tpr is not None
            assert rate.fpr[0] == (others < threshold).mean() == rate.allowed
            assert rate.tpr[0] == (members < threshold).mean()
    assert found.auc[1] < 0.5 < found.auc[2]


def test_a_model_that_answers_everybody_alike_shows_nobody() -> None:
    found = measure_losses(np.full(3000, 0.7), np.full(2000, 0.7), 1.0, 1e-5)
    assert found.auc == (0.5, 0.5, 0.5)
    assert all(rate.tpr is not None and rate.tpr[0] == 0 and not rate.above_bound for rate in found.rates)


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 1e-5), (3.0, 0.01), (60.0, 0.0)])
def test_the_area_that_epsilon_allows_is_the_integral_of_the_rates(epsilon: float, delta: float) -> None:
    rates = np.linspace(0, 1, 200001)
    mirrored = 1 - np.maximum(0, np.exp(-epsilon) * (1 - delta - rates))
    highest = np.minimum(np.minimum(np.exp(epsilon) * rates + delta, mirrored), 1.0)
    assert area_bound(epsilon, delta) == pytest.approx(float(np.trapezoid(highest, rates)), abs=1e-5)


def test_only_the_model_that_the_site_verified_is_scored(study: Prepared) -> None:
    store, home = study.workdir.root / "store", home_of(study)
    weights = store / release_key(study.plan.study, "weights.safetensors")
    original = weights.read_bytes()
    weights.chmod(0o600)
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    refuses(home, "blob-digest", r"weights\.safetensors is not what was signed")
    weights.write_bytes(original)
    release = store / release_key(study.plan.study, "release.json")
    signed = release.read_bytes()
    release.chmod(0o600)
    release.unlink()
    refuses(home, "release-missing", "there is no signed release")
    opening = store / round_key(study.plan.study, 1, None, "opening.json")
    release.write_bytes(opening.read_bytes())
    with pytest.raises(ConsiliumError):
        attack_released_model(home)
    release.write_bytes(signed)
    attack_released_model(home)


def refuses(home: Path, code: str, message: str) -> None:
    with pytest.raises(ConsiliumError, match=message) as refused:
        attack_released_model(home)
    assert refused.value.code == code


def test_without_a_verified_release_or_members_there_is_nothing_to_attack(
    study: Prepared, study_after_ceremony: Prepared, tmp_path: Path
) -> None:
    early = copy_study(study_after_ceremony, tmp_path / "early")
    refuses(home_of(early), "release-not-verified", "has not verified the release")
    result = attack(study, "--study", "00000000")
    assert result.exit_code == OperationError.exit_code
    assert "Expected the first 8 or more digits of an approved study" in result.stderr
    for number in (1, 2):
        (study.workdir.root / "store" / round_key(study.plan.study, number, None, "record.json")).unlink()
    with pytest.raises(PlanError, match="none of its patients is a member") as refused:
        attack_released_model(home_of(study))
    assert refused.value.code == "attack-not-a-member"


def test_a_table_that_breaks_the_contract_is_not_scored(study: Prepared) -> None:
    path = home_of(study) / "cohort.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([table.column_names[-1]]), path)
    with pytest.raises(ConsiliumError) as refused:
        attack_released_model(home_of(study))
    assert refused.value.exit_code == 10
    change_settings(home_of(study), data=str(path.parent / "none.parquet"))
    with pytest.raises(ConsiliumError):
        attack_released_model(home_of(study))


def test_released_weights_are_read_back_as_they_were_written() -> None:
    plan = plan_of(hidden=(5,))
    state = initial_state(plan)
    data = weights_safetensors(plan, state)
    assert (parse_weights(plan, data) == state.weights.astype(np.float32)).all()
    for changed in (data[:-4], data + bytes(4), b"\0" + data[1:], b""):
        with pytest.raises(EvidenceError, match="Expected the released weights of this study"):
            parse_weights(plan, changed)
