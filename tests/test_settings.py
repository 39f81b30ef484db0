"""Settings come from the environment alone, and reading them does nothing else."""

from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.jobs.model import KeyLimits
from pipeline.settings import Settings, environment_of_containers, load_master_keys

HEAVY = ("torch", "numpy", "scipy", "trimesh", "boto3", "alembic")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGE_TO_3D_DATABASE_URL", "DATABASE_URL", "IMAGE_TO_3D_DATA_DIR", "IMAGE_TO_3D_SECRET_KEYS"):
        monkeypatch.delenv(name, raising=False)


def test_a_setting_is_its_name_in_capitals_behind_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_WORKERS", "3")
    monkeypatch.setenv("IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES", "1")
    monkeypatch.setenv("IMAGE_TO_3D_API_KEY", "from the start")
    monkeypatch.setenv("IMAGE_TO_3D_ENGINE", "")

    settings = Settings()

    assert (settings.workers, settings.allow_private_addresses, settings.engine) == (3, True, "preview")
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "from the start"


@pytest.mark.parametrize(("name", "value"), [("WORKERS", "-1"), ("PORT", "70000"), ("LEASE_S", "0")])
def test_a_setting_out_of_bounds_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IMAGE_TO_3D_{name}", value)

    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_what_trellis_samples_with_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_TRELLIS_DTYPE", "bfloat16")
    monkeypatch.setenv("IMAGE_TO_3D_TRELLIS_SS_CFG_INTERVAL", "0.25, 0.9")
    monkeypatch.setenv("IMAGE_TO_3D_TRELLIS_SLAT_RESCALE_T", "2")

    assert Settings().engine_arguments["trellis"] == {
        "dtype": "bfloat16",
        "multi_image_mode": "stochastic",
        "ss_cfg_interval": (0.25, 0.9),
        "ss_rescale_t": 3.0,
        "slat_cfg_interval": (0.5, 1.0),
        "slat_rescale_t": 2.0,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("DTYPE", "int8"), ("SS_CFG_INTERVAL", "0.5"), ("SLAT_CFG_INTERVAL", "0,2"), ("SS_RESCALE_T", "0")],
)
def test_wrong_numbers_for_trellis_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IMAGE_TO_3D_TRELLIS_{name}", value)

    with pytest.raises(ValidationError, match=f"trellis_{name.lower()}"):
        Settings()


def test_no_secret_shows_when_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_API_KEY", "hidden-key")
    monkeypatch.setenv("DATABASE_URL", "postgres://user:hidden-password@db/jobs")
    monkeypatch.setenv("IMAGE_TO_3D_SECRET_KEYS", "hidden-secret-number-1, hidden-secret-number-2")

    settings = Settings()

    assert "hidden" not in repr(settings) + str(settings)
    assert load_master_keys(settings) == (b"hidden-secret-number-1", b"hidden-secret-number-2")


def test_a_secret_that_can_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_SECRET_KEYS", "hunter2")

    with pytest.raises(ValidationError, match="at least 16 characters") as refused:
        Settings()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_postgres_address_is_read_in_each_of_its_forms(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://u:p@db:5432/jobs")

    assert Settings().sql_url == "postgresql+psycopg://u:p@db:5432/jobs"


def test_without_a_database_jobs_are_kept_in_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "absent")

    assert settings.sql_url == f"sqlite:///{tmp_path}/absent/jobs.sqlite"
    assert settings.work_dir.parent == settings.files_dir.parent == tmp_path / "absent"
    assert not settings.data_dir.exists()


@pytest.mark.parametrize(
    ("host", "public_url", "expected"),
    [
        ("127.0.0.1", None, "http://127.0.0.1:8000"),
        ("0.0.0.0", None, "http://127.0.0.1:8000"),
        ("::1", None, "http://[::1]:8000"),
        ("0.0.0.0", "https://3d.example.com/", "https://3d.example.com"),
    ],
)
def test_urls_of_files_begin_with_the_public_address(host: str, public_url: str | None, expected: str) -> None:
    assert Settings(host=host, public_url=public_url).base_url == expected


def test_limits_of_zero_are_no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_MAX_QUEUED", "5")
    monkeypatch.setenv("IMAGE_TO_3D_MAX_PER_MINUTE", "0")

    assert Settings().default_limits == KeyLimits(queued=5)


def test_a_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: load_master_keys(settings), range(8)))

    assert len(made) == 1 and len(made.pop()[0]) >= 32
    files = list(settings.data_dir.iterdir())
    assert [path.name for path in files] == ["secret.key"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600


def test_settings_and_the_store_import_nothing_heavy() -> None:
    names = ", ".join(map(repr, HEAVY))
    code = f"import sys, pipeline.settings, pipeline.jobs.stores.sql.store; print([n for n in ({names}) if n in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert found.strip() == "[]"


def test_containers_decide_as_the_deployer_and_are_told_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "IMAGE_TO_3D_API_KEY": "the callers' key",
        "IMAGE_TO_3D_MASTER_KEY": "what all else is derived from",
        "IMAGE_TO_3D_SECRET_KEYS": "the same by its other name",
        "DATABASE_URL": "postgresql://user:password@host/jobs",
        "IMAGE_TO_3D_DATABASE_URL": "postgresql://user:password@host/jobs",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=token",
    }
    told = {
        "IMAGE_TO_3D_SUBMIT_WAIT_S": "5",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://traces.example",
        "IMAGE_TO_3D_GPUS": "L4",
    }
    for name, value in (secrets | told).items():
        monkeypatch.setenv(name, value)

    environment = environment_of_containers(weights="/weights")

    assert environment == told | {"IMAGE_TO_3D_WEIGHTS": "/weights"}
