"""Errors that say who must act.

One root, one branch per party that has to act, one exit code per branch. A message never quotes a record, a small
count or a key: it states what was expected, what came instead, and the remedy. `code` is a stable identifier that may
cross the wall (it is on the site's allow-list); the message stays where it was raised unless its text is fixed.
"""

from __future__ import annotations


class ConsiliumError(Exception):
    """Root of every refusal that consilium raises on purpose.

    Args:
        code: Stable kebab-case identifier, e.g. ``budget-exceeded``. Safe to publish.
        message: One sentence: what was expected and what came instead.
        remedy: One sentence: what the acting party can do.
    """

    exit_code = 1
    who_must_act = "the operator"

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{message} {remedy}".strip())
        self.code = code
        self.message = message
        self.remedy = remedy


class SiteDataError(ConsiliumError):
    """The site's own table or cohort does not fit the contract: the data steward must act."""

    exit_code = 10
    who_must_act = "the site's data steward"


class BudgetError(ConsiliumError):
    """The privacy budget would be exceeded or cannot be computed: the site's budget owner must act."""

    exit_code = 11
    who_must_act = "the site's budget owner"


class PlanError(ConsiliumError):
    """The plan is malformed or its numbers do not fit together: the study coordinator must act."""

    exit_code = 12
    who_must_act = "the study coordinator"


class PeerError(ConsiliumError):
    """A peer sent something that the protocol forbids; the peer is named.

    Args:
        peer: Name of the site or of the coordinator that misbehaved; where a fault cannot be attributed, the
            names of the active set, joined by commas.
    """

    exit_code = 13
    who_must_act = "the named peer"

    def __init__(self, code: str, peer: str, message: str, remedy: str = "") -> None:
        super().__init__(code, f"{peer}: {message}", remedy)
        self.peer = peer


class OperationError(ConsiliumError):
    """Something outside the protocol failed (disk, port, database, deadline): the operator must act."""

    exit_code = 14
    who_must_act = "the operator"


class EvidenceError(ConsiliumError):
    """Stored or exported evidence does not verify: the auditor must ask the party that the message names."""

    exit_code = 15
    who_must_act = "the party that wrote the evidence"
