"""The body that asks for a browser token, and its answer. Knows nothing of how a token is signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.contract import (
    BoundedInt,
    HttpUrl,
    fail,
    first_error_message,
    given_fields,
    truncate_for_message,
)
from schemas.errors import InvalidRequest
from schemas.origins import read_origin
from schemas.responses import ISO

MAX_TOKEN_JOBS = 20
MAX_JOB_ID = 2**31 - 1


@dataclass(frozen=True)
class Origin(HttpUrl):
    """The origin of a web page, `https://host` or with a port, or null."""

    def read(self, value: object) -> str | None:
        url = super().read(value)
        if url is None:
            return None
        origin = read_origin(url)
        if origin is None or "*" in origin:
            fail(f"must be an origin such as https://app.example.com, got {truncate_for_message(url)}")
        return origin


@dataclass(frozen=True)
class TokenJobs(BoundedInt):
    """Which jobs a token sees: `own`, `all`, or a list of ids beside its own."""

    low: int = 1
    high: int = MAX_JOB_ID

    def read(self, value: object) -> Any:
        if value in ("own", "all"):
            return value
        ids = cast(list[object], value) if isinstance(value, list) else [value]
        if len(ids) > MAX_TOKEN_JOBS:
            fail(f"must be own, all, or a list of at most {MAX_TOKEN_JOBS} ids, got {len(ids)}")
        return tuple(super(TokenJobs, self).read(each) for each in ids)

    def describe(self) -> dict[str, Any]:
        ids = {"type": "array", "items": super().describe(), "maxItems": MAX_TOKEN_JOBS}
        return {"anyOf": [{"type": "string", "enum": ["own", "all"]}, ids]}


class TokenRequest(BaseModel):
    """What a browser token may do."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    expires_in: Annotated[int, BoundedInt(60, 86_400)] = Field(
        default=3600, description="for how many seconds the token is valid"
    )
    max_submits: Annotated[int, BoundedInt(0, 50)] = Field(
        default=10, description="how many jobs may be submitted with it; 0 to only read"
    )
    origin: Annotated[str | None, Origin()] = Field(
        default=None, description="the only origin whose pages may use it; null for any"
    )
    jobs: Annotated[Literal["own", "all"] | tuple[int, ...], TokenJobs()] = Field(
        default="own",
        description="the jobs it may fetch, follow and cancel: `own` (submitted with it), `all` of the key, or a list "
        "of ids beside its own",
    )


class TokenBody(BaseModel):
    """A browser token."""

    model_config = ConfigDict(frozen=True)

    status: Literal["success"] = Field(default="success", description="always success")
    token: str = Field(description="to be sent in place of the key")
    expires_at: str = Field(description=f"when it ends, {ISO}")
    max_submits: int = Field(description="how many jobs may be submitted with it")
    origin: str | None = Field(default=None, description="the only origin whose pages may use it")


def parse_token_request(body: object) -> TokenRequest:
    """Read the body that asks for a token.

    Raises:
        InvalidRequest: one sentence about the first invalid field.
    """
    try:
        return TokenRequest.model_validate(given_fields(body))
    except ValidationError as error:
        raise InvalidRequest(first_error_message(error)) from None
