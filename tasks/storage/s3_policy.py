"""Who may do what in a study's bucket, as policy documents that S3 servers understand; and how long ciphertexts stay.

A participant writes under its own prefix only. A site reads every signed message and, of the blobs, those that it has
to verify or that are addressed to it; never another site's ciphertext of its update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.identity import verify_party_name
from tasks.storage.s3 import CIPHERTEXT_TAG

# MLflow's part of the store: what the coordinator keeps for itself, and no site can read.
ARTIFACTS = "mlflow"
_ROUND, _CEREMONY = "sites/*/*/round-*/attempt-*", "sites/*/*/epoch-*/ceremony"
# What a site reads of the others: signed messages, key ciphertexts that it adds again, shares of certified records that
# it combines again, public parts of a key ceremony, and blobs that are addressed to it. One star for each part of a
# name: some servers let a star end at the first character that fits what follows it.
_READABLE = (
    "sites/*.json",
    "sites/*.jsonl",
    f"{_ROUND}/key.bin",
    "sites/*/*/round-*/share-*.bin",
    f"{_ROUND}/shamir-{{holder}}.bin",
    f"{_CEREMONY}/public-share.bin",
    f"{_CEREMONY}/self-test-*.bin",
    f"{_CEREMONY}/sealed-{{holder}}.bin",
)
_LOOK = ("s3:ListBucket", "s3:GetBucketVersioning", "s3:GetBucketObjectLockConfiguration")
_ABANDONED_PARTS_DAYS = 2


def site_statements(bucket: str, root: str, site: str, enforce_conditions: bool = False) -> list[dict[str, Any]]:
    """Returns what a site's credentials allow.

    Args:
        bucket: The bucket.
        root: What all names of the store start with; empty for the whole bucket.
        enforce_conditions: Also let the server refuse a write without `If-None-Match` (Amazon's condition keys, which
            other servers may not know).

    Raises:
        OperationError: `bad-name`.
    """
    verify_party_name(site)
    own = f"sites/{site}/*"
    readable = [own, "coordinator/*", *(name.format(holder=site) for name in _READABLE)]
    # Elsewhere the tag would let a site's own evidence expire.
    tagged = [f"sites/{site}/*/round-*/attempt-*/bulk.bin"]
    return _statements(bucket, root, own, readable, tagged, enforce_conditions)


def coordinator_statements(bucket: str, root: str, enforce_conditions: bool = False) -> list[dict[str, Any]]:
    """Returns what the coordinator's credentials allow: reading everything, writing under `coordinator/` and `mlflow/`.

    MLflow writes without a condition, and over what it wrote before: `mlflow/` is never asked for one.
    """
    own, artifacts = "coordinator/*", f"{ARTIFACTS}/*"
    granted = _statements(bucket, root, own, [own, "sites/*", artifacts], [], enforce_conditions)
    actions, where = ["s3:PutObject", "s3:AbortMultipartUpload"], [_arn(bucket, root, artifacts)]
    return [*granted, {"Sid": "Artifacts", "Effect": "Allow", "Action": actions, "Resource": where}]


def identity_policy(statements: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a policy to attach to the user whose credentials the participant holds."""
    return {"Version": "2012-10-17", "Statement": statements}


def bucket_policy(parties: Mapping[str, tuple[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Returns one policy to attach to the bucket.

    Args:
        parties: Per participant its principal (an ARN such as `arn:aws:iam:::user/mercy`) and its statements.
    """
    statements = []
    for party, (principal, granted) in sorted(parties.items()):
        for statement in granted:
            name = f"{_identifier(party)}{statement['Sid']}"
            statements.append(statement | {"Sid": name, "Principal": {"AWS": [principal]}})
    return {"Version": "2012-10-17", "Statement": statements}


def lifecycle(root: str, ciphertext_days: int) -> dict[str, Any]:
    """Returns the bucket's lifecycle: bulk ciphertexts go after `ciphertext_days`, unfinished uploads after two days.

    What is needed to audit a study without its bulk ciphertexts stays.
    """
    key, _, value = CIPHERTEXT_TAG.partition("=")
    tag = {"Key": key, "Value": value}
    only = {"And": {"Prefix": f"{root}/", "Tags": [tag]}} if root else {"Tag": tag}
    return {
        "Rules": [
            {"ID": "ciphertexts", "Status": "Enabled", "Filter": only, "Expiration": {"Days": ciphertext_days}},
            {
                "ID": "unfinished-uploads",
                "Status": "Enabled",
                "Filter": {"Prefix": f"{root}/" if root else ""},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _ABANDONED_PARTS_DAYS},
            },
        ]
    }


def _statements(
    bucket: str, root: str, own: str, readable: list[str], tagged: list[str], conditions: bool
) -> list[dict[str, Any]]:
    def arn(name: str) -> str:
        return _arn(bucket, root, name)

    def allow(name: str, actions: list[str], where: list[str], **condition: Any) -> dict[str, Any]:
        return {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": where} | condition

    beside = ["s3:PutObjectRetention", "s3:AbortMultipartUpload"]
    if conditions:
        created = {"Condition": {"Null": {"s3:if-none-match": "false"}}}
        parts = {"Condition": {"Bool": {"s3:ObjectCreationOperation": "false"}}}
        writing = [
            allow("Create", ["s3:PutObject"], [arn(own)], **created),
            allow("SendParts", ["s3:PutObject"], [arn(own)], **parts),
            allow("Write", beside, [arn(own)]),
        ]
    else:
        writing = [allow("Write", ["s3:PutObject", *beside], [arn(own)])]
    return [
        *writing,
        *([allow("Tag", ["s3:PutObjectTagging"], [arn(name) for name in tagged])] if tagged else []),
        allow("Read", ["s3:GetObject"], [arn(name) for name in readable]),
        # Without it a server answers "forbidden" for what does not exist yet.
        allow("Look", list(_LOOK), [f"arn:aws:s3:::{bucket}"]),
    ]


def _arn(bucket: str, root: str, name: str) -> str:
    return f"arn:aws:s3:::{bucket}/{root}/{name}" if root else f"arn:aws:s3:::{bucket}/{name}"


def _identifier(name: str) -> str:
    # Names are lower-case: no two give the same letters, as a-1 and a1 would without the dash.
    return name.replace("-", "X")
