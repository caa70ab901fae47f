"""Generated tables in the format of the eICU demo; no real row."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np

from infra import datasets_eicu

PATIENT = (
    *("patientunitstayid", "hospitalid", "age", "unitadmitsource"),
    *("hospitaldischargestatus", "uniquepid", "wardid"),
)
MEASURED = tuple(n for n in datasets_eicu._NUMBERS if n.name != "age")
APS = ("patientunitstayid", *(n.name for n in MEASURED), "intubated", "vent", "dialysis")
PRED = ("patientunitstayid", "metastaticcancer", "oobventday1", "oobintubday1", "electivesurgery", "age")
HOSPITALS = (56, 59, 60, 458)


def write_eicu(folder: Path, patients_per_hospital: int = 24) -> Path:
    """Writes generated tables with SHA256SUMS: every third patient has two stays, and one was in two hospitals."""
    rng = np.random.default_rng(5)
    stays, measured, predictors = [], [], []
    number = 1000
    for hospital in HOSPITALS:
        for index in range(patients_per_hospital):
            patient = "shared" if index == 0 and hospital in HOSPITALS[:2] else f"p-{hospital}-{index:03d}"
            for _ in range(2 if index % 3 == 0 else 1):
                number += 1
                dead = rng.random() < 0.4
                status = "Expired" if dead else "Alive"
                age = "> 89" if index == 5 else str(int(rng.integers(20, 80)) + 10 * dead)
                stays.append((number, hospital, age, "Floor", status, patient, 1))
                values = [_measure(rng, n, dead) for n in MEASURED]
                measured.append((number, *values, 0, int(dead), 0))
                predictors.append((number, 0, 0, 0, "", -1))
    # Neither has an APACHE row or an outcome, so neither is a row of the study.
    stays += [(1, 56, "50", "Floor", "Alive", "p-none", 1), (2, 56, "50", "Floor", "", "p-none", 1)]
    measured.append((2, *(["-1"] * (len(APS) - 1))))
    folder.mkdir()
    for name, head, rows in (
        ("patient.csv", PATIENT, stays),
        ("apacheapsvar.csv", APS, measured),
        ("apachepredvar.csv", PRED, predictors),
    ):
        with (folder / name).open("w", newline="") as out:
            csv.writer(out).writerows([head, *rows])
    names = ("patient.csv", "apacheapsvar.csv", "apachepredvar.csv")
    sums = "".join(f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names)
    (folder / "SHA256SUMS").write_text(sums)
    return folder


def sums_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()


def _measure(rng: np.random.Generator, number: datasets_eicu._Number, dead: bool) -> str:
    if rng.random() < 0.2:
        return "-1"
    low, high = float(number.low), float(number.high)
    # Some values lie beyond the public range.
    return f"{low + (high - low) * (rng.random() * 1.2 - 0.1 * (1 - dead)):.3f}"
