"""Noise nobody outside the site can predict, repeat or choose."""

from __future__ import annotations

import inspect
import os

import pytest

from schemas.errors import OperationError
from tasks.privacy import noise
from tasks.privacy.noise import AesCtrStream, os_noise_stream


def test_two_streams_of_the_operating_system_share_nothing() -> None:
    assert os_noise_stream().random_bytes(64) != os_noise_stream().random_bytes(64)
    assert not inspect.signature(os_noise_stream).parameters, "nobody can name a seed"
    source = inspect.getsource(noise)
    assert "import torch" not in source
    assert "numpy" not in source


def test_the_stream_is_aes_256_in_counter_mode() -> None:
    key = bytes(range(32))
    stream = AesCtrStream(key)
    # Encryption of the zero block under the key of FIPS 197 appendix C.3.
    assert stream.random_bytes(16).hex() == "f29000b62a499fd0a9f39a6add2e7780"
    assert AesCtrStream(key).random_bytes(40) == AesCtrStream(key).random_bytes(40)
    assert "1011" not in repr(stream)


def test_a_forked_child_cannot_repeat_its_parents_noise() -> None:
    stream = os_noise_stream()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            stream.random_bytes(1)
            os.write(write, b"repeated")
        except OperationError as error:
            os.write(write, error.code.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"noise-stream-forked"
    assert len(stream.random_bytes(1)) == 1, "the parent goes on"


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        AesCtrStream(b"seed")
