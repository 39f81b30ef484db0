"""The route that issues browser tokens, for a caller's own server."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from pipeline.answers import iso_time
from pipeline.api.body_schema import body_schema
from pipeline.api.browser_tokens import issue_token
from pipeline.api.context import Context, context_of
from pipeline.api.problems import BAD_REQUEST, TOO_LARGE, UNAUTHORIZED, documented
from pipeline.api.routes import ENTERPRISE
from schemas.tokens import TokenBody, TokenRequest, parse_token_request

EXAMPLE = {"key": "…", "expires_in": 600, "max_submits": 3, "origin": "https://app.example.com"}
TOKEN_BODY = body_schema(TokenRequest.model_json_schema(), example=EXAMPLE)

router = APIRouter(tags=["account"])


@router.post(
    f"{ENTERPRISE}/tokens",
    response_model=TokenBody,
    responses=documented(BAD_REQUEST, UNAUTHORIZED, TOO_LARGE),
    openapi_extra=TOKEN_BODY,
)
async def create_token(request: Request, context: Context = Depends(context_of)) -> JSONResponse:
    """Issue a short-lived token with which a browser submits, fetches, follows and cancels jobs in the key's name."""
    key, body = await context.caller(request)
    wanted = parse_token_request(body)
    text, token = issue_token(
        context.service.secret_box,
        key,
        expires_in_s=wanted.expires_in,
        max_submits=wanted.max_submits,
        origin=wanted.origin,
        jobs=() if wanted.jobs == "own" else wanted.jobs,
    )
    answer = TokenBody(
        token=text, expires_at=iso_time(token.expires_at), max_submits=token.max_submits, origin=token.origin
    )
    return JSONResponse(answer.model_dump(mode="json"), headers={"cache-control": "no-store"})
