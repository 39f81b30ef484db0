"""Dockerfile and compose.yaml agree with the repository: files, modules, settings. Nothing is built here."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import tomllib
from typing import Any

import pytest
import yaml

from pipeline.settings import Settings
from tests.docs.containers import (
    ROOT,
    Stage,
    command_of,
    environment_of,
    read_stages,
    sources_of,
    steps_of,
)

TARGETS = ("web", "worker", "all-in-one")


@pytest.fixture(scope="module")
def stages() -> dict[str, Stage]:
    return read_stages((ROOT / "Dockerfile").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_the_dockerfile_has_the_documented_targets(stages: dict[str, Stage]) -> None:
    assert [*stages] == ["base", *TARGETS]
    assert stages["base"].base == "python:3.12-slim"


@pytest.mark.parametrize("target", TARGETS)
def test_every_copied_source_exists_and_reaches_the_build(target: str, stages: dict[str, Stage]) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    for source in sources_of(steps_of(stages, target)):
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, f"{name}*") for name in allowed), f"{source} is ignored"


@pytest.mark.parametrize("target", TARGETS)
def test_the_command_of_a_target_exists(target: str, stages: dict[str, Stage]) -> None:
    command = command_of(steps_of(stages, target))

    if command[0] == "python":
        assert command[1] == "-m"
        assert importlib.util.find_spec(command[2]) is not None
    else:
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        assert command == ["image-to-3d", "serve"]
        assert scripts["image-to-3d"] == "pipeline.cli:main"


@pytest.mark.parametrize("target", TARGETS)
def test_containers_do_not_run_as_root_and_hold_no_secret(target: str, stages: dict[str, Stage]) -> None:
    steps = steps_of(stages, target)

    assert [rest for instruction, rest in steps if instruction == "USER"] == ["image-to-3d"]
    assert not [name for name in environment_of(steps) if re.search("KEY|SECRET|TOKEN|PASSWORD", name)]


@pytest.mark.parametrize("target", TARGETS)
def test_the_settings_of_the_image_exist(target: str, stages: dict[str, Stage]) -> None:
    names = {name for name in environment_of(steps_of(stages, target)) if name.startswith("IMAGE_TO_3D_")}

    assert names
    assert names <= _setting_names()


def test_compose_has_every_part_and_builds_the_targets(compose: dict[str, Any], stages: dict[str, Stage]) -> None:
    services = compose["services"]

    assert {*services} == {"web", "worker", "postgres", "s3"}
    assert {service["build"]["target"] for service in services.values() if "build" in service} <= {*stages}


def test_compose_uses_settings_that_exist_and_no_secret_of_its_own(compose: dict[str, Any]) -> None:
    for service in ("web", "worker"):
        environment = compose["services"][service]["environment"]
        ours = {name for name in environment if name.startswith("IMAGE_TO_3D_")}
        assert ours <= _setting_names()
        assert environment["IMAGE_TO_3D_SECRET_KEYS"].startswith("${IMAGE_TO_3D_SECRET_KEYS:?")
        assert "${POSTGRES_PASSWORD:?" in environment["IMAGE_TO_3D_DATABASE_URL"]


def test_web_and_worker_share_one_folder_of_data(compose: dict[str, Any]) -> None:
    assert all("data:/data" in compose["services"][service]["volumes"] for service in ("web", "worker"))


def test_compose_leaves_no_setting_empty_that_means_something_empty() -> None:
    assert Settings.model_config["env_ignore_empty"]  # "${NAME:-}" in compose.yaml is an empty variable


def _setting_names() -> set[str]:
    return {f"IMAGE_TO_3D_{name.upper()}" for name in Settings.model_fields}
