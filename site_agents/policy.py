"""What a site agrees to do: pure rules over signed messages and the site's own state; no I/O.

Each rule refuses by name. The order matters: nothing of an instruction is used before its signature was checked by
`open_envelope`, and nothing is charged before all rules passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from schemas.canonical import canonical_bytes, sha256_hex
from schemas.contract import DataContract
from schemas.errors import PeerError, PlanError, SiteDataError
from schemas.messages import Instruction
from schemas.options import SiteSettings
from schemas.plan import Agreement, StudyPlan, histogram_length, update_length
from schemas.statistics import QUESTION_ROUND, StatisticsPlan
from tasks.secure_sum.parameters import COHORT_MARGIN

SPLIT_KEY = "private/split"


def verify_plan_bytes(data: bytes, study: str, approved: tuple[str, ...]) -> None:
    """Refuses a plan that this site did not approve, or bytes that are not that plan.

    Raises:
        PlanError: `plan-not-approved`.
        PeerError: `plan-changed`, naming the coordinator.
    """
    if study not in approved:
        raise PlanError("plan-not-approved", "This site has not approved the study.", "Approve the plan first.")
    if sha256_hex(data) != study:
        raise PeerError("plan-changed", "coordinator", "the plan's bytes are not those that this site approved.")


def verify_member(settings: SiteSettings, study: str) -> None:
    """Refuses a study that the site's own people left.

    Raises:
        SiteDataError: `site-left`.
    """
    if study in settings.left:
        raise SiteDataError("site-left", "This site has left the study.", "Go on without it.")


def verify_willing(settings: SiteSettings, study: str) -> None:
    """Refuses to contribute while the site's own people said so: it left the study, or it is paused.

    Raises:
        SiteDataError: `site-left`, `site-paused`.
    """
    verify_member(settings, study)
    if settings.paused:
        raise SiteDataError("site-paused", "This site is paused.", "Its data steward ends it with site resume.")


@dataclass(frozen=True)
class Expected:
    """What the site itself knows when an instruction arrives.

    Attributes:
        round, attempt: From the name under which the instruction was stored.
        epoch, sid_star: The current ceremony.
        previous_opening: Envelope digest of the last opening that the site recomputed, None before the first.
        model: Digest of the model state that follows from it.
    """

    round: int
    attempt: int
    epoch: int
    sid_star: str
    previous_opening: str | None
    model: str


def verify_instruction(plan: StudyPlan, instruction: Instruction, site: str, expected: Expected) -> None:
    """Refuses an instruction that the plan does not foresee at this point.

    Args:
        instruction: Already verified to be signed by the plan's coordinator.
        site: This site's name.
        expected: What the site itself knows or recomputed.

    Raises:
        PeerError: `wrong-round`, `wrong-attempt`, `not-a-participant`, `too-few-participants`, `wrong-kind`,
            `wrong-length`, `wrong-epoch`, `wrong-model`; all name the coordinator.
    """
    name = plan.coordinator.name

    def refuse(code: str, message: str) -> None:
        raise PeerError(code, name, message)

    if (instruction.round, instruction.attempt) != (expected.round, expected.attempt):
        refuse("wrong-round", "the instruction is for another round or attempt than its name says.")
    last = plan.mechanism.rounds + 1
    if not 1 <= instruction.round <= last:
        refuse("wrong-round", f"the plan has {last} rounds with evaluation, got round {instruction.round}.")
    _verify_participants(plan, instruction, site)
    length = update_length(plan) if instruction.kind == "train" else histogram_length(plan)
    if instruction.length != length:
        refuse("wrong-length", f"the plan's {instruction.kind} rounds have {length} coefficients.")
    if (instruction.kind == "evaluate") != (instruction.round == last):
        refuse("wrong-kind", f"the plan trains in rounds 1 to {last - 1} and evaluates in round {last}.")
    if (instruction.epoch, instruction.sid_star) != (expected.epoch, expected.sid_star):
        refuse("wrong-epoch", "the instruction is not for the current key ceremony.")
    if instruction.previous_opening != expected.previous_opening or instruction.model != expected.model:
        refuse("wrong-model", "the model does not follow from the last published opening.")


def verify_question(plan: StatisticsPlan, instruction: Instruction, site: str, expected: Expected) -> None:
    """Refuses an instruction that is not for the one sum of a question.

    Args:
        instruction: Already verified to be signed by the plan's coordinator.
        site: This site's name.
        expected: What the site itself knows; `model` is the query's digest.

    Raises:
        PeerError: `wrong-round`, `wrong-attempt`, `not-a-participant`, `too-few-participants`, `wrong-kind`,
            `wrong-length`, `wrong-epoch`, `wrong-query`; all name the coordinator.
    """
    name = plan.coordinator.name
    if (instruction.round, instruction.attempt) != (expected.round, expected.attempt):
        raise PeerError("wrong-round", name, "the instruction is for another round or attempt than its name says.")
    if instruction.round != QUESTION_ROUND:
        raise PeerError("wrong-round", name, "a question has one round.")
    if instruction.kind != "statistics":
        raise PeerError("wrong-kind", name, "a question is answered by statistics alone.")
    _verify_participants(plan, instruction, site)
    if instruction.length != plan.query.length:
        raise PeerError("wrong-length", name, f"the query has {plan.query.length} coefficients.")
    if (instruction.epoch, instruction.sid_star) != (expected.epoch, expected.sid_star):
        raise PeerError("wrong-epoch", name, "the instruction is not for the current key ceremony.")
    if instruction.previous_opening is not None or instruction.model != expected.model:
        raise PeerError("wrong-query", name, "the instruction is not for the plan's query.")


def _verify_participants(plan: Agreement, instruction: Instruction, site: str) -> None:
    name, people = plan.coordinator.name, list(instruction.participants)
    if instruction.attempt > 16:
        raise PeerError("wrong-attempt", name, "a round has at most 16 attempts.")
    contributors = {s.name for s in plan.contributors}
    if people != sorted(set(people)) or not set(people) <= contributors:
        raise PeerError("not-a-participant", name, "participants are not distinct contributors in name order.")
    if site not in people:
        raise PeerError("not-a-participant", name, f"{site} is not among the participants.")
    if len(people) < plan.threshold.k_min:
        raise PeerError("too-few-participants", name, f"expected at least k_min = {plan.threshold.k_min} participants.")


def verify_model_allowed(plan: StudyPlan, allowed: tuple[str, ...]) -> None:
    """Refuses a module that this site's own settings do not name: a plan alone never makes a site run a package.

    Raises:
        PlanError: `model-not-allowed`.
    """
    module = plan.model.module
    if module is not None and module.entry not in allowed:
        raise PlanError(
            "model-not-allowed",
            f"This site does not allow the module {module.entry} of the plan.",
            "Read the package, install the plan's version, and add the module to models in config.json.",
        )


def verify_cohort_size(plan: Agreement, site: str, patients: int) -> None:
    """Refuses a cohort that the declared, public size does not cover: sums could wrap, and the divisor would be wrong.

    Raises:
        SiteDataError: `cohort-size`; the message states the declared size only.
    """
    declared = plan.site(site).declared_patients
    if not 0 < patients <= COHORT_MARGIN * declared:
        raise SiteDataError(
            "cohort-size",
            f"Expected between 1 and {COHORT_MARGIN} times the {declared} patients that {site} declared.",
            "Declare the rounded cohort size anew in the next plan, or correct the data source.",
        )


def describe_split(contract: DataContract) -> bytes:
    """Returns what decides which patients are held out: a public rule, the table's own column, or nobody is."""
    column, split = contract.column_with_role("held_out"), contract.split
    if split is None:
        return canonical_bytes({"column": column.name if column else ""})
    return canonical_bytes({"salt": split.salt, "share": str(Fraction(split.share))})


def verify_split(fixed: bytes | None, contract: DataContract) -> None:
    """Refuses another split than the one under which the site's data source was first charged, `fixed`.

    The two parts have a whole budget each because no patient is in both. Under another split the patients of one part
    would be in the other, and could lose both budgets.

    Raises:
        PlanError: `split-changed`.
    """
    if fixed is not None and fixed != describe_split(contract):
        raise PlanError(
            "split-changed",
            f"Expected the split of held-out patients that this site's first study fixed: {fixed.decode()}.",
            "Plan with that split: two splits would let one patient be charged beyond the site's budget.",
        )


def verify_delta(delta: str, declared_patients: int) -> None:
    """Refuses a delta at which releasing one patient's whole record would count as private.

    Raises:
        PlanError: `delta-too-large`.
    """
    if float(delta) * declared_patients >= 1:
        raise PlanError(
            "delta-too-large",
            f"Expected delta below 1 / patients (1 / {declared_patients}), got {delta}.",
            "Choose a smaller delta, as a rule a tenth of that or less.",
        )
