"""A slow reference in plain Python integers that shares no code with the implementation; it wrote `vectors.json`.

It follows docs/secure-sum.md: schoolbook evaluation instead of transforms, big integers instead of residues in words,
its own hashing, packing, Merkle tree and sharing. From outside it uses SHA-2, SHAKE, AES and Ed25519 only.
Vectors are added to and never edited: `python -m tests.secure_sum.oracle` prints what the reference computes today.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SID_STAR, INSTRUCTION, RECORD = "1f" * 32, "2e" * 32, "3d" * 32
SIGNING_SEED = bytes(range(32))
BULK_DEGREE, RING_DEGREE, DELTA = 2048, 8192, 256
VALUES = [0, 1, -1, 1000, -1000, 2**26, -(2**26), 77]
SMUDGING_BITS = 155


def encode(label: str, *parts: Any) -> bytes:
    out = b""
    for part in (f"consilium/{label}", *parts):
        raw = part.to_bytes(8, "big") if isinstance(part, int) else part.encode() if isinstance(part, str) else part
        out += len(raw).to_bytes(8, "big") + raw
    return out


class Words:
    """AES-256-CTR keystream under SHAKE256 of a labelled encoding."""

    def __init__(self, label: str, *parts: Any) -> None:
        key = hashlib.shake_256(encode(f"stream/{label}", *parts)).digest(32)
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def take(self, size: int) -> bytes:
        return self._cipher.update(bytes(size))

    def word(self) -> int:
        return int.from_bytes(self.take(8), "little")


def is_prime(n: int) -> bool:
    d, r = n - 1, 0
    while d % 2 == 0:
        d, r = d // 2, r + 1
    for a in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        x = pow(a, d, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(r - 1)):
            return False
    return True


def primes_below(bits: int, order: int, count: int) -> list[int]:
    found, n = [], 2**bits - (2**bits - 1) % order
    while len(found) < count:
        if is_prime(n):
            found.append(n)
        n -= order
    return sorted(found)


def smallest_root(p: int, order: int) -> int:
    g = next(pow(x, (p - 1) // order, p) for x in range(2, 999) if pow(x, (p - 1) // 2, p) == p - 1)
    roots, power = [], g
    for k in range(1, order):
        if k % 2:
            roots.append(power)
        power = power * g % p
    return min(roots)


def uniform(words: Words, p: int, count: int) -> list[int]:
    out: list[int] = []
    while len(out) < count:
        value = words.word() % 2 ** p.bit_length()
        if value < p:
            out.append(value)
    return out


def binomials(words: Words, count: int) -> list[int]:
    raw = words.take(12 * count)
    out = []
    for k in range(count):
        first = int.from_bytes(raw[8 * k : 8 * k + 8], "little")
        rest = int.from_bytes(raw[8 * count + 4 * k : 8 * count + 4 * k + 4], "little") % 2**20
        plus = bin(first % 2**42).count("1")
        out.append(plus - bin(first >> 42).count("1") - bin(rest).count("1"))
    return out


def evaluate(polynomial: list[int], point: int, p: int) -> int:
    value = 0
    for c in reversed(polynomial):
        value = (value * point + c) % p
    return value


def coefficient(values: list[int], exponents: list[int], psi: int, j: int, p: int) -> int:
    """Coefficient j of the polynomial with these values at psi**exponent, over all odd exponents below 2N."""
    inverse = pow(psi, -j, p)
    total = sum(v * pow(inverse, e, p) for v, e in zip(values, exponents, strict=True))
    return total * pow(len(values), -1, p) % p


def header(kind: int, sender: str, counts: list[int], reference: str, recipient: str = "") -> bytes:
    out = b"CSUM" + (1).to_bytes(2, "little") + kind.to_bytes(2, "little") + bytes.fromhex(SID_STAR)
    out += (3).to_bytes(4, "little") + (2).to_bytes(4, "little") + bytes.fromhex(reference)
    for name in (sender, recipient):
        out += bytes([len(name)]) + name.encode()
    return out + bytes([len(counts)]) + b"".join(c.to_bytes(8, "little") for c in counts)


def merkle(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + merkle(leaves[:split]) + merkle(leaves[split:])).digest()


def bulk_blob() -> bytes:
    """Round 3, attempt 2: the values under a key and errors from the insecure test stream with seed 11."""
    q = primes_below(46, 2 * BULK_DEGREE, 1)[0]
    psi = smallest_root(q, 2 * BULK_DEGREE)
    secret = Words("insecure-test-stream", 11)
    key = [a + b for a, b in zip(binomials(secret, BULK_DEGREE), binomials(secret, BULK_DEGREE), strict=True)]
    errors = binomials(secret, len(VALUES))
    a = uniform(Words("bulk", bytes.fromhex(SID_STAR), 3, 2, 0), q, BULK_DEGREE)
    odd = [2 * k + 1 for k in range(BULK_DEGREE)]
    products = [x * evaluate(key, pow(psi, e, q), q) % q for x, e in zip(a, odd, strict=True)]
    body = b""
    for j, (value, error) in enumerate(zip(VALUES, errors, strict=True)):
        body += ((coefficient(products, odd, psi, j, q) + error + DELTA * value) % q).to_bytes(6, "little")
    head = header(6, "site-00", [len(VALUES)], INSTRUCTION)
    root = merkle([head, body])
    signature = Ed25519PrivateKey.from_private_bytes(SIGNING_SEED).sign(encode("blob", 6, root))
    return head + body + root + signature


def shamir(secret: list[int], t: int, n: int, q: int, words: Words) -> list[list[int]]:
    rows = [secret] + [[v if v <= q // 2 else v - q for v in uniform(words, q, len(secret))] for _ in range(t - 1)]
    columns = list(zip(*rows, strict=True))
    return [[sum(c * x**k for k, c in enumerate(column)) % q for column in columns] for x in range(1, n + 1)]


def share_keys() -> dict[str, Any]:
    """Toy key material of holder site-00 in the set {site-00, site-01, site-02}: everything from labelled streams."""
    primes = primes_below(56, 2 * RING_DEGREE, 3)
    return {
        "primes": primes,
        "sigma": [uniform(Words("vector-sigma", k), p, RING_DEGREE) for k, p in enumerate(primes)],
        "c1": [uniform(Words("vector-c1", k), p, RING_DEGREE) for k, p in enumerate(primes)],
        "sent": {"site-01": b"\x01" * 32, "site-02": b"\x02" * 32},
        "received": {"site-01": b"\x03" * 32, "site-02": b"\x04" * 32},
        "noise": b"\x05" * 32,
    }


def partial_coefficients(places: list[int]) -> list[list[int]]:
    """Coefficients of h = lambda sigma c_1 + r + e at some places, per prime."""
    keys = share_keys()
    members = ["site-00", "site-01", "site-02"]
    label = encode("SHARE", bytes.fromhex(SID_STAR), 3, bytes.fromhex(RECORD))
    box = Words("smudging", keys["noise"], label, *members)
    limbs = [[box.word() % 2**48 for _ in range(BULK_DEGREE)] for _ in range(4)]
    smudging = [
        sum(limb[j] % (2**12 if k == 3 else 2**48) << (48 * k) for k, limb in enumerate(limbs)) - 2**SMUDGING_BITS
        for j in range(BULK_DEGREE)
    ]
    levels = RING_DEGREE.bit_length() - 1
    exponents = [2 * int(format(i, f"0{levels}b")[::-1], 2) + 1 for i in range(RING_DEGREE)]
    rows = []
    for index, p in enumerate(keys["primes"]):
        weight = 2 * 3 * pow((2 - 1) * (3 - 1), -1, p) % p  # Lagrange at 0 for point 1 of {1, 2, 3}
        values = [weight * s * c % p for s, c in zip(keys["sigma"][index], keys["c1"][index], strict=True)]
        for other in members[1:]:
            for key, sign in ((keys["sent"][other], 1), (keys["received"][other], -1)):
                mask = uniform(Words("mask", key, label, index, *members), p, RING_DEGREE)
                values = [v + sign * m for v, m in zip(values, mask, strict=True)]
        psi = smallest_root(p, 2 * RING_DEGREE)
        rows.append([(coefficient(values, exponents, psi, j, p) + smudging[j]) % p for j in places])
    return rows


def compute() -> dict[str, Any]:
    q = primes_below(46, 2 * BULK_DEGREE, 1)[0]
    data = primes_below(56, 2 * RING_DEGREE, 3)
    special = primes_below(32, 2 * RING_DEGREE, 1)[0]
    words = Words("insecure-test-stream", 12)
    sharing = shamir([5, -7, 0, 42], 3, 5, q, words)
    common = [
        uniform(Words("common-polynomial", b"\xaa" * 32, b"\xbb" * 32, k), p, 3) for k, p in enumerate([*data, special])
    ]
    return {
        "bulk_modulus": q,
        "data_primes": data,
        "special_prime": special,
        "psi_bulk": smallest_root(q, 2 * BULK_DEGREE),
        "psi_data": [smallest_root(p, 2 * RING_DEGREE) for p in data],
        "stream": Words("a label", b"bytes", 7, "text").take(32).hex(),
        "binomials": binomials(Words("insecure-test-stream", 13), 16),
        "common_polynomial": common,
        "nonce_commitment": hashlib.sha256(
            encode("nonce-commitment", b"\xaa" * 32, "site-00", b"\xbb" * 32)
        ).hexdigest(),
        "key_commitment": hashlib.sha256(
            encode("key-commitment", b"\xaa" * 32, "site-00", b"\xbb" * 32, b"\xcc" * 32)
        ).hexdigest(),
        "shamir_shares": sharing,
        "bulk_blob": bulk_blob().hex(),
        "partial_places": [0, 1, 2047],
        "partial": partial_coefficients([0, 1, 2047]),
        "share_header": header(
            9,
            "site-00",
            [3, BULK_DEGREE, BULK_DEGREE],
            hashlib.sha256(
                encode("share-reference", bytes.fromhex(RECORD), "site-00", "site-01", "site-02")
            ).hexdigest(),
        ).hex(),
    }


if __name__ == "__main__":
    print(json.dumps(compute(), indent=1))
