"""The HTML report: everything that was promised is in it, it loads nothing, and hostile text stays text."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import main
from schemas.layout import attempt_key
from tasks.audit.html.page import render_page
from tasks.audit.html.parts import paragraph, table
from tasks.audit.keys import read_public_keys
from tasks.audit.verify import CHECKS, open_evidence, verify_context
from tests.audit.released import make_released_study
from tests.browser.chromium import open_page
from tests.conftest import FinishedStudy

SECTIONS = (
    "verdict",
    "study",
    "privacy",
    "quality",
    "rounds",
    "contract",
    "reviews",
    "regulations",
    "limits",
    "checks",
)


QUICK = tuple(check.number for check in CHECKS if check.number not in ("C27", "C28"))


class Reader(HTMLParser):
    """Collects what a browser would load, and whether every element is closed."""

    VOID = frozenset({"meta", "line", "polyline", "polygon", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "data", "srcset", "action") and not str(value).startswith("#"):
                self.loads.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.add(str(value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module", autouse=True)
def without_accountants() -> Iterator[None]:
    """The independent accountants take seconds each, and other tests run them."""
    quick = tuple(check for check in CHECKS if check.number in QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.audit.verify.CHECKS", quick)
        yield


@pytest.fixture(scope="module")
def page(finished_study: FinishedStudy) -> str:
    context = open_evidence(finished_study.evidence, read_public_keys(finished_study.keys))
    report = verify_context(context)
    assert report.passed
    return render_page(context, report)


def test_the_report_has_every_section_check_and_figure_and_loads_nothing(page: str) -> None:
    reader = read(page)
    assert reader.loads == []
    assert not reader.tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert {*SECTIONS, *QUICK} <= reader.ids
    assert page.count("<svg") == 3
    assert "http" not in page.replace('http-equiv="', "")
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    for words in ("Verified", "NIST SP 800-226", "GDPR Article 30", "GDPR Article 35", "HIPAA 45 CFR 164.312(b)"):
        assert words in page
    for words in ("EHDS Regulation, Article 73", "EU AI Act, Article 12", "A lawyer must check", "Nobody has decided"):
        assert words in page


def test_the_report_states_negative_results_and_what_is_not_covered(page: str) -> None:
    limits = page[page.index('id="limits"') : page.index('id="checks"')]
    assert "C32" in limits
    assert "What no check proves" in limits


def test_a_report_on_tampered_evidence_says_so_first_and_names_the_check(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_study.evidence, tmp_path / "evidence"))
    plan = finished_study.prepared.plan
    (folder / attempt_key(plan.study, 1, 1, plan.sites[0].name, "contribution.json")).unlink()
    out = tmp_path / "report.html"
    keys = str(finished_study.keys)
    result = CliRunner().invoke(main, ["audit", "report", str(folder), "--keys", keys, "--out", str(out)])
    assert result.exit_code == 15
    assert "NOT verified" in result.output
    page = out.read_text()
    read(page)
    assert page.index("NOT verified") < page.index('id="study"')
    assert re.search(r'href="#C02".*is in the manifest but missing', page, re.DOTALL)


def test_a_report_on_an_early_end_shows_what_there_is(tmp_path: Path) -> None:
    study = make_released_study(tmp_path / "study")
    report = study.audit(study.evidence)
    page = render_page(open_evidence(study.evidence, study.keys), report)
    read(page)
    assert "No round was begun" in page
    assert "No evaluation was opened" in page
    assert "The plan asks for 2 approvals" in page


def test_text_of_a_hostile_plan_stays_text() -> None:
    attack = '<script>alert(1)</script><img src="http://evil.invalid/x">'
    shown = paragraph(attack) + table([attack], [[attack]])
    assert read(shown).loads == []
    assert "<script" not in shown


def test_chromium_shows_every_section_of_the_report(page: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    path = tmp_path / "report.html"
    path.write_text(page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run([chromium, *flags], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    reader = Reader()
    reader.feed(done.stdout)
    assert reader.loads == []
    assert {*SECTIONS, *QUICK} <= reader.ids
    assert done.stdout.count("<svg") == 3


def test_a_reader_sees_verdict_plots_and_regulations_and_the_page_asks_nobody_for_anything(
    page: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page)
    with open_page() as (tab, hosts):
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        for section in SECTIONS:
            assert tab.locator(f"#{section}").is_visible(), section
        assert [plot.is_visible() for plot in tab.locator("svg").all()] == [True] * 3
        assert tab.get_by_text("GDPR Article 35").first.is_visible()
    assert asked == [path.as_uri()]
    assert hosts == set()
