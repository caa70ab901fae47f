"""What every secure sum must do, whatever is inside; inherited by one test class per protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import PeerError
from tests.secure_sum.protocol import Blobs, SecureSum
from tests.secure_sum.rounds import values_of

LENGTH = 41


class Run:
    """A protocol and the messages of one sum so far."""

    def __init__(self, protocol: SecureSum, length: int = LENGTH) -> None:
        self.protocol = protocol
        protocol.set_up()
        self.values = {site: values_of(site, length) for site in protocol.sites}
        self.uploads = {site: protocol.contribute(site, values) for site, values in self.values.items()}

    def total(self, *without: str) -> Blobs:
        return self.protocol.add({site: blobs for site, blobs in self.uploads.items() if site not in without})

    def certificate(self, total: Blobs) -> dict[str, bytes]:
        return {site: self.protocol.certify(site, total) for site in self.protocol.sites}

    def shares(self, total: Blobs, certificate: Mapping[str, bytes], active: tuple[str, ...]) -> dict[str, bytes]:
        return {site: self.protocol.share(site, total, certificate, active) for site in active}

    def open(self, total: Blobs, active: tuple[str, ...] | None = None) -> Any:
        certificate = self.certificate(total)
        shares = self.shares(total, certificate, active or self.first)
        return self.protocol.open(total, certificate, shares)

    @property
    def first(self) -> tuple[str, ...]:
        return self.protocol.sites[: self.protocol.threshold]

    def sum(self, *without: str) -> Any:
        return sum(values for site, values in self.values.items() if site not in without)


def altered(blob: bytes | Path, folder: Path, place: float) -> bytes | Path:
    """The same message with one bit flipped; a file stays a file."""
    data = bytearray(blob if isinstance(blob, bytes) else blob.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    if isinstance(blob, bytes):
        return bytes(data)
    path = folder / "altered"
    path.write_bytes(data)
    return path


class SecureSumSuite(ABC):
    """Inherit, and return the protocol under test from `make`."""

    @abstractmethod
    def make(self, length: int, folder: Path) -> SecureSum:
        """Returns a fresh protocol among at least four sites."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        return Run(self.make(LENGTH, tmp_path))

    def test_every_active_set_opens_the_exact_sum(self, run: Run) -> None:
        total = run.total()
        for active in combinations(run.protocol.sites, run.protocol.threshold):
            assert (run.open(total, active) == run.sum()).all()

    @pytest.mark.parametrize("length", [1, 2047, 2049, 140_000])
    def test_every_length_opens_exactly(self, length: int, tmp_path: Path) -> None:
        run = Run(self.make(length, tmp_path), length)
        opened = run.open(run.total())
        assert opened.dtype == np.int64
        assert (opened == run.sum()).all()

    def test_a_site_that_drops_out_is_not_in_the_sum(self, run: Run) -> None:
        gone = run.protocol.sites[-1]
        assert (run.open(run.total(gone)) == run.sum(gone)).all()

    def test_values_may_come_in_pieces(self, run: Run) -> None:
        site = run.protocol.sites[0]
        run.uploads[site] = run.protocol.contribute(site, iter(np.array_split(run.values[site], 3)))
        assert (run.open(run.total()) == run.sum()).all()

    def test_a_sum_of_fewer_sites_than_the_minimum_is_refused(self, run: Run) -> None:
        few = run.protocol.sites[: run.protocol.minimum - 1]
        uploads = {site: run.uploads[site] for site in few}
        with pytest.raises(PeerError, match="fewer"):
            run.protocol.certify(few[0], run.protocol.add(uploads))
        assert (run.open(run.total()) == run.sum()).all()  # nobody agreed to anything before

    def test_a_site_agrees_to_one_sum(self, run: Run) -> None:
        """Two sums over sets that differ by one site would give that site's values by subtraction."""
        agreed, other = run.total(), run.total(run.protocol.sites[-1])
        certificate = run.certificate(agreed)
        for site in run.protocol.sites:
            with pytest.raises(PeerError, match="second"):
                run.protocol.certify(site, other)
        shares = run.shares(agreed, certificate, run.first)
        assert (run.protocol.open(agreed, certificate, shares) == run.sum()).all()

    def test_no_share_leaves_before_enough_sites_agreed_or_for_another_sum(self, run: Run) -> None:
        agreed, other = run.total(), run.total(run.protocol.sites[-1])
        certificate = run.certificate(agreed)
        one = dict(list(certificate.items())[:1])
        for total, signatures in ((agreed, {}), (agreed, one), (other, certificate)):
            for site in run.first:
                with pytest.raises(PeerError, match=r"certificate|quorum|another"):
                    run.protocol.share(site, total, signatures, run.first)

    def test_a_share_that_is_sent_again_is_the_same_bytes(self, run: Run) -> None:
        total = run.total()
        certificate = run.certificate(total)
        assert run.shares(total, certificate, run.first) == run.shares(total, certificate, run.first)

    def test_fewer_shares_than_the_threshold_open_nothing(self, run: Run) -> None:
        total = run.total()
        certificate = run.certificate(total)
        shares = run.shares(total, certificate, run.first)
        for site in run.first:
            with pytest.raises(PeerError, match=r"exactly t|missing|do not open"):
                run.protocol.open(total, certificate, {s: b for s, b in shares.items() if s != site})

    @pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
    def test_an_upload_that_was_altered_is_refused_by_name(self, run: Run, tmp_path: Path, place: float) -> None:
        victim = run.protocol.sites[1]
        for name, blob in run.uploads[victim].items():
            blobs = {**run.uploads[victim], name: altered(blob, tmp_path, place)}
            before = {path.name for path in tmp_path.iterdir()}
            with pytest.raises(PeerError, match=victim):
                run.protocol.add({**run.uploads, victim: blobs})
            assert {path.name for path in tmp_path.iterdir()} == before
        assert (run.open(run.total()) == run.sum()).all()

    @pytest.mark.parametrize("place", [0.0, 0.4, 1.0])
    def test_a_sum_that_was_altered_is_refused_before_it_is_believed(
        self, run: Run, tmp_path: Path, place: float
    ) -> None:
        honest = run.total()
        certificate = run.certificate(honest)
        shares = run.shares(honest, certificate, run.first)
        for name in ("record", "key-sum", "bulk-sum"):
            if name not in honest:
                continue
            with pytest.raises(PeerError):
                run.protocol.open({**honest, name: altered(honest[name], tmp_path, place)}, certificate, shares)
        assert (run.protocol.open(honest, certificate, shares) == run.sum()).all()

    @pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
    def test_a_share_that_was_altered_is_refused_by_name(self, run: Run, tmp_path: Path, place: float) -> None:
        total = run.total()
        certificate = run.certificate(total)
        shares = run.shares(total, certificate, run.first)
        for site in run.first:
            with pytest.raises(PeerError, match=site):
                run.protocol.open(total, certificate, {**shares, site: altered(shares[site], tmp_path, place)})
        assert (run.protocol.open(total, certificate, shares) == run.sum()).all()
