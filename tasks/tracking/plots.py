"""The three plots of a study, each as an image and as the data it shows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.canonical import canonical_bytes
from schemas.plan import StudyPlan
from tasks.metrics import EvaluationMetrics


@dataclass(frozen=True)
class EpsilonAtRound:
    """Cumulative epsilon per site after a round, in both readings."""

    round: int
    collusion: Mapping[str, float]
    outsider: Mapping[str, float]


def draw_plots(
    plan: StudyPlan, history: Sequence[EpsilonAtRound], evaluation: EvaluationMetrics | None
) -> dict[str, bytes]:
    """Draws every plot there is data for.

    Returns:
        Artifact path to bytes: ``plots/<name>.png`` and ``.json`` for ``epsilon``, ``roc`` and ``calibration``.
    """
    plots: dict[str, bytes] = {}
    if history:
        data = epsilon_data(plan, history)
        plots |= _pair("epsilon", data, _draw_epsilon(data))
    if evaluation is not None:
        roc, calibration = roc_data(evaluation), calibration_data(evaluation)
        plots |= _pair("roc", roc, _draw_roc(roc))
        plots |= _pair("calibration", calibration, _draw_calibration(calibration))
    return plots


def epsilon_data(plan: StudyPlan, history: Sequence[EpsilonAtRound]) -> dict[str, Any]:
    """Returns epsilon by round and site in both readings, their maxima and the plan's limit."""
    rounds = sorted(history, key=lambda item: item.round)
    sites = sorted({site for item in rounds for site in item.collusion})
    return {
        "rounds": [item.round for item in rounds],
        "limit": float(plan.budget.epsilon),
        "delta": plan.budget.delta,
        "collusion": {site: [item.collusion.get(site) for item in rounds] for site in sites},
        "outsider": {site: [item.outsider.get(site) for item in rounds] for site in sites},
        "collusion_max": [max(item.collusion.values()) for item in rounds],
        "outsider_max": [max(item.outsider.values()) for item in rounds],
    }


def roc_data(evaluation: EvaluationMetrics) -> dict[str, Any]:
    """Returns the ROC points with their 95 % band, and the AUC with its interval."""
    return {
        "auc": [evaluation.auc.value, evaluation.auc.low, evaluation.auc.high],
        "false_positive_rate": [point.false_positive_rate for point in evaluation.roc],
        "true_positive_rate": [point.true_positive_rate for point in evaluation.roc],
        "low": [point.low for point in evaluation.roc],
        "high": [point.high for point in evaluation.roc],
    }


def calibration_data(evaluation: EvaluationMetrics) -> dict[str, Any]:
    """Returns predicted against observed rates by bin, with 95 % intervals; bins too noisy to read are left out."""
    shown = [point for point in evaluation.calibration if point.observed is not None]
    return {
        "mean_error": [evaluation.mean_error.value, evaluation.mean_error.low, evaluation.mean_error.high],
        "predicted": [point.predicted for point in shown],
        "observed": [point.observed.value for point in shown if point.observed],
        "low": [point.observed.low for point in shown if point.observed],
        "high": [point.observed.high for point in shown if point.observed],
    }


def _pair(name: str, data: dict[str, Any], image: bytes) -> dict[str, bytes]:
    return {f"plots/{name}.json": canonical_bytes(data), f"plots/{name}.png": image}


def _figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    return figure, axes


def _caption(figure: Any, text: str) -> None:
    figure.supxlabel(text, fontsize=8, color="dimgrey")


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _draw_epsilon(data: Mapping[str, Any]) -> bytes:
    figure, axes = _figure(f"Cumulative ε of the sites' training patients (δ = {data['delta']})", "round", "ε")
    for number, values in enumerate(data["collusion"].values()):
        label = "each site, under the plan's collusion" if number == 0 else None
        shown = [float("nan") if v is None else v for v in values]
        axes.plot(data["rounds"], shown, color="tab:red", alpha=0.3, label=label)
    axes.plot(data["rounds"], data["collusion_max"], "o-", color="tab:red", label="highest, under the plan's collusion")
    axes.plot(data["rounds"], data["outsider_max"], "s-", color="tab:blue", label="highest, against outsiders")
    axes.axhline(data["limit"], color="black", linestyle="--", label=f"limit {data['limit']:g}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize=9)
    return _png(figure)


def _draw_roc(data: Mapping[str, Any]) -> bytes:
    value, low, high = data["auc"]
    figure, axes = _figure(
        f"ROC of the released model, AUC {value:.3f} (95 % {low:.3f} to {high:.3f})",
        "false positive rate",
        "true positive rate",
    )
    rate = data["false_positive_rate"]
    axes.fill_between(rate, data["low"], data["high"], alpha=0.2, label="95 % band (privacy noise and sampling)")
    axes.plot(rate, data["true_positive_rate"], "o-", markersize=3, label="estimate")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    ranges = f"Scores counted in {len(rate) - 1} ranges, whose ties count one half in the AUC."
    _caption(figure, f"{ranges}\nCurve: the nearest counts that can exist. AUC: the noisy counts as they are.")
    axes.legend(loc="lower right", fontsize=9)
    return _png(figure)


def _draw_calibration(data: Mapping[str, Any]) -> bytes:
    value, low, high = data["mean_error"]
    figure, axes = _figure(
        f"Calibration: predicted minus observed {value:+.3f} (95 % {low:+.3f} to {high:+.3f})",
        "predicted probability",
        "observed rate",
    )
    below = [max(v - low, 0.0) for v, low in zip(data["observed"], data["low"], strict=True)]
    above = [max(high - v, 0.0) for v, high in zip(data["observed"], data["high"], strict=True)]
    axes.errorbar(data["predicted"], data["observed"], yerr=[below, above], fmt="o", capsize=3, label="95 % interval")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.02, 1.02)
    _caption(figure, "Score ranges whose counts drown in the noise are left out.")
    axes.legend(loc="upper left", fontsize=9)
    return _png(figure)
