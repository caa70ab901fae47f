"""What local steps save in rounds and cost in noise: modes side by side on the public splits of a study.

Real gradients, noise, server steps and calibration, for the same epsilon; encryption and ledgers are left out, since
exact sums do not change a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from infra.studies.definitions import StudyDefinition
from schemas.canonical import derive_digest
from schemas.options import Settings
from schemas.plan import CoordinatorEntry, SiteEntry, StudyPlan

if TYPE_CHECKING:
    from infra.datasets import PlanParts, SiteTable
    from tasks.contract.encoder import Cohort

Say = Callable[[str], None]


@dataclass(frozen=True)
class Mode:
    """One way to train. `steps` 0 is the distributed mode with the rounds and numbers of the study itself.

    Attributes:
        rounds: Encrypted training rounds.
        steps: Local steps per round.
        path: Sum of the learning rates of all steps.
        server: Server optimizer; ``sgd`` is plain averaging.
        proximal: FedProx mu.
    """

    name: str
    rounds: int
    steps: int = 0
    path: float = 8.0
    server: Literal["sgd", "adam", "yogi"] = "sgd"
    proximal: str = "0"


class ModeRow(Settings):
    """Means over the seeds. `difference`: mean paired difference to the study's own mode, the first, on its splits."""

    mode: str
    epsilon: str
    encrypted_rounds: int
    local_steps: int
    noise_multiplier: str
    seeds: int
    auc: float
    error: float
    difference: float
    difference_error: float


def modes_of(study: StudyDefinition) -> tuple[Mode, ...]:
    """Returns the modes that are compared: hyper-parameters from a search on other seeds than those of the table."""
    return (
        Mode("distributed", study.rounds),
        Mode("distributed", 5),
        Mode("distributed", 2),
        Mode("local, FedAvg", 5, 2, path=48.0),
        Mode("local, FedAdam", 5, 2, server="adam"),
        Mode("local, FedYogi", 5, 2, server="yogi"),
        Mode("local, FedYogi", 2, 5, server="yogi"),
        Mode("local, FedProx and FedYogi", 2, 5, server="yogi", proximal="0.1"),
    )


def compare_modes(
    study: StudyDefinition, data_dir: Path | None, seeds: Sequence[int], epsilons: Sequence[str], say: Say
) -> tuple[ModeRow, ...]:
    """Trains every mode once per seed and epsilon and returns the table, the distributed mode first.

    Raises:
        ConsiliumError: the data folder is wrong.
    """
    from infra.datasets import contract_for, load_site_tables
    from tasks.contract.encoder import encode_features

    found: dict[tuple[str, Mode], list[float]] = {}
    noise: dict[tuple[str, Mode], str] = {}
    for seed in seeds:
        tables = load_site_tables(study.data, data_dir=data_dir, split_seed=seed)
        cohorts = [encode_features(contract_for(study.data), table.table) for table in tables]
        for epsilon in epsilons:
            for mode in modes_of(study):
                say(f"seed {seed}, epsilon {epsilon}: {mode.name}, {mode.rounds} rounds")
                plan = plan_of_mode(study, mode, epsilon, tables)
                noise[epsilon, mode] = plan.mechanism.noise_multiplier
                found.setdefault((epsilon, mode), []).append(_auc(plan, cohorts))
    return tuple(
        _row(mode, epsilon, noise[epsilon, mode], aucs, found[epsilon, modes_of(study)[0]])
        for (epsilon, mode), aucs in sorted(found.items(), key=lambda item: float(item[0][0]))
    )


def plan_of_mode(study: StudyDefinition, mode: Mode, epsilon: str, tables: Sequence[SiteTable]) -> StudyPlan:
    """Derives the plan of one mode. Its keys belong to nobody: nothing is signed or encrypted here."""
    parts, names = _parts(study, mode, epsilon, tables), [table.site for table in tables]
    sites = tuple(
        SiteEntry(
            name=table.site,
            identity_key=derive_digest("nobody", table.site),
            hpke_key=derive_digest("nobody's box", table.site) * 38,
            declared_patients=table.declared_patients,
            key_holder=study.committee is None or table.site in names[: study.committee],
        )
        for table in tables
    )
    return StudyPlan(
        title=study.title,
        purpose=study.purpose,
        nonce=derive_digest("nobody", mode.name),
        coordinator=CoordinatorEntry(name="coordinator", identity_key=derive_digest("nobody", "coordinator")),
        sites=sites,
        threshold=study.threshold,
        contract=parts.contract,
        model=parts.model,
        mechanism=parts.mechanism,
        optimizer=parts.optimizer,
        budget=parts.budget,
        evaluation=parts.evaluation,
    )


def render_modes(rows: Sequence[ModeRow]) -> str:
    """Returns the table as Markdown."""
    lines = [
        "| ε | mode | encrypted rounds | local steps | σ per step | AUC | difference to the first |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.epsilon} | {row.mode} | {row.encrypted_rounds} | {row.local_steps or '–'} | "
        f"{float(row.noise_multiplier):.2f} | {_figure(row.auc)} ± {_figure(row.error)} | "
        + (f"{row.difference:+.4f} ± {_figure(row.difference_error)} |" if row.difference_error else "– |")
        for row in rows
    ]
    return "\n".join(lines)


def _parts(study: StudyDefinition, mode: Mode, epsilon: str, tables: Sequence[SiteTable]) -> PlanParts:
    from infra.local_mode import local_parts
    from infra.studies.running import plan_parts

    parts = plan_parts(replace(study, rounds=mode.rounds), epsilon)
    if not mode.steps:
        return parts
    declared = sum(table.declared_patients for table in tables)
    rate = f"{mode.path / (mode.rounds * mode.steps):.6f}".rstrip("0").rstrip(".")
    return local_parts(parts, declared, mode.steps, rate, mode.proximal, server=mode.server)


def _auc(plan: StudyPlan, cohorts: Sequence[Cohort]) -> float:
    from infra.datasets import simulated_aucs
    from infra.local_mode import simulated_local_auc

    if plan.mechanism.local is not None:
        return simulated_local_auc(plan, cohorts)
    return simulated_aucs(plan, cohorts, len(cohorts), 1, honest=plan.threshold.honest_noise_shares)[0]


def _row(mode: Mode, epsilon: str, noise: str, aucs: Sequence[float], reference: Sequence[float]) -> ModeRow:
    differences = [auc - other for auc, other in zip(aucs, reference, strict=True)]
    return ModeRow(
        mode=mode.name,
        epsilon=epsilon,
        encrypted_rounds=mode.rounds,
        local_steps=mode.steps,
        noise_multiplier=noise,
        seeds=len(aucs),
        auc=fmean(aucs),
        error=_error(aucs),
        difference=fmean(differences),
        difference_error=_error(differences),
    )


def _error(values: Sequence[float]) -> float:
    return float(stdev(values) / len(values) ** 0.5) if len(values) > 1 else 0.0


def _figure(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")
