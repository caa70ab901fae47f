"""A contract that uses everything, its table, and the raw table and mapping of a hospital that calls all of it else."""

from __future__ import annotations

import pyarrow as pa

from schemas.contract import DataContract
from schemas.mapping import SiteMapping
from schemas.yaml_files import model_from_plain, parse_yaml
from tasks.contract.contract_file import parse_contract

CONTRACT = b"""
contract: ward
version: 1.0
description: Stays of adults
rows_per_patient: many
columns:
  pid: {kind: identifier, role: patient_id}
  admitted: {kind: time, role: time, range: [2010-01-01, 2024-12-31]}
  left: {kind: time, role: support, max_missing: 1}
  grade: {kind: number, role: outcome, range: [0, 4], max_missing: 1}
  ill: {kind: boolean, role: label}
  out: {kind: boolean, role: held_out}
  age: {kind: number, unit: years, range: [0, 120]}
  chol: {kind: number, unit: mg/dl, range: [50, 650], max_missing: 0.50}
  temp: {kind: number, unit: degC, range: [30, 45], max_missing: 0.5}
  sbp: {kind: number, unit: mmHg, range: [40, 300], max_missing: 0.5}
  dbp: {kind: number, unit: mmHg, range: [10, 200], max_missing: 0.5}
  smoker: {kind: boolean, max_missing: 1}
  rhythm: {kind: code, codes: [no, yes, af], max_missing: 0.25}
label:
  when:
    - {column: grade, above: 0}
split: {share: 0.25, salt: ward-1}
keys:
  - [pid, admitted]
cohort:
  - {column: age, at_least: 18}
rules:
  - {name: pressures, column: sbp, above_column: dbp}
  - {name: smokers-have-a-pressure, when: [{column: smoker, equals: true}], column: sbp, present: true}
  - {name: order, column: left, at_least_column: admitted}
outcomes: [death_date, grade]
"""

MAPPING = b"""
contract: ward
version: 1.0
missing: ["?"]
columns:
  pid: {from: [HAUS, FALL]}
  admitted: {from: AUFNAHME, format: "%d.%m.%Y %H:%M"}
  left: {from: ENTLASSUNG, format: "%d.%m.%Y"}
  grade: {from: GRAD, missing: [-9]}
  age: {from: ALTER, unit: months}
  chol: {from: CHOL, unit: mmol/l, molar_mass: 386.65 g/mol, missing: [0, -1], decimal_comma: true}
  temp: {from: TEMP, unit: degF}
  sbp: SYS
  dbp: DIA
  smoker: {from: RAUCHER, true: [J, Ja], false: N}
  rhythm: {from: EKG, codes: {"1": no, "2": yes, "3": af}}
"""


def ward_contract() -> DataContract:
    return parse_contract(CONTRACT, "ward.yaml")


def ward_mapping(text: bytes = MAPPING) -> SiteMapping:
    return model_from_plain(SiteMapping, parse_yaml(text, "mapping.yaml"), "mapping.yaml")


def raw_columns() -> dict[str, list[object]]:
    """As a CSV source gives them: every value a text, an empty field null."""
    return {
        "HAUS": ["A", "A", "B", "B", "B"],
        "FALL": ["1", "2", "1", "2", "3"],
        "AUFNAHME": ["01.02.2020 08:30", "29.02.2020 00:00", "3.4.2021 9:05", "31.12.2024 23:59", "05.05.2015 05:05"],
        "ENTLASSUNG": ["02.02.2020", None, "?", "31.12.2025", None],
        "GRAD": ["0", "2", "1.0", "4", "0"],
        "ALTER": ["720", "240", "1200", "480", "120"],
        "CHOL": ["5,2", "0", "0.0", "7,1", "-1"],
        "TEMP": ["98.6", None, "104", "95", "98"],
        "SYS": ["120", "130", None, "110", "90"],
        "DIA": ["80", "70", "60", None, "50"],
        "RAUCHER": ["J", "n", None, "ja", "N"],
        "EKG": ["1", "2", "3", "?", "1"],
        "UNUSED": ["secret", "secret", "secret", "secret", "secret"],
    }


def raw_batch(**changes: object) -> pa.RecordBatch:
    columns = raw_columns() | changes
    return pa.RecordBatch.from_pydict({name: value for name, value in columns.items() if value is not None})
