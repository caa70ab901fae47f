"""The contract check of a site's table, remembered for files whose bytes have not changed.

The verdict is a function of the bytes of rows and mapping and of the contract, so within one process it is worked out
once for each; the digest of the bytes is taken again every time. A database has no bytes: its rows are checked again.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from schemas.canonical import digest_of
from schemas.contract import ContractVerdict, DataContract
from site_agents.cohort.reader import LocalData, read_batches

_REMEMBERED = 256
_VERDICTS: OrderedDict[tuple[str, str], CheckedTable] = OrderedDict()


@dataclass(frozen=True)
class CheckedTable:
    """A table that passed.

    Attributes:
        patients: Distinct patients; private, it never leaves the site.
    """

    verdict: ContractVerdict
    patients: int


def check_cohort(local: LocalData | Path, contract: DataContract) -> CheckedTable:
    """Checks the site's table against `contract`.

    Raises:
        SiteDataError: the table cannot be read, or breaks a rule; never remembered.
    """
    local = LocalData.of(local)
    contract_digest = digest_of(contract)
    before = local.fingerprint()
    known = _VERDICTS.get((before, contract_digest)) if before else None
    if known is not None:
        _VERDICTS.move_to_end((before, contract_digest))
        return known
    checked = _check(local, contract)
    # Rows that were replaced while they were checked are remembered under neither digest.
    if before and local.fingerprint() == before:
        _VERDICTS[before, contract_digest] = checked
        while len(_VERDICTS) > _REMEMBERED:
            _VERDICTS.popitem(last=False)
    return checked


def _check(local: LocalData, contract: DataContract) -> CheckedTable:
    from tasks.contract.suite import check_batches, verify_report

    report = verify_report(contract, check_batches(contract, read_batches(local, contract)))
    return CheckedTable(report.verdict, report.patients)
