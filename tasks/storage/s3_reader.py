"""A stream over one S3 object that goes on where a connection broke."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

from schemas.errors import OperationError, PeerError
from tasks.storage.s3_errors import calling


class S3Reader(io.RawIOBase):
    """Reads an object that `get_object` has answered for.

    Args:
        where: Bucket and key of the object.
        answer: The first answer; its body is read first.
        attempts: How many further requests may be made for the rest.
        owner: Who is named if the object changes meanwhile.
    """

    def __init__(
        self, client: Any, where: Mapping[str, str], answer: Mapping[str, Any], attempts: int, owner: str
    ) -> None:
        super().__init__()
        self._client = client
        self._where = where
        self._owner = owner
        self._size = int(answer["ContentLength"])
        self._tag = answer.get("ETag")
        self._body: Any = answer["Body"]
        self._offset = 0
        self._attempts = attempts

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` as far as one read goes; 0 only at the end of the object.

        Raises:
            PeerError: `object-changed` if the object is not the one that was opened.
            OperationError: `store-unreachable`.
        """
        view = memoryview(buffer).cast("B")
        while self._offset < self._size:
            try:
                block = self._body.read(min(len(view), self._size - self._offset))
            except Exception as error:
                self._take_up(type(error).__name__)
                continue
            if not block:  # the connection ended early and politely
                self._take_up("connection closed")
                continue
            view[: len(block)] = block
            self._offset += len(block)
            return len(block)
        return 0

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()

    def _take_up(self, why: str) -> None:
        self._body.close()
        if self._attempts <= 0:
            raise OperationError(
                "store-unreachable", f"Reading from the store broke off ({why}).", "Check the network and run it again."
            )
        self._attempts -= 1
        time.sleep(0.1)
        with calling(self._where["Bucket"]):
            answer = self._client.get_object(**self._where, Range=f"bytes={self._offset}-{self._size - 1}")
        if answer.get("ETag") != self._tag:
            answer["Body"].close()
            raise PeerError("object-changed", self._owner, f"{self._where['Key']} changed while it was read.")
        self._body = answer["Body"]
