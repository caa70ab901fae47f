"""Opens the object store that a participant's settings name: a folder or a bucket."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from schemas.errors import OperationError
from schemas.options import S3Settings
from tasks.storage.base import Store
from tasks.storage.folder import FolderStore
from tasks.storage.names import is_name

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(address: str, write_prefix: str = "", s3: S3Settings | None = None) -> Store:
    """Opens a store; a bucket is probed first and refused if it would overwrite what it holds.

    Args:
        address: A folder, or `s3://bucket` or `s3://bucket/prefix`.
        write_prefix: The only prefix that this participant writes; empty for no limit.
        s3: How to reach the bucket.

    Raises:
        OperationError: `store-address`, `store-overwrites`, `not-installed`, and those of `open_client`.
    """
    if "://" not in address:
        return FolderStore(Path(address), write_prefix)
    if s3 is None:
        raise OperationError("store-address", "The store is a bucket, and config.json has no s3 section.", "Add it.")
    return _open_bucket(address, write_prefix, s3)


@lru_cache
def _open_bucket(address: str, write_prefix: str, s3: S3Settings) -> Store:
    # Once per process: every flow run opens its store, and a probe is half a dozen requests.
    bucket, root = split_address(address)
    from tasks.storage.s3 import S3Place, S3Store
    from tasks.storage.s3_client import open_client
    from tasks.storage.s3_probe import probed

    place = S3Place(bucket, root, part_size_bytes=s3.part_size_bytes, attempts=s3.attempts, retain_days=s3.retain_days)
    return probed(S3Store(open_client(s3), place, write_prefix))


def split_address(address: str) -> tuple[str, str]:
    """Splits `s3://bucket/prefix` into bucket and prefix (may be empty).

    Raises:
        OperationError: `store-address`.
    """
    scheme, _, rest = address.partition("://")
    bucket, _, root = rest.rstrip("/").partition("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket) or (root and not is_name(root)):
        raise OperationError(
            "store-address", "Expected the store as a folder or as s3://bucket/prefix.", "Correct config.json."
        )
    return bucket, root
