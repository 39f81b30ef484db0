"""Builds the objects that the processes of a service share, from its settings. Starts nothing by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from pipeline.deployment import check_secret, open_store
from pipeline.errors import DeliveryFailed, GenerationGone
from pipeline.jobs.model import Job, OutboxTask
from pipeline.jobs.store import KeyStore, Store
from pipeline.net.deadline import IsCancelled
from pipeline.net.egress import guarded_client
from pipeline.secrets import load_master_keys
from pipeline.settings import Settings
from pipeline.shared_storage import shared_generations, shared_outputs
from pipeline.storage.base import LinkedFiles
from pipeline.storage.encrypted_bucket import EncryptedBucket
from pipeline.storage.generations import FOLDER as GENERATIONS_FOLDER
from pipeline.storage.generations import GenerationIndex, KeptGenerations
from pipeline.storage.links import LinkSigner
from pipeline.storage.local import LocalStorage
from pipeline.storage.own_links import OwnLinks
from pipeline.storage.s3 import LATE_PATIENCE, Patience
from pipeline.storage.secret_box import SecretBox
from pipeline.webhooks.sender import Schedule, WebhookDispatcher, WebhookSender
from pipeline.webhooks.signing import WebhookSigner


@dataclass(frozen=True)
class Service:
    """The objects that the web process and the workers of one deployment share.

    Attributes:
        store: jobs, keys, outbox, ledger.
        temporary: outputs of callers without a bucket.
        secret_box: encrypts and decrypts customers' secrets.
        signer: signs webhooks.
        http: the client of every outgoing request; connects only to addresses that this deployment allows.
        generations: which finished jobs can be exported again.
        dispatch: called with each new job, where no worker polls the queue.
        after_cancel: called with each job whose cancellation was requested, where no worker may hold it.
        with_progress: returns a job with newer progress than the store has, where that is to be had elsewhere.
        starts_workers_on_demand: `dispatch` starts one where none is running.
        has_own_files: files lie in a folder of this machine, which other machines of the deployment do not see.
        poll_s: pause between two looks at the store for the end of jobs that requests wait for.
    """

    settings: Settings
    store: Store
    temporary: LinkedFiles
    secret_box: SecretBox
    signer: WebhookSigner
    http: httpx.Client
    generations: GenerationIndex
    dispatch: Callable[[Job], None] = lambda job: None
    after_cancel: Callable[[Job], None] = lambda job: None
    with_progress: Callable[[Job], Job] = lambda job: job
    starts_workers_on_demand: bool = False
    has_own_files: bool = False
    poll_s: float = 0.15

    @property
    def own_links(self) -> OwnLinks:
        """Opens images that a request names by a link of this deployment."""
        return OwnLinks(self.temporary, base_url=self.settings.base_url)

    def bucket_of(
        self, key_id: str, *, patience: Patience = LATE_PATIENCE, is_cancelled: IsCancelled | None = None
    ) -> EncryptedBucket | None:
        """The bucket that is saved for a key now; None if there is none.

        Args:
            patience, is_cancelled: as for `S3Storage`.
        """
        encrypted = self.store.s3_of(key_id)
        if encrypted is None:
            return None
        return EncryptedBucket(
            encrypted,
            owner=key_id,
            secret_box=self.secret_box,
            http=self.http,
            patience=patience,
            is_cancelled=is_cancelled,
        )

    def webhook_dispatcher(self, body_of: Callable[[OutboxTask], bytes]) -> WebhookDispatcher:
        """The sender of webhooks.

        Args:
            body_of: the body of a task's webhook.
        """
        settings = self.settings
        send = WebhookSender(
            self.http,
            signer=self.signer,
            key_of=self.store.get_key,
            connect_timeout_s=settings.webhook_connect_timeout_s,
            answer_timeout_s=settings.webhook_timeout_s,
        )
        schedule = Schedule(attempts=settings.webhook_attempts, window_s=settings.webhook_window_s)
        return WebhookDispatcher(self.store, send=send, body_of=body_of, schedule=schedule)

    def close(self) -> None:
        """Close the connections."""
        self.http.close()
        self.store.close()


def open_service(
    settings: Settings,
    *,
    master_keys: Sequence[bytes] | None = None,
    store: Store | None = None,
    temporary: LinkedFiles | None = None,
    generations: GenerationIndex | None = None,
    dispatch: Callable[[Job], None] | None = None,
    after_cancel: Callable[[Job], None] = Service.after_cancel,
    with_progress: Callable[[Job], Job] = Service.with_progress,
    poll_s: float = Service.poll_s,
) -> Service:
    """Build everything that a process of the service works with.

    Args:
        master_keys: as `load_master_keys` returned them; loaded here by default.
        store: jobs, keys, outbox, ledger; the database of the settings by default. Closed with the service.
        temporary: outputs of callers without a bucket; `temporary_outputs` by default.
        generations: as `Service.generations`; the folder of the settings by default.
        poll_s: as `Service.poll_s`.
        after_cancel, with_progress: as in `Service`.
        dispatch: as `Service.dispatch`, which then starts workers on demand; None where workers poll the queue.

    Raises:
        StoreUnavailable: the database cannot be reached, or its schema is newer than this version.
        CannotStart: this machine's master keys are not those of the deployment.
    """
    master_keys = load_master_keys(settings) if master_keys is None else master_keys
    if store is None:
        store = opened = open_store(settings)
        check_secret(opened, settings, master_keys)
    return Service(
        settings=settings,
        store=store,
        temporary=temporary_outputs(settings, master_keys) if temporary is None else temporary,
        secret_box=SecretBox(master_keys),
        signer=WebhookSigner(master_keys),
        http=guarded_client(settings),
        generations=kept_generations(settings) if generations is None else generations,
        dispatch=dispatch or (lambda job: None),
        after_cancel=after_cancel,
        with_progress=with_progress,
        starts_workers_on_demand=dispatch is not None,
        has_own_files=temporary is None and settings.outputs_url is None,
        poll_s=poll_s,
    )


@dataclass(frozen=True)
class Rotation:
    """What `reencrypt_buckets` did.

    Attributes:
        reencrypted: how many saved buckets it encrypted anew.
        current: how many already were encrypted with the current master key.
        unreadable: names of the API keys whose bucket no master key decrypts; these buckets are unchanged.
    """

    reencrypted: int
    current: int
    unreadable: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.reencrypted} saved buckets re-encrypted, {self.current} already current"


def unreadable_bucket(name: str) -> str:
    """The sentence about a bucket in `Rotation.unreadable`."""
    return f"The saved bucket of key {name!r} cannot be decrypted with this deployment's master keys; save it again."


def reencrypt_buckets(store: KeyStore, master_keys: Sequence[bytes]) -> Rotation:
    """Encrypt every saved bucket with the current master key, so that an older one can be removed.

    Running it again changes nothing. Buckets of revoked keys are included: their jobs may still be running.
    """
    secret_box = SecretBox(master_keys)
    reencrypted = current = 0
    unreadable: list[str] = []
    for key in store.list_keys():
        encrypted = store.s3_of(key.id)
        if encrypted is None:
            continue
        if secret_box.is_current(encrypted):
            current += 1
            continue
        try:
            renewed = secret_box.reencrypt(encrypted)
        except DeliveryFailed:
            unreadable.append(key.name)
            continue
        if store.s3_of(key.id) == encrypted:  # its owner may have saved another one, encrypted with the current key
            store.save_s3(key.id, renewed)
        reencrypted += 1
    return Rotation(reencrypted, current, tuple(unreadable))


def temporary_outputs(settings: Settings, master_keys: Sequence[bytes]) -> LocalStorage:
    """The temporary outputs of a deployment on machines of its own: in its bucket, or in the folder of the settings.

    Raises:
        CannotStart: the settings name no bucket that can be used.
    """
    return shared_outputs(settings, master_keys) or local_outputs(settings, master_keys)


def kept_generations(settings: Settings) -> KeptGenerations:
    """The kept generations: in the deployment's bucket, or in the folder of the settings alone."""
    folder = settings.work_dir / GENERATIONS_FOLDER
    return shared_generations(settings, folder) or KeptGenerations(
        folder,
        lifetime_s=settings.generation_lifetime_s,
        max_bytes=settings.max_generations_bytes,
    )


def generation_gone(job_id: int, service: Service) -> GenerationGone:
    """The error of an export whose generation is not kept any more."""
    settings = service.settings
    if settings.generation_lifetime_s <= 0:
        return GenerationGone("This deployment keeps no generations; submit the image again.")
    reasons = (
        f"The generation of job {job_id} is not kept any more: generations are kept for at most "
        f"{settings.generation_lifetime_s:g} s, or until later ones need their space."
    )
    if settings.database_url is not None and service.has_own_files:
        reasons += " Or another machine has it: machines share them only where the operator sets OUTPUTS_URL."
    return GenerationGone(f"{reasons} Submit the image again.")


def local_outputs(
    settings: Settings, master_keys: Sequence[bytes], *, commit: Callable[[], None] = lambda: None
) -> LocalStorage:
    """The temporary outputs in the folder of the settings; `commit` as for `LocalStorage`."""
    return LocalStorage(
        settings.files_dir,
        signer=LinkSigner(master_keys),
        base_url=settings.base_url,
        lifetime_s=settings.output_lifetime_s,
        commit=commit,
    )
