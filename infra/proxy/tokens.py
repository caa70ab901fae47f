"""Tokens of the sites at the coordinator's proxy: 256 random bits each; the proxy keeps only a salted digest."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from pathlib import Path


def ensure_token(path: Path) -> str:
    """Returns the token in `path`, made there for its owner only if it does not exist yet."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    token = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w") as out:
        out.write(token + "\n")
    return token


def password_line(name: str, token: str) -> str:
    """Returns one line of nginx' password file.

    A salted SHA-1 ({SSHA}, RFC 2307) is what nginx verifies itself; a random token of 256 bits needs no slow hash.
    """
    salt = os.urandom(16)
    digest = hashlib.sha1(token.encode() + salt, usedforsecurity=False).digest()
    return f"{name}:{{SSHA}}{base64.b64encode(digest + salt).decode()}"
