"""How the work of a job gives it to a call in another container instead of waiting for that call in this one."""

from __future__ import annotations

from collections.abc import Callable


class Transferred(Exception):
    """Raised by the work of a job whose next step is made by something else; `QueueWorker` then transfers the job.

    No error: the work of this process ends here, and the job goes on.

    Attributes:
        worker_id: of the passive holder, see `transitions.passive_holder`.
        start: starts what the job is transferred to; called when the store has recorded that.
    """

    def __init__(self, worker_id: str, start: Callable[[], None] = lambda: None) -> None:
        super().__init__(f"transferred to {worker_id}")
        self.worker_id = worker_id
        self.start = start
