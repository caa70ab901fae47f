"""Who runs a consortium is decided by a lock of the kernel's, never by the number in a file that a kill left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from infra.processes import WorkdirLock
from schemas.errors import OperationError
from tests.consortium.__main__ import down, up
from tests.consortium.parties import Place


def test_down_after_a_kill_signals_nobody_who_has_the_number_now(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.state.write_text(json.dumps({"process": os.getpid()}))
    with pytest.raises(OperationError, match="No consortium runs from this folder"):
        down(place)


def test_up_is_refused_while_a_supervisor_holds_the_folder_and_leaves_its_state(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.state.write_text("{}")
    with WorkdirLock(tmp_path), pytest.raises(OperationError, match="runs already"):
        up(place, "folder", 2)
    assert place.state.is_file()
