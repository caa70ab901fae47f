"""Evidence that an earlier version wrote keeps verifying; the patients in it were invented.

`frozen/agreed.txt` and `frozen/study.txt` were written by the software as it was before exports had consistency proofs
and a crate, and before any field that `LATER` lists: an agreement of four sites, and a whole study of theirs with 60
invented patients each, one round and an evaluation. Base64 of xz of JSON: path -> lines (of an envelope, with its
payload decoded), or base64 of a binary object. Of the whole study the encryption's binary objects were left out, since
random bytes do not get smaller; the signed manifest still lists them.
"""

from __future__ import annotations

import base64
import json
import lzma
from pathlib import Path
from typing import Any

from schemas.envelope import PAYLOAD_TYPE
from tasks.audit.keys import PublicKeys
from tasks.audit.report import AuditReport
from tasks.audit.verify import open_evidence, verify_context, verify_evidence

FROZEN = Path(__file__).parent / "frozen"
LATER = {"C30", "C31", "C32", "C33", "C34"}
# What the whole study's signed messages alone must still give.
FROM_MESSAGES = {"C01", "C03", "C04", "C06", "C07", "C09", "C10", "C11", "C12", "C15"} | {
    f"C{number}" for number in range(21, 28)
}


def _line(stored: str | dict[str, str]) -> str:
    if isinstance(stored, str):
        return stored
    envelope = {
        "payload": base64.b64encode(stored["payload"].encode()).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": stored["keyid"], "sig": stored["sig"]}],
    }
    return json.dumps(envelope, sort_keys=True, separators=(",", ":"))


def unpack(name: str, folder: Path) -> PublicKeys:
    """Writes a frozen example as the folder that was exported, and returns its key list."""
    stored: dict[str, Any] = json.loads(lzma.decompress(base64.b64decode((FROZEN / name).read_text())))
    for path, content in stored["files"].items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_bytes(base64.b64decode(content))
        else:
            target.write_bytes("\n".join(map(_line, content)).encode())
    return PublicKeys.model_validate(stored["keys"])


def by_status(report: AuditReport, status: str) -> set[str]:
    return {result.check for result in report.results if result.status == status}


def test_an_agreement_of_an_older_version_is_verified(tmp_path: Path) -> None:
    report = verify_evidence(tmp_path, unpack("agreed.txt", tmp_path))
    assert report.passed, [finding for result in report.results for finding in result.findings]
    assert by_status(report, "checked") == FROM_MESSAGES - {"C15", "C21", "C22", "C23", "C24", "C26", "C27"} | {
        "C02",
        "C05",
        "C13",
    }
    assert by_status(report, "not-applicable") >= LATER
    assert report.result("C30").detail == "exported by a version that did not write it"


def test_a_whole_study_of_an_older_version_is_verified_as_far_as_its_objects_were_kept(tmp_path: Path) -> None:
    context = open_evidence(tmp_path, unpack("study.txt", tmp_path))
    report = verify_context(context)
    assert by_status(report, "checked") >= FROM_MESSAGES
    assert by_status(report, "not-applicable") >= LATER
    missing = {finding.place for finding in report.result("C02").findings}
    assert all(path.endswith(".bin") and not (tmp_path / path).exists() for path in missing)
    assert {finding.reason for finding in report.result("C02").findings} == {"is in the manifest but missing"}
    # Without them a ceremony cannot be derived again, and what rests on it cannot be judged; nothing else fails.
    assert by_status(report, "failed") <= {"C02", "C05", "C08", "C13", "C14", "C16", "C17", "C18", "C19", "C20"}
