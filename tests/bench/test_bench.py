"""`make bench` runs, checks exactness, and prints ratios to plain TenSEAL."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from schemas.canonical import canonical_bytes
from tasks.audit.keys import public_keys_document
from tests.audit.studies import make_agreed_study
from tests.bench import audit
from tests.bench.__main__ import measure_sum, measure_tenseal, pieces_of, render, verify_exact
from tests.bench.measure import measure
from tests.bench.models import render_models
from tests.secure_sum.threshold_ckks import ThresholdCkksSum


def test_the_bench_prints_costs_and_ratios_of_an_exact_sum(tmp_path: Path) -> None:
    out = io.StringIO()
    ours = measure_sum(ThresholdCkksSum(5, 30, tmp_path), 30, tmp_path)
    render([(ours, measure_tenseal(30))], Console(file=out, width=160))
    for text in ("TenSEAL CPU s", "peak MiB", "share bytes", "|           30 | contribute | site"):
        assert text in out.getvalue()


def test_a_sum_that_is_not_exact_ends_the_bench(tmp_path: Path) -> None:
    sites = ("site-00", "site-01")
    opened = sum(np.concatenate(list(pieces_of(site, 40))) for site in sites)
    opened.tofile(tmp_path / "opened")
    verify_exact(tmp_path / "opened", 40, sites)
    opened[39] += 1
    opened.tofile(tmp_path / "opened")
    with pytest.raises(SystemExit, match="is not exact"):
        verify_exact(tmp_path / "opened", 40, sites)


def test_a_step_is_charged_for_its_own_memory() -> None:
    _, small = measure(lambda: None)
    size, large = measure(lambda: np.ones(50_000_000 // 8).size * 8)
    assert large.peak_bytes - small.peak_bytes > 0.9 * size


def test_the_bench_measures_training_and_ledger_beside_their_targets() -> None:
    out = io.StringIO()
    render_models(Console(file=out, width=160), rows=64, entries=40)
    for text in ("plain SGD 60-32-1", "closed form, clipped exact sum", "whole verification", "| ratio | target |"):
        assert text in " ".join(out.getvalue().split())


@pytest.mark.long
def test_the_bench_audits_a_study_that_it_made() -> None:
    out = io.StringIO()
    audit.render_audit(Console(file=out, width=160), studies=((4, 1),))
    assert "| audit CPU s | wall s |" in " ".join(out.getvalue().split())
    assert "|     4 |      1 |" in out.getvalue()


def test_a_failed_audit_has_no_figure(tmp_path: Path) -> None:
    study = make_agreed_study(tmp_path)
    keys = tmp_path / "keys.json"
    keys.write_bytes(canonical_bytes(public_keys_document(study.plan)))
    audit.measure_audit(study.evidence, keys)
    (study.evidence / "extra").write_bytes(b"")
    with pytest.raises(SystemExit, match="C02"):
        audit.measure_audit(study.evidence, keys)
