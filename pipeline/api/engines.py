"""The route that lists the engines: what each accepts and needs, and which of them this deployment offers."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from pipeline.api.context import Context, context_of
from pipeline.api.problems import documented
from pipeline.engines.registry import ENGINES
from schemas.responses import EngineEntry, EnginesBody

router = APIRouter(tags=["service"])


@router.get("/engines", response_model=EnginesBody, responses=documented())
async def engines(context: Context = Depends(context_of)) -> JSONResponse:
    """The engines by name: what each accepts, needs and ignores, and whether a submit may name it; needs no key."""
    settings = context.settings
    entries = [
        EngineEntry(
            name=spec.name,
            summary=spec.summary,
            needs=spec.needs,
            inputs=list(spec.inputs),
            max_views=spec.max_views,
            ignores=list(spec.ignores),
            offered=spec.name in settings.offered_engines,
        )
        for spec in ENGINES
    ]
    return JSONResponse(EnginesBody(default=settings.engine, engines=entries).to_json())
