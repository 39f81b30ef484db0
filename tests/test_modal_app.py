"""The app file as a deployer's machine reads it: without an account, light, and with the definitions that are meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "scipy", "trimesh", "fastapi", "sqlalchemy")
MINUTE_S = 60
READ = f"""
import dataclasses, json, sys, modal_app

def told(function):
    return dataclasses.asdict(function.info())

functions = {{name: told(getattr(modal_app, name)) for name in (
    "run_job", "deliver_webhooks", "clean", "fetch_weights", "generate_once", "web", "smoke"
)}}
functions["keys"] = told(modal_app.OF_KEYS[0])
for name in ("Generator", "TriposrGenerator"):
    functions[name] = told(getattr(modal_app, name)().generate)
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"heavy": heavy, "functions": functions}}))
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Modal's client tells of the app in a bare environment."""
    home = tmp_path_factory.mktemp("home")
    bare = ["env", "-i", f"HOME={home}", f"PYTHONPATH={ROOT}", "IMAGE_TO_3D_ENGINES=triposr"]
    done = subprocess.run([*bare, sys.executable, "-c", READ], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def functions(app: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return app["functions"]


def test_the_app_file_is_read_without_credentials_and_without_anything_heavy(app: dict[str, Any]) -> None:
    assert app["heavy"] == []


def test_each_engine_has_its_accelerators_and_nothing_but_its_weights(functions: dict[str, dict[str, Any]]) -> None:
    assert functions["Generator"]["gpus"] == [["H100", 1], ["A100-80GB", 1], ["A100-40GB", 1]]
    assert functions["TriposrGenerator"]["gpus"] == [["L4", 1], ["A10", 1], ["T4", 1]]
    for name in ("Generator", "TriposrGenerator"):
        told = functions[name]
        assert mounts_of(told) == {"/weights": ("image-to-3d-weights", "read-only")}
        assert told["block_network"]
        assert told["concurrency_info"] is None  # one input per container
        assert (told["timeout"], told["startup_timeout"]) == (15 * MINUTE_S, 10 * MINUTE_S)
        assert told["max_retries"] is None  # a failed generation is answered, not paid for again
        assert told["method_names"] == ["wake", "generate"]
    assert {name for name, told in functions.items() if told["gpus"]} == {"Generator", "TriposrGenerator"}


def test_volumes_are_writable_only_where_something_is_written(functions: dict[str, dict[str, Any]]) -> None:
    data = {"/data/files": ("image-to-3d-outputs", "writable"), "/data/work": ("image-to-3d-state", "writable")}
    weights = {"/weights": ("image-to-3d-weights", "read-only")}

    mounted = {name: mounts_of(told) for name, told in functions.items()}

    assert mounted["run_job"] == data | weights
    assert mounted["clean"] == data
    assert mounted["generate_once"] == weights
    assert mounted["fetch_weights"] == {"/weights": ("image-to-3d-weights", "writable")}
    for name in ("web", "deliver_webhooks", "smoke", "keys"):
        assert mounted[name] == {}


def test_only_what_serves_callers_holds_the_secret(functions: dict[str, dict[str, Any]]) -> None:
    holds = {name for name, told in functions.items() if "modal.Secret.from_name('image-to-3d')" in told["secrets"]}
    assert holds == {"run_job", "deliver_webhooks", "clean", "web", "smoke", "keys"}


def test_the_web_function_is_the_only_door(functions: dict[str, dict[str, Any]]) -> None:
    web = functions["web"]
    assert {name for name, told in functions.items() if told["web_info"] is not None} == {"web"}
    assert web["concurrency_info"] == {"max_inputs": 100, "target_inputs": 60}
    assert web["max_retries"] is None
    assert (web["timeout"], web["startup_timeout"]) == (5 * MINUTE_S, 1 * MINUTE_S)


def test_a_call_is_repeated_and_the_clock_keeps_the_rest(functions: dict[str, dict[str, Any]]) -> None:
    call = functions["run_job"]
    assert (call["max_retries"], call["timeout"], call["startup_timeout"]) == (3, 30 * MINUTE_S, 5 * MINUTE_S)
    scheduled = {name: told["schedule"] for name, told in functions.items() if told["schedule"] is not None}
    assert set(scheduled) == {"deliver_webhooks", "clean"}
    assert "* * * * *" in json.dumps(scheduled["deliver_webhooks"])
    assert "*/5 * * * *" in json.dumps(scheduled["clean"])


def mounts_of(told: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Mount paths, each with the Volume's name and its mode."""
    return {
        path: (mount["name"], "read-only" if mount["read_only"] else "writable")
        for path, mount in told["volumes"].items()
    }
