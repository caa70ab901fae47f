"""A study of a study file from keys to audited release, all parties in this process, each with its own home.

Keys, ledgers, encryption, noise and evidence are those of a deployment; only Prefect is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infra.studies.dealing import deal_table
from infra.studies.study_file import StudyFile, choose_numbers, derive_parts, read_study
from schemas.errors import OperationError
from schemas.options import RunOptions, Settings
from site_agents.policy import verify_delta

if TYPE_CHECKING:
    from infra.datasets import PlanParts, SiteTable
    from infra.embedded import EmbeddedConsortium
    from schemas.threshold import Threshold

Say = Callable[[str], None]


class WholeStudy(Settings):
    """What a study left; `--json` prints it.

    Attributes:
        patients: Sum of the publicly declared numbers.
        released_auc: AUC with its 95 % interval, from the encrypted evaluation; None without held-out patients.
        epsilon, evaluation_epsilon: Largest cumulative epsilon of any site, training and held-out patients.
        audit: Checks that passed and failed.
    """

    format: Literal["consilium/study-result/1"] = "consilium/study-result/1"
    study: str
    title: str
    sites: tuple[str, ...]
    patients: int
    rounds: int
    released_auc: tuple[float, float, float] | None
    epsilon: str
    evaluation_epsilon: str
    delta: str
    audit_passed: int
    audit_failed: int
    evidence: str
    public_keys: str


class Prepared(Settings):
    """What follows from a study file and its table, before anything is written.

    Attributes:
        review: Who may release the model, in words.
    """

    sites: dict[str, int]
    numbers: str
    features: int
    noise_multiplier: str
    rounds: int
    review: str


def check_study(path: Path, data_dir: Path | None = None) -> Prepared:
    """Reads a study, deals its table and checks every site's rows against the contract; writes nothing.

    Raises:
        ConsiliumError: as `run_whole_study` does before it starts.
    """
    from schemas.plan import feature_count
    from schemas.threshold import describe

    study, tables, parts, numbers = _read(path, data_dir)
    return Prepared(
        sites={table.site: table.declared_patients for table in tables},
        numbers=describe(numbers),
        features=feature_count(parts.contract),
        noise_multiplier=parts.mechanism.noise_multiplier,
        rounds=parts.mechanism.rounds,
        review=_describe_review(study),
    )


def _describe_review(study: StudyFile) -> str:
    if not study.reviewers:
        return "the file names no reviewer: the model stays a candidate"
    return f"{study.release.reviewers_needed} of {', '.join(r.name for r in study.reviewers)} must approve the model"


def run_whole_study(path: Path, out: Path, say: Say, data_dir: Path | None = None) -> WholeStudy:
    """Runs the study of `path`: keys, signed plan, ceremony, encrypted rounds, evaluation, release, audit.

    Args:
        out: New folder for homes, store and evidence.
        say: Told what is being done.
        data_dir: Where the paths in a source.yaml start, if not at the file itself.

    Raises:
        ConsiliumError: a file does not fit, a site's rows break the contract, or a round could not be opened.
    """
    from infra.demo.prepare import prepare_parties, write_participant_settings
    from infra.demo.workdir import Workdir
    from infra.embedded import EmbeddedConsortium
    from tasks.audit.keys import read_public_keys
    from tasks.audit.verify import verify_evidence

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OperationError("workdir-foreign", f"{out} holds something already.", "Choose a new folder with --out.")
    say("reading and checking every site's rows")
    study, tables, parts, numbers = _read(path, data_dir)
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    workdir = Workdir(out)
    holders = [table.site for table in tables][: study.committee]
    plan = prepare_parties(workdir, tables, parts, numbers, study.title, study.purpose, holders)
    memory = workdir.root / "memory"
    memory.mkdir(mode=0o700)
    # No Prefect server is asked for anything here; the steps are called in turn.
    write_participant_settings(workdir, plan, "http://unused.invalid/api", memory, RunOptions())
    consortium = EmbeddedConsortium(workdir.coordinator, {s.name: workdir.site(s.name) for s in plan.sites})
    evidence, auc = _run(consortium, say)
    say("audit")
    report = verify_evidence(evidence, read_public_keys(workdir.public_keys))
    return WholeStudy(
        study=plan.study,
        title=plan.title,
        sites=tuple(site.name for site in plan.sites),
        patients=sum(site.declared_patients for site in plan.sites),
        rounds=plan.mechanism.rounds,
        released_auc=auc,
        epsilon=max(consortium.epsilon().values(), key=float),
        evaluation_epsilon=max(consortium.epsilon("held-out").values(), key=float),
        delta=plan.budget.delta,
        audit_passed=report.count("checked"),
        audit_failed=report.count("failed"),
        evidence=str(evidence),
        public_keys=str(workdir.public_keys),
    )


def render_whole_study(result: WholeStudy) -> str:
    """Says in words what a study left."""
    auc = "no held-out patients, so none"
    if result.released_auc is not None:
        value, low, high = result.released_auc
        auc = f"{value:.3f} (95 % interval for the noise and the patients {low:.3f} to {high:.3f})"
    audit = f"{result.audit_passed} checks passed, {result.audit_failed} failed"
    return "\n".join(
        [
            f"Study    {result.title}",
            f"Sites    {len(result.sites)}: {', '.join(result.sites)}; {result.patients} patients declared",
            f"Rounds   {result.rounds}, every sum encrypted",
            f"AUC      {auc}",
            f"Privacy  epsilon {result.epsilon} for training and {result.evaluation_epsilon} for held-out patients, "
            f"delta {result.delta}, per site and patient",
            f"Audit    {audit}",
            f"Evidence {result.evidence}",
        ]
    )


def _read(path: Path, data_dir: Path | None) -> tuple[StudyFile, tuple[SiteTable, ...], PlanParts, Threshold]:
    study, contract = read_study(path)
    tables = deal_table(study, contract, path.absolute().parent, data_dir.absolute() if data_dir else None)
    numbers = choose_numbers(study, len(tables))
    for table in tables:
        verify_delta(study.budget.delta, table.declared_patients)
    parts = derive_parts(study, contract, [table.declared_patients for table in tables])
    return study, tables, parts, numbers


def _run(consortium: EmbeddedConsortium, say: Say) -> tuple[Path, tuple[float, float, float] | None]:
    from flows.release_steps import released_metrics

    plan = consortium.plan
    say("key ceremony")
    public = consortium.run_ceremony()
    for number in range(1, plan.mechanism.rounds + 1):
        say(f"round {number} of {plan.mechanism.rounds}")
        consortium.run_round(public, number)
    evaluation = None
    if plan.contract.column_with_role("held_out") is not None:
        say("evaluation")
        evaluation = consortium.run_round(public, plan.mechanism.rounds + 1, "evaluate")
    say("release")
    evidence = consortium.release(plan.mechanism.rounds, evaluation)
    metrics = released_metrics(consortium.coordinator, evaluation)
    return evidence, (metrics.auc.value, metrics.auc.low, metrics.auc.high) if metrics else None
