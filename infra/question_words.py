"""Questions before a study and their answers, in words and for other programs."""

from __future__ import annotations

from infra.plans import shown
from schemas.messages import StatisticsRelease
from schemas.statistics import StatisticsPlan, StatisticsQuery


def describe_question(plan: StatisticsPlan) -> str:
    """Says in words what is asked, of whom, and what it costs."""
    from tasks.privacy.statistics import question_epsilon

    query, cost = plan.query, question_epsilon(plan)
    who = " and ".join(condition.in_words() for condition in query.conditions) or "everybody of the contract's cohort"
    pure = query.noise == "laplace"
    lines = [
        f"Question  {plan.study}",
        f"Asked     {shown(query.name)}: {shown(query.purpose)}",
        f"Who       {who}",
        f"Figures   number of patients{_column_words(query)}",
        f"Sites     {len(plan.sites)}, opened only as a sum over at least {query.k_min}",
        f"Noise     discrete {'Laplace' if pure else 'Gaussian'}, carried by {query.honest_noise_shares} honest sites",
        f"Costs     epsilon {cost}{'' if pure else f' at delta {plan.budget.delta}'} for training and for held-out "
        "patients of every site, once; the same question under another name is charged again",
    ]
    return "\n".join(lines)


def describe_answer(plan: StatisticsPlan, answer: StatisticsRelease) -> str:
    """Says an answer in words, each figure with its 95 % interval for the noise."""
    query = plan.query
    lines = [f"{query.name} ({len(answer.participants)} of {len(plan.sites)} hospitals)"]
    lines += [_figure(query, name, value, low, high) for name, value, low, high in answer.figures]
    if query.column and not any(name == "mean" for name, *_ in answer.figures):
        lines.append(f"  mean {query.column:<22} hidden by the noise")
    cost = f"epsilon {answer.epsilon}" + ("" if answer.pure else f" at delta {plan.budget.delta}")
    lines.append(f"Intervals cover 95 % of the noise. Charged to each hospital's patients: {cost}.")
    return "\n".join(lines)


def answer_as_json(plan: StatisticsPlan, answer: StatisticsRelease) -> dict[str, object]:
    """Returns an answer for other programs; numbers stay decimal strings."""
    return {
        "question": plan.study,
        "name": plan.query.name,
        "participants": list(answer.participants),
        "figures": [{"name": n, "value": v, "low": low, "high": high} for n, v, low, high in answer.figures],
        "epsilon": answer.epsilon,
        "pure": answer.pure,
        "delta": None if answer.pure else plan.budget.delta,
    }


def _column_words(query: StatisticsQuery) -> str:
    if not query.column:
        return ""
    return f"; mean and histogram of {query.column} in {query.bins} bins from {query.minimum} to {query.maximum}"


def _figure(query: StatisticsQuery, name: str, value: str, low: str, high: str) -> str:
    label, digits = name, 0
    if name == "patients":
        label = "patients who qualify"
    elif name == "recorded":
        label = f"with {query.column} recorded"
    elif name == "mean":
        label, digits = f"mean {query.column}", 2
    elif name.startswith("bin "):
        start, width = float(query.minimum), (float(query.maximum) - float(query.minimum)) / query.bins
        edge = start + (int(name[4:]) - 1) * width
        label = f"{query.column} {edge:g} to {edge + width:g}"
    return f"  {label:<28}{float(value):>10.{digits}f}   ({float(low):.{digits}f} to {float(high):.{digits}f})"
