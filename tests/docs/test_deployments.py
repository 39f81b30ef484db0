"""The files of docs/deploy agree with the code and with each other: settings, commands, paths, labels."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.api.app import create_app
from pipeline.cli import app as command
from pipeline.settings import Settings
from tests.docs.containers import ROOT, read_stages

DEPLOY = ROOT / "docs" / "deploy"
COMPOSE, KUBERNETES, UNIT = DEPLOY / "compose.yaml", DEPLOY / "kubernetes.yaml", DEPLOY / "image-to-3d@.service"
SETTING = re.compile(r"\bIMAGE_TO_3D_([A-Z0-9_]+)\b")
COMMANDS = {found.callback.__name__ for found in command.registered_commands if found.callback is not None}


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return [*yaml.safe_load_all(KUBERNETES.read_text())]


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found for found in manifests if found["kind"] == kind}


@pytest.mark.parametrize(
    "path", [*sorted(DEPLOY.iterdir()), ROOT / "docs" / "deploy-machines.md"], ids=lambda p: p.name
)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = {*SETTING.findall(path.read_text())} - {"NAME"}

    assert named
    assert named <= {name.upper() for name in Settings.model_fields}


def test_compose_runs_two_pools_of_workers_without_a_shared_folder() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    ours = {name: service for name, service in services.items() if name.startswith(("web", "worker"))}

    assert {*ours} == {"web", "web-2", "worker-cpu", "worker-gpu"}
    assert {service["build"]["target"] for service in ours.values()} <= {
        *read_stages((ROOT / "Dockerfile").read_text())
    }
    for service in ours.values():
        assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
        assert not any("data" in volume for volume in service.get("volumes", ()))
        assert service["environment"]["IMAGE_TO_3D_SECRET_KEYS"].startswith("${IMAGE_TO_3D_SECRET_KEYS:?")
        if "command" in service:
            assert service["command"][0] == "image-to-3d" and service["command"][1] in COMMANDS
    pools = [service["environment"].get("IMAGE_TO_3D_WORKER_ENGINES") for service in ours.values()]
    assert sorted(filter(None, pools)) == ["preview", "trellis"]


def test_the_manifests_select_what_they_start(manifests: list[dict[str, Any]]) -> None:
    deployments = of_kind(manifests, "Deployment")
    labels = [found["spec"]["template"]["metadata"]["labels"] for found in deployments.values()]

    assert {*deployments} == {"image-to-3d-web", "image-to-3d-worker-cpu", "image-to-3d-worker-gpu"}
    for found in deployments.values():
        assert found["apiVersion"] == "apps/v1"
        assert found["spec"]["selector"]["matchLabels"] == found["spec"]["template"]["metadata"]["labels"]
    (service,) = of_kind(manifests, "Service").values()
    assert labels.count(service["spec"]["selector"]) == 1


def test_the_pods_find_their_settings_volumes_and_ports(manifests: list[dict[str, Any]]) -> None:
    for found in of_kind(manifests, "Deployment").values():
        pod = found["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        sources = [(kind, source["name"]) for entry in container["envFrom"] for kind, source in entry.items()]
        assert sources == [("configMapRef", "image-to-3d"), ("secretRef", "image-to-3d")]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        claims = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if len(volume) == 2 and "persistentVolumeClaim" in volume
        }
        assert claims <= {*of_kind(manifests, "PersistentVolumeClaim")}
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
        for probe in ("readinessProbe", "livenessProbe"):
            if probe in container:
                assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
                assert ports == {"http": Settings.model_fields["port"].default}
        assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["stop_grace_s"].default
    assert "image-to-3d" in of_kind(manifests, "ConfigMap")


def test_no_manifest_holds_a_secret(manifests: list[dict[str, Any]]) -> None:
    assert of_kind(manifests, "Secret") == {}
    assert not re.search("KEY|PASSWORD|TOKEN", str(of_kind(manifests, "ConfigMap")))


def test_the_unit_runs_a_command_that_exists_and_stops_after_the_grace_period() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text())

    assert unit["Service"]["ExecStart"].endswith("/bin/image-to-3d %i")
    assert {*re.findall(r"image-to-3d@(\w+)", UNIT.read_text())} <= COMMANDS
    assert float(unit["Service"]["TimeoutStopSec"]) > Settings.model_fields["stop_grace_s"].default + 10


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/image-to-3d/bin/image-to-3d", "/bin/true")
    (tmp_path / "image-to-3d@serve.service").write_text(text)

    checked = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "image-to-3d@serve.service"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "image-to-3d@" not in checked.stderr, checked.stderr


def test_the_probed_paths_are_served(tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    with TestClient(create_app(Settings(data_dir=tmp_path, database_url=None))) as client:
        assert client.get("/health").status_code == 200
