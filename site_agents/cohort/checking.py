"""The contract check of a site's table, remembered for a file whose bytes have not changed.

The verdict is a function of the file's bytes and of the contract, so within one process it is worked out once for each;
the digest of the bytes is taken again every time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from schemas.canonical import digest_of
from schemas.contract import ContractVerdict, DataContract

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


def check_cohort(path: Path, contract: DataContract) -> CheckedTable:
    """Checks the table at `path` against `contract`.

    Raises:
        SiteDataError: the table cannot be read, or breaks a rule; never remembered.
    """
    contract_digest = digest_of(contract)
    before = _file_digest(path)
    known = _VERDICTS.get((before, contract_digest)) if before else None
    if known is not None:
        _VERDICTS.move_to_end((before, contract_digest))
        return known
    checked = _check(path, contract)
    # A file that was replaced while it was checked is remembered under neither digest.
    if before and _file_digest(path) == before:
        _VERDICTS[before, contract_digest] = checked
        while len(_VERDICTS) > _REMEMBERED:
            _VERDICTS.popitem(last=False)
    return checked


def _check(path: Path, contract: DataContract) -> CheckedTable:
    from site_agents.cohort.reader import count_patients, read_table
    from tasks.contract.suite import verify_table

    table = read_table(path, contract)
    return CheckedTable(verify_table(contract, table), count_patients(contract, table))


def _file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file, "" for anything that is not a readable file: the reader will say what is wrong."""
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError:
        return ""
