"""A participant's long-lived identity: an Ed25519 signing key and an HPKE key, in a file only its owner reads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.canonical import is_name
from schemas.envelope import public_hex
from schemas.errors import OperationError
from tasks.hpke import HpkeKey, generate_hpke_key, load_hpke_key


@dataclass(frozen=True)
class Identity:
    """Private keys of one participant; `repr` shows public parts only."""

    name: str
    signing: Ed25519PrivateKey
    hpke: HpkeKey

    @property
    def identity_key(self) -> str:
        """Raw Ed25519 public key, hex."""
        return public_hex(self.signing)

    @property
    def hpke_key(self) -> str:
        """Raw HPKE public key, hex."""
        return self.hpke.public_hex

    def __repr__(self) -> str:
        return f"Identity({self.name}, {self.identity_key[:16]}…)"


def verify_party_name(name: str) -> None:
    """Refuses what cannot be the name of a site, a coordinator or a reviewer.

    Raises:
        OperationError: `bad-name`.
    """
    if not is_name(name):
        raise OperationError(
            "bad-name",
            f"Expected a name like general-hospital, got {name!r}.",
            "A name is a lower-case letter, then at most 30 lower-case letters, digits and hyphens.",
        )


def generate_identity(name: str) -> Identity:
    """Generates fresh keys for `name` from the operating system's randomness.

    Raises:
        OperationError: `bad-name`.
    """
    verify_party_name(name)
    return Identity(name, Ed25519PrivateKey.generate(), generate_hpke_key())


def save_identity(identity: Identity, path: Path) -> None:
    """Writes the private keys to a new file with mode 0600; never overwrites.

    Raises:
        OperationError: `identity-exists`.
    """
    content = {
        "format": "consilium/identity/1",
        "name": identity.name,
        "signing_secret": identity.signing.private_bytes_raw().hex(),
        "hpke_secret": identity.hpke.to_bytes().hex(),
    }
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise OperationError(
            "identity-exists", f"{path.name} exists.", "Keep it: its public keys are in plans."
        ) from None
    with os.fdopen(handle, "w") as out:
        json.dump(content, out)
        out.flush()
        os.fsync(out.fileno())


def load_identity(path: Path) -> Identity:
    """Loads the file that `save_identity` wrote.

    Raises:
        OperationError: `identity-unreadable`; the message quotes nothing of the file.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != "consilium/identity/1":
            raise ValueError("format")
        signing = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(content["signing_secret"]))
        return Identity(str(content["name"]), signing, load_hpke_key(bytes.fromhex(content["hpke_secret"])))
    except (OSError, ValueError, KeyError, TypeError):
        raise OperationError(
            "identity-unreadable", f"Expected an identity file at {path.name}.", "Run the init command or restore it."
        ) from None
