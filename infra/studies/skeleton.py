"""`consilium study init`: a commented study, contract and mapping from a sample of the table.

The sample tells names and kinds of columns. Ranges and code lists become public with the plan, so they are asked for,
given as options, or left to be filled in; they are proposed from the sample's values only where a person says that the
sample itself is public or synthetic.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra.studies.sampling import ColumnSample, sample_columns
from schemas.errors import OperationError
from schemas.options import Settings

# The same in every study: a hospital answers under one split only, and any two hospitals can meet in a study.
SPLIT_SALT = "consilium"
_TRUE = ("true", "yes", "y", "t", "1", "1.0")
_FALSE = ("false", "no", "n", "f", "0", "0.0")
# What a mapping takes for a boolean without being told.
_UNDERSTOOD = {"true", "false", "1", "0"}

Ask = Callable[[str], str]


@dataclass(frozen=True)
class SkeletonOptions:
    """What a person says about the sample.

    Attributes:
        sample: Parquet or CSV file, folder or source.yaml; it may have no rows.
        site_column: Whose values are the sites, for a simulation on this machine.
        outcome: The binary outcome column.
        positive: Its value that counts as true, where the sample's words do not say so.
        patient_id: The column that tells patients apart; "" if every row is a patient.
        out: New folder.
        public_sample: The sample may be quoted in a public contract.
        ranges: Column -> (low, high), as decimal texts.
        ignore: Columns that are no features.
    """

    sample: Path
    site_column: str
    outcome: str
    positive: str
    patient_id: str
    out: Path
    public_sample: bool = False
    epsilon: str = "3"
    ranges: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()


class Skeleton(Settings):
    """What was written; `open_points` are the places that a person must fill in before the study can be checked."""

    files: tuple[str, ...]
    features: tuple[str, ...]
    left_out: tuple[str, ...]
    open_points: tuple[str, ...]


@dataclass
class _Draft:
    columns: list[str] = field(default_factory=list)
    mapped: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    open_points: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def write_skeleton(options: SkeletonOptions, ask: Ask | None = None) -> Skeleton:
    """Writes study.yaml, contract.yaml and mapping.yaml into a new folder.

    Args:
        ask: Asks a person for what the sample cannot say; None leaves it to be filled in.

    Raises:
        OperationError: `skeleton-exists`, `skeleton-column`, `skeleton-outcome`.
        SiteDataError: the sample cannot be read.
    """
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise OperationError("skeleton-exists", f"{options.out} holds something already.", "Choose a new --out.")
    samples = {sample.name: sample for sample in sample_columns(options.sample)}
    _verify_columns(options, samples)
    draft = _Draft()
    _identifier(options, draft)
    _outcome(options, samples[options.outcome], draft, ask)
    _column(draft, "held_out", "kind: boolean, role: held_out", "derived from the patient id by `split` below")
    special = {options.site_column, options.outcome, options.patient_id, *options.ignore}
    for sample in samples.values():
        if sample.name not in special:
            _feature(options, sample, draft, ask)
    options.out.mkdir(parents=True, exist_ok=True)
    written = {
        "contract.yaml": _contract(options, draft),
        "mapping.yaml": _mapping(options, draft),
        "study.yaml": _study(options),
    }
    for name, text in written.items():
        (options.out / name).write_text(text)
    return Skeleton(
        files=tuple(str(options.out / name) for name in written),
        features=tuple(draft.features),
        left_out=tuple(draft.left_out),
        open_points=tuple(draft.open_points),
    )


def _verify_columns(options: SkeletonOptions, samples: Mapping[str, ColumnSample]) -> None:
    named = {options.site_column, options.outcome, *options.ignore, *options.ranges}
    named |= {options.patient_id} if options.patient_id else set()
    absent = sorted(named - set(samples))
    if absent:
        raise OperationError(
            "skeleton-column",
            f"The sample has no column {', '.join(absent)}.",
            f"It has {', '.join(samples)}.",
        )


def _identifier(options: SkeletonOptions, draft: _Draft) -> None:
    source = options.patient_id or "row"
    _column(draft, "patient_id", "kind: identifier, role: patient_id", "pseudonym; never a name or a record number")
    if source != "patient_id":
        draft.mapped.append(f"  patient_id: {_quoted(source)}")


def _outcome(options: SkeletonOptions, sample: ColumnSample, draft: _Draft, ask: Ask | None) -> None:
    name = _unique(sample.name, draft)
    words = list(sample.distinct or ())
    positive = options.positive or next((w for w in words if w.lower() in _TRUE), "")
    if not positive and words and ask is not None:
        positive = ask(f"Which value of {sample.name} counts as true ({', '.join(words)})?")
    _column(draft, name, "kind: boolean, role: label", "the outcome")
    understood = sample.kind in ("boolean", "empty") and {w.lower() for w in words} <= _UNDERSTOOD
    if understood and positive.lower() in ("", *_TRUE):
        if name != sample.name:
            draft.mapped.append(f"  {name}: {_quoted(sample.name)}")
        return
    negative = [w for w in words if w != positive]
    if words and (len(words) != 2 or positive not in words):
        raise OperationError(
            "skeleton-outcome",
            f"Expected two values in {sample.name}, one of them named as true.",
            "Name another --outcome, or say which value is true with --positive.",
        )
    if not words:
        draft.open_points.append(f"mapping.yaml: the word of {name} that means false")
    false = ", ".join(_quoted(word) for word in negative)
    draft.mapped.append(f"  {name}: {{from: {_quoted(sample.name)}, true: [{_quoted(positive)}], false: [{false}]}}")


def _feature(options: SkeletonOptions, sample: ColumnSample, draft: _Draft, ask: Ask | None) -> None:
    if sample.kind in ("time", "other") or (sample.kind == "text" and sample.distinct is None):
        draft.left_out.append(sample.name)
        return
    name = _unique(sample.name, draft)
    missing = ", max_missing: 1" if not options.public_sample or sample.missing else ""
    if sample.kind in {"number", "empty"}:
        _column(draft, name, f"kind: number, range: {_range(options, sample, name, draft, ask)}{missing}")
    elif sample.kind == "boolean":
        _column(draft, name, f"kind: boolean{missing}")
        words = set(sample.distinct or ())
        if not {word.lower() for word in words} <= _UNDERSTOOD:
            true, false = (_listed(words, known) for known in (_TRUE, _FALSE))
            draft.mapped.append(f"  {name}: {{from: {_quoted(sample.name)}, true: {true}, false: {false}}}")
            draft.features.append(name)
            return
    else:
        _column(draft, name, f"kind: code, codes: {_codes(options, sample, name, draft, ask)}{missing}")
    draft.features.append(name)
    if name != sample.name:
        draft.mapped.append(f"  {name}: {_quoted(sample.name)}")


def _listed(words: set[str], known: tuple[str, ...]) -> str:
    return f"[{', '.join(_quoted(word) for word in sorted(words) if word.lower() in known)}]"


def _range(options: SkeletonOptions, sample: ColumnSample, name: str, draft: _Draft, ask: Ask | None) -> str:
    given = options.ranges.get(sample.name)
    if given is None and options.public_sample and sample.low is not None and sample.high is not None:
        given = _rounded(sample.low, sample.high)
    if given is None and ask is not None:
        answer = ask(f"Public range of {sample.name}, as 0:120 (empty: fill in later)?")
        low, _, high = answer.partition(":")
        given = (low.strip(), high.strip()) if low.strip() and high.strip() else None
    if given is None:
        draft.open_points.append(f"contract.yaml: the public range of {name}")
        return "[]"
    return f"[{given[0]}, {given[1]}]"


def _codes(options: SkeletonOptions, sample: ColumnSample, name: str, draft: _Draft, ask: Ask | None) -> str:
    codes = sorted(sample.distinct or ()) if options.public_sample else []
    if not codes and ask is not None:
        codes = [c.strip() for c in ask(f"Codes of {sample.name}, with commas (empty: fill in later)?").split(",")]
    codes = [code for code in codes if code]
    if not codes:
        draft.open_points.append(f"contract.yaml: the code list of {name}")
    return f"[{', '.join(_quoted(code) for code in codes)}]"


def _rounded(low: float, high: float) -> tuple[str, str]:
    """Rounds a range outwards to two leading digits of its width, so that it is not the sample's own extremes."""
    width = high - low if high > low else max(abs(high), 1.0)
    step = 10.0 ** math.floor(math.log10(width))
    return _decimal(math.floor(low / step) * step), _decimal((math.floor(high / step) + 1) * step)


def _decimal(value: float) -> str:
    return f"{value:.12f}".rstrip("0").rstrip(".").replace("-0", "-0") or "0"


def _unique(source: str, draft: _Draft) -> str:
    slug = re.sub(r"[^a-z0-9]+", "_", source.lower()).strip("_")
    slug = (slug if slug[:1].isalpha() else f"c_{slug}")[:60]
    name, number = slug, 2
    while name in draft.names or name == "held_out":
        name, number = f"{slug}_{number}", number + 1
    return name


def _column(draft: _Draft, name: str, body: str, note: str = "") -> None:
    draft.names.add(name)
    draft.columns.append(f"  {name}: {{{body}}}" + (f"  # {note}" if note else ""))


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", text) else json.dumps(text, ensure_ascii=False)


def _contract(options: SkeletonOptions, draft: _Draft) -> str:
    left = "".join(f"  # {name}: left out; no number, no short code list\n" for name in draft.left_out)
    rows = "many" if options.patient_id else "one"
    return f"""\
# What every site's table must look like once its mapping is applied. All of it becomes public with the plan: ranges
# are plausible clinical ranges and codes are all allowed ones, never what some hospital's data happen to hold.
contract: {_quoted(options.out.absolute().name)}
version: 1
rows_per_patient: {rows}  # one or many
columns:
{chr(10).join(draft.columns)}
{left}# Held-out patients, whom no training touches: a public hash of the patient id, the same in every hospital.
split: {{share: 0.2, salt: {SPLIT_SALT}}}
# cohort:  who is part of the study          - {{column: age, at_least: 18}}
# rules:   what must hold between columns    - {{name: order, column: discharge, at_least_column: admission}}
# outcomes: [other outcome columns that must never become features]
"""


def _mapping(options: SkeletonOptions, draft: _Draft) -> str:
    columns = "\n".join(draft.mapped)
    return f"""\
# How one hospital's table becomes the contract's. Private: it never leaves the hospital. A column that is not
# named here has the contract's name, unit and codes already.
format: consilium/mapping/1
# missing: [-1, 999]            texts that mean missing in every column
columns:{chr(10) + columns if columns else " {}"}
#  weight: {{from: WEIGHT_LB, unit: lb}}          another name and unit
#  sex: {{from: SEX, codes: {{1: male, 2: female}}}} other codes
"""


def _study(options: SkeletonOptions) -> str:
    row = (
        ""
        if options.patient_id
        else "\n  row_column: row  # every row is a patient; a patient with two rows has half the protection"
    )
    return f"""\
# A study before its plan: `consilium study check` says what follows from it.
format: consilium/study/1
title: {_quoted(options.out.absolute().name)}
purpose: Say here what the model is for; every site reads it before it signs.
contract: contract.yaml
# Per site, over the whole study and all rounds; the noise is derived from it.
budget: {{epsilon: {options.epsilon}, delta: 1e-5}}
model: {{kind: logistic}}  # or {{kind: mlp, hidden: [16]}}
mechanism: {{rounds: 10, clip_norm: 0.5}}
# optimizer, evaluation, threshold: derived from the above if left out
# sites: {{north: 400, south: 250}}  declared, rounded patients; left out, all sites of the column, rounded up to ten
# Who may release the model: what each reviewer's `consilium review init` prints. Without them it stays a candidate.
# reviewers: [{{"name": "dr-example", "identity_key": "64 digits"}}]
# release: {{reviewers_needed: 1}}  # so many of them must approve
# All parties on this machine, on one table. A real study has no such section: every hospital has its own table.
simulation:
  data: {json.dumps(str(options.sample.absolute()), ensure_ascii=False)}
  site_column: {_quoted(options.site_column)}
  mapping: mapping.yaml  # or mappings: {{north: north.yaml, south: south.yaml}}{row}
"""
