"""Encodes a checked table as numbers in [-1, 1], by the contract's public ranges and code lists alone.

No statistic of the data enters the encoding: a data-derived mean or maximum would be an unpaid release of patient data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.contract import Column, DataContract
from schemas.errors import SiteDataError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Cohort:
    """Encoded rows of one site, patients in canonical order (by id, then time, then all columns).

    Attributes:
        features: float64 (rows, d) in [-1, 1], d = `schemas.plan.feature_count`.
        labels: bool (rows,), the outcome.
        patients: int64 (rows,), patient index 0..n-1, non-decreasing, every index used.
        held_out: bool (rows,), the public split; the same for all rows of a patient.
    """

    features: NDArray[np.float64]
    labels: NDArray[np.bool_]
    patients: NDArray[np.int64]
    held_out: NDArray[np.bool_]

    @property
    def patient_count(self) -> int:
        """Number of patients; private, it never leaves the site."""
        return int(self.patients[-1]) + 1 if self.patients.size else 0

    @property
    def training(self) -> Cohort:
        """The training patients, renumbered."""
        return self._select(~self.held_out)

    @property
    def evaluation(self) -> Cohort:
        """The held-out patients, renumbered."""
        return self._select(self.held_out)

    def only(self, patients: NDArray[np.bool_]) -> Cohort:
        """The patients marked in bool (patients,), renumbered.

        Raises:
            ValueError: one mark per patient is missing.
        """
        if patients.shape != (self.patient_count,):
            raise ValueError("expected one mark per patient")
        return self._select(patients[self.patients])

    def _select(self, rows: NDArray[np.bool_]) -> Cohort:
        patients = np.unique(self.patients[rows], return_inverse=True)[1].astype(np.int64)
        return Cohort(self.features[rows], self.labels[rows], patients, self.held_out[rows])


def encode_features(contract: DataContract, table: pa.Table) -> Cohort:
    """Encodes a table that passed `check_table`.

    Numbers are scaled from their public range to [-1, 1]; booleans are -1 or 1; where the contract allows missing
    values, a missing one is 0 with indicator 1. Codes are one-hot in contract order, all zero when missing.

    Raises:
        SiteDataError: `not-encodable` if the table was not checked (a column or type of the contract is missing).
    """
    import pyarrow as pa

    from tasks.contract.arrow import arrow_schema, conform_table

    table = conform_table(contract, table)
    if table.schema.remove_metadata() != arrow_schema(contract):
        raise SiteDataError("not-encodable", "Expected a table that passed the contract check.", "Run the check first.")
    patient, time = _role(contract, "patient_id"), contract.column_with_role("time")
    first = [patient, *([time.name] if time else [])]
    order = [*first, *(c.name for c in contract.columns if c.name not in first)]
    table = table.sort_by([(name, "ascending") for name in order]).combine_chunks()
    ids = table.column(patient).to_numpy(zero_copy_only=False)
    held_out = contract.column_with_role("held_out")
    columns = [part for c in contract.features for part in _encode_column(c, table.column(c.name))]
    return Cohort(
        features=np.column_stack(columns).astype(np.float64) if columns else np.zeros((table.num_rows, 0)),
        labels=_booleans(table.column(_role(contract, "label"))),
        # The table is sorted by id as bytes: a new patient starts where the id differs from the row before.
        patients=np.cumsum(np.concatenate([[False], ids[1:] != ids[:-1]])[: len(ids)]).astype(np.int64),
        held_out=_booleans(table.column(held_out.name) if held_out else pa.array([False] * table.num_rows)),
    )


def pool_cohorts(cohorts: Sequence[Cohort]) -> Cohort:
    """Joins the cohorts of several sites; patients of different sites stay different patients.

    Only a demo or a reference calculation that owns every site's folder can call this.
    """
    starts = np.cumsum([0, *(c.patient_count for c in cohorts)])
    return Cohort(
        features=np.concatenate([c.features for c in cohorts]),
        labels=np.concatenate([c.labels for c in cohorts]),
        patients=np.concatenate([c.patients + s for c, s in zip(cohorts, starts, strict=False)]),
        held_out=np.concatenate([c.held_out for c in cohorts]),
    )


def _role(contract: DataContract, role: str) -> str:
    column = contract.column_with_role(role)
    if column is None:
        raise SiteDataError("not-encodable", f"Expected a {role} column in the contract.")
    return column.name


def _booleans(values: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _encode_column(column: Column, values: pa.ChunkedArray) -> list[NDArray[np.float64]]:
    import pyarrow.compute as pc

    missing = np.asarray(pc.is_null(values).to_numpy(zero_copy_only=False), dtype=np.bool_)
    if column.kind == "code":
        return [
            np.asarray(pc.fill_null(pc.equal(values, code), False).to_numpy(zero_copy_only=False), dtype=np.float64)
            for code in column.codes
        ]
    if column.kind == "boolean":
        encoded = 2.0 * _booleans(pc.fill_null(values, False)) - 1.0
    else:
        low, high = float(str(column.minimum)), float(str(column.maximum))
        raw = np.asarray(pc.fill_null(values, low).to_numpy(zero_copy_only=False), dtype=np.float64)
        encoded = np.clip((raw - low) / (high - low) * 2.0 - 1.0, -1.0, 1.0)
    present = np.asarray(np.where(missing, 0.0, encoded), dtype=np.float64)
    return [present, missing.astype(np.float64)] if float(column.max_missing) > 0 else [present]
