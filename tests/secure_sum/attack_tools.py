"""What attackers do with public bytes and their own keys; used by the attack regressions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from schemas.envelope import public_hex
from schemas.wire import Kind, read_blob, write_blob
from tasks.secure_sum import bulk, ckks
from tasks.secure_sum import contribute as contribute_code
from tasks.secure_sum import record as record_code
from tasks.secure_sum.bulk import transform_key
from tasks.secure_sum.modular import prime_field
from tasks.secure_sum.opening import _read_share
from tasks.secure_sum.record import read_key_sum
from tests.secure_sum.rounds import LENGTH, SITES, signing, values_of
from tests.secure_sum.test_ceremony import collective_secret
from tests.secure_sum.world import Round, make_context, shared_ceremony, sign

ACTIVE = tuple(SITES[:3])


def opened_sum(round_: Round, active: tuple[str, ...]) -> list[int]:
    """What a coordinator computes from all shares of a set, before any check: c_0 + sum of h, centred."""
    request = round_.request(active)
    p = round_.context.parameters
    assert round_.record is not None
    total = ckks.inverse(p, read_key_sum(round_.context, round_.record, round_.key_sum)[0])[:, : p.bulk_degree]
    for holder in active:
        part, _ = _read_share(round_.context, round_.record_digest, list(active), holder, round_.share(holder, request))
        total = ckks.add(p, total, part)
    return ckks.lift(p, total)


def replace_key(round_: Round, site: str, ciphertext: Any) -> None:
    """`site` signs a contribution with a crafted key ciphertext."""
    blob = contribute_code._write_key(round_.context, site, ciphertext, signing(site))
    parts = round_.parts[site]
    round_.parts[site] = contribute_code.ContributionParts(blob, parts.shamir, parts.bulk_root, parts.bulk_bytes)
    round_.envelopes[site] = sign(round_.message(site, round_.parts[site]), round_.plan, signing(site))[0]


def full_round(folder: Path, **changes: Any) -> Round:
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), LENGTH, **changes), folder)
    for site in SITES:
        round_.contribute(site, values_of(site, LENGTH))
    return round_


def residues_under(round_: Round, site: str, key: Any) -> Any:
    """Opens one site's bulk with a candidate key, ignoring the error bound."""
    p = round_.context.parameters
    field = prime_field(p.bulk_modulus)
    data = b"".join(
        x.tobytes() for x in bulk._read_contribution(round_.context, round_.opened()[site], round_.bulk(site))
    )
    residues = np.frombuffer(data, dtype=np.uint64)
    stream = bulk._key_stream(round_.context, transform_key(round_.context, key), 0, residues.size)
    noisy = field.reduce(residues.view(np.int64) - stream)
    return (noisy + (p.bulk_delta >> 1)) // p.bulk_delta


def copy_contribution(round_: Round, source: str, thief: str, rerandomise: bool) -> None:
    """`thief` re-signs everything that `source` published as its own, its key ciphertext re-randomised if asked."""
    context, p = round_.context, round_.context.parameters
    parts = round_.parts[source]
    _, ciphertext = record_code._read_key(context, round_.opened()[source], parts.key_ciphertext)
    if rerandomise:
        ciphertext = ckks.add(p, ciphertext, contribute_code._encrypt_key(context, np.zeros(2048, dtype=np.int64)))
    shamir = {}
    for holder, blob in parts.shamir.items():
        header = context.header(Kind.SEALED_SHAMIR, source, (2048 * 6 + contribute_code.SEALED_OVERHEAD,), holder)
        key = public_hex(signing(source))
        body = read_blob(blob, header, 2048 * 6 + contribute_code.SEALED_OVERHEAD, key, source)
        own = context.header(Kind.SEALED_SHAMIR, thief, (2048 * 6 + contribute_code.SEALED_OVERHEAD,), holder)
        shamir[holder] = write_blob(own, bytes(body), signing(thief))
    slabs = list(bulk._read_contribution(context, round_.opened()[source], round_.bulk(source)))
    path = round_.bulk(thief)
    header = bulk.bulk_header(context, thief).encode()
    tree = bulk.MerkleTree([header])
    with path.open("wb") as out:
        out.write(header)
        for slab in slabs:
            bulk._write_slab(context, out, tree, slab)
        root = tree.root()
        out.write(bytes.fromhex(root) + bulk.sign_check(Kind.BULK, bytes.fromhex(root), signing(thief)))
    key_blob = contribute_code._write_key(context, thief, ciphertext, signing(thief))
    copied = contribute_code.ContributionParts(key_blob, shamir, root, path.stat().st_size)
    round_.parts[thief] = copied
    round_.envelopes[thief] = sign(round_.message(thief, copied), round_.plan, signing(thief))[0]


def read_key(round_: Round, site: str) -> Any:
    """The (c_0, c_1) that a site published."""
    return record_code._read_key(round_.context, round_.opened()[site], round_.parts[site].key_ciphertext)[1]


def decrypt_key(round_: Round, ciphertext: Any) -> Any:
    """Opens a key ciphertext with the collective secret, rebuilt from t shares."""
    p = round_.context.parameters
    secret = collective_secret(round_.ceremony, list(ACTIVE))
    plain = ckks.add(p, ciphertext[0], ckks.multiply(ciphertext[1], secret, p.data_primes))
    return ckks.round_key(p, ckks.lift(p, ckks.inverse(p, plain)[:, : p.bulk_degree]))
