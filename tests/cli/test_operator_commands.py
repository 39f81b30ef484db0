"""The operator's commands on a real data folder."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from standardwebhooks import Webhook
from typer.testing import CliRunner, Result

from pipeline.cli import jobs, keys, serve, usage
from pipeline.deployment import ensure_key, open_store
from pipeline.errors import Unauthorized
from pipeline.jobs.api_keys import authenticate
from pipeline.jobs.model import (
    ApiKey,
    AttemptResult,
    FinalState,
    Job,
    JobResult,
    JobState,
    KeyLimits,
    LedgerFilter,
    NewJob,
)
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.secrets import load_master_keys
from pipeline.settings import Settings
from pipeline.webhooks.signing import WebhookSigner

Command = Callable[..., Result]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder of a service that was started once."""
    store_of(tmp_path / "data").close()
    return tmp_path / "data"


@pytest.fixture
def command(data: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `image-to-3d WORDS… --data FOLDER`."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    app = typer.Typer()
    for module in (keys, jobs, usage, serve):
        module.register(app)
    return lambda *words: CliRunner().invoke(app, [*words, "--data", str(data)])


def store_of(data: Path) -> SqlStore:
    return open_store(Settings(data_dir=data))


def key_named(store: SqlStore, name: str) -> ApiKey:
    return next(key for key in store.list_keys() if key.name == name)


def new_job(key: ApiKey, **fields: Any) -> NewJob:
    return NewJob(api_key_id=key.id, file_prefix="p", request=b"{}", request_sha256="0" * 64, **fields)


def end(store: SqlStore, job: Job, *, state: FinalState = JobState.FAILED, error_code: str) -> Job:
    """Run a job to its end."""
    claimed = store.claim("w", lease_s=30, job_id=job.id)
    assert claimed is not None
    return store.complete(claimed.lease, JobResult(state, error_code=error_code))


def complete_one(store: SqlStore, key: ApiKey, **fields: Any) -> int:
    store.submit(new_job(key, **fields))
    job = store.claim("w", lease_s=30)
    assert job is not None
    result = JobResult(JobState.SUCCESS, stage_seconds={"generate": 1.5}, gpu_seconds=0.25, engine="preview")
    return store.complete(job.lease, result).id


def test_a_new_key_is_printed_once_and_authenticates(command: Command, data: Path) -> None:
    made = command("keys", "create", "shop")

    plain = made.stdout.strip()
    store = store_of(data)
    assert made.exit_code == 0
    assert authenticate(store, plain).name == "shop"
    store.close()
    assert "whsec_" in made.stderr
    listed = command("keys", "list").stdout
    assert "shop" in listed and plain not in listed
    assert all(plain.encode() not in path.read_bytes() for path in data.iterdir())


def test_a_second_key_with_the_same_name_is_refused(command: Command) -> None:
    command("keys", "create", "shop")

    again = command("keys", "create", "shop")

    assert again.exit_code == 1
    assert again.stderr == "There is a key named 'shop' already.\n"


def test_a_revoked_key_is_refused(command: Command, data: Path) -> None:
    plain = command("keys", "create", "shop").stdout.strip()

    assert command("keys", "revoke", "shop").stdout == "shop is revoked\n"

    store = store_of(data)
    with pytest.raises(Unauthorized):
        authenticate(store, plain)
    store.close()
    assert "revoked 20" in command("keys", "list").stdout


def test_limits_are_set_changed_and_removed_one_by_one(command: Command, data: Path) -> None:
    command("keys", "create", "shop", "--queued", "5", "--per-minute", "0", "--per-month", "100")

    said = command("keys", "limit", "shop", "--per-month", "0", "--running", "2").stdout

    assert said == "shop: queued 5, running 2, per minute no limit, per month no limit\n"
    store = store_of(data)
    assert key_named(store, "shop").limits == KeyLimits(queued=5, running=2)
    store.close()


@pytest.mark.parametrize("words", [("keys", "revoke", "nobody"), ("jobs", "list", "--key", "nobody")])
def test_an_unknown_key_name_is_reported(command: Command, words: tuple[str, ...]) -> None:
    answer = command(*words)

    assert answer.exit_code == 1
    assert answer.stderr == "There is no key named 'nobody'.\n"


def test_jobs_are_listed_shown_and_redelivered(command: Command, data: Path) -> None:
    command("keys", "create", "shop")
    store = store_of(data)
    job_id = complete_one(store, key_named(store, "shop"), track_id="order 7", webhook_url="http://127.0.0.1/h")
    task = store.claim_task("webhook", claim_s=60)
    assert task is not None
    store.settle_task(task, AttemptResult(status=500, error="answered 500", seconds=0.1, retry_in_s=None))

    row = command("jobs", "list", "--state", "success", "--track-id", "order 7").stdout.splitlines()[1]
    shown = json.loads(command("jobs", "show", str(job_id)).stdout)
    said = command("jobs", "redeliver", str(job_id)).stdout

    assert re.match(rf"{job_id} +shop +success +- +\S+ \S+ +1\.5 +order 7$", row)
    assert shown["id"] == job_id and shown["ending"]["gpu_seconds"] == 0.25
    assert shown["tasks"][0]["tries"][0]["error"] == "answered 500"
    assert said == f"{task.id} is due now\n"
    again = store.claim_task("webhook", claim_s=60)
    assert again is not None and again.id == task.id
    store.close()


def test_an_unknown_state_is_refused(command: Command) -> None:
    answer = command("jobs", "list", "--state", "done")

    assert answer.exit_code == 2
    assert "must be one of queued, running, success" in re.sub(r"\s+", " ", answer.stderr)


def test_an_unknown_job_id_is_reported(command: Command) -> None:
    for words in (("jobs", "show", "7"), ("jobs", "redeliver", "7")):
        answer = command(*words)
        assert (answer.exit_code, answer.stderr) == (1, "There is no job with the id 7.\n")


def test_usage_is_printed_as_a_table_and_as_csv(command: Command, data: Path) -> None:
    command("keys", "create", "shop")
    store = store_of(data)
    for _ in range(2):
        complete_one(store, key_named(store, "shop"))
    day = store.usage_days(LedgerFilter(None))[0].day
    store.close()

    rows = list(csv.DictReader(io.StringIO(command("usage", "--csv").stdout)))

    assert rows == [
        {
            "key": "shop",
            "day": day,
            "calls": "2",
            "succeeded": "2",
            "failed": "0",
            "cancelled": "0",
            "seconds": "3.000",
            "gpu_seconds": "0.500",
        }
    ]
    assert re.search(rf"^shop +{day} +2 +2 +0 +0 +3\.000 +0\.500$", command("usage").stdout, re.MULTILINE)
    assert command("usage", "--csv", "--until", "2020-01-01").stdout == ",".join(rows[0]) + "\n"


def test_the_first_start_creates_a_key_and_the_second_does_not(data: Path) -> None:
    store = store_of(data)
    settings = Settings(data_dir=data)

    made = ensure_key(store, settings)

    assert made is not None and authenticate(store, made).name == "development"
    assert ensure_key(store, settings) is None
    store.close()


def test_the_key_from_the_settings_exists_from_the_first_start(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(data)
    for plain in ("the first one", "the next one"):
        monkeypatch.setenv("IMAGE_TO_3D_API_KEY", plain)
        for _ in range(2):
            assert ensure_key(store, Settings(data_dir=data)) is None

    assert authenticate(store, "the first one").id != authenticate(store, "the next one").id
    assert len(store.list_keys()) == 2
    store.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--engine", "absent"), "engine must be one of"), (("--workers", "-1"), "workers"), (("--port", "0"), "port")],
)
def test_serve_refuses_settings_that_it_cannot_use(command: Command, words: tuple[str, ...], said: str) -> None:
    answer = command("serve", *words)

    assert answer.exit_code in (1, 2)
    assert said in answer.stderr


@pytest.mark.parametrize(
    "words", [("keys", "list"), ("keys", "create", "shop"), ("jobs", "list"), ("usage",)], ids=" ".join
)
def test_a_command_in_a_folder_without_data_says_so_and_creates_nothing(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    app = typer.Typer()
    for module in (keys, jobs, usage):
        module.register(app)

    said = CliRunner().invoke(app, [*words, "--data", str(tmp_path / "wrong")])

    assert said.exit_code == 1
    assert said.stderr.startswith(f"There is no service's data in {tmp_path / 'wrong'}.")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_no_service(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path / 'empty.sqlite'}")

    said = command("keys", "list")

    assert (said.exit_code, said.stderr.partition(".")[0]) == (1, "The database holds no service's data yet")


def test_the_webhook_secret_of_a_key_is_shown_and_rotated(command: Command) -> None:
    made = command("keys", "create", "shop", "--queued", "5")
    secret = re.search(r"whsec_\S+", made.stderr)
    assert secret is not None

    shown = command("keys", "show", "shop").stdout
    rotated = command("keys", "rotate-secret", "shop").stdout.strip()

    assert (
        f"webhook secret  {secret[0]}" in shown and "queued          5" in shown and "running         no limit" in shown
    )
    assert made.stdout.strip() not in shown
    assert rotated.startswith("whsec_") and rotated != secret[0]
    assert rotated in command("keys", "show", "shop").stdout


def test_the_secret_of_a_key_from_the_settings_is_shown_as_webhooks_are_signed(
    command: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_TO_3D_API_KEY", "one from the environment")
    settings, store = Settings(data_dir=data), store_of(data)
    ensure_key(store, settings)
    (key,) = store.list_keys()
    store.close()
    body = b'{"status":"success"}'
    signer = WebhookSigner(load_master_keys(settings))
    headers = signer.headers(key, webhook_id="msg_1", timestamp=time.time(), body=body)

    shown = re.search(r"webhook secret +(whsec_\S+)", command("keys", "show", key.name).stdout)

    assert key.name in command("keys", "list").stdout
    assert shown is not None
    assert Webhook(shown[1]).verify(body, headers) == {"status": "success"}


def test_jobs_are_cancelled(command: Command, data: Path) -> None:
    command("keys", "create", "shop")
    store = store_of(data)
    queued = store.submit(new_job(key_named(store, "shop"))).job
    running = store.submit(new_job(key_named(store, "shop"))).job
    store.claim("w", lease_s=30, job_id=running.id)

    assert command("jobs", "cancel", str(queued.id)).stdout == f"Job {queued.id} is cancelled\n"
    assert command("jobs", "cancel", str(running.id)).stdout == f"Job {running.id} is running; its worker stops it\n"

    assert store.get(running.id, api_key_id=None).is_cancel_requested
    store.close()


def test_a_job_that_failed_through_no_fault_of_its_caller_is_retried(command: Command, data: Path) -> None:
    command("keys", "create", "shop")
    store = store_of(data)
    key = key_named(store, "shop")
    failed = end(store, store.submit(new_job(key, track_id="order 7")).job, error_code="engine_failed")

    said = command("jobs", "retry", str(failed.id))

    again = store.get(int(said.stdout), api_key_id=key.id)
    assert (again.state, again.track_id, store.request_of(again.id)) == ("queued", "order 7", b"{}")
    assert again.file_prefix != failed.file_prefix
    assert store.get(failed.id, api_key_id=None).state == "failed"
    store.close()


@pytest.mark.parametrize(
    ("state", "error_code", "sentence"),
    [
        (JobState.SUCCESS, "", "is success; only a failed job can be retried."),
        (JobState.FAILED, "unreadable_image", "is not kept; its caller has to send it again."),
    ],
)
def test_other_jobs_are_not_retried(
    command: Command, data: Path, state: FinalState, error_code: str, sentence: str
) -> None:
    command("keys", "create", "shop")
    store = store_of(data)
    ended = end(store, store.submit(new_job(key_named(store, "shop"))).job, state=state, error_code=error_code)

    said = command("jobs", "retry", str(ended.id))

    assert said.exit_code == 1 and said.stderr.endswith(f"{sentence}\n")
    store.close()
