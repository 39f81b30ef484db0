"""What the container for webhooks runs. No numpy: it starts each minute, in the image of the web container."""

from __future__ import annotations

import time

from pipeline.answers import webhook_dispatcher
from pipeline.jobs.store import Store
from pipeline.on_modal.deployment import Deployment

WEBHOOK_WAIT_S = 120.0
"""A webhook whose next attempt is due this soon is waited for; the scheduled function sends later ones."""


def send_webhooks(deployment: Deployment, *, job_id: int | None = None) -> int:
    """Send the webhooks that are due, and look after waiting jobs; with a job's id, only that job's webhook is waited
    for, as long as its next attempt is due soon.

    Returns:
        How many attempts were made.
    """
    service, _ = deployment.open_service()
    sender = webhook_dispatcher(service)
    attempts = sender.send_due()
    if job_id is None:
        deployment.waiting.watch(deployment.store)
    while job_id is not None and (pause_s := _due_in_s(deployment.store, job_id)) is not None:
        if pause_s >= WEBHOOK_WAIT_S:
            break
        time.sleep(pause_s)
        attempts += sender.send_due()
    service.http.close()
    return attempts


def _due_in_s(store: Store, job_id: int) -> float | None:
    """Seconds until a job's webhook is due, at least 0.5; None if there is nothing to send."""
    due = [
        task.next_attempt_at for task in store.tasks_of(job_id) if task.kind == "webhook" and task.state == "pending"
    ]
    return None if not due else max(0.5, min(due) - time.time())
