"""Mutated messages: never a crash, a hang or an acceptance. `make fuzz` runs at least 100,000 of them.

Two attackers. One alters bytes on the way: everything is refused. One is a participant that signs what it likes:
what it sends is refused by name, or it is well-formed and a valid statement of its own.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.errors import PeerError
from schemas.wire import Header, parse_header
from tests.schemas.test_vectors import examples
from tests.secure_sum.fuzzing import MUTATIONS, Target, blob_targets, message_targets, mutate, reseal, sign_payload
from tests.secure_sum.world import Round

BLOBS = (
    "public-share",
    "sealed-key",
    "self-test",
    "key",
    "shamir",
    "bulk",
    "contribution",
    "key-sum",
    "bulk-sum",
    "share",
)
MESSAGES = sorted(examples())
COUNTED = {"refused": 0, "well-formed": 0, "unchanged": 0}

mutations = st.lists(
    st.tuples(st.sampled_from(MUTATIONS), st.integers(0, 2**26), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=3,
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["", "00" * 32, "site-00", 2**53, 2**64, -1, 1e400, "\ud800", "9" * 5000, []])
)
fragments = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner)
)


def fuzz(function: Any) -> Any:
    """A quarter of the profile's examples for each of the targets; the profile `fuzz` is the long run."""
    limit = max(1, settings().max_examples // 4)
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=limit, deadline=None, suppress_health_check=checks, database=None)(function)


class Targets(dict[str, Target]):
    """By name; prints nothing of the bytes when an example fails."""

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text("targets")


@pytest.fixture(scope="module")
def targets(certified: Round) -> Targets:
    return Targets(blob_targets(certified) | message_targets())


def outcome(read: Any, data: bytes) -> str:
    """Reads untrusted bytes; anything but success or a named refusal is a crash and fails the test."""
    try:
        read(data)
    except PeerError as error:
        return "refused" if error.peer and error.code and len(str(error)) < 2000 else f"refused unclearly: {error}"
    return "accepted"


def test_every_target_reads_its_honest_bytes(targets: Targets) -> None:
    assert set(targets) == {*BLOBS, "contribution", *MESSAGES}
    for target in targets.values():
        assert outcome(target.read, target.data) == outcome(target.parse, target.data) == "accepted"


@pytest.mark.parametrize("name", [*BLOBS, "contribution", *MESSAGES])
@given(changes=mutations)
@fuzz
def test_nothing_that_was_altered_on_the_way_is_accepted(name: str, targets: Targets, changes: Any) -> None:
    target = targets[name]
    data = mutate(target.data, changes)
    if data == target.data:
        COUNTED["unchanged"] += 1
        return
    assert outcome(target.read, data) == "refused"
    COUNTED["refused"] += 1


@pytest.mark.parametrize("name", BLOBS)
@given(changes=mutations)
@fuzz
def test_a_blob_that_a_participant_forged_is_refused_or_well_formed(name: str, targets: Targets, changes: Any) -> None:
    target = targets[name]
    data = reseal(mutate(target.data, changes), target.key)
    if outcome(target.parse, data) == "refused":
        COUNTED["refused"] += 1
        return
    # Accepted: length, header and form are the honest ones; only residues or sealed bytes may differ.
    assert len(data) == len(target.data)
    assert parse_header(data, "site-01")[0] == parse_header(target.data, "site-01")[0]
    COUNTED["well-formed"] += 1


@pytest.mark.parametrize("name", MESSAGES)
@given(changes=mutations)
@fuzz
def test_bytes_that_a_participant_signed_are_refused_or_a_statement(name: str, targets: Targets, changes: Any) -> None:
    payload = base64.b64decode(json.loads(targets[name].data)["payload"])
    check_signed(targets[name], mutate(payload, changes))


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
@fuzz
def test_json_that_a_participant_signed_is_refused_or_a_statement(name: str, targets: Targets, data: Any) -> None:
    statement = json.loads(base64.b64decode(json.loads(targets[name].data)["payload"]))
    holder: Any = statement["predicate"] if data.draw(st.integers(0, 3)) else statement
    for _ in range(data.draw(st.integers(0, 3))):
        inner = [
            value
            for value in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(value, dict | list)
        ]
        if not inner:
            break
        holder = data.draw(st.sampled_from(inner))
    change_json(holder, data)
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=data.draw(st.booleans()))
    check_signed(targets[name], text.encode("utf-8", errors="surrogatepass"))


def change_json(holder: Any, data: Any) -> None:
    fragment = data.draw(fragments)
    if isinstance(holder, list):
        place = data.draw(st.integers(0, len(holder)))
        holder[place : place + data.draw(st.integers(0, 1))] = [fragment]
        return
    action = data.draw(st.sampled_from(["set", "add", "drop"]))
    if action == "add" or not holder:
        holder[data.draw(st.text(max_size=8))] = fragment
    elif action == "drop":
        del holder[data.draw(st.sampled_from(sorted(holder)))]
    else:
        holder[data.draw(st.sampled_from(sorted(holder)))] = fragment


def check_signed(target: Target, payload: bytes) -> None:
    data = sign_payload(payload)
    if outcome(target.parse, data) == "refused":
        COUNTED["refused"] += 1
        return
    # Accepted: then these are the only bytes of that statement.
    assert payload.startswith(b'{"_type":"https://in-toto.io/Statement/v1","predicate":')
    COUNTED["well-formed"] += 1


@pytest.mark.parametrize("depth", [10, 1_000, 100_000])
def test_deeply_nested_json_is_refused(depth: int, targets: Targets) -> None:
    nested = b'{"_type":' + b"[" * depth + b"]" * depth + b"}"
    assert outcome(targets["Record"].parse, sign_payload(nested)) == "refused"
    assert outcome(targets["Record"].parse, b'{"payload":' + b"[" * depth + b"]" * depth + b"}") == "refused"


def test_json_that_is_not_canonical_or_too_large_is_refused(targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    data = targets["Record"].data
    spaced = json.dumps(json.loads(data), sort_keys=True).encode()
    with pytest.raises(PeerError, match="general: a Record from general is not in canonical form"):
        targets["Record"].read(spaced)
    monkeypatch.setattr("schemas.canonical.MAX_JSON_BYTES", len(data) - 1)
    with pytest.raises(PeerError, match=f"is larger than {len(data) - 1} bytes"):
        targets["Record"].read(data + b" ")


@given(st.binary(max_size=400) | st.binary(min_size=120, max_size=400).map(lambda tail: b"CSUM\x01\x00\x06\x00" + tail))
@fuzz
def test_any_bytes_are_a_header_or_are_refused(data: bytes) -> None:
    read: list[tuple[Header, int]] = []
    if outcome(lambda given: read.append(parse_header(given, "site-01")), data) == "refused":
        return
    header, size = read[0]
    assert header.encode() == data[:size]
