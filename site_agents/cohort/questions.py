"""What a site's rows say to a question: who qualifies, and each patient's mean value. Nothing here leaves the site."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.statistics import StatisticsPlan

if TYPE_CHECKING:
    import pyarrow as pa


def patient_values(plan: StatisticsPlan, table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Reduces rows to patients, so that each of them counts once however many rows there are.

    Args:
        table: Rows of the contract's cohort, which passed its check.

    Returns:
        values float64 (patients,): mean over the patient's rows for which all conditions hold, not finite where none of
        them has the number. qualifies bool (patients,): whether there is such a row.
    """
    import pyarrow.compute as pc

    patient = plan.contract.column_with_role("patient_id")
    assert patient is not None
    if table.num_rows == 0:
        return np.zeros(0), np.zeros(0, np.bool_)
    coded = table.column(patient.name).combine_chunks().dictionary_encode()
    patients = np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    count = len(coded.dictionary)
    chosen = _chosen_rows(plan, table)
    qualifies = np.bincount(patients[chosen], minlength=count) > 0
    if not plan.query.column:
        return np.zeros(count), qualifies
    column = pc.cast(table.column(plan.query.column), "float64").combine_chunks()
    numbers = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    known = chosen & np.isfinite(numbers)
    sizes = np.bincount(patients[known], minlength=count)
    sums = np.bincount(patients[known], weights=numbers[known], minlength=count)
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan), qualifies


def _chosen_rows(plan: StatisticsPlan, table: pa.Table) -> NDArray[np.bool_]:
    import pyarrow.compute as pc

    from tasks.contract.selection import holds

    if not plan.query.conditions:
        return np.ones(table.num_rows, np.bool_)
    kinds = {column.name: column.kind for column in plan.contract.columns}
    parts = (holds(condition, table, kinds[condition.column]) for condition in plan.query.conditions)
    # A condition that a missing value leaves open does not hold.
    both = pc.fill_null(reduce(pc.and_kleene, parts), False)
    return np.asarray(both.combine_chunks().to_numpy(zero_copy_only=False), dtype=np.bool_)
