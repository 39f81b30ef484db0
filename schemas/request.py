"""The body of a submit: every documented field, its default and bounds. Knows nothing of how a job runs.

Lenient in form, strict in meaning: numbers may be sent as text, booleans as yes and no, null and "" mean "not given"; a
value out of bounds is refused, never clamped; unknown fields are ignored with a warning.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from schemas.contract import (
    BoundedFloat,
    BoundedFloatOrNothing,
    BoundedInt,
    EchoedId,
    HttpUrl,
    ImageList,
    LenientBool,
    ListOrNothing,
    Name,
    OneOfNumbers,
    OneOfOrNothing,
    Secret,
    ViewAngle,
    ViewAngles,
    first_error_message,
    given_fields,
    one_of,
    truncate_for_message,
)
from schemas.errors import InvalidRequest
from schemas.formats import OUTPUT_FORMATS, Compression, OutputFormat, TextureFormat

RequestKind = Literal["image", "text"]
Origin = Literal["bottom", "center"]
UpAxis = Literal["y", "z"]
MAX_VIEWS = 8
LEAST_CHUNK_SIZE = 1024
"""A smaller `chunk_size` acts as this: it would save no memory worth naming, and take ten times as long."""
MIN_FACES, MAX_FACES = 100, 2_000_000
MAX_LODS = 4
DETAILS = (512, 1024, 1536)
MULTI_IMAGE_MODES = ("stochastic", "multidiffusion")
MIN_RETENTION_S, MAX_RETENTION_S = 60, 365 * 86400
"""Bounds of `retention_s` for every deployment; one may allow less."""
LEGACY_NAMES = {
    "init_image": "image",
    "decimation_target": "target_faces",
    "target_polycount": "target_faces",
    "face_limit": "target_faces",
}
"""Field names of earlier versions of the documented API and of comparable services, and their names here."""
SENT_IN_A_HEADER_TOO = {"api_key"}
"""Fields that ModelsLab's JavaScript client adds to every body, and whose value it also sends as a header."""
NOT_PARAMETERS = {"key", "image", "init_mesh", "webhook", "track_id"}
"""Fields that do not shape the result: the caller, its images, and whom to notify."""


class KeyedRequest(BaseModel):
    """Who asks."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    key: Annotated[SecretStr | None, Secret()] = Field(
        default=None, exclude=True, repr=False, description="API key; also as header `key` or `Authorization: Bearer`"
    )


class _ImageInput(KeyedRequest):
    """What a generation from images is made of. A base of its own, so that these fields come first."""

    image: Annotated[tuple[str, ...], ImageList(MAX_VIEWS)] = Field(
        repr=False, description="the image: http(s) URL, `data:` URI or bare base64; a list with `multi_image`"
    )
    multi_image: Annotated[bool, LenientBool()] = Field(
        default=False,
        description="several views of one subject: a list, or one sheet of views on a transparent background",
    )
    multi_image_mode: Annotated[Literal["stochastic", "multidiffusion"] | None, OneOfOrNothing(MULTI_IMAGE_MODES)] = (
        Field(default=None, description="how the engine combines several views (extension)")
    )
    view_angles: Annotated[tuple[ViewAngle, ...] | None, ViewAngles(MAX_VIEWS)] = Field(
        default=None,
        description="where each view was taken from, in the order of the views: degrees, or `front`, `right`, `back`, "
        "`left`, `top`, `bottom`; guessed if not given (extension)",
    )
    depth: Annotated[float | None, BoundedFloatOrNothing(0, 1)] = Field(
        default=None,
        description="depth of the preview engine's solid: 0 is a thin plate, 1 is round, as deep as wide; by default "
        "guessed from the contour and returned as `meta.depth` (extension)",
    )
    remove_bg: Annotated[bool, LenientBool()] = Field(
        default=True,
        description="remove the background; false: the whole image is the subject, and its transparency is ignored "
        "(extension)",
    )
    foreground_ratio: Annotated[float | None, BoundedFloatOrNothing(0.5, 1)] = Field(
        default=None,
        description="share of the engine's frame that the longer side of the subject fills; by default the engine's "
        "own: 0.83 for TRELLIS, 0.85 for TripoSR, 1 for the preview engine (extension)",
    )


class GenerationRequest(KeyedRequest):
    """The fields that every generation has. Attributes are the documented fields; bounds are in the annotations."""

    render: Annotated[bool, LenientBool()] = Field(default=False, description="also deliver a turntable video (mp4)")
    output_format: Annotated[OutputFormat, one_of(OutputFormat)] = Field(
        default="glb", description="file format of the asset"
    )
    output_formats: Annotated[
        tuple[OutputFormat, ...] | None, ListOrNothing(one_of(OutputFormat), len(OUTPUT_FORMATS))
    ] = Field(
        default=None,
        description="several file formats of the same asset, the first of them first in `output`; overrides "
        "`output_format`, which becomes the first (extension)",
    )
    resolution: Annotated[int, BoundedInt(64, 512)] = Field(
        default=256, description="resolution of the grid that the surface is extracted on"
    )
    ss_guidance_strength: Annotated[float, BoundedFloat(0, 10)] = Field(
        default=7.5, description="guidance strength of stage 1, the sparse structure"
    )
    ss_sampling_steps: Annotated[int, BoundedInt(1, 50)] = Field(default=12, description="sampling steps of stage 1")
    slat_guidance_strength: Annotated[float, BoundedFloat(0, 10)] = Field(
        default=3.0, description="guidance strength of stage 2, the structured latent"
    )
    slat_sampling_steps: Annotated[int, BoundedInt(1, 50)] = Field(default=12, description="sampling steps of stage 2")
    mesh_simplify: Annotated[float, BoundedFloat(0.90, 0.98)] = Field(
        default=0.90, description="share of the extracted triangles that is removed"
    )
    target_faces: Annotated[int | None, BoundedInt(MIN_FACES, MAX_FACES, optional=True)] = Field(
        default=None, description="number of faces of the result; overrides `mesh_simplify` (extension)"
    )
    lods: Annotated[tuple[int, ...] | None, ListOrNothing(BoundedInt(MIN_FACES, MAX_FACES), MAX_LODS)] = Field(
        default=None,
        description="further levels of detail by their numbers of faces: files `…_lod1.glb`, `…_lod2.glb` in this "
        "order, in every format (extension)",
    )
    chunk_size: Annotated[int, BoundedInt(1, 12000)] = Field(
        default=8192,
        description="points evaluated at once: a smaller number needs less memory, the result is the same; numbers "
        "under 1024 act as 1024",
    )
    seed: Annotated[int, BoundedInt(0, 2**32 - 1)] = Field(
        default=0, description="the same seed gives the same bytes; 0 draws a seed, returned as `meta.seed`"
    )
    temp: Annotated[bool, LenientBool()] = Field(
        default=False, description="use temporary storage even where you have a bucket"
    )
    webhook: Annotated[str | None, HttpUrl()] = Field(
        default=None, description="URL that the final body is posted to when the job ends"
    )
    track_id: Annotated[str | int | None, EchoedId()] = Field(
        default=None, description="your own id, returned by the webhook and by fetch"
    )
    texture_size: Annotated[int, BoundedInt(512, 4096)] = Field(
        default=1024, description="side of the texture in pixels (extension)"
    )
    engine: Annotated[str | None, Name()] = Field(
        default=None, description="an engine that the deployment offers (extension)"
    )
    no_texture: Annotated[bool, LenientBool()] = Field(
        default=False, description="export without a texture (extension)"
    )
    normal_map: Annotated[bool, LenientBool()] = Field(
        default=False,
        description="bake the relief that simplification removes into a normal map, in GLB, OBJ and USDZ (extension)",
    )
    splat: Annotated[bool, LenientBool()] = Field(
        default=False, description="also deliver the Gaussians as a splat `.ply`, if the engine has them (extension)"
    )
    size: Annotated[float | None, BoundedFloatOrNothing(0.001, 1000)] = Field(
        default=None,
        description="longest side of the asset in metres; by default 1, and 0.1 in STL and 3MF, which are written in "
        "millimetres (extension)",
    )
    origin: Annotated[Origin, one_of(Origin)] = Field(
        default="bottom",
        description="what lies at the origin: the middle of the base (`bottom`), or of the whole asset (extension)",
    )
    up_axis: Annotated[UpAxis | None, OneOfOrNothing(get_args(UpAxis))] = Field(
        default=None, description="the axis that points up; by default z in STL, 3MF and PLY, y elsewhere (extension)"
    )
    texture_format: Annotated[TextureFormat, one_of(TextureFormat)] = Field(
        default="png",
        description="format of the texture's image: `jpeg` and `webp` (in GLB only) are much smaller, with losses "
        "that are hardly seen (extension)",
    )
    compression: Annotated[Compression, one_of(Compression)] = Field(
        default="none",
        description="how a GLB stores the geometry: `quantize` in fewer bits, `meshopt` and `draco` also compressed; "
        "fewer programs read these (extension)",
    )
    print_ready: Annotated[bool, LenientBool()] = Field(
        default=False,
        description="one solid shell on a flat base: cavities are filled, loose parts joined or removed, and walls "
        "thinner than `min_wall_mm` named in `warning`; `meta.print` has the measures (extension)",
    )
    min_wall_mm: Annotated[float, BoundedFloat(0.1, 10)] = Field(
        default=0.8, description="millimetres from which a wall is thick enough to print, for `print_ready` (extension)"
    )
    retention_s: Annotated[int | None, BoundedInt(MIN_RETENTION_S, MAX_RETENTION_S, optional=True)] = Field(
        default=None,
        description="seconds for which temporary outputs can be downloaded, at most what the deployment allows "
        "(extension)",
    )

    @property
    @abstractmethod
    def kind(self) -> RequestKind:
        """What the asset is made from."""

    @property
    def sources(self) -> tuple[str, ...]:
        """What the job is made from besides text: URLs, data URIs or base64."""
        return ()

    @property
    def points_at_once(self) -> int:
        """The `chunk_size` that is used."""
        return max(self.chunk_size, LEAST_CHUNK_SIZE)

    @property
    def formats(self) -> tuple[OutputFormat, ...]:
        """The file formats that are delivered, at least one."""
        return self.output_formats or (self.output_format,)

    def effective_parameters(self) -> dict[str, Any]:
        """Every parameter that shapes the result, with its effective value: the `meta` of responses."""
        return {**self.model_dump(mode="json", exclude=NOT_PARAMETERS), "output_formats": list(self.formats)}


class ImageTo3DRequest(GenerationRequest, _ImageInput):
    """A validated submit of images."""

    detail: Annotated[int, OneOfNumbers(DETAILS)] = Field(
        default=1024,
        description="voxels along the side of the grid that trellis2 decodes: 512, 1024 or 1536 (extension)",
    )
    tex_guidance_strength: Annotated[float, BoundedFloat(0, 10)] = Field(
        default=1.0, description="guidance strength of the texture stage of trellis2 (extension)"
    )
    tex_sampling_steps: Annotated[int, BoundedInt(1, 50)] = Field(
        default=12, description="sampling steps of the texture stage of trellis2 (extension)"
    )

    @property
    def kind(self) -> RequestKind:
        """What the asset is made from."""
        return "image"

    @property
    def sources(self) -> tuple[str, ...]:
        """The images."""
        return self.image

    def check_view_angles(self, views: int) -> None:
        """Check that every view has an angle, if angles are given.

        Raises:
            InvalidRequest: their number is another.
        """
        angles = self.view_angles
        if angles is not None and len(angles) != views:
            raise InvalidRequest(f"view_angles must be one angle for each view, got {len(angles)} for {views}")


Request = TypeVar("Request", bound=GenerationRequest)


@dataclass(frozen=True)
class ParsedRequest:
    """A validated request, and sentences about the fields that had no effect."""

    request: GenerationRequest
    warnings: tuple[str, ...] = ()


def parse_request(
    body: object,
    *,
    default_output_format: OutputFormat = "glb",
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> ParsedRequest:
    """Read the JSON body of a submit.

    Args:
        body: the parsed JSON, of any type.
        default_output_format: what a body without `output_format` gets; it depends on the path.
        defaults: of the engine that will run, where they differ from those of the fields.

    Raises:
        InvalidRequest: one sentence that names the first invalid field, its value and what is accepted.
    """
    given = read_fields(body)
    request = validate_fields({"output_format": default_output_format, **defaults, **given}, ImageTo3DRequest)
    if len(request.image) > 1 and not request.multi_image:
        raise InvalidRequest(f"image must be one image unless multi_image is true, got a list of {len(request.image)}")
    if len(request.image) > 1 or not request.multi_image:  # how many views a sheet has is known when it is split
        request.check_view_angles(len(request.image))
    return ParsedRequest(request, ignored_fields(given, ImageTo3DRequest.model_fields))


def formats_of(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The file formats of a job by its effective parameters; version 0.1.0 recorded one alone."""
    return tuple(parameters.get("output_formats") or (parameters.get("output_format", "glb"),))


def validate_fields(fields: Mapping[str, object], model: type[Request]) -> Request:
    """The request that fields describe; its `output_format` is the first of `output_formats`.

    Args:
        model: which kind of request.

    Raises:
        InvalidRequest: one sentence that names the first invalid field.
    """
    try:
        request = model.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(first_error_message(error)) from None
    return request.model_copy(update={"output_format": request.formats[0]})


def read_fields(body: object) -> dict[str, object]:
    """The fields of a body that were given, under their present names.

    Raises:
        InvalidRequest: it is not an object.
    """
    given = given_fields(body)
    for legacy, name in LEGACY_NAMES.items():
        if legacy in given:
            given.setdefault(name, given.pop(legacy))
    return given


def ignored_fields(
    given: Mapping[str, object], known: Iterable[str], *, reason: str = "this service has no such field"
) -> tuple[str, ...]:
    """A sentence about the given fields that have no effect, if there are any; another for those of images.

    Args:
        reason: why fields that a submit of images has are ignored.
    """
    ignored = sorted(given.keys() - set(known) - SENT_IN_A_HEADER_TOO)
    of_images = [name for name in ignored if name in ImageTo3DRequest.model_fields]
    unknown = [name for name in ignored if name not in of_images]
    groups = ((of_images, reason), (unknown, "this service has no such field"))
    return tuple(f"Ignored, because {why}: {_list_names(names)}." for names, why in groups if names)


def _list_names(names: Sequence[str]) -> str:
    shown = ", ".join(truncate_for_message(name)[1:-1] for name in names[:8])
    return f"{shown}, …" if len(names) > 8 else shown
