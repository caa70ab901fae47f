"""What another process does to a ledger in the tests: run as ``python -m tests.ledger.racing ACTION FOLDER NUMBER``.

Prints "ready", waits for a line, acts, prints the outcome. ``race`` reserves for its own study until refused;
``crash`` reserves and is killed before anything else; ``crash-open`` dies inside the transaction.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from schemas.errors import BudgetError
from schemas.ledger import PlanApproved
from tasks.ledger.budget import reserve
from tests.ledger.logs import COHORT, STUDY, make_store, reserved
from tests.privacy.plans import digest, make_mechanism


def main(action: str, folder: Path, number: int) -> None:
    study = digest("racing study", number) if action == "race" else STUDY
    store = make_store(folder, study=study)
    event = make_mechanism().event()
    print("ready", flush=True)
    sys.stdin.readline()
    if action == "race":
        admitted = 0
        for round_ in range(1, 20):
            try:
                reserve(store, COHORT, digest("race", number, round_), round_, event, study)
                admitted += 1
            except BudgetError as error:
                print(f"{admitted} {error.code}", flush=True)
                return
    elif action == "crash":
        reserve(store, COHORT, digest("instruction", 1), 1, event, STUDY)
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "crash-open":
        with store.transaction() as log:
            log.append(digest("other"), PlanApproved(approval=digest("x")))
            log.append(STUDY, reserved(event, 1, "0"))
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
