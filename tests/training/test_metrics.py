"""Released metrics: right without noise, honest about uncertainty with it, deterministic, never outside their range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import EvidenceError
from tasks.metrics import evaluate_histogram, exact_auc


def slow_auc(scores, labels):
    gaps = scores[labels][:, None] - scores[~labels][None, :]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def histogram_of(scores, labels, bins):
    place = np.minimum((scores * bins).astype(int), bins - 1)
    parts = [np.bincount(place[labels == side], minlength=bins) for side in (False, True)]
    return np.concatenate(parts).astype(np.float64)


def draw(rng, n, gap=1.8):
    labels = rng.random(n) < 0.45
    return 1 / (1 + np.exp(-rng.normal(np.where(labels, gap / 2, -gap / 2)))), labels


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_exact_auc_equals_counting_pairs(rows):
    scores = np.array([r[0] / 5 for r in rows])
    labels = np.array([r[1] for r in rows])
    if labels.all() or not labels.any():
        with pytest.raises(EvidenceError, match="both outcomes"):
            exact_auc(scores, labels)
    else:
        assert exact_auc(scores, labels) == pytest.approx(slow_auc(scores, labels), abs=1e-12)


def test_without_noise_the_histogram_gives_the_binned_figures():
    scores, labels = draw(np.random.default_rng(1), 400)
    bins = 20
    metrics = evaluate_histogram(histogram_of(scores, labels, bins), 0.0)
    centres = (np.minimum((scores * bins).astype(int), bins - 1) + 0.5) / bins
    assert metrics.auc.value == pytest.approx(slow_auc(centres, labels), abs=1e-12)
    assert metrics.brier.value == pytest.approx(float(((centres - labels) ** 2).mean()), abs=1e-12)
    assert metrics.mean_error.value == pytest.approx(float(centres.mean() - labels.mean()), abs=1e-12)
    assert metrics.roc[0].true_positive_rate == 0.0
    assert metrics.roc[-1].false_positive_rate == metrics.roc[-1].true_positive_rate == 1.0
    for point in metrics.calibration:
        inside = (centres > point.low) & (centres < point.high)
        assert (point.observed is None) == (not inside.any())
        if point.observed is not None:
            assert point.observed.value == pytest.approx(float(labels[inside].mean()))


@pytest.mark.parametrize("sigma", [0.0, 2.2, 4.0])
def test_intervals_cover_the_truth_over_noise_and_sampling(sigma):
    rng = np.random.default_rng(7)
    scores, labels = draw(rng, 4000)
    truth = (slow_auc(scores, labels), float(((scores - labels) ** 2).mean()), float(scores.mean() - labels.mean()))
    hits = np.zeros(3)
    for _ in range(300):
        histogram = histogram_of(*draw(rng, 150), 10) + rng.normal(0, sigma, 20)
        metrics = evaluate_histogram(histogram, sigma)
        found = (metrics.auc, metrics.brier, metrics.mean_error)
        hits += [e.low <= t <= e.high for e, t in zip(found, truth, strict=True)]
    assert (hits >= 0.90 * 300).all()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-50, 200), min_size=8, max_size=8), st.floats(0, 50))
def test_any_counts_give_figures_inside_their_range(counts, sigma):
    metrics = evaluate_histogram(np.array(counts, dtype=np.float64), sigma)
    for estimate, floor in ((metrics.auc, 0.0), (metrics.brier, 0.0), (metrics.mean_error, -1.0)):
        assert floor <= estimate.low <= estimate.value <= estimate.high <= 1.0
    rates = [(p.false_positive_rate, p.true_positive_rate) for p in metrics.roc]
    assert rates == sorted(rates)
    assert all(p.observed is None or 0 <= p.observed.low <= p.observed.high <= 1 for p in metrics.calibration)


def test_totals_that_noise_explains_say_nothing_rather_than_something():
    metrics = evaluate_histogram(np.array([3, -2, 1, 0, 2, -1, 0, 1], dtype=np.float64), 5.0)
    assert (metrics.auc.low, metrics.auc.value, metrics.auc.high) == (0.0, 0.5, 1.0)
    assert all(p.observed is None for p in metrics.calibration)


def test_more_noise_means_a_wider_interval():
    histogram = histogram_of(*draw(np.random.default_rng(3), 300), 10)
    widths = [m.auc.high - m.auc.low for m in (evaluate_histogram(histogram, s) for s in (0.0, 2.0, 4.0))]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


def test_summary_is_sorted_canonical_decimals_and_repeatable():
    histogram = histogram_of(*draw(np.random.default_rng(4), 200), 10)
    summary = evaluate_histogram(histogram, 2.2).summary()
    assert summary == evaluate_histogram(histogram.copy(), 2.2).summary()
    assert list(summary) == sorted(summary)
    assert {n for n, _ in summary} >= {"auc", "auc_low", "auc_high", "brier", "mean_error"}
    assert all(value == "0" or not value.endswith((".", "-0")) for _, value in summary)


@pytest.mark.parametrize(
    ("histogram", "sigma"),
    [
        (np.zeros(5), 1.0),
        (np.zeros(4, np.int64), 1.0),
        (np.zeros(2), 1.0),
        (np.zeros(8), -1.0),
        (np.full(8, np.nan), 1.0),
    ],
)
def test_malformed_histogram_is_refused(histogram, sigma):
    with pytest.raises(EvidenceError, match="Expected a"):
        evaluate_histogram(histogram, sigma)
