"""Encoding uses the contract's public ranges alone, in a canonical order that the file's order cannot change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SiteDataError
from schemas.plan import feature_count
from tasks.contract.encoder import encode_features, pool_cohorts
from tests.contract.tables import clinic_columns, clinic_contract, clinic_table


def test_every_kind_is_encoded_by_the_public_contract():
    cohort = encode_features(clinic_contract(), clinic_table())
    # Patients p1..p4; columns: age, chol, chol missing, smoker, smoker missing, sinus, af, paced.
    assert cohort.features.tolist() == [
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0],
        [-1.0, 0.0, 1.0, -1.0, 0.0, 1.0, 0.0, 0.0],
        [-0.5, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0],
        [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    ]
    assert cohort.labels.tolist() == [False, False, True, True]
    assert cohort.held_out.tolist() == [True, False, False, False]
    assert cohort.patients.tolist() == [0, 1, 2, 3]
    assert cohort.features.shape[1] == feature_count(clinic_contract())


def test_one_patients_encoding_does_not_depend_on_the_others():
    whole = encode_features(clinic_contract(), clinic_table())
    alone = encode_features(clinic_contract(), clinic_table().slice(0, 1))
    assert np.array_equal(alone.features[0], whole.features[3])


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)))
def test_row_order_of_the_file_does_not_matter(order):
    columns = {name: values + values for name, values in clinic_columns().items()}
    columns["age"] = [60.0, 0.0, 120.0, 30.0, 61.0, 1.0, 119.0, 31.0]
    contract = clinic_contract("many")
    table = clinic_table(**columns)
    first, second = encode_features(contract, table), encode_features(contract, table.take(list(order)))
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.labels, second.labels)
    assert first.patients.tolist() == second.patients.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_parts_are_disjoint_renumbered_and_complete():
    columns = {name: values + values for name, values in clinic_columns().items()}
    cohort = encode_features(clinic_contract("many"), clinic_table(**columns))
    train, held = cohort.training, cohort.evaluation
    assert (cohort.patient_count, train.patient_count, held.patient_count) == (4, 3, 1)
    assert train.patients.tolist() == [0, 0, 1, 1, 2, 2]
    assert held.patients.tolist() == [0, 0]
    assert not train.held_out.any()
    assert held.held_out.all()


def test_pooled_patients_of_two_sites_stay_two_patients():
    cohort = encode_features(clinic_contract(), clinic_table())
    pooled = pool_cohorts([cohort, cohort])
    assert pooled.patients.tolist() == list(range(8))
    assert pooled.patient_count == 8


def test_empty_table_encodes_to_an_empty_cohort():
    cohort = encode_features(clinic_contract(), clinic_table().slice(0, 0))
    assert cohort.features.shape == (0, feature_count(clinic_contract()))
    assert cohort.patient_count == cohort.training.patient_count == cohort.evaluation.patient_count == 0


def test_without_a_held_out_column_every_patient_trains():
    contract = clinic_contract()
    contract = contract.model_copy(update={"columns": tuple(c for c in contract.columns if c.role != "held_out")})
    assert encode_features(contract, clinic_table(held_out=None)).training.patient_count == 4


def test_table_that_was_not_checked_is_refused():
    with pytest.raises(SiteDataError, match="passed the contract check"):
        encode_features(clinic_contract(), clinic_table(age=None))
