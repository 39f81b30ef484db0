"""Fetching published files once, and knowing them again. Imports no torch; nothing here knows a model.

A transfer that breaks, or whose process is killed, goes on where it stopped: what has come so far is kept beside the
file under a name that holds the revision, so that it can only ever be a part of the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import DiskFull, MissingExtra, WeightsUnusable
from pipeline.nn.tensor_files import Entry

RECORD_NAME = "fetched.json"  # sha256 of every file as it came on the first fetch
READ_BYTES = 1 << 22
TRIES, PAUSE_S = 5, 1.0  # of one transfer without a byte between two breaks, and before the next try
TIMEOUT_S = 30.0
DISK_FULL = 28  # errno

OnBytes = Callable[[str, int, int], None]
"""Called with a file's name, the bytes that are here, and the bytes of the whole file."""

Report = Callable[[str], None]
"""Takes one line for each thing done."""


def ignore_report(*_: object) -> None:
    """An `OnBytes` or `Report` for callers that watch nothing."""


def fetch_files(
    repo_id: str,
    names: Sequence[str],
    folder: Path,
    *,
    revision: str,
    endpoint: str | None = None,
    on_bytes: OnBytes = ignore_report,
) -> None:
    """Bring files of a repository on the model hub into a folder; those that are there are not fetched again.

    Args:
        names: below the repository and below the folder alike.
        revision: the commit, in full.
        endpoint: address of a mirror; by default the hub that its own library is set to.

    Raises:
        WeightsUnusable: one cannot be fetched.
        DiskFull: there is no room for one.
        MissingExtra: the hub's library is absent.
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
        except _Broken as error:
            raise WeightsUnusable(f"{name} of {repo_id} cannot be fetched: {error}") from error
        except OSError as error:
            if error.errno == DISK_FULL:
                raise DiskFull(f"there is no room for {name} in {folder}") from error
            raise WeightsUnusable(f"{name} cannot be written to {folder}: {error.strerror}") from error
        part.replace(path)


class _Broken(Exception):
    """A transfer that cannot go on."""


def _transfer(url: str, part: Path, *, headers: Mapping[str, str], on_bytes: Callable[[int, int], None]) -> None:
    """Bring the rest of a file, going on after every break that comes after some progress.

    Raises:
        _Broken: it did not come, in words.
    """
    import httpx

    failures = 0
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, headers=dict(headers)) as client:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                if _request_rest(client, url, part, before, on_bytes):
                    return
                reason = "the connection broke"
            except httpx.HTTPError as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= TRIES:
                raise _Broken(reason)
            time.sleep(PAUSE_S * failures)


def _request_rest(client: object, url: str, part: Path, have: int, on_bytes: Callable[[int, int], None]) -> bool:
    """Ask for what is missing once; whether the file is whole then."""
    import httpx

    assert isinstance(client, httpx.Client)
    wanted = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=wanted) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            if _size_of(answer) == have:
                return True
            part.unlink()  # longer than the file: not a part of it
            return False
        if answer.is_error:
            raise _Broken(f"the server answered {answer.status_code}")
        is_rest = answer.status_code == httpx.codes.PARTIAL_CONTENT
        done, size = (have if is_rest else 0), _size_of(answer)
        with part.open("ab" if is_rest else "wb") as file:
            for block in answer.iter_raw(READ_BYTES):
                file.write(block)
                done += len(block)
                on_bytes(done, size)
    return done == size


def _size_of(answer: object) -> int:
    """Bytes of the whole file that an answer is about.

    Raises:
        _Broken: it does not say.
    """
    headers = answer.headers  # type: ignore[attr-defined]
    total = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    if total:
        return int(total[1])
    if "Content-Length" not in headers:
        raise _Broken("the server does not say how large it is")
    return int(headers["Content-Length"])


def verify_record(folder: Path, names: Sequence[str], *, report: Report = ignore_report) -> None:
    """Compare every file's sha256 with the one of its first fetch, or note it where there is none.

    Raises:
        WeightsUnusable: a file has changed since.
    """
    record_path = folder / RECORD_NAME
    record: dict[str, str] = json.loads(record_path.read_text()) if record_path.is_file() else {}
    for name in names:
        digest = file_sha256(folder / name)
        known = record.setdefault(name, digest)
        if known != digest:
            raise WeightsUnusable(f"{name} has changed since it was fetched: sha256 {digest}, recorded {known}")
        report(f"{digest}  {name}")
    record_path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def unpack_manifest(packed: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, Entry]:
    """Tensors by key, from a list that writes a repeated block once.

    `blocks.{24}.norm2.weight` stands for blocks 0 to 23.
    """
    entries: dict[str, Entry] = {}
    for key, (dtype, shape) in packed.items():
        match = re.search(r"\{(\d+)\}", key)
        numbers = range(int(match[1])) if match else range(1)
        for number in numbers:
            entries[re.sub(r"\{\d+\}", str(number), key)] = Entry(dtype, tuple(shape))
    return entries
