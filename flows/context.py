"""Everything a coordinator's step needs: home, keys, plan, store, study log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from flows.progress import Progress
from schemas.canonical import sha256_hex
from schemas.errors import OperationError, PlanError
from schemas.ledger import PlanApproved
from schemas.messages import Instruction
from schemas.options import CoordinatorSettings, RunOptions
from schemas.plan import Agreement, Plan_co, StudyPlan
from schemas.statistics import StatisticsPlan, parse_agreement
from tasks.identity import Identity, load_identity
from tasks.ledger.store import LedgerStore
from tasks.rounds import read_instruction, read_plan, verify_approvals
from tasks.settings_file import read_settings
from tasks.storage.base import Store
from tasks.storage.opening import open_store
from tasks.study_log import PublishedLog, published_size, read_slices


@dataclass(frozen=True)
class CoordinatorContext(Generic[Plan_co]):
    """The coordinator of one study, or of one question (`CoordinatorContext[StatisticsPlan]`).

    Its state is the store and the study log; nothing else has to survive a crash.

    Attributes:
        published: Everybody's log, as far as it was read from the store, by owner.
    """

    home: Path
    settings: CoordinatorSettings
    identity: Identity
    plan: Plan_co
    store: Store
    log: LedgerStore
    progress: Progress
    published: Mapping[str, PublishedLog]

    @property
    def study(self) -> str:
        return self.plan.study

    @property
    def options(self) -> RunOptions:
        return self.settings.options


def open_coordinator(home: Path) -> CoordinatorContext:
    """Opens the coordinator's home and its study.

    Raises:
        OperationError, PlanError, PeerError: as `open_question`, and `no-study`.
    """
    settings = _read_settings(home)
    if not settings.study:
        raise OperationError("no-study", "This coordinator has no study yet.", "Propose one: coordinator propose.")
    return _open(home, home, settings, StudyPlan)


def open_question(home: Path, question: str) -> CoordinatorContext[StatisticsPlan]:
    """Opens a question in the coordinator's home; it has a folder and a log of its own in ``questions/``.

    Args:
        question: Plan digest of the question.

    Raises:
        OperationError: `settings-unreadable`, `identity-unreadable`, and those of `open_store`.
        PlanError: `plan-changed`, `not-in-plan`, `wrong-kind`.
        PeerError: `approval-missing`.
    """
    settings = _read_settings(home).model_copy(update={"study": question})
    folder = question_folder(home, question)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return _open(home, folder, settings, StatisticsPlan)


def question_folder(home: Path, question: str) -> Path:
    """Returns the folder of a question in the coordinator's home."""
    return home / "questions" / question[:16]


def _read_settings(home: Path) -> CoordinatorSettings:
    return read_settings(CoordinatorSettings, home / "config.json")


def _open(home: Path, folder: Path, settings: CoordinatorSettings, model: type[Plan_co]) -> CoordinatorContext[Plan_co]:
    identity = load_identity(home / "identity.json")
    store = open_store(settings.store, "coordinator", settings.s3)
    data = read_plan(store, settings.study)
    if sha256_hex(data) != settings.study:
        raise PlanError("plan-changed", "The plan in the store is not the study's plan.", "Restore the signed plan.")
    plan: Agreement = parse_agreement(data, "the plan")
    if not isinstance(plan, model):
        raise PlanError("wrong-kind", "The plan is of another kind than was asked for.", "Name the other one.")
    if plan.coordinator.identity_key != identity.identity_key:
        raise PlanError("not-in-plan", "The plan names another coordinator key.", "Use the identity that signed it.")
    approvals = verify_approvals(store, plan)
    log = LedgerStore(folder / "study-log.sqlite", plan.coordinator.name, identity.signing)
    progress, published = Progress(folder / "events.jsonl"), _published_logs(store, plan)
    context = CoordinatorContext(folder, settings, identity, plan, store, log, progress, published)
    _verify_log_went_on(context)
    log.append_once(plan.study, PlanApproved(approval=approvals[plan.coordinator.name]))
    return context


def _published_logs(store: Store, plan: Agreement) -> dict[str, PublishedLog]:
    logs = {site.name: PublishedLog(store, plan.study, site.name, site.identity_key) for site in plan.sites}
    own = plan.coordinator
    return logs | {own.name: PublishedLog(store, plan.study, own.name, own.identity_key, coordinator=True)}


def _verify_log_went_on(context: CoordinatorContext[Agreement]) -> None:
    """Completes a study log that is an older copy from what was published of it; refuses one that stays shorter.

    Going on from an older copy would write the log a second time from there, and the audit would rightly call that
    rewriting history; so would a copy that grew on its own beside the home it was taken from. What is not published
    yet, nobody has seen: it is entered anew.

    Raises:
        OperationError: `log-restored`, `log-forked`.
        EvidenceError: what is published is not this coordinator's log.
    """
    name = context.plan.coordinator.name
    if published_size(context.store, context.study, name) > context.log.position().size:
        context.log.complete(read_slices(context.store, context.study, name))
    newest: Instruction | None = None
    round_ = 1
    while (found := read_instruction(context.store, context.plan, round_, 1)) is not None:
        newest, round_ = found.predicate, round_ + 1
    if newest is None or context.log.holds(newest.log):
        return
    if context.log.position().size >= newest.log.size:
        raise OperationError(
            "log-forked",
            "The study log is not the one that this coordinator has published: another copy of this home went on.",
            "Run the study from one home only, the one that published last.",
        )
    raise OperationError(
        "log-restored",
        "The study log is shorter than what this coordinator has published.",
        "Restore the newest study-log.sqlite; without it the study ends here and a new plan follows.",
    )
