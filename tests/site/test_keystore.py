"""One record per round, one sid per epoch, epochs only forward; and nothing of it readable by others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from schemas.errors import OperationError, PeerError
from site_agents.keystore import Keystore

STUDY = "ab" * 32


@pytest.fixture
def keystore(tmp_path: Path) -> Keystore:
    return Keystore(tmp_path / "memory", STUDY, rounds_per_epoch=2)


def test_a_second_record_for_a_round_is_refused_and_the_first_stays(keystore: Keystore) -> None:
    keystore.register_record(1, 1, "aa" * 32)
    keystore.register_record(1, 1, "aa" * 32)
    with pytest.raises(PeerError, match="second record was proposed for round 1"):
        keystore.register_record(1, 1, "bb" * 32)
    assert keystore.registered_record(1, 1) == "aa" * 32
    assert keystore.registered_record(1, 2) is None


def test_an_epoch_signs_no_more_records_than_its_noise_budget_allows(keystore: Keystore) -> None:
    keystore.register_record(1, 1, "aa" * 32)
    keystore.register_record(1, 2, "bb" * 32)
    with pytest.raises(PeerError, match="has signed its last record"):
        keystore.register_record(1, 3, "cc" * 32)
    keystore.register_record(1, 2, "bb" * 32)
    keystore.register_record(2, 3, "cc" * 32)
    assert keystore.registered_record(1, 3) is None


def test_an_epoch_has_one_sid_and_epochs_only_increase(keystore: Keystore) -> None:
    keystore.accept_epoch(1, "01" * 32)
    keystore.accept_epoch(1, "01" * 32)
    with pytest.raises(PeerError, match="epoch 1 was opened with another sid"):
        keystore.accept_epoch(1, "02" * 32)
    keystore.accept_epoch(2, "03" * 32)
    with pytest.raises(PeerError, match="epoch 1 comes after epoch 2"):
        keystore.accept_epoch(1, "01" * 32)


def test_secrets_are_drawn_once_per_epoch_even_after_a_restart(keystore: Keystore, tmp_path: Path) -> None:
    keystore.accept_epoch(1, "01" * 32)
    keystore.begin_ceremony(1)
    restarted = Keystore(tmp_path / "memory", STUDY, rounds_per_epoch=2)
    with pytest.raises(OperationError, match="broke off here"):
        restarted.begin_ceremony(1)


def test_a_new_epoch_erases_the_secrets_of_the_old_one(keystore: Keystore) -> None:
    keystore.save_secrets(1, "01" * 32, b"old")
    assert keystore.load_secrets(1, "01" * 32) == b"old"
    keystore.save_secrets(2, "02" * 32, b"new")
    with pytest.raises(OperationError, match=re.escape("holds no secrets of epoch 1")) as caught:
        keystore.load_secrets(1, "01" * 32)
    assert caught.value.code == "epoch-lost"
    assert keystore.load_secrets(2, "02" * 32) == b"new"


def test_a_memory_folder_that_others_can_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(OperationError, match="readable by others"):
        Keystore(folder, STUDY, rounds_per_epoch=2)
