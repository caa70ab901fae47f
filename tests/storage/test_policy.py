"""What a site's credentials allow is what a study needs, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from schemas.errors import OperationError
from schemas.plan import StudyPlan
from site_agents.compute import in_process
from site_agents.context import SiteContext, open_context
from site_agents.home import open_home
from tasks.privacy.noise import os_noise_stream
from tasks.storage.base import Store
from tasks.storage.folder import FolderStore
from tasks.storage.names import LARGEST_READ
from tasks.storage.s3_policy import bucket_policy, coordinator_statements, identity_policy, lifecycle, site_statements
from tests.simulator import Prepared, copy_study, open_consortium


def allows(statements: list[dict[str, Any]], action: str, key: str) -> bool:
    """Says what a server would say, without conditions; a star ends where what follows it first fits."""
    name = f"arn:aws:s3:::study/{key}"
    granted = (statement for statement in statements if action in statement["Action"])
    return any(_fits(resource, name) for statement in granted for resource in statement["Resource"])


def _fits(pattern: str, name: str) -> bool:
    first, *rest = pattern.split("*")
    parts = [(f"[^{re.escape(part[0])}]*" if part else ".*") + re.escape(part) for part in rest]
    return re.fullmatch(re.escape(first) + "".join(parts), name) is not None


class HeldToItsPolicy:
    """A site's store that notes what is read and refuses what the policy does not allow."""

    def __init__(self, site: str, store: Store) -> None:
        self._statements = site_statements("study", "", site)
        self._store = store
        self.read: set[str] = set()

    def _check(self, action: str, key: str) -> None:
        assert allows(self._statements, action, key), (action, key)

    def put(self, key: str, data: bytes) -> None:
        self._check("s3:PutObject", key)
        self._store.put(key, data)

    def put_file(self, key: str, source: Path) -> None:
        self._check("s3:PutObject", key)
        self._store.put_file(key, source)

    def get(self, key: str, limit: int = LARGEST_READ) -> bytes | None:
        self._check("s3:GetObject", key)
        self.read.add(key)
        return self._store.get(key, limit)

    def open(self, key: str) -> IO[bytes]:
        self._check("s3:GetObject", key)
        return self._store.open(key)

    def exists(self, key: str) -> bool:
        self._check("s3:GetObject", key)
        return self._store.exists(key)

    def size(self, key: str) -> int:
        self._check("s3:GetObject", key)
        return self._store.size(key)

    def list(self, prefix: str) -> Iterator[str]:
        return self._store.list(prefix)


def test_a_study_needs_no_more_than_the_policy_allows(
    prepared_study: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = copy_study(prepared_study, tmp_path / "study")
    consortium = open_consortium(prepared)
    stores = {
        name: HeldToItsPolicy(name, FolderStore(prepared.workdir.store, f"sites/{name}")) for name in consortium.sites
    }

    def opened(name: str) -> SiteContext:
        compute = in_process(lambda _: os_noise_stream())
        return open_context(open_home(consortium.site_homes[name]), prepared.plan.study, compute, stores[name])

    consortium.sites = {name: opened(name) for name in consortium.sites}
    evaluation = consortium.run_study()
    consortium.release(prepared.plan.mechanism.rounds, evaluation)
    kinds = {re.sub(r"[0-9]+", "N", key.rsplit("/", 1)[-1]) for store in stores.values() for key in store.read}
    assert {"key.bin", "public-share.bin", "self-test-N.bin", "contribution.json"} <= kinds
    assert any(kind.startswith("sealed-") for kind in kinds)
    assert any(kind.startswith("shamir-") for kind in kinds)


@pytest.mark.parametrize("root", ["", "some/study/"])
def test_a_site_cannot_read_what_is_not_addressed_to_it_or_write_elsewhere(root: str, prepared_study: Prepared) -> None:
    plan: StudyPlan = prepared_study.plan
    statements = site_statements("study", root.rstrip("/"), "mercy")
    place = f"{root}sites/general/{plan.study}/round-0001/attempt-01"
    assert allows(statements, "s3:GetObject", f"{place}/contribution.json")
    assert allows(statements, "s3:GetObject", f"{place}/shamir-mercy.bin")
    for name in ("bulk.bin", "shamir-general.bin", "shamir-mercy-too.bin"):
        assert not allows(statements, "s3:GetObject", f"{place}/{name}")
    own = f"{root}sites/mercy/{plan.study}/round-0001/attempt-01/bulk.bin"
    assert allows(statements, "s3:GetObject", own)
    assert allows(statements, "s3:PutObject", own)
    for key in (f"{place}/contribution.json", f"{root}sites/mercy-too/x", f"{root}coordinator/x", f"{root}sites/mercy"):
        assert not allows(statements, "s3:PutObject", key)
    # A message that its writer tags as a ciphertext would expire, and with it the evidence.
    for key in (f"{root}sites/mercy/{plan.study}/round-0001/attempt-01/contribution.json", f"{place}/bulk.bin"):
        assert not allows(statements, "s3:PutObjectTagging", key)
    assert allows(statements, "s3:PutObjectTagging", own)
    assert not any("Delete" in action for statement in statements for action in statement["Action"])


def test_the_policy_of_the_bucket_names_each_statement_once() -> None:
    parties = {
        name: (f"arn:aws:iam:::user/{name}", site_statements("study", "", name, True)) for name in ("a-1", "a1", "c")
    }
    parties["coordinator"] = ("arn:aws:iam:::user/coordinator", coordinator_statements("study", ""))
    document = bucket_policy(parties)
    names = [statement["Sid"] for statement in document["Statement"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9]+", name) for name in names)
    assert identity_policy(parties["c"][1])["Version"] == "2012-10-17"
    written = [s for s in parties["c"][1] if "s3:PutObject" in s["Action"]]
    assert [s["Condition"] for s in written] == [
        {"Null": {"s3:if-none-match": "false"}},
        {"Bool": {"s3:ObjectCreationOperation": "false"}},
    ]


@pytest.mark.parametrize("root", ["", "some/study"])
def test_mlflow_writes_without_a_condition_where_no_site_can_read_and_nothing_expires(root: str) -> None:
    coordinator = coordinator_statements("study", root, enforce_conditions=True)
    artifact = "/".join(part for part in (root, "mlflow/1/run/artifacts/note.txt") if part)
    free = [statement for statement in coordinator if "Condition" not in statement]
    assert allows(free, "s3:PutObject", artifact)
    assert allows(free, "s3:GetObject", artifact)
    # The exception is MLflow's alone: the study's own names keep the condition.
    message = "/".join(part for part in (root, "coordinator/s/plan.json") if part)
    assert not allows(free, "s3:PutObject", message)
    assert allows(coordinator, "s3:PutObject", message)
    for action in ("s3:GetObject", "s3:PutObject", "s3:PutObjectTagging"):
        assert not allows(site_statements("study", root, "mercy"), action, artifact), action
    assert not allows(site_statements("study", root, "mlflow"), "s3:GetObject", artifact)
    expiring = [rule["Filter"] for rule in lifecycle(root, 1)["Rules"] if "Expiration" in rule]
    tags = [{"Key": "consilium", "Value": "ciphertext"}]
    assert expiring == ([{"And": {"Prefix": f"{root}/", "Tags": tags}}] if root else [{"Tag": tags[0]}])


def test_a_name_that_would_widen_a_policy_is_refused() -> None:
    for name in ("*", "a/*", "", "A", "a?"):
        with pytest.raises(OperationError, match="Expected a name like general-hospital"):
            site_statements("study", "", name)


def test_only_ciphertexts_and_unfinished_uploads_ever_expire() -> None:
    rules = lifecycle("some/study", 30)["Rules"]
    assert [rule for rule in rules if "Expiration" in rule] == rules[:1]
    assert rules[0]["Filter"] == {
        "And": {"Prefix": "some/study/", "Tags": [{"Key": "consilium", "Value": "ciphertext"}]}
    }
