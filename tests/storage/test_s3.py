"""The S3 store keeps the promises of a store, whatever the server and the network do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import OperationError, PeerError
from schemas.options import S3Settings
from tasks.storage.known import KnownObjects
from tasks.storage.names import is_name
from tasks.storage.opening import open_store, split_address
from tasks.storage.s3 import S3Place, S3Store
from tasks.storage.s3_client import open_client, read_credentials
from tasks.storage.s3_policy import lifecycle
from tasks.storage.s3_probe import probe_store
from tests.storage.s3_servers import S3Server, running_moto, write_credentials
from tests.storage.suite import StoreSuite

MIB = 1 << 20
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Faults:
    """Stands between client and server and does what networks and servers do; counts the requests."""

    def __init__(self) -> None:
        self.application: Wsgi
        self.reset()

    def reset(self) -> None:
        self.requests: list[str] = []
        self.ignore_conditions = False
        self.answer_first: list[str] = []
        self.lose_answers = 0
        self.cut_bodies = 0
        self.damage = False

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self.answer_first:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(self.answer_first.pop(0), [("Content-Length", "0")])
            return [b""]
        if self.ignore_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        headers: list[Any] = []

        def note(status: str, answered: list[tuple[str, str]], *_: Any) -> None:
            headers[:] = [status, answered]

        body = b"".join(self.application(environ, note))
        if self.lose_answers:
            self.lose_answers -= 1
            start("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        if environ["REQUEST_METHOD"] == "GET" and len(body) > MIB:
            if self.cut_bodies:
                self.cut_bodies -= 1
                body = body[: len(body) // 2]  # the length announced stays: the connection seems to break
            if self.damage:
                body = bytes([body[0] ^ 1]) + body[1:]
        start(*headers)
        return [body]


@pytest.fixture(scope="module")
def faults() -> Faults:
    return Faults()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, faults: Faults) -> Iterator[S3Server]:
    with running_moto(tmp_path_factory.mktemp("moto"), faults) as running:
        yield running


@pytest.fixture
def bucket(server: S3Server, faults: Faults, request: pytest.FixtureRequest) -> str:
    faults.reset()
    name = f"b{abs(hash(request.node.name)):x}"
    server.client.create_bucket(Bucket=name)
    faults.requests.clear()
    return name


class TestS3Store(StoreSuite):
    @pytest.fixture
    def store(self, server: S3Server, bucket: str) -> S3Store:
        return S3Store(server.client, S3Place(bucket))

    @pytest.fixture
    def site_store(self, server: S3Server, bucket: str) -> S3Store:
        return S3Store(server.client, S3Place(bucket), "sites/a")


class TestS3StoreUnderAPrefix(StoreSuite):
    @pytest.fixture
    def store(self, server: S3Server, bucket: str) -> S3Store:
        return S3Store(server.client, S3Place(bucket, "some/study", part_size_bytes=5 * MIB))

    @pytest.fixture
    def site_store(self, server: S3Server, bucket: str) -> S3Store:
        return S3Store(server.client, S3Place(bucket, "some/study"), "sites/a")

    def test_two_prefixes_of_one_bucket_do_not_see_each_other(self, server: S3Server, store: S3Store) -> None:
        store.put("sites/a/one", b"1")
        other = S3Store(server.client, S3Place(store.place.bucket, "some/study-2"))
        assert other.get("sites/a/one") is None
        assert list(other.list("sites")) == []


@pytest.fixture
def store(server: S3Server, bucket: str) -> S3Store:
    return S3Store(server.client, S3Place(bucket, part_size_bytes=5 * MIB))


def _large(folder: Path, size: int = 12 * MIB) -> Path:
    path = folder / "large"
    path.write_bytes(bytes(range(256)) * (size // 256))
    return path


def test_a_large_object_goes_in_parts_and_is_create_only_too(store: S3Store, tmp_path: Path, faults: Faults) -> None:
    source = _large(tmp_path)
    store.put_file("sites/a/bulk.bin", source)
    assert [request.split()[0] for request in faults.requests] == ["POST", "PUT", "PUT", "PUT", "POST"]
    store.put_file("sites/a/bulk.bin", source)
    with store.open("sites/a/bulk.bin") as stream:
        assert stream.read() == source.read_bytes()
    source.write_bytes(b"\1" * 12 * MIB)
    with pytest.raises(PeerError, match=r"a: sites/a/bulk\.bin already holds other bytes"):
        store.put_file("sites/a/bulk.bin", source)
    assert "Uploads" not in store.client.list_multipart_uploads(Bucket=store.place.bucket)


def test_a_bucket_that_ignores_conditional_writes_is_refused(server: S3Server, bucket: str, faults: Faults) -> None:
    faults.ignore_conditions = True
    with pytest.raises(OperationError, match="ignores the condition of a write") as caught:
        open_store(f"s3://{bucket}", "sites/a", server.settings)
    assert caught.value.code == "store-overwrites"
    faults.ignore_conditions = False
    store = open_store(f"s3://{bucket}", "sites/a", server.settings)
    for _ in range(3):
        assert probe_store(store).conditional_parts  # type: ignore[arg-type]
    assert list(store.list("sites")) == ["sites/a/probe/conditional-write"]


def test_a_server_that_completes_parts_on_a_taken_name_gets_whole_objects(
    server: S3Server, bucket: str, faults: Faults, tmp_path: Path
) -> None:
    store = S3Store(server.client, S3Place(bucket, part_size_bytes=5 * MIB, conditional_parts=False))
    store.put_file("sites/a/bulk.bin", _large(tmp_path))
    assert [request.split()[0] for request in faults.requests] == ["PUT"]


def test_a_transient_error_is_tried_again_and_a_refusal_is_not(store: S3Store, faults: Faults) -> None:
    faults.answer_first = ["503 Slow Down", "500 Internal Server Error"]
    store.put("sites/a/one", b"1")
    assert len(faults.requests) == 3
    faults.reset()
    faults.answer_first = ["403 Forbidden"]
    with pytest.raises(
        OperationError, match=f"refuses these credentials for this name in the bucket {store.place.bucket}"
    ) as caught:
        store.put("sites/a/two", b"2")
    assert caught.value.code == "store-denied"
    assert len(faults.requests) == 1
    assert store.get("sites/a/two") is None


def test_a_write_whose_answer_was_lost_has_happened_once(store: S3Store, faults: Faults) -> None:
    faults.lose_answers = 1
    store.put("sites/a/one", b"first")
    assert store.get("sites/a/one") == b"first"
    faults.lose_answers = 1
    with pytest.raises(PeerError, match="already holds other bytes"):
        store.put("sites/a/one", b"second")


def test_another_writer_at_work_is_waited_for(store: S3Store, faults: Faults) -> None:
    faults.answer_first = ["409 Conflict", "409 Conflict"]
    store.put("sites/a/one", b"1")
    assert store.get("sites/a/one") == b"1"


def test_a_read_that_breaks_off_goes_on_where_it_broke(store: S3Store, faults: Faults, tmp_path: Path) -> None:
    source = _large(tmp_path)
    store.put_file("sites/a/bulk.bin", source)
    faults.cut_bodies = 2
    with store.open("sites/a/bulk.bin") as stream:
        assert stream.read() == source.read_bytes()
    assert faults.cut_bodies == 0
    assert store.get("sites/a/bulk.bin") == source.read_bytes()


def test_bytes_that_were_damaged_are_not_believed(store: S3Store, faults: Faults, tmp_path: Path) -> None:
    store.put_file("sites/mercy/large", _large(tmp_path))
    faults.damage = True
    with pytest.raises(PeerError, match="mercy: sites/mercy/large does not hold the bytes that were sent"):
        store.get("sites/mercy/large")


def test_what_was_read_once_is_not_asked_for_again(store: S3Store, faults: Faults) -> None:
    store.put("sites/a/one", b"first")
    assert not store.exists("sites/a/two")
    faults.reset()
    for _ in range(3):
        assert store.get("sites/a/one") == b"first"
        assert store.exists("sites/a/one")
        assert store.size("sites/a/one") == 5
    assert len(faults.requests) == 1
    store.put("sites/a/two", b"second")
    assert store.get("sites/a/two") == b"second"
    # Whoever overwrites an object behind the store's back changes nothing for those who have read it.
    store.client.put_object(Bucket=store.place.bucket, Key="sites/a/one", Body=b"other")
    assert store.get("sites/a/one") == b"first"


def test_what_was_sent_is_not_asked_for_again_but_read_from_the_store(store: S3Store, faults: Faults) -> None:
    store.put("sites/a/one", b"first")
    store.put("sites/a/one", b"first")
    faults.reset()
    assert store.exists("sites/a/one")
    assert faults.requests == []
    assert store.get("sites/a/one") == b"first"
    assert faults.requests == [f"GET /{store.place.bucket}/sites/a/one"]
    # What was refused is not there by this store's word.
    store.client.put_object(Bucket=store.place.bucket, Key="sites/a/two", Body=b"other")
    with pytest.raises(PeerError, match="sites/a/two already holds other bytes"):
        store.put("sites/a/two", b"second")
    store.client.delete_object(Bucket=store.place.bucket, Key="sites/a/two")
    assert not store.exists("sites/a/two")
    # Another's name that was found once stays: nobody takes it back.
    store.client.put_object(Bucket=store.place.bucket, Key="sites/b/one", Body=b"other")
    assert store.exists("sites/b/one")
    faults.reset()
    assert store.exists("sites/b/one")
    assert faults.requests == []


def test_the_memory_of_what_was_read_is_bounded() -> None:
    known = KnownObjects(total_bytes=10)
    for name in ("a", "b", "c"):
        known.remember(name, b"1234")
    assert known.get("a") is None
    assert known.get("b") == b"1234"
    known.remember("d", b"1234")
    assert known.get("c") is None
    known.remember("huge", bytes((1 << 20) + 1))
    assert known.get("huge") is None


def test_names_that_a_hostile_server_lists_never_leave_the_store(store: S3Store) -> None:
    for name in ("sites/a/../../escape", "sites/a/.hidden", "sites//a", "sites/a/ok", "sites/a/b c"):
        store.client.put_object(Bucket=store.place.bucket, Key=name, Body=b"")
    assert list(store.list("sites")) == ["sites/a/ok"]
    assert all(is_name(name) for name in store.list("sites"))


def test_ciphertexts_carry_the_tag_that_the_lifecycle_knows(store: S3Store) -> None:
    store.put("sites/a/study/round-0001/attempt-01/bulk.bin", b"c")
    store.put("sites/a/study/round-0001/record.json", b"{}")
    client, bucket = store.client, store.place.bucket
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=lifecycle("", 30))
    rules = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    tags = {name: client.get_object_tagging(Bucket=bucket, Key=name)["TagSet"] for name in store.list("sites/a")}
    assert [tag for name, tag in tags.items() if name.endswith("bulk.bin")] == [[rules[0]["Filter"]["Tag"]]]
    assert [tag for name, tag in tags.items() if name.endswith("record.json")] == [[]]


def test_evidence_is_locked_where_the_bucket_can_and_refused_where_it_cannot(server: S3Server, bucket: str) -> None:
    locking = server.settings.model_copy(update={"retain_days": 30})
    with pytest.raises(OperationError, match="retain_days asks for object lock and the bucket has none"):
        open_store(f"s3://{bucket}", "sites/a", locking)
    server.client.create_bucket(Bucket=f"{bucket}-locked", ObjectLockEnabledForBucket=True)
    store = open_store(f"s3://{bucket}-locked", "sites/a", locking)
    store.put("sites/a/record.json", b"{}")
    store.put("sites/a/bulk.bin", b"c")
    where = {"Bucket": f"{bucket}-locked", "Key": "sites/a/record.json"}
    version = server.client.head_object(**where)
    assert version["ObjectLockMode"] == "COMPLIANCE"
    with pytest.raises(Exception, match="AccessDenied"):
        server.client.delete_object(**where, VersionId=version["VersionId"])
    assert "ObjectLockMode" not in server.client.head_object(Bucket=f"{bucket}-locked", Key="sites/a/bulk.bin")


def test_a_bucket_or_a_server_that_is_not_there_is_one_sentence(server: S3Server, faults: Faults) -> None:
    faults.reset()
    with pytest.raises(OperationError, match="The bucket nowhere-at-all does not exist") as caught:
        open_store("s3://nowhere-at-all", "sites/a", server.settings)
    assert (caught.value.code, "s3.endpoint" in caught.value.remedy) == ("store-missing", True)
    closed = server.settings.model_copy(update={"endpoint": "http://127.0.0.1:9", "attempts": 1})
    with pytest.raises(OperationError, match=r"The store at 127\.0\.0\.1:9 did not answer \(") as caught:
        open_store("s3://study", "sites/a", closed)
    assert caught.value.code == "store-unreachable"
    assert "probe" not in str(caught.value), "no name of an object"


def test_a_server_whose_certificate_is_not_trusted_is_told_apart(server: S3Server, tmp_path: Path) -> None:
    endpoint = str(server.settings.endpoint).replace("http://", "https://")
    no_tls = server.settings.model_copy(update={"endpoint": endpoint, "attempts": 1})
    with pytest.raises(OperationError, match=r"did not answer: its certificate is not trusted here, or it") as caught:
        open_store("s3://study", "sites/a", no_tls)
    assert caught.value.message.startswith(f"The store at {endpoint.removeprefix('https://')} did not")
    assert "s3.ca_file in config.json" in caught.value.remedy
    (tmp_path / "authority.json").write_text('{"name": "swordfish"}')
    for name in ("none.pem", "authority.json"):
        wrong = no_tls.model_copy(update={"ca_file": str(tmp_path / name)})
        with pytest.raises(OperationError, match=r"PEM file with certificates where s3\.ca_file") as caught:
            open_store("s3://study", "sites/a", wrong)
        assert (caught.value.code, "swordfish" in str(caught.value)) == ("ca-file-unreadable", False)


def test_a_secret_comes_from_a_private_file_and_is_never_shown(tmp_path: Path) -> None:
    path = write_credentials(tmp_path, "mercy", "swordfish")
    assert "swordfish" not in repr(read_credentials(path))
    path.chmod(0o640)
    with pytest.raises(OperationError, match=r"Others can read mercy\.json") as caught:
        read_credentials(path)
    assert caught.value.code == "secret-exposed"
    path.chmod(0o600)
    path.write_text(json.dumps({"access_key_id": "swordfish"}))
    with pytest.raises(OperationError, match="JSON with access_key_id") as caught:
        read_credentials(path)
    assert "swordfish" not in str(caught.value)
    with pytest.raises(OperationError, match="Expected a file with a secret"):
        read_credentials(tmp_path / "none")


def test_the_environment_of_whoever_starts_an_agent_has_no_say(
    server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("[profile other]\nendpoint_url = http://127.0.0.1:9\n")
    for name, value in {
        "AWS_PROFILE": "other",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_ACCESS_KEY_ID": "thief",
        "AWS_SECRET_ACCESS_KEY": "thief",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    client = open_client(server.settings)
    assert client._request_signer._credentials.access_key == "owner"
    client.head_bucket(Bucket=bucket)


@pytest.mark.parametrize("endpoint", ["http://s3.example.org", "ftp://127.0.0.1", "s3.example.org"])
def test_a_store_without_tls_is_refused_unless_it_is_this_machine_or_said_aloud(endpoint: str, tmp_path: Path) -> None:
    settings = S3Settings(endpoint=endpoint, credentials_file=str(write_credentials(tmp_path, "a", "b")))
    with pytest.raises(OperationError, match="to begin with https://"):
        open_client(settings)
    allowed = settings.model_copy(update={"endpoint": "http://s3.internal", "insecure_http": True})
    assert open_client(allowed).meta.endpoint_url == "http://s3.internal"


@pytest.mark.parametrize(
    "address", ["s3://", "s3://UPPER", "s3://a", "gs://bucket", "s3://bucket/../x", "s3://b ucket"]
)
def test_an_address_that_is_no_bucket_is_refused(address: str) -> None:
    with pytest.raises(OperationError, match="a folder or as s3://bucket/prefix"):
        split_address(address)


def test_many_writers_through_one_client_keep_their_objects_apart(store: S3Store) -> None:
    def write(number: int) -> None:
        store.put(f"sites/a/{number}", b"%d" % number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.get(f"sites/a/{number}") for number in range(24)] == [b"%d" % number for number in range(24)]


def test_an_object_that_its_writer_archived_is_the_writers_fault(server: S3Server, store: S3Store) -> None:
    key = "sites/a/message.json"
    server.client.put_object(Bucket=store.place.bucket, Key=key, Body=b"{}", StorageClass="GLACIER")
    for read in (store.get, store.open):
        with pytest.raises(PeerError, match=r"a: sites/a/message\.json is archived, or encrypted") as caught:
            read(key)
        assert (caught.value.code, caught.value.peer) == ("object-unreadable", "a")


def test_a_server_that_redirects_for_ever_is_unreachable(store: S3Store, faults: Faults) -> None:
    faults.answer_first = ["307 Temporary Redirect"] * 1000
    with pytest.raises(
        OperationError, match=f"The store with the bucket {store.place.bucket} did not answer"
    ) as caught:
        store.get("sites/a/message.json")
    faults.reset()
    assert caught.value.code == "store-unreachable"
