"""One certified round per test session; tests copy it before they alter it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import settings

from tests.secure_sum.rounds import LENGTH, SITES, values_of
from tests.secure_sum.world import Round, make_context, shared_ceremony

# make fuzz: 150 targets, four runs of each kind share these examples.
settings.register_profile("fuzz", max_examples=4_000)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many mutated messages were tried."""
    fuzzing = sys.modules.get("tests.secure_sum.test_fuzz")
    if fuzzing is not None and sum(fuzzing.COUNTED.values()):
        counted = ", ".join(f"{number:,} {what}" for what, number in fuzzing.COUNTED.items())
        terminalreporter.write_line(f"fuzz: {counted}; no crash, no acceptance")


def fingerprint(round_: Round) -> str:
    """Digest of everything that a round and its ceremony hold, files included."""
    ceremony, digest = round_.ceremony, sha256()
    shown = [ceremony.envelopes, ceremony.blobs, ceremony.sealed, round_.envelopes, round_.certificate]
    shown += [round_.key_blobs(), *({h: b[h] for h in b} for b in (p.shamir for p in round_.parts.values()))]
    for blobs in shown:
        for name in sorted(blobs):
            digest.update(f"{name}".encode() + blobs[name])
    for secrets in ceremony.secrets.values():
        digest.update(secrets.to_bytes())
    for site in round_.parts:
        digest.update(round_.bulk(site).read_bytes())
    digest.update(f"{round_.record}{round_.record_digest}{round_.context.instruction}".encode() + round_.key_sum)
    return digest.hexdigest()


@pytest.fixture(autouse=True)
def nothing_changed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test that is handed the shared round leaves it, and the ceremony's secrets, exactly as they were.

    So whatever a test sees refused has changed nothing: no record, no signature, no key, no file.
    """
    if "certified" not in request.fixturenames:
        yield
        return
    round_ = request.getfixturevalue("certified")
    before, files = fingerprint(round_), sorted(round_.folder.iterdir())
    yield
    assert fingerprint(round_) == before
    assert set(round_.folder.iterdir()) - set(files) <= {round_.folder / "sum.bulk"}


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Round:
    """Five contributions, site-04 dropped, certified by everybody; tests copy before they alter."""
    round_ = Round(shared_ceremony(5), make_context(shared_ceremony(5), LENGTH), tmp_path_factory.mktemp("round"))
    for site in SITES:
        round_.contribute(site, values_of(site, LENGTH))
    round_.propose(drop=("site-04",))
    round_.certify()
    return round_
