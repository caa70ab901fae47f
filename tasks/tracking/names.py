"""What runs are called: the same words in MLflow and in Prefect, so that a reader finds one from the other."""

from __future__ import annotations

from typing import Literal


def study_name(study: str) -> str:
    """Returns the name of a study's run; `study` is the plan digest."""
    return f"study {study[:12]}"


def round_name(kind: Literal["train", "evaluate"], round_: int) -> str:
    """Returns the name of a round's run."""
    return f"round {round_:02d}" if kind == "train" else "evaluation"
