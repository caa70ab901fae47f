"""The child that trains: what it returns is noised and of the plan's mode, and a refusal keeps its code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from schemas.contract import DataContract
from schemas.errors import SiteDataError
from schemas.messages import Instruction
from schemas.plan import StudyPlan, update_length
from site_agents.cohort.reader import LocalData
from site_agents.compute import compute_in_child, warm_up
from tests.schemas.test_vectors import example
from tests.training.local_plans import make_local_plan
from tests.training.plans import make_plan

PATIENTS = 24
TRAIN: Instruction = example(Instruction, kind="train")


@pytest.fixture(scope="module", autouse=True)
def fork_server() -> None:
    """Loads the libraries once, as an agent does when it starts."""
    warm_up()


def write_table(contract: DataContract, path: Path) -> LocalData:
    rng = np.random.default_rng(4)
    columns: dict[str, object] = {
        "patient_id": [f"p-{i:03d}" for i in range(PATIENTS)],
        "outcome": (np.arange(PATIENTS) % 2 == 0).tolist(),
        "held_out": (np.arange(PATIENTS) % 4 == 3).tolist(),
    }
    features = [column.name for column in contract.features]
    columns |= {name: rng.uniform(0, 10, PATIENTS) for name in features}
    pq.write_table(pa.table(columns), path)
    return LocalData(str(path))


@pytest.mark.parametrize("plan", [make_plan(), make_local_plan(update_norm="50")], ids=["distributed", "local"])
def test_the_child_trains_in_the_mode_of_the_plan_and_noise_is_in_every_coefficient(
    plan: StudyPlan, tmp_path: Path
) -> None:
    data, length = write_table(plan.contract, tmp_path / "cohort.parquet"), update_length(plan)
    sent = [compute_in_child(plan, "cedar", TRAIN, np.zeros(length), data, 120.0) for _ in range(2)]
    assert all(values.shape == (length,) and values.dtype == np.int64 for values in sent)
    assert (sent[0] != sent[1]).all(), "no draw of noise is repeated"
    weighted = [bool((values % 100 == 0).all()) for values in sent]
    assert weighted == [plan.mechanism.mode == "local"] * 2, "a local update has the site's declared size for weight"


def test_a_refusal_crosses_the_pipe_with_its_code(tmp_path: Path) -> None:
    plan = make_local_plan()
    with pytest.raises(SiteDataError, match="Expected the site's table") as caught:
        compute_in_child(plan, "cedar", TRAIN, np.zeros(4), LocalData(str(tmp_path / "absent.parquet")), 120.0)
    assert caught.value.code.startswith("data-")


def test_no_instruction_can_ask_for_another_mode() -> None:
    with pytest.raises(ValidationError, match="mode"):
        Instruction.model_validate(TRAIN.model_dump() | {"mode": "local"})
