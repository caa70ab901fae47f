"""What an S3 server's refusals mean here. Its texts may hold names and keys and are never passed on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from schemas.errors import OperationError

T = TypeVar("T")

_MISSING = {"404", "NoSuchKey", "NotFound"}
# Whoever writes an object chooses how it is stored: in an archive, or under a key that only the writer knows.
_UNREADABLE = {"InvalidObjectState", "InvalidRequest"}
_REFUSALS = {
    "store-missing": (
        {"NoSuchBucket"},
        "The bucket {bucket} does not exist.",
        "Create it, or correct store, or s3.endpoint, in config.json.",
    ),
    "store-clock": (
        {"RequestTimeTooSkewed", "RequestExpired"},
        "The store refuses this machine's clock.",
        "Set the clock; an NTP client keeps it right.",
    ),
    "store-denied": (
        {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "ExpiredToken"},
        "The store refuses these credentials for this name in the bucket {bucket}.",
        "Check the credentials file and the policy of the bucket.",
    ),
    "store-full": (
        {"507", "QuotaExceeded", "InsufficientCapacity", "EntityTooLarge", "XMinioStorageFull"},
        "The store takes no more bytes.",
        "Raise the quota or free space, and run the command again.",
    ),
}


class Taken(Exception):
    """The name exists: the condition of a conditional write does not hold."""


class Conflict(Exception):
    """Another write of the same name is under way."""


class Unreadable(Exception):
    """The object exists and is stored so that nobody but its writer can read it."""


@contextmanager
def calling(bucket: str) -> Iterator[None]:
    """Turns what boto3 raises into what a store raises.

    Args:
        bucket: Whom the request is about; the server's own words are not repeated.

    Raises:
        Taken, Conflict: see there.
        OperationError: `store-missing`, `store-denied`, `store-clock`, `store-full`, `store-unreachable`.
    """
    import boto3.exceptions
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _explain(error.response, bucket) from None
    # botocore follows a redirect that names no region until Python stops it.
    except (BotoCoreError, boto3.exceptions.Boto3Error, RecursionError) as error:
        raise _unanswered(error, bucket) from None


def found_or_none(call: Callable[[], T], bucket: str) -> T | None:
    """Returns what `call` returns, or None if it asks for an object that does not exist.

    Raises:
        Unreadable, and as `calling`.
    """
    from botocore.exceptions import ClientError

    with calling(bucket):
        try:
            return call()
        except ClientError as error:
            if error_code(error.response) in _MISSING:
                return None
            if error_code(error.response) in _UNREADABLE:
                raise Unreadable from None
            raise


def error_code(response: Any) -> str:
    """Returns the server's code; a HEAD has no body and gives the status as its code."""
    return str(response.get("Error", {}).get("Code", "")) or str(_status(response))


def _explain(response: Any, bucket: str) -> Exception:
    code, status = error_code(response), _status(response)
    if status == 412 or code == "PreconditionFailed":
        return Taken()
    # A multipart upload that is gone may have been completed by a request whose answer was lost.
    if status == 409 or code == "NoSuchUpload":
        return Conflict()
    for ours, (codes, message, remedy) in _REFUSALS.items():
        if code in codes:
            return OperationError(ours, message.format(bucket=bucket), remedy)
    if status in (401, 403):
        _, message, remedy = _REFUSALS["store-denied"]
        return OperationError("store-denied", message.format(bucket=bucket), remedy)
    if 400 <= status < 500:
        return OperationError(
            "store-refused", f"The store refused a request (status {status}).", "Check that it is an S3 server."
        )
    return _unreachable(f"status {status}", f"The store with the bucket {bucket}")


def _unanswered(error: Exception, bucket: str) -> OperationError:
    """Explains a request that reached no server, or not the one that was meant."""
    from botocore.exceptions import SSLError

    asked = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))
    # Host and port only: an address may hold a name of an object.
    where = f"The store at {asked.netloc.rpartition('@')[2]}" if asked.netloc else f"The store with the bucket {bucket}"
    if isinstance(error, SSLError):
        return OperationError(
            "store-unreachable",
            f"{where} did not answer: its certificate is not trusted here, or it speaks no TLS (SSLError).",
            "Name the authority that signed its certificate as s3.ca_file in config.json, and check s3.endpoint.",
        )
    return _unreachable(type(error).__name__, where)


def _unreachable(what: str, where: str) -> OperationError:
    return OperationError(
        "store-unreachable",
        f"{where} did not answer ({what}); several attempts failed.",
        "Check s3.endpoint in config.json, the network and the server, and run the command again.",
    )


def _status(response: Any) -> int:
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
