"""How a hospital asks to be entered in plans."""

from __future__ import annotations

from pydantic import Field

from schemas.canonical import HexKey, Name
from schemas.envelope import Predicate


class JoinRequest(Predicate):
    """A site's entry for future plans, about no study. Signed by the identity key that it names.

    The signature proves that the sender holds that key and nothing about who it is: the coordinator compares the key's
    fingerprint with the hospital by another way.

    Attributes:
        hpke_key: Raw HPKE public key (MLKEM768-X25519, 1216 bytes), hex.
        declared_patients: Rounded cohort size; public.
        time: UTC, second precision; informative, decides only which of several requests is the newest.
    """

    site: Name
    identity_key: HexKey
    hpke_key: str = Field(pattern=r"^[0-9a-f]{2432}$")
    declared_patients: int = Field(ge=1, le=100_000_000)
    key_holder: bool
    contributor: bool
    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
