"""The file behind a log: durable, append-only, shared by processes, refused when it was touched."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.envelope import open_envelope
from schemas.errors import EvidenceError, OperationError
from schemas.ledger import InstructionIssued, KeyCeremony, PlanApproved, RecordProposed, SumOpened
from schemas.messages import Checkpoint, LogPosition
from tasks.ledger.merkle import EMPTY_ROOT, merkle_root, verify_consistency
from tasks.ledger.store import LedgerStore
from tasks.ledger.verify import verify_log
from tests.ledger.logs import KEY, KEY_HEX, OWNER, STUDY, make_store
from tests.privacy.plans import digest


def ceremony(epoch: int) -> KeyCeremony:
    return KeyCeremony(epoch=epoch, sid_star=digest("sid", epoch))


def edit(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_what_append_returned_is_in_the_file_and_verifies(tmp_path: Path) -> None:
    store = LedgerStore(tmp_path / "log.sqlite", OWNER, KEY)
    assert store.position() == LogPosition(size=0, root=EMPTY_ROOT)
    envelopes = [store.append(STUDY, PlanApproved(approval=digest(1)))]
    envelopes += [store.append(STUDY, ceremony(epoch)) for epoch in range(1, 6)]
    again = LedgerStore(tmp_path / "log.sqlite", OWNER, KEY)
    assert again.entries() == envelopes
    assert again.position() == LogPosition(size=6, root=merkle_root(envelopes))
    assert verify_log(again.entries(), OWNER, KEY_HEX).root == store.position().root
    assert [entry.body for entry in again.find(STUDY, "key-ceremony")] == [ceremony(e) for e in range(1, 6)]
    assert again.entries_for(digest("another study")) == []


def test_the_same_class_keeps_the_coordinators_study_log(tmp_path: Path) -> None:
    log = LedgerStore(tmp_path / "study-log.sqlite", "coordinator", KEY)
    log.append(STUDY, PlanApproved(approval=digest(1)))
    issued = InstructionIssued(round=1, attempt=1, instruction=digest(2))
    first = log.append_once(STUDY, issued)
    assert log.append_once(STUDY, issued) == first, "a resumed step writes nothing twice"
    log.append(STUDY, RecordProposed(round=1, record=digest(3), dropped=(("alder", "silent"),)))
    log.append(STUDY, SumOpened(round=1, opening=digest(4), model=digest(5)))
    with pytest.raises(EvidenceError, match="Entry 4 of coordinator's log: A record of the round was proposed before"):
        log.append(STUDY, RecordProposed(round=1, record=digest(6), dropped=()))
    assert log.position().size == 4


def test_a_checkpoint_is_consistent_with_every_later_state(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    data = store.sign_checkpoint(STUDY)
    old = open_envelope(Checkpoint, data, STUDY, KEY_HEX, OWNER).position
    for epoch in range(1, 8):
        store.append(STUDY, ceremony(epoch))
    new = store.position()
    assert verify_consistency(old.size, old.root, new.size, new.root, store.prove_consistency(old.size))
    assert store.verify(Checkpoint(owner=OWNER, position=old)).size == new.size


@pytest.mark.parametrize(
    ("statements", "code"),
    [
        (
            ["DROP TRIGGER no_update", "UPDATE entries SET envelope = x'00' WHERE sequence = 1"],
            "not-canonical",
        ),
        (["DROP TRIGGER no_delete", "DELETE FROM entries WHERE sequence = 1"], "wrong-sequence"),
        (
            [
                "DROP TRIGGER no_update",
                "UPDATE entries SET sequence = -1 WHERE sequence = 0",
                "UPDATE entries SET sequence = 0 WHERE sequence = 1",
                "UPDATE entries SET sequence = 1 WHERE sequence = -1",
            ],
            "wrong-sequence",
        ),
    ],
)
def test_an_edited_file_is_refused_when_it_is_read(tmp_path: Path, statements: list[str], code: str) -> None:
    store = make_store(tmp_path)
    store.append(STUDY, ceremony(1))
    edit(store.path, *statements)
    fresh = LedgerStore(store.path, OWNER, KEY)
    for attempt in (fresh.position, fresh.verify, lambda: fresh.append(STUDY, ceremony(2))):
        with pytest.raises(EvidenceError, match=f"of {OWNER}'s log") as caught:
            attempt()
        assert caught.value.code == code


def test_rows_cannot_be_changed_through_plain_sql(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    before = store.entries()
    for statement in ("UPDATE entries SET envelope = CAST('x' AS BLOB)", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            edit(store.path, statement)
    assert store.entries() == before


def test_an_old_copy_put_back_is_noticed_by_a_running_agent_and_against_a_checkpoint(
    tmp_path: Path,
) -> None:
    store = make_store(tmp_path)
    old = store.path.read_bytes()
    store.append(STUDY, ceremony(1))
    position = store.position()
    store.path.write_bytes(old)
    with pytest.raises(EvidenceError, match="expected 3 entries, got 2"):
        store.append(STUDY, ceremony(2))
    fresh = LedgerStore(store.path, OWNER, KEY)
    with pytest.raises(EvidenceError, match="at least 3 entries, got 2") as caught:
        fresh.verify(Checkpoint(owner=OWNER, position=position))
    assert caught.value.code == "truncated"


def test_an_exception_rolls_back_everything_of_its_transaction(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    before = store.position()

    def two_and_fail() -> None:
        with store.transaction() as log:
            log.append(STUDY, ceremony(1))
            log.append(STUDY, ceremony(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two_and_fail()
    assert store.position() == before
    store.append(STUDY, ceremony(1))
    assert store.verify().size == before.size + 1


def test_threads_share_one_log(tmp_path: Path) -> None:
    stores = [make_store(tmp_path), make_store(tmp_path)]
    start = stores[0].position().size

    def write(number: int) -> None:
        for k in range(5):
            study = digest("study", number, k)
            stores[number % 2].append(study, PlanApproved(approval=digest(number, k)))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].verify().size == start + 20
    assert stores[0].position() == stores[1].position()


def test_durability_is_that_of_full_synchronous_sqlite_with_a_rollback_journal(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with store._begin("DEFERRED") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (3,)


def test_a_ledger_of_another_owner_key_or_version_is_not_opened(tmp_path: Path) -> None:
    path = make_store(tmp_path).path
    for owner, key in ((OWNER, Ed25519PrivateKey.generate()), ("another-hospital", KEY)):
        with pytest.raises(OperationError, match="belongs to another name or key"):
            LedgerStore(path, owner, key)
    edit(path, "UPDATE meta SET value = 'consilium/ledger/0' WHERE key = 'format'")
    with pytest.raises(OperationError, match="Expected a ledger of format consilium/ledger/1") as caught:
        LedgerStore(path, OWNER, KEY)
    assert caught.value.code == "ledger-format"


def test_a_file_that_is_no_database_or_a_missing_folder_gives_one_sentence_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be read as one" * 50)
    with pytest.raises(OperationError, match=r"notes\.txt is not a readable ledger\. Restore it"):
        LedgerStore(tmp_path / "notes.txt", OWNER, KEY)
    with pytest.raises(OperationError, match=r"cannot be written\. Check its folder"):
        LedgerStore(tmp_path / "missing" / "ledger.sqlite", OWNER, KEY)


def test_a_log_from_a_backup_takes_back_what_it_published_and_nothing_else(tmp_path: Path) -> None:
    whole, old = (LedgerStore(tmp_path / f"{name}.sqlite", OWNER, KEY) for name in ("whole", "old"))
    first = whole.append(STUDY, PlanApproved(approval=digest(1)))
    for epoch in range(1, 4):
        whole.append(STUDY, ceremony(epoch))
    published = whole.entries()
    assert old.complete(published[:1]) == 1
    assert old.entries() == [first]
    altered = published[3].replace(published[3][40:44], b"AAAA")
    with pytest.raises(EvidenceError):
        old.complete([*published[:3], altered])
    assert old.entries() == [first], "nothing of a slice is taken if one entry does not verify"
    assert old.complete(published) == 3
    assert old.complete(published[:2]) == 0
    assert (old.entries(), old.position()) == (published, whole.position())
    forked = LedgerStore(tmp_path / "forked.sqlite", OWNER, KEY)
    forked.append(STUDY, PlanApproved(approval=digest(2)))
    with pytest.raises(OperationError, match="is not the log that was published") as caught:
        forked.complete(published)
    assert caught.value.code == "log-forked"
    assert forked.position().size == 1
