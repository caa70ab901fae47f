"""Describes an evidence folder as a Five Safes RO-Crate: what other tools read before they know this software.

Derived from verified messages alone, so that an auditor derives it again (check C31). Vocabulary: RO-Crate 1.2, profile
Five Safes 0.4 (agreement, validation, execution, disclosure as actions); the workflow is the installed software that
the logs name, not a downloadable Workflow RO-Crate. Format ``consilium/crate/1``: later software that says more must
still derive this one.
"""

from __future__ import annotations

from typing import Any

from schemas.layout import approval_key, coordinator_prefix, ledger_key, plan_key, release_key, site_prefix
from schemas.messages import EpsilonReport
from tasks.audit.context import AuditContext
from tasks.audit.names import BULK_KINDS, CRATE, proofs_name
from tasks.audit.registry import AuditFailure

FORMAT = "consilium/crate/1"
PROFILE = "https://w3id.org/5s-crate/0.4"
SPECIFICATION = "https://w3id.org/ro/crate/1.2"
_DONE, _FAILED = "http://schema.org/CompletedActionStatus", "http://schema.org/FailedActionStatus"
_SAFE_HAVEN = "https://w3id.org/shp#"
_ROOT = {"@id": "./"}

Entity = dict[str, Any]


def derive_crate(context: AuditContext) -> dict[str, Any]:
    """Derives the content of ``ro-crate-metadata.json``.

    Args:
        context: The evidence; its manifest and the crate itself need not exist yet.

    Raises:
        AuditFailure: a message that the crate quotes does not verify.
    """
    plan = context.plan
    files, folders = _files(context), _folders(context)
    actions = [_validation(context), *_approvals(context), _execution(context), *_disclosures(context)]
    descriptor = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "about": _ROOT,
        "conformsTo": {"@id": SPECIFICATION},
        "version": FORMAT,
    }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Evidence of the study: {plan.title}",
        "description": plan.purpose,
        "identifier": plan.study,
        "conformsTo": {"@id": PROFILE},
        "datePublished": _times(context)[1],
        "license": {"@id": "#terms"},
        "publisher": _party(plan.coordinator.name),
        "sourceOrganization": {"@id": "#study"},
        "mainEntity": {"@id": "#workflow"},
        "hasPart": _ids([*files, *folders]),
        "mentions": _ids(actions),
    }
    return {
        "@context": f"{SPECIFICATION}/context",
        "@graph": [descriptor, root, *files, *folders, *actions, *_contextual(context), *_figures(context)],
    }


def _files(context: AuditContext) -> list[Entity]:
    """The files that tell the story; all others lie in the folders, and the signed manifest lists every one."""
    study, coordinator = context.study, context.plan.coordinator.name
    named = [(plan_key(study), "The plan that everybody signed; its SHA-256 is the study's id")]
    for owner in context.participants:
        is_coordinator = owner == coordinator
        named.append((approval_key(study, owner, is_coordinator), f"{owner} approved the plan"))
        named.append((ledger_key(study, owner, is_coordinator, "checkpoint.json"), f"{owner} closed its log"))
        named.append((proofs_name(owner), f"Consistency proofs of the log of {owner}"))
    for item in context.items:
        if item.kind == "entries":
            named.append((item.path, f"Log of {item.site or coordinator} from entry {item.number} on"))
        elif item.kind == "record":
            named.append((item.path, f"Round {item.round}: which contributions are summed, who dropped out and why"))
        elif item.kind == "opening":
            named.append((item.path, f"Round {item.round}: the opened sum and the model after it"))
        elif item.kind == "review-decision":
            named.append((item.path, f"Decision {item.number} of reviewer {item.peer}"))
        elif item.kind == "later-checkpoint":
            named.append((item.path, f"{coordinator} closed its log again after {item.number} entries"))
    named.append((ledger_key(study, coordinator, True, "closing.json"), "The checkpoints that end the study"))
    named.append((release_key(study, "release.json"), "What was released, and what it cost each site"))
    named.append((release_key(study, "weights.safetensors"), "The released parameters"))
    return [_file(context, path, words) for path, words in sorted(named) if context.evidence.exists(path)]


def _file(context: AuditContext, path: str, words: str) -> Entity:
    kinds = {"json": "application/json", "jsonl": "application/jsonl", "safetensors": "application/octet-stream"}
    entity = {"@id": path, "@type": "File", "name": words, "sha256": context.evidence.digest(path)}
    return entity | {"encodingFormat": kinds[path.rsplit(".", 1)[1]]}


def _folders(context: AuditContext) -> list[Entity]:
    study, coordinator = context.study, context.plan.coordinator.name
    named = [(coordinator_prefix(study), f"Everything that {coordinator} published")]
    named += [(site_prefix(study, site.name), f"Everything that {site.name} published") for site in context.plan.sites]
    paths = [item.path for item in context.items]
    present = [(prefix, words) for prefix, words in named if any(path.startswith(f"{prefix}/") for path in paths)]
    return [{"@id": f"{prefix}/", "@type": "Dataset", "name": words} for prefix, words in present]


# --- the five safes as actions


def _validation(context: AuditContext) -> Entity:
    return {
        "@id": "#validation",
        "@type": "AssessAction",
        "additionalType": {"@id": f"{_SAFE_HAVEN}ValidationCheck"},
        "name": f"Each site checked its table against the data contract {context.plan.contract.name} before each round",
        "object": _ROOT,
        "instrument": {"@id": plan_key(context.study)},
        "agent": _ids(_sites(context)),
        "actionStatus": _DONE,
    }


def _approvals(context: AuditContext) -> list[Entity]:
    """Who agreed: one sign-off for each signature on the plan."""
    found = []
    for owner in context.participants:
        approval = context.approval(owner)
        sign_off = {
            "@id": f"#approval-{owner}",
            "@type": "AssessAction",
            "additionalType": {"@id": f"{_SAFE_HAVEN}SignOff"},
            "name": f"{owner} approved the plan with its identity key",
            "object": [_ROOT, {"@id": plan_key(context.study)}, {"@id": "#study"}],
            "result": {"@id": approval.path},
            "agent": _party(owner),
            "actionStatus": _DONE,
        }
        found.append(sign_off)
    return found


def _execution(context: AuditContext) -> Entity:
    start, end = _times(context)
    released = context.released
    entity = {
        "@id": "#execution",
        "@type": "CreateAction",
        "name": f"{len(context.opened_rounds)} sums were opened" + ("" if released else "; no model was released"),
        "agent": _party(context.plan.coordinator.name),
        "participant": _ids(_sites(context)),
        "instrument": {"@id": "#workflow"},
        "object": {"@id": plan_key(context.study)},
        "startTime": start,
        "endTime": end,
        "actionStatus": _DONE if released and context.release.predicate.complete else _FAILED,
    }
    if released:
        paths = [context.release.path, release_key(context.study, "weights.safetensors")]
        entity["result"] = [{"@id": path} for path in paths]
    return entity


def _disclosures(context: AuditContext) -> list[Entity]:
    """What decided about disclosure: the privacy filters of the sites, and the reviewers."""
    if not context.released:
        return []
    budget = context.plan.budget
    gate = {
        "@id": "#privacy-filter",
        "@type": "AssessAction",
        "additionalType": {"@id": f"{_SAFE_HAVEN}DisclosureCheck"},
        "name": f"The sites' privacy filters admitted every contribution ({budget.epsilon}, {budget.delta})",
        "object": _ROOT,
        "agent": _ids(_sites(context)),
        "result": [{"@id": "#epsilon-training"}, {"@id": "#epsilon-held-out"}],
        "actionStatus": _DONE,
    }
    return [gate, *_reviews(context)]


def _reviews(context: AuditContext) -> list[Entity]:
    found = []
    for signed in context.reviews:
        decision = signed.predicate
        entity = {
            "@id": f"#review-{decision.reviewer}-{decision.number}",
            "@type": "AssessAction",
            "additionalType": {"@id": f"{_SAFE_HAVEN}DisclosureCheck"},
            "name": f"{decision.reviewer} {decision.decision} the release: {decision.reason}",
            "object": [_ROOT, {"@id": context.release.path}],
            "result": {"@id": signed.path},
            "agent": _party(decision.reviewer),
            "actionStatus": _DONE if decision.decision == "approved" else _FAILED,
        }
        found.append(entity)
    return found


# --- what the actions refer to


def _contextual(context: AuditContext) -> list[Entity]:
    plan = context.plan
    whole = any(item.kind in BULK_KINDS for item in context.items) or not context.rounds
    terms = "The parties' agreement decides who may read this evidence. It holds no patient's row. "
    terms += (
        "The ciphertexts are in it." if whole else "The ciphertexts were left out; the manifest lists their digests."
    )
    reviewers = [_organization(reviewer.name, reviewer.identity_key, "reviewer") for reviewer in context.reviewers]
    sites = [_organization(site.name, site.identity_key, "site") for site in plan.sites]
    return [
        {"@id": PROFILE, "@type": "Profile", "name": "Five Safes RO-Crate profile"},
        {"@id": "#terms", "@type": "CreativeWork", "name": "Terms of use", "description": terms},
        {
            "@id": "#study",
            "@type": "Project",
            "name": plan.title,
            "description": plan.purpose,
            "identifier": plan.study,
            "member": _ids([*sites, *reviewers]),
        },
        {
            "@id": "#workflow",
            "@type": "SoftwareApplication",
            "name": "consilium",
            "softwareVersion": _software(context),
        },
        _organization(plan.coordinator.name, plan.coordinator.identity_key, "coordinator"),
        *sites,
        *reviewers,
    ]


def _figures(context: AuditContext) -> list[Entity]:
    if not context.released:
        return []
    release = context.release.predicate
    parts = (("training", release.epsilon), ("held-out", release.evaluation_epsilon))
    figures: list[Entity] = [
        {
            "@id": f"#epsilon-{part}",
            "@type": "PropertyValue",
            "name": f"Largest epsilon of a site's {part} patients under the plan's collusion",
            "value": _largest(reports),
            "unitText": f"epsilon at delta {context.plan.budget.delta}, per {context.study_plan.mechanism.unit}",
        }
        for part, reports in parts
    ]
    for name, value in release.metrics:
        figures.append({"@id": f"#metric-{name}", "@type": "PropertyValue", "name": name, "value": value})
    return figures


def _largest(reports: tuple[EpsilonReport, ...]) -> str:
    return max((report.collusion for report in reports), key=float, default="0")


def _times(context: AuditContext) -> tuple[str, str]:
    entries = context.log(context.plan.coordinator.name).about(context.study)
    times = [entry.time for _, entry in entries]
    if not times:
        raise AuditFailure("study log", "has no entry about the study")
    return times[0], times[-1]


def _software(context: AuditContext) -> str:
    entries = context.log(context.plan.coordinator.name).about(context.study)
    return ", ".join(sorted({entry.software for _, entry in entries}))


def _sites(context: AuditContext) -> list[Entity]:
    return [_party(site.name) for site in context.plan.sites]


def _party(name: str) -> Entity:
    return {"@id": f"#party-{name}"}


def _organization(name: str, key: str, role: str) -> Entity:
    return _party(name) | {"@type": "Organization", "name": name, "description": role, "identifier": f"ed25519:{key}"}


def _ids(entities: list[Entity]) -> list[Entity]:
    return [{"@id": entity["@id"]} for entity in entities]
