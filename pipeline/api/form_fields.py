"""Fields of forms, as JSON would have them; files in a temporary file. Knows nothing of what the fields mean.

Forms have only texts, so they are read leniently: a repeated name, `name[]` or `name[0]` is a list; a text that is JSON
of a list or an object is one; `null` is no value. A file is an image whatever its field is called, but for a mesh.
"""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipeline.errors import InvalidRequest
from pipeline.imaging import inline
from pipeline.imaging.signatures import require_accepted

FORM_TYPE = "application/x-www-form-urlencoded"
MULTIPART_TYPE = "multipart/form-data"
MAX_FORM_FIELDS = 200
"""Fields or parts of one form; a request has some thirty."""
MAX_NAME_CHARS = 100
IN_MEMORY_BYTES = 1 << 20
"""Files of one form up to this size together stay in memory."""
MESH_FIELD = "init_mesh"
BASE64_FIELDS = frozenset({"image", "init_image", "init_obj", MESH_FIELD})
MESH_TOO_LARGE = f"{MESH_FIELD} must be at most {inline.MAX_BYTES >> 20} MiB"
ALWAYS_TEXT = frozenset({"key", "track_id"})
"""Fields whose text is never read as JSON."""

_LIST_NAME = re.compile(r"([^\[\]]+)\[\d{0,4}\]")
_BAD_ESCAPE = re.compile(b"%(?![0-9A-Fa-f]{2})")
_FIRST_LINE = re.compile(rb"--([!-~][ -~]{0,68}[!-~]?)\r\n")
_READ_BYTES = 3 << 18  # a multiple of 3, so that pieces of base64 can be joined

ParseJson = Callable[[str], Any]


class Spool:
    """A temporary file that is written at its end; small ones stay in memory. It is deleted with its last reader."""

    def __init__(self) -> None:
        self._file = cast(BinaryIO, tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES))  # noqa: SIM115
        self.size_bytes = 0

    def __del__(self) -> None:
        self._file.close()

    def write(self, content: bytes) -> None:
        """Append some bytes. Blocks where the file is on the disk."""
        self._file.write(content)
        self.size_bytes += len(content)

    def read(self, start: int, size_bytes: int) -> bytes:
        """Some bytes of the file. Nothing may be written afterwards."""
        self._file.seek(start)
        return self._file.read(size_bytes)


class FilePart:
    """A file that came in a body.

    Args:
        start: where it begins in the spool.
    """

    def __init__(self, spool: Spool, start: int, size_bytes: int) -> None:
        self._spool = spool
        self._start = start
        self.size_bytes = size_bytes

    def content(self) -> bytes:
        """The file's bytes.

        Raises:
            UnreadableImage: they are more than an image may have.
        """
        return inline.at_most(self._spool.read(self._start, min(self.size_bytes, inline.MAX_BYTES + 1)))

    def as_base64(self) -> str:
        """The file as the text that a JSON body would have.

        Raises:
            UnreadableImage: it is larger than an image may be, or empty.
        """
        if self.size_bytes > inline.MAX_BYTES or not self.size_bytes:
            require_accepted(self.content())
        text = bytearray()
        for start in range(0, self.size_bytes, _READ_BYTES):
            size_bytes = min(_READ_BYTES, self.size_bytes - start)
            text += base64.b64encode(self._spool.read(self._start + start, size_bytes))
        return text.decode("ascii")


def images_of(body: dict[str, Any]) -> list[object]:
    """The values under `image`, whether it is a list or not."""
    return _list_of(body.get("image"))


def has_files(body: dict[str, Any]) -> bool:
    """Whether a body has `FilePart` among its values."""
    return any(isinstance(part, FilePart) for part in (*images_of(body), *_list_of(body.get(MESH_FIELD))))


def inline_files(body: dict[str, Any]) -> dict[str, Any]:
    """A body with its files as base64. Blocks.

    Raises:
        UnreadableImage: one is larger than an image may be.
        InvalidRequest: the mesh is larger than that.
    """
    for part in _list_of(body.get(MESH_FIELD)):
        if isinstance(part, FilePart) and part.size_bytes > inline.MAX_BYTES:
            raise InvalidRequest(MESH_TOO_LARGE)
    return body | {name: _inlined(body[name]) for name in ("image", MESH_FIELD) if name in body}


def _inlined(value: object) -> object:
    inlined = [part.as_base64() if isinstance(part, FilePart) else part for part in _list_of(value)]
    return inlined if isinstance(value, list) else inlined[0]


def _list_of(value: object) -> list[object]:
    return cast(list[object], value) if isinstance(value, list) else [value]


class FormFields:
    """The fields of one form in their order."""

    def __init__(self) -> None:
        self._values: dict[str, list[str | FilePart]] = {}
        self._lists: set[str] = set()

    def add_encoded(self, name: bytes, value: bytes) -> None:
        """Add a field of a urlencoded form.

        Raises:
            InvalidRequest: it is not UTF-8, or a long value has a percent sign that begins no escape.
        """
        field = _as_text(percent_decoded(name.replace(b"+", b" ")))
        if _base_name(field) not in BASE64_FIELDS:
            value = value.replace(b"+", b" ")  # base64 has plus signs, which senders forget to escape, and no blanks
        self.add(field, _as_text(percent_decoded(value)))

    def add(self, name: str, value: str | FilePart) -> None:
        """Add a field.

        Raises:
            InvalidRequest: the name is too long.
        """
        if len(name) > MAX_NAME_CHARS:
            raise InvalidRequest(f"the body has a field whose name is longer than {MAX_NAME_CHARS} characters")
        base = _base_name(name)
        if isinstance(value, FilePart) and base != MESH_FIELD:
            base = "image"
        if base != name and not isinstance(value, FilePart):
            self._lists.add(base)
        self._values.setdefault(base, []).append(value)

    def texts(self, name: str) -> list[str]:
        """The texts under a name."""
        return [value for value in self._values.get(name, ()) if isinstance(value, str)]

    def as_object(self, parse_json: ParseJson) -> dict[str, Any]:
        """The fields as a JSON body would have them; images and the mesh may be `FilePart`."""
        return {name: self._value_of(name, values, parse_json) for name, values in self._values.items()}

    def _value_of(self, name: str, values: list[str | FilePart], parse_json: ParseJson) -> object:
        given = [value for value in values if value != ""]
        if name in ALWAYS_TEXT:
            return given[0] if given else ""
        read = [value if isinstance(value, FilePart) else _lenient(value, parse_json) for value in given]
        if name in self._lists:
            return read
        return "" if not read else read[0] if len(read) == 1 else read


class FormReader:
    """Reads a multipart form as it arrives.

    Args:
        content_type: the header, which names the boundary; without one, the body's first line is the boundary.
        beginning: the body's first bytes, which are not read here.

    Raises:
        InvalidRequest: there is no usable boundary.
    """

    def __init__(self, content_type: str, beginning: bytes) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary and (first := _FIRST_LINE.match(beginning)) is not None:
            boundary = first[1]
        if not boundary:
            raise InvalidRequest("the body is multipart/form-data without a boundary")
        try:
            self._parser = MultipartParser(boundary, callbacks=self._callbacks())
        except FormParserError as error:
            raise InvalidRequest("the body's boundary is too long") from error
        self._fields = FormFields()
        self._spool = Spool()
        self._parts = 0
        self._is_complete = False
        self._begin_part()

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. Blocks where files are on the disk.

        Raises:
            InvalidRequest: they are malformed, or there are too many parts.
        """
        try:
            self._parser.write(piece)
        except FormParserError:
            self._parser.callbacks = {}  # they refer to this object, which would be freed late
            raise InvalidRequest("the body is not valid multipart/form-data") from None

    def keys(self) -> list[str]:
        """The texts under `key` that have arrived completely."""
        return self._fields.texts("key")

    def finish(self) -> FormFields:
        """All fields.

        Raises:
            InvalidRequest: the body ended before its last boundary.
        """
        self._parser.callbacks = {}
        if not self._is_complete:
            raise InvalidRequest("the body is not valid multipart/form-data: its last boundary is missing")
        return self._fields

    def _callbacks(self) -> Any:
        def on_header_field(data: bytes, start: int, end: int) -> None:
            self._header_name += data[start:end]

        def on_header_value(data: bytes, start: int, end: int) -> None:
            self._header_value += data[start:end]

        def on_header_end() -> None:
            self._headers[self._header_name.lower()] = self._header_value
            self._header_name = self._header_value = b""

        return {
            "on_part_begin": self._begin_part,
            "on_header_field": on_header_field,
            "on_header_value": on_header_value,
            "on_header_end": on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._end_part,
            "on_end": self._on_end,
        }

    def _begin_part(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._name = ""
        self._is_file = False
        self._start = self._spool.size_bytes
        self._text = bytearray()

    def _on_headers(self) -> None:
        self._parts += 1
        if self._parts > MAX_FORM_FIELDS:
            raise InvalidRequest(f"the body has more than {MAX_FORM_FIELDS} fields")
        header = self._headers.get(b"content-disposition", b"")
        disposition, options = parse_options_header(header)
        media_type = parse_options_header(self._headers.get(b"content-type", b""))[0]
        if disposition != b"form-data":
            raise InvalidRequest("the body has a part without `Content-Disposition: form-data`")
        self._name = _as_text(options.get(b"name", b""))
        is_text = media_type.startswith(b"text/") or media_type in (b"", b"application/json")
        # A file has a file name; some clients send an image's bytes with nothing but their type.
        # The parser leaves out `filename*` (RFC 5987), by which some name a file that is not called in ASCII.
        self._is_file = b"filename" in options or b"filename*=" in header.lower() or not is_text

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._spool.write(data[start:end])
        else:
            self._text += data[start:end]

    def _end_part(self) -> None:
        if not self._is_file:
            if self._name:  # a control without a name, which a browser does not send
                self._fields.add(self._name, _as_text(self._text))
        elif (
            size_bytes := self._spool.size_bytes - self._start
        ):  # a browser sends an unused file input as an empty file
            self._fields.add(self._name, FilePart(self._spool, self._start, size_bytes))
        self._text = bytearray()

    def _on_end(self) -> None:
        self._is_complete = True


def percent_decoded(value: bytes) -> bytes:
    """A value of a urlencoded form. In a short one, a percent sign that begins no escape stands for itself.

    Raises:
        InvalidRequest: in a long one there is such a sign.
    """
    if b"%" not in value:
        return value
    if len(value) <= IN_MEMORY_BYTES >> 4:
        return unquote_to_bytes(value)
    if _BAD_ESCAPE.search(value):
        raise InvalidRequest("the body is not a valid form: a percent sign in it begins no escape")
    return b"".join(inline.percent_decoded(_as_text(value)))


def _as_text(value: bytes | bytearray) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the body has a field that is not UTF-8 text; send files with a file name") from None


def _base_name(name: str) -> str:
    found = _LIST_NAME.fullmatch(name)
    return name if found is None else found[1]


def _lenient(value: str, parse_json: ParseJson) -> object:
    """A text as the list, object or null that it stands for, else itself."""
    if value == "null":
        return None
    if value[:1] not in ("[", "{") or value.count(",") + value.count("[") + value.count("{") > MAX_FORM_FIELDS:
        return value
    try:
        return parse_json(value)
    except (ValueError, RecursionError):
        return value
