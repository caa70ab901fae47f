"""What a coordinator's own machine serves; never signed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from schemas.options import Settings


class ServiceSettings(Settings):
    """`services.json` in a coordinator's home: the Prefect server and MLflow, both on this machine's loopback only.

    Attributes:
        prefect_port, mlflow_port: TCP ports; the reverse proxy and the coordinator's settings name them.
        prefect_database_file: File with an SQLAlchemy address (`postgresql+asyncpg://…`, with its password), mode 0600;
            None keeps a private PostgreSQL in the home, or SQLite where there is none.
        mlflow_database_file: The same for MLflow (`postgresql://…`).
        mlflow_artifacts: A folder or `s3://…`; None: in the home, or where the store is a bucket under its
            `coordinator/mlflow`, as an older version had it.
    """

    format: Literal["consilium/services/1"] = "consilium/services/1"
    prefect_port: int = Field(default=4200, ge=1, le=65535)
    mlflow_port: int = Field(default=5000, ge=1, le=65535, validate_default=True)
    prefect_database_file: str | None = None
    mlflow_database_file: str | None = None
    mlflow_artifacts: str | None = None

    @field_validator("mlflow_port")
    @classmethod
    def _is_not_prefects(cls, port: int, others: ValidationInfo) -> int:
        if port == others.data.get("prefect_port"):
            raise PydanticCustomError("same_port", "the same as prefect_port")
        return port
