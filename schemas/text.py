"""The body of a submit of a text: ModelsLab's fields, and those that a submit of images has too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import Field

from schemas.contract import (
    BoundedFloat,
    BoundedFloatOrNothing,
    BoundedInt,
    FileSource,
    Prompt,
    given_fields,
)
from schemas.formats import OutputFormat
from schemas.request import (
    GenerationRequest,
    ImageTo3DRequest,
    KeyedRequest,
    ParsedRequest,
    RequestKind,
    ignored_fields,
    parse_request,
    read_fields,
    validate_fields,
)

MAX_PROMPT_CHARS = 1000
OLDER_NAMES = {
    "guidance_scale": ("ss_guidance_strength", "slat_guidance_strength"),
    "num_inference_steps": ("ss_sampling_steps", "slat_sampling_steps"),
}
"""Fields of ModelsLab's earlier models, each the default of two fields of today's."""
FIELDS = ("prompt", "negative_prompt", "init_mesh", *OLDER_NAMES)
"""The fields that a submit of images does not have."""


class _TextInput(KeyedRequest):
    """What a generation from text is made of. A base of its own, so that these fields come first."""

    prompt: Annotated[str, Prompt(MAX_PROMPT_CHARS)] = Field(
        description="what to make, in English; the model reads the first 75 tokens, about 55 words, and a warning "
        "quotes the rest"
    )
    negative_prompt: Annotated[str, Prompt(MAX_PROMPT_CHARS, least=0)] = Field(
        default="", description="what to stay away from; guidance leads away from it instead of from an empty text"
    )
    init_mesh: Annotated[str | None, FileSource()] = Field(
        default=None,
        repr=False,
        description="a mesh whose shape is kept, where the deployment allows it: http(s) URL, `data:` URI or bare "
        "base64 of a GLB, OBJ, STL or PLY; only its details and colours are generated (extension)",
    )
    guidance_scale: Annotated[float | None, BoundedFloatOrNothing(0, 10)] = Field(
        default=None, description="older name of `ss_guidance_strength` and `slat_guidance_strength` together"
    )
    num_inference_steps: Annotated[int | None, BoundedInt(1, 50, optional=True)] = Field(
        default=None, description="older name of `ss_sampling_steps` and `slat_sampling_steps` together"
    )


class TextTo3DRequest(GenerationRequest, _TextInput):
    """A validated submit of a text; the defaults of the sampling fields are those of the released text models."""

    ss_sampling_steps: Annotated[int, BoundedInt(1, 50)] = Field(default=25, description="sampling steps of stage 1")
    slat_guidance_strength: Annotated[float, BoundedFloat(0, 10)] = Field(
        default=7.5, description="guidance strength of stage 2, the structured latent"
    )
    slat_sampling_steps: Annotated[int, BoundedInt(1, 50)] = Field(default=25, description="sampling steps of stage 2")

    @property
    def kind(self) -> RequestKind:
        """What the asset is made from."""
        return "text"

    @property
    def sources(self) -> tuple[str, ...]:
        """The given mesh, if there is one."""
        return () if self.init_mesh is None else (self.init_mesh,)


def parse_text_request(body: object, *, default_output_format: OutputFormat = "glb") -> ParsedRequest:
    """Read the JSON body of a submit of a text.

    Args:
        body: the parsed JSON, of any type.
        default_output_format: what a body without `output_format` gets; it depends on the path.

    Raises:
        InvalidRequest: one sentence that names the first invalid field, its value and what is accepted.
    """
    given = read_fields(body)
    request = validate_fields({"output_format": default_output_format, **given}, TextTo3DRequest)
    older = {
        name: getattr(request, old)
        for old, names in OLDER_NAMES.items()
        for name in names
        if getattr(request, old) is not None and name not in given
    }
    warnings = ignored_fields(given, TextTo3DRequest.model_fields, reason="a text has no image")
    return ParsedRequest(request.model_copy(update=older), warnings)


def is_text_body(body: object) -> bool:
    """Whether the body of a submit, whose path does not say so, has a text and no image."""
    if not isinstance(body, Mapping):
        return False
    fields = cast(Mapping[object, object], body)
    return "prompt" in fields and not {"image", "init_image"} & given_fields(fields).keys()


def parse_any_request(body: object) -> ParsedRequest:
    """Read the body of a submit of either kind.

    Raises:
        InvalidRequest: as `parse_request` and `parse_text_request`.
    """
    return parse_text_request(body) if is_text_body(body) else parse_request(body)


def request_model(parameters: Mapping[str, Any]) -> type[GenerationRequest]:
    """The kind of request that effective parameters are of."""
    return TextTo3DRequest if "prompt" in parameters else ImageTo3DRequest
