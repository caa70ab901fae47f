"""`make bench` runs, checks exactness, and prints ratios to plain TenSEAL."""

import io
from pathlib import Path

from rich.console import Console

from tests.bench.__main__ import measure_sum, measure_tenseal, render


def test_the_bench_prints_costs_and_ratios_of_an_exact_sum(tmp_path: Path) -> None:
    out = io.StringIO()
    render([(measure_sum(30, tmp_path), measure_tenseal(30))], Console(file=out, width=120))
    assert "Ratio to plain TenSEAL" in out.getvalue()
    assert "30 │" in out.getvalue()
