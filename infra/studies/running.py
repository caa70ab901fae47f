"""One run of a study: every party's keys, ledger and table in one process, real encryption, then the exact AUC."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from infra.studies.definitions import StudyDefinition
from infra.studies.references import compute_references
from infra.studies.results import Run
from infra.studies.study_file import derive_parts
from schemas.canonical import digest_of
from schemas.plan import StudyPlan

if TYPE_CHECKING:
    from flows.round_steps import RoundOutcome
    from infra.datasets import PlanParts, SiteTable
    from infra.demo.workdir import Workdir
    from infra.embedded import EmbeddedConsortium

Say = Callable[[str], None]
HELD_BY_ONE_RUN = ("key.bin", "bulk.bin", "shamir-*.bin")


def plan_parts(study: StudyDefinition, epsilon: str) -> PlanParts:
    """Derives what the plans of one epsilon have in common."""
    from infra.datasets import demo_plan_parts

    if study.written is not None:
        file = study.written.file
        file = file.model_copy(update={"budget": file.budget.model_copy(update={"epsilon": epsilon})})
        return derive_parts(file, study.written.contract, list(file.sites.values()))
    sites = study.threshold.k_min
    return demo_plan_parts(study.data, sites, study.rounds, epsilon, study.delta, study.threshold)


def load_tables(study: StudyDefinition, data_dir: Path | None, seed: int) -> tuple[SiteTable, ...]:
    """Loads every site's table on the public split `seed`; the original files must be those of the figures.

    Raises:
        OperationError: the data folder is wrong.
        SiteDataError: the table cannot be read, or a mapping does not fit.
    """
    from infra.datasets import load_site_tables
    from infra.studies.dealing import deal_table

    pinned = load_site_tables(study.data, data_dir=data_dir, split_seed=seed)
    if study.written is None or data_dir is None:
        return pinned
    file, contract, folder = study.written.file, study.written.contract, study.written.folder
    # Each site checks its own rows in every round.
    return deal_table(file, contract, folder, data_dir.absolute(), seed, check=False)


def derive_recipe(study: StudyDefinition, epsilon: str) -> str:
    """Derives the digest of everything that decides on a run's distribution, split and noise draws aside."""
    parts = plan_parts(study, epsilon)
    named = ("contract", "model", "mechanism", "optimizer", "evaluation", "budget")
    return digest_of(
        {
            "threshold": study.threshold.model_dump(mode="json"),
            "committee": study.committee or 0,
            **{name: getattr(parts, name).model_dump(mode="json") for name in named},
        }
    )


def run_once(
    study: StudyDefinition, data_dir: Path | None, seed: int, epsilon: str, repeats: int, scratch: Path, say: Say
) -> Run:
    """Runs ceremony, encrypted rounds and encrypted evaluation on the public split `seed`, and the references.

    Args:
        scratch: Where the parties' homes and the store live while the run lasts.
        say: Told what is being done.

    Raises:
        ConsiliumError: the data folder is wrong, or a round could not be opened.
    """
    from infra.datasets import exact_held_out_auc, read_cohorts
    from infra.demo.workdir import Workdir
    from site_agents.past import forget_past
    from tasks.server_step import released_weights

    with TemporaryDirectory(dir=scratch, prefix="consilium-study-") as name:
        say("preparing")
        workdir = Workdir(Path(name))
        plan, consortium = _prepare(study, data_dir, seed, epsilon, workdir)
        started = time.monotonic()
        say("key ceremony")
        public = consortium.run_ceremony()
        ceremony = time.monotonic() - started
        fewest = len(plan.sites)
        for round_ in range(1, study.rounds + 2):
            say(f"round {round_} of {study.rounds}" if round_ <= study.rounds else "evaluation")
            outcome = consortium.run_round(public, round_, "train" if round_ <= study.rounds else "evaluate")
            fewest = min(fewest, len(outcome.record.predicate.contributions))
            _drop_closed_round(workdir, plan, round_)
        seconds = (time.monotonic() - started - ceremony) / (study.rounds + 1)
        forget_past(consortium.sites.values())
        say("references")
        cohorts = read_cohorts(plan.contract, {name: site.data for name, site in consortium.sites.items()})
        found = compute_references(plan, cohorts, repeats)
        spent = _spent(consortium)
        return Run(
            study=study.name,
            seed=seed,
            epsilon=epsilon,
            delta=study.delta,
            recipe=derive_recipe(study, epsilon),
            plan=plan.study,
            sites=len(plan.sites),
            auc=exact_held_out_auc(plan, cohorts, released_weights(outcome.lineage.state)),
            released=_released(consortium, outcome),
            central=found.central,
            central_deviation=found.central_deviation,
            local=found.local,
            non_private=found.non_private,
            repeats=found.repeats,
            spent_training=spent["training"],
            spent_held_out=spent["held-out"],
            encrypted_rounds=study.rounds + 1,
            fewest_contributions=fewest,
            ceremony_seconds=round(ceremony, 3),
            seconds_per_round=round(seconds, 3),
        )


def _prepare(
    study: StudyDefinition, data_dir: Path | None, seed: int, epsilon: str, workdir: Workdir
) -> tuple[StudyPlan, EmbeddedConsortium]:
    from infra.demo.prepare import prepare_parties, write_participant_settings
    from infra.embedded import EmbeddedConsortium
    from schemas.options import RunOptions
    from site_agents.past import share_past

    tables = load_tables(study, data_dir, seed)
    holders = [table.site for table in tables][: study.committee]
    parts = plan_parts(study, epsilon)
    plan = prepare_parties(workdir, tables, parts, study.threshold, study.title, study.purpose, holders)
    memory = workdir.root / "memory"
    memory.mkdir(mode=0o700)
    # No Prefect server is asked for anything here; the steps are called in turn.
    write_participant_settings(workdir, plan, "http://unused.invalid/api", memory, RunOptions())
    consortium = EmbeddedConsortium(workdir.coordinator, {site.name: workdir.site(site.name) for site in plan.sites})
    share_past(consortium.sites.values())
    return plan, consortium


def _drop_closed_round(workdir: Workdir, plan: StudyPlan, round_: int) -> None:
    # Ciphertexts and sealed shares of an opened round are read by nobody but an auditor, and this run has none.
    for site in plan.sites:
        for root in (workdir.store, workdir.site(site.name) / "outbox"):
            folder = root / "sites" / site.name / plan.study / f"round-{round_:04d}"
            for pattern in HELD_BY_ONE_RUN:
                for path in folder.glob(f"attempt-*/{pattern}"):
                    path.unlink()


def _spent(consortium: EmbeddedConsortium) -> dict[str, str]:
    """Returns per data part the largest epsilon in any site's ledger."""
    from tasks.ledger.budget import budget_state
    from tasks.privacy.accounting import epsilon_of_cost

    states = [budget_state(site.ledger) for site in consortium.sites.values()]
    delta = consortium.plan.budget.delta
    parts = {"training": [s.training for s in states], "held-out": [s.held_out for s in states]}
    return {name: epsilon_of_cost(max(Fraction(state.spent) for state in each), delta) for name, each in parts.items()}


def _released(consortium: EmbeddedConsortium, outcome: RoundOutcome) -> tuple[float, float, float]:
    from flows.release_steps import released_metrics

    metrics = released_metrics(consortium.coordinator, outcome)
    assert metrics is not None
    return metrics.auc.value, metrics.auc.low, metrics.auc.high
