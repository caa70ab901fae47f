"""A coordinator and five hospitals made by the commands, on a folder and on S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.parties import (
    Consortium,
    approve_everybody,
    join_everybody,
)
from tests.simulator import Prepared
from tests.storage.s3_servers import S3Server, running_moto


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture
def consortium(prepared_study: Prepared, tmp_path: Path) -> Consortium:
    """Five hospitals that joined, and a coordinator that has not proposed yet; the store is a folder."""
    return join_everybody(prepared_study, tmp_path, ("--store", str(tmp_path / "store")))


@pytest.fixture
def on_s3(server: S3Server, prepared_study: Prepared, tmp_path: Path) -> Consortium:
    """The same with a bucket, a key per participant, and everybody's approval."""
    bucket = f"b{abs(hash(str(tmp_path))):x}"
    server.client.create_bucket(Bucket=bucket)
    endpoint = ("--endpoint", str(server.settings.endpoint), "--store", f"s3://{bucket}/study")
    return approve_everybody(join_everybody(prepared_study, tmp_path, endpoint))


@pytest.fixture
def approved(consortium: Consortium) -> Consortium:
    """The same after proposal and every hospital's approval."""
    return approve_everybody(consortium)
