"""A study told on its parent run's page in MLflow: result, plots, who took part, verdicts, attacks, predecessor, links.

Everything comes from released figures and signed, public messages. MLflow's tags are bounded: what does not fit is in
the artifact ``story.md``, which has all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from schemas.messages import EpsilonReport, LogPosition, ModelRelease
from schemas.plan import StudyPlan
from tasks.tracking.rounds import RoundFacts
from tasks.tracking.study import describe_plan

STORY = "story.md"
LONGEST_NOTE = 7500  # MLflow cuts a tag at 8000 characters


@dataclass(frozen=True)
class Story:
    """What is told besides the plan.

    Attributes:
        result: What was released, or that nothing was yet (Markdown).
        rounds: Facts of the opened rounds, in order.
        plots: Paths of the plots that are logged, in the order in which they are shown.
        previous: Words on the released version before this one; empty if there is none.
        attacks: Figures of the attack evaluation, if one was logged.
        roots: Log owner -> checkpointed position.
        flow_run: Address of the study's page in Prefect.
    """

    result: str = "Not released yet."
    rounds: Sequence[RoundFacts] = ()
    plots: Sequence[str] = ()
    previous: str = ""
    attacks: Mapping[str, float] = field(default_factory=dict)
    roots: Mapping[str, LogPosition] = field(default_factory=dict)
    flow_run: str = ""


def tell_story(plan: StudyPlan, story: Story, run_id: str = "") -> str:
    """Returns the story in Markdown.

    Args:
        run_id: The parent run, for plots that MLflow shows inside its description; empty leaves the plots out.
    """
    parts = [story.result, link_flow_run(story.flow_run)]
    if run_id:
        parts += [show_plot(path, run_id) for path in story.plots]
    parts += [
        _participants(plan, story.rounds),
        _dropped(story.rounds),
        _comparison(story.previous),
        _attacks(plan, story.attacks),
        describe_plan(plan),
        _roots(story.roots),
    ]
    return "\n\n".join(part for part in parts if part)


def shorten(text: str) -> str:
    """Returns as many whole paragraphs of the story as MLflow keeps in a description, and where the rest is."""
    if len(text) <= LONGEST_NOTE:
        return text
    kept: list[str] = []
    for part in text.split("\n\n"):
        if sum(len(p) + 2 for p in kept) + len(part) > LONGEST_NOTE - 80:
            continue
        kept.append(part)
    return "\n\n".join([*kept, f"Longer than MLflow shows here: all of it is in the artifact `{STORY}`."])


def compare_with(tags: Mapping[str, str], version: str, release: ModelRelease) -> str:
    """Returns how a release differs from the version that has the alias ``released``, by its tags (Markdown)."""
    now = dict(release.metrics)
    rows = []
    for name, label in (("auc", "AUC"), ("brier", "Brier score"), ("mean_error", "predicted minus observed")):
        before = tags.get(f"consilium.{name}")
        if before is not None and name in now:
            rows.append(f"| {label} | {_interval(tags, 'consilium.' + name)} | {_interval(now, name)} |")
    cost = f"{largest(release.epsilon, 'collusion'):g}"
    rows.append(f"| largest ε under collusion | {tags.get('consilium.epsilon_collusion', '?')} | {cost} |")
    rows.append(f"| rounds | {tags.get('consilium.rounds', '?')} | {release.rounds} |")
    head = f"| | version {version} (released) | this one |\n|---|---|---|"
    return "\n".join([head, *rows])


def largest(reports: Sequence[EpsilonReport], reading: str) -> float:
    """Returns the largest value over sites of one reading; 0 without any."""
    return max((float(getattr(report, reading)) for report in reports), default=0.0)


def _interval(values: Mapping[str, str], name: str) -> str:
    value = f"{float(values[name]):.3f}"
    if f"{name}_low" in values and f"{name}_high" in values:
        value += f" ({float(values[f'{name}_low']):.3f} to {float(values[f'{name}_high']):.3f})"
    return value


def show_plot(path: str, run_id: str) -> str:
    """Returns a plot of a run as MLflow's pages show it inside a description (Markdown)."""
    return f"![{path}](get-artifact?path={quote(path, safe='')}&run_uuid={run_id})"


def link_flow_run(flow_run: str) -> str:
    """Returns the link to the study's page in Prefect (Markdown); empty where there is none."""
    return f"[The study's flow run in Prefect]({flow_run})" if flow_run else ""


def _participants(plan: StudyPlan, rounds: Sequence[RoundFacts]) -> str:
    """Returns one row per site: rounds in the sum, drop-outs, data contract, cumulative epsilon."""
    if not rounds:
        return ""
    trained = [facts for facts in rounds if facts.kind == "train"]
    epsilon = {r.site: r for facts in trained for r in facts.epsilon}
    untold = {site for facts in trained for site in facts.unaccounted}
    verdicts = {site: verdict for facts in rounds for site, verdict in facts.verdicts.items()}
    rows = []
    for site in plan.contributors:
        inside = sum(site.name in facts.participants for facts in rounds)
        cost = epsilon.get(site.name)
        figure = f"{cost.collusion} of {plan.budget.epsilon}" if cost is not None else "0"
        figure = "unknown" if site.name in untold else figure
        rows.append(
            f"| {site.name} | {site.declared_patients} | {inside} of {len(rounds)} | {verdicts.get(site.name, 'none')} "
            f"| {figure} |"
        )
    head = "| site | patients (declared) | in the sum | data contract | ε of training patients |\n|---|---|---|---|---|"
    return "\n".join([head, *rows])


def _dropped(rounds: Sequence[RoundFacts]) -> str:
    lines = []
    for facts in rounds:
        if facts.dropped:
            name = f"round {facts.round:02d}" if facts.kind == "train" else "evaluation"
            lines.append(f"- {name}: " + ", ".join(f"{site} ({reason})" for site, reason in facts.dropped))
    if not rounds:
        return ""
    return "Drop-outs by round:\n\n" + "\n".join(lines) if lines else "Nobody dropped out of any round."


def _comparison(previous: str) -> str:
    return f"Compared with the version that is released now:\n\n{previous}" if previous else ""


def _attacks(plan: StudyPlan, attacks: Mapping[str, float]) -> str:
    if not attacks:
        return "No attack evaluation was logged for this model."
    rows = [f"| {name.removeprefix('attack/').replace('_', ' ')} | {value:.4g} |" for name, value in attacks.items()]
    head = f"Attack evaluation (public or simulated data; ε of the plan is {plan.budget.epsilon}):"
    return "\n".join([f"{head}\n\n| figure | value |\n|---|---|", *rows])


def _roots(roots: Mapping[str, LogPosition]) -> str:
    if not roots:
        return ""
    rows = [f"| {owner} | {at.size} | `{at.root}` |" for owner, at in sorted(roots.items())]
    return "\n".join(
        ["Ledgers (entries, Merkle root), as everybody signed them:\n\n| log | entries | root |\n|---|---|---|", *rows]
    )
