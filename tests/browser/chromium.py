"""A headless Chromium that reaches this machine only, or a skip that says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 60_000


@contextmanager
def open_page() -> Iterator[tuple[Any, set[str]]]:
    """Yields a page and the set of hosts that it asked for anything; a request beyond this machine is refused."""
    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    hosts: set[str] = set()

    def decide(route: Any) -> None:
        parts = urlsplit(route.request.url)
        if parts.scheme in ("http", "https", "ws", "wss"):
            hosts.add(str(parts.hostname))
        if parts.scheme in ("data", "blob", "about", "file") or parts.hostname == "127.0.0.1":
            route.continue_()
        else:
            route.abort()

    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1300, "height": 1400})
            page.context.route("**/*", decide)
            page.context.set_default_timeout(PATIENCE_MS)
            yield page, hosts
        finally:
            browser.close()
