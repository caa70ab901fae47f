from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from infra.postgres import Postgres, find_postgres_programs, start_postgres
from schemas.errors import OperationError

pytestmark = pytest.mark.skipif(find_postgres_programs() is None, reason="PostgreSQL is not installed")


def _ask(cluster: Postgres, question: str) -> list[tuple[object, ...]]:
    import psycopg2  # type: ignore[import-untyped]

    with closing(psycopg2.connect(cluster.url(driver="postgresql"))) as connection, connection.cursor() as cursor:
        cursor.execute(question)
        found: list[tuple[object, ...]] = cursor.fetchall() if cursor.description else []
        connection.commit()
        return found


@pytest.fixture
def workdir() -> Iterator[Path]:
    """A folder that other users of the machine may pass through."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_cluster_goes_on_after_it_was_killed(workdir: Path) -> None:
    log = workdir / "postgres.log"
    first = start_postgres(workdir / "postgres", log=log)
    assert first.data_folder == workdir / "postgres" / "data"
    _ask(first, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
    _ask(first, "CHECKPOINT")
    first.process.kill()
    second = start_postgres(workdir / "postgres", log=log)
    try:
        assert _ask(second, "SELECT n FROM kept") == [(7,)]
        assert not first.socket_folder.exists()
    finally:
        second.stop()
    assert second.process.exit_code == 0
    assert not (second.data_folder / "postmaster.pid").exists()


def test_lock_file_that_names_somebody_elses_process_does_not_stop_a_resume(workdir: Path) -> None:
    cluster = start_postgres(workdir / "postgres", log=workdir / "postgres.log")
    cluster.stop()
    (cluster.data_folder / "postmaster.pid").write_text(f"{os.getpid()}\n{cluster.data_folder}\n")
    again = start_postgres(workdir / "postgres", log=workdir / "postgres.log")
    try:
        assert again.is_alive()
    finally:
        again.stop()


def test_nobody_else_reaches_the_database(workdir: Path) -> None:
    cluster = start_postgres(workdir / "postgres", log=workdir / "postgres.log")
    try:
        assert _ask(cluster, "SHOW listen_addresses") == [("",)]
        for folder in (cluster.socket_folder, cluster.data_folder):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert _ask(cluster, "SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'") == [(1,)]
    finally:
        cluster.stop()
    assert not cluster.socket_folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives the cluster to another user")
def test_root_with_a_private_workdir_gets_a_private_folder_elsewhere_and_finds_it_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    first = start_postgres(tmp_path / "postgres", log=tmp_path / "log")
    first.stop()
    second = start_postgres(tmp_path / "postgres", log=tmp_path / "log")
    second.stop()
    try:
        assert first.data_folder == second.data_folder
        assert not first.data_folder.is_relative_to(tmp_path)
        assert first.data_folder.stat().st_uid != 0
        assert stat.S_IMODE(first.data_folder.stat().st_mode) == 0o700
    finally:
        shutil.rmtree(first.data_folder)


def test_data_folder_that_somebody_else_prepared_is_refused(workdir: Path) -> None:
    (workdir / "postgres" / "data").mkdir(parents=True, mode=0o777)
    (workdir / "postgres" / "data").chmod(0o777)
    with pytest.raises(OperationError, match="Expected a private folder") as caught:
        start_postgres(workdir / "postgres", log=workdir / "postgres.log")
    assert caught.value.code == "postgres-folder-unsafe"
    assert not any((workdir / "postgres" / "data").iterdir())
