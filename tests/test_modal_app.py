"""The app file on a deployer's machine: it needs no account, imports nothing heavy and defines what is intended."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.table import option_rows

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "scipy", "trimesh", "fastapi", "sqlalchemy")
MINUTE_S = 60
READ = f"""
import dataclasses, json, sys, modal_app

def described(function):
    return dataclasses.asdict(function.info())

functions = {{name: described(getattr(modal_app, name)) for name in (
    "run_job", "deliver_webhooks", "clean", "fetch_weights", "generate_once", "web", "smoke"
)}}
functions["keys"], functions["secrets"] = (described(each) for each in modal_app.OF_KEYS)
for name in ("Generator", "TriposrGenerator"):
    functions[name] = described(getattr(modal_app, name)().generate)
heavy = [name for name in {HEAVY!r} if name in sys.modules]
apps = ("app", "fetching", "testing", "once", "keys", "rotate_secrets")
names = {{name: sorted(getattr(modal_app, name)._local_state.functions) for name in apps}}
print(json.dumps({{"heavy": heavy, "functions": functions, "names": names}}))
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Modal's client says about the app in an empty environment."""
    home = tmp_path_factory.mktemp("home")
    bare = ["env", "-i", f"HOME={home}", f"PYTHONPATH={ROOT}", "IMAGE_TO_3D_ENGINES=triposr"]
    done = subprocess.run([*bare, sys.executable, "-c", READ], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def functions(app: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return app["functions"]


def test_importing_the_app_file_needs_no_credentials_and_imports_nothing_heavy(app: dict[str, Any]) -> None:
    assert app["heavy"] == []


def test_each_engine_has_its_gpus_and_mounts_only_the_weights(functions: dict[str, dict[str, Any]]) -> None:
    assert functions["Generator"]["gpus"] == [["H100", 1], ["A100-80GB", 1], ["A100-40GB", 1]]
    assert functions["TriposrGenerator"]["gpus"] == [["L4", 1], ["A10", 1], ["T4", 1]]
    for name in ("Generator", "TriposrGenerator"):
        info = functions[name]
        assert mounts_of(info) == {"/weights": ("image-to-3d-weights", "read-only")}
        assert not info["block_network"]  # views and Generation are blobs, which need it
        assert info["concurrency_info"] is None  # one input per container
        assert (info["timeout"], info["startup_timeout"]) == (15 * MINUTE_S, 10 * MINUTE_S)
        assert info["max_retries"] is None  # a failed generation is returned, not run again
        assert info["method_names"] == ["wake", "describe_start", "generate"]
    assert {name for name, info in functions.items() if info["gpus"]} == {"Generator", "TriposrGenerator"}


def test_volumes_are_writable_only_where_something_is_written(functions: dict[str, dict[str, Any]]) -> None:
    data = {"/data/files": ("image-to-3d-outputs", "writable"), "/data/work": ("image-to-3d-state", "writable")}
    weights = {"/weights": ("image-to-3d-weights", "read-only")}

    mounted = {name: mounts_of(info) for name, info in functions.items()}

    assert mounted["run_job"] == data | weights
    assert mounted["clean"] == data | {"/data/backup": ("image-to-3d-backup", "writable")}
    assert mounted["generate_once"] == {"/data/work": data["/data/work"]} | weights
    assert mounted["fetch_weights"] == {"/weights": ("image-to-3d-weights", "writable")}
    for name in ("web", "deliver_webhooks", "smoke", "keys", "secrets"):
        assert mounted[name] == {}


def test_only_functions_that_serve_callers_or_operators_have_the_secret(functions: dict[str, dict[str, Any]]) -> None:
    have = {name for name, info in functions.items() if "modal.Secret.from_name('image-to-3d')" in info["secrets"]}
    assert have == {"run_job", "deliver_webhooks", "clean", "web", "smoke", "keys", "secrets"}


def test_the_web_function_is_the_only_public_one(functions: dict[str, dict[str, Any]]) -> None:
    web = functions["web"]
    assert {name for name, info in functions.items() if info["web_info"] is not None} == {"web"}
    assert web["concurrency_info"] == {"max_inputs": 100, "target_inputs": 60}
    assert web["max_retries"] is None
    assert (web["timeout"], web["startup_timeout"]) == (5 * MINUTE_S, 1 * MINUTE_S)


def test_a_job_is_retried_and_two_functions_are_scheduled(functions: dict[str, dict[str, Any]]) -> None:
    job = functions["run_job"]
    assert (job["max_retries"], job["timeout"], job["startup_timeout"]) == (3, 30 * MINUTE_S, 5 * MINUTE_S)
    scheduled = {name: info["schedule"] for name, info in functions.items() if info["schedule"] is not None}
    assert set(scheduled) == {"deliver_webhooks", "clean"}
    assert "* * * * *" in json.dumps(scheduled["deliver_webhooks"])
    assert "*/5 * * * *" in json.dumps(scheduled["clean"])


def test_the_names_of_deployed_objects_stay_the_same(app: dict[str, Any]) -> None:
    """A deployment updates the objects of these names; with another name, Modal would create a second one."""
    assert app["names"]["app"] == [
        "Generator.*",
        "TriposrGenerator.*",
        "clean",
        "deliver_webhooks",
        "run_call",
        "web",
    ]


def test_what_an_operator_runs_has_apps_of_its_own_that_start_nothing_else(app: dict[str, Any]) -> None:
    """`modal run` starts a copy of a whole App, with the containers that always run and every image."""
    names = app["names"]

    assert (names["fetching"], names["testing"]) == (
        ["fetch_weights"],
        ["age_of_container", "echo_isolated", "smoke", "time_commits"],
    )
    assert names["once"] == ["OnceTrellisGenerator.*", "OnceTriposrGenerator.*", "make_files"]
    assert (names["keys"], names["rotate_secrets"]) == (["change_keys"], ["reencrypt_secrets"])


def mounts_of(info: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Name and mode of the Volume at each mount path."""
    return {
        path: (mount["name"], "read-only" if mount["read_only"] else "writable")
        for path, mount in info["volumes"].items()
    }


def test_modal_run_offers_every_field_as_an_option(tmp_path: Path) -> None:
    bare = ["env", "-i", f"HOME={tmp_path}", f"PYTHONPATH={ROOT}", sys.executable, "-m", "modal"]
    done = subprocess.run(
        [*bare, "run", "modal_app.py", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )

    options = set(re.findall(r"--([a-z-]+)", done.stdout))
    assert {row.option.removeprefix("--") for row in option_rows()} | {"image", "out"} <= options, done.stderr
    assert "--seed TEXT" in done.stdout and "--render / --no-render" in done.stdout
