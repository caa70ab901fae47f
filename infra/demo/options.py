"""What a person asks of a demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DataName = Literal["breast-cancer", "uci-heart"]
DATA_NAMES: tuple[DataName, ...] = ("breast-cancer", "uci-heart")


@dataclass(frozen=True)
class DemoOptions:
    """Options of `consilium demo`; None means the data set's default.

    Attributes:
        data: Which real patients' data.
        data_dir: Folder with the raw files of `data`, or None to use scikit-learn's copy or to download.
        sites: Number of hospitals.
        threshold: t, key holders that must answer to open a sum.
        rounds: Training rounds.
        epsilon, delta: Per-site total over the study, evaluation included, as decimal strings.
        workdir: Folder of the demo.
        resume: Continue the study in `workdir`.
        port: Port of the local Prefect server; None takes a free one.
        restart: Start an agent again when its process dies.
        required_bytes: Free space that the demo asks for before it starts.
    """

    data: DataName = "breast-cancer"
    data_dir: Path | None = None
    sites: int | None = None
    threshold: int | None = None
    rounds: int | None = None
    epsilon: str | None = None
    delta: str | None = None
    workdir: Path = Path("demo-study")
    resume: bool = False
    port: int | None = None
    restart: bool = True
    required_bytes: int = 500 * 1024 * 1024
