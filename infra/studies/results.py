"""What the runs of a study left: one JSON line per finished run, read back strictly.

Invariant: a file holds runs of one recipe only. Runs with other hyper-parameters would be averaged without a trace, so
they are refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from schemas.errors import OperationError
from schemas.options import Settings

RUNS = "runs.jsonl"


class Run(Settings):
    """One finished run.

    Attributes:
        recipe: Digest of everything in the plan that is not a key, a nonce or a site's size.
        plan: Study id of this run's plan.
        auc: Exact held-out AUC of the released model, which only this experiment can know.
        released: AUC with its 95 % interval from the opened, noisy histogram, which is all that a real study releases.
        central, central_deviation: Mean and standard deviation of the exact AUC of a trusted party with all rows.
        local: Mean exact AUC if every site added all of the noise.
        non_private: Exact AUC of unclipped logistic regression without noise.
        spent_training, spent_held_out: Largest epsilon in any site's ledger, collusion reading.
        encrypted_rounds: Opened sums, evaluation included.
        fewest_contributions: Sites in the smallest opened sum.
    """

    format: Literal["consilium/study-run/1"] = "consilium/study-run/1"
    study: str
    seed: int
    epsilon: str
    delta: str
    recipe: str
    plan: str
    sites: int
    auc: float
    released: tuple[float, float, float]
    central: float
    central_deviation: float
    local: float
    non_private: float
    repeats: int
    spent_training: str
    spent_held_out: str
    encrypted_rounds: int
    fewest_contributions: int
    ceremony_seconds: float
    seconds_per_round: float

    @property
    def difference(self) -> float:
        """AUC minus that of central DP on the same split."""
        return self.auc - self.central


@dataclass(frozen=True)
class RunFile:
    """The finished runs of a study in its output folder."""

    path: Path

    def read(self) -> list[Run]:
        """Reads all finished runs; a last line that was cut off by a crash does not count as finished.

        Raises:
            OperationError: `runs-unreadable`.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        try:
            return [Run.model_validate_json(line) for line in lines]
        except ValidationError:
            raise OperationError(
                "runs-unreadable", f"{self.path.name} holds a line that is not a run.", "Name another --out."
            ) from None

    def append(self, run: Run) -> None:
        """Adds a finished run, durable before it returns."""
        self._cut_partial_line()
        with self.path.open("ab") as out:
            out.write(run.model_dump_json().encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())

    def verify_recipe(self, recipe: dict[str, str]) -> None:
        """Refuses to add to runs of another recipe.

        Args:
            recipe: Epsilon -> recipe digest of the runs to be made.

        Raises:
            OperationError: `other-recipe`.
        """
        if any(run.recipe != recipe.get(run.epsilon, run.recipe) for run in self.read()):
            raise OperationError(
                "other-recipe",
                f"{self.path.name} holds runs with other hyper-parameters or numbers.",
                "Name another --out; runs of two recipes are never averaged.",
            )

    def _cut_partial_line(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        if data and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)


def of_epsilon(runs: Sequence[Run], epsilon: str) -> list[Run]:
    """Returns the runs of one epsilon, by seed."""
    return sorted((run for run in runs if run.epsilon == epsilon), key=lambda run: run.seed)
