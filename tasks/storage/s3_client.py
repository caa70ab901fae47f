"""A boto3 client from a participant's settings, its secrets from a file; the environment's own have no say."""

from __future__ import annotations

import json
import os
import ssl
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from schemas.errors import OperationError
from schemas.options import S3Settings, Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Credentials(Settings):
    """The content of a credentials file."""

    access_key_id: str = Field(min_length=1)
    secret_access_key: str = Field(min_length=1, repr=False)
    session_token: str | None = Field(default=None, repr=False)


def read_secret_file(path: Path) -> str:
    """Reads a file with a secret; refuses one that others can read.

    Raises:
        OperationError: `secret-unreadable`, `secret-exposed`; the message quotes nothing of the file.
    """
    try:
        with path.open() as source:
            if os.fstat(source.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise OperationError("secret-exposed", f"Others can read {path.name}.", f"Run chmod 600 {path}.")
            return source.read(1 << 16)
    except (OSError, UnicodeDecodeError):
        raise OperationError(
            "secret-unreadable", f"Expected a file with a secret at {path}.", "Put it there, or correct config.json."
        ) from None


def read_credentials(path: Path) -> Credentials:
    """Reads the credentials of one participant.

    Raises:
        OperationError: `secret-unreadable`, `secret-exposed`, `credentials-malformed`.
    """
    try:
        return Credentials.model_validate(json.loads(read_secret_file(path)))
    except (ValidationError, ValueError):
        raise OperationError(
            "credentials-malformed",
            f"Expected {path.name} to be JSON with access_key_id and secret_access_key.",
            "Write it again.",
        ) from None


def open_client(settings: S3Settings) -> Any:
    """Opens a client that signs the bytes it sends and repeats a request only after a transient error.

    Raises:
        OperationError: `insecure-endpoint`, `ca-file-unreadable`, and those of `read_credentials`.
    """
    _verify_endpoint(settings)
    _verify_authority(settings)
    credentials = read_credentials(Path(settings.credentials_file))
    import boto3
    import botocore.session
    from botocore.config import Config

    nothing = (None, None, None, None)
    # No profile, no shared file: a variable of the person who starts an agent must not choose whose name it uses.
    session = botocore.session.Session(
        session_vars={
            "profile": nothing,
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    config = Config(
        signature_version="s3v4",
        retries={"mode": "standard", "total_max_attempts": settings.attempts},
        connect_timeout=settings.connect_timeout_seconds,
        read_timeout=settings.read_timeout_seconds,
        s3={"payload_signing_enabled": True, **_addressing(settings)},
        # Not every server knows checksums in trailers; SHA-256 is sent with every object in any case.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
        proxies={} if _host(settings) in _LOOPBACK else None,
        max_pool_connections=16,
    )
    return boto3.session.Session(botocore_session=session).client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        aws_access_key_id=credentials.access_key_id,
        aws_secret_access_key=credentials.secret_access_key,
        aws_session_token=credentials.session_token,
        verify=settings.ca_file or True,
        config=config,
    )


def _addressing(settings: S3Settings) -> dict[str, str]:
    if settings.path_style is None:
        return {} if settings.endpoint is None else {"addressing_style": "path"}
    return {"addressing_style": "path" if settings.path_style else "virtual"}


def _host(settings: S3Settings) -> str | None:
    return urlsplit(settings.endpoint).hostname if settings.endpoint else None


def _verify_endpoint(settings: S3Settings) -> None:
    if settings.endpoint is None:
        return
    scheme = urlsplit(settings.endpoint).scheme
    if scheme == "https" or (scheme == "http" and (settings.insecure_http or _host(settings) in _LOOPBACK)):
        return
    raise OperationError(
        "insecure-endpoint",
        "Expected the store's endpoint to begin with https://.",
        "Give the server a certificate; insecure_http in config.json is for a network of your own.",
    )


def _verify_authority(settings: S3Settings) -> None:
    if settings.ca_file is None:
        return
    try:
        ssl.create_default_context(cafile=settings.ca_file)
    except OSError:  # no such file, or nothing in it that is a certificate
        raise OperationError(
            "ca-file-unreadable",
            "Expected a PEM file with certificates where s3.ca_file in config.json says.",
            "Correct s3.ca_file, or put the certificate of the authority that signed the store's there.",
        ) from None
