"""What a reviewer reads on MLflow's pages without opening anything else: the study's story and the model card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.pages import describe_study
from schemas.messages import LogPosition
from schemas.plan import StudyPlan
from tasks.tracking.card import CARD, LONGEST_DESCRIPTION, describe_version, first_screen, write_card
from tasks.tracking.story import LONGEST_NOTE, STORY, Story, compare_with, shorten, tell_story
from tasks.tracking.target import TrackingTarget, page_address
from tasks.tracking.vocabulary import release_tags
from tests.tracking.studies import make_plan, make_release, train_facts


def _story(plan: StudyPlan) -> Story:
    facts = [replace(train_facts(plan, n)[0], verdicts={"east": "passed", "west": "failed: age-range"}) for n in (1, 2)]
    return Story(
        result="**Released**",
        rounds=facts,
        plots=["plots/roc.png"],
        attacks={"attack/membership_tpr_at_fpr_1pct": 0.013},
        roots={"east": LogPosition(size=9, root="ab" * 32)},
        flow_run="http://127.0.0.1:4200/runs/flow-run/1",
    )


def test_the_story_says_who_took_part_who_dropped_out_and_whose_table_passed() -> None:
    plan = make_plan()
    text = tell_story(plan, _story(plan), "5f" * 16)
    assert text.startswith("**Released**")
    assert f"![plots/roc.png](get-artifact?path=plots%2Froc.png&run_uuid={'5f' * 16})" in text
    assert "| east | 100 | 2 of 2 | passed | 1.25 of 3 |" in text
    assert "| west | 100 | 0 of 2 | failed: age-range | 1.25 of 3 |" in text
    assert "- round 02: west (silent)" in text
    assert "| membership tpr at fpr 1pct | 0.013 |" in text
    assert f"| east | 9 | `{'ab' * 32}` |" in text
    assert "](http://127.0.0.1:4200/runs/flow-run/1)" in text
    assert plan.purpose in text


def test_a_story_too_long_for_a_tag_is_cut_between_paragraphs_and_names_the_artifact() -> None:
    text = "\n\n".join(["**Released**", *("x" * 900 for _ in range(20))])
    short = shorten(text)
    assert len(short) <= LONGEST_NOTE
    assert short.startswith("**Released**")
    assert short.endswith(f"all of it is in the artifact `{STORY}`.")
    assert shorten("short") == "short"


def test_a_release_is_compared_with_the_released_version_before_it() -> None:
    plan = make_plan()
    before = release_tags(plan, make_release(plan, "00" * 32), {}, "aa" * 32) | {"consilium.auc": "0.900000"}
    text = compare_with(before, "4", make_release(plan, "11" * 32))
    assert "| | version 4 (released) | this one |" in text
    assert "| AUC | 0.900 (0.911 to 0.981) | 0.951 (0.911 to 0.981) |" in text
    assert "| largest ε under collusion | 2.5 | 2.5 |" in text


def test_the_card_covers_use_quality_privacy_cohorts_attacks_limits_and_source() -> None:
    plan = make_plan()
    card = write_card(plan, make_release(plan, "11" * 32), {"attack/canary_bound": 0.5}, "| AUC |")
    for heading in ("Intended use", "Quality", "Privacy: what ε means here", "Cohorts", "Attacks", "Limits"):
        assert f"\n## {heading}\n" in card
    assert "probability of `ill` for one patient" in card
    assert "| AUC | 0.951 | 0.911 to 0.981 |" in card
    assert "| `age` | 0 to 120 |\n| `stage` | a, b, c |" in card
    assert "| canary bound | 0.5 |" in card
    assert "not for clinical use" in card
    assert plan.study in card


def test_a_card_that_the_registry_cannot_keep_is_an_artifact_and_says_so() -> None:
    assert describe_version("short card", "summary") == "short card"
    text = describe_version("x" * 6000, "summary")
    assert len(text) <= LONGEST_DESCRIPTION
    assert text == f"summary\n\nThe whole card is the artifact `{CARD}` of the study's run."
    assert describe_version("x" * 6000, "summary", "**First**").startswith("**First**\n\nsummary")


def test_the_first_screen_has_the_result_who_took_part_the_roc_and_the_flow_run() -> None:
    plan = make_plan()
    text = first_screen("**Released**", plan, _story(plan).rounds, "5f" * 16, "http://127.0.0.1:4200/runs/flow-run/1")
    result, took_part, roc, link = text.split("\n\n")
    assert result == "**Released**"
    assert took_part == "**Who took part**, in how many of 2 opened sums: east (2), north (2), south (2), west (0)."
    assert roc == f"![plots/roc.png](get-artifact?path=plots%2Froc.png&run_uuid={'5f' * 16})"
    assert link.endswith("(http://127.0.0.1:4200/runs/flow-run/1)")
    assert first_screen("none", plan, (), "", "") == "none\n\n**Sites:** east, north, south, west."


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("http://mlflow.example:5000/", "http://mlflow.example:5000/#/models/m?workflowType=machine_learning"),
        ("https://who:secret@mlflow.example", ""),
        ("sqlite:////home/mlflow.db", ""),
    ],
)
def test_prefects_pages_link_to_an_mlflow_server_and_to_no_file_or_password(uri: str, address: str) -> None:
    assert page_address(TrackingTarget(uri), "models/m") == address
    text = describe_study(make_plan(), [], "", address)
    assert (f"[The study in MLflow]({address})" in text) == bool(address)


def test_every_tag_of_the_vocabulary_is_explained_in_the_documents() -> None:
    from tasks.tracking.vocabulary import TAGS

    text = (Path(__file__).parents[2] / "docs" / "mlflow.md").read_text()
    for name, meaning in TAGS.items():
        shown = f"{name}*" if name.endswith(".") else name
        assert f"| `{shown}` | {meaning} |" in text, name
