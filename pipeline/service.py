"""From settings to the live parts that the service's processes share. Starts nothing by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from pipeline.deployment import open_store
from pipeline.jobs.model import OutboxTask
from pipeline.jobs.store import Store
from pipeline.net.egress import guarded_client
from pipeline.settings import Settings, load_master_keys
from pipeline.storage.base import LinkedFiles
from pipeline.storage.encrypted_bucket import EncryptedBucket
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from pipeline.storage.secret_box import SecretBox
from pipeline.webhooks.sender import Schedule, WebhookDispatcher, WebhookSender
from pipeline.webhooks.signing import WebhookSigner


@dataclass(frozen=True)
class Service:
    """The parts that the web process and the workers of one deployment share.

    Attributes:
        store: jobs, keys, outbox, ledger.
        temporary: outputs of callers without a bucket.
        secret_box: seals and opens customers' secrets.
        signer: signs webhooks.
        http: for every request that leaves this service; goes only where this deployment allows.
        dispatch: told the id of each new job, where no worker polls the queue.
    """

    settings: Settings
    store: Store
    temporary: LinkedFiles
    secret_box: SecretBox
    signer: WebhookSigner
    http: httpx.Client
    dispatch: Callable[[int], None] = lambda job_id: None

    def bucket_of(self, key_id: str) -> EncryptedBucket | None:
        """The bucket of a key as it is now, None without one."""
        sealed = self.store.s3_of(key_id)
        return (
            None
            if sealed is None
            else EncryptedBucket(sealed, owner=key_id, secret_box=self.secret_box, http=self.http)
        )

    def webhook_dispatcher(self, body_of: Callable[[OutboxTask], bytes]) -> WebhookDispatcher:
        """The sender of webhooks.

        Args:
            body_of: what a task's webhook says.
        """
        settings = self.settings
        send = WebhookSender(
            self.http,
            signer=self.signer,
            connect_timeout_s=settings.webhook_connect_timeout_s,
            answer_timeout_s=settings.webhook_timeout_s,
        )
        schedule = Schedule(attempts=settings.webhook_attempts, window_s=settings.webhook_window_s)
        return WebhookDispatcher(self.store, send=send, body_of=body_of, schedule=schedule)

    def close(self) -> None:
        """Let go of connections."""
        self.http.close()
        self.store.close()


def open_service(
    settings: Settings,
    *,
    store: Store | None = None,
    temporary: LinkedFiles | None = None,
    dispatch: Callable[[int], None] = lambda job_id: None,
) -> Service:
    """Everything that a process of the service works with.

    Args:
        store: jobs, keys, outbox, ledger; the database of the settings by default. Closed with the service.
        temporary: outputs of callers without a bucket; the folder of the settings by default.
        dispatch: as `Service.dispatch`.

    Raises:
        StoreUnavailable: the database is away, or of a newer version.
    """
    master_keys = load_master_keys(settings)
    return Service(
        settings=settings,
        store=open_store(settings) if store is None else store,
        temporary=local_outputs(settings) if temporary is None else temporary,
        secret_box=SecretBox(master_keys),
        signer=WebhookSigner(master_keys),
        http=guarded_client(settings),
        dispatch=dispatch,
    )


def local_outputs(settings: Settings, *, commit: Callable[[], None] = lambda: None) -> LocalStorage:
    """The temporary outputs in the folder of the settings; `commit` as for `LocalStorage`."""
    return LocalStorage(
        settings.files_dir,
        signer=LinkSigner(load_master_keys(settings)),
        base_url=settings.base_url,
        lifetime_s=settings.output_lifetime_s,
        commit=commit,
    )
