"""The settings of a Modal deployment, and which of them its containers get."""

from __future__ import annotations

import pytest

from pipeline.engines.registry import find_spec
from pipeline.on_modal.settings import CLIENT_VARIABLES, ScalingSettings, environment_of_containers


def test_containers_get_the_settings_of_the_deployer_without_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "IMAGE_TO_3D_API_KEY": "the callers' key",
        "IMAGE_TO_3D_MASTER_KEY": "a master key",
        "IMAGE_TO_3D_SECRET_KEYS": "the same under its other name",
        "DATABASE_URL": "postgresql://user:password@host/jobs",
        "IMAGE_TO_3D_DATABASE_URL": "postgresql://user:password@host/jobs",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=token",
    }
    passed_on = {
        "IMAGE_TO_3D_SUBMIT_WAIT_S": "5",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://traces.example",
        "IMAGE_TO_3D_GPUS": "L4",
    }
    for name, value in (secrets | passed_on).items():
        monkeypatch.setenv(name, value)

    environment = environment_of_containers(weights="/weights")

    assert environment == passed_on | {
        "IMAGE_TO_3D_WEIGHTS": "/weights",
        "IMAGE_TO_3D_DATABASE_POOL_SIZE": "1",
        "IMAGE_TO_3D_DATABASE_POOL_OVERFLOW": "1",
        "MODAL_MAX_THROTTLE_WAIT": "10",
    }


def test_modal_s_client_reads_how_long_it_may_wait_when_it_is_throttled() -> None:
    config = pytest.importorskip("modal.config").config

    for name, value in CLIENT_VARIABLES.items():
        assert config.get(name.removeprefix("MODAL_").lower(), use_env=False) is None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            assert config.get(name.removeprefix("MODAL_").lower()) == int(value)


@pytest.mark.parametrize(
    ("setting", "gpus"), [(None, ("L4", "A10", "T4")), ("H100", ("H100",)), ("none", ()), ("A10, T4", ("A10", "T4"))]
)
def test_an_engine_without_a_gpu_gets_none_whatever_the_setting_says(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, gpus: tuple[str, ...]
) -> None:
    if setting is None:
        monkeypatch.delenv("IMAGE_TO_3D_GPUS", raising=False)
    else:
        monkeypatch.setenv("IMAGE_TO_3D_GPUS", setting)

    scaling = ScalingSettings()

    assert scaling.gpus_for(find_spec("triposr")) == gpus
    assert scaling.gpus_for(find_spec("preview")) == ()


def test_the_detail_that_is_loaded_chooses_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec("trellis2")
    monkeypatch.delenv("IMAGE_TO_3D_GPUS", raising=False)
    monkeypatch.delenv("IMAGE_TO_3D_TRELLIS2_DETAIL", raising=False)
    assert ScalingSettings().gpus_for(spec) == ("H100", "H200", "A100-80GB")

    monkeypatch.setenv("IMAGE_TO_3D_TRELLIS2_DETAIL", "512")
    assert ScalingSettings().gpus_for(spec)[0] == "L40S"
    assert ScalingSettings().gpus_for(find_spec("trellis")) == find_spec("trellis").gpus
