"""Asks a bucket whether it keeps the one promise that everything rests on: a name is written once."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from schemas.errors import OperationError
from tasks.storage.s3 import S3Store
from tasks.storage.s3_errors import Conflict, Taken, calling, error_code

PROBE = "probe/conditional-write"


@dataclass(frozen=True)
class StoreFacts:
    """What a bucket does.

    Attributes:
        conditional_parts: It also refuses to complete a multipart upload on a name that is taken.
        versioned: It keeps what is overwritten or deleted; None if it will not say.
        locked: It can refuse deletion for a time (object lock); None if it will not say.
    """

    conditional_parts: bool
    versioned: bool | None
    locked: bool | None


def probe_store(store: S3Store) -> StoreFacts:
    """Writes a probe twice under the store's own prefix and refuses a bucket that takes the second one.

    One small object stays, whatever the number of probes.

    Raises:
        OperationError: `store-overwrites` if the condition is ignored, `store-no-lock` if retention is asked for and
            the bucket cannot give it; `store-denied`, `store-missing`, `store-unreachable`, ….
    """
    where = {"Bucket": store.place.bucket, "Key": _probe_name(store)}
    _is_created(store.client, where)
    if _is_created(store.client, where):
        raise OperationError(
            "store-overwrites",
            "The bucket ignores the condition of a write (If-None-Match) and would overwrite messages.",
            "Use a server that honours it; this one cannot hold a study.",
        )
    locked = _is_locked(store.client, store.place.bucket)
    if store.place.retain_days and locked is False:
        raise OperationError(
            "store-no-lock", "retain_days asks for object lock and the bucket has none.", "Make the bucket with it."
        )
    return StoreFacts(_refuses_parts(store.client, where), _is_versioned(store.client, store.place.bucket), locked)


def probed(store: S3Store) -> S3Store:
    """Returns the store with what the probe found; refuses as `probe_store` does."""
    facts = probe_store(store)
    place = replace(store.place, conditional_parts=facts.conditional_parts)
    return S3Store(store.client, place, store.write_prefix)


def _probe_name(store: S3Store) -> str:
    return "/".join(part for part in (store.place.root, store.write_prefix, PROBE) if part)


def _is_created(client: Any, where: dict[str, str]) -> bool:
    try:
        with calling(where["Bucket"]):
            # Random bytes: a server that only compares content would pass with equal ones.
            client.put_object(**where, Body=secrets.token_bytes(16), IfNoneMatch="*")
    except Taken:
        return False
    except Conflict:
        return False
    return True


def _refuses_parts(client: Any, where: dict[str, str]) -> bool:
    with calling(where["Bucket"]):
        upload = where | {"UploadId": client.create_multipart_upload(**where)["UploadId"]}
    try:
        with calling(where["Bucket"]):
            tag = client.upload_part(**upload, PartNumber=1, Body=secrets.token_bytes(16))["ETag"]
            parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
            client.complete_multipart_upload(**upload, MultipartUpload=parts, IfNoneMatch="*")
    except Taken:
        with calling(where["Bucket"]):
            client.abort_multipart_upload(**upload)
        return True
    return False


def _is_versioned(client: Any, bucket: str) -> bool | None:
    answer = _ask(lambda: client.get_bucket_versioning(Bucket=bucket), bucket)
    return None if answer is None else answer.get("Status") == "Enabled"


def _is_locked(client: Any, bucket: str) -> bool | None:
    answer = _ask(lambda: client.get_object_lock_configuration(Bucket=bucket), bucket)
    return None if answer is None else answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled"


def _ask(call: Any, bucket: str) -> dict[str, Any] | None:
    """Returns the server's answer, {} if there is no such configuration, None if this participant may not ask."""
    from botocore.exceptions import ClientError

    with calling(bucket):
        try:
            answer: dict[str, Any] = call()
            return answer
        except ClientError as error:
            code = error_code(error.response)
            if code in ("ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration"):
                return {}
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403, 405, 501):
                return None
            raise
