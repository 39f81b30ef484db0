"""From settings to the live parts that the service's processes share. Starts nothing by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from pipeline.deployment import open_store
from pipeline.jobs.record import AfterTask
from pipeline.jobs.store import Store
from pipeline.net.egress import guarded_client
from pipeline.net.signing import WebhookSigner
from pipeline.notify import Schedule, WebhookCourier, WebhookSender
from pipeline.settings import Settings, master_secrets
from pipeline.storage.base import LinkedFiles
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from pipeline.storage.saved_bucket import SavedBucket
from pipeline.storage.vault import Vault


@dataclass(frozen=True)
class Service:
    """The parts that the web process and the workers of one deployment share.

    Attributes:
        store: jobs, keys, outbox, ledger.
        temporary: outputs of callers without a bucket.
        vault: seals and opens customers' secrets.
        signer: signs webhooks.
        http: for every request that leaves this service; goes only where this deployment allows.
        dispatch: told the id of each new job, where no worker polls the queue.
    """

    settings: Settings
    store: Store
    temporary: LinkedFiles
    vault: Vault
    signer: WebhookSigner
    http: httpx.Client
    dispatch: Callable[[int], None] = lambda job_id: None

    def bucket_of(self, key_id: str) -> SavedBucket | None:
        """The bucket of a key as it is now, None without one."""
        sealed = self.store.s3_of(key_id)
        return None if sealed is None else SavedBucket(sealed, owner=key_id, vault=self.vault, http=self.http)

    def courier(self, body_of: Callable[[AfterTask], bytes]) -> WebhookCourier:
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
        return WebhookCourier(self.store, send=send, body_of=body_of, schedule=schedule)

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
    masters = master_secrets(settings)
    return Service(
        settings=settings,
        store=open_store(settings) if store is None else store,
        temporary=local_outputs(settings) if temporary is None else temporary,
        vault=Vault(masters),
        signer=WebhookSigner(masters),
        http=guarded_client(settings),
        dispatch=dispatch,
    )


def local_outputs(settings: Settings, *, commit: Callable[[], None] = lambda: None) -> LocalStorage:
    """The temporary outputs in the folder of the settings; `commit` as for `LocalStorage`."""
    return LocalStorage(
        settings.files_dir,
        signer=LinkSigner(master_secrets(settings)),
        base_url=settings.base_url,
        lifetime_s=settings.output_lifetime_s,
        commit=commit,
    )
