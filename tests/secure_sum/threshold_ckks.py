"""The secure sum of `tasks.secure_sum` behind the interface of suite and benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from schemas.envelope import envelope_digest, open_envelope
from schemas.messages import Record, RecordSignature, ShareRequest
from site_agents.keystore import Keystore
from tasks.secure_sum.bulk import add_bulk
from tasks.secure_sum.opening import open_sum
from tasks.secure_sum.record import add_key_ciphertexts, verify_contribution, verify_record, verify_shamir_blob
from tasks.secure_sum.share import make_share
from tests.secure_sum.plans import identities
from tests.secure_sum.protocol import Blobs, Int64
from tests.secure_sum.world import Round, make_context, shared_ceremony, sign


class ThresholdCkksSum:
    """One round: messages go through the same functions as in a study, agreements into the same register."""

    def __init__(self, sites: int, length: int, folder: Path, processes: int = 1) -> None:
        self._folder, self._length, self._processes = folder, length, processes
        self._ceremony = shared_ceremony(sites)
        plan = self._ceremony.plan
        self.sites = tuple(site.name for site in plan.contributors)
        self.threshold, self.minimum = plan.threshold.t, plan.threshold.k_min

    def set_up(self) -> None:
        context = replace(make_context(self._ceremony, self._length), processes=self._processes)
        self._round = Round(self._ceremony, context, self._folder)
        self._registers = {
            site: Keystore(self._folder / f"memory-{site}", self._ceremony.plan.study, 64) for site in self.sites
        }

    def contribute(self, site: str, values: Int64 | Iterable[Int64]) -> Blobs:
        round_ = self._round
        round_.contribute(site, values)
        parts = round_.parts[site]
        self._own(site).write_bytes(round_.envelopes[site])
        sealed = {f"shamir-{holder}": blob for holder, blob in parts.shamir.items()}
        return {"envelope": round_.envelopes[site], "key": parts.key_ciphertext, "bulk": round_.bulk(site), **sealed}

    def add(self, uploads: Mapping[str, Blobs]) -> Blobs:
        context, plan = self._round.context, self._ceremony.plan
        given = {site: verify_contribution(context, _bytes(blobs["envelope"]), site) for site, blobs in uploads.items()}
        for site, message in given.items():
            for holder in context.points:
                verify_shamir_blob(context, message, holder, _bytes(uploads[site][f"shamir-{holder}"]))
        keys = {site: _bytes(blobs["key"]) for site, blobs in uploads.items()}
        key_sum = add_key_ciphertexts(context, given, keys)
        bulk_sum = self._folder / f"sum-of-{len(given)}"
        add_bulk(context, {site: (message, uploads[site]["bulk"]) for site, message in given.items()}, bulk_sum)
        i = context.instruction
        record = Record(
            sid_star=i.sid_star,
            epoch=i.epoch,
            round=i.round,
            attempt=i.attempt,
            instruction=context.instruction_digest,
            contributions=tuple((s, envelope_digest(_bytes(uploads[s]["envelope"]))) for s in sorted(given)),
            dropped=tuple((site, "silent") for site in self.sites if site not in given),
            key_sum=key_sum.digest,
        )
        shown = {f"{site}/{name}": blob for site, blobs in uploads.items() for name, blob in blobs.items()}
        envelope = sign(record, plan, identities(len(plan.sites))["coordinator"].signing)[0]
        return {"record": envelope, "key-sum": key_sum.blob, "bulk-sum": bulk_sum, **shown}

    def certify(self, site: str, total: Blobs) -> bytes:
        record, digest = self._record(total)
        secrets, context = self._ceremony.secrets[site], self._round.context
        listed = self._shown(total, record, "envelope")
        keys, sealed = self._shown(total, record, "key"), self._shown(total, record, f"shamir-{site}")
        own = self._own(site).read_bytes() if self._own(site).exists() else None
        verify_record(secrets, context, record, listed, keys, sealed, own)
        i = context.instruction
        self._registers[site].register_record(i.epoch, i.round, digest)
        message = RecordSignature(sid_star=i.sid_star, round=i.round, holder=site, record=digest)
        return sign(message, self._ceremony.plan, secrets.signing_key)[0]

    def share(self, site: str, total: Blobs, certificate: Mapping[str, bytes], active: tuple[str, ...]) -> bytes:
        record, digest = self._record(total)
        return make_share(
            self._ceremony.secrets[site],
            self._round.context,
            record,
            digest,
            self._request(digest, certificate, active),
            certificate,
            _bytes(total["key-sum"]),
            self._shown(total, record, "envelope"),
            self._shown(total, record, f"shamir-{site}"),
        )

    def open(self, total: Blobs, certificate: Mapping[str, bytes], shares: Mapping[str, bytes]) -> Int64:
        record, digest = self._record(total)
        request = self._request(digest, certificate, tuple(sorted(shares)))
        key_sum = _bytes(total["key-sum"])
        return open_sum(self._round.context, record, digest, request, key_sum, total["bulk-sum"], shares)

    def _own(self, site: str) -> Path:
        return self._folder / f"own-contribution-of-{site}"

    def _record(self, total: Blobs) -> tuple[Record, str]:
        plan, data = self._ceremony.plan, _bytes(total["record"])
        name, key = plan.coordinator.name, plan.coordinator.identity_key
        return open_envelope(Record, data, plan.study, key, name), envelope_digest(data)

    def _request(self, digest: str, certificate: Mapping[str, bytes], active: tuple[str, ...]) -> ShareRequest:
        i = self._round.context.instruction
        signed = tuple((holder, envelope_digest(data)) for holder, data in sorted(certificate.items()))
        fields: dict[str, Any] = {"sid_star": i.sid_star, "round": i.round, "record": digest, "number": 1}
        return ShareRequest(certificate=signed, active_set=active, **fields)

    @staticmethod
    def _shown(total: Blobs, record: Record, item: str) -> dict[str, bytes]:
        return {site: _bytes(total[f"{site}/{item}"]) for site, _ in record.contributions if f"{site}/{item}" in total}


def _bytes(blob: bytes | Path) -> bytes:
    return blob if isinstance(blob, bytes) else blob.read_bytes()
