"""What attackers do with public bytes and their own keys; used by the attack regressions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from schemas.envelope import public_hex
from schemas.wire import Kind, read_blob, sign_check, unpack_residues, write_blob
from tasks.secure_sum import ckks
from tasks.secure_sum import contribute as contribute_code
from tasks.secure_sum import record as record_code
from tasks.secure_sum.bulk import BulkCipher, add_slab
from tasks.secure_sum.bulk_blob import BulkForm, BulkInput
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
    residues = unpack_residues(read_bulk(round_, site), p.bulk_modulus, site)
    stream = BulkCipher.of(round_.context, key).derive_key_stream(0, residues.size)
    noisy = field.reduce(residues.view(np.int64) - stream)
    return (noisy + (p.bulk_delta >> 1)) // p.bulk_delta


def read_bulk(round_: Round, site: str) -> bytes:
    """The packed residues that a site published."""
    form = BulkForm.of(round_.context, site)
    inputs = (BulkInput(form, round_.bulk(site)),)
    return b"".join(add_slab(inputs, index)[1] for index in range(form.slabs))


def write_bulk(round_: Round, thief: str, body: bytes) -> str:
    """`thief` writes and signs a bulk blob with these residues; returns its Merkle root."""
    form = BulkForm.of(round_.context, thief)
    tree = form.begin_root()
    tree.extend(form.hash_chunks(body))
    root = bytes.fromhex(tree.root())
    data = form.header.encode() + body + root + sign_check(Kind.BULK, root, signing(thief))
    round_.bulk(thief).write_bytes(data)
    return root.hex()


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
    root, size = write_bulk(round_, thief, read_bulk(round_, source)), round_.bulk(thief).stat().st_size
    key_blob = contribute_code._write_key(context, thief, ciphertext, signing(thief))
    copied = contribute_code.ContributionParts(key_blob, shamir, root, size)
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
