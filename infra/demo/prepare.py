"""Prepares a study as its parties would: each makes its own keys in its own folder, reads the plan and signs it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from infra.demo.options import DemoOptions
from infra.demo.workdir import DemoState, Workdir
from infra.settings import save_settings
from schemas.canonical import canonical_bytes
from schemas.envelope import sign_envelope
from schemas.errors import PlanError
from schemas.layout import approval_key, coordinator_prefix, plan_key, site_prefix
from schemas.messages import PlanApproval
from schemas.options import CoordinatorSettings, ReviewerSettings, RunOptions, SiteSettings
from schemas.plan import CoordinatorEntry, ReleaseSpec, ReviewerEntry, SiteEntry, StudyPlan
from schemas.threshold import Threshold, broken_rules, default_threshold, verify_numbers_fit
from site_agents.policy import verify_delta
from tasks.identity import Identity, generate_identity, load_identity, save_identity
from tasks.storage.folder import FolderStore

if TYPE_CHECKING:
    from infra.datasets import PlanParts, SiteTable

COORDINATOR = "coordinator"
MAPPING = "mapping.yaml"
# Two, so that a release takes four eyes.
REVIEWERS = ("first-reviewer", "second-reviewer")
TITLES = {
    "breast-cancer": "Is this breast mass malignant?",
    "uci-heart": "Is a coronary artery narrowed?",
}


def prepare_study(options: DemoOptions, workdir: Workdir) -> tuple[StudyPlan, DemoState]:
    """Deals the data, makes everybody's keys, writes the plan and lets every party sign it.

    Returns:
        The signed plan and the state from which the demo can be resumed.

    Raises:
        PlanError: the numbers asked for do not fit together.
        OperationError, SiteDataError: the data folder is wrong, or the workdir cannot be written.
    """
    from infra.datasets import demo_plan_parts, load_site_tables

    # Everything that can be refused is asked before anything is written.
    tables = load_site_tables(options.data, options.sites, options.data_dir)
    numbers = choose_threshold(len(tables), options.threshold)
    _verify_threshold(numbers, len(tables))
    rounds, epsilon, delta = options.rounds or 10, options.epsilon or "3", options.delta or "1e-5"
    for table in tables:
        verify_delta(delta, table.declared_patients)
    parts = demo_plan_parts(options.data, len(tables), rounds, epsilon, delta, numbers)
    asked = replace(options, sites=len(tables), threshold=numbers.t, rounds=rounds, epsilon=epsilon, delta=delta)

    state = _new_state(asked)
    workdir.write_state(state)
    purpose = f"Demonstration on real patients' data ({asked.data}) of training without pooling rows."
    plan = prepare_parties(workdir, tables, parts, numbers, TITLES[asked.data], purpose, reviewers=REVIEWERS)
    return plan, state.model_copy(update={"stage": "running", "study": plan.study})


def prepare_parties(
    workdir: Workdir,
    tables: tuple[SiteTable, ...],
    parts: PlanParts,
    numbers: Threshold,
    title: str,
    purpose: str,
    key_holders: Collection[str] | None = None,
    reviewers: Sequence[str] = (),
) -> StudyPlan:
    """Makes everybody's home, keys and table, writes the plan and lets every party read and sign it.

    Args:
        key_holders: Names of the sites that hold a share of the key; all of them by default.
        reviewers: Names of people who review the model, each with a home of its own; all of them must approve.

    Raises:
        PlanError: the numbers do not fit together.
        OperationError: the workdir cannot be written.
    """
    from infra.datasets import write_site_tables

    identities = {name: _make_home(name, home) for name, home in _homes(workdir, tables)}
    reviewing = {name: _make_home(name, workdir.reviewer(name)) for name in reviewers}
    write_site_tables(tables, workdir.site)
    for table in tables:
        if table.mapping is not None:
            _write_private(workdir.site(table.site) / MAPPING, table.mapping.decode())
    for folder in (workdir.store, workdir.logs):
        folder.mkdir(mode=0o700)
    holders = {t.site for t in tables} if key_holders is None else set(key_holders)
    plan = StudyPlan(
        title=title,
        purpose=purpose,
        nonce=secrets.token_hex(32),
        coordinator=CoordinatorEntry(name=COORDINATOR, identity_key=identities[COORDINATOR].identity_key),
        sites=_site_entries(tables, identities, holders),
        threshold=numbers,
        contract=parts.contract,
        model=parts.model,
        mechanism=parts.mechanism,
        optimizer=parts.optimizer,
        budget=parts.budget,
        evaluation=parts.evaluation,
        reviewers=tuple(ReviewerEntry(name=n, identity_key=key.identity_key) for n, key in reviewing.items()),
        release=ReleaseSpec(reviewers_needed=max(1, len(reviewers))),
    )
    _sign_plan(plan, identities, workdir)
    return plan


def choose_threshold(sites: int, t: int | None) -> Threshold:
    """Returns the default numbers for `sites` hospitals, with `t` and what follows from it if a person chose it."""
    numbers = default_threshold(sites)
    if t is None:
        return numbers
    return numbers.model_copy(update={"t": t, "colluding_key_holders": min(numbers.colluding_key_holders, t - 1)})


def _verify_threshold(numbers: Threshold, sites: int) -> None:
    if broken_rules(numbers, sites, sites):
        allowed = [t for t in range(2, sites + 1) if not broken_rules(choose_threshold(sites, t), sites, sites)]
        try:
            verify_numbers_fit(numbers, sites, sites)
        except PlanError as error:
            raise PlanError(
                error.code,
                error.message,
                f"{error.remedy} {sites} hospitals allow --threshold {allowed[0]} to {allowed[-1]}.",
            ) from None


def load_plan(workdir: Workdir, study: str) -> StudyPlan:
    """Reads the plan of a prepared study from the store."""
    from infra.plans import read_plan

    return read_plan(workdir.store / plan_key(study))


def write_participant_settings(
    workdir: Workdir,
    plan: StudyPlan,
    prefect_api_url: str,
    memory: Path,
    options: RunOptions,
    one_after_another: bool = False,
) -> None:
    """Writes config.json of every participant; repeated at each start, for the Prefect server's address may change.

    Args:
        memory: Folder whose subfolder per site holds the epoch secrets; no backup may hold it.
        one_after_another: Let the agents register one after another, for a Prefect server on SQLite.
    """
    home = workdir.coordinator
    save_settings(
        CoordinatorSettings(
            name=plan.coordinator.name,
            store=str(workdir.store),
            study=plan.study,
            prefect_api_url=prefect_api_url,
            mlflow_uri=f"sqlite:///{home / 'mlflow.db'}",
            artifacts=str(home / "mlartifacts"),
            options=options,
        ),
        home / "config.json",
    )
    for reviewer in plan.reviewers:
        save_settings(
            ReviewerSettings(
                name=reviewer.name, mlflow_uri=f"sqlite:///{home / 'mlflow.db'}", artifacts=str(home / "mlartifacts")
            ),
            workdir.reviewer(reviewer.name) / "config.json",
        )
    for site in plan.sites:
        save_settings(
            SiteSettings(
                name=site.name,
                store=str(workdir.store),
                data=str(workdir.site(site.name) / "cohort.parquet"),
                mapping=_mapping_of(workdir.site(site.name)),
                studies=(plan.study,),
                prefect_api_url=prefect_api_url,
                epsilon=plan.budget.epsilon,
                delta=plan.budget.delta,
                memory_folder=str(memory / site.name),
                registration_lock=str(workdir.root / "registration.lock") if one_after_another else None,
                options=options,
            ),
            workdir.site(site.name) / "config.json",
        )


def _mapping_of(home: Path) -> str:
    return str(home / MAPPING) if (home / MAPPING).is_file() else ""


def _homes(workdir: Workdir, tables: tuple[SiteTable, ...]) -> list[tuple[str, Path]]:
    return [(COORDINATOR, workdir.coordinator), *((t.site, workdir.site(t.site)) for t in tables)]


def _make_home(name: str, home: Path) -> Identity:
    home.parent.mkdir(mode=0o700, exist_ok=True)
    home.mkdir(mode=0o700)
    save_identity(generate_identity(name), home / "identity.json")
    return load_identity(home / "identity.json")


def _new_state(asked: DemoOptions) -> DemoState:
    return DemoState(
        stage="preparing",
        data=asked.data,
        data_dir=str(asked.data_dir.absolute()) if asked.data_dir else None,
        sites=asked.sites,
        threshold=asked.threshold,
        rounds=asked.rounds,
        epsilon=asked.epsilon,
        delta=asked.delta,
    )


def _site_entries(
    tables: tuple[SiteTable, ...], identities: dict[str, Identity], holders: set[str]
) -> tuple[SiteEntry, ...]:
    return tuple(
        SiteEntry(
            name=t.site,
            identity_key=identities[t.site].identity_key,
            hpke_key=identities[t.site].hpke_key,
            declared_patients=t.declared_patients,
            key_holder=t.site in holders,
        )
        for t in sorted(tables, key=lambda table: table.site)
    )


def _sign_plan(plan: StudyPlan, identities: dict[str, Identity], workdir: Workdir) -> None:
    from tasks.audit.keys import public_keys_document

    study, plan_bytes = plan.study, canonical_bytes(plan)
    coordinator_store = FolderStore(workdir.store, coordinator_prefix(study))
    coordinator_store.put(plan_key(study), plan_bytes)
    approval = PlanApproval(participant=COORDINATOR, role="coordinator")
    signed = sign_envelope(approval, study, identities[COORDINATOR].signing)
    coordinator_store.put(approval_key(study, COORDINATOR, coordinator=True), signed)
    for site in plan.sites:
        # Each party reads the plan as the others will and signs what it read, with its own key, under its own prefix.
        read = load_plan(workdir, study)
        approval = PlanApproval(participant=site.name, role="site")
        signed = sign_envelope(approval, read.study, identities[site.name].signing)
        FolderStore(workdir.store, site_prefix(study, site.name)).put(approval_key(study, site.name), signed)
    _write_private(workdir.plan, json.dumps(json.loads(plan_bytes), indent=2) + "\n")
    _write_private(workdir.public_keys, json.dumps(public_keys_document(plan), indent=2) + "\n")


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
