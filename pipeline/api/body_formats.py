"""What a request's body is: JSON, a form, a multipart form, or the raw bytes of an image. Knows nothing of routes.

Each format is a collector: pieces go in as they arrive, bounded; the fields come out as one dictionary, as if they had
been sent as JSON. The rule that chooses the format is `choose_format`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol, cast

from pipeline.api.form_fields import (
    FORM_TYPE,
    MAX_FORM_FIELDS,
    MULTIPART_TYPE,
    FilePart,
    FormFields,
    FormReader,
    Spool,
    percent_decoded,
)
from pipeline.errors import InvalidRequest, UnsupportedMediaType
from pipeline.imaging.signatures import ImageFormat, recognise
from schemas.contract import json_type_name

MAX_STRUCTURE = 20_000
"""Brackets, braces, commas and colons in one body. A request has some hundred; every parsed value needs one of them."""
MAX_NUMBER_CHARS = 300
"""Python's integers have no bound, and text of thousands of digits takes seconds to convert."""
MAX_KEYS, MAX_KEY_PLACES = 4, 1000
"""How many texts of one body are tried as the API key, and how many places that look like its name are looked at."""
JSON_TYPES = frozenset({"", "application/json", "text/json", "application/x-json"})
RAW_TYPES = frozenset({"application/octet-stream", "binary/octet-stream"})
TAKEN = "application/json, multipart/form-data and application/x-www-form-urlencoded are taken"

_STRUCTURE = (b"[", b"{", b",", b":")
_JSON_KEY = re.compile(rb'"key"\s*:\s*"((?:[^"\\]|\\.){1,512})"')
_FORM_KEY = re.compile(rb"(?<![^&])key=([^&]{1,512})")
_BLANKS = b" \t\r\n\xef\xbb\xbf\xff\xfe\0"
"""Blanks, and what begins or pads JSON text in UTF-8 with a mark, UTF-16 or UTF-32."""


class BodyFormat(Protocol):
    """A collector of one body."""

    is_cheap: bool
    """Whether `feed` may run on the event loop."""
    may_hold_key: bool
    """Whether the API key can stand in it."""

    def feed(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises:
            InvalidRequest: they are malformed, or more than the bounds allow.
        """
        ...

    def keys(self) -> Iterator[str]:
        """The API keys that stand in what has arrived; at most `MAX_KEYS`."""
        ...

    def finish(self) -> dict[str, Any]:
        """The fields. Blocks where the body is large.

        Raises:
            InvalidRequest: the body is incomplete or malformed.
        """
        ...


def choose_format(content_type: str, beginning: bytes, *, takes_raw: bool) -> BodyFormat:
    """The format of a body, by its content first and by its type second.

    What begins as JSON is JSON whatever its type, because curl and others send JSON under the type of forms or none;
    so is an empty body. Otherwise the type decides. Of a multipart form without a boundary in its type, the body's
    first line is the boundary.

    Args:
        content_type: the header, "" without one.
        beginning: the body's first bytes; all of it where it is short.
        takes_raw: the route also takes the bytes of an image as the whole body.

    Raises:
        UnsupportedMediaType: the route takes no such body.
        InvalidRequest: a multipart form has no boundary.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    start = beginning.lstrip(_BLANKS)[:1]
    if takes_raw and beginning and (isinstance(recognise(beginning), ImageFormat) or media_type in RAW_TYPES):
        return RawBody()
    if start in (b"", b"{", b"["):
        return JsonBody()
    if media_type == MULTIPART_TYPE:
        return MultipartBody(FormReader(content_type, beginning))
    if media_type == FORM_TYPE:
        return FormBody()
    if media_type in JSON_TYPES or media_type.endswith("+json"):
        return JsonBody()
    raw = ", and the bytes of an image" if takes_raw else ""
    raise UnsupportedMediaType(f"The content type {media_type[:60]} is not taken here; {TAKEN}{raw}.")


class JsonBody:
    """A JSON object. Counts of its structural characters stop a body of millions of tiny values while it arrives."""

    is_cheap, may_hold_key = True, True

    def __init__(self) -> None:
        self._content = bytearray()
        self._structure = 0

    def feed(self, piece: bytes) -> None:
        for character in _STRUCTURE:
            self._structure += count_up_to(MAX_STRUCTURE + 1 - self._structure, character, piece)
        if self._structure > MAX_STRUCTURE:
            self._content.clear()
            raise InvalidRequest(f"the body has more than {MAX_STRUCTURE} values")
        self._content += piece

    def keys(self) -> Iterator[str]:
        for found in _values_of_key(self._content, _JSON_KEY, name=b'"key"'):
            with suppress(ValueError):
                yield str(json.loads(b'"' + found + b'"'))

    def finish(self) -> dict[str, Any]:
        return parse_object(self._content)


class FormBody:
    """An `application/x-www-form-urlencoded` form."""

    is_cheap, may_hold_key = True, True

    def __init__(self) -> None:
        self._content = bytearray()
        self._fields = 1

    def feed(self, piece: bytes) -> None:
        self._fields += count_up_to(MAX_FORM_FIELDS + 1 - self._fields, b"&", piece)
        if self._fields > MAX_FORM_FIELDS:
            self._content.clear()
            raise InvalidRequest(f"the body has more than {MAX_FORM_FIELDS} fields")
        self._content += piece

    def keys(self) -> Iterator[str]:
        for found in _values_of_key(self._content, _FORM_KEY, name=b"key="):
            yield percent_decoded(found).decode("utf-8", "replace")

    def finish(self) -> dict[str, Any]:
        fields, content = FormFields(), bytes(self._content)
        self._content.clear()
        for field in content.split(b"&"):
            name, _, value = field.partition(b"=")
            if name:
                fields.add_encoded(name, value)
        return fields.as_object(parse_json)


class MultipartBody:
    """A `multipart/form-data` form; its files go to a temporary file."""

    is_cheap, may_hold_key = False, True  # the parser is Python code

    def __init__(self, reader: FormReader) -> None:
        self._reader = reader

    def feed(self, piece: bytes) -> None:
        self._reader.feed(piece)

    def keys(self) -> Iterator[str]:
        yield from self._reader.keys()[:MAX_KEYS]

    def finish(self) -> dict[str, Any]:
        return self._reader.finish().as_object(parse_json)


class RawBody:
    """The bytes of one image, in a temporary file; the field `image`."""

    is_cheap, may_hold_key = False, False  # it may wait for the disk

    def __init__(self) -> None:
        self._spool = Spool()

    def feed(self, piece: bytes) -> None:
        self._spool.write(piece)

    def keys(self) -> Iterator[str]:
        return iter(())

    def finish(self) -> dict[str, Any]:
        return {"image": FilePart(self._spool, 0, self._spool.size_bytes)}


def count_up_to(most: int, character: bytes, piece: bytes) -> int:
    """How often a character occurs in bytes; the count ends at `most`.

    Long texts have few of them, and `find` looks for the next one by memchr, which is some ten times faster than
    `count`, a loop over the bytes.
    """
    count, at = 0, piece.find(character)
    while at >= 0 and count < most:
        count += 1
        at = piece.find(character, at + 1)
    return count


def _values_of_key(content: bytearray, pattern: re.Pattern[bytes], *, name: bytes) -> Iterator[bytes]:
    """What the fields `key` of a body hold, still encoded; at most `MAX_KEYS`.

    `find` passes over a long text several times faster than a pattern does.

    Args:
        pattern: the field, with its value as the only group.
        name: what the pattern begins with.
    """
    values, at = 0, -1
    for _ in range(MAX_KEY_PLACES):
        at = content.find(name, at + 1)
        if at < 0 or values >= MAX_KEYS:
            return
        if found := pattern.match(content, at):
            values += 1
            yield found[1]


def parse_object(content: bytes | bytearray) -> dict[str, Any]:
    """A body's bytes as a JSON object; blank ones are an empty object.

    Raises:
        InvalidRequest: they are not JSON, not an object, or hold a number of too many digits.
    """
    if not content or content.isspace():
        return {}
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass")
        if isinstance(content, bytearray):
            content.clear()  # a long body is in memory once less while it is parsed
        body = parse_json(text)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8 text, as JSON must be (RFC 8259)") from None
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {json_type_name(body)}")
    return cast(dict[str, Any], body)


def parse_json(text: str) -> Any:
    """JSON text without numbers of very many digits.

    Raises:
        ValueError: it is not JSON.
        InvalidRequest: it holds a number of too many digits.
    """
    return json.loads(text, parse_int=_integer, parse_float=_float)


def _integer(text: str) -> int:
    return int(_short(text))


def _float(text: str) -> float:
    return float(_short(text))


def _short(text: str) -> str:
    """The text of a number.

    Raises:
        InvalidRequest: it has more than `MAX_NUMBER_CHARS`.
    """
    if len(text) > MAX_NUMBER_CHARS:
        raise InvalidRequest(f"the body has a number of {len(text)} characters; at most {MAX_NUMBER_CHARS} are read")
    return text
