"""The report's plots, each from what the audit re-derived."""

from __future__ import annotations

from schemas.ledger import PrivacyEvent, PrivacyReserved
from tasks.audit.context import AuditContext
from tasks.audit.html.parts import Markup
from tasks.audit.html.svg import Axis, Band, Line, draw_chart
from tasks.metrics import EvaluationMetrics, derive_noise_sigma, evaluate_histogram
from tasks.privacy.accounting import epsilon_of_events
from tasks.privacy.mechanism import evaluation_mechanism

Spent = dict[int, dict[str, float]]


def epsilon_by_round(context: AuditContext) -> Spent:
    """Returns round -> site -> epsilon of its training patients so far, under collusion, from the ledgers' events."""
    delta = context.study_plan.budget.delta
    known: dict[tuple[PrivacyEvent, ...], float] = {}
    spent: Spent = {}
    for site in context.study_plan.contributors:
        if not context.has_log(site.name):
            continue
        events: list[PrivacyEvent] = []
        for _, entry in context.log(site.name).about(context.study):
            body = entry.body
            if isinstance(body, PrivacyReserved) and body.event.data == "training":
                events.append(body.event)
                key = tuple(events)
                if key not in known:
                    known[key] = float(epsilon_of_events(key, delta))
                spent.setdefault(body.round, {})[site.name] = known[key]
    return dict(sorted(spent.items()))


def draw_epsilon(context: AuditContext) -> Markup:
    """Draws what the training patients were charged, round by round, against the plan's budget."""
    spent = epsilon_by_round(context)
    if not spent:
        return Markup("<p>No patient's data was charged.</p>")
    limit = float(context.study_plan.budget.epsilon)
    last: dict[str, float] = {}
    largest, smallest = [], []
    for round_, by_site in spent.items():
        last |= by_site
        largest.append((float(round_), max(last.values())))
        smallest.append((float(round_), min(last.values())))
    first = min(spent)
    final = max(first + 1, *spent)
    step = max(1, (final - first) // 10)
    x = Axis(first, final, [(float(r), str(r)) for r in range(first, final + 1, step)], "round")
    top = limit * 1.1
    y = Axis(0.0, top, [(limit * part / 4, f"{limit * part / 4:g}") for part in range(5)], "epsilon")
    lines = [
        Line([(float(first), limit), (float(final), limit)], "limit", f"budget of the plan: {limit:g}"),
        Line(largest, "main", "site with the largest cost", dots=True),
        Line(smallest, "second", "site with the smallest cost"),
    ]
    title = f"Epsilon of the training patients under the plan's collusion, of {limit:g}"
    return Markup(draw_chart(title, x, y, lines))


def released_evaluation(context: AuditContext) -> EvaluationMetrics | None:
    """Returns the metrics of the opened histogram, or None if none was opened."""
    round_ = context.study_plan.mechanism.rounds + 1
    if round_ not in context.opened_rounds:
        return None
    counts = evaluation_mechanism(context.study_plan).decode(context.result(round_))
    sigma = derive_noise_sigma(context.study_plan, len(context.record(round_).predicate.contributions))
    return evaluate_histogram(counts, sigma, float(context.study_plan.evaluation.steepness))


def draw_roc(metrics: EvaluationMetrics) -> Markup:
    """Draws the ROC curve with the interval of the true positive rate."""
    points = sorted(metrics.roc, key=lambda point: (point.false_positive_rate, point.true_positive_rate))
    curve = [(point.false_positive_rate, point.true_positive_rate) for point in points]
    band = Band([(p.false_positive_rate, p.low, p.high) for p in points], "95 % interval: noise and sampling")
    lines = [
        Line([(0.0, 0.0), (1.0, 1.0)], "limit", "guessing"),
        Line(curve, "main", f"released model, AUC {metrics.auc.value:.3f}"),
    ]
    axes = (_share("false positive rate"), _share("true positive rate"))
    return Markup(draw_chart("ROC on the held-out patients of all sites", *axes, lines, band))


def draw_calibration(metrics: EvaluationMetrics) -> Markup:
    """Draws observed against predicted rates, where noise does not hide the bin."""
    seen = [(point.predicted, point.observed) for point in metrics.calibration if point.observed is not None]
    lines = [Line([(0.0, 0.0), (1.0, 1.0)], "limit", "perfect calibration")]
    for predicted, observed in seen:
        lines.append(Line([(predicted, observed.low), (predicted, observed.high)], "second", ""))
    lines.append(Line([(predicted, observed.value) for predicted, observed in seen], "main", "observed", dots=True))
    hidden = len(metrics.calibration) - len(seen)
    title = f"Calibration; {hidden} of {len(metrics.calibration)} bins are hidden by the privacy noise"
    return Markup(draw_chart(title, _share("predicted"), _share("observed"), lines))


def _share(label: str) -> Axis:
    return Axis(0.0, 1.0, [(part / 4, f"{part / 4:g}") for part in range(5)], label)
