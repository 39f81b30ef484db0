"""Settings come from the environment alone, and reading them does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.jobs.model import KeyLimits
from pipeline.on_modal.settings import unknown_settings
from pipeline.secrets import load_master_keys
from pipeline.settings import Settings
from pipeline.version import __version__

HEAVY = ("torch", "numpy", "scipy", "trimesh", "boto3", "alembic")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMAGE_TO_3D_DATABASE_URL", "DATABASE_URL", "IMAGE_TO_3D_DATA_DIR", "IMAGE_TO_3D_SECRET_KEYS"):
        monkeypatch.delenv(name, raising=False)


def test_a_variable_that_is_named_like_a_setting_and_is_none_is_told_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MAX_QUEUED", "MASTER_KEY", "GPUS", "MAX_QUEUD", "TEAM"):  # the first three are settings
        monkeypatch.setenv(f"IMAGE_TO_3D_{name}", "1")

    assert unknown_settings() == [
        "IMAGE_TO_3D_MAX_QUEUD is not a setting of this version: did you mean IMAGE_TO_3D_MAX_QUEUED?",
        "IMAGE_TO_3D_TEAM is not a setting of this version.",
    ]


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


def test_the_sampling_of_trellis_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_networks_of_trellis2_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_TRELLIS2_DETAIL", "512")
    monkeypatch.setenv("IMAGE_TO_3D_TRELLIS2_OFFLOAD", "yes")

    arguments = Settings().engine_arguments["trellis2"]

    assert (arguments["detail"], arguments["offload"]) == (512, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("DTYPE", "int8"), ("SS_CFG_INTERVAL", "0.5"), ("SLAT_CFG_INTERVAL", "0,2"), ("SS_RESCALE_T", "0")],
)
def test_wrong_numbers_for_trellis_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"IMAGE_TO_3D_TRELLIS_{name}", value)

    with pytest.raises(ValidationError, match=f"trellis_{name.lower()}"):
        Settings()


def test_printed_settings_contain_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_API_KEY", "hidden-key")
    monkeypatch.setenv("DATABASE_URL", "postgres://user:hidden-password@db/jobs")
    monkeypatch.setenv("IMAGE_TO_3D_SECRET_KEYS", "hidden-secret-number-1, hidden-secret-number-2")

    settings = Settings()

    assert "hidden" not in repr(settings) + str(settings)
    assert load_master_keys(settings) == (b"hidden-secret-number-1", b"hidden-secret-number-2")


def test_a_short_master_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_SECRET_KEYS", "hunter2")

    with pytest.raises(ValidationError, match="at least 16 characters") as refused:
        Settings()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_each_form_of_a_postgres_url_is_accepted(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://u:p@db:5432/jobs")

    assert Settings().sql_url == "postgresql+psycopg://u:p@db:5432/jobs"


def test_without_a_database_url_jobs_are_kept_in_the_data_folder(tmp_path: Path) -> None:
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
def test_file_urls_start_with_the_public_url(host: str, public_url: str | None, expected: str) -> None:
    assert Settings(host=host, public_url=public_url).base_url == expected


def test_a_limit_of_zero_means_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_MAX_QUEUED", "5")
    monkeypatch.setenv("IMAGE_TO_3D_MAX_PER_MINUTE", "0")

    assert Settings().default_limits == KeyLimits(queued=5)


def test_settings_and_the_store_import_nothing_heavy() -> None:
    names = ", ".join(map(repr, HEAVY))
    imports = "import sys, pipeline.settings, pipeline.jobs.stores.sql.store"
    code = f"{imports}; print([n for n in ({names}) if n in sys.modules])"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert found.strip() == "[]"


@pytest.mark.parametrize("url", ["https://3d.example.com", "http://[::1]:8000/a/b/", "https://h/3d"])
def test_links_begin_with_the_public_url_and_its_path(url: str) -> None:
    assert Settings(public_url=url).base_url == url.rstrip("/")


@pytest.mark.parametrize("url", ["3d.example.com", "ftp://h/", "https://h/?key=1", "https://h/#top", "https://h/a b"])
def test_a_public_url_that_no_path_can_follow_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="public_url"):
        Settings(public_url=url)


@pytest.mark.parametrize(
    ("settings", "agent"),
    [
        ({}, "image-to-3d/{}"),
        ({"public_url": "https://3d.example.com/"}, "image-to-3d/{} (+https://3d.example.com/)"),
        (
            {"contact_url": "mailto:me@example.com", "public_url": "https://h"},
            "image-to-3d/{} (+mailto:me@example.com)",
        ),
    ],
)
def test_requests_name_the_version_and_the_operator(settings: dict[str, str], agent: str) -> None:
    assert Settings(**settings).user_agent == agent.format(__version__)
