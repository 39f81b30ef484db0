"""The body of `export`: what a finished job's files can be made anew with. Knows nothing of how they are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.errors import InvalidRequest
from schemas.request import ImageTo3DRequest, ParsedRequest, ignored_fields, read_fields, validate_fields
from schemas.text import request_model

EXPORT_FIELDS = (
    "key",
    "output_format",
    "output_formats",
    "mesh_simplify",
    "target_faces",
    "lods",
    "texture_size",
    "texture_format",
    "compression",
    "size",
    "origin",
    "up_axis",
    "print_ready",
    "min_wall_mm",
    "no_texture",
    "normal_map",
    "render",
    "chunk_size",
    "temp",
    "retention_s",
    "webhook",
    "track_id",
)
"""The fields of a submit that an export reads; the others are those of the job."""


def parse_export(body: object, *, parameters: Mapping[str, Any], job_id: int) -> ParsedRequest:
    """Read the JSON body of `export/{id}`.

    Args:
        parameters: every effective parameter of the finished job; what the body leaves out is taken from here.
        job_id: the finished job.

    Returns:
        The request that a first export with these parameters had. Its image names the job and is never read.

    Raises:
        InvalidRequest: one sentence that names the first invalid field, or one that the job's generation cannot meet.
    """
    given = read_fields(body)
    known = {name: value for name, value in parameters.items() if value is not None}
    if "mesh_simplify" in given and "target_faces" not in given:
        known.pop("target_faces", None)  # the job's number of faces would override the share that was asked for
    if "output_format" in given:
        known.pop("output_formats", None)  # likewise
    changed = {name: value for name, value in given.items() if name in EXPORT_FIELDS}
    request = validate_fields({**known, **changed, "image": f"the images of job {job_id}"}, request_model(parameters))
    if known.get("no_texture") and not request.no_texture:
        raise InvalidRequest(f"no_texture must be true: job {job_id} was generated without a texture")
    if request.render and not known.get("render"):
        raise InvalidRequest(f"render must be false: job {job_id} was generated without a turntable")
    return ParsedRequest(request, ignored_fields(given, EXPORT_FIELDS, reason="an export does not generate again"))


def export_schema() -> dict[str, Any]:
    """The JSON schema of the body, for the OpenAPI document."""
    properties = ImageTo3DRequest.model_json_schema()["properties"]
    fields = {name: {**properties[name]} for name in EXPORT_FIELDS}
    for field in fields.values():
        field.pop("default", None)  # the job's own value
    return {"type": "object", "properties": fields}
