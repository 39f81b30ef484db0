"""The fake server is as slow and as unreliable as a test says, and has a workspace's limits."""

import concurrent.futures
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal
import pytest

from tests.fakes.modal import Conditions, FakeModal, Limits, reason_unavailable
from tests.fakes.modal.deployed import APP, SAMPLE, deployed_sample, run_modal

pytestmark = [
    pytest.mark.xdist_group("fake_modal"),
    pytest.mark.skipif(reason_unavailable() is not None, reason=str(reason_unavailable())),
]

DAY_S = 86_400.0
DICT_ONLY = ("Dict",)
LATE = ["late", None]


def seconds_of(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def test_the_shares_of_faults_are_met_and_are_the_same_for_the_same_seed() -> None:
    conditions = Conditions(lost_before=0.2, lost_after=0.1, throttled=0.05, late=0.05)
    calls = 4000

    met = [conditions.fault("DictGet", number) for number in range(calls)]

    for kind, share in (("lost_before", 0.2), ("lost_after", 0.1), ("throttled", 0.05), ("late", 0.05), (None, 0.6)):
        assert met.count(kind) / calls == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / calls))
    assert met == [conditions.fault("DictGet", number) for number in range(calls)]
    assert met != [conditions.fault("DictUpdate", number) for number in range(calls)]
    with pytest.raises(ValueError, match="more than 1"):
        Conditions(lost_before=0.6, late=0.6)


def test_every_call_of_a_program_has_the_latency(fake_modal: FakeModal, state: modal.Dict) -> None:
    fake_modal.conditions = Conditions(latency_s=0.2)

    assert seconds_of(lambda: [state.get("nothing") for _ in range(3)]) >= 0.6


def test_a_lost_call_is_repeated_by_the_client_and_has_its_effect_once_or_twice(
    fake_modal: FakeModal, state: modal.Dict
) -> None:
    fake_modal.conditions = Conditions(lost_before=0.1, lost_after=0.1, methods=DICT_ONLY)
    asked = fake_modal.asked("DictUpdate")

    created = [state.put(f"lost/{number}", number, skip_if_exists=True) for number in range(40)]
    fake_modal.conditions = Conditions()

    lost = fake_modal.faults["DictUpdate", "lost_before"], fake_modal.faults["DictUpdate", "lost_after"]
    assert min(lost) > 0
    assert [state[f"lost/{number}"] for number in range(40)] == list(range(40))
    # A create whose answer was lost and that is repeated finds its own entry.
    assert 0 < created.count(False) <= lost[1]
    # At least: containers of earlier tests may use the Dict meanwhile, and a slow answer is asked for again.
    assert fake_modal.asked("DictUpdate") - asked >= 40 + lost[1] + lost[0]


def test_a_call_that_is_always_lost_raises_after_the_last_repetition(fake_modal: FakeModal, state: modal.Dict) -> None:
    fake_modal.conditions = Conditions(lost_before=1.0, methods=DICT_ONLY)

    with pytest.raises(modal.exception.ServiceError, match="lost"):
        state.get("anything")


def test_a_throttled_call_is_repeated_as_often_as_the_server_says(fake_modal: FakeModal, state: modal.Dict) -> None:
    state["throttled"] = "kept"
    fake_modal.conditions = Conditions(throttled=1.0, retry_after_s=0.02, methods=DICT_ONLY)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        read = pool.submit(state.get, "throttled")
        # The client's own repetitions end after three; these do not.
        fake_modal.wait_until(lambda: fake_modal.faults.get(("DictGet", "throttled"), 0) >= 6)
        fake_modal.conditions = Conditions()

        assert read.result() == "kept"


def test_a_late_call_takes_effect_after_those_that_came_later(fake_modal: FakeModal, state: modal.Dict) -> None:
    conditions = (Conditions(late=0.5, late_s=1.0, seed=seed, methods=("DictUpdate",)) for seed in itertools.count())
    fake_modal.conditions = next(each for each in conditions if [each.fault("DictUpdate", n) for n in range(2)] == LATE)
    state.hydrate()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(state.put, "late", "first")
        fake_modal.wait_until(lambda: ("DictUpdate", "late") in fake_modal.faults)
        state["late"] = "second"
        assert state["late"] == "second"
        first.result()

    assert state["late"] == "first"


def test_an_entry_of_a_dict_expires_a_week_after_its_last_use(fake_modal: FakeModal, state: modal.Dict) -> None:
    state["read"], state["left alone"], state["looked for"] = 1, 2, 3

    for _ in range(2):
        fake_modal.advance_clock(4 * DAY_S)
        assert state.get("read") == 1
        state.contains("looked for")
    state["written"] = 4

    entries = ("read", "left alone", "looked for", "written")
    assert [key for key in entries if state.contains(key)] == ["read", "written"]


def test_commits_and_reloads_take_as_long_as_the_test_says(
    fake_modal: FakeModal, function: Callable[[str], Any]
) -> None:
    function("write").remote("warm.txt", "x")
    fake_modal.conditions = Conditions(commit_s=0.4)
    assert seconds_of(lambda: function("write").remote("slow.txt", "x")) >= 0.4
    fake_modal.conditions = Conditions(reload_s=0.4)
    assert seconds_of(lambda: function("read").remote("slow.txt")) >= 0.4


def test_a_container_boots_and_restores_as_slowly_as_the_test_says(fake_modal: FakeModal, client: modal.Client) -> None:
    fake_modal.conditions = Conditions(boot_s=0.3, restore_s=0.2)

    modal.Cls.from_name(APP, "Model", client=client)(name="slow").history_of.remote("me")

    container = fake_modal.containers("Model")[-1]
    at = dict(zip(container.events, container.event_times, strict=True))
    assert at["boot"] - container.created_at >= 0.3
    assert at["restored"] - at["snapshot"] >= 0.2
    assert at["ready"] > at["restored"]


def test_a_blob_takes_as_long_as_its_size_and_the_rate_say(
    fake_modal: FakeModal, function: Callable[[str], Any]
) -> None:
    function("look").remote("length", b"")
    fake_modal.conditions = Conditions(blob_bytes_per_s=10e6)

    # Up to the server and down to the container, then the same way back.
    assert seconds_of(lambda: function("look").remote("length", bytes(3_000_000))) >= 4 * 0.3


def test_a_deployed_class_that_cannot_start_is_started_again_for_ever_and_its_calls_wait(tmp_path: Path) -> None:
    limits = Limits(scaledown_s=20.0, backoff_s=0.2, max_backoff_s=0.8)
    with deployed_sample(tmp_path, limits=limits) as fake_modal, fake_modal.client() as client:
        broken = modal.Cls.from_name(APP, "Broken", client=client)()
        call = broken.run.spawn()
        fake_modal.wait_until(lambda: len(fake_modal.containers("Broken")) >= 5, timeout_s=60)

        with pytest.raises(TimeoutError):
            call.get(timeout=0)
        started = [each.created_at for each in fake_modal.containers("Broken")]
        ended = [each.event_times[-1] for each in fake_modal.containers("Broken") if each.is_ended]
        pauses = [begin - end for begin, end in zip(started[1:], ended, strict=False)]
        call.cancel()

    assert "no weights" in fake_modal.logs("Broken")
    for pause_s, least_s in zip(pauses, (0.2, 0.4, 0.8, 0.8), strict=False):
        assert pause_s >= least_s


def test_a_class_of_an_ephemeral_app_that_cannot_start_fails_its_calls_with_the_reason(
    fake_modal: FakeModal,
) -> None:
    printed = run_modal(fake_modal, "run", f"{SAMPLE}::run_broken", exit_code=1)

    assert "FileNotFoundError" in printed and "no weights" in printed


def test_an_input_that_kills_its_container_again_and_again_pauses_its_function(tmp_path: Path) -> None:
    limits = Limits(scaledown_s=20.0, backoff_s=0.4)
    with deployed_sample(tmp_path, limits=limits) as fake_modal, fake_modal.client() as client:
        wait = modal.Function.from_name(APP, "wait_for_release", client=client)
        state = modal.Dict.from_name("sample-state", create_if_missing=True, client=client)
        call = wait.spawn("killed")
        for runs in (1, 2, 3):
            fake_modal.wait_until(lambda runs=runs: state.get("killed/runs") == runs)
            fake_modal.kill_container_of("wait_for_release")
        state["killed/release"] = True
        assert call.get(timeout=30).startswith("run ")

    died = [each for each in fake_modal.containers("wait_for_release") if "ended with -9" in each.events]
    began = [each.created_at for each in fake_modal.containers("wait_for_release")]
    assert began[2] - died[1].event_times[-1] >= 0.4
    assert began[3] - died[2].event_times[-1] >= 0.8


def test_gpus_beyond_the_workspaces_limit_wait_until_one_is_free(tmp_path: Path) -> None:
    with deployed_sample(tmp_path, limits=Limits(scaledown_s=0.5, gpus=1)) as fake_modal, fake_modal.client() as client:
        hold = modal.Function.from_name(APP, "hold_gpu", client=client)
        model = modal.Cls.from_name(APP, "Model", client=client)(name="waits")
        state = modal.Dict.from_name("sample-state", create_if_missing=True, client=client)
        holding = hold.spawn("gpu")
        fake_modal.wait_until(lambda: state.contains("gpu/runs"))
        waiting = model.history_of.spawn("me")
        assert modal.Function.from_name(APP, "double", client=client).remote(2) == 4  # needs no GPU

        assert fake_modal.containers("Model") == []
        state["gpu/release"] = True
        assert holding.get(timeout=30) == "run 1"
        assert waiting.get(timeout=30).startswith("waits for me")


def test_containers_beyond_the_workspaces_limit_wait_though_those_that_run_wait_for_them(tmp_path: Path) -> None:
    limits = Limits(scaledown_s=0.5, containers=2)
    with deployed_sample(tmp_path, limits=limits) as fake_modal, fake_modal.client() as client:
        wait = modal.Function.from_name(APP, "wait_for_release", client=client)
        state = modal.Dict.from_name("sample-state", create_if_missing=True, client=client)
        calls = [wait.spawn(f"full/{number}") for number in range(2)]
        fake_modal.wait_until(lambda: all(state.contains(f"full/{number}/runs") for number in range(2)))
        doubled = modal.Function.from_name(APP, "double", client=client).spawn(4)
        with pytest.raises(TimeoutError):
            doubled.get(timeout=1)
        assert fake_modal.containers("double") == []

        for number in range(2):
            state[f"full/{number}/release"] = True
        assert [call.get(timeout=30) for call in calls] == ["run 1"] * 2
        assert doubled.get(timeout=30) == 8


def test_a_deployment_with_more_schedules_than_the_workspace_allows_is_refused(tmp_path: Path) -> None:
    with FakeModal(tmp_path, limits=Limits(crons=0)) as fake_modal:
        fake_modal.create_secret("sample-secret", {"SAMPLE_KEY": "opensesame"})

        printed = run_modal(fake_modal, "deploy", str(SAMPLE), exit_code=1)

    assert "1 scheduled functions of 0" in printed
