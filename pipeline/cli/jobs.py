"""`image-to-3d jobs`: the recorded jobs, for the operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.commands import Commands
from pipeline.cli.data_folder import DataOption, KeyOption, key_id_of, moment, opened_store, print_table

if TYPE_CHECKING:
    from pipeline.jobs.model import Job

IdArgument = Annotated[int, typer.Argument(help="Id of the job")]

jobs = Commands(help="List, show, cancel and retry jobs, send a webhook again.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to the command."""
    app.add_typer(jobs, name="jobs")


@jobs.command("list")
def list_jobs(
    data: DataOption = None,
    key: KeyOption = None,
    state: Annotated[
        str | None, typer.Option(help="Only jobs in this state: queued, running, success, failed, cancelled")
    ] = None,
    track_id: Annotated[str | None, typer.Option(help="Only jobs with this track_id")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of jobs")] = 50,
) -> None:
    """List jobs, newest first."""
    from pipeline.jobs.model import JobFilter, JobState

    if state is not None and state not in list(JobState):
        raise typer.BadParameter(f"--state must be one of {', '.join(JobState)}, got {state!r}")
    with opened_store(data) as store:
        names = {known.id: known.name for known in store.list_keys()}
        found = store.list_jobs(
            JobFilter(key_id_of(store, key), state=None if state is None else JobState(state), track_id=track_id),
            limit=limit,
        )
    print_table(
        ("ID", "KEY", "STATE", "STAGE", "CREATED (UTC)", "SECONDS", "TRACK ID", "MESSAGE"),
        [
            (
                job.id,
                names.get(job.api_key_id, job.api_key_id),
                job.state,
                f"{job.progress.stage} {job.progress.percent}%".strip() if job.state == "running" else None,
                moment(job.created_at),
                None if job.result is None else f"{job.result.seconds:.1f}",
                job.track_id,
                job.result.message if job.result is not None else "",
            )
            for job in found
        ],
    )


@jobs.command()
def show(job_id: IdArgument, data: DataOption = None) -> None:
    """Print the whole record of a job as JSON, including its webhook attempts."""
    import json

    from pipeline.jobs.model import as_stored

    with opened_store(data) as store:
        record = _plain(store.get(job_id, api_key_id=None))
        record["tasks"] = [
            as_stored(task) | {"tries": [as_stored(attempt) for attempt in store.attempts_of(task.id)]}
            for task in store.tasks_of(job_id)
        ]
    typer.echo(json.dumps(record, indent=2, ensure_ascii=False))


@jobs.command()
def redeliver(job_id: IdArgument, data: DataOption = None) -> None:
    """Send a job's webhook again under the same webhook id; a running service does so within a second."""
    with opened_store(data) as store:
        task = store.redeliver(job_id, api_key_id=None)
    typer.echo(f"{task.id} is due now")


@jobs.command()
def cancel(job_id: IdArgument, data: DataOption = None) -> None:
    """Cancel a job: a queued one ends at once, a running one within seconds."""
    with opened_store(data) as store:
        job = store.request_cancel(job_id, api_key_id=None)
    if job.state.is_final:
        typer.echo(f"Job {job_id} is {job.state}")
    else:
        typer.echo(f"Job {job_id} is running; its worker stops it")


@jobs.command()
def retry(job_id: IdArgument, data: DataOption = None) -> None:
    """Submit a failed job again, as a new job of the same key; prints its id.

    Jobs that failed through a fault of their request cannot be retried. The others can for a day.
    """
    import uuid

    from pipeline.errors import InvalidRequest, NotFound
    from pipeline.jobs.model import JobState
    from pipeline.jobs.transitions import resubmission

    with opened_store(data) as store:
        job = store.get(job_id, api_key_id=None)
        if job.state is not JobState.FAILED:
            raise InvalidRequest(f"Job {job_id} is {job.state}; only a failed job can be retried.")
        try:
            request = store.request_of(job_id)
        except NotFound as error:
            raise NotFound(f"The request of job {job_id} is not kept; its caller has to send it again.") from error
        again = store.submit(resubmission(job, request, file_prefix=str(uuid.uuid4()))).job
    typer.echo(str(again.id))


def _plain(job: Job) -> dict[str, Any]:
    """A job as JSON types, with readable times."""
    from pipeline.jobs.model import as_stored

    return as_stored(job) | {"created": moment(job.created_at), "finished": moment(job.finished_at)}
