"""A create-only object store on S3, with the same promises as the folder store.

Invariants: every write is conditional (`If-None-Match: *`), so a name once written keeps its bytes whoever writes and
however often; a write whose answer was lost is repeated, finds its name taken and compares content; the SHA-256 of what
was sent is signed into the request and kept beside the object, and what is read is compared with it; a small object
that was read once is not asked for again, nor whether what was sent or found is there. Nothing of this is believed
where it matters: messages are signed and blobs are named by signed digests.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any

from schemas.errors import OperationError, PeerError
from tasks.storage.known import KnownObjects
from tasks.storage.names import LARGEST_READ, is_name, name_taken, owner_of, too_large, verify_name
from tasks.storage.s3_errors import Conflict, Taken, Unreadable, calling, found_or_none
from tasks.storage.s3_reader import S3Reader

BLOCK_BYTES = 1 << 20
CIPHERTEXT_TAG = "consilium=ciphertext"
_DIGEST = "consilium-sha256"


@dataclass(frozen=True)
class S3Place:
    """Where a store lies and how large objects are cut.

    Attributes:
        root: Names in the bucket start with this; empty for the whole bucket.
        part_size_bytes: Larger objects are sent in parts of this size.
        conditional_parts: Whether the server refuses to complete a multipart upload on a name that is taken; without
            it an object is sent as one request, of 5 GiB at most.
        attempts: How often a write is begun anew after a conflict with another writer, and a broken read goes on.
        retain_days: Days for which the server must keep what is not a ciphertext (object lock); 0 for none.
    """

    bucket: str
    root: str = ""
    part_size_bytes: int = 16 << 20
    conditional_parts: bool = True
    attempts: int = 8
    retain_days: int = 0


class S3Store:
    """Objects in a bucket. Optionally refuses writes outside `write_prefix` (a site's own prefix).

    Args:
        client: A boto3 S3 client that retries transient errors itself (`tasks.storage.s3_client`).
    """

    def __init__(self, client: Any, place: S3Place, write_prefix: str = "") -> None:
        self.client = client
        self.place = place
        self.write_prefix = write_prefix
        self._known = KnownObjects()
        self._there: set[str] = set()

    def put(self, key: str, data: bytes) -> None:
        """Creates `key` with `data`; does nothing if it already holds exactly these bytes.

        Raises:
            PeerError: `name-taken` if the name holds other bytes.
            OperationError: `store-denied`, `store-full`, `store-unreachable`, ….
        """
        self._create(key, lambda: io.BytesIO(data))

    def put_file(self, key: str, source: Path) -> None:
        """Like `put` for the content of a local file, streamed, in parts if it is large."""
        self._create(key, lambda: source.open("rb"))

    def get(self, key: str, limit: int = LARGEST_READ) -> bytes | None:
        """Returns the bytes of `key`, at most `limit` of them, or None if it does not exist (yet).

        Raises:
            PeerError: `too-large` beyond `limit`, `object-damaged` if the bytes are not those that were sent,
                `object-unreadable` if its writer stored it so that others cannot read it.
        """
        known = self._known.get(key)
        if known is not None:
            return known
        answer = self._answer(key)
        if answer is None:
            return None
        if answer["ContentLength"] > limit:
            answer["Body"].close()
            raise too_large(key, limit)
        with self._reader(key, answer) as stream:
            data = b"".join(iter(partial(stream.read, BLOCK_BYTES), b""))
        expected = answer["Metadata"].get(_DIGEST)
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            raise PeerError("object-damaged", owner_of(key), f"{key} does not hold the bytes that were sent.")
        self._known.remember(key, data)
        return data

    def open(self, key: str) -> IO[bytes]:
        """Opens `key` for streaming; a connection that breaks is taken up where it broke.

        Raises:
            OperationError: `object-missing`.
            PeerError: `object-unreadable`.
        """
        answer = self._answer(key)
        if answer is None:
            raise OperationError("object-missing", f"Expected {key} in the store.")
        return io.BufferedReader(self._reader(key, answer), BLOCK_BYTES)

    def exists(self, key: str) -> bool:
        """Says whether `key` is there; what this store has sent, read or found before is not asked for."""
        if key in self._there or self._known.get(key) is not None:
            return True
        if self._head(key) is None:
            return False
        self._there.add(key)
        return True

    def size(self, key: str) -> int:
        """Returns the size in bytes of `key`; 0 if it does not exist."""
        known = self._known.get(key)
        if known is not None:
            return len(known)
        head = self._head(key)
        return int(head["ContentLength"]) if head is not None else 0

    def list(self, prefix: str) -> Iterator[str]:
        """Yields the names under `prefix` in order; names that could leave the store are passed over."""
        under = f"{self._name(prefix)}/"
        keys: list[str] = []
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.place.bucket, Prefix=under)
        with calling(self.place.bucket):
            for page in pages:
                keys += [item["Key"] for item in page.get("Contents", ()) if item["Key"].startswith(under)]
        skip = len(self.place.root) + 1 if self.place.root else 0
        # By parts, as a folder is walked, not by the bytes of the whole name.
        yield from sorted((key[skip:] for key in keys if is_name(key[skip:])), key=lambda key: key.split("/"))

    def _create(self, key: str, opened: Callable[[], IO[bytes]]) -> None:
        verify_name(key, self.write_prefix or "")
        for attempt in range(self.place.attempts):
            with opened() as source:
                try:
                    with calling(self.place.bucket):
                        self._send(key, source)
                    self._there.add(key)
                    return
                except Taken:
                    if not self._holds(key, source):
                        raise name_taken(key) from None
                    self._there.add(key)
                    return
                except Conflict:  # another writer of the same name is at work: the outcome is known in a moment
                    time.sleep(min(0.05 * 2**attempt, 2.0))
        raise OperationError("store-unreachable", f"Writing {key} kept colliding.", "Run the command again.")

    def _send(self, key: str, source: IO[bytes]) -> None:
        digest, size = _digest_of(source)
        extra = self._attributes(key) | {"Metadata": {_DIGEST: digest.hexdigest()}}
        if size > self.place.part_size_bytes and self.place.conditional_parts:
            self._send_parts(key, source, extra)
            return
        self.client.put_object(
            Bucket=self.place.bucket,
            Key=self._name(key),
            Body=source,
            ContentLength=size,
            IfNoneMatch="*",
            ChecksumSHA256=_base64(digest),
            **extra,
            # Servers ask for it, and only for it, where an object is to be locked.
            **({"ContentMD5": _base64(_digest_of(source, "md5")[0])} if "ObjectLockMode" in extra else {}),
        )

    def _send_parts(self, key: str, source: IO[bytes], extra: Mapping[str, Any]) -> None:
        where = {"Bucket": self.place.bucket, "Key": self._name(key)}
        upload = where | {
            "UploadId": self.client.create_multipart_upload(**where, ChecksumAlgorithm="SHA256", **extra)["UploadId"]
        }
        try:
            parts: list[dict[str, Any]] = []
            while block := source.read(self.place.part_size_bytes):
                checksum = _base64(hashlib.sha256(block))
                number = len(parts) + 1
                sent = self.client.upload_part(**upload, PartNumber=number, Body=block, ChecksumSHA256=checksum)
                parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": checksum})
            self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
        except BaseException:
            # Parts of an upload that nobody completes are charged for ever; the lifecycle rule takes what is left.
            with contextlib.suppress(Exception):
                self.client.abort_multipart_upload(**upload)
            raise

    def _attributes(self, key: str) -> dict[str, Any]:
        if key.endswith("/bulk.bin"):
            return {"Tagging": CIPHERTEXT_TAG}
        if self.place.retain_days:
            until = datetime.now(UTC) + timedelta(days=self.place.retain_days)
            return {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until}
        return {}

    def _holds(self, key: str, source: IO[bytes]) -> bool:
        """Says whether `key` holds the bytes of `source`, by reading both."""
        digest, size = _digest_of(source)
        if self.size(key) != size:
            return False
        with self.open(key) as stored:
            return bool(_digest_of(stored, rewind=False)[0].digest() == digest.digest())

    def _head(self, key: str) -> Mapping[str, Any] | None:
        name = self._name(key)
        return found_or_none(lambda: self.client.head_object(Bucket=self.place.bucket, Key=name), self.place.bucket)

    def _answer(self, key: str) -> Mapping[str, Any] | None:
        name = self._name(key)
        try:
            return found_or_none(lambda: self.client.get_object(Bucket=self.place.bucket, Key=name), self.place.bucket)
        except Unreadable:
            raise PeerError(
                "object-unreadable", owner_of(key), f"{key} is archived, or encrypted with a key of its writer's."
            ) from None

    def _reader(self, key: str, answer: Mapping[str, Any]) -> S3Reader:
        where = {"Bucket": self.place.bucket, "Key": self._name(key)}
        return S3Reader(self.client, where, answer, self.place.attempts, owner_of(key))

    def _name(self, key: str) -> str:
        verify_name(key)
        return f"{self.place.root}/{key}" if self.place.root else key


def _digest_of(source: IO[bytes], algorithm: str = "sha256", rewind: bool = True) -> tuple[Any, int]:
    """Returns digest and size of a stream, and leaves a seekable one at its start."""
    digest, size = hashlib.new(algorithm, usedforsecurity=algorithm != "md5"), 0
    if rewind:
        source.seek(0)
    while block := source.read(BLOCK_BYTES):
        digest.update(block)
        size += len(block)
    if rewind:
        source.seek(0)
    return digest, size


def _base64(digest: Any) -> str:
    return base64.b64encode(digest.digest()).decode()
