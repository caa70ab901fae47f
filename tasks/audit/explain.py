"""What a failed check means in plain words, and who should do what about it."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.errors import OperationError
from tasks.audit.registry import Check


@dataclass(frozen=True)
class Explanation:
    """What a failure of one check means.

    Attributes:
        means: What somebody may have done, and the innocent reasons that there are.
        acts: Who should act, and how.
    """

    means: str
    acts: str


def explain_check(check: Check) -> str:
    """Returns everything there is to say about a check, as text for a terminal."""
    found = EXPLANATIONS[check.number]
    does = (check.run.__doc__ or "").strip()
    parts = (
        f"{check.number}  {check.title}",
        f"What it does: {does}",
        f"What it proves: {check.proves}",
        f"What it does not prove: {check.does_not_prove}",
        f"If it fails: {found.means}",
        f"Who acts: {found.acts}",
    )
    return "\n\n".join(parts)


def find_check(number: str, checks: tuple[Check, ...]) -> Check:
    """Returns the check with a number such as ``C07`` (case and leading zeros do not matter).

    Raises:
        OperationError: `unknown-check`.
    """
    digits = number.strip().upper().removeprefix("C")
    wanted = f"C{int(digits):02d}" if digits.isdigit() else ""
    for check in checks:
        if check.number == wanted:
            return check
    known = f"C01 to {checks[-1].number}"
    raise OperationError("unknown-check", f"Expected a check from {known}, got {number}.", "Name one of them.")


_COORDINATOR = "Ask the coordinator for the study's own export, and its explanation of the difference."

EXPLANATIONS: dict[str, Explanation] = {
    "C01": Explanation(
        "The plan's keys are not those of your key file, or you gave none. Somebody may have invented participants; or "
        "the key file is of another study, or older than a key that was replaced.",
        "You: get the key list from each institution by a way that does not pass the coordinator, and compare.",
    ),
    "C02": Explanation(
        "A file was changed, added or removed after the coordinator signed the export: by whoever had the folder in "
        "between, or by a broken copy.",
        "You: fetch the export again and compare. If it fails again, ask the coordinator for a new export.",
    ),
    "C03": Explanation(
        "There are files that no part of the protocol writes: leftovers of a copy (hidden files of a system), "
        "or something that was put there for people to find.",
        "You: remove what your own tools added. For anything else, ask the coordinator who wrote it.",
    ),
    "C04": Explanation(
        "A message can be read in two ways, or is not the kind that its name says. Honest software never writes such.",
        "The party in whose folder the file lies: its software was changed, or somebody wrote in its name.",
    ),
    "C05": Explanation(
        "A ciphertext, share, sum or weights file is not the one that its sender signed for. Whoever stored it after "
        "the signature exchanged it.",
        "The coordinator, who keeps the store; the sender can show its own copy from its outbox.",
    ),
    "C06": Explanation(
        "The study ran under a plan whose numbers break a published rule, so its guarantee is not the one described.",
        "The coordinator and every site that approved it: nobody's software should have let it pass.",
    ),
    "C07": Explanation(
        "A participant's approval is missing, forged or in another name. Without it that party did not agree.",
        "The named participant says whether it approved; the coordinator must not have begun without it.",
    ),
    "C08": Explanation(
        "The key that everything was encrypted under does not follow from what the key holders signed: somebody saw "
        "other messages than the others, or swapped a share.",
        "All key holders compare their own copies of the ceremony; the sums of that epoch must not be relied on.",
    ),
    "C09": Explanation(
        "The coordinator's log was edited, reordered or cut, or goes on after it was closed.",
        "The coordinator. Sites hold signed positions of that log in their instructions and can prove what it was.",
    ),
    "C10": Explanation(
        "A site's ledger was edited, reordered, or has a hole. Its account of what its patients were charged is void "
        "from that entry on.",
        "The named site compares the export with the ledger in its home; then the coordinator.",
    ),
    "C11": Explanation(
        "Entries may have been cut from the end of a log after everybody had seen them. Not applicable, on the other "
        "hand, only names sites that were gone at the end.",
        "The named party publishes the log up to its checkpoint; the witnesses say what they saw.",
    ),
    "C12": Explanation(
        "A log is not the one that its owner had when it signed a message: its past was rewritten.",
        "The log's owner. The message named as the place is the proof against it.",
    ),
    "C13": Explanation(
        "Something happened that the log does not have, or the log has something that was taken out of the evidence, "
        "such as a refusal or a reviewer's decision.",
        "The coordinator first: it made the export. The log's owner can show its own copy.",
    ),
    "C14": Explanation(
        "The coordinator asked for something else than the plan's next step: another model, round, site or length.",
        "The coordinator explains; the sites that answered should have refused, so look at their software too.",
    ),
    "C15": Explanation(
        "An answer is not its sender's, a refusal disappeared, or a participant was left out without a word.",
        "The named site says what it answered; the coordinator says what became of it.",
    ),
    "C16": Explanation(
        "A sum is over too few sites, counts somebody twice, or is not the sum that the record describes. Too few "
        "contributors weaken everybody's protection.",
        "The coordinator; and the key holders that signed the record.",
    ),
    "C17": Explanation(
        "A sum was opened without the consent of Q key holders on one record, or a holder signed two.",
        "The named key holders compare their register of signed records; the coordinator explains.",
    ),
    "C18": Explanation(
        "A decryption share was given for something that was not certified, or twice. Two shares for different "
        "requests may reveal parts of a key.",
        "The named key holder; a new key ceremony before the next round.",
    ),
    "C19": Explanation(
        "The published sum of ciphertexts is not the sum of what the sites sent: something was added, left out or "
        "exchanged by whoever added them.",
        "The coordinator. The sites' signed Merkle roots say which object is the right one.",
    ),
    "C20": Explanation(
        "The published numbers are not what the key holders' shares open: the result was edited.",
        "The coordinator. Models after this round are not what the sites' data gave.",
    ),
    "C21": Explanation(
        "A model is not what the published sums give: sites trained on, or you were given, another one.",
        "The coordinator; do not use the model.",
    ),
    "C22": Explanation(
        "The weights file is not the model that the rounds produced: it was exchanged or edited.",
        "The coordinator; do not use the file. The model can be recomputed from the openings.",
    ),
    "C23": Explanation(
        "The stated AUC or another figure is not what the opened histogram gives.",
        "The coordinator; use the figures that this audit recomputed.",
    ),
    "C24": Explanation(
        "Patients' data were used without a charge, after the fact, twice, or with another mechanism than planned.",
        "The named site's budget owner and data protection officer; the coordinator.",
    ),
    "C25": Explanation(
        "A site's budget, or the plan's, was exceeded, or its totals do not add up: the promise to patients was broken "
        "or cannot be shown to hold.",
        "The named site's budget owner and data protection officer. No further study on that data until it is settled.",
    ),
    "C26": Explanation(
        "The release states another epsilon than the sites' own events give.",
        "The coordinator corrects the release; use the value recomputed here.",
    ),
    "C27": Explanation(
        "An independent accountant disagrees with this software about what the events cost.",
        "The developers, with the list of events; until then use the larger value.",
    ),
    "C28": Explanation(
        "A third accountant disagrees with this software about what the events cost.",
        "The developers, with the list of events; until then use the larger value.",
    ),
    "C29": Explanation(
        "What was released is not what the coordinator and the sites entered, or claims more rounds than there were.",
        "The coordinator; the sites that recomputed the release say what they saw.",
    ),
    "C30": Explanation(
        "The proofs do not lead from one signed position to the next: the log or a position was exchanged, or the file "
        "was edited.",
        "The coordinator exports again; if C12 fails too, the log's owner.",
    ),
    "C31": Explanation(
        "The description that other tools read says something that the signed messages do not.",
        "The coordinator exports again; rely on the messages, never on the crate alone.",
    ),
    "C32": Explanation(
        "A release, rejection or withdrawal does not follow from decisions that the plan's reviewers signed: an "
        "approval was forged, counted twice, or a rejection was left out.",
        "The reviewers named in the plan say what they decided; the alias `released` must go until it is settled.",
    ),
    "C33": Explanation(
        "Somebody edited MLflow's pages by hand: a tag, a figure, or an alias that makes a model look reviewed. Or the "
        "snapshot is older than the last decision.",
        "Whoever runs MLflow: put back what the evidence says, and look up who had access.",
    ),
    "C34": Explanation(
        "The coordinator published another answer than the one that was opened, or a log of somebody who closed the "
        "question states another one.",
        "The coordinator: publish the answer that the opened sum gives. A site that entered another one: say why.",
    ),
}
