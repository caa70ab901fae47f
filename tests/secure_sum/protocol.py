"""What the test suite and the benchmark need of a secure sum: six steps; all that passes between them is bytes.

Our protocol is one implementation (`threshold_ckks.py`). Another one (additive homomorphic encryption, pairwise masks,
plain secret sharing) joins by implementing these steps and inheriting `suite.SecureSumSuite`; `tests.bench` measures
any implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
# Messages by name; large ones are files.
Blobs = Mapping[str, bytes | Path]


class SecureSum(Protocol):
    """One sum among `sites`, every party honest and in one process; the caller carries, withholds or alters messages.

    Attributes:
        sites: Contributors, who also hold the keys.
        threshold: Shares needed to open.
        minimum: Fewest contributors in a sum that may be opened.
    """

    sites: tuple[str, ...]
    threshold: int
    minimum: int

    def set_up(self) -> None:
        """Makes every key; nobody holds one that opens anything alone."""

    def contribute(self, site: str, values: Int64 | Iterable[Int64]) -> Blobs:
        """Returns everything that a site sends for its values."""

    def add(self, uploads: Mapping[str, Blobs]) -> Blobs:
        """Verifies and adds at the coordinator; returns what it shows to every site.

        Raises:
            PeerError: an upload is not what its sender made, or there are fewer than `minimum`.
        """

    def certify(self, site: str, total: Blobs) -> bytes:
        """Verifies a proposed sum at a site, which agrees to one sum for ever.

        Raises:
            PeerError: the sum is wrong, or the site agreed to another one.
        """

    def share(self, site: str, total: Blobs, certificate: Mapping[str, bytes], active: tuple[str, ...]) -> bytes:
        """Returns a site's part in opening, for one active set.

        Raises:
            PeerError: too few sites agreed.
        """

    def open(self, total: Blobs, certificate: Mapping[str, bytes], shares: Mapping[str, bytes]) -> Int64:
        """Returns the exact sum from the shares of one complete active set.

        Raises:
            PeerError: a share or the sum is wrong.
        """
