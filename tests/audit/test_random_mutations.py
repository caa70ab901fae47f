"""Whatever is changed at random in an export, a check fails, or the change takes away only what nobody needs.

The coordinator signs a new manifest over every change, so C02 never helps; and it could write anew what an export
derives, so C30 and C31 only count where the change is in their files. Exempt, because the change proves nothing wrong:

- `manifest.json`: it is signed anew over any change. C02 finds a change by anybody else (`test_finished_study.py`).
- One removed signature of those that a quorum spares (`SPARE`): a witness, or that a holder checked its shares. As long
  as enough of them are there the claim stands; fewer witnesses than Q fail (`test_eventful_study.py`).
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from schemas.canonical import canonical_bytes
from tasks.audit.context import AuditContext
from tasks.audit.evidence import EvidenceFolder
from tasks.audit.keys import read_public_keys
from tasks.audit.names import CRATE, MANIFEST, parse_name, proofs_owner
from tasks.audit.registry import run_check
from tasks.audit.verify import CHECKS
from tests.audit.tampering import Forger
from tests.conftest import FinishedStudy

SPARE = {"witness", "shares-checked"}
ACCOUNTANTS = {"C27", "C28"}  # Seconds each; they read only what C24 to C26 read.
ACTIONS = ("flip", "cut", "append", "delete", "rename", "swap", "overwrite", "edit")


@pytest.fixture(scope="module")
def honest(finished_study: FinishedStudy) -> AuditContext:
    return AuditContext(EvidenceFolder(finished_study.evidence), read_public_keys(finished_study.keys))


def failing_check(forger: Forger) -> str | None:
    """Returns the first check that fails, or None."""
    derived = {"C30", "C31"} if not any(is_derived(name) for name in forger.touched) else set()
    context = forger.context()
    for check in CHECKS:
        if check.number not in ACCOUNTANTS | derived and run_check(check, context).status == "failed":
            return check.number
    return None


def is_derived(name: str) -> bool:
    return name == CRATE or proofs_owner(name) is not None


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path]


def other(value: Any) -> Any:
    """Returns another value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str) and value:
        return ("0" if value[0] != "0" else "1") + value[1:]
    return "0"


def change(document: Any, data: st.DataObject) -> Any:
    """Changes one leaf of a JSON document."""
    path = data.draw(st.sampled_from(leaves(document)), label="field")
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = other(inner[path[-1]])
    return document


def edited(content: bytes, data: st.DataObject) -> bytes | None:
    """Changes one field of a file of JSON, inside a signed payload or beside it, and encodes it canonically again."""
    lines = content.split(b"\n")
    number = data.draw(st.integers(0, max(0, len(lines) - 2)), label="line")
    try:
        document = json.loads(lines[number])
    except ValueError:
        return None
    if "payload" in document and data.draw(st.booleans(), label="inside the payload"):
        payload = change(json.loads(base64.b64decode(document["payload"])), data)
        document["payload"] = base64.b64encode(canonical_bytes(payload)).decode()
    else:
        document = change(document, data)
    lines[number] = canonical_bytes(document)
    return b"\n".join(lines)


def mutate(forger: Forger, data: st.DataObject) -> tuple[str, str]:
    """Does one random thing to one random file of a random kind."""
    kinds: dict[str, list[str]] = {}
    for name in forger.names(""):
        item = parse_name(name)
        if name != MANIFEST:
            kinds.setdefault(item.kind if item is not None else "derived", []).append(name)
    kind = data.draw(st.sampled_from(sorted(kinds)), label="kind")
    name = data.draw(st.sampled_from(kinds[kind]), label="file")
    action = data.draw(st.sampled_from(ACTIONS), label="action")
    content = forger.read(name)
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    if action == "flip":
        bit = data.draw(st.integers(0, 7), label="bit")
        forger.write(name, content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    elif action == "cut":
        forger.write(name, content[:place])
    elif action == "append":
        forger.write(name, content + data.draw(st.binary(min_size=1, max_size=9), label="more"))
    elif action == "delete":
        forger.remove(name)
    elif action == "rename":
        forger.remove(name)
        forger.write(name + data.draw(st.sampled_from([".old", "x", ".json"]), label="suffix"), content)
    elif action in ("swap", "overwrite"):
        second = data.draw(st.sampled_from(forger.names("")), label="with")
        if second != MANIFEST:
            forger.write(name, forger.read(second))
            if action == "swap":
                forger.write(second, content)
    else:
        changed = edited(content, data)
        forger.write(name, changed if changed is not None else content[::-1])
    return action, name


def is_irrelevant(forger: Forger, action: str, name: str) -> bool:
    item = parse_name(name)
    if action == "delete" and item is not None and item.kind in SPARE:
        return True
    original = forger.honest.evidence
    return all(
        original.exists(path) and (forger.folder / path).exists() and original.read(path) == forger.read(path)
        for path in forger.touched
    )


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_random_change_is_found_or_takes_away_only_what_a_quorum_spares(
    honest: AuditContext, finished_study: FinishedStudy, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(dir=finished_study.evidence.parent) as folder:
        forger = Forger(honest, finished_study.prepared, Path(folder) / "evidence")
        action, name = mutate(forger, data)
        irrelevant = is_irrelevant(forger, action, name)
        forger.seal()
        found = failing_check(forger)
        event(f"{action}: {found}")
        assert found is not None or irrelevant, f"{action} {name}"


def test_a_removed_file_of_every_kind_is_missed_but_for_what_a_quorum_spares(
    honest: AuditContext, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    kinds: dict[str, str] = {}
    for name in honest.evidence.paths:
        item = parse_name(name)
        kinds[item.kind if item is not None else name.split("/")[0]] = name
    kinds.pop(MANIFEST)
    unnoticed = set()
    for kind, name in kinds.items():
        forger = Forger(honest, finished_study.prepared, tmp_path / kind)
        forger.remove(name)
        forger.seal()
        if failing_check(forger) is None:
            unnoticed.add(kind)
    assert unnoticed == SPARE
