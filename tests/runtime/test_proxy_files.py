"""What `consilium coordinator proxy` leaves on disk: who can read it, and whom it lets in later."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

import pytest

from infra.cli import main
from infra.processes import find_free_port
from infra.proxy.config import ProxyOptions, current_user, passable, verify_tls_files, write_proxy
from infra.proxy.owner import mark_owner, verify_owner
from schemas.errors import OperationError
from tests.consortium.tls import write_certificate
from tests.runtime.nginx import NGINX, Proxy, needs_nginx, running_nginx
from tests.runtime.waiting import wait_until
from tests.simulator import Prepared, change_settings, copy_study, prepare


@needs_nginx
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize(("named", "status"), [(True, 502), (False, 500)])
def test_nginx_started_by_root_reads_a_closed_home_as_the_user_who_wrote_it(named: bool, status: int) -> None:
    owner = pwd.getpwnam("daemon")
    home = Path(tempfile.mkdtemp(prefix="consilium-home-"))
    try:
        certificate, key = write_certificate(home)
        port, site = find_free_port(), "general"
        user = f"daemon {grp.getgrgid(owner.pw_gid).gr_name}" if named else None
        options = ProxyOptions(f"127.0.0.1:{port}", "http://127.0.0.1:9", certificate, key, user)
        config = write_proxy(home / "proxy", [site], options)
        for path in (home, *home.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        assert home.stat().st_mode & 0o077 == 0
        with running_nginx(config, home / "nginx.log", port):
            running = Proxy(port, home / "proxy", certificate, site, site)
            # With its token the site is let through, to a server that is not there.
            assert running.ask("GET", "/api/health", site) == status
    finally:
        shutil.rmtree(home)


def test_the_user_who_writes_the_configuration_is_nginxs_and_root_is_never_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon = pwd.getpwnam("daemon")
    monkeypatch.setattr(os, "geteuid", lambda: daemon.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: daemon.pw_gid)
    options = ProxyOptions("127.0.0.1:8443", "http://127.0.0.1:4200", tmp_path / "t", tmp_path / "k", current_user())
    config = write_proxy(tmp_path / "proxy", ["rural"], options).read_text()
    assert re.findall(r"^user .*$", config, re.MULTILINE) == ["user daemon daemon;"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("CONSILIUM_DEBUG", "1")
    assert current_user() is None
    command = ["coordinator", "proxy", "--home", str(tmp_path), "--listen", "127.0.0.1:8443"]
    with pytest.raises(OperationError, match="gives up root and cannot pass the folder") as caught:
        main.main([*command, "--certificate", "t", "--key", "k"], standalone_mode=False)
    assert caught.value.code == "proxy-as-root"


def test_a_folder_that_others_cannot_pass_is_noticed(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        assert not passable(folder)
        assert not passable(folder / "proxy")
        folder.chmod(0o711)
        assert passable(folder)
        assert passable(folder / "proxy" / "deeper")
    assert not passable(closed / "proxy")


@needs_nginx
def test_certificate_and_token_are_replaced_as_the_runbook_says() -> None:
    home = Path(tempfile.mkdtemp(prefix="consilium-proxy-"))
    home.chmod(0o711)
    try:
        certificate, key = write_certificate(home)
        port, folder = find_free_port(), home / "proxy"
        options = ProxyOptions(f"127.0.0.1:{port}", "http://127.0.0.1:9", certificate, key)
        config = write_proxy(folder, ["general", "rural"], options)
        with running_nginx(config, home / "nginx.log", port):
            old = (folder / "tokens" / "general").read_text().strip()
            before = ssl.get_server_certificate(("127.0.0.1", port))

            def replaced() -> bool:
                # More than once: for a moment the old worker accepts beside the new one.
                return all(ssl.get_server_certificate(("127.0.0.1", port)) != before for _ in range(20))

            write_certificate(home)
            (folder / "tokens" / "general").unlink()
            write_proxy(folder, ["general", "rural"], options)
            subprocess.run([str(NGINX), "-s", "reload", "-c", str(config)], check=True, capture_output=True)
            wait_until(replaced)
            running = Proxy(port, folder, certificate, "general", "rural")
            assert running.ask("GET", "/api/health", "general", old) == 401
            # Let through, to a server that is not there; nobody else's token changed.
            assert [running.ask("GET", "/api/health", site) for site in ("general", "rural")] == [502, 502]
    finally:
        shutil.rmtree(home)


def test_a_repeated_write_keeps_tokens_and_no_file_holds_them_for_others(tmp_path: Path) -> None:
    options = ProxyOptions("127.0.0.1:8443", "http://127.0.0.1:4200", tmp_path / "tls.pem", tmp_path / "key.pem")
    config = write_proxy(tmp_path / "proxy", ["general", "rural"], options)
    token = (tmp_path / "proxy" / "tokens" / "general").read_text()
    write_proxy(tmp_path / "proxy", ["general", "rural"], options)
    assert (tmp_path / "proxy" / "tokens" / "general").read_text() == token
    assert (tmp_path / "proxy" / "tokens" / "general").stat().st_mode & 0o077 == 0
    assert token.strip() not in config.read_text() + (tmp_path / "proxy" / "users").read_text()


def test_a_folder_that_was_there_is_not_opened(tmp_path: Path) -> None:
    options = ProxyOptions("127.0.0.1:8443", "http://127.0.0.1:4200", tmp_path / "tls.pem", tmp_path / "key.pem")
    for mode in (0o700, 0o750):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        for _ in range(2):
            write_proxy(folder, ["rural"], options)
            assert folder.stat().st_mode & 0o777 == mode
            assert (folder / "logs").stat().st_mode & 0o777 == 0o700
    # Its own may be passed, so that nginx as somebody else finds its files; it shows nobody what is in it.
    write_proxy(tmp_path / "made", ["rural"], options)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o711


def test_a_second_coordinator_does_not_lock_out_the_hospitals_of_the_first(
    prepared_study: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_DEBUG", "1")
    first = copy_study(prepared_study, tmp_path / "first")
    homes = [first.workdir.coordinator, prepare(tmp_path / "second", rounds=1).workdir.coordinator]
    for home in homes:
        change_settings(home, prefect_api_url="http://127.0.0.1:4200/api")

    def write(home: Path, *out: str) -> None:
        tls = ["--listen", "127.0.0.1:8443", "--certificate", str(tmp_path / "t"), "--key", str(tmp_path / "k")]
        main.main(["coordinator", "proxy", "--home", str(home), *tls, *out], standalone_mode=False)

    shared = tmp_path / "shared"
    for missing, option in (("t", "--certificate"), ("k", "--key")):
        with pytest.raises(OperationError, match=f"Expected a PEM file at {tmp_path}/{missing}; there is none") as lost:
            write(homes[0], "--out", str(shared))
        assert (lost.value.code, lost.value.remedy) == ("tls-file-missing", f"Correct {option}.")
        assert not shared.exists()
        (tmp_path / missing).write_text("PEM")
    for _ in range(2):
        write(homes[0], "--out", str(shared))
    before = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}
    with pytest.raises(OperationError, match="holds the proxy of another coordinator") as caught:
        write(homes[1], "--out", str(shared))
    assert (caught.value.code, str(caught.value.remedy)) == (
        "proxy-of-another",
        "Name another --out, and another port in --listen.",
    )
    assert {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()} == before
    write(homes[1], "--out", str(tmp_path / "apart"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_key_that_only_root_can_look_at_is_left_to_roots_nginx() -> None:
    owner = pwd.getpwnam("daemon")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        (folder / "closed").mkdir(mode=0o700)
        key, missing = folder / "closed" / "key.pem", folder / "key.pem"
        os.seteuid(owner.pw_uid)
        try:
            verify_tls_files(ProxyOptions("127.0.0.1:8443", "http://127.0.0.1:4200", key, key))
            with pytest.raises(OperationError, match="there is none"):
                verify_tls_files(ProxyOptions("127.0.0.1:8443", "http://127.0.0.1:4200", key, missing))
        finally:
            os.seteuid(0)


def test_an_older_versions_folder_is_taken_over_by_those_whom_it_lets_in(tmp_path: Path) -> None:
    options = ProxyOptions("127.0.0.1:8443", "http://127.0.0.1:4200", tmp_path / "tls.pem", tmp_path / "key.pem")
    write_proxy(tmp_path, ["general", "rural"], options)
    with pytest.raises(OperationError, match="its hospitals would be locked out"):
        verify_owner(tmp_path, "aa", ["general", "city"], default=False)
    verify_owner(tmp_path, "aa", ["general", "city"], default=True)
    verify_owner(tmp_path, "aa", ["general", "rural", "city"], default=False)
    mark_owner(tmp_path, "aa")
    # Whose it is decides from here on, not whom it lets in: the next study of this home may have other hospitals.
    verify_owner(tmp_path, "aa", ["city"], default=False)
    for default in (False, True):
        with pytest.raises(OperationError, match="its hospitals would be locked out"):
            verify_owner(tmp_path, "bb", ["general", "rural"], default=default)


@pytest.mark.parametrize("name", ["Rural", "a b", "a;b", "../x", "a{b"])
def test_a_name_that_could_change_the_configuration_is_refused(tmp_path: Path, name: str) -> None:
    options = ProxyOptions("127.0.0.1:8443", "http://127.0.0.1:4200", tmp_path / "tls.pem", tmp_path / "key.pem")
    with pytest.raises(OperationError, match="Expected site names"):
        write_proxy(tmp_path / "proxy", [name], options)


def test_a_server_address_that_is_none_is_refused(tmp_path: Path) -> None:
    options = ProxyOptions("127.0.0.1:8443", "https://elsewhere/;", tmp_path / "tls.pem", tmp_path / "key.pem")
    with pytest.raises(OperationError, match="http://host:port"):
        write_proxy(tmp_path / "proxy", ["rural"], options)
