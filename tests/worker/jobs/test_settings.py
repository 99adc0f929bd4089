"""Settings come from `EPOCHD_*` variables, and impossible ones are refused at the start."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

import worker.jobs.settings
from worker.jobs.settings import Settings

KEY = "a-key-of-sixteen"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"EPOCHD_{name.upper()}", raising=False)


def test_without_variables_the_service_is_for_this_machine_only() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.is_exposed) == ("127.0.0.1", 8000, False)
    assert settings.api_key is None
    assert (settings.max_attempts, settings.slots) == (3, None)
    assert (settings.retain_checkpoints_days, settings.retain_jobs_days) == (None, None)
    assert settings.resolved_database_url == f"sqlite:///{Path.cwd() / 'epochd-data' / 'epochd.db'}"


def test_every_setting_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "data_dir": "/data",
        "host": "0.0.0.0",
        "port": "9000",
        "database_url": "postgresql://epochd@db/epochd",
        "api_key": KEY,
        "lease_seconds": "12.5",
        "heartbeat_seconds": "2.5",
        "poll_seconds": "0.5",
        "cancel_seconds": "1.5",
        "stall_seconds": "60.5",
        "max_attempts": "7",
        "checkpoint_seconds": "20.5",
        "min_free_bytes": "1024",
        "retain_checkpoints_days": "7.5",
        "retain_jobs_days": "30.5",
        "slots": "4",
        "allow_download": "false",
        "system_datasets_dir": "/datasets",
        "secrets_dir": "/secrets",
        "allowed_hosts": "shoes.example, other.example",
        "cors_origins": "https://shoes.example",
        "max_json_bytes": "1500",
        "header_seconds": "5.5",
        "body_seconds": "6.5",
        "send_seconds": "7.5",
        "max_requests": "8",
        "max_streams": "9",
        "max_queued_jobs": "10",
        "max_queued_jobs_per_key": "11",
        "webhooks": "true",
        "webhook_secret": KEY,
        "predictor_bytes": "4000",
        "predictor_device": "cpu",
        "sinks": "csv,mlflow",
        "sinks_dir": "/tmp/sinks",
        "mlflow_tracking_uri": "https://mlflow.example",
        "mlflow_experiment": "shoes",
        "max_pixels": "1000",
        "max_image_bytes": "2000",
        "max_dataset_bytes": "3000",
        "max_unpacked_bytes": "4000",
        "max_entries": "5000",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"EPOCHD_{name.upper()}", value)
    settings = Settings()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY
    assert settings.allowed_hosts == ("shoes.example", "other.example")
    assert settings.webhook_secret is not None
    assert settings.webhook_secret.get_secret_value() == KEY
    lists = {name: given[name] for name in ("allowed_hosts", "cors_origins", "sinks")}
    read = settings.model_dump(mode="json") | {"api_key": KEY, "webhook_secret": KEY} | lists
    assert {name: str(value).lower() for name, value in read.items()} == {
        name: value.lower() for name, value in given.items()
    }
    assert settings.resolved_database_url == "postgresql://epochd@db/epochd"
    assert settings.is_exposed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("API_KEY", "too-short"),
        ("LEASE_SECONDS", "0"),
        ("HEARTBEAT_SECONDS", "-1"),
        ("HEARTBEAT_SECONDS", "nan"),
        ("POLL_SECONDS", "0"),
        ("POLL_SECONDS", "6"),
        ("CANCEL_SECONDS", "0"),
        ("STALL_SECONDS", "0"),
        ("CHECKPOINT_SECONDS", "0"),
        ("MIN_FREE_BYTES", "-1"),
        ("MIN_FREE_BYTES", "1.5"),
        ("RETAIN_CHECKPOINTS_DAYS", "0"),
        ("RETAIN_CHECKPOINTS_DAYS", "nan"),
        ("RETAIN_JOBS_DAYS", "-1"),
        ("MAX_ATTEMPTS", "0"),
        ("MAX_ATTEMPTS", "101"),
        ("SLOTS", "0"),
        ("SLOTS", "65"),
        ("ALLOW_DOWNLOAD", "perhaps"),
        ("MAX_PIXELS", "0"),
        ("MAX_IMAGE_BYTES", "0"),
    ],
)
def test_an_impossible_setting_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"EPOCHD_{name}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [each["loc"] for each in caught.value.errors()] == [(name.lower(),)]


@pytest.mark.parametrize(
    ("devices", "slots"),
    [
        ([], 6),
        (["null", "nvidiactl", "nvidia-uvm", "nvidia-caps"], 6),
        (["nvidia0", "nvidiactl"], 1),
        (["nvidia12"], 1),
    ],
)
def test_a_worker_has_a_slot_a_core_and_one_where_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: list[str], slots: int
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(worker.jobs.settings, "_DEVICES", tmp_path)
    monkeypatch.setattr(worker.jobs.settings, "cores", lambda: 6)
    assert Settings().resolved_slots == slots
    assert Settings(slots=3).resolved_slots == 3


def test_the_disk_may_be_filled_to_the_last_byte_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHD_MIN_FREE_BYTES", "0")
    assert Settings().min_free_bytes == 0


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPOCHD_RETAIN_JOBS_DAYS", "")
    assert Settings().retain_jobs_days is None


def test_a_lease_outlives_two_heartbeats() -> None:
    assert Settings(lease_seconds=10, heartbeat_seconds=5).lease_seconds == 10
    with pytest.raises(ValidationError, match="EPOCHD_LEASE_SECONDS must be at least twice"):
        Settings(lease_seconds=9.9, heartbeat_seconds=5)


@pytest.mark.parametrize(
    ("host", "is_exposed"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.1.5", True),
        ("", True),
        ("localhost.example.org", True),
    ],
)
def test_any_host_but_loopback_is_exposed(host: str, is_exposed: bool) -> None:
    assert Settings(host=host).is_exposed is is_exposed


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(api_key=SecretStr(KEY))
    assert KEY not in repr(settings) + str(settings) + settings.model_dump_json()
    monkeypatch.setenv("EPOCHD_API_KEY", "s3cret")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "s3cret" not in str(caught.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
