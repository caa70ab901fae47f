"""The key ceremony: the honest path, its oracle (TenSEAL with the summed key), and a named refusal per fault."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from schemas.canonical import sha256_hex
from schemas.envelope import envelope_digest, open_envelope, sign_envelope
from schemas.errors import OperationError, PeerError, PlanError
from schemas.messages import KeyOpen, NonceCommit, NonceOpen, TranscriptSignature
from schemas.wire import Kind, write_blob
from tasks.secure_sum import ckks
from tasks.secure_sum import transcript as rules
from tasks.secure_sum.ceremony import PHASES, CeremonyParty, derive_public_epoch, derive_transcript
from tasks.secure_sum.epoch import EpochSecrets, holder_points
from tasks.secure_sum.modular import prime_field
from tasks.secure_sum.parameters import derive_parameters
from tasks.secure_sum.shamir import combine_shares
from tasks.secure_sum.transcript import own_tests
from tests.secure_sum.plans import identities, make_plan
from tests.secure_sum.world import Ceremony, hold_ceremony, shared_ceremony, shared_public

HOLDERS = [f"site-{i:02d}" for i in range(5)]


def collective_secret(ceremony: Ceremony, holders: list[str]) -> np.ndarray[Any, Any]:
    """The secret that nobody holds, rebuilt from t shares: tests only."""
    points = holder_points(ceremony.plan)
    rows = []
    for index, prime in enumerate(derive_parameters(ceremony.plan).data_primes):
        field = prime_field(prime)
        shares = {points[h]: ceremony.secrets[h].keys.sigma[index].view(np.int64) for h in holders}
        rows.append(field.canonical(combine_shares(field, shares)))
    return np.stack(rows)


def resign(ceremony: Ceremony, phase: str, name: str, message: Any) -> Ceremony:
    """A copy in which `name` signed another message in one phase."""
    other = copy.copy(ceremony)
    other.envelopes = dict(ceremony.envelopes)
    key = identities(5)[name].signing
    other.envelopes[phase, name] = sign_envelope(message, ceremony.plan.study, key)
    return other


def predicate(ceremony: Ceremony, phase: str, name: str, model: Any) -> Any:
    key = ceremony.plan.site(name).identity_key
    return open_envelope(model, ceremony.envelopes[phase, name], ceremony.plan.study, key, name)


def test_everybody_derives_the_same_public_epoch() -> None:
    ceremony = shared_ceremony(5)
    public = shared_public(ceremony)
    assert {s.sid_star for s in ceremony.secrets.values()} == {public.sid_star}
    assert {s.transcript for s in ceremony.secrets.values()} == {public.transcript}
    assert set(public.signing_keys) == set(HOLDERS)


def test_every_t_subset_holds_the_same_secret_and_t_minus_1_hold_none() -> None:
    ceremony = shared_ceremony(5)
    first = collective_secret(ceremony, HOLDERS[:3])
    assert (collective_secret(ceremony, HOLDERS[2:]) == first).all()
    p = derive_parameters(ceremony.plan)
    small = ckks.lift(p, ckks.inverse(p, first))
    assert max(abs(v) for v in small) <= 5  # a sum of five ternary secrets
    assert not (collective_secret(ceremony, HOLDERS[:2]) == first).all()


def test_tenseal_decrypts_with_the_summed_key_what_was_encrypted_to_the_collective_key() -> None:
    import tenseal.sealapi as seal

    from tasks.secure_sum.ckks_seal import _MemoryFile, encode_ciphertext, seal_half, seal_parameters

    ceremony = shared_ceremony(5)
    p = derive_parameters(ceremony.plan)
    zero = seal_half(p, shared_public(ceremony)).encrypt_zero()
    message = np.arange(-1024, 1024, dtype=np.int64) % 421 - 210
    body = ckks.add(p, zero[0], ckks.encode_key(p, message))
    context = seal.SEALContext(seal_parameters(p), True, seal.SEC_LEVEL_TYPE.TC128)
    secret = collective_secret(ceremony, HOLDERS[1:4])
    # A SEAL secret key carries the special prime as well; the secret is small, so its residues there follow.
    small = np.array(ckks.lift(p, ckks.inverse(p, secret)), dtype=np.int64)
    full = ckks.transform(p, small, ckks.ring_primes(p))
    ciphertext, plain = seal.Ciphertext(context), seal.Plaintext()
    with _MemoryFile() as file:
        file.write(encode_ciphertext(np.stack([body, zero[1]]), context.first_parms_id()))
        ciphertext.load(context, file.path)
    key = seal.SecretKey()
    with _MemoryFile() as file:
        file.write(_encode_secret(full, context.key_parms_id()))
        key.load(context, file.path)
    seal.Decryptor(context, key).decrypt(ciphertext, plain)
    element = plain.dyn_array().at
    rows = np.fromiter(map(element, range(3 * p.ring_degree)), dtype=np.uint64).reshape(3, p.ring_degree)
    opened = ckks.round_key(p, ckks.lift(p, ckks.inverse(p, rows)[:, : p.bulk_degree]))
    assert opened is not None
    assert (opened == message).all()


def _encode_secret(rows: Any, parms_id: list[int]) -> bytes:
    import struct

    def header(size: int) -> bytes:
        return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 0, 0, 16 + size)

    array = struct.pack("<Q", rows.size) + np.ascontiguousarray(rows, dtype="<u8").tobytes()
    body = struct.pack("<4QQd", *parms_id, rows.size, 1.0) + header(len(array)) + array
    return header(len(body)) + body


def test_secrets_survive_their_encoding_and_show_nothing() -> None:
    secrets = shared_ceremony(5).secrets["site-02"]
    again = EpochSecrets.from_bytes(secrets.to_bytes())
    assert again.to_bytes() == secrets.to_bytes()
    assert (again.keys.sigma == secrets.keys.sigma).all()
    for hidden in (secrets.keys.noise, secrets.signing_key.private_bytes_raw(), secrets.hpke_key.to_bytes()):
        assert hidden.hex() not in repr(secrets)
    with pytest.raises(OperationError, match="Expected the secrets of one epoch"):
        EpochSecrets.from_bytes(secrets.to_bytes()[:-9])


def test_a_second_ceremony_keeps_no_key_of_the_first() -> None:
    first, second = shared_ceremony(5), hold_ceremony(shared_ceremony(5).plan, 2)
    a, b = first.secrets["site-00"], second.secrets["site-00"]
    assert a.sid_star != b.sid_star
    assert a.keys.noise != b.keys.noise
    assert not set(a.keys.sent.values()) & set(b.keys.sent.values())
    assert a.hpke_key.public_hex != b.hpke_key.public_hex
    assert second.public().signing_keys["site-00"] != shared_public(first).signing_keys["site-00"]


def test_a_message_that_is_missing_is_named() -> None:
    ceremony = shared_ceremony(5)
    for phase in (*PHASES, "transcript"):
        kept = {key: data for key, data in ceremony.envelopes.items() if key != (phase, "site-03")}
        with pytest.raises(PeerError, match="site-03: a ceremony message is missing"):
            derive_public_epoch(ceremony.plan, 1, kept, ceremony.blobs)


def test_every_altered_public_blob_is_named() -> None:
    ceremony = shared_ceremony(5)
    for item, name in ceremony.blobs:
        blobs = dict(ceremony.blobs)
        altered = bytearray(blobs[item, name])
        altered[len(altered) // 2] ^= 1
        blobs[item, name] = bytes(altered)
        with pytest.raises(PeerError, match=f"{name}: a ceremony blob is not the one"):
            derive_public_epoch(ceremony.plan, 1, ceremony.envelopes, blobs)


def test_another_epoch_does_not_accept_the_messages() -> None:
    ceremony = shared_ceremony(5)
    with pytest.raises(PeerError, match="another sender or session"):
        derive_public_epoch(ceremony.plan, 2, ceremony.envelopes, ceremony.blobs)


def test_a_nonce_that_is_not_the_committed_one_is_named() -> None:
    ceremony = shared_ceremony(5)
    message = predicate(ceremony, "nonce-open", "site-04", NonceOpen).model_copy(update={"nonce": "77" * 32})
    with pytest.raises(PeerError, match="site-04: the opened nonce is not the committed one"):
        resign(ceremony, "nonce-open", "site-04", message).public()


def test_a_holder_that_reuses_a_key_is_named() -> None:
    ceremony = shared_ceremony(5)
    commit = predicate(ceremony, "nonce-commit", "site-01", NonceCommit)
    for stale in (
        {"epoch_signing_key": ceremony.plan.site("site-01").identity_key},
        {"epoch_signing_key": predicate(ceremony, "nonce-commit", "site-00", NonceCommit).epoch_signing_key},
        {"epoch_hpke_key": ceremony.plan.site("site-01").hpke_key},
    ):
        with pytest.raises(PeerError, match="site-01: an epoch key is not fresh"):
            resign(ceremony, "nonce-commit", "site-01", commit.model_copy(update=stale)).public()


def test_a_holder_that_deals_to_fewer_is_named() -> None:
    ceremony = shared_ceremony(5)
    message = predicate(ceremony, "key-open", "site-02", KeyOpen)
    shorter = message.model_copy(update={"sealed": message.sealed[1:]})
    with pytest.raises(PeerError, match="site-02: expected one sealed sharing"):
        resign(ceremony, "key-open", "site-02", shorter).public()


def test_a_forked_transcript_is_named() -> None:
    ceremony = shared_ceremony(5)
    message = predicate(ceremony, "transcript", "site-01", TranscriptSignature)
    forked = message.model_copy(update={"transcript": "00" * 32})
    with pytest.raises(PeerError, match="site-01: it signed another transcript"):
        resign(ceremony, "transcript", "site-01", forked).public()


def test_the_transcript_binds_every_message() -> None:
    ceremony = shared_ceremony(5)
    digests = {k: envelope_digest(v) for k, v in ceremony.envelopes.items() if k[0] != "transcript"}
    reference = derive_transcript(ceremony.plan, 1, digests)
    for key in digests:
        assert derive_transcript(ceremony.plan, 1, digests | {key: "00" * 32}) != reference
    with pytest.raises(PeerError, match="missing"):
        derive_transcript(ceremony.plan, 1, dict(list(digests.items())[1:]))


def run_until_key_open(sites: int = 4) -> tuple[Any, dict[str, CeremonyParty], dict[str, Any]]:
    plan = make_plan(sites)
    people = identities(sites)
    parties = {s.name: CeremonyParty.begin(plan, 1, s.name, people[s.name].signing) for s in plan.key_holders}
    commits = {n: p.nonce_commit() for n, p in parties.items()}
    opens = {n: p.nonce_open(commits) for n, p in parties.items()}
    key_commits = {n: p.key_commit(opens) for n, p in parties.items()}
    return plan, parties, {n: p.key_open(key_commits) for n, p in parties.items()}


def inputs(parts: dict[str, Any], me: str) -> tuple[dict[str, Any], dict[str, bytes], dict[str, bytes]]:
    return (
        {n: k.message for n, k in parts.items()},
        {n: k.public_share for n, k in parts.items()},
        {n: k.sealed[me] for n, k in parts.items() if n != me},
    )


def test_a_sealed_share_for_somebody_else_or_altered_is_named() -> None:
    _, parties, parts = run_until_key_open()
    messages, shares, sealed = inputs(parts, "site-00")
    swapped = sealed | {"site-02": parts["site-02"].sealed["site-01"]}
    with pytest.raises(PeerError, match="site-02: a ceremony blob is not the one that its message names"):
        parties["site-00"].self_test(messages, shares, swapped)


def test_a_wrong_dealt_share_fails_the_self_test_of_its_active_sets() -> None:
    plan, parties, parts = run_until_key_open()
    tests = {n: p.self_test(*inputs(parts, n)) for n, p in parties.items()}
    # site-01 uses a share that is off by one residue in one place.
    wrong = parties["site-01"]._keys.sigma.copy()
    wrong[0, 17] ^= np.uint64(1)
    object.__setattr__(parties["site-01"]._keys, "sigma", wrong)
    blobs = tuple(parties["site-01"]._test_share(number) for number in own_tests(plan, "site-01"))
    message = tests["site-01"].message.model_copy(update={"shares": tuple(sha256_hex(b) for b in blobs)})
    messages = {n: t.message for n, t in tests.items()} | {"site-01": message}
    shares = {n: t.shares for n, t in tests.items()} | {"site-01": blobs}
    with pytest.raises(PeerError, match="site-00,site-01: the self-test of this active set does not open"):
        parties["site-00"].finish(messages, shares, {})


def test_phases_out_of_order_and_altered_own_messages_are_refused() -> None:
    plan = make_plan(4)
    people = identities(4)
    parties = {s.name: CeremonyParty.begin(plan, 1, s.name, people[s.name].signing) for s in plan.key_holders}
    commits = {n: p.nonce_commit() for n, p in parties.items()}
    mine = commits["site-00"].model_copy(update={"commitment": "00" * 32})
    with pytest.raises(PeerError, match="own message came back altered"):
        parties["site-00"].nonce_open(commits | {"site-00": mine})
    parties["site-00"].nonce_open(commits)
    with pytest.raises(PeerError, match="twice or out of order"):
        parties["site-00"].nonce_open(commits)


def test_only_key_holders_with_their_pinned_key_take_part() -> None:
    plan = make_plan(5)
    people = identities(5)
    with pytest.raises(PlanError, match="holds no key"):
        CeremonyParty.begin(plan, 1, "coordinator", people["coordinator"].signing)
    with pytest.raises(PlanError, match="not the one in the plan"):
        CeremonyParty.begin(plan, 1, "site-00", people["site-01"].signing)


def test_a_malformed_hpke_key_stops_the_ceremony_by_name() -> None:
    plan = make_plan(4)
    people = identities(4)
    parties = {s.name: CeremonyParty.begin(plan, 1, s.name, people[s.name].signing) for s in plan.key_holders}
    commits = {n: p.nonce_commit() for n, p in parties.items()}
    broken = commits["site-03"].model_copy(update={"epoch_hpke_key": "ff" * 1216})
    with pytest.raises(PeerError, match="site-03: its epoch HPKE key is malformed"):
        parties["site-00"].nonce_open(commits | {"site-03": broken})
    assert parties["site-00"]._phases == []


def test_a_ceremony_blob_that_is_missing_is_named_and_may_still_arrive() -> None:
    plan, parties, parts = run_until_key_open()
    messages, shares, sealed = inputs(parts, "site-00")
    party = parties["site-00"]
    for name in ("site-01", "site-03"):
        with pytest.raises(PeerError, match=f"{name}: a ceremony blob is missing"):
            party.self_test(messages, shares, {n: b for n, b in sealed.items() if n != name})
        with pytest.raises(PeerError, match=f"{name}: a ceremony blob is missing"):
            party.self_test(messages, {n: b for n, b in shares.items() if n != name}, sealed)
        assert len(party._phases) == 3
    tests = {n: p.self_test(*inputs(parts, n)) for n, p in parties.items()}
    published = {n: t.message for n, t in tests.items()}
    short = {n: t.shares for n, t in tests.items()} | {"site-02": tests["site-02"].shares[1:]}
    with pytest.raises(PeerError, match="site-02: expected one self-test share per active set it is in"):
        party.finish(published, short, {})
    assert len(party._phases) == 4
    assert own_tests(plan, "site-02")


def test_a_dealt_share_that_does_not_open_is_named() -> None:
    _, parties, parts = run_until_key_open()
    messages, shares, sealed = inputs(parts, "site-00")
    plan, name = parties["site-00"]._plan, "site-03"
    header = rules.ceremony_header(plan, parties["site-00"]._sid, Kind.SEALED_KEY, name, "site-00")
    size = len(sealed[name]) - len(header.encode()) - 96
    junk = write_blob(header, bytes(size), identities(4)[name].signing)
    listed = dict(messages[name].sealed) | {"site-00": sha256_hex(junk)}
    dealt = messages | {name: messages[name].model_copy(update={"sealed": tuple(sorted(listed.items()))})}
    with pytest.raises(PeerError, match="site-03: the share it dealt to this holder does not open"):
        parties["site-00"].self_test(dealt, shares, sealed | {name: junk})
    assert len(parties["site-00"]._phases) == 3
    assert parties["site-00"].self_test(messages, shares, sealed).shares
