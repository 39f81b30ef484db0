"""A customer's bucket in any S3-compatible service. Knows nothing of jobs, nor of which addresses are allowed.

What may be reached is decided by the HTTP client that is handed in; it carries every request, see `s3_client`.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import structlog

from pipeline.errors import DeliveryFailed, ImageTo3DError, InvalidRequest
from pipeline.storage.base import Artifact, OutputFile
from pipeline.storage.s3_client import TIMEOUT, Bucket, explain, failures, make_client, status_and_code

PART_BYTES = 8 << 20
"""Size of the parts of a large file; services take nothing under 5 MiB but for the last."""
MULTIPART_FROM_BYTES = 16 << 20
SHA256_KEY = "sha256"
"""Under this name an object's metadata carry the digest of its content."""
PUBLIC_TIMEOUT = httpx.Timeout(10.0)
NO_PUBLIC_ANSWER = "The files are in your bucket, but public_url does not answer."

log = structlog.get_logger()


class S3Storage:
    """A bucket, as a `pipeline.storage.base.CustomerBucket`.

    Args:
        bucket: the customer's.
        http: carries all requests; its transport decides which addresses may be reached.
        attempts: tries per request.
        timeout: for each wait of a request.
    """

    def __init__(
        self, bucket: Bucket, *, http: httpx.Client, attempts: int = 4, timeout: httpx.Timeout = TIMEOUT
    ) -> None:
        self._bucket = bucket
        self._http = http
        self._attempts = attempts
        self._timeout = timeout
        self._takes_acl = True
        self._made: Any = None

    def store(self, files: Sequence[OutputFile], *, file_prefix: str) -> list[Artifact]:
        """Upload the files; an object that is there already with the same content is left alone.

        The smallest goes first, so that a bucket says what it refuses before much was sent; the model goes last, so
        that whoever sees it finds its companions beside it.

        Raises:
            DeliveryFailed: the bucket did not take them, in words.
        """
        stored: dict[Path, Artifact] = {}
        try:
            for file in sorted(files, key=lambda file: (file.kind == "model", file.path.stat().st_size)):
                stored[file.path] = self._store_one(file)
        except failures() as error:  # first, because some of them are OSErrors as well
            raise DeliveryFailed(explain(error, bucket=self._bucket.name)) from error
        except OSError as error:
            raise DeliveryFailed(f"a file to upload cannot be read: {error.strerror}") from error
        return [stored[file.path] for file in files]

    def probe(self) -> None:
        """Put a test object, read it back through the API, delete it.

        Raises:
            InvalidRequest: what failed, in words: `AccessDenied on PutObject: ...`.
            BlockedAddress: the endpoint leads where this deployment does not go.
        """
        name = f"image-to-3d-probe-{secrets.token_hex(8)}.txt"
        key, content = self._bucket.key_of(name), secrets.token_hex(32).encode()
        try:
            self._put(key, content, content_type="text/plain", sha256=hashlib.sha256(content).hexdigest())
            try:
                read = self._client.get_object(Bucket=self._bucket.name, Key=key)["Body"].read()
            except failures():
                self._try(self._client.delete_object, key)
                raise
            self._client.delete_object(Bucket=self._bucket.name, Key=key)
        except ImageTo3DError:
            raise
        except failures() as error:
            raise InvalidRequest(explain(error, bucket=self._bucket.name)) from error
        if read != content:
            raise InvalidRequest("GetObject gave back something else than PutObject had put there")

    def check_public_url(self, artifacts: Sequence[Artifact]) -> str | None:
        """Why the public address of the first artifact does not answer, in a sentence; None when it does.

        The objects themselves were verified by `store`; a bucket may be private on purpose.
        """
        url = artifacts[0].url
        try:
            status = self._http.head(url, timeout=PUBLIC_TIMEOUT, follow_redirects=False).status_code
            if status in (403, 405, 501):  # some services and gateways know no HEAD
                with self._http.stream("GET", url, timeout=PUBLIC_TIMEOUT, follow_redirects=False) as answer:
                    status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, ImageTo3DError):
            return NO_PUBLIC_ANSWER
        if 200 <= status < 300:
            return None
        return f"The files are in your bucket, but public_url answers {status}."

    @property
    def _client(self) -> Any:
        if self._made is None:
            self._made = make_client(self._bucket, self._http, attempts=self._attempts, timeout=self._timeout)
        return self._made

    def _store_one(self, file: OutputFile) -> Artifact:
        """Upload one file unless it is there, and see that it is."""
        key = self._bucket.key_of(file.path.name)
        digest = _digest_of(file.path)
        if not self._holds(key, digest):
            if digest.size_bytes < MULTIPART_FROM_BYTES:
                self._put(key, file.path.read_bytes(), content_type=file.content_type, sha256=digest.sha256)
            else:
                self._put_in_parts(key, file, sha256=digest.sha256)
            self._verify(key, digest)
        return Artifact(
            name=file.path.name,
            kind=file.kind,
            url=self._bucket.url_of(file.path.name),
            size_bytes=digest.size_bytes,
            content_type=file.content_type,
            sha256=digest.sha256,
        )

    def _put(self, key: str, content: bytes, *, content_type: str, sha256: str) -> None:
        self._with_acl(
            self._client.put_object,
            Key=key,
            Body=content,
            ContentMD5=_md5_base64(content),
            ContentType=content_type,
            Metadata={SHA256_KEY: sha256},
        )

    def _put_in_parts(self, key: str, file: OutputFile, *, sha256: str) -> None:
        """Upload a large file; of a failed upload no part stays behind, which would cost the customer storage."""
        begun = self._with_acl(
            self._client.create_multipart_upload,
            Key=key,
            ContentType=file.content_type,
            Metadata={SHA256_KEY: sha256},
        )
        upload = {"Bucket": self._bucket.name, "Key": key, "UploadId": begun.get("UploadId")}
        parts: list[dict[str, Any]] = []
        try:
            for number, content in enumerate(_parts_of(file.path), start=1):
                md5 = _md5_base64(content)
                answer = self._client.upload_part(**upload, PartNumber=number, Body=content, ContentMD5=md5)
                parts.append({"PartNumber": number, "ETag": answer.get("ETag", "")})
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            self._try(self._client.abort_multipart_upload, key, UploadId=begun.get("UploadId"))
            raise

    def _with_acl(self, request: Callable[..., Any], **arguments: Any) -> Any:
        """Ask for a public object; where that is refused, try without, and from then on if it helps."""
        if self._takes_acl:
            try:
                return request(Bucket=self._bucket.name, ACL="public-read", **arguments)
            except failures() as error:
                status, code = status_and_code(error)
                if status not in (400, 403, 501) or code == "BadDigest":
                    raise
        answer = request(Bucket=self._bucket.name, **arguments)
        self._takes_acl = False
        return answer

    def _holds(self, key: str, digest: _Digest) -> bool:
        """Whether the object is there with this content; False also where that may not be asked."""
        try:
            head = self._client.head_object(Bucket=self._bucket.name, Key=key)
        except failures() as error:
            if status_and_code(error)[0] in (403, 404):
                return False
            raise
        sha256 = head.get("Metadata", {}).get(SHA256_KEY)
        is_ours = (head.get("ContentLength"), sha256) == (digest.size_bytes, digest.sha256)
        return is_ours and self._is_intact(key, head, digest)

    def _verify(self, key: str, digest: _Digest) -> None:
        """See that the object is there in full; services that show it late get a moment.

        Raises:
            DeliveryFailed: it is not there, or it is not what was sent.
        """
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

        patiently = Retrying(
            retry=retry_if_exception(lambda error: status_and_code(error)[0] == 404),
            stop=stop_after_attempt(6),
            wait=wait_exponential(multiplier=0.1),
            reraise=True,
        )
        try:
            head = patiently(self._client.head_object, Bucket=self._bucket.name, Key=key)
        except failures() as error:
            if status_and_code(error)[0] == 403:
                return  # a key that may write but not look: what was put was acknowledged, checksum included
            raise
        if (held := head.get("ContentLength")) != digest.size_bytes:
            raise DeliveryFailed(f"the bucket holds {held} bytes of {digest.size_bytes}")
        if not self._is_intact(key, head, digest):
            raise DeliveryFailed("the bucket holds something else than was sent to it")

    def _is_intact(self, key: str, head: Any, digest: _Digest) -> bool:
        """Whether an object of the right size has the right content: by its ETag, else by reading it back."""
        if head.get("ETag", "").strip('"') == digest.etag or head.get("ServerSideEncryption", "").startswith("aws:kms"):
            return True  # under such encryption an ETag says nothing; the service itself checked Content-MD5
        read = hashlib.sha256()
        for begin in range(0, digest.size_bytes, PART_BYTES):
            span = f"bytes={begin}-{min(begin + PART_BYTES, digest.size_bytes) - 1}"
            try:
                read.update(self._client.get_object(Bucket=self._bucket.name, Key=key, Range=span)["Body"].read())
            except failures() as error:
                if status_and_code(error)[0] == 403:
                    return True
                raise
        return read.hexdigest() == digest.sha256

    def _try(self, request: Callable[..., Any], key: str, **arguments: Any) -> None:
        """Tidy up after a failure, as far as that is possible."""
        try:
            request(Bucket=self._bucket.name, Key=key, **arguments)
        except failures() as error:
            log.info("left in the bucket", reason=explain(error, bucket=self._bucket.name))


@dataclass(frozen=True)
class _Digest:
    """What tells whether an object is this file.

    Attributes:
        etag: what S3 calls an object so uploaded: the MD5, or of parts the MD5 of their MD5s and their number.
    """

    size_bytes: int
    sha256: str
    etag: str


def _digest_of(path: Path) -> _Digest:
    """Read a file once for all its digests."""
    sha256 = hashlib.sha256()
    md5s: list[bytes] = []
    whole_md5 = hashlib.md5(usedforsecurity=False)
    size_bytes = 0
    for part in _parts_of(path):
        sha256.update(part)
        whole_md5.update(part)
        md5s.append(hashlib.md5(part, usedforsecurity=False).digest())
        size_bytes += len(part)
    if size_bytes < MULTIPART_FROM_BYTES:
        return _Digest(size_bytes, sha256.hexdigest(), whole_md5.hexdigest())
    of_parts = hashlib.md5(b"".join(md5s), usedforsecurity=False).hexdigest()
    return _Digest(size_bytes, sha256.hexdigest(), f"{of_parts}-{len(md5s)}")


def _parts_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as reader:
        while part := reader.read(PART_BYTES):
            yield part


def _md5_base64(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
