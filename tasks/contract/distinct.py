"""Counts patients and repeated keys over any number of batches, in 16 bytes per row and key.

Keys are compared by two SipHash values under random keys: two different keys are taken for one with a probability below
1e-22 for ten million rows.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.contract import DataContract
from tasks.contract.arrow import join_values

if TYPE_CHECKING:
    import pyarrow as pa

Hashes = NDArray[np.uint64]


class RowCounter:
    """Collects the keys of a contract: patient, patient with side of the split, and the contract's own keys."""

    def __init__(self, contract: DataContract) -> None:
        patient, split = (contract.column_with_role(role) for role in ("patient_id", "held_out"))
        assert patient is not None
        self._patient = (patient.name,)
        self._rules: dict[str, tuple[str, ...]] = {}
        if contract.rows_per_patient == "one":
            self._rules[f"unique:{patient.name}"] = self._patient
        self._split = ""
        if split is not None and contract.rows_per_patient == "many":
            self._split = f"split:{split.name}"
            self._rules[self._split] = (patient.name, split.name)
        self._rules |= {f"keys:{'+'.join(key)}": key for key in contract.row_keys}
        self._hashes: dict[tuple[str, ...], list[Hashes]] = {key: [] for key in (self._patient, *self._rules.values())}
        self._unusable: set[tuple[str, ...]] = set()
        self._rows = 0
        self._seeds = (secrets.token_hex(8), secrets.token_hex(8))

    def add(self, table: pa.Table, sound: set[str]) -> None:
        """Takes the keys of further rows; a key with a column that is not in `sound` is not counted at all."""
        self._rows += table.num_rows
        for key, kept in self._hashes.items():
            if not sound.issuperset(key):
                self._unusable.add(key)
            elif key not in self._unusable:
                kept.append(self._hash(table, key))

    @property
    def complete(self) -> bool:
        """Whether every row's patient was counted."""
        return self._patient not in self._unusable

    @property
    def patients(self) -> int:
        """Distinct patients."""
        return self._distinct(self._patient)

    def repeated(self) -> dict[str, int]:
        """Returns per rule how many rows repeat an earlier key, or how many patients are on both sides of the split."""
        found = {}
        for rule, key in self._rules.items():
            if not self._unusable & {key, self._patient}:
                found[rule] = (
                    self._distinct(key) - self.patients if rule == self._split else self._rows - self._distinct(key)
                )
        return found

    def _hash(self, table: pa.Table, key: tuple[str, ...]) -> Hashes:
        import pandas as pd
        import pyarrow as pa
        import pyarrow.compute as pc

        parts = [pc.fill_null(table.column(name).cast(pa.string()), "\x1e2") for name in key]
        joined = join_values(parts).to_numpy(zero_copy_only=False).astype(object)
        return np.stack([pd.util.hash_array(joined, hash_key=seed, categorize=False) for seed in self._seeds])

    def _distinct(self, key: tuple[str, ...]) -> int:
        if not self._hashes[key]:
            return 0
        first, second = np.concatenate(self._hashes[key], axis=1)
        self._hashes[key] = [np.stack([first, second])]
        order = np.lexsort((second, first))
        first, second = first[order], second[order]
        return 1 + int(np.count_nonzero((first[1:] != first[:-1]) | (second[1:] != second[:-1]))) if first.size else 0
