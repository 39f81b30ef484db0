"""Download files from the model hub once, and verify them later. Imports no torch and knows no model.

A transfer that breaks, or whose process is killed, resumes where it stopped: the partial file lies beside the target
under a name that contains the revision, so it can only be a prefix of the same bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DiskFull, MissingExtra, WeightsUnusable
from pipeline.nn.tensor_files import Entry

if TYPE_CHECKING:
    import httpx

RECORD_NAME = "fetched.json"  # sha256 of every file at its first download
READ_BYTES = 1 << 22
MAX_FAILURES = 5  # consecutive failures of one transfer that received no byte
PAUSE_S = 1.0  # before the second retry; grows linearly
TIMEOUT_S = 30.0

OnBytes = Callable[[str, int, int], None]
"""Called with a file's name, the bytes received so far, and the size of the whole file in bytes."""

Report = Callable[[str], None]
"""Receives one line of text per finished step."""


def ignore_progress(*_: object) -> None:
    """An `OnBytes` or `Report` that does nothing."""


def fetch_files(
    repo_id: str,
    names: Sequence[str],
    folder: Path,
    *,
    revision: str,
    endpoint: str | None = None,
    on_bytes: OnBytes = ignore_progress,
) -> None:
    """Download files of a repository on the model hub into a folder; files that exist are not downloaded again.

    Args:
        repo_id: the repository, as owner/name.
        names: paths of the files, relative to the repository and to the folder alike.
        folder: target folder.
        revision: full commit hash.
        endpoint: URL of a mirror; by default the endpoint configured in huggingface_hub.
        on_bytes: receives the progress of each file.

    Raises:
        WeightsUnusable: a file cannot be downloaded.
        DiskFull: the disk has no room for a file.
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers
    except ModuleNotFoundError as error:
        raise MissingExtra("fetching weights", extra="trellis") from error
    for name in names:
        path = folder / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(repo_id, name, revision=revision, endpoint=endpoint)
        part = path.with_name(f"{path.name}.{revision[:12]}.part")
        try:
            _transfer(
                url, part, headers=build_hf_headers(), on_bytes=lambda done, size, name=name: on_bytes(name, done, size)
            )
        except _TransferFailed as error:
            raise WeightsUnusable(f"{name} of {repo_id} cannot be downloaded: {error}") from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFull(f"the disk has no room for {name} in {folder}") from error
            raise WeightsUnusable(f"{name} cannot be written to {folder}: {error.strerror}") from error
        part.replace(path)


class _TransferFailed(Exception):
    """The transfer cannot be continued; the message says why."""


def _transfer(url: str, part: Path, *, headers: Mapping[str, str], on_bytes: Callable[[int, int], None]) -> None:
    """Download the rest of a file; retry as long as each connection transfers some bytes.

    Raises:
        _TransferFailed: `MAX_FAILURES` attempts in a row transferred nothing, or the server refused.
    """
    import httpx

    failures = 0
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, headers=dict(headers)) as client:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                if _download_rest(client, url, part, before, on_bytes):
                    return
                reason = "the connection broke"
            except httpx.HTTPError as error:
                reason = _why(error)
            failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= MAX_FAILURES:
                raise _TransferFailed(reason)
            time.sleep(PAUSE_S * failures)


def _why(error: httpx.HTTPError) -> str:
    """Why a transfer broke, in words for whoever started it."""
    import httpx

    from pipeline.net.egress import why_unreachable

    host = error.request.url.host
    match error:
        case httpx.ConnectError():
            return f"{host} cannot be reached: {why_unreachable(error)}"
        case httpx.TimeoutException():
            return f"{host} did not answer within {TIMEOUT_S:g} s"
        case httpx.ProxyError():
            return "the proxy of the environment refuses the connection"
        case _:
            return f"the connection to {host} broke"


def _download_rest(
    client: httpx.Client, url: str, part: Path, size_bytes: int, on_bytes: Callable[[int, int], None]
) -> bool:
    """Request the bytes after the first `size_bytes` once and append them.

    Returns:
        Whether the file is complete.
    """
    import httpx

    # A compressed body would make byte ranges and Content-Length refer to other bytes than the file's.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size_bytes}-"} if size_bytes else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and size_bytes:
            if _total_bytes(response) == size_bytes:
                return True
            part.unlink()  # longer than the file, so not a prefix of it
            return False
        if response.is_error:
            raise _TransferFailed(f"the server answered {response.status_code}")
        # A server without range support answers 200 with the whole file, which replaces the partial one.
        is_rest = response.status_code == httpx.codes.PARTIAL_CONTENT
        done, size = (size_bytes if is_rest else 0), _total_bytes(response)
        with part.open("ab" if is_rest else "wb") as file:
            for block in response.iter_raw(READ_BYTES):
                file.write(block)
                done += len(block)
                on_bytes(done, size)
    return done == size


def _total_bytes(response: httpx.Response) -> int:
    """Return the size of the whole file in bytes, from the headers of a response.

    Raises:
        _TransferFailed: the headers do not contain it.
    """
    headers = response.headers
    total = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    if total:
        return int(total[1])
    if "Content-Length" not in headers:
        raise _TransferFailed("the server does not declare the size of the file")
    return int(headers["Content-Length"])


def verify_record(folder: Path, names: Sequence[str], *, report: Report = ignore_progress) -> None:
    """Compare the sha256 of every file with the recorded one; record it if there is none yet.

    Raises:
        WeightsUnusable: a file has changed since its first download.
    """
    record_path = folder / RECORD_NAME
    record: dict[str, str] = json.loads(record_path.read_text()) if record_path.is_file() else {}
    for name in names:
        digest = file_sha256(folder / name)
        known = record.setdefault(name, digest)
        if known != digest:
            raise WeightsUnusable(f"{name} has changed since it was downloaded: sha256 {digest}, recorded {known}")
        report(f"{digest}  {name}")
    record_path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def unpack_manifest(packed: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, Entry]:
    """Return tensors by key, from a manifest that lists a repeated block once.

    `blocks.{24}.norm2.weight` stands for blocks 0 to 23.
    """
    entries: dict[str, Entry] = {}
    for key, (dtype, shape) in packed.items():
        match = re.search(r"\{(\d+)\}", key)
        numbers = range(int(match[1])) if match else range(1)
        for number in numbers:
            entries[re.sub(r"\{\d+\}", str(number), key)] = Entry(dtype, tuple(shape))
    return entries
