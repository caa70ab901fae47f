"""A message whose signature was verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from schemas.envelope import Predicate

P = TypeVar("P", bound=Predicate)


@dataclass(frozen=True)
class Signed(Generic[P]):
    """A verified message, its place, its envelope bytes and the digest by which others refer to it."""

    path: str
    predicate: P
    data: bytes
    digest: str
