"""The only module that calls TenSEAL: encryption of zero under the collective key, and an inverse transform.

Bytes are the only bridge between numpy and SEAL; they go through anonymous memory files. SEAL loads accept NaN scales
and other nonsense, so nothing that came from outside is loaded: the public key is rebuilt from verified residues, and
what is transformed is this site's own, already masked polynomial.

Invariant: no secret key, key share or key half is ever written to these files or held by a SEAL object.
"""

from __future__ import annotations

import os
import struct

import numpy as np
import tenseal.sealapi as seal

from tasks.secure_sum.ckks import ring_primes
from tasks.secure_sum.epoch import EpochPublic
from tasks.secure_sum.modular import UInt64
from tasks.secure_sum.parameters import SumParameters

_HEADER = struct.Struct("<HBBBBHQ")
_BODY = struct.Struct("<4QBQQQdQ")
_MAGIC, _MAJOR, _MINOR = 0xA15E, 4, 3


class SealHalf:
    """SEAL context and encryptor under a collective public key.

    Args:
        parameters: Ring and primes.
        public_key: (2, 4, N) residues (b, a) in SEAL's transformed order, from a verified ceremony.
    """

    def __init__(self, parameters: SumParameters, public_key: UInt64) -> None:
        self._parameters = parameters
        self._context = seal.SEALContext(seal_parameters(parameters), True, seal.SEC_LEVEL_TYPE.TC128)
        if not self._context.parameters_set():
            raise ValueError("SEAL refuses the parameters")
        key = seal.PublicKey()
        with _MemoryFile() as file:
            file.write(encode_ciphertext(public_key, self._context.key_parms_id()))
            key.load(self._context, file.path)
        self.key_parms_id: list[int] = self._context.key_parms_id()
        self._encryptor = seal.Encryptor(self._context, key)

    def encrypt_zero(self) -> UInt64:
        """Encrypts zero with fresh randomness of SEAL's own generator, which the operating system seeds.

        Returns:
            (2, 3, N) residues (c_0, c_1) modulo the data primes, in SEAL's transformed order.
        """
        ciphertext = seal.Ciphertext(self._context)
        self._encryptor.encrypt_zero(ciphertext)
        if not ciphertext.is_ntt_form() or ciphertext.size() != 2:
            raise ValueError("SEAL returned an unexpected ciphertext")
        return self._read(ciphertext, 2)

    def inverse(self, masked: UInt64) -> UInt64:
        """Returns the coefficients (3, N) of a transformed polynomial that is already uniformly masked."""
        # A ciphertext whose other polynomials are all zero is refused as transparent: a constant one joins it.
        dummy = np.ones_like(masked)
        ciphertext = seal.Ciphertext(self._context)
        with _MemoryFile() as file:
            file.write(encode_ciphertext(np.stack([masked, dummy]), self._context.first_parms_id()))
            ciphertext.load(self._context, file.path)
        seal.Evaluator(self._context).transform_from_ntt_inplace(ciphertext)
        coefficients: UInt64 = self._read(ciphertext, 1)[0]
        return coefficients

    def _read(self, ciphertext: object, polynomials: int) -> UInt64:
        degree, primes = self._parameters.ring_degree, len(self._parameters.data_primes)
        element = ciphertext.dyn_array().at  # type: ignore[attr-defined]
        flat = np.fromiter(map(element, range(polynomials * primes * degree)), dtype=np.uint64)
        return flat.reshape(polynomials, primes, degree)


def seal_parameters(parameters: SumParameters) -> object:
    """Returns SEAL's encryption parameters: CKKS over exactly our ring and primes."""
    result = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    result.set_poly_modulus_degree(parameters.ring_degree)
    result.set_coeff_modulus([seal.Modulus(p) for p in ring_primes(parameters)])
    return result


def encode_ciphertext(polynomials: UInt64, parms_id: list[int]) -> bytes:
    """Writes (size, primes, N) transformed residues as an uncompressed SEAL ciphertext (or public key)."""
    size, primes, degree = polynomials.shape
    values = np.ascontiguousarray(polynomials, dtype="<u8").tobytes()
    array = struct.pack("<Q", polynomials.size) + values
    nested = _header(len(array)) + array
    body = _BODY.pack(*parms_id, 1, size, degree, primes, 1.0, 1) + nested
    return _header(len(body)) + body


def public_tenseal_context(parameters: SumParameters, public: EpochPublic) -> object:
    """Returns a TenSEAL context that holds the collective public key and never held a secret; for inspection.

    `make_context_public()` leaves the decryptor in place, so the context is built from a message without a secret:
    {1: parameters, 2: {1: public key, 2: automatic relinearise, rescale and switch, 3: no global scale}}.
    """
    import tenseal

    half = SealHalf(parameters, public.public_key)
    with _MemoryFile() as file:
        seal_parameters(parameters).save(file.path)  # type: ignore[attr-defined]
        encoded = file.read()
    key = encode_ciphertext(public.public_key, half.key_parms_id)
    inner = _field(1, key) + bytes([2 << 3, 7]) + bytes([3 << 3 | 1]) + struct.pack("<d", -1.0)
    return tenseal.context_from(_field(1, encoded) + _field(2, inner))


def _field(number: int, data: bytes) -> bytes:
    size, length = len(data), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def _header(size: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, _MAJOR, _MINOR, 0, 0, _HEADER.size + size)


class _MemoryFile:
    """An anonymous file in memory with a path that SEAL can open."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("consilium-seal", os.MFD_CLOEXEC)
        self.path = f"/proc/self/fd/{self._descriptor}"

    def __enter__(self) -> _MemoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self) -> bytes:
        """Returns the content."""
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def write(self, data: bytes) -> None:
        """Replaces the content."""
        with open(self._descriptor, "wb", closefd=False) as out:
            out.write(data)


_HALVES: dict[str, SealHalf] = {}


def seal_half(parameters: SumParameters, public: EpochPublic) -> SealHalf:
    """Returns SEAL's half for a verified epoch; the last one is kept for the next call."""
    if public.sid_star not in _HALVES:
        _HALVES.clear()
        _HALVES[public.sid_star] = SealHalf(parameters, public.public_key)
    return _HALVES[public.sid_star]
