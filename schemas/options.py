"""Settings that change no guarantee: paths, deadlines, poll intervals. Never signed, never in a plan."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of the settings files: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunOptions(Settings):
    """How long to wait. A deadline that passes is a drop-out, never a retry with other bytes.

    Attributes:
        poll_interval_seconds: Longest pause between two looks at the store.
        silent_grace_seconds: Wait for a site that was silent in the round before and whose agent has not taken up its
            run; and for a last checkpoint before witnessing the others.
        attempt_pause_seconds: Wait before a round that too many sites declined is asked again; doubled each time.
        dead_rounds_in_a_row: Rounds that may die one after another, with their key, before the study stops.
        broken_ceremonies_in_a_row: Key ceremonies that may break off one after another before a study that has opened
            something ends with it; three days of them on the usual schedule: a holder may be away for a weekend.
        bulk_processes: Over how many processes a participant spreads its work on bulk ciphertexts.
    """

    poll_interval_seconds: float = Field(default=0.25, gt=0)
    ceremony_deadline_seconds: float = Field(default=180, gt=0)
    contribute_deadline_seconds: float = Field(default=120, gt=0)
    certify_deadline_seconds: float = Field(default=60, gt=0)
    share_deadline_seconds: float = Field(default=30, gt=0)
    opening_deadline_seconds: float = Field(default=120, gt=0)
    release_deadline_seconds: float = Field(default=120, gt=0)
    silent_grace_seconds: float = Field(default=20, gt=0)
    attempt_pause_seconds: float = Field(default=60, gt=0)
    dispatch_attempts: int = Field(default=20, ge=1)
    dead_rounds_in_a_row: int = Field(default=3, ge=1)
    broken_ceremonies_in_a_row: int = Field(default=300, ge=1)
    bulk_processes: int = Field(default=1, ge=1)

    def pause_seconds(self, waited_seconds: float) -> float:
        """Returns the pause before the next look: short at first, since whoever is to answer is often at work already.

        Afterwards it is half of what was waited, at most `poll_interval_seconds`.
        """
        return min(self.poll_interval_seconds, max(self.poll_interval_seconds / 6, waited_seconds / 2))


class S3Settings(Settings):
    """How a participant reaches an S3 store. Secrets are in files that only their owner reads, never here.

    Attributes:
        credentials_file: JSON with `access_key_id` and `secret_access_key`, mode 0600; one pair per participant.
        endpoint: Address of the server; None for Amazon's own of `region`.
        ca_file: Certificates that sign the server's, if the system's do not.
        insecure_http: Allow an address without TLS that is not on this machine.
        path_style: Address the bucket as a path and not as a host name; None lets the library decide.
        part_size_bytes: Larger objects are sent in parts of this size (S3 asks for at least 5 MiB).
        attempts: Requests per operation; only transient errors are tried again, with growing pauses.
        retain_days: Days for which the server must refuse to delete what is not a ciphertext; needs object lock.
    """

    credentials_file: str
    endpoint: str | None = None
    region: str = "us-east-1"
    ca_file: str | None = None
    insecure_http: bool = False
    path_style: bool | None = None
    part_size_bytes: int = Field(default=16 << 20, ge=5 << 20, le=1 << 30)
    attempts: int = Field(default=8, ge=1, le=20)
    connect_timeout_seconds: float = Field(default=5, gt=0)
    read_timeout_seconds: float = Field(default=30, gt=0)
    retain_days: int = Field(default=0, ge=0, le=36_500)


class CoordinatorSettings(Settings):
    """`config.json` in a coordinator's home.

    Attributes:
        store: The object store: a folder, or `s3://bucket` or `s3://bucket/prefix` with `s3`.
        study: Plan digest of the study to run; empty before one is proposed.
        prefect_api_url: The Prefect server.
        mlflow_uri: Tracking store, e.g. ``sqlite:////…/mlflow.db``.
        artifacts: Folder of MLflow's artifacts.
    """

    format: Literal["consilium/coordinator/1"] = "consilium/coordinator/1"
    name: str
    store: str
    s3: S3Settings | None = None
    study: str = ""
    prefect_api_url: str
    mlflow_uri: str
    artifacts: str
    options: RunOptions = RunOptions()


class SiteSettings(Settings):
    """`config.json` in a site's home. The site's own limits are here, not in any plan.

    Attributes:
        store: The object store: a folder, or `s3://bucket` or `s3://bucket/prefix` with `s3`. The site writes only
            under its own prefix.
        data: The site's table: a .parquet or .csv file, a folder of Parquet files, or a source.yaml.
        mapping: The site's mapping file, "" if the table's columns are the contract's already.
        studies: Plan digests that this site approved and lets run.
        paused: Refuse to contribute for now; the site still helps to open sums that others began.
        left: Plan digests that this site approved once and takes no further part in.
        epsilon, delta: The site's budget over the lifetime of its data source, decimal strings.
        memory_folder: Where epoch secrets live; default a private folder in /dev/shm.
        training_in_child: Train in a fork-server child that can be killed.
        models: Installed modules that a plan may train here, as "distribution:name"; none by default.
        registration_lock: File that agents of one machine lock while they register, one after another: a Prefect
            server on SQLite stalls when several write at once.
        token_file: File with the site's token for the coordinator's proxy; the coordinator then makes the site's work
            pool and deployments. None for a Prefect server without a proxy.
        ca_file: PEM file of the authority that signed the proxy's certificate; the system's authorities by default.
    """

    format: Literal["consilium/site/1"] = "consilium/site/1"
    name: str
    store: str
    s3: S3Settings | None = None
    data: str
    mapping: str = ""
    studies: tuple[str, ...] = ()
    paused: bool = False
    left: tuple[str, ...] = ()
    prefect_api_url: str
    epsilon: str
    delta: str
    memory_folder: str | None = None
    training_in_child: bool = True
    models: tuple[str, ...] = ()
    registration_lock: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    options: RunOptions = RunOptions()


class ReviewerSettings(Settings):
    """`config.json` in a reviewer's home.

    Attributes:
        mlflow_uri: Where models are registered: the address of an MLflow server, or ``sqlite:////…/mlflow.db``.
        artifacts: Folder of MLflow's artifacts where there is no server.
    """

    format: Literal["consilium/reviewer/1"] = "consilium/reviewer/1"
    name: str
    mlflow_uri: str
    artifacts: str = ""
