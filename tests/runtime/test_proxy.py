"""Who gets in: a real nginx with the configuration that `consilium coordinator proxy` writes, before a real server."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from flows.dispatch import dispatch, wait_for_end
from infra.prefect_server import PrefectServer, is_healthy, prefect_client_environment, why_unhealthy
from infra.processes import find_free_port, start_process
from infra.proxy.config import EVENT_CONNECTIONS, ProxyOptions, write_proxy
from schemas.errors import OperationError
from site_agents.worker import ensure_site_deployments, ensure_site_pool, run_agent
from tests.consortium.tls import write_certificate
from tests.runtime.nginx import Proxy, needs_nginx, running_nginx
from tests.runtime.site_process import make_flows
from tests.runtime.waiting import wait_until


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
        with running_nginx(config, folder / "nginx.log", port):
            yield Proxy(port, folder / "nginx", certificate, *sites)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def open_events(proxy: Proxy, site: str, token: str | None = None) -> tuple[ssl.SSLSocket, int]:
    """Opens a connection for events as an agent does; returns it with the status of the answer."""
    context = ssl.create_default_context(cafile=str(proxy.authority))
    pair = base64.b64encode(f"{site}:{token or proxy.token(site)}".encode()).decode()
    lines = ["GET /api/events/in HTTP/1.1", "Host: proxy", f"Authorization: Basic {pair}", "Upgrade: websocket"]
    lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: bm90IGEgc2VjcmV0LCBvaw==", "", ""]
    plain = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
    opened = context.wrap_socket(plain, server_hostname="127.0.0.1")
    opened.sendall("\r\n".join(lines).encode())
    return opened, int(opened.recv(1 << 16).split()[1])


@needs_nginx
def test_a_token_opens_a_few_connections_for_events_and_takes_none_from_the_others(proxy: Proxy) -> None:
    with ExitStack() as stack:

        def status(site: str, token: str | None = None) -> int:
            opened, answer = open_events(proxy, site, token)
            stack.enter_context(opened)
            return answer

        assert [status(proxy.site, "guessed") for _ in range(EVENT_CONNECTIONS)] == [401] * EVENT_CONNECTIONS
        assert [status(proxy.site) for _ in range(EVENT_CONNECTIONS)] == [101] * EVENT_CONNECTIONS
        assert status(proxy.site) == 503
        assert status(proxy.other) == 101
        assert proxy.ask("GET", "/api/health", proxy.site) == 200


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
