"""What reviewers and the release gate read from MLflow's registry and write to it.

MLflow is a mailbox and a view here: everything read from it is verified (plan by its digest, release by the
coordinator's signature, weights by their digest, decisions by the reviewer's signature) or shown as what it is, a wish.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.canonical import parse_canonical, sha256_hex
from schemas.envelope import envelope_digest, open_envelope
from schemas.errors import EvidenceError, OperationError
from schemas.messages import ModelRelease
from schemas.plan import StudyPlan
from tasks.tracking.target import TrackingTarget, connect
from tasks.tracking.vocabulary import CANDIDATE, RELEASED, REVIEW_STATE, WISH, mailbox_tag, model_name

MAXIMUM_ARTIFACT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Version:
    """A model version as MLflow shows it; nothing of it is verified."""

    name: str
    version: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    run_id: str

    @property
    def label(self) -> str:
        """``name/version``."""
        return f"{self.name}/{self.version}"

    @property
    def study(self) -> str:
        return self.tags.get("consilium.study", "")

    @property
    def wish(self) -> str:
        """What a person wrote in the pages without a signature; one short line."""
        return " ".join(self.tags.get(WISH, "").split())[:80]


@dataclass(frozen=True)
class Candidate:
    """A registered model, verified against itself: plan, signed release and weights belong together.

    Attributes:
        release_data: Envelope bytes of ``release.json``.
    """

    version: Version
    plan: StudyPlan
    release: ModelRelease
    release_data: bytes

    @property
    def release_digest(self) -> str:
        return envelope_digest(self.release_data)


def list_versions(target: TrackingTarget) -> list[Version]:
    """Returns every model version that a study of ours registered, newest first within a model."""
    client = connect(target)
    names = sorted(model.name for model in client.search_registered_models(max_results=1000))
    found = [_version(client, item) for name in names for item in client.search_model_versions(f"name = '{name}'")]
    return sorted((v for v in found if v.study), key=lambda v: (v.name, -int(v.version)))


def find_version(target: TrackingTarget, name: str, version: str) -> Version:
    """Returns one model version.

    Raises:
        OperationError: `version-unknown`.
    """
    from mlflow.exceptions import MlflowException

    client = connect(target)
    try:
        return _version(client, client.get_model_version(name, version))
    except MlflowException:
        raise OperationError(
            "version-unknown", f"MLflow has no version {version} of {name}.", "`consilium review list` shows them."
        ) from None


def find_study_version(target: TrackingTarget, plan: StudyPlan) -> Version:
    """Returns the version that `plan`'s study registered.

    Raises:
        OperationError: `version-unknown`.
    """
    client = connect(target)
    condition = f"name = '{model_name(plan)}' and tag.`consilium.study` = '{plan.study}'"
    versions = sorted(client.search_model_versions(condition), key=lambda v: int(v.version))
    if not versions:
        raise OperationError(
            "version-unknown",
            f"MLflow has no version of {model_name(plan)} for this study.",
            "Run the study to its end.",
        )
    return _version(client, versions[0])


def read_candidate(target: TrackingTarget, version: Version) -> Candidate:
    """Reads what a version stands for and verifies that it fits together.

    Raises:
        EvidenceError: `registry-altered`: plan, release, weights or tags are not of one study.
        PeerError: the release is not signed by the plan's coordinator.
    """
    client = connect(target)
    plan_bytes = _run_artifact(client, version, "plan.json")
    if sha256_hex(plan_bytes) != version.study:
        raise _altered(version, "its study is not the digest of its plan")
    plan = parse_canonical(StudyPlan, plan_bytes, "the plan")
    data = _run_artifact(client, version, "release.json")
    coordinator = plan.coordinator
    release = open_envelope(ModelRelease, data, plan.study, coordinator.identity_key, coordinator.name)
    if version.tags.get("consilium.release") != envelope_digest(data):
        raise _altered(version, "its tag names another release than its signed one")
    verify_weights(target, version, release)
    return Candidate(version, plan, release, data)


def verify_weights(target: TrackingTarget, version: Version, release: ModelRelease) -> None:
    """Refuses a version whose ``weights.safetensors`` are not those of the release.

    Raises:
        EvidenceError: `registry-altered`.
    """
    if sha256_hex(read_weights(target, version)) != release.weights:
        raise _altered(version, "its weights.safetensors is not the one that was released")


def read_weights(target: TrackingTarget, version: Version) -> bytes:
    """Returns the bytes of the version's ``weights.safetensors`` as MLflow holds them; not verified.

    Raises:
        EvidenceError: `registry-altered` if it cannot be read.
    """
    return _model_artifact(connect(target), version, "weights.safetensors")


def verify_tags(version: Version, expected: Mapping[str, str]) -> None:
    """Refuses a version whose tags are not those that follow from the evidence.

    Raises:
        EvidenceError: `registry-altered`, naming the tags.
    """
    wrong = sorted(name for name, value in expected.items() if version.tags.get(name) != value)
    if wrong:
        raise _altered(version, f"these tags do not follow from the evidence: {', '.join(wrong)}")


def post_decision(target: TrackingTarget, version: Version, reviewer: str, envelope: bytes) -> None:
    """Puts a signed decision into the version's mailbox tag."""
    connect(target).set_model_version_tag(version.name, version.version, mailbox_tag(reviewer), envelope.decode())


def read_mailbox(version: Version, reviewers: Iterable[str]) -> list[tuple[str, bytes]]:
    """Returns (tag, envelope bytes as found) of the decisions in the version's mailbox tags; not verified."""
    found = ((name, version.tags.get(mailbox_tag(name), "").strip()) for name in reviewers)
    return [(mailbox_tag(name), text.encode()) for name, text in found if text]


def show_state(target: TrackingTarget, version: Version, state: str) -> None:
    """Says on the version what the release gate says; unchanged words are not written again."""
    if version.tags.get(REVIEW_STATE) != state:
        connect(target).set_model_version_tag(version.name, version.version, REVIEW_STATE, state)


def point_released(target: TrackingTarget, version: Version) -> None:
    """Points the alias ``released`` at the version; the version before loses it."""
    connect(target).set_registered_model_alias(version.name, RELEASED, version.version)


def withdraw_released(target: TrackingTarget, version: Version) -> None:
    """Takes the alias ``released`` from the version; one that points elsewhere stays."""
    if RELEASED in find_version(target, version.name, version.version).aliases:
        connect(target).delete_registered_model_alias(version.name, RELEASED)


def previous_released(target: TrackingTarget, plan: StudyPlan) -> Version | None:
    """Returns the version of the same model that has the alias ``released``, if another study registered it."""
    from mlflow.exceptions import MlflowException

    client = connect(target)
    try:
        found = _version(client, client.get_model_version_by_alias(model_name(plan), RELEASED))
    except MlflowException:
        return None
    return found if found.study != plan.study else None


def _version(client: Any, item: Any) -> Version:
    # Searching leaves the aliases out: the model has them all.
    aliases = client.get_registered_model(item.name).aliases or {}
    held = tuple(sorted(alias for alias, version in aliases.items() if str(version) == str(item.version)))
    return Version(item.name, str(item.version), dict(item.tags or {}), held, item.run_id or "")


def is_candidate(version: Version) -> bool:
    """Tells whether the version has the alias ``candidate``."""
    return CANDIDATE in version.aliases


def _run_artifact(client: Any, version: Version, name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return _read(version, name, lambda: client.download_artifacts(version.run_id, name, folder))


def _model_artifact(client: Any, version: Version, name: str) -> bytes:
    import mlflow.artifacts

    source = f"{client.get_model_version_download_uri(version.name, version.version).rstrip('/')}/{name}"
    with tempfile.TemporaryDirectory() as folder:
        return _read(version, name, lambda: mlflow.artifacts.download_artifacts(source, dst_path=folder))


def _read(version: Version, name: str, download: Any) -> bytes:
    try:
        path = Path(download())
        if path.stat().st_size > MAXIMUM_ARTIFACT_BYTES:
            raise _altered(version, f"{name} is larger than any artifact of ours")
        return path.read_bytes()
    except EvidenceError:
        raise
    except Exception as error:  # MLflow's stores raise whatever they like
        raise _altered(version, f"{name} cannot be read from its run ({type(error).__name__})") from None


def _altered(version: Version, what: str) -> EvidenceError:
    return EvidenceError(
        "registry-altered",
        f"Version {version.version} of {version.name} in MLflow is not what its study registered: {what}.",
        "Ask the coordinator to register the release again; MLflow is a view and no evidence.",
    )
