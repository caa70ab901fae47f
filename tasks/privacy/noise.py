"""Randomness for privacy noise: an AES-256-CTR key stream keyed by the operating system.

Noise from a general-purpose generator can be replayed and subtracted by whoever learns its seed. Here the key is drawn
inside the site, never leaves memory, and no plan, instruction or setting can name it.
"""

from __future__ import annotations

import os
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from schemas.errors import OperationError


class NoiseStream(Protocol):
    """A source of independent uniform bytes."""

    def random_bytes(self, n: int) -> bytes: ...


class AesCtrStream:
    """The key stream of AES-256 in counter mode under `key` (32 bytes), from counter 0. `repr` shows nothing of it.

    Only a test constructs it with a known key: known noise is no noise. Everything else calls `os_noise_stream`.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("expected a key of 32 bytes")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    def random_bytes(self, n: int) -> bytes:
        """Returns the next `n` bytes of the stream.

        Raises:
            OperationError: `noise-stream-forked`. A forked copy would repeat its parent's noise, and the difference of
                two updates with equal noise has none.
        """
        if os.getpid() != self._process:
            raise OperationError(
                "noise-stream-forked", "A noise stream was carried into a forked process.", "Open one in the child."
            )
        return self._stream.update(bytes(n))

    def __repr__(self) -> str:
        return "AesCtrStream(…)"


def os_noise_stream() -> AesCtrStream:
    """Opens a fresh stream keyed by the operating system's randomness."""
    return AesCtrStream(os.urandom(32))
