"""The same promises on a real S3 server, Debian's radosgw, with a key per participant and the generated policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from schemas.errors import OperationError
from tasks.storage.opening import open_store
from tasks.storage.s3 import S3Place, S3Store
from tasks.storage.s3_policy import bucket_policy, coordinator_statements, lifecycle, site_statements
from tasks.storage.s3_probe import probe_store
from tests.storage.s3_servers import S3Server, missing_programs, running_radosgw
from tests.storage.suite import StoreSuite

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        bool(missing_programs()), reason="needs Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common"
    ),
]
PARTIES = ("a", "b", "coordinator")
ROUND = f"sites/a/{'0' * 64}/round-0001/attempt-01"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("radosgw")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[S3Server]:
    with running_radosgw(folder, PARTIES) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.name)):x}"
    server.client.create_bucket(Bucket=name)
    return name


class TestRadosgw(StoreSuite):
    @pytest.fixture
    def store(self, server: S3Server, bucket: str) -> S3Store:
        return S3Store(server.client, S3Place(bucket, conditional_parts=False))

    @pytest.fixture
    def site_store(self, server: S3Server, bucket: str) -> S3Store:
        return S3Store(server.client, S3Place(bucket, conditional_parts=False), "sites/a")


def test_what_the_probe_finds_decides_how_large_objects_are_sent(server: S3Server, bucket: str, folder: Path) -> None:
    store = open_store(f"s3://{bucket}", "sites/a", server.settings)
    assert isinstance(store, S3Store)
    assert not store.place.conditional_parts
    source = folder / "large"
    source.write_bytes(b"c" * 40_000_000)
    store.put_file("sites/a/bulk.bin", source)
    store.put_file("sites/a/bulk.bin", source)
    with store.open("sites/a/bulk.bin") as stream:
        assert stream.read() == source.read_bytes()
    source.write_bytes(b"d" * 40_000_000)
    with pytest.raises(Exception, match="already holds other bytes"):
        store.put_file("sites/a/bulk.bin", source)


def test_a_page_of_names_is_not_all_of_them(server: S3Server, bucket: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(1005):
            pool.submit(server.client.put_object, Bucket=bucket, Key=f"sites/a/{number:04d}", Body=b"")
    assert len(list(S3Store(server.client, S3Place(bucket)).list("sites/a"))) == 1005


def test_the_servers_policy_holds_each_participant_to_its_prefix(server: S3Server, bucket: str, folder: Path) -> None:
    policy = {name: (f"arn:aws:iam:::user/{name}", site_statements(bucket, "study", name)) for name in ("a", "b")} | {
        "coordinator": ("arn:aws:iam:::user/coordinator", coordinator_statements(bucket, "study"))
    }
    server.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(bucket_policy(policy)))
    stores = {name: _open(server, bucket, folder, name) for name in PARTIES}
    for store in stores.values():
        assert not probe_store(store).conditional_parts
    stores["a"].put(f"{ROUND}/bulk.bin", b"mine")
    stores["a"].put(f"{ROUND}/shamir-b.bin", b"for b")
    stores["a"].put(f"{ROUND}/shamir-c.bin", b"for c")
    stores["a"].put(f"{ROUND}/contribution.json", b"{}")
    stores["coordinator"].put("coordinator/s/plan.json", b"{}")
    # What a participant may.
    assert stores["b"].get(f"{ROUND}/contribution.json") == b"{}"
    assert stores["b"].get(f"{ROUND}/shamir-b.bin") == b"for b"
    assert stores["b"].get("coordinator/s/plan.json") == b"{}"
    assert stores["b"].get(f"{ROUND}/not-there.json") is None
    assert stores["coordinator"].get(f"{ROUND}/bulk.bin") == b"mine"
    # MLflow writes as it does, again and again, where no site reads.
    artifact = {"Bucket": bucket, "Key": "study/mlflow/1/note.txt"}
    for body in (b"one", b"two"):
        stores["coordinator"].client.put_object(**artifact, Body=body)
    assert stores["coordinator"].client.get_object(**artifact)["Body"].read() == b"two"
    with pytest.raises(Exception, match="AccessDenied"):
        stores["b"].client.get_object(**artifact)
    # What it may not, whatever program it runs: the store's own prefix rule is switched off.
    for name, key in (("b", f"{ROUND}/bulk.bin"), ("b", f"{ROUND}/shamir-c.bin")):
        with pytest.raises(OperationError, match="refuses these credentials"):
            stores[name].get(key)
    for name, key in (
        ("b", "sites/a/x"),
        ("a", "coordinator/x"),
        ("coordinator", "sites/a/x"),
        ("b", "elsewhere"),
        ("b", "mlflow/x"),
    ):
        rogue = S3Store(stores[name].client, stores[name].place)
        with pytest.raises(OperationError, match="refuses these credentials"):
            rogue.put(key, b"forged")
    where = {"Bucket": bucket, "Key": f"study/{ROUND}/bulk.bin"}
    for name in ("a", "b"):
        with pytest.raises(Exception, match="AccessDenied"):
            stores[name].client.delete_object(**where)


def test_a_wrong_secret_is_refused(server: S3Server, bucket: str, folder: Path) -> None:
    path = folder / "thief.json"
    path.write_text(json.dumps({"access_key_id": "a", "secret_access_key": "guessed"}))
    path.chmod(0o600)
    with pytest.raises(OperationError, match="refuses these credentials") as caught:
        open_store(f"s3://{bucket}", "sites/a", server.settings_for(path))
    assert caught.value.code == "store-denied"


def test_the_lifecycle_is_one_that_the_server_takes(server: S3Server, bucket: str) -> None:
    server.client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=lifecycle("study", 30))
    rules = server.client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert sorted(rule["ID"] for rule in rules) == ["ciphertexts", "unfinished-uploads"]


def test_a_versioned_bucket_of_this_server_ignores_conditions_and_is_refused(server: S3Server, bucket: str) -> None:
    server.client.create_bucket(Bucket=f"{bucket}-locked", ObjectLockEnabledForBucket=True)
    with pytest.raises(OperationError, match="ignores the condition of a write"):
        open_store(f"s3://{bucket}-locked", "sites/a", server.settings)


def _open(server: S3Server, bucket: str, folder: Path, name: str) -> S3Store:
    prefix = "coordinator" if name == "coordinator" else f"sites/{name}"
    store = open_store(f"s3://{bucket}/study", prefix, server.settings_for(folder / f"{name}.json"))
    assert isinstance(store, S3Store)
    return store
