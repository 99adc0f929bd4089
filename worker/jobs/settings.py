"""Settings, read from `EPOCHD_*` variables. The README's table is checked against this class by a test."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL

from .processes import cores
from .states import SinkKind

_DEVICES = Path("/dev")
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _split(text: object) -> object:
    return tuple(filter(None, map(str.strip, text.split(",")))) if isinstance(text, str) else text


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="EPOCHD_", env_ignore_empty=True, hide_input_in_errors=True, frozen=True
    )

    data_dir: Annotated[Path, AfterValidator(Path.absolute)] = Field(
        Path("epochd-data"), description="Folder for the database, datasets and checkpoints"
    )
    host: str = Field("127.0.0.1", description="Address to listen on; any but loopback needs an API key")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    database_url: str | None = Field(
        None,
        pattern=r"^(postgresql|sqlite)(\+\w+)?://",
        description="`postgresql://...`; unset means SQLite in the data folder",
    )
    api_key: SecretStr | None = Field(
        None, min_length=16, description="A key that may do everything, beside those of `epochd keys`"
    )
    secrets_dir: Path = Field(
        Path("/run/secrets"),
        description="Where files of secrets are: `epochd_api_key` there is `EPOCHD_API_KEY`, and so on",
    )
    lease_seconds: float = Field(30.0, gt=0, description="A worker silent for this long has lost its jobs")
    heartbeat_seconds: float = Field(5.0, gt=0, description="How often a worker renews its leases")
    poll_seconds: float = Field(0.05, gt=0, le=5, description="How often an idle worker looks for a queued job")
    cancel_seconds: float = Field(5.0, gt=0, description="A cancelled training that has not left by then is killed")
    stall_seconds: float = Field(300.0, gt=0, description="A training in which nothing moved for this long is killed")
    max_attempts: int = Field(3, ge=1, le=100, description="A job that dies this many times is failed")
    checkpoint_seconds: float = Field(
        60.0, gt=0, description="How often, about, a training saves inside an epoch that lasts longer"
    )
    min_free_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="Of the data folder's disk, what jobs and uploads leave to the database, in bytes",
    )
    retain_checkpoints_days: float | None = Field(
        None, gt=0, description="After so many days an ended job keeps its best and last checkpoint only; unset: all"
    )
    retain_jobs_days: float | None = Field(
        None, gt=0, description="After so many days an ended job is deleted; unset: never"
    )
    slots: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Jobs that one worker trains at once; unset: as many as cores, one where there is an NVIDIA GPU",
    )
    allow_download: bool = Field(
        True, description="Whether built-in datasets and weights may be fetched over the network"
    )
    system_datasets_dir: Path = Field(
        Path("/usr/share/datasets"), description="Where Debian's dataset packages put their files"
    )
    predictor_bytes: int = Field(
        512 * 2**20, ge=0, description="Most weights that the predictor keeps loaded, in bytes; one checkpoint always"
    )
    predictor_device: Literal["auto", "cpu"] = Field(
        "auto", description="Where predictions are computed; `auto`: on a GPU that has room, `cpu`: never there"
    )
    allowed_hosts: Words = Field(
        (),
        description="Names, separated by commas, that requests may call the service by (`Host`); unset: on loopback "
        "only loopback's own, else any",
    )
    cors_origins: Words = Field(
        (), description="Origins, separated by commas, whose pages may use the service from a browser; unset: none"
    )
    max_json_bytes: int = Field(2**20, ge=1, description="Largest JSON body, in bytes")
    header_seconds: float = Field(10.0, gt=0, description="A request whose headers are not there by then is dropped")
    body_seconds: float = Field(30.0, gt=0, description="A body of which nothing more comes for this long is refused")
    send_seconds: float = Field(60.0, gt=0, description="A client that takes nothing more for this long is dropped")
    max_requests: int = Field(512, ge=1, description="Requests that are worked on at once; more are refused with 503")
    max_streams: int = Field(2000, ge=1, description="Open event streams and long polls; more are refused with 503")
    max_queued_jobs: int = Field(10_000, ge=1, description="Jobs that may wait; more are refused with 429")
    max_queued_jobs_per_key: int = Field(1000, ge=1, description="Jobs of one key that may wait")
    webhooks: bool = Field(False, description="Whether jobs may name addresses that are told how they end")
    webhook_secret: SecretStr | None = Field(
        None, min_length=16, description="What webhooks are signed with; needed where there are any"
    )
    sinks: Annotated[tuple[SinkKind, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Where metrics go too, separated by commas: `csv`, `tensorboard`, `mlflow`"
    )
    sinks_dir: Path | None = Field(
        None, description="Folder for the tables and event files of sinks; unset: `sinks` in the data folder"
    )
    mlflow_tracking_uri: str | None = Field(
        None,
        description="Where MLflow keeps its runs; unset: the SQLite database `mlflow/mlflow.db` in the folder of "
        "the sinks",
    )
    mlflow_experiment: str = Field("epochd", min_length=1, max_length=200, description="MLflow's name for all of them")
    max_pixels: int = Field(25_000_000, ge=1, description="Largest picture accepted, in pixels")
    max_image_bytes: int = Field(
        20 * 2**20, ge=1, description="Largest body of a prediction request, and largest picture of a dataset, in bytes"
    )
    max_dataset_bytes: int = Field(2 * 2**30, ge=1, description="Largest upload of a dataset, in bytes")
    max_unpacked_bytes: int = Field(10 * 2**30, ge=1, description="Most that an uploaded archive may hold, in bytes")
    max_entries: int = Field(200_000, ge=1, description="Most files and folders that an uploaded archive may hold")

    @model_validator(mode="after")
    def _lease_outlives_heartbeat(self) -> "Settings":
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("EPOCHD_LEASE_SECONDS must be at least twice EPOCHD_HEARTBEAT_SECONDS")
        return self

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> "Settings":
        if self.webhooks and self.webhook_secret is None:
            raise ValueError("EPOCHD_WEBHOOKS needs EPOCHD_WEBHOOK_SECRET, which they are signed with")
        return self

    @property
    def resolved_database_url(self) -> str:
        file = URL.create("sqlite", database=str(self.data_dir / "epochd.db"))
        return self.database_url or file.render_as_string(hide_password=False)

    @property
    def resolved_slots(self) -> int:
        """On this machine: a job's process fills a GPU, and a core."""
        return self.slots or (1 if any(_DEVICES.glob("nvidia[0-9]*")) else cores())

    @property
    def resolved_sinks_dir(self) -> Path:
        return self.sinks_dir.absolute() if self.sinks_dir else self.data_dir / "sinks"

    @property
    def is_exposed(self) -> bool:
        """Whether other machines can reach the service."""
        return self.host not in LOOPBACK
