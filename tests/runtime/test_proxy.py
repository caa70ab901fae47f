"""Who gets in: a real nginx with the configuration that `consilium coordinator proxy` writes, before a real server."""

from __future__ import annotations

import asyncio
import base64
import grp
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from flows.dispatch import dispatch, wait_for_end
from infra.cli import main
from infra.prefect_server import PrefectServer, is_healthy, prefect_client_environment, why_unhealthy
from infra.processes import find_free_port, start_process
from infra.proxy.config import ProxyOptions, current_user, passable, write_proxy
from infra.proxy.owner import mark_owner, verify_owner
from schemas.errors import OperationError
from site_agents.worker import ensure_site_deployments, ensure_site_pool, run_agent
from tests.consortium.tls import write_certificate
from tests.runtime.site_process import make_flows
from tests.runtime.waiting import wait_until
from tests.simulator import Prepared, change_settings, copy_study, prepare

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@dataclass(frozen=True)
class Proxy:
    port: int
    folder: Path
    authority: Path
    site: str
    other: str

    @property
    def api_url(self) -> str:
        return f"https://127.0.0.1:{self.port}/api"

    def token(self, site: str) -> str:
        return (self.folder / "tokens" / site).read_text().strip()

    def ask(self, method: str, target: str, site: str | None = None, token: str | None = None) -> int:
        """Sends one request exactly as spelled and returns the status."""
        context = ssl.create_default_context(cafile=str(self.authority))
        connection = HTTPSConnection("127.0.0.1", self.port, context=context, timeout=20)
        headers = {"Content-Type": "application/json"}
        if site is not None:
            pair = f"{site}:{self.token(site) if token is None else token}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        try:
            connection.request(method, target, body=b"{}" if method != "GET" else None, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def proxy(server: PrefectServer) -> Iterator[Proxy]:
    # Outside pytest's folder, which only its owner passes: where root runs the tests, nginx' worker is somebody else.
    folder = Path(tempfile.mkdtemp(prefix="consilium-proxy-"))
    folder.chmod(0o711)
    certificate, key = write_certificate(folder)
    port = find_free_port()
    sites = [f"site-{uuid4().hex[:8]}", f"site-{uuid4().hex[:8]}"]
    options = ProxyOptions(f"127.0.0.1:{port}", server.ui_url, certificate, key)
    config = write_proxy(folder / "nginx", sites, options)
    try:
        with _nginx(config, folder / "nginx.log", port):
            yield Proxy(port, folder / "nginx", certificate, *sites)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _nginx(config: Path, log: Path, port: int) -> Iterator[None]:
    command = [str(NGINX), "-c", str(config), "-g", "daemon off;"]
    nginx = start_process("nginx", command, log=log, environment={"PATH": os.environ["PATH"]})
    try:
        wait_until(lambda: _listens(port) or not nginx.is_alive())
        assert nginx.is_alive(), nginx.log_tail()
        yield
    finally:
        nginx.stop()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@needs_nginx
@pytest.mark.usefixtures("prefect_settings")
def test_an_agent_works_through_the_proxy_with_its_token(proxy: Proxy, server: PrefectServer, tmp_path: Path) -> None:
    flows = make_flows(tmp_path)

    async def register() -> None:
        await ensure_site_pool(proxy.site)
        await ensure_site_deployments(proxy.site, flows)

    asyncio.run(register())
    settings = prefect_client_environment(proxy.api_url, tmp_path / "prefect", poll_seconds=0.3)
    environment = {
        **os.environ,
        **settings,
        "PREFECT_API_AUTH_STRING": f"{proxy.site}:{proxy.token(proxy.site)}",
        "PREFECT_API_SSL_CERT_FILE": str(proxy.authority),
        "SSL_CERT_FILE": str(proxy.authority),
        "NO_PROXY": "127.0.0.1",
        "CONSILIUM_TEST_UNREGISTERED": "1",
    }
    agent = start_process(
        proxy.site,
        [sys.executable, "-m", "tests.runtime.site_process", proxy.site, str(tmp_path)],
        log=tmp_path / "agent.log",
        environment=environment,
        folder=Path(__file__).parents[2],
    )
    try:
        wait_until(lambda: (tmp_path / "ready").exists() or not agent.is_alive())

        async def run() -> str:
            started = await dispatch(
                proxy.site, "site-round", {"study": "proxied", "round": 1}, f"proxied-{proxy.site}"
            )
            return (await wait_for_end(started, 90.0)).type

        assert asyncio.run(run()) == "COMPLETED", agent.log_tail(40)
    finally:
        agent.stop()
    seen = (proxy.folder / "logs" / "access.log").read_text()
    # nginx makes it 0644, and it names runs: nobody else gets that far.
    assert (proxy.folder / "logs").stat().st_mode & 0o077 == 0
    assert not list(proxy.folder.glob("*.log"))
    assert proxy.site in seen
    assert proxy.token(proxy.site) not in seen


@needs_nginx
@pytest.mark.usefixtures("prefect_settings")
def test_an_agent_whose_token_was_replaced_says_so(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.authority))
    old = {
        PREFECT_API_URL: proxy.api_url,
        PREFECT_API_AUTH_STRING: f"{proxy.site}:replaced",
        PREFECT_API_SSL_CERT_FILE: str(proxy.authority),
    }
    with temporary_settings(old), pytest.raises(OperationError, match="it refuses the site's token") as caught:
        asyncio.run(run_agent(proxy.site, {}, on_refusal=lambda *_: None, register=False))
    assert caught.value.code == "prefect-unreachable"
    assert "replaced" not in str(caught.value)


@needs_nginx
def test_the_check_at_an_agents_start_shows_the_token_and_knows_the_authority(proxy: Proxy) -> None:
    password, authority = f"{proxy.site}:{proxy.token(proxy.site)}", str(proxy.authority)
    assert is_healthy(proxy.api_url, password, authority)
    refused = "the proxy refuses the token"
    assert why_unhealthy(proxy.api_url, None, authority) == refused
    assert why_unhealthy(proxy.api_url, f"{proxy.site}:guessed", authority) == refused
    assert why_unhealthy(proxy.api_url, password) == "its certificate is not trusted here"


@needs_nginx
def test_nobody_without_a_token_gets_anything(proxy: Proxy) -> None:
    own = f"/api/work_pools/consilium-{proxy.site}"
    for method, target in (("GET", "/"), ("GET", "/api/health"), ("GET", own), ("POST", "/api/deployments/filter")):
        assert proxy.ask(method, target) in (401, 403)
        assert proxy.ask(method, target, proxy.site, "guessed") in (401, 403)
        assert proxy.ask(method, target, "nobody", proxy.token(proxy.site)) in (401, 403)
    assert proxy.ask("GET", own, proxy.site, proxy.token(proxy.other)) == 401


@needs_nginx
@pytest.mark.usefixtures("prefect_settings")
def test_a_token_reaches_its_own_pool_only(proxy: Proxy, tmp_path: Path) -> None:
    async def register() -> str:
        for site in (proxy.site, proxy.other):
            await ensure_site_pool(site)
        await ensure_site_deployments(proxy.other, make_flows(tmp_path))
        async with get_client() as client:
            return str((await client.read_deployment_by_name(f"site-round/{proxy.other}")).id)

    deployment = asyncio.run(register())
    own, foreign = (f"/api/work_pools/consilium-{site}" for site in (proxy.site, proxy.other))
    assert proxy.ask("GET", own, proxy.site) == 200
    refused = [
        ("GET", foreign),
        ("POST", f"{foreign}/get_scheduled_flow_runs"),
        ("PATCH", own),
        ("DELETE", own),
        ("PATCH", foreign),
        ("POST", "/api/work_pools/"),
        ("POST", "/api/deployments/"),
        ("PATCH", f"/api/deployments/{deployment}"),
        ("DELETE", f"/api/deployments/{deployment}"),
        ("POST", f"/api/deployments/{deployment}/create_flow_run"),
        ("POST", f"/api/deployments/{deployment}/schedules"),
        ("GET", f"/api/deployments/name/site-round/{proxy.other}"),
        ("POST", "/api/deployments/filter"),
        ("POST", "/api/flow_runs/filter"),
        ("POST", "/api/flow_runs/"),
        ("POST", "/api/logs/filter"),
        ("POST", "/api/artifacts/filter"),
        ("POST", "/api/block_documents/filter"),
        ("POST", "/api/automations/"),
        ("GET", "/api/admin/settings"),
        ("GET", "/"),
        ("GET", "/docs"),
    ]
    for method, target in refused:
        assert proxy.ask(method, target, proxy.site) == 403, (method, target)


@needs_nginx
def test_no_spelling_of_a_path_slips_through(proxy: Proxy) -> None:
    own, foreign = (f"consilium-{site}" for site in (proxy.site, proxy.other))
    spelled = [
        f"/api/work_pools/{own}/../{foreign}",
        f"/api/work_pools/{own}/%2e%2e/{foreign}",
        f"/api/work_pools/{own}%2f..%2f{foreign}",
        f"/api/work_pools//{foreign}",
        f"/api/./work_pools/{foreign}",
        f"/api/work_pools/{foreign}?x=/api/work_pools/{own}",
        f"/api/work_pools/{own}?x=1",
        f"/api/work_pools/{own}/",
        f"/API/work_pools/{own}",
        "/api/flow_runs/00000000-0000-0000-0000-000000000000/set_state/../../filter",
        "/api/health/../deployments/filter",
        "/api/health;/../admin/settings",
    ]
    for target in spelled:
        for method in ("GET", "POST"):
            # 404: nginx itself joined the dots before anything was asked behind it
            assert proxy.ask(method, target, proxy.site) in (400, 403, 404), target


@needs_nginx
@pytest.mark.usefixtures("prefect_settings")
def test_a_stranger_with_a_sites_name_does_not_use_up_its_requests(proxy: Proxy) -> None:
    asyncio.run(ensure_site_pool(proxy.site))
    context = ssl.create_default_context(cafile=str(proxy.authority))
    pair = base64.b64encode(f"{proxy.site}:guessed".encode()).decode()
    guess = f"GET /api/health HTTP/1.1\r\nHost: proxy\r\nAuthorization: Basic {pair}\r\n\r\n".encode()
    served = Event()

    def flood() -> None:
        while not served.is_set():
            plain = socket.create_connection(("127.0.0.1", proxy.port), timeout=20, source_address=("127.0.0.2", 0))
            with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as stranger:
                for _ in range(20):
                    stranger.sendall(guess * 40)
                    stranger.recv(1 << 16)

    with ThreadPoolExecutor() as strangers:
        floods = [strangers.submit(flood) for _ in range(3)]
        try:
            answers = [proxy.ask("GET", f"/api/work_pools/consilium-{proxy.site}", proxy.site) for _ in range(10)]
        finally:
            served.set()
        for flooded in floods:
            flooded.result()
    assert answers == [200] * 10


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
        with _nginx(config, home / "nginx.log", port):
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
        with _nginx(config, home / "nginx.log", port):
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
