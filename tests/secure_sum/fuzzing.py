"""What the fuzz test mutates: every kind of blob and every signed message, each with its real reader."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.canonical import sha256_hex
from schemas.envelope import (
    PAYLOAD_TYPE,
    Envelope,
    Signature,
    _pae,
    canonical_bytes,
    open_envelope,
    public_hex,
    sign_envelope,
)
from schemas.messages import KeyOpen
from schemas.wire import Kind, read_blob, sign_check
from tasks.secure_sum import ckks
from tasks.secure_sum import transcript as rules
from tasks.secure_sum.bulk import open_bulk, verify_bulk
from tasks.secure_sum.ceremony import SEALED_OVERHEAD
from tasks.secure_sum.opening import open_key, verify_share
from tasks.secure_sum.record import (
    open_shamir_share,
    read_key_sum,
    verify_contribution,
    verify_key_ciphertext,
)
from tests.schemas.test_vectors import KEY, STUDY, examples
from tests.secure_sum.rounds import SITES, signing
from tests.secure_sum.world import Round

SITE, HOLDER = "site-01", "site-00"
TRAILER = 96

Mutation = tuple[str, int, bytes]


@dataclass(frozen=True)
class Target:
    """Honest bytes, their reader, and the key of whoever sends them.

    Attributes:
        read: Refuses everything but `data` with a named error.
        parse: Like `read` but without the digests that signed messages state, as if the sender had stated others.
        key: The sender's; None for sums.
    """

    data: bytes
    read: Callable[[bytes], object]
    parse: Callable[[bytes], object]
    key: Ed25519PrivateKey | None


def mutate(data: bytes, mutations: list[Mutation]) -> bytes:
    """Applies byte-level mutations; places favour header and trailer, where the structure is."""
    out = bytearray(data)
    for kind, number, material in mutations:
        span = (min(len(out), 260), min(len(out), TRAILER), len(out), len(out))[number % 4]
        place = number // 4 % (span + 1) + (len(out) - span if number % 4 == 1 else 0)
        size = 1 + number % 9
        if kind == "flip" and place < len(out):
            out[place] ^= 1 << material[0] % 8
        elif kind == "write":
            out[place : place + len(material)] = material
        elif kind == "insert":
            out[place:place] = material
        elif kind == "delete":
            del out[place : place + size]
        elif kind == "cut":
            del out[place:]
        elif kind == "repeat":
            out[place:place] = out[max(0, place - size) : place]
        elif kind == "fill":
            out[place : place + size] = bytes([material[0]]) * len(out[place : place + size])
    return bytes(out)


MUTATIONS = ("flip", "write", "insert", "delete", "cut", "repeat", "fill")


def reseal(data: bytes, key: Ed25519PrivateKey | None) -> bytes:
    """Makes check and signature fit a mutated blob again, as a sender that misbehaves would."""
    body = data[: -TRAILER if key is not None else -32]
    check = hashlib.sha256(body).digest()
    kind = Kind(data[6]) if len(data) > 6 and data[6] in set(Kind) else Kind.SHARE
    if key is None:
        return body + check
    return body + check + sign_check(kind if kind not in (Kind.KEY_SUM, Kind.BULK_SUM) else Kind.SHARE, check, key)


def sign_payload(payload: bytes, key: Ed25519PrivateKey = KEY) -> bytes:
    """An envelope whose signature is right, whatever the payload is."""
    signature = Signature(keyid=public_hex(key), sig=base64.b64encode(key.sign(_pae(payload))).decode())
    encoded = base64.b64encode(payload).decode()
    return canonical_bytes(Envelope(payload=encoded, payloadType=PAYLOAD_TYPE, signatures=(signature,)))


def message_targets() -> dict[str, Target]:
    """Every signed statement that exists."""

    def target(value: Any) -> Target:
        data = sign_envelope(value, STUDY, KEY)

        def read(given: bytes) -> object:
            return open_envelope(type(value), given, STUDY, public_hex(KEY), "general")

        return Target(data, read, read, KEY)

    return {name: target(value) for name, value in examples().items()}


def blob_targets(round_: Round) -> dict[str, Target]:
    """Every kind of blob, from a real ceremony and a real round."""
    return _ceremony_targets(round_) | _contribution_targets(round_) | _opening_targets(round_)


def _ceremony_targets(round_: Round) -> dict[str, Target]:
    ceremony, plan, sid = round_.ceremony, round_.plan, round_.context.public.sid
    p, key = round_.context.parameters, round_.plan.site(SITE).identity_key

    def target(kind: Kind, data: bytes, body_bytes: int, rows: Any, **place: Any) -> Target:
        header = rules.ceremony_header(plan, sid, kind, SITE, **place)

        def parse(given: bytes) -> object:
            body = read_blob(given, header, body_bytes, key, SITE)
            return rules.unpack_rows(body, *rows, SITE) if rows else bytes(body)

        def read(given: bytes) -> object:
            parse(given)
            return rules.require_blob({SITE: given}, SITE, sha256_hex(data))

        return Target(data, read, parse, signing(SITE))

    ring, data_rows = (ckks.ring_primes(p), p.ring_degree), (p.data_primes, p.bulk_degree)
    sealed = rules.packed_size(p.data_primes, p.ring_degree) + 32 + SEALED_OVERHEAD
    number = rules.own_tests(plan, SITE)[0] + 1
    opened = open_envelope(KeyOpen, ceremony.envelopes["key-open", SITE], plan.study, key, SITE)
    assert sha256_hex(ceremony.sealed[SITE, HOLDER]) == dict(opened.sealed)[HOLDER]
    return {
        "public-share": target(Kind.PUBLIC_SHARE, ceremony.blobs["public-share", SITE], rules.packed_size(*ring), ring),
        "sealed-key": target(Kind.SEALED_KEY, ceremony.sealed[SITE, HOLDER], sealed, None, recipient=HOLDER),
        "self-test": target(
            Kind.SELF_TEST, ceremony.blobs["self-test-1", SITE], rules.packed_size(*data_rows), data_rows, number=number
        ),
    }


def _contribution_targets(round_: Round) -> dict[str, Target]:
    context, message = round_.context, round_.opened()[SITE]
    parts, secrets = round_.parts[SITE], round_.ceremony.secrets[HOLDER]

    def stating(given: bytes, item: str) -> Any:
        digest = sha256_hex(given)
        shamir = tuple((h, digest if h == HOLDER else d) for h, d in message.shamir)
        return message.model_copy(update={"key": {"key_ciphertext": digest}, "shamir": {"shamir": shamir}}[item])

    def with_root(given: bytes) -> Any:
        return message.model_copy(update={"bulk_root": given[-TRAILER:-64].hex()})

    return {
        "key": Target(
            parts.key_ciphertext,
            lambda given: verify_key_ciphertext(context, message, given),
            lambda given: verify_key_ciphertext(context, stating(given, "key"), given),
            signing(SITE),
        ),
        "shamir": Target(
            parts.shamir[HOLDER],
            lambda given: open_shamir_share(secrets, context, message, given),
            lambda given: open_shamir_share(secrets, context, stating(given, "shamir"), given),
            signing(SITE),
        ),
        "bulk": Target(
            round_.bulk(SITE).read_bytes(),
            lambda given: verify_bulk(context, message, given),
            lambda given: verify_bulk(context, with_root(given), given),
            signing(SITE),
        ),
        "contribution": Target(
            round_.envelopes[SITE],
            lambda given: verify_contribution(context, given, SITE),
            lambda given: verify_contribution(context, given, SITE),
            signing(SITE),
        ),
    }


def _opening_targets(round_: Round) -> dict[str, Target]:
    context, record, digest = round_.context, round_.record, round_.record_digest
    assert record is not None
    request = round_.request(tuple(SITES[:3]))
    shares = {holder: round_.share(holder, request) for holder in request.active_set}
    key = open_key(context, record, digest, request, round_.key_sum, shares)
    bulk_sum = round_.add().read_bytes()

    def other_record(given: bytes) -> Any:
        return record.model_copy(update={"key_sum": sha256_hex(given)})

    def read_share(given: bytes) -> object:
        return open_key(context, record, digest, request, round_.key_sum, shares | {SITE: given})

    return {
        "key-sum": Target(
            round_.key_sum,
            lambda given: read_key_sum(context, record, given),
            lambda given: read_key_sum(context, other_record(given), given),
            None,
        ),
        "bulk-sum": Target(
            bulk_sum,
            lambda given: list(open_bulk(context, key, given, 4, sha256_hex(bulk_sum))),
            lambda given: list(open_bulk(context, key, given, 4)),
            None,
        ),
        "share": Target(
            shares[SITE],
            read_share,
            lambda given: verify_share(context, digest, request, SITE, given),
            round_.ceremony.secrets[SITE].signing_key,
        ),
    }
