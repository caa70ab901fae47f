"""docs/for-reviewers.md, followed literally on a finished study whose model is registered."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.cli import main
from tasks.tracking.vocabulary import RELEASED
from tests.review.studies import FIRST, SECOND, Registered, aliases

TEXT = (Path(__file__).parents[2] / "docs" / "for-reviewers.md").read_text().replace(" \\\n", " ")
SHOWN = [shlex.split(line) for line in re.findall(r"^    \$ consilium (.+)$", TEXT, re.MULTILINE)]
DOCUMENTED = "breast-cancer-logistic"


def follow(study: Registered, command: list[str], *, code: int) -> str:
    words = [study.model if word == DOCUMENTED else word for word in command]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, f"{words}\n{result.output}"
    return result.output


def test_the_guide_for_reviewers_leads_to_a_released_model(
    candidate: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo-study").symlink_to(candidate.prepared.workdir.root)
    monkeypatch.chdir(tmp_path)
    (init,) = re.findall(r"^    consilium (review init .+)$", TEXT, re.MULTILINE)
    assert "dr-example" in follow(candidate, shlex.split(init), code=0)
    assert [words[1] for words in SHOWN] == ["list", "show", "approve", "gate", "approve", "gate"]
    listed, show, approve, once, second, again = SHOWN

    said = follow(candidate, listed, code=0)
    assert re.search(rf"^{candidate.model} +1 +candidate +", said, re.MULTILINE)
    said = follow(candidate, show, code=0)
    for words in (f"Model     {candidate.model} 1 (candidate)", "Review    nobody has decided", "Rule      2 of"):
        assert words in TEXT.replace(DOCUMENTED, candidate.model)
        assert words in said
    said = follow(candidate, approve, code=0)
    for words in (f"Signed and sent: {candidate.model}/1 approved.", "The evidence was not audited by you; the gate"):
        assert words in TEXT.replace(DOCUMENTED, candidate.model)
        assert words in said
    printed(follow(candidate, once, code=20), "waiting: 1 of 2 signed approvals missing", f"{FIRST}: approved")
    assert RELEASED not in aliases(candidate)
    follow(candidate, second, code=0)
    printed(
        follow(candidate, again, code=0),
        "released: 2 signed approvals",
        f"{FIRST}: approved",
        f"{SECOND}: approved",
    )
    assert RELEASED in aliases(candidate)


def printed(said: str, *lines: str) -> None:
    """Asserts that the guide shows these lines in this order, and that the command prints them."""
    assert "\n".join(f"    {line}" for line in lines) in TEXT
    position = -1
    for line in lines:
        position = said.index(line, position + 1)
