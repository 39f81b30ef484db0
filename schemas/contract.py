"""How the contract reads values: lenient in form, strict in meaning, one sentence per refusal.

Annotations for the fields of pydantic models. Each defines in one place what is accepted, how the refusal reads and
what the JSON schema states. Knows no particular field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast, get_args
from urllib.parse import quote, urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SecretStr, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from schemas.errors import InvalidRequest

SHOWN_CHARS = 60
"""The longest part of a sender's value that a message repeats."""

_PROBLEM = "contract"
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_TOKEN = "[!-~]+"
_DROPPED = re.compile(r"[\t\r\n]")
_URL_PARTS = re.compile(r"(https?://[^/?#]*)(.*)", re.IGNORECASE)
_URL_START = re.compile(r"\s*https?:[/\\]{2}", re.IGNORECASE)
_SWITCH = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}


def truncate_for_message(value: object) -> str:
    """A sender's value as a message may repeat it: one line, printable, at most about `SHOWN_CHARS` long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 190:
        return "a number of more than 50 digits"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN_CHARS else f"{value[: SHOWN_CHARS - 1]}…")
    return json_type_name(value)


def json_type_name(value: object) -> str:
    """The kind of a JSON value, for messages that must not repeat the value itself."""
    if value is None:
        return "null"
    for types, name in (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, tuple), "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, types):
            return name
    return "something else"


def fail(reason: str) -> NoReturn:
    """Refuse the field under validation; the reason follows the field's name in the sentence.

    Raises:
        PydanticCustomError: always; pydantic collects it, `first_error_message` turns it into the sentence.
    """
    raise PydanticCustomError(_PROBLEM, "{reason}", {"reason": reason})


def first_error_message(error: ValidationError) -> str:
    """The first problem of a validation as one sentence that begins with the field's name."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    reason = "is required" if problem["type"] == "missing" else problem["msg"]
    return f"{field} {reason}".strip()


def given_fields(body: object) -> dict[str, object]:
    """The fields of a body that are given: null and blank texts stand for a field left out, in every body alike.

    Raises:
        InvalidRequest: the body is not an object.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequest(f"the body must be a JSON object, got {json_type_name(body)}")
    fields = cast(Mapping[object, object], body)
    return {str(name): value for name, value in fields.items() if value is not None and not _is_blank(value)}


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and (not value or value.isspace())


def is_plain_text(text: str) -> bool:
    """Whether every store accepts the text: no NUL, no lone surrogate."""
    if "\0" in text:
        return False
    if text.isascii():  # O(1), unlike encoding: an inline image has millions of characters
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_http_url(text: str) -> bool:
    """Whether the text is an absolute http or https URL with a host, without spaces or control characters."""
    if len(text) > 4096 or not text.isprintable() or " " in text:  # an inline image has millions of characters
        return False
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port != 0


def read_http_url(text: str) -> str | None:
    """A sender's http or https URL as it is requested; None where the text is none.

    Read as `plain_url` does; other blanks and control characters behind the host are escaped, as in browsers.
    """
    if not is_plain_text(text):
        return None
    found = _URL_PARTS.fullmatch(plain_url(text))
    if found is None:
        return None
    host, rest = found.groups()
    url = host + "".join(quote(sign) if sign == " " or not sign.isprintable() else sign for sign in rest)
    return url if is_http_url(url) else None


def plain_url(text: str) -> str:
    """A URL, also a relative one, in one spelling: without blanks around it, without line breaks and tabs inside, and
    with slashes for backslashes before the query, as browsers read it.

    Source: https://url.spec.whatwg.org/#concept-basic-url-parser.
    """
    path, sign, rest = re.split(r"([?#]|$)", _DROPPED.sub("", text.strip()), maxsplit=1)
    return path.replace("\\", "/") + sign + rest


@dataclass(frozen=True)
class _Reader:
    """Base of the annotations: `read` validates a value, `describe` returns the JSON schema."""

    def read(self, value: object) -> object:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cast(Callable[[Any], Any], self.read))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return self.describe()


@dataclass(frozen=True)
class BoundedFloat(_Reader):
    """A finite number between two bounds, also as text."""

    low: float
    high: float

    def read(self, value: object) -> float:
        number = _number(value)
        if number is None:
            fail(f"must be a number between {self.low:g} and {self.high:g}, got {truncate_for_message(value)}")
        if not self.low <= number <= self.high:
            fail(f"must be between {self.low:g} and {self.high:g}, got {truncate_for_message(value)}")
        return float(number)

    def describe(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class BoundedFloatOrNothing(_Reader):
    """A finite number between two bounds, also as text, or null."""

    low: float
    high: float

    def read(self, value: object) -> float | None:
        return None if value is None else BoundedFloat(self.low, self.high).read(value)

    def describe(self) -> dict[str, Any]:
        return {"anyOf": [BoundedFloat(self.low, self.high).describe(), {"type": "null"}]}


@dataclass(frozen=True)
class BoundedInt(_Reader):
    """A whole number between two bounds, also as text; a float only where it is integral. `optional` allows null."""

    low: int
    high: int
    optional: bool = False

    def read(self, value: object) -> int | None:
        if self.optional and value is None:
            return None
        number = _number(value)
        if number is None or (math.isfinite(number) and number != int(number)):
            fail(f"must be a whole number between {self.low} and {self.high}, got {truncate_for_message(value)}")
        if not self.low <= number <= self.high:
            fail(f"must be between {self.low} and {self.high}, got {truncate_for_message(value)}")
        return int(number)

    def describe(self) -> dict[str, Any]:
        number = {"type": "integer", "minimum": self.low, "maximum": self.high}
        return {"anyOf": [number, {"type": "null"}]} if self.optional else number


@dataclass(frozen=True)
class OneOfNumbers(_Reader):
    """One of a few whole numbers, also as text."""

    numbers: tuple[int, ...]

    def read(self, value: object) -> int:
        number = _number(value)
        if number not in self.numbers:
            words = ", ".join(map(str, self.numbers[:-1])) + f" or {self.numbers[-1]}"
            fail(f"must be {words}, got {truncate_for_message(value)}")
        return int(number)

    def describe(self) -> dict[str, Any]:
        return {"type": "integer", "enum": list(self.numbers)}


@dataclass(frozen=True)
class LenientBool(_Reader):
    """A boolean, also as yes/no, true/false, on/off, 1/0."""

    def read(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and len(value) <= SHOWN_CHARS:
            switched = _SWITCH.get(value.strip().lower())
        else:
            switched = bool(value) if isinstance(value, int | float) and value in (0, 1) else None
        if switched is None:
            fail(f"must be yes, no, true or false, got {truncate_for_message(value)}")
        return switched

    def describe(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class OneOf(_Reader):
    """One of a few words, in upper or lower case."""

    words: tuple[str, ...]

    def read(self, value: object) -> str:
        word = value.strip().lower() if isinstance(value, str) and len(value) <= SHOWN_CHARS else None
        if word not in self.words:
            fail(f"must be one of {', '.join(self.words)}, got {truncate_for_message(value)}")
        return word

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words)}


def one_of(literal: Any) -> OneOf:
    """The annotation that accepts exactly the words of a `Literal`."""
    return OneOf(get_args(literal))


@dataclass(frozen=True)
class OneOfOrNothing(_Reader):
    """One of a few words, in upper or lower case, or null."""

    words: tuple[str, ...]

    def read(self, value: object) -> str | None:
        return None if value is None else OneOf(self.words).read(value)

    def describe(self) -> dict[str, Any]:
        return {"anyOf": [OneOf(self.words).describe(), {"type": "null"}]}


@dataclass(frozen=True)
class ListOrNothing(_Reader):
    """Distinct values of one kind: as a list, as JSON text or as text between commas; or null, as an empty list."""

    item: _Reader
    most: int

    def read(self, value: object) -> tuple[Any, ...] | None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        given = _split_list(value, most=self.most)
        if given is None or len(given) > self.most:
            seen = truncate_for_message(value) if given is None else str(len(given))
            fail(f"must be a list of at most {self.most} values, got {seen}")
        values = tuple(self.item.read(each) for each in given)
        repeated = next((each for each in values if values.count(each) > 1), None)
        if repeated is not None:
            fail(f"must be distinct values, got {repeated} twice")
        return values or None

    def describe(self) -> dict[str, Any]:
        several = {"type": "array", "items": self.item.describe(), "maxItems": self.most}
        return {"anyOf": [several, {"type": "string"}, {"type": "null"}]}


def _split_list(value: object, *, most: int) -> tuple[object, ...] | None:
    """The items of a list, of JSON text of one or of text between commas; None where a text is far too long or broken.

    Anything else is a list of one item.
    """
    if isinstance(value, str):
        text = value.strip()
        if len(text) > most * SHOWN_CHARS:
            return None
        if not text.startswith("["):
            return tuple(text.split(","))
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
    return tuple(cast(Sequence[object], value)) if isinstance(value, list | tuple) else (value,)


@dataclass(frozen=True)
class Text(_Reader):
    """One line of plain text, stripped."""

    max_chars: int

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            fail(f"must be a text, got {truncate_for_message(value)}")
        text = value.strip()
        if len(text) > self.max_chars or not is_plain_text(text) or not text.isprintable():
            fail(f"must be one line of at most {self.max_chars} characters, got {truncate_for_message(value)}")
        return text

    def describe(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": self.max_chars}


@dataclass(frozen=True)
class Prompt(_Reader):
    """A text of any script, signs and line breaks, stripped; no NUL and no lone surrogate."""

    max_chars: int
    least: int = 1

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            fail(f"must be a text, got {json_type_name(value)}")
        text = value.strip()
        if not self.least <= len(text) <= self.max_chars:
            bounds = f"{self.least} to {self.max_chars}" if self.least else f"at most {self.max_chars}"
            fail(f"must have {bounds} characters, got {len(text)}")
        if not is_plain_text(text):
            fail("must be plain text without NUL characters or lone surrogates")
        return text

    def describe(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string", "maxLength": self.max_chars}
        return schema | {"minLength": self.least} if self.least else schema


@dataclass(frozen=True)
class Secret(_Reader):
    """A text that no message repeats, or null.

    Args:
        is_token: only visible ASCII characters, as in a header; spaces around it are stripped.
    """

    max_chars: int = 4096
    is_token: bool = False

    def read(self, value: object) -> SecretStr | None:
        if value is None or isinstance(value, SecretStr):
            return value
        if not isinstance(value, str) or len(value) > self.max_chars or not is_plain_text(value):
            fail(f"must be a text of at most {self.max_chars} characters, got {json_type_name(value)}")
        if not self.is_token:
            return SecretStr(value)
        if not re.fullmatch(_TOKEN, value.strip()):
            fail("must be visible ASCII characters without spaces")
        return SecretStr(value.strip())

    def describe(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string", "format": "password", "maxLength": self.max_chars}
        return schema | {"pattern": f"^{_TOKEN}$"} if self.is_token else schema


@dataclass(frozen=True)
class ImageList(_Reader):
    """One image or a list of images, each a URL, a data URI or base64. The intake stage decodes them."""

    most: int

    def read(self, value: object) -> tuple[str, ...]:
        images = tuple(cast(Sequence[object], value)) if isinstance(value, list | tuple) else (value,)
        if not images:
            fail("must be an image or a list of images, got an empty list")
        if len(images) > self.most:
            fail(f"must be at most {self.most} images, got {len(images)}")
        for image in images:
            if not isinstance(image, str):
                fail(f"must be an http(s) URL, a data URI or base64, got {json_type_name(image)}")
            if not image.strip():
                fail("must be an http(s) URL, a data URI or base64, got an empty text")
            if not is_plain_text(image):
                fail("must be plain text without NUL characters or lone surrogates")
        return tuple(self._read_one(str(image)) for image in images)

    @staticmethod
    def _read_one(image: str) -> str:
        if not _URL_START.match(image):
            return image.strip()
        url = read_http_url(image)
        if url is None:
            fail(f"must be an http(s) URL, a data URI or base64, got {_url_without_secrets(image)}")
        return url

    def describe(self) -> dict[str, Any]:
        image = {"type": "string", "minLength": 1}
        return {"anyOf": [image, {"type": "array", "items": image, "minItems": 1, "maxItems": self.most}]}


@dataclass(frozen=True)
class FileSource(_Reader):
    """A file as a URL, a data URI or base64, or null."""

    def read(self, value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            fail(f"must be an http(s) URL, a data URI or base64, got {json_type_name(value)}")
        return ImageList(1).read(value)[0]

    def describe(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]}


@dataclass(frozen=True)
class HttpUrl(_Reader):
    """An absolute http or https URL. `pipeline.net.egress` checks whether it leads to an allowed address."""

    optional: bool = True

    def read(self, value: object) -> str | None:
        if self.optional and value is None:
            return None
        url = read_http_url(value) if isinstance(value, str) else None
        if url is None:
            fail(f"must be an http or https URL, got {_url_without_secrets(value)}")
        return url

    def describe(self) -> dict[str, Any]:
        url = {"type": "string", "format": "uri", "pattern": "^https?://", "maxLength": 4096}
        return {"anyOf": [url, {"type": "null"}]} if self.optional else url


@dataclass(frozen=True)
class Name(_Reader):
    """A short name of lower-case letters, digits, hyphens and underscores, or null."""

    max_chars: int = 64

    def read(self, value: object) -> str | None:
        if value is None:
            return None
        name = value.strip().lower() if isinstance(value, str) else ""
        if not re.fullmatch(rf"[a-z0-9_-]{{1,{self.max_chars}}}", name, re.ASCII):
            fail(f"must be a name of letters, digits, '-' and '_', got {truncate_for_message(value)}")
        return name

    def describe(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 64}, {"type": "null"}]}


@dataclass(frozen=True)
class EchoedId(_Reader):
    """The sender's own id, returned unchanged: a text, a whole number, or null."""

    max_chars: int = 255

    def read(self, value: object) -> str | int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            fail(f"must be a text or a whole number, got {truncate_for_message(value)}")
        if isinstance(value, int):
            if abs(value) >= 10**self.max_chars:
                fail(f"must be at most {self.max_chars} characters, got {truncate_for_message(value)}")
            return value
        if len(value) > self.max_chars:
            fail(f"must be at most {self.max_chars} characters, got {len(value)}")
        if not is_plain_text(value):
            fail("must be plain text without NUL characters or lone surrogates")
        return value

    def describe(self) -> dict[str, Any]:
        text = {"type": "string", "maxLength": self.max_chars}
        return {"anyOf": [text, {"type": "integer"}, {"type": "null"}]}


ViewAngle = float | Literal["top", "bottom"]
"""Where a view was taken from: degrees around the subject, 0 to 360, or from straight above or below."""

VIEW_NAMES: dict[str, ViewAngle] = {
    "front": 0.0,
    "right": 90.0,
    "back": 180.0,
    "left": 270.0,
    "top": "top",
    "bottom": "bottom",
}
"""Names for angles. Seen from above, they grow counter-clockwise: 0 is the front, and 90 is the right-hand side of
somebody who stands before the subject and looks at its front."""


@dataclass(frozen=True)
class ViewAngles(_Reader):
    """The angle of each view, as a list, as JSON text or as text between commas; "" and null mean "not given".

    An angle is a number of degrees, also as text, or one of `VIEW_NAMES`.
    """

    most: int

    def read(self, value: object) -> tuple[ViewAngle, ...] | None:
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        angles = _split_list(value, most=self.most)
        if angles is None:
            self._refuse(value)
        if not 1 <= len(angles) <= self.most:
            fail(f"must be one angle for each view, at most {self.most}, got {len(angles)}")
        return tuple(self._angle(angle) for angle in angles)

    def _angle(self, value: object) -> ViewAngle:
        if isinstance(value, str) and value.strip().lower() in VIEW_NAMES:
            return VIEW_NAMES[value.strip().lower()]
        degrees = _number(value)
        if degrees is None or not -360 <= degrees <= 360:
            self._refuse(value)
        return round(degrees % 360, 6) % 360

    @staticmethod
    def _refuse(value: object) -> NoReturn:
        names = ", ".join(VIEW_NAMES)
        fail(f"must be numbers of degrees between -360 and 360, or {names}, got {truncate_for_message(value)}")

    def describe(self) -> dict[str, Any]:
        degrees = {"type": "number", "minimum": -360, "maximum": 360}
        angles = {"type": "array", "items": {"anyOf": [degrees, {"type": "string"}]}, "minItems": 1}
        return {"anyOf": [angles | {"maxItems": self.most}, degrees, {"type": "string"}, {"type": "null"}]}


def whole_number(value: object) -> int | None:
    """The whole number that a value represents, also as text or as a float; None where it represents none."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= SHOWN_CHARS:
        return int(value) if value.isascii() else None  # exact, however long
    number = _number(value)
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else None


def _number(value: object) -> int | float | None:
    """The number that a value represents, None where it represents none; NaN counts as none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and len(value) <= SHOWN_CHARS and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return value
    return None


def _url_without_secrets(value: object) -> str:
    """A refused URL for a message, without the parts that may contain a password or a token."""
    if not isinstance(value, str):
        return truncate_for_message(value)
    head = re.split(r"[?#]", value, maxsplit=1)[0]
    return truncate_for_message(re.sub(r"//[^/]*@", "//…@", head))
