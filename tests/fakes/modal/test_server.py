"""The fake server implements what the app uses, for Modal's real command line, client and container entry point."""

import concurrent.futures
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import modal
import pytest

from tests.fakes.modal import FakeModal, reason_unavailable
from tests.fakes.modal.deployed import APP, SAMPLE, deployed_sample, run_modal

pytestmark = [
    pytest.mark.xdist_group("fake_modal"),
    pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable())),
]


@pytest.fixture
def own_modal(tmp_path: Path) -> Iterator[FakeModal]:
    """A server for one test, which changes the app or its secret."""
    with deployed_sample(tmp_path) as fake_modal:
        yield fake_modal


def test_run_executes_the_entrypoint_and_shows_what_the_container_printed(fake_modal: FakeModal) -> None:
    shown = run_modal(fake_modal, "run", f"{SAMPLE}::main", "--number", "5")

    assert "doubling 5 with as built here there" in shown
    assert "answer 10" in shown


def test_a_deployed_function_shows_what_its_decorator_said(fake_modal: FakeModal) -> None:
    model, reader, web = fake_modal.function("Model"), fake_modal.function("read"), fake_modal.function("web")

    assert model.gpus == ("H100", "A100-80GB")
    assert (model.enable_memory_snapshot, model.startup_timeout_s, model.methods) == (True, 60, ("history_of",))
    assert model.autoscaler.scaledown_window == 2
    assert reader.volumes == {
        "/fake-modal-test/outputs": ("sample-outputs", False),
        "/fake-modal-test/weights": ("sample-weights", True),
    }
    assert fake_modal.function("double").secrets[0] == ("sample-secret", ("SAMPLE_KEY",))
    assert fake_modal.function("fail_at_first").retries == 1
    assert fake_modal.function("nightly").cron == "*/10 * * * *"
    assert fake_modal.function("reach_the_dict").restrict_modal_access
    assert (web.max_concurrent_inputs, web.autoscaler.max_containers) == (20, 1)
    assert fake_modal.function("guarded").webhook.requires_proxy_auth
    assert web.files == ("/root/sample_app.py",)


def test_a_container_is_reused_and_has_only_its_own_variables(function: Callable[[str], Any]) -> None:
    look = function("look")

    first, tokens = look.remote("process")
    second, _ = look.remote("process")

    assert first == second
    assert tokens == []
    assert look.remote("key") == "absent"


def test_arguments_and_results_over_the_message_limit_travel_as_blobs(
    fake_modal: FakeModal, function: Callable[[str], Any]
) -> None:
    data = os.urandom(3 * 1024 * 1024)

    assert function("look").remote("length", data) == (len(data), data)
    assert fake_modal.asked("BlobCreate") >= 2


def test_a_container_that_stops_fetching_is_replaced(function: Callable[[str], Any]) -> None:
    look = function("look")

    retired = look.remote("retire")

    assert look.remote("process")[0] != retired


def test_map_and_spawn_and_generators_give_every_result(function: Callable[[str], Any], client: modal.Client) -> None:
    call = function("double").spawn(21)

    assert list(function("double").map(range(5))) == [0, 2, 4, 6, 8]
    assert modal.FunctionCall.from_id(call.object_id, client=client).get(timeout=30) == 42
    assert list(function("count").remote_gen(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("how", ["remote", "spawn"])
def test_a_failing_input_is_retried_as_often_as_its_policy_says(how: str, function: Callable[[str], Any]) -> None:
    fail_at_first = function("fail_at_first")

    def call(key: str, failures: int) -> int:
        return fail_at_first.remote(key, failures) if how == "remote" else fail_at_first.spawn(key, failures).get()

    assert call(f"{how}-once", 1) == 2
    with pytest.raises(RuntimeError, match="run 2 fails"):
        call(f"{how}-always", 9)


def test_an_input_over_its_timeout_ends_with_a_timeout(fake_modal: FakeModal, function: Callable[[str], Any]) -> None:
    with pytest.raises(modal.exception.FunctionTimeoutError, match="timeout of 1s"):
        function("oversleep").remote(30)

    fake_modal.wait_until(lambda: fake_modal.containers("oversleep")[-1].is_ended)


def test_a_spawned_call_is_pending_then_cancelled(
    fake_modal: FakeModal, function: Callable[[str], Any], state: modal.Dict, client: modal.Client
) -> None:
    call = function("wait_for_release").spawn("cancelled")
    fake_modal.wait_until(lambda: state.contains("cancelled/runs"))
    again = modal.FunctionCall.from_id(call.object_id, client=client)
    with pytest.raises(TimeoutError):
        again.get(timeout=0)

    again.cancel()

    with pytest.raises(modal.exception.RemoteError, match="cancelled"):
        again.get(timeout=10)
    assert state["cancelled/cancelled"] is True


@pytest.mark.parametrize("how", ["killed", "preempted"])
def test_a_lost_container_has_its_input_run_again(
    how: str, fake_modal: FakeModal, function: Callable[[str], Any], state: modal.Dict
) -> None:
    call = function("wait_for_release").spawn(how)
    fake_modal.wait_until(lambda: state.contains(f"{how}/runs"))

    fake_modal.kill_container_of("wait_for_release", preempt=how == "preempted")
    fake_modal.wait_until(lambda: state[f"{how}/runs"] == 2)
    state[f"{how}/release"] = True

    assert call.get(timeout=10) == "run 2"
    assert fake_modal.wait_for(call.object_id).crashes == 1


def test_a_planned_kill_meets_an_input_however_short_it_is(
    fake_modal: FakeModal, function: Callable[[str], Any]
) -> None:
    kill = fake_modal.plan_kill("double", after_s=30)
    call = function("double").spawn(4)

    fake_modal.wait_for_kill(kill)

    assert call.get(timeout=10) == 8
    assert fake_modal.wait_for(call.object_id).crashes == 1


def test_a_kill_that_was_waited_for_in_vain_is_called_off(
    fake_modal: FakeModal, function: Callable[[str], Any]
) -> None:
    kill = fake_modal.plan_kill("double")
    with pytest.raises(TimeoutError):
        fake_modal.wait_for_kill(kill, timeout_s=0.1)

    call = function("double").spawn(5)

    assert call.get(timeout=10) == 10
    assert fake_modal.wait_for(call.object_id).crashes == 0


def test_a_redelivered_input_runs_beside_the_first_and_the_first_outcome_stands(
    fake_modal: FakeModal, function: Callable[[str], Any], state: modal.Dict
) -> None:
    call = function("wait_for_release").spawn("redelivered")
    fake_modal.wait_until(lambda: state.contains("redelivered/runs"))
    ended: list[str] = []
    redelivery = threading.Thread(target=lambda: ended.extend(fake_modal.redeliver(call.object_id)))

    redelivery.start()
    fake_modal.wait_until(lambda: state["redelivered/runs"] == 2)
    state["redelivered/release"] = True
    redelivery.join()

    assert call.get(timeout=10) == "run 2"
    assert ended == ["success"]
    assert fake_modal.wait_for(call.object_id).statuses == ("success",)


def test_a_volume_shows_others_only_what_was_committed_and_reloaded(
    fake_modal: FakeModal, function: Callable[[str], Any], tmp_path: Path
) -> None:
    read, write = function("read"), function("write")
    assert read.remote("notes/a.txt") == "absent"

    write.remote("notes/a.txt", "first", commit=False)
    before_commit = read.remote("notes/a.txt")
    write.remote("notes/b.txt", "second")
    before_reload = read.remote("notes/b.txt", reload=False)
    after_reload = read.remote("notes/b.txt")

    assert (before_commit, before_reload, after_reload) == ("absent", "absent", "second")
    with pytest.raises(RuntimeError, match=r"open files preventing the operation: path notes/b\.txt is open"):
        read.remote("notes/b.txt", hold_open=True)
    assert "notes/b.txt" in run_modal(fake_modal, "volume", "ls", "sample-outputs", "notes")
    run_modal(fake_modal, "volume", "get", "sample-outputs", "notes/b.txt", str(tmp_path / "b.txt"))
    assert (tmp_path / "b.txt").read_text() == "second"


def test_files_of_both_volume_versions_come_back_as_they_were_put(client: modal.Client, tmp_path: Path) -> None:
    content = os.urandom(9 * 1024 * 1024) + bytes(1024 * 1024)
    (tmp_path / "large.bin").write_bytes(content)

    for version in (1, 2):
        volume = modal.Volume.from_name(f"sample-v{version}", create_if_missing=True, version=version, client=client)
        with volume.batch_upload() as batch:
            batch.put_file(tmp_path / "large.bin", "/models/large.bin")
        assert b"".join(volume.read_file("models/large.bin")) == content
        assert [entry.path for entry in volume.listdir("/models")] == ["models/large.bin"]
        volume.remove_file("models", recursive=True)
        assert volume.listdir("/", recursive=True) == []


def test_a_read_only_volume_cannot_be_written(
    fake_modal: FakeModal, function: Callable[[str], Any], client: modal.Client
) -> None:
    weights = modal.Volume.from_name("sample-weights", client=client)
    (fake_modal.volume_folder("sample-weights") / "layer.bin").write_bytes(b"weights")

    assert function("overwrite_weights").remote() == "Read-only file system; b'weights'"
    assert b"".join(weights.read_file("layer.bin")) == b"weights"


def test_a_dict_creates_a_key_for_one_of_many_at_once(state: modal.Dict) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda number: state.put("raced", number, skip_if_exists=True), range(8)))

    assert created.count(True) == 1
    assert state.pop("raced") == created.index(True)
    assert not state.contains("raced")


def test_restricted_functions_reach_no_other_object(function: Callable[[str], Any]) -> None:
    with pytest.raises(modal.exception.PermissionDeniedError, match="restrict_modal_access"):
        function("reach_the_dict").remote()


def test_an_isolated_function_reaches_modal_and_nothing_else(
    fake_modal: FakeModal, function: Callable[[str], Any]
) -> None:
    isolated, port = function("isolated"), fake_modal.url.rpartition(":")[2]

    assert isolated.remote("dict", "kept") == "kept"
    assert isolated.remote("connect", port) == "Network is unreachable"
    assert function("look").remote("length", b"x") == (1, b"x")  # others reach it


def test_an_isolated_function_takes_and_gives_no_value_that_travels_as_a_blob(
    fake_modal: FakeModal, function: Callable[[str], Any]
) -> None:
    """Arguments and results of spawned calls of more than 8 KiB are uploaded and downloaded by HTTP."""
    isolated = function("isolated")

    assert isolated.spawn("bytes", 4_000).get(timeout=30) == bytes(4_000)
    with pytest.raises(Exception, match=r"Cannot connect to host 127\.0\.0\.1"):
        isolated.spawn("bytes", 40_000).get(timeout=30)
    call = isolated.spawn("dict", bytes(40_000))
    fake_modal.wait_until(lambda: fake_modal.containers("isolated")[-1].is_ended)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    call.cancel()


def test_a_schedule_fires_on_request(fake_modal: FakeModal, state: modal.Dict) -> None:
    call_id = fake_modal.fire_schedule("nightly")

    assert fake_modal.wait_for(call_id).statuses == ("success",)
    assert state["nightly"] == 1


def test_a_class_loads_before_its_snapshot_moves_after_it_and_leaves_when_idle(
    fake_modal: FakeModal, client: modal.Client, state: modal.Dict
) -> None:
    named = modal.Cls.from_name(APP, "Model", client=client)(name="robot")

    assert named.history_of.remote("me") == "robot for me: load, move"
    assert fake_modal.containers("Model")[-1].events[:4] == ("boot", "snapshot", "restored", "ready")
    fake_modal.wait_until(lambda: state.contains("robot/exit"))


def test_a_function_calls_a_class_of_its_app_and_has_the_packages_sent_with_it(
    function: Callable[[str], Any],
) -> None:
    told, package = function("ask_model").remote("a function")

    assert told == "asked for a function: load, move"
    assert package.endswith("/root/schemas/__init__.py")


def test_a_secret_is_found_only_where_it_was_passed_as_an_argument(
    fake_modal: FakeModal, function: Callable[[str], Any]
) -> None:
    assert fake_modal.traces_of("opensesame") == []

    function("look").remote("length", b"opensesame")

    assert fake_modal.traces_of("opensesame") == ["argument of look"]


def test_a_web_function_streams_bodies_both_ways_and_takes_requests_at_once(
    fake_modal: FakeModal, client: modal.Client
) -> None:
    with httpx.Client(base_url=fake_modal.web_url("web"), timeout=60, follow_redirects=True) as http:
        assert http.get("/where?a=%20b", headers={"X-Test": "kept"}).json() == {
            "url": f"{fake_modal.web_url('web')}/where?a=%20b",
            "header": "kept",
        }
        assert http.post("/length", content=b"x" * 5_000_000).json() == {"length": 5_000_000}
        answer = http.get("/bytes", params={"size": 5_000_000})
        assert (answer.status_code, answer.headers["content-range"]) == (206, "bytes 0-4999999/5000000")
        assert answer.content == b"\x07" * 5_000_000
        with http.stream("GET", "/events") as events:
            lines = (line for line in events.iter_lines() if line)
            first, met, second = next(lines), http.get("/meet").json(), next(lines)
        call_id = http.post("/spawn", params={"number": 4}).json()

    assert (first, met, second) == ("data: first", "met", "data: after the meeting")
    assert modal.FunctionCall.from_id(call_id, client=client).get(timeout=30) == 8


def test_a_lost_web_client_is_told_to_the_app_and_a_lost_container_to_the_client(
    fake_modal: FakeModal, state: modal.Dict
) -> None:
    url = fake_modal.web_url("web")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{url}/watch", timeout=0.5)
    fake_modal.wait_until(lambda: state.contains("watch/disconnected"))

    with httpx.stream("GET", f"{url}/broken", timeout=60, follow_redirects=True) as answer:
        begun = next(pieces := answer.iter_bytes())
        fake_modal.kill_container_of("web")
        with pytest.raises(httpx.RemoteProtocolError):
            next(pieces)

    assert begun == b"begun"


def test_a_late_web_answer_is_waited_for_at_another_address(fake_modal: FakeModal) -> None:
    with httpx.Client(base_url=fake_modal.web_url("web"), timeout=60, follow_redirects=True) as http:
        answer = http.get("/late", params={"after_s": 3})

    assert answer.json() == "at last"
    assert {each.status_code for each in answer.history} == {303}


def test_a_guarded_web_function_requires_the_proxy_token(fake_modal: FakeModal) -> None:
    url = fake_modal.web_url("guarded")

    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers=fake_modal.proxy_headers(), timeout=60, follow_redirects=True).json() == "inside"


def test_a_second_deploy_keeps_the_address_and_is_rolled_back(own_modal: FakeModal) -> None:
    before = own_modal.web_url("web")

    run_modal(own_modal, "deploy", str(SAMPLE))
    history = run_modal(own_modal, "app", "history", APP)
    run_modal(own_modal, "app", "rollback", APP)

    assert "v2" in history
    assert own_modal.web_url("web") == before
    assert [version.rollback_of for version in own_modal.apps()[0].versions] == [0, 0, 1]


def test_a_stopped_app_ends_its_containers_and_its_address(own_modal: FakeModal) -> None:
    url = own_modal.web_url("guarded")

    run_modal(own_modal, "app", "stop", APP, "--yes")

    own_modal.wait_until(lambda: all(each.is_ended for each in own_modal.containers()))
    assert httpx.get(url).status_code == 404


def test_the_server_started_by_hand_prints_its_variables_and_ends_on_a_signal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fakes.modal", "--port", "0", "--folder", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()

    assert lines[0].startswith("export MODAL_SERVER_URL=http://127.0.0.1:")
    assert process.returncode == 0


def test_a_missing_key_of_a_secret_fails_the_deploy(own_modal: FakeModal) -> None:
    own_modal.create_secret("sample-secret", {"OTHER": "value"})

    with pytest.raises(AssertionError, match="SAMPLE_KEY"):
        run_modal(own_modal, "deploy", str(SAMPLE))
